//! Why a request does not match a route: its conditions are tested one at a time.

use crate::config::{EndpointsSection, Route as RouteSection};
use crate::route::{Endpoint, RouteLookup, Routes};

/// Why a request does not match a route. Host, path and headers are tested one at a time, against
/// this route alone: the other two are made to match.
pub fn why_not(section: &RouteSection, wanted: &RouteLookup<'_>) -> String {
    let route_path = RouteLookup { path: section.path.as_str(), ..*wanted };
    let mut any_headers = RouteSection { rewriting: None, ..section.clone() };
    let any_host = RouteSection { hosts: Vec::new(), ..any_headers.clone() };
    any_headers.headers.clear();
    let neither = RouteSection { hosts: Vec::new(), ..any_headers.clone() };
    if !matches(&any_headers, &route_path) {
        let hosts: Vec<_> = section.hosts.iter().map(ToString::to_string).collect();
        return format!("it is for the host {}", hosts.join(", "));
    }
    if !matches(&neither, wanted) {
        let kind = if section.is_exact { "path" } else { "prefix" };
        return format!("its {kind} is {}", section.path.as_str());
    }
    if !matches(&any_host, &route_path) {
        let names: Vec<_> = section.headers.iter().map(|(name, _)| name.as_str()).collect();
        return format!("it requires other values of {}", names.join(", "));
    }
    let is_method_allowed = section.methods.is_empty()
        || section.methods.iter().any(|method| wanted.method == method.as_str());
    if is_method_allowed {
        "the matching route is more specific".to_owned()
    } else {
        format!("its methods are {}", section.methods.join(", "))
    }
}

fn matches(section: &RouteSection, wanted: &RouteLookup<'_>) -> bool {
    let none = EndpointsSection::default();
    let alone = Routes::new(&none, std::slice::from_ref(section));
    alone.resolve(wanted) == Ok(Endpoint::Route(0))
}
