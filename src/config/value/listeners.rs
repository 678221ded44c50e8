//! Listener addresses, and whether two of them overlap.

use std::net::SocketAddr;

use crate::config::document::table::{Located, Table};

/// Reports listeners of one list whose addresses overlap.
pub fn report_overlaps(section: &Table<'_>, listed: &[Located<SocketAddr>]) {
    for (index, one) in listed.iter().enumerate() {
        for earlier in listed.iter().take(index) {
            if one.value == earlier.value && one.value.port() != 0 {
                section.problem(one, "is listed twice", "");
            } else if overlap(one.value, earlier.value) {
                let help =
                    "0.0.0.0 includes all IPv4 addresses, and [::] all IPv6 and IPv4 addresses";
                section.problem(one, format!("overlaps with {}", earlier.value), help);
            }
        }
    }
}

/// Whether two listeners need the same address. Port 0 is a different port each time.
pub fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    // The IPv6 wildcard address includes all IPv4 addresses, unless the system is configured
    // otherwise.
    let covers = |a: SocketAddr, b: SocketAddr| {
        a.ip().is_unspecified() && (a.is_ipv6() || a.is_ipv4() == b.is_ipv4())
    };
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || covers(a, b) || covers(b, a))
}
