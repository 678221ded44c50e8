//! `[limits]`: limits per client, per connection and in total.

use std::time::Duration;

use super::RestartOnly;
use crate::config::document::from_value::Size;
use crate::config::document::table::Table;

/// The section `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsSection {
    /// Time for a whole request header, from its first byte.
    pub header_timeout: Duration,
    /// Time between two reads of a body.
    pub body_timeout: Duration,
    /// Time between two requests of a connection.
    pub idle_timeout: Duration,
    /// Bytes of a request body; a route may set another limit.
    pub max_body: u64,
    /// Bytes of a request header.
    pub max_header: usize,
    /// Header lines of a request.
    pub max_header_count: usize,
    /// Bytes of a request target.
    pub max_target: usize,
    /// How long a WebSocket may be idle in both directions.
    pub websocket_idle_timeout: Duration,
    /// The maximum lifetime of a WebSocket; it ends earlier with its session.
    pub websocket_lifetime: Duration,
    /// How long a client may accept none of the bytes sent to it.
    pub write_timeout: Duration,
    /// Bytes of body per second that a client must send, after a grace period; 0: no minimum.
    pub min_body_rate: u64,
    /// Bytes per second that a client must accept while there are bytes to be sent to it, after a
    /// grace period; 0: no minimum.
    pub min_response_rate: u64,
    /// Bytes for grown HTTP/2 windows of all connections together.
    pub max_buffered: u64,
    /// Requests of one HTTP/1 connection.
    pub max_requests_per_connection: usize,
    /// Concurrent requests of one HTTP/2 connection.
    pub max_streams: u32,
    /// Requests of one HTTP/2 connection that the client may reset early. More are allowed while
    /// they are at most half of its requests.
    pub max_early_resets: usize,
    /// Concurrent public connections.
    pub max_connections: usize,
    /// Concurrent connections of one address; `None`: no limit per address.
    pub max_connections_per_address: Option<usize>,
    /// Users or addresses that one rate limit keeps track of.
    pub max_rate_clients: u64,
}

impl From<&LimitsSection> for crate::message::request_header::HeaderLimits {
    fn from(limits: &LimitsSection) -> Self {
        Self { bytes: limits.max_header, lines: limits.max_header_count, target: limits.max_target }
    }
}

/// Keys that a reload cannot change.
pub const RESTART_ONLY: &[RestartOnly] =
    &[("limits.max_connections", |a, b| a.limits.max_connections == b.limits.max_connections)];

/// Approximate memory per client of a rate limit, in bytes.
const RATE_CLIENT_BYTES: u64 = 400;

/// Reads the section.
pub fn read(section: Table<'_>) -> LimitsSection {
    let limits = LimitsSection {
        header_timeout: section.positive("header_timeout", Duration::from_secs(10)),
        body_timeout: section.positive("body_timeout", Duration::from_secs(30)),
        idle_timeout: section.positive("idle_timeout", Duration::from_secs(60)),
        max_body: max_body(&section, 10 << 20),
        max_header: section.size("max_header", 16 << 10, 1 << 10..=1 << 20),
        max_header_count: section.number("max_header_count", 100, 1..=256),
        max_target: section.size("max_target", 8 << 10, 64..=1 << 20),
        websocket_idle_timeout: section
            .positive("websocket_idle_timeout", Duration::from_secs(300)),
        websocket_lifetime: section.positive("websocket_lifetime", Duration::from_secs(24 * 3600)),
        write_timeout: section.positive("write_timeout", Duration::from_secs(30)),
        min_body_rate: section.get_or("min_body_rate", Size(240)).0,
        min_response_rate: section.get_or("min_response_rate", Size(240)).0,
        max_buffered: section.get_or("max_buffered", Size(256 << 20)).0,
        max_requests_per_connection: section.number(
            "max_requests_per_connection",
            1000,
            1..=1 << 30,
        ),
        max_streams: u32::try_from(section.number("max_streams", 100, 1..=1 << 16)).unwrap_or(100),
        max_early_resets: section.number("max_early_resets", 200, 1..=1 << 30),
        max_connections: match section.get_or("max_connections", 0usize) {
            0 => default_connections(),
            // The maximum of a semaphore.
            connections => connections.min(1 << 24),
        },
        max_connections_per_address: match section.get_or("max_connections_per_address", 0) {
            0 => None,
            connections => Some(connections),
        },
        max_rate_clients: section.number("max_rate_clients", 100_000, 1..=1 << 30) as u64,
    };
    warn_of_memory(
        &section,
        "max_rate_clients",
        limits.max_rate_clients,
        RATE_CLIENT_BYTES,
        "each rate limit",
    );
    section.finish();
    limits
}

/// Reads the key `max_body` of a section.
pub fn max_body(section: &Table<'_>, default: u64) -> u64 {
    let given = section.get::<Size>("max_body");
    if let Some(given) = &given
        && given.value.0 == 0
    {
        // For other keys 0 means no limit; here it would reject every body.
        section.problem(given, "must be more than 0B", "");
    }
    given.map_or(default, |given| given.value.0)
}

/// Half of the file descriptors that the process may open. The other half is for connections to
/// upstreams and for everything else.
fn default_connections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    usize::try_from(limit.unwrap_or(1 << 20)).unwrap_or(1 << 20) / 2
}

/// Warns if a limit would allow more memory than most machines have.
pub fn warn_of_memory(section: &Table<'_>, name: &str, count: u64, bytes_each: u64, what: &str) {
    const MUCH: u64 = 10_000_000_000;
    let bytes = count.saturating_mul(bytes_each);
    if bytes > MUCH {
        let message = format!("{what} may use {} GB of memory", bytes / 1_000_000_000);
        section.warn_of(name, &message);
    }
}
