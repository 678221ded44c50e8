//! Logins of web pages: by a redirect to WeChat, by a scan with the Mini Program, or by a ticket.
//!
//! `redirect` begins and completes a login, `state` keeps it in a cookie until the callback,
//! `page_request` decides which requests may get a redirect, and `pages` has the gateway's own
//! pages. `tickets` are for requests that cannot have a session header, and `scan` has the steps of
//! a scan with the Mini Program. This folder knows neither sockets nor routes: `proxy` passes it
//! the headers of a request, and sends the response.

pub mod page_request;
pub mod pages;
pub mod redirect;
pub mod scan;
mod state;
pub mod tickets;

pub use self::redirect::{Completion, Redirects};
