//! From the text of the files to tables, values, and problems with their places.
//!
//! Knows TOML and how a value is written, but none of the sections. `include` finds the files,
//! `table` hands out tables and keys and remembers which were asked for, `from_value` turns one
//! value into a type, and `problems` is what is shown of all that is wrong. `not_toml` recognises
//! what was never TOML, and `redact_line` decides what of a line may be shown.

pub mod file;
pub mod from_value;
pub mod include;
pub mod not_toml;
pub mod problems;
pub mod redact_line;
pub mod table;
