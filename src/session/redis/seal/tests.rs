use super::*;
use crate::identity::token::SessionToken;

fn key(byte: u8) -> SealKey {
    SealKey::parse(&format!("{byte:02x}").repeat(32)).unwrap()
}

fn record() -> Record {
    Record {
        identity: Identity {
            app_id: AppId::parse("wx1").unwrap(),
            openid: OpenId::parse("o1-secret-openid").unwrap(),
            unionid: UnionId::parse("u1"),
            user_id: None,
        },
        client: IpAddr::from([192, 0, 2, 1]),
        created: 1_700_000_000_000,
        ends: 1_700_000_100_000,
        used: 1_700_000_050_000,
    }
}

#[test]
fn a_record_opens_only_with_its_key_and_for_its_token() {
    let (seals, digest) = (Seals::new(&[key(1)]), SessionToken::generate().digest());
    for record in [
        record(),
        Record { identity: Identity { unionid: None, ..record().identity }, ..record() },
        Record {
            identity: Identity {
                user_id: UserId::parse(&"u".repeat(UserId::LONGEST)),
                ..record().identity
            },
            ..record()
        },
        Record { client: "2001:db8::1".parse().unwrap(), ..record() },
    ] {
        let value = seals.seal(&digest, &record).unwrap();
        assert_eq!(seals.open(&digest, &value), StoredValue::Session(record));
        let other = SessionToken::generate().digest();
        assert_eq!(seals.open(&other, &value), StoredValue::Unreadable);
        assert_eq!(Seals::new(&[key(2)]).open(&digest, &value), StoredValue::Unreadable);
        let rotated = Seals::new(&[key(2), key(1)]);
        assert!(matches!(rotated.open(&digest, &value), StoredValue::Session(_)));
    }
    assert_eq!(seals.open(&digest, TOMBSTONE), StoredValue::Tombstone);
}

#[test]
fn no_bit_of_a_value_can_be_changed() {
    let (seals, digest) = (Seals::new(&[key(1)]), SessionToken::generate().digest());
    let value = seals.seal(&digest, &record()).unwrap();
    for bit in 0..value.len() * 8 {
        let mut changed = value.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(seals.open(&digest, &changed), StoredValue::Unreadable, "bit {bit}");
    }
    for length in 0..value.len() {
        assert_eq!(seals.open(&digest, &value[..length]), StoredValue::Unreadable, "{length}");
    }
}

#[test]
fn a_value_does_not_reveal_its_user() {
    let (seals, digest) = (Seals::new(&[key(1)]), SessionToken::generate().digest());
    let value = seals.seal(&digest, &record()).unwrap();
    let holds = |text: &[u8]| value.windows(text.len()).any(|window| window == text);
    assert!(!holds(b"secret-openid") && !holds(b"wx1"));
    assert_ne!(value, seals.seal(&digest, &record()).unwrap());
}

#[test]
fn list_entries_are_deterministic_and_specific_to_their_user() {
    let seals = Seals::new(&[key(1), key(2)]);
    let user = User { app_id: AppId::parse("wx1").unwrap(), openid: OpenId::parse("o1").unwrap() };
    let other = User { openid: OpenId::parse("o2").unwrap(), ..user.clone() };
    let digest = SessionToken::generate().digest();
    let names: Vec<_> = seals.user_names(&user).collect();
    assert_eq!(names.len(), 2);
    let member = names[0].member(&digest).unwrap();
    assert_eq!(member, names[0].member(&digest).unwrap());
    assert!(names[0].digest(&member) == Some(digest));
    assert!(names[1].digest(&member).is_none());
    let others = seals.user_names(&other).next().unwrap();
    assert_ne!(others.name, names[0].name);
    assert!(others.digest(&member).is_none());
    assert!(!names[0].name.contains("o1"));
}

#[test]
fn an_access_token_opens_only_with_its_key_and_for_its_app() {
    let seals = Seals::new(&[key(1)]);
    let [app, other] = ["wx1", "wx2"].map(|id| AppId::parse(id).unwrap());
    let value = seals.seal_access_token(&app, b"a-token").unwrap();
    assert!(!value.windows(7).any(|window| window == b"a-token"));
    assert_eq!(seals.open_access_token(&app, &value).unwrap().as_slice(), b"a-token");
    assert!(seals.open_access_token(&other, &value).is_none());
    assert!(Seals::new(&[key(2)]).open_access_token(&app, &value).is_none());
    assert!(Seals::new(&[key(2), key(1)]).open_access_token(&app, &value).is_some());
    assert!(seals.open_access_token(&app, &value[..value.len() - 1]).is_none());
    assert!(seals.open_access_token(&app, b"").is_none());
    assert!(Seals::new(&[]).seal_access_token(&app, b"a-token").is_err());
}

#[test]
fn a_short_lived_record_opens_only_with_its_key_and_under_its_name() {
    let seals = Seals::new(&[key(1)]);
    let value = seals.seal_short_lived("wxgate:o:t1", b"a-record").unwrap();
    assert!(!value.windows(8).any(|window| window == b"a-record"));
    let open = |seals: &Seals, name: &str| seals.open_short_lived(name, &value);
    assert_eq!(open(&seals, "wxgate:o:t1").unwrap().as_slice(), b"a-record");
    assert_eq!(open(&Seals::new(&[key(2), key(1)]), "wxgate:o:t1").unwrap().len(), 8);
    assert!(open(&seals, "wxgate:o:t2").is_none());
    assert!(open(&seals, "wxgate:o:s1").is_none());
    assert!(open(&Seals::new(&[key(2)]), "wxgate:o:t1").is_none());
    for bit in 0..value.len() * 8 {
        let mut changed = value.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(seals.open_short_lived("wxgate:o:t1", &changed).is_none(), "bit {bit}");
    }
    // Keys of other purposes cannot open it.
    let app = AppId::parse("wx1").unwrap();
    let value = seals.seal_short_lived("wx1", b"a-record").unwrap();
    assert!(seals.open_access_token(&app, &value).is_none());
    assert!(Seals::new(&[]).seal_short_lived("wx1", b"a-record").is_err());
}

#[test]
fn a_session_key_opens_only_for_its_user_and_never_as_a_token() {
    let seals = Seals::new(&[key(1), key(2)]);
    let user = record().identity.user();
    let other = User { openid: OpenId::parse("o2").unwrap(), ..user.clone() };
    let names: Vec<_> = seals.user_names(&user).collect();
    let session_key = SessionKey::from_bytes(b"sandbox-12345678");
    let entry = names[0].key_entry(&session_key).unwrap();
    assert!(names[0].session_key(&entry) == Some(session_key.clone()));
    assert_eq!(entry, names[0].key_entry(&session_key).unwrap());
    assert!(!entry.windows(8).any(|window| window == b"sandbox-"));
    assert!(names[0].digest(&entry).is_none());
    assert!(names[1].session_key(&entry).is_none());
    assert!(seals.user_names(&other).all(|name| name.session_key(&entry).is_none()));
    let member = names[0].member(&SessionToken::generate().digest()).unwrap();
    assert!(names[0].session_key(&member).is_none());
    for bit in 0..entry.len() * 8 {
        let mut changed = entry.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(names[0].session_key(&changed).is_none(), "bit {bit}");
    }
}

#[test]
fn without_a_key_nothing_is_sealed() {
    let digest = SessionToken::generate().digest();
    assert!(Seals::new(&[]).seal(&digest, &record()).is_err());
}
