//! The names of headers that are the gateway's to write or to remove, but for those that the
//! configuration names.
//!
//! `access` strips and writes by these lists, and the configuration may not name one of
//! them for anything else.

/// What WeChat Cloud Run injects and services that come from there trust.
pub const CLOUD_RUN: [&str; 8] = [
    "x-wx-openid",
    "x-wx-appid",
    "x-wx-unionid",
    "x-wx-from-openid",
    "x-wx-from-appid",
    "x-wx-from-unionid",
    "x-wx-source",
    "x-wx-env",
];

/// Written by the gateway on every request.
pub const WRITTEN: [&str; 5] =
    ["x-request-id", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip"];

/// What a proxy that asks for a decision says of the request.
pub const TOLD: [&str; 5] = [
    "x-forwarded-method",
    "x-forwarded-uri",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-for",
];

/// Never written by the gateway; they pass from a trusted proxy, spelled just so. Some servers
/// take another path than the request's from them, or (`Proxy`) another way out.
pub const FROM_TRUSTED: [&str; 10] = [
    "forwarded",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-uri",
    "x-forwarded-path",
    "x-original-url",
    "x-rewrite-url",
    "script-name",
    "path-info",
    "proxy",
];

/// What an upstream may say of its connection without nominating it.
pub const OF_CONNECTION: [&str; 2] = ["keep-alive", "proxy-connection"];

/// Belongs to an upgrade to HTTP/2, which the gateway ignores: removed from requests.
pub const HTTP2_SETTINGS: &str = "http2-settings";

/// Marks an error answer as the gateway's own.
pub const ERROR: &str = "x-wxgate-error";

/// Headers that concern one connection, besides those that `Connection` names: never forwarded.
pub const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// By which some services take another method than the request's.
pub const METHOD_OVERRIDES: [&str; 3] =
    ["x-http-method-override", "x-http-method", "x-method-override"];

/// Headers that differ from response to response, so that none can be set for all.
pub const OF_ONE_RESPONSE: [&str; 24] = [
    "accept-ranges",
    "age",
    "allow",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-location",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expires",
    "last-modified",
    "location",
    "pragma",
    "proxy-authenticate",
    "retry-after",
    "sec-websocket-accept",
    "sec-websocket-extensions",
    "sec-websocket-protocol",
    "sec-websocket-version",
    "set-cookie",
    "vary",
    "www-authenticate",
];

/// How a message is framed, and what concerns its connection alone.
pub const OF_FRAMING: [&str; 8] = [
    "connection",
    "content-length",
    "expect",
    HTTP2_SETTINGS,
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
