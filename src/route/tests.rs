use super::*;
use crate::config::{Config, Secrets};
use crate::identity::AppId;

/// What a GET without headers matches.
fn resolve(routes: &Routes, path: &str, host: Option<&str>) -> Result<Endpoint, MatchError> {
    routes.resolve(&RouteLookup { path, host, method: &Method::GET, headers: &HeaderMap::new() })
}

fn routes() -> Routes {
    let text = r#"
        [server]
        listen = "127.0.0.1:0"
        [endpoints]
        health = "/healthz"
        [[app]]
        app_id = "wx1"
        app_secret = { env = "X" }
        [[upstream]]
        name = "u"
        servers = ["127.0.0.1:1"]
        [[route]]
        path = "/"
        upstream = "u"
        [[route]]
        path = "/public"
        upstream = "u"
        auth = "none"
        [[route]]
        path = "/public/admin/"
        upstream = "u"
    "#;
    let config = Config::parse("test", text, Secrets::Ignore).unwrap();
    Routes::new(&config.endpoints, &config.routes)
}

#[test]
fn the_longest_prefix_wins_at_segment_borders() {
    let routes = routes();
    for (path, index) in [
        ("/", 0),
        ("/publicity", 0),
        ("/public", 1),
        ("/public/", 1),
        ("/public/x", 1),
        ("/public/admin", 2),
        ("/public/admin/x", 2),
        ("/public/administrator", 1),
    ] {
        assert_eq!(resolve(&routes, path, None), Ok(Endpoint::Route(index)), "{path}");
    }
    // No server decodes three times.
    let thrice = "/public/%25252e%25252e/x";
    assert_eq!(resolve(&routes, thrice, None), Ok(Endpoint::Route(1)));
    assert_eq!(resolve(&routes, "/login", None), Ok(Endpoint::Login));
    assert_eq!(resolve(&routes, "/login/", None), Ok(Endpoint::Route(0)));
    assert_eq!(resolve(&routes, "/healthz", None), Ok(Endpoint::Health));
}

#[test]
fn readings_that_match_different_routes_are_rejected() {
    let routes = routes();
    for path in [
        "/public/../admin",
        "/public/..;/admin",
        "/public/.;/../admin",
        "/public/%2e%2e/admin",
        "/public/%2e%2e%2fadmin",
        "/public/%252e%252e/admin",
        "/public\\..\\admin",
        "/public%5c..%5cadmin",
        "/public//../../admin",
        "/x/../public/y",
        "/public%2fx",
        "/public/adm%69n",
        "/public;x/y",
        "//login",
        "/login;x=1",
        "/%6cogin",
        "/x/a/%2e%2e/../%2e%2e/../public",
        "/public/a%2f..%2f..%2fadmin",
        "/public/admin%3fx",
        "/public/admin%2523",
        "/public/a%2fb/%2e%2e/%2e%2e/x",
        "/public/a%5cb/%2e%2e/%2e%2e/x",
        "/public/a%252fb/%252e%252e/%252e%252e/x",
        "/..;/public/..;/..;",
        // Servers that keep escaped slashes, but decode the rest.
        "/public/a%2fb/..%3bx/..%3bx/y",
        "/public/a%2fb/%2e%2e%3bx/%2e%2e%3bx/y",
        "/public/a%2f%5cb/..%3bx/..%3bx/y",
        "/public/a%2fb/..%5c..%5cy",
        "/public/a%2fb/%252e%252e%255c%252e%252e%255cy",
        "/public/%252e%252e%252fx/y",
        "//x/public/y",
        "///u@x:80/public/y",
        "/%2fx/public/y",
        "//x/login",
    ] {
        assert_eq!(resolve(&routes, path, None), Err(MatchError::Ambiguous), "{path}");
    }
}

#[test]
fn readings_that_match_one_route_are_forwarded() {
    let routes = routes();
    for (path, index) in [
        ("/objects/a%2Fb", 0),
        ("/objects/a%2Fb%5Cc;v=1//x%20y/%7Eme", 0),
        ("/cart;jsessionid=1", 0),
        ("/api//orders", 0),
        ("/a/../b", 0),
        ("/public/a/../b", 1),
        ("/public//x", 1),
        ("/public/caf%C3%A9", 1),
        ("/public/%C4%E3", 1),
        ("/public/100%25", 1),
    ] {
        assert_eq!(resolve(&routes, path, None), Ok(Endpoint::Route(index)), "{path}");
    }
}

#[test]
fn malformed_paths_are_rejected_on_every_route() {
    let routes = routes();
    for path in [
        "",
        "x",
        "*",
        "/a\0",
        "/a\u{7f}",
        "/a%00",
        "/a%0a",
        "/a%7F",
        "/a%2500",
        "/a%",
        "/a%2",
        "/a%zz",
        "/a%c0%af",
        "/a%C1%80",
        "/a%e0%80%af",
        "/a%f0%80%80%af",
        "/a%f8%80%80%80%af",
        "/a%fc%80%80%80%80%af",
        "/a b",
        "/a#b",
    ] {
        assert_eq!(resolve(&routes, path, None), Err(MatchError::Malformed), "{path:?}");
    }
}

#[test]
fn a_route_accepts_the_methods_and_apps_that_it_lists() {
    let text = r#"
        [server]
        listen = "127.0.0.1:0"
        [[app]]
        app_id = "wx1"
        app_secret = { env = "NONE" }
        [[upstream]]
        name = "u"
        servers = ["127.0.0.1:1"]
        [[route]]
        path = "/"
        upstream = "u"
        [[route]]
        path = "/narrow"
        upstream = "u"
        methods = ["GET", "POST"]
        apps = ["wx1"]
    "#;
    let config = Config::parse("test", text, Secrets::Ignore).unwrap();
    let routes = Routes::new(&config.endpoints, &config.routes);
    let (wide, narrow) = (routes.get(0).unwrap(), routes.get(1).unwrap());
    let (listed, other) = (AppId::parse("wx1").unwrap(), AppId::parse("wx2").unwrap());
    assert!(wide.allows_method(&Method::DELETE) && wide.accepts_app(&other));
    assert!(narrow.allows_method(&Method::GET) && narrow.allows_method(&Method::POST));
    assert!(
        !narrow.allows_method(&Method::DELETE)
            && !narrow.allows_method(&Method::from_bytes(b"get").unwrap())
    );
    assert!(narrow.accepts_app(&listed) && !narrow.accepts_app(&other));
    let names: Vec<_> = routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["/", "/narrow"]);
    assert!(routes.get(2).is_none());
}

#[test]
fn endpoints_are_served_on_their_hosts_only() {
    let text = r#"
        [server]
        listen = "127.0.0.1:0"
        [[app]]
        app_id = "wx1"
        app_secret = { env = "NONE" }
        [endpoints]
        hosts = ["mini.example"]
        [[upstream]]
        name = "u"
        servers = ["127.0.0.1:1"]
        [[route]]
        path = "/"
        upstream = "u"
    "#;
    let config = Config::parse("test", text, Secrets::Ignore).unwrap();
    let routes = Routes::new(&config.endpoints, &config.routes);
    for own in ["mini.example", "MINI.Example:8080", "mini.example.", "mini.example.:80"] {
        assert_eq!(resolve(&routes, "/login", Some(own)), Ok(Endpoint::Login), "{own}");
    }
    for other in [Some("other.example"), Some("mini.example:x"), Some("mini"), None] {
        assert_eq!(resolve(&routes, "/login", other), Ok(Endpoint::Route(0)), "{other:?}");
    }
}
