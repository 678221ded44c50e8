use super::*;

#[test]
fn a_ticket_is_removed_byte_for_byte() {
    for (target, value, left) in [
        ("/a?wxgate_ticket=X", "X", "/a"),
        ("/a?wxgate_ticket=X&b=c", "X", "/a?b=c"),
        ("/a?b=c&wxgate_ticket=X", "X", "/a?b=c"),
        ("/a?b=c&wxgate_ticket=X&d=%20+e", "X", "/a?b=c&d=%20+e"),
        ("/a?wxgate_ticket=", "", "/a"),
        ("/a?wxgate_ticket=&", "", "/a?"),
        ("/a?&wxgate_ticket=X", "X", "/a?"),
        ("/a?&&wxgate_ticket=X&&b", "X", "/a?&&&b"),
        ("/a?wxgate_ticket=X=Y?Z", "X=Y?Z", "/a"),
        ("?wxgate_ticket=X", "X", ""),
        ("/wxgate_ticket=Y?wxgate_ticket=X", "X", "/wxgate_ticket=Y"),
        ("/a?xwxgate_ticket=Y&wxgate_ticket=X", "X", "/a?xwxgate_ticket=Y"),
    ] {
        let found = TicketParameter::find(target.as_bytes()).unwrap();
        let (before, after) = found.around(target.as_bytes());
        let shown = String::from_utf8([before, after].concat()).unwrap();
        assert_eq!((found.value(target.as_bytes()), &*shown), (value.as_bytes(), left), "{target}");
        assert!(!found.is_repeated, "{target}");
    }
}

#[test]
fn only_the_exact_name_is_a_ticket() {
    for target in [
        "/a",
        "/a?",
        "/a?b=c",
        "/a?wxgate_ticket",
        "/a?wxgate_ticket&b=c",
        "/a?wxgate%5fticket=X",
        "/a?WXGATE_TICKET=X",
        "/a?b=c;wxgate_ticket=X",
        "/a?b=c?wxgate_ticket=X",
        "/a?b=wxgate_ticket=X",
        "/a?wxgate_tickets=X",
        "/wxgate_ticket=X",
        "/&wxgate_ticket=X?b=c",
        "/a? wxgate_ticket=X",
    ] {
        assert_eq!(TicketParameter::find(target.as_bytes()), None, "{target}");
    }
}

#[test]
fn a_second_ticket_is_noticed() {
    for target in [
        "/a?wxgate_ticket=X&wxgate_ticket=X",
        "/a?wxgate_ticket=&wxgate_ticket=",
        "/a?b&wxgate_ticket=X&c&wxgate_ticket=Y",
    ] {
        assert!(TicketParameter::find(target.as_bytes()).unwrap().is_repeated, "{target}");
    }
}
