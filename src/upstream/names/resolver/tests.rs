use super::super::dns_server::{DnsServer, Reply, addresses};
use super::*;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[tokio::test]
async fn addresses_of_both_kinds_are_found_with_the_shorter_ttl() {
    let server = DnsServer::start().await;
    let both = addresses(&["10.0.0.1", "10.0.0.2", "fd00::1"]);
    server.set("shop.internal", Reply::Addresses(both.clone(), 7));
    server.set("six.internal", Reply::Addresses(addresses(&["fd00::2"]), 0));
    server.set("odd_name.internal", Reply::Addresses(addresses(&["10.0.0.3"]), 9));
    server.set("half.internal", Reply::SilenceForIpv6(addresses(&["10.0.0.4"]), 9));
    let resolver = server.resolver();
    let look_up = async |host| resolver.look_up(host).await;
    assert_eq!(look_up("shop.internal").await, Ok((both, seconds(7))));
    assert_eq!(look_up("SIX.internal.").await, Ok((addresses(&["fd00::2"]), seconds(0))));
    assert_eq!(look_up("odd_name.internal").await, Ok((addresses(&["10.0.0.3"]), seconds(9))));
    assert_eq!(look_up("half.internal").await, Ok((addresses(&["10.0.0.4"]), seconds(9))));
}

#[tokio::test]
async fn an_alias_counts_with_its_ttl() {
    let server = DnsServer::start().await;
    server.set("blue.internal", Reply::Addresses(addresses(&["10.0.0.1"]), 60));
    server.set("shop.internal", Reply::Alias("blue.internal", 3));
    server.set("lost.internal", Reply::Alias("nowhere.internal", 3));
    let resolver = server.resolver();
    let found = resolver.look_up("shop.internal").await;
    assert_eq!(found, Ok((addresses(&["10.0.0.1"]), seconds(3))));
    assert!(resolver.look_up("lost.internal").await.is_err());
}

#[tokio::test]
async fn addresses_that_do_not_fit_into_a_datagram_are_found() {
    let server = DnsServer::start().await;
    let many: Vec<IpAddr> = (0..200).map(|last| Ipv4Addr::new(10, 0, 0, last).into()).collect();
    server.set("shop.internal", Reply::ManyAddresses(many.clone(), 7));
    let found = server.resolver().look_up("shop.internal").await;
    assert_eq!(found, Ok((many, seconds(7))));
}

#[tokio::test]
async fn each_look_up_asks_again() {
    let server = DnsServer::start().await;
    let resolver = server.resolver();
    for last in ["10.0.0.1", "10.0.0.2"] {
        server.set("shop.internal", Reply::Addresses(addresses(&[last]), 3600));
        let found = resolver.look_up("shop.internal").await;
        assert_eq!(found, Ok((addresses(&[last]), seconds(3600))));
    }
    // Nor is it remembered that there was none.
    assert!(resolver.look_up("new.internal").await.is_err());
    server.set("new.internal", Reply::Addresses(addresses(&["10.0.0.3"]), 5));
    assert!(resolver.look_up("new.internal").await.is_ok());
}

#[tokio::test]
async fn each_failure_is_told_apart() {
    let server = DnsServer::start().await;
    server.set("empty.internal", Reply::Empty);
    server.set("denied.internal", Reply::NoSuchName(Some(12)));
    server.set("unsigned.internal", Reply::NoSuchName(None));
    server.set("broken.internal", Reply::Failure(ResponseCode::ServFail));
    server.set("refused.internal", Reply::Failure(ResponseCode::Refused));
    let resolver = server.resolver();
    let cases = [
        ("empty.internal", LookUpError::NoAddress(Some(seconds(60)))),
        ("denied.internal", LookUpError::NoSuchName(Some(seconds(12)))),
        ("unsigned.internal", LookUpError::NoSuchName(None)),
        ("broken.internal", LookUpError::ServerFailure(ResponseCode::ServFail)),
        ("refused.internal", LookUpError::ServerFailure(ResponseCode::Refused)),
        ("no..name", LookUpError::NoSuchName(None)),
    ];
    for (host, error) in cases {
        assert_eq!(resolver.look_up(host).await, Err(error), "{host}");
    }
    // All sockets exist before time is stopped; it then jumps to the timeout.
    server.set("silent.internal", Reply::Silence);
    tokio::time::pause();
    assert_eq!(resolver.look_up("silent.internal").await, Err(LookUpError::Timeout));
}

#[tokio::test]
async fn the_search_list_is_used_as_the_system_does() {
    let server = DnsServer::start().await;
    let resolver = server.resolver_with(
        "nameserver 127.0.0.1\nsearch ns.svc.cluster.local svc.cluster.local\noptions ndots:2\n",
        "",
    );
    server.set("shop.svc.cluster.local", Reply::Addresses(addresses(&["10.0.0.1"]), 5));
    assert!(resolver.look_up("shop").await.is_ok());
    let names = |asked: Vec<String>| {
        let names = asked.iter().filter_map(|asked| asked.strip_suffix(". A"));
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names(server.asked()), ["shop.ns.svc.cluster.local", "shop.svc.cluster.local"]);
    // Fewer dots than ndots: last as it is. Otherwise first.
    assert!(resolver.look_up("a.b").await.is_err());
    assert_eq!(names(server.asked()), ["a.b.ns.svc.cluster.local", "a.b.svc.cluster.local", "a.b"]);
    assert!(resolver.look_up("a.b.c").await.is_err());
    assert_eq!(
        names(server.asked()),
        ["a.b.c", "a.b.c.ns.svc.cluster.local", "a.b.c.svc.cluster.local"]
    );
    assert!(resolver.look_up("shop.").await.is_err());
    assert_eq!(names(server.asked()), ["shop"]);
    // A name that exists without an address, or cannot be asked for, does not end the search, but
    // is what is reported.
    server.set("sick.ns.svc.cluster.local", Reply::Failure(ResponseCode::ServFail));
    server.set("sick.svc.cluster.local", Reply::Empty);
    let failure = Err(LookUpError::ServerFailure(ResponseCode::ServFail));
    assert_eq!(resolver.look_up("sick").await, failure);
    server.set("bare.ns.svc.cluster.local", Reply::Empty);
    assert_eq!(resolver.look_up("bare").await, Err(LookUpError::NoAddress(Some(seconds(60)))));
}

