//! The differences between two configurations, by name and without values.

use std::collections::BTreeMap;

use super::{Config, Route, Target};

/// Maximum number of names that one log line lists.
const MOST: usize = 20;

/// Names of what differs: sections, such as `[limits]`, and routes, upstreams and apps. Changes to
/// the certificates in `server.tls.client_ca_file` are not detected.
#[derive(Debug, Default)]
pub struct Changes {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed: Vec<String>,
}

impl Changes {
    pub fn between(before: &Config, after: &Config) -> Self {
        // Every field is named, so that a new section cannot be forgotten.
        let Config {
            server,
            admin,
            forward_auth,
            wechat,
            apps,
            session,
            login,
            endpoints,
            identity,
            limits,
            log,
            upstreams,
            routes,
            errors,
            internal,
            open_data,
            browsers,
            ticket,
            scan,
            warnings: _,
        } = before;
        let mut changes = Self::default();
        for (name, is_same) in [
            ("[server]", *server == after.server),
            ("[admin]", *admin == after.admin),
            ("[forward_auth]", *forward_auth == after.forward_auth),
            ("[wechat]", *wechat == after.wechat),
            ("[session]", *session == after.session),
            ("[login]", *login == after.login),
            ("[endpoints]", *endpoints == after.endpoints),
            ("[identity]", *identity == after.identity),
            ("[limits]", *limits == after.limits),
            ("[log]", *log == after.log),
            ("[errors]", *errors == after.errors),
            ("[internal]", *internal == after.internal),
            ("[open_data]", *open_data == after.open_data),
            ("[ticket]", *ticket == after.ticket),
            ("[scan]", *scan == after.scan),
        ] {
            if !is_same {
                changes.changed.push(name.to_owned());
            }
        }
        let app = |app: &super::App| app.app_id.as_str().to_owned();
        changes.compare("app", apps, &after.apps, app, PartialEq::eq);
        let browser = |browser: &super::Browser| browser.base_url.to_string();
        changes.compare("browser", browsers, &after.browsers, browser, PartialEq::eq);
        let upstream = |upstream: &super::Upstream| upstream.name.clone();
        changes.compare("upstream", upstreams, &after.upstreams, upstream, PartialEq::eq);
        let route = |route: &Route| route.name.clone();
        changes.compare("route", routes, &after.routes, route, |a, b| {
            // Moving a route within its file is not a change.
            let rest = |route: &Route| Route {
                target: Target::ForwardAuthOnly,
                place: b.place.clone(),
                ..route.clone()
            };
            is_same_target(before, &a.target, after, &b.target) && rest(a) == rest(b)
        });
        changes
    }

    /// Items may have the same name: then all must be equal, in the same order.
    fn compare<T>(
        &mut self,
        kind: &str,
        before: &[T],
        after: &[T],
        name: impl Fn(&T) -> String,
        is_same: impl Fn(&T, &T) -> bool,
    ) {
        // One pass over each list, because a file may have thousands of routes.
        let mut names: BTreeMap<String, (Vec<&T>, Vec<&T>)> = BTreeMap::new();
        for item in before {
            names.entry(name(item)).or_default().0.push(item);
        }
        for item in after {
            names.entry(name(item)).or_default().1.push(item);
        }
        for (one, (old, new)) in names {
            let list = match (old.is_empty(), new.is_empty()) {
                (true, _) => &mut self.added,
                (_, true) => &mut self.removed,
                _ => {
                    let mut pairs = old.iter().zip(&new);
                    if old.len() == new.len() && pairs.all(|(old, new)| is_same(old, new)) {
                        continue;
                    }
                    &mut self.changed
                }
            };
            list.push(format!("{kind} {one}"));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// The first names and the number of the others, as one text; `None` if there are none.
pub fn listed(names: &[String]) -> Option<String> {
    let shown = names.get(..MOST).unwrap_or(names).join(", ");
    match names.len() {
        0 => None,
        count if count > MOST => Some(format!("{shown} and {} more", count - MOST)),
        _ => Some(shown),
    }
}

/// Two upstreams are the same if their names are.
fn is_same_target(before: &Config, a: &Target, after: &Config, b: &Target) -> bool {
    let named = |config: &Config, index: usize| {
        config.upstreams.get(index).map(|upstream| upstream.name.clone())
    };
    match (a, b) {
        (
            Target::Service { upstream: a, split: a_split },
            Target::Service { upstream: b, split: b_split },
        ) => {
            let parts = |config: &Config, split: &[super::Share]| -> Vec<_> {
                split.iter().map(|share| (named(config, share.upstream), share.users)).collect()
            };
            named(before, *a) == named(after, *b) && parts(before, a_split) == parts(after, b_split)
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secrets;

    fn parse(more: &str) -> Config {
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n{more}\n[[app]]\napp_id = \"wx0123456789abcdef\"\n\
             app_secret = {{ env = \"UNUSED\" }}"
        );
        Config::parse("test", &text, Secrets::Ignore).unwrap()
    }

    fn upstream(name: &str) -> String {
        format!("[[upstream]]\nname = \"{name}\"\nservers = [\"127.0.0.1:1\"]\n")
    }

    fn route(path: &str, upstream: &str) -> String {
        format!("[[route]]\npath = \"{path}\"\nupstream = \"{upstream}\"\n")
    }

    fn changes(before: &str, after: &str) -> String {
        let Changes { added, removed, changed } = Changes::between(&parse(before), &parse(after));
        format!("+ {} - {} ~ {}", added.join(", "), removed.join(", "), changed.join(", "))
    }

    #[test]
    fn changes_are_listed_by_name() {
        let before = upstream("a") + &route("/", "a") + &route("/gone", "a");
        assert_eq!(changes(&before, &before), "+  -  ~ ");
        // A new line above a route is not a change of the route.
        assert_eq!(changes(&before, &format!("# a comment\n{before}")), "+  -  ~ ");
        // A different order of upstreams is not a change of the routes.
        let after = upstream("b") + &upstream("a") + &route("/", "a") + &route("/new", "b");
        assert_eq!(changes(&before, &after), "+ upstream b, route /new - route /gone ~ ");
        let after = upstream("b") + &upstream("a") + &route("/", "b") + &route("/gone", "a");
        assert_eq!(changes(&before, &after), "+ upstream b -  ~ route /");
        let after =
            before.replace("127.0.0.1:1", "127.0.0.1:2") + "[limits]\nmax_body = \"1KiB\"\n";
        let changed = "[limits], upstream a, route /, route /gone";
        assert_eq!(changes(&before, &after), format!("+  -  ~ {changed}"));
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..25).map(|number| number.to_string()).collect();
        assert!(listed(&names).unwrap().ends_with(", 19 and 5 more"));
        assert_eq!(listed(&[]), None);
    }
}
