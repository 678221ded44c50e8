//! From the text of the files to tables, values, and problems with their positions.
//!
//! Knows TOML and how values are written, but none of the sections. `include` finds the files.
//! `table` returns tables and keys, and remembers which keys were read. `from_value` converts one
//! value into a type, and `problems` collects and shows the problems. `not_toml` recognises files
//! that are not TOML at all, and `redact_line` decides what may be shown of a line.

pub mod file;
pub mod from_value;
pub mod include;
pub mod not_toml;
pub mod problems;
pub mod redact_line;
pub mod table;