#[tokio::test]
async fn a_name_that_cannot_be_asked_for_is_not_replaced_by_a_later_one() {
    let server = DnsServer::start().await;
    let resolver = server.resolver_with("nameserver 127.0.0.1\nsearch svc.internal\n", "");
    server.set("shop.svc.internal", Reply::Silence);
    server.set("shop", Reply::Addresses(addresses(&["10.6.6.6"]), 5));
    tokio::time::pause();
    assert_eq!(resolver.look_up("shop").await, Err(LookUpError::Timeout));
}

#[tokio::test]
async fn the_next_name_server_is_asked_when_one_fails() {
    let (first, second) = loop {
        let first = DnsServer::start().await;
        if let Ok(second) = DnsServer::start_at(Ipv4Addr::new(127, 0, 0, 2), first.port).await {
            break (first, second);
        }
    };
    let resolver = first.resolver_with("nameserver 127.0.0.1\nnameserver 127.0.0.2\n", "");
    let found = || Reply::Addresses(addresses(&["10.0.0.2"]), 5);
    second.set("shop.internal", found());
    first.set("shop.internal", Reply::Failure(ResponseCode::ServFail));
    assert!(resolver.look_up("shop.internal").await.is_ok());
    // What the first one denies, the second is not asked for.
    second.asked();
    second.set("denied.internal", found());
    assert!(resolver.look_up("denied.internal").await.is_err());
    assert_eq!(second.asked(), [] as [&str; 0]);
    // One that does not run.
    let resolver = first.resolver_with("nameserver 127.0.0.3\nnameserver 127.0.0.2\n", "");
    assert!(resolver.look_up("shop.internal").await.is_ok());
}

#[tokio::test]
async fn the_hosts_file_comes_first() {
    let server = DnsServer::start().await;
    server.set("shop.internal", Reply::Addresses(addresses(&["10.0.0.1"]), 60));
    let hosts = "\u{feff}10.1.0.1\tshop.internal shop # shop.internal.example\n\
                 # 10.1.0.2 shop\n fd00::7  SHOP\n10.1.0.3\nno address shop\n";
    let resolver = server.resolver_with("nameserver 127.0.0.1\n", hosts);
    let look_up = async |host| resolver.look_up(host).await.map(|(found, _)| found);
    assert_eq!(look_up("shop").await, Ok(addresses(&["10.1.0.1", "fd00::7"])));
    assert_eq!(look_up("shop.internal").await, Ok(addresses(&["10.1.0.1"])));
    assert_eq!(server.asked(), [] as [&str; 0]);
    // Changes are seen.
    server.write("hosts", "10.1.0.9 shop\n");
    assert_eq!(look_up("shop").await, Ok(addresses(&["10.1.0.9"])));
    assert_eq!(look_up("shop.internal").await, Ok(addresses(&["10.0.0.1"])));
}

#[tokio::test]
async fn localhost_is_never_asked_for() {
    let server = DnsServer::start().await;
    let resolver = server.resolver_with("nameserver 127.0.0.1\n", "127.0.0.1 localhost\n");
    let look_up = async |host| resolver.look_up(host).await.map(|(found, _)| found);
    assert_eq!(look_up("localhost").await, Ok(addresses(&["127.0.0.1"])), "as the file says");
    assert_eq!(look_up("app.localhost").await, Ok(addresses(&["127.0.0.1", "::1"])));
    server.write("hosts", "");
    assert_eq!(look_up("LocalHost.").await, Ok(addresses(&["127.0.0.1", "::1"])));
    assert_eq!(server.asked(), [] as [&str; 0]);
}

#[tokio::test]
async fn a_resolv_conf_that_changes_is_seen() {
    let server = DnsServer::start().await;
    server.set("shop.blue.internal", Reply::Addresses(addresses(&["10.0.0.1"]), 60));
    server.set("shop.green.internal", Reply::Addresses(addresses(&["10.0.0.2"]), 60));
    let resolver = server.resolver_with("nameserver 127.0.0.1\nsearch blue.internal\n", "");
    let look_up = async || resolver.look_up("shop").await.map(|(found, _)| found);
    assert_eq!(look_up().await, Ok(addresses(&["10.0.0.1"])));
    server.write("resolv.conf", "nameserver 127.0.0.1\nsearch green.internal\n");
    assert_eq!(look_up().await, Ok(addresses(&["10.0.0.2"])));
}

#[tokio::test]
async fn without_name_servers_the_system_is_asked() {
    let server = DnsServer::start().await;
    for resolv_conf in ["", "# none\n", "search shop.internal\n"] {
        let resolver = server.resolver_with(resolv_conf, "");
        let (found, ttl) = resolver.look_up("localhost").await.unwrap();
        assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
        assert_eq!(ttl, SYSTEM_TTL);
    }
    let resolver = Resolver::with("/nonexistent", "/nonexistent", server.port);
    assert!(resolver.look_up("localhost").await.is_ok());
}
