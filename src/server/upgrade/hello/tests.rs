use super::*;

fn welcome_of(version: u64) -> Welcome {
    Welcome {
        version,
        program: "1.2.3".to_owned(),
        clock_offset: Duration::from_nanos(u64::MAX),
        state_key: SealKey::from_bytes([7; 32]),
        has_shared_store: true,
        sessions: 1_000_000,
        idle_timeout: Some(Duration::from_secs(7)),
    }
}

#[test]
fn two_programs_speak_the_newest_version_that_both_know() {
    for (own, other, common) in [
        (1..=1, 1..=1, Some(1)),
        // A newer program takes over, and one that has forgotten the first version.
        (1..=1, 1..=2, Some(1)),
        (1..=2, 2..=3, Some(2)),
        (1..=1, 2..=3, None),
        // An older program takes over: a rollback.
        (2..=4, 1..=3, Some(3)),
        (2..=4, 1..=1, None),
        // No version at all.
        (1..=1, RangeInclusive::new(3, 1), None),
    ] {
        assert_eq!(common_version(&own, &other), common, "{own:?} {other:?}");
        assert_eq!(common_version(&other, &own), common, "{other:?} {own:?}");
    }
}

#[test]
fn fields_of_a_newer_program_are_ignored_and_missing_ones_are_errors() {
    let mut hello = Hello::own().encode();
    hello.text(50, "new");
    assert_eq!(Hello::decode(hello.as_bytes()), Ok(Hello::own()));
    let mut welcome = welcome_of(1).encode();
    welcome.text(50, "new");
    assert_eq!(Welcome::decode(welcome.as_bytes()), Ok(welcome_of(1)));
    for left_out in 1..=6 {
        let without = |writer: &Writer| {
            let mut rest = Writer::new();
            for field in fields::read(writer.as_bytes()).map(Result::unwrap) {
                if field.number != left_out {
                    rest.bytes(field.number, field.value);
                }
            }
            rest
        };
        let hello = Hello::decode(without(&hello).as_bytes());
        assert_eq!(hello.is_err(), left_out <= 3, "{left_out}");
        let welcome = Welcome::decode(without(&welcome).as_bytes());
        assert_eq!(welcome.is_err(), left_out <= 5, "{left_out}");
    }
}

#[tokio::test]
async fn a_new_process_is_welcome_or_refused() {
    for version in [Some(1), None] {
        let (mut new, mut old) = UnixStream::pair().unwrap();
        let old = tokio::spawn(async move {
            let hello = receive_hello(&mut old).await.unwrap();
            assert_eq!(hello, Hello::own());
            match version {
                Some(version) => welcome(&mut old, &welcome_of(version)).await.unwrap(),
                None => refuse(&mut old, "not now").await.unwrap(),
            }
            // What follows is not read with the answer.
            old.write_all(b"next").await.unwrap();
        });
        let outcome = introduce(&mut new, &Hello::own()).await;
        match version {
            Some(version) => assert_eq!(outcome.unwrap(), welcome_of(version)),
            None => {
                let error = outcome.unwrap_err().to_string();
                assert_eq!(error, "the other process refuses: not now");
            }
        }
        let mut next = String::new();
        new.read_to_string(&mut next).await.unwrap();
        assert_eq!(next, "next");
        old.await.unwrap();
    }
}

#[tokio::test]
async fn an_impossible_answer_is_an_error() {
    let long = [&[0, 1, 0, 1, Kind::Welcome as u8][..], &vec![0; LONGEST + 1]].concat();
    let own = Hello::own();
    let old = [
        &frames::header(Kind::Welcome, welcome_of(2).encode().as_bytes()).unwrap(),
        welcome_of(2).encode().as_bytes(),
    ]
    .concat();
    for (answer, expected) in [
        (vec![], "the other process closed the connection"),
        (vec![0, 0], "the other process closed the connection"),
        (vec![0, 0, 0, 9, 2, 1], "the other process closed the connection"),
        (vec![0, 0, 0, 1, 2, 1], "the other process sent a malformed welcome"),
        (vec![0, 0, 0, 0, 3], "the other process sent a malformed refusal"),
        (vec![0, 0, 0, 0, 16], "the other process sent no answer to the hello"),
        (vec![0, 0, 0, 0, 77], "the other process sent an unknown kind of frame"),
        // A kind of a newer program is ignored.
        (vec![0, 0, 0, 0, 200, 0, 0, 0, 0, 3], "the other process sent a malformed refusal"),
        (long, "the other process sent a frame that is too long"),
        (old, "the other process chose version 2 of the protocol, which is unknown here"),
    ] {
        let (mut new, mut old) = UnixStream::pair().unwrap();
        let answering = tokio::spawn(async move {
            receive_hello(&mut old).await.unwrap();
            drop(old.write_all(&answer).await);
        });
        let error = introduce(&mut new, &own).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
        answering.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_says_nothing_is_not_waited_for() {
    let (mut new, mut old) = UnixStream::pair().unwrap();
    let error = receive_hello(&mut old).await.unwrap_err();
    assert!(matches!(error, HandshakeError::TimedOut), "{error}");
    let error = introduce(&mut new, &Hello::own()).await.unwrap_err();
    assert!(matches!(error, HandshakeError::TimedOut), "{error}");
}
