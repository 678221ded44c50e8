//! Tests of what a process gives to the one that takes over, for whole configurations.

use std::net::{IpAddr, Ipv4Addr};

use rustls::server::ProducesTickets;

use super::*;
use crate::config::{LogDestination, LogSection, Secrets};
use crate::handover::claims::tests::join;
use crate::handover::claims::{CodeKind, Wanted};
use crate::handover::fields::{Malformed, Writer};
use crate::policy::handover::{answer_code, count_uses, export, import, note_uses, tell_uses};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn process(clock: &Clock, changes: &[(&str, &str)]) -> (Process, Policy) {
    let mut text = r#"
        login.rate_per_address = "2/1m"
        [server]
        listen = "127.0.0.1:0"
        [[app]]
        app_id = "wx0123456789abcdef"
        app_secret = { env = "UNUSED" }
        login_rate = "1/1h"
        [[upstream]]
        name = "shop"
        servers = ["127.0.0.1:1"]
        [[route]]
        name = "shop"
        path = "/"
        upstream = "shop"
        auth = "required"
        rate_per_user = "3/1m"
        rate_per_address = "4/1m"
    "#
    .to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let config = Config::parse("test", &text, Secrets::Ignore).unwrap();
    let metrics = Metrics::new().unwrap();
    let log = LogSection { access: LogDestination::Off, ..config.log.clone() };
    let access_log = AccessLog::open(&log, clock, &metrics).unwrap();
    prepare(&config, access_log, Inherited::nothing(clock.clone()), metrics).unwrap()
}

/// How many logins the limit by address lets pass.
fn logins(policy: &Policy) -> usize {
    let limit = policy.login_rate.as_deref();
    (0..10).take_while(|_| policy.check_address(CLIENT, limit).is_ok()).count()
}

#[tokio::test]
async fn limits_are_found_by_their_names_and_keys_and_codes_are_the_same() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let clock = Clock::manual();
    let old = process(&clock, &[]);
    let app =
        |policy: &Policy| policy.login.apps().get("wx0123456789abcdef").unwrap().rate_limit.check();
    assert_eq!(logins(&old.1), 2);
    app(&old.1).unwrap();
    let ticket = old.0.tickets.encrypt(b"session").unwrap();
    old.0.phone_codes.add([7; 32]).unwrap();
    let pieces = export(&old.0, &old.1);
    assert!(pieces.iter().all(|piece| piece.as_bytes().len() < 1 << 20));

    let same = process(&clock, &[]);
    // A limit is new where its rate is, and gone where its route is.
    let other = process(&clock, &[("2/1m", "3/1m"), ("name = \"shop\"\n        path", "path")]);
    for (new, left) in [(&same, 0), (&other, 3)] {
        for piece in &pieces {
            import(&new.0, &new.1, piece.as_bytes()).unwrap();
        }
        assert_eq!(logins(&new.1), left);
        app(&new.1).unwrap_err();
        assert_eq!(new.0.tickets.decrypt(&ticket).unwrap(), b"session");
        new.0.phone_codes.add([7; 32]).unwrap_err();
        new.0.phone_codes.add([8; 32]).unwrap();
    }
}

#[tokio::test]
async fn a_part_of_a_newer_program_is_ignored_and_a_malformed_one_is_not() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let (process, policy) = process(&Clock::manual(), &[]);
    let mut piece = Writer::new();
    piece.text(1, "login").bytes(99, b"newer");
    import(&process, &policy, piece.as_bytes()).unwrap();
    piece.bytes(2, b"no limit");
    assert_eq!(import(&process, &policy, piece.as_bytes()), Err(Malformed));
}

#[tokio::test]
async fn what_passes_in_one_process_is_used_in_the_other() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let clock = Clock::manual();
    let [old, new] = [(); 2].map(|()| Arc::new(process(&clock, &[("1/1h", "2/1h")])));
    let both = [old.clone(), new.clone()];
    join([&old.0.peer, &new.0.peer], move |asked, question| {
        count_uses(&both[asked].1, question).unwrap();
        Vec::new()
    });
    note_uses(&old.1, true);
    for piece in export(&old.0, &old.1) {
        import(&new.0, &new.1, piece.as_bytes()).unwrap();
    }
    note_uses(&new.1, true);
    let login = |policy: &Policy| {
        let app = policy.login.apps().get("wx0123456789abcdef").unwrap();
        let limit = policy.login_rate.as_deref();
        policy.check_address(CLIENT, limit).and_then(|()| app.rate_limit.check())
    };
    for (here, there) in [(&old, &new), (&new, &old)] {
        login(&here.1).unwrap();
        tell_uses(&here.0, &here.1).await;
        assert!(there.0.peer.is_linked());
    }
    for both in [&old, &new] {
        assert_eq!(logins(&both.1), 0);
        let app = both.1.login.apps().get("wx0123456789abcdef").unwrap();
        app.rate_limit.check().unwrap_err();
    }
    // A limit of another configuration and a field of a newer program count nowhere.
    let mut piece = Writer::new();
    piece.text(1, "unknown").bytes(99, b"newer").bytes(2, b"x").bytes(3, b"x");
    count_uses(&new.1, piece.as_bytes()).unwrap();
    piece.text(1, "login").bytes(2, b"no limit");
    assert_eq!(count_uses(&new.1, piece.as_bytes()), Err(Malformed));
}

#[tokio::test]
async fn codes_of_each_kind_are_given_to_the_process_that_asks_first() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let (process, policy) = process(&Clock::manual(), &[]);
    process.phone_codes.add([7; 32]).unwrap();
    let answer = |kind: u8, digest: [u8; 32]| {
        let mut question = Writer::new();
        question.bytes(1, &[kind]).bytes(2, &digest).bytes(3, &[0; 16]);
        assert!(Wanted::parse(question.as_bytes()).is_some());
        answer_code(&process, &policy, question.as_bytes())
    };
    let phone = CodeKind::PhoneNumber as u8;
    assert_eq!(answer(phone, [7; 32]), [0]);
    assert_eq!(answer(phone, [8; 32]), [1]);
    process.phone_codes.add([8; 32]).unwrap_err();
    assert_eq!(answer(CodeKind::Login as u8, [7; 32]), [1]);
    assert_eq!(answer(99, [7; 32]), [1]);
    assert_eq!(answer_code(&process, &policy, b"x"), [0]);
}
