//! What operators see of the gateway.
//!
//! `metrics` are counters, one method for each event. `access_log` is one line a request, and
//! `process_log` everything else; both are written through `log_writer`, which never makes a
//! request wait, and the first may be a `log_file`, which can be reopened. `log_throttle` limits
//! how often the same is logged.

pub(crate) mod access_log;
pub(crate) mod log_file;
pub(crate) mod log_throttle;
mod log_writer;
pub mod metrics;
pub mod process_log;
