//! The proxies that ask.
