use super::*;

fn user() -> User {
    User { app_id: AppId::parse("wx1").unwrap(), openid: OpenId::parse("o1").unwrap() }
}

fn digest(byte: u8) -> TokenDigest {
    TokenDigest::from_bytes([byte; 32])
}

fn key(byte: u8) -> LoginKey {
    LoginKey { session_key: SessionKey::from_bytes(&[byte; 16]), logged_in_at_millis: u64::MAX }
}

fn session(client: &str, has_ids: bool) -> SessionEntry {
    let User { app_id, openid } = user();
    let unionid = UnionId::parse("u1").filter(|_| has_ids);
    let user_id = UserId::parse("tenant/7").filter(|_| has_ids);
    SessionEntry {
        digest: digest(1),
        identity: Identity { app_id, openid, unionid, user_id },
        client: client.parse().unwrap(),
        created: 0,
        ends: u64::MAX,
        used: 1_700_000_000_000,
    }
}

fn block() -> BlockEntry {
    BlockEntry { known: KnownUser { user: user(), user_id: UserId::parse("7") }, until: 9 }
}

fn entries() -> Vec<Entry> {
    vec![
        Entry::Session(session("192.0.2.1", true)),
        Entry::Session(session("::ffff:192.0.2.1", false)),
        Entry::Session(session("2001:db8::1", true)),
        Entry::Block(block()),
        Entry::Block(BlockEntry { known: user().into(), until: 0 }),
        Entry::Keys(KeysEntry { user: user(), keys: vec![key(1), key(2), key(3)] }),
    ]
}

fn changes() -> Vec<Change> {
    vec![
        Change::Revoked(digest(1)),
        Change::Blocked(block()),
        Change::Unblocked(user()),
        Change::Created { session: session("192.0.2.1", true), key: Some(key(1)) },
        Change::Created { session: session("::1", false), key: None },
        Change::KeyReplaced { user: user(), key: key(2) },
        Change::Used(vec![(digest(1), 0), (digest(2), u64::MAX)]),
        Change::Used(Vec::new()),
        Change::WipedKeys,
        Change::Removed(digest(3)),
    ]
}

fn decode_entry(list: &[u8]) -> Result<Option<Entry>, Malformed> {
    Entry::decode(list, &mut AppIds::default())
}

fn decode_change(list: &[u8]) -> Result<Option<Change>, Malformed> {
    Change::decode(list, &mut AppIds::default())
}

/// The lists of all entries, and then of all changes.
fn lists() -> (Vec<Writer>, Vec<Writer>) {
    let of_entry = |entry: &Entry| {
        let mut list = Writer::new();
        entry.encode(&mut list);
        list
    };
    let of_change = |change: &Change| {
        let mut list = Writer::new();
        change.encode(&mut list);
        list
    };
    (entries().iter().map(of_entry).collect(), changes().iter().map(of_change).collect())
}

fn fields_of(list: &Writer) -> Vec<Field<'_>> {
    fields::read(list.as_bytes()).collect::<Result<_, _>>().unwrap()
}

fn list_of<'a>(fields: impl IntoIterator<Item = &'a Field<'a>>) -> Writer {
    let mut list = Writer::new();
    for field in fields {
        list.bytes(field.number, field.value);
    }
    list
}

#[test]
fn entries_and_changes_come_back_as_they_were() {
    let (of_entries, of_changes) = lists();
    for (entry, list) in entries().iter().zip(&of_entries) {
        assert!(decode_entry(list.as_bytes()).as_ref() == Ok(&Some(entry.clone())));
        assert!(decode_change(list.as_bytes()) == Ok(None), "is no change");
    }
    for (change, list) in changes().iter().zip(&of_changes) {
        assert!(decode_change(list.as_bytes()).as_ref() == Ok(&Some(change.clone())));
        assert!(decode_entry(list.as_bytes()) == Ok(None), "is no entry");
    }
}

#[test]
fn an_unknown_field_or_kind_is_ignored() {
    let (mut of_entries, mut of_changes) = lists();
    for (entry, list) in entries().iter().zip(&mut of_entries) {
        list.text(1000, "new").text(1000, "twice");
        assert!(decode_entry(list.as_bytes()).as_ref() == Ok(&Some(entry.clone())));
    }
    for (change, list) in changes().iter().zip(&mut of_changes) {
        list.text(1000, "new");
        assert!(decode_change(list.as_bytes()).as_ref() == Ok(&Some(change.clone())));
    }
    for kind in (0..=u8::MAX).filter(|kind| !matches!(kind, 1..=3 | 11..=18)) {
        let mut list = Writer::new();
        list.bytes(KIND, &[kind]).text(DIGEST, "something else");
        assert!(decode_entry(list.as_bytes()) == Ok(None), "{kind}");
        assert!(decode_change(list.as_bytes()) == Ok(None), "{kind}");
    }
}

#[test]
fn a_missing_repeated_or_malformed_field_is_an_error() {
    // These may be missing. Of the last two there may be several.
    let may_be_missing = [UNIONID, USER_ID, KEY, USE];
    let may_be_repeated = |list: &[Field<'_>], number| {
        let kind = list[0].value;
        number == USE || number == KEY && kind == [KEYS]
    };
    let (of_entries, of_changes) = lists();
    let fails = |list: &Writer| {
        decode_entry(list.as_bytes()).is_err() || decode_change(list.as_bytes()).is_err()
    };
    for list in of_entries.iter().chain(&of_changes) {
        let fields = fields_of(list);
        assert!(!fails(list));
        for at in 0..fields.len() {
            let Field { number, value } = fields[at];
            let kind = fields[0].value;
            let mut changed = fields.clone();
            changed.remove(at);
            let is_needed = !may_be_missing.contains(&number) || kind == [KEY_REPLACED];
            assert_eq!(fails(&list_of(&changed)), is_needed, "{kind:?} without {number}");
            let mut changed = fields.clone();
            changed.push(fields[at]);
            let is_refused = !may_be_repeated(&fields, number);
            assert_eq!(fails(&list_of(&changed)), is_refused, "{kind:?}: {number} twice");
            for wrong in [&b""[..], &[0xff; 5], &[value, value, b" "].concat()] {
                let mut changed = fields.clone();
                changed[at].value = wrong;
                assert!(fails(&list_of(&changed)), "{kind:?}: {number} is {wrong:?}");
            }
        }
        let whole = list.as_bytes();
        for length in 0..whole.len() {
            // A list that is cut off between fields is another list.
            let cut = &whole[..length];
            if fields::read(cut).any(|field| field.is_err()) {
                assert!(decode_entry(cut).is_err() || decode_change(cut).is_err());
            }
        }
    }
    assert!(decode_entry(b"").is_err() && decode_change(b"").is_err());
}

#[test]
fn sessions_of_one_app_share_its_id() {
    let mut apps = AppIds::default();
    let mut list = Writer::new();
    Entry::Session(session("::1", true)).encode(&mut list);
    let mut app_of = || match Entry::decode(list.as_bytes(), &mut apps) {
        Ok(Some(Entry::Session(session))) => session.identity.app_id,
        _ => panic!(),
    };
    let (one, other) = (app_of(), app_of());
    assert_eq!(one.as_str().as_ptr(), other.as_str().as_ptr());
    // No more are remembered than a gateway has, and all are read.
    for number in 0..1000 {
        let text = format!("wx{number}");
        assert_eq!(apps.parse(&text).unwrap().as_str(), text);
    }
    assert_eq!(apps.0.len(), AppIds::MOST);
}
