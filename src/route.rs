//! Which route or endpoint a request is for.
//!
//! A path is judged once, in every way that an upstream might read it (`path`); all of
//! the readings must meet the same [`Endpoint`], and then the bytes go on as they came.
//! Prefixes match at segment borders and the longest wins. The gateway's own endpoints
//! match exactly, come before routes, and may be limited to some hosts.

mod path;

use std::borrow::Cow;

use crate::config::{Access, EndpointsSection, Route as RouteSection};
use crate::identity::AppId;
use crate::rejection::Rejection;

/// Where a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Login,
    Logout,
    Session,
    Health,
    /// Index of the route in [`Routes`].
    Route(usize),
    /// Nothing is served here.
    None,
}

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path holds bytes or escapes that no path may hold")]
    Malformed,
    #[error("servers would read the path in different ways")]
    Ambiguous,
}

impl From<PathError> for Rejection {
    fn from(error: PathError) -> Self {
        Self::BadRequest(match error {
            PathError::Malformed => "the path is malformed",
            PathError::Ambiguous => "the path can be read in different ways",
        })
    }
}

/// All routes and endpoints of one configuration.
pub struct Routes {
    /// Exact paths of the gateway's own endpoints.
    endpoints: Vec<(String, Endpoint)>,
    hosts: Vec<String>,
    health: Vec<String>,
    /// Prefix without trailing slash and index, longest first.
    prefixes: Vec<(String, usize)>,
    all: Vec<Route>,
}

/// A route, ready to be asked.
pub struct Route {
    pub name: String,
    /// Index of the pool in the policy; `None`: only other proxies ask about it.
    pub upstream: Option<usize>,
    pub access: Access,
    pub websocket: bool,
    /// Bytes of a request body.
    pub max_body: u64,
    methods: Vec<String>,
    /// Value of `Allow`.
    pub allow: String,
    apps: Vec<AppId>,
}

impl Route {
    pub fn allows_method(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|allowed| allowed == method)
    }

    pub fn accepts_app(&self, app_id: &AppId) -> bool {
        self.apps.is_empty() || self.apps.contains(app_id)
    }
}

impl Routes {
    pub fn new(endpoints: &EndpointsSection, routes: &[RouteSection]) -> Self {
        let own = [
            (&endpoints.login, Endpoint::Login),
            (&endpoints.logout, Endpoint::Logout),
            (&endpoints.session, Endpoint::Session),
        ];
        let text = |path: &crate::config::RoutePath| path.as_str().to_owned();
        let mut prefixes: Vec<_> = routes
            .iter()
            .enumerate()
            .map(|(index, route)| (route.path.as_str().trim_end_matches('/').to_owned(), index))
            .collect();
        prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Self {
            endpoints: own
                .into_iter()
                .flat_map(|(paths, endpoint)| paths.iter().map(move |path| (text(path), endpoint)))
                .collect(),
            hosts: endpoints.hosts.clone(),
            health: endpoints.health.iter().map(text).collect(),
            prefixes,
            all: routes
                .iter()
                .map(|route| Route {
                    name: route.name.clone(),
                    upstream: route.upstream,
                    access: route.access,
                    websocket: route.websocket,
                    max_body: route.max_body,
                    methods: route.methods.clone(),
                    allow: route.methods.join(", "),
                    apps: route.apps.clone(),
                })
                .collect(),
        }
    }

    pub fn get(&self, index: usize) -> Option<&Route> {
        self.all.get(index)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.all.iter()
    }

    /// Judges the path of a request as it came, without its query.
    ///
    /// # Errors
    /// When the path is malformed, or its readings meet different endpoints.
    pub fn resolve(&self, path: &str, host: Option<&str>) -> Result<Endpoint, PathError> {
        let serves_own = self.hosts.is_empty() || host.is_some_and(|host| self.is_own_host(host));
        if path::is_plain(path) {
            return Ok(self.find(path.as_bytes(), serves_own));
        }
        let mut met = None;
        for reading in path::readings(path)? {
            let endpoint = self.find(&reading, serves_own);
            if *met.get_or_insert(endpoint) != endpoint {
                return Err(PathError::Ambiguous);
            }
        }
        met.ok_or(PathError::Malformed)
    }

    /// Whether a health path is asked for, by the very bytes of the target's path. Load
    /// balancers may ask without a Host, so this is answered before heads are judged.
    pub fn is_health(&self, path: &[u8]) -> bool {
        self.health.iter().any(|health| health.as_bytes() == path)
    }

    fn find(&self, path: &[u8], serves_own: bool) -> Endpoint {
        if self.is_health(path) {
            return Endpoint::Health;
        }
        if serves_own
            && let Some((_, endpoint)) =
                self.endpoints.iter().find(|(own, _)| own.as_bytes() == path)
        {
            return *endpoint;
        }
        let matches = |prefix: &str| {
            path.strip_prefix(prefix.as_bytes())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        self.prefixes
            .iter()
            .find(|(prefix, _)| matches(prefix))
            .map_or(Endpoint::None, |(_, index)| Endpoint::Route(*index))
    }

    fn is_own_host(&self, host: &str) -> bool {
        let host = without_port(host);
        self.hosts.iter().any(|own| own.eq_ignore_ascii_case(&host))
    }
}

/// The host of a Host header, without port and final dot.
fn without_port(host: &str) -> Cow<'_, str> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    Cow::Borrowed(name.strip_suffix('.').unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Secrets};

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
            assert_eq!(routes.resolve(path, None), Ok(Endpoint::Route(index)), "{path}");
        }
        // Nobody decodes three times.
        let thrice = "/public/%25252e%25252e/x";
        assert_eq!(routes.resolve(thrice, None), Ok(Endpoint::Route(1)));
        assert_eq!(routes.resolve("/login", None), Ok(Endpoint::Login));
        assert_eq!(routes.resolve("/login/", None), Ok(Endpoint::Route(0)));
        assert_eq!(routes.resolve("/healthz", None), Ok(Endpoint::Health));
    }

    #[test]
    fn readings_that_meet_different_routes_are_refused() {
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
            // Servers that keep escaped slashes and read the rest.
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
            assert_eq!(routes.resolve(path, None), Err(PathError::Ambiguous), "{path}");
        }
    }

    #[test]
    fn readings_that_meet_one_route_are_forwarded() {
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
            assert_eq!(routes.resolve(path, None), Ok(Endpoint::Route(index)), "{path}");
        }
    }

    #[test]
    fn malformed_paths_are_refused_wherever_they_lead() {
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
            assert_eq!(routes.resolve(path, None), Err(PathError::Malformed), "{path:?}");
        }
    }

    #[test]
    fn a_route_takes_the_methods_and_apps_that_it_lists() {
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
        let (known, other) = (AppId::parse("wx1").unwrap(), AppId::parse("wx2").unwrap());
        assert!(wide.allows_method("DELETE") && wide.accepts_app(&other));
        assert!(narrow.allows_method("GET") && narrow.allows_method("POST"));
        assert!(!narrow.allows_method("DELETE") && !narrow.allows_method("get"));
        assert!(narrow.accepts_app(&known) && !narrow.accepts_app(&other));
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
            assert_eq!(routes.resolve("/login", Some(own)), Ok(Endpoint::Login), "{own}");
        }
        for other in [Some("other.example"), Some("mini.example:x"), Some("mini"), None] {
            assert_eq!(routes.resolve("/login", other), Ok(Endpoint::Route(0)), "{other:?}");
        }
    }
}
