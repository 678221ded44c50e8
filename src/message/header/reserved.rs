//! The names of reserved headers, except those that are configured.
//!
//! `access` removes and writes headers by these lists, and the configuration may not use their
//! names for anything else.

/// Injected by WeChat Cloud Run, and trusted by services that were written for it.
pub const CLOUD_RUN: [&str; 11] = [
    "x-wx-openid",
    "x-wx-appid",
    "x-wx-unionid",
    "x-wx-from-openid",
    "x-wx-from-appid",
    "x-wx-from-unionid",
    "x-wx-source",
    "x-wx-env",
    "x-wx-cloudbase-access-token",
    "x-wx-from-cloudbase-access-token",
    "x-original-forwarded-for",
];

/// Written with `identity.preset = "wxcloudrun"`: the openid, the app id, the unionid, and where
/// the request comes from.
pub const PRESET: [&str; 4] = ["x-wx-openid", "x-wx-appid", "x-wx-unionid", "x-wx-source"];

/// The default header of the signed identity. It is removed from requests even if there is none.
pub const JWT: &str = "x-wxgate-jwt";

/// Written by the gateway into every request.
pub const WRITTEN: [&str; 5] =
    ["x-request-id", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip"];

/// Headers in which a forward-auth proxy describes the original request.
pub const ORIGINAL_REQUEST: [&str; 5] = [
    "x-forwarded-method",
    "x-forwarded-uri",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-for",
];

/// Never written by the gateway. Trusted proxies may send them, in exactly this spelling. Some
/// servers take the path from one of these headers instead of the request line, and some take the
/// proxy for their own requests from `Proxy` (httpoxy).
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

/// Hop-by-hop headers that some services send without nominating them in `Connection`.
pub const OF_CONNECTION: [&str; 2] = ["keep-alive", "proxy-connection"];

/// Belongs to an upgrade to HTTP/2, which the gateway ignores: removed from requests.
pub const HTTP2_SETTINGS: &str = "http2-settings";

/// Marks an error response as the gateway's own.
pub const ERROR: &str = "x-wxgate-error";

/// Hop-by-hop headers, besides those that `Connection` nominates: never forwarded.
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

/// Headers from which some services take the method, instead of from the request line.
pub const METHOD_OVERRIDES: [&str; 3] =
    ["x-http-method-override", "x-http-method", "x-method-override"];

/// Headers that differ between responses, so that one value cannot be set for all.
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

/// Headers that frame a message, and hop-by-hop headers. The configuration cannot set them.
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
