//! What operators see of the gateway: metrics and logs.
//!
//! `metrics` has the counters, with one method for each event. `access_log` writes one line for
//! each request, and `process_log` everything else. Both write through `log_writer`, which never
//! makes a request wait. The access log may go to a `log_file`, which can be reopened.
//! `log_throttle` limits how often the same message is logged.

pub(crate) mod access_log;
pub(crate) mod log_file;
pub(crate) mod log_throttle;
mod log_writer;
pub mod metrics;
pub mod process_log;
