//! What state looks like on its way out of a process, and who else has it meanwhile.
//!
//! [`fields`] is the encoding of everything that is written for a later start or given to another
//! process. [`peer`] is the other process during an upgrade. [`claims`] decides which of the two
//! sends a one-time code to WeChat, and [`codes`] is how codes are given. What the state is, and
//! when it is written or given, is decided where the state is kept.

pub mod claims;
pub mod codes;
pub mod fields;
pub mod peer;
