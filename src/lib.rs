//! wxgate: WeChat Mini Program login in front of services that stay as they are.
//!
//! # The map
//!
//! A module uses only modules of lower layers; a test holds this table against the code.
//!
//! | layer | module | what it decides |
//! |---|---|---|
//!
//! # The life of a request
//!
//! `edge` reads and judges its head; `proxy` takes the current `policy`, lets `route` judge
//! the path and `auth` find the session, chooses a server from `upstream`, has `inject`
//! strip and write headers, and at the end writes down how it went.
//!
//! # The life of a login
//!
//! `proxy` reads the body and hands it to `login`, which takes the code out of it, has
//! `wechat` trade it for an identity, starts a session in `session`, and answers with the
//! token.

