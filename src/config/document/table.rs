//! Reads a TOML document key by key, and continues after a problem.
//!
//! serde stops at the first error, but operators want all errors at once. So each section reads its
//! keys from a [`Table`], with defaults. A missing key gives the default; a value of the wrong type
//! gives the default and a problem; a key that no section reads is an unknown key. The keys that
//! are read are also the list of all keys. A document can include others, which may only add to its
//! arrays of tables.

mod bounds;
mod report;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub use self::report::{LineBreaks, Place, Report};
use super::from_value::FromValue;
use super::not_toml::lookalike_in_value;
use super::redact_line::Redaction;

/// A value with its place.
#[derive(Clone, Debug)]
pub struct Located<T> {
    pub value: T,
    pub key: String,
    /// Index of the document.
    pub source: usize,
    pub span: Range<usize>,
}

/// One table of the document; a missing table reads as empty.
pub struct Table<'a> {
    report: &'a RefCell<Report>,
    keys: Option<&'a DeTable<'a>>,
    /// The path as shown, with indexes.
    path: String,
    /// The path as documented, without indexes.
    pattern: String,
    pub source: usize,
    pub span: Range<usize>,
    /// For a root: the roots of the included documents.
    included: Vec<Table<'a>>,
    /// The value is not a table, and that was reported. No other problem is reported for it.
    is_reported: bool,
    read_keys: RefCell<Vec<&'static str>>,
}

impl<'a> Table<'a> {
    /// The root of the first document, which includes the others.
    pub fn root(documents: &'a [Spanned<DeTable<'a>>], report: &'a RefCell<Report>) -> Self {
        let mut roots = documents
            .iter()
            .enumerate()
            .map(|(source, document)| Self::whole(source, Some(document.get_ref()), report));
        let first = roots.next().unwrap_or_else(|| Self::whole(0, None, report));
        Self { included: roots.collect(), ..first }
    }

    fn whole(source: usize, table: Option<&'a DeTable<'a>>, report: &'a RefCell<Report>) -> Self {
        Self {
            report,
            keys: table,
            path: String::new(),
            pattern: String::new(),
            source,
            span: 0..0,
            included: Vec::new(),
            is_reported: false,
            read_keys: RefCell::default(),
        }
    }

    /// A table in this table.
    pub fn table(&self, name: &'static str) -> Table<'a> {
        let found = self.find(name);
        let table = found.as_ref().and_then(|(_, value)| match value.get_ref() {
            DeValue::Table(table) => Some(table),
            _ => {
                let path = format!("{}{name}", prefix(&self.pattern)).replace("[]", "");
                self.wrong_type(name, value, "a table", format!("write [{path}]"));
                None
            }
        });
        self.child(name, format!("{}{name}", prefix(&self.path)), name, table, found)
    }

    /// An optional table in this table.
    pub fn optional_table(&self, name: &'static str) -> Option<Table<'a>> {
        let table = self.table(name);
        (table.keys.is_some() || self.report.borrow().is_listing).then_some(table)
    }

    /// An array of tables, together with those of included documents.
    pub fn tables(&self, name: &'static str) -> Vec<Table<'a>> {
        let mut tables = self.own_tables(name);
        tables.extend(self.included.iter().flat_map(|included| included.own_tables(name)));
        tables
    }

    fn own_tables(&self, name: &'static str) -> Vec<Table<'a>> {
        self.read_keys.borrow_mut().push(name);
        let found = self.find(name);
        let path = format!("{}{name}", prefix(&self.path));
        let pattern = format!("{name}[]");
        let Some((key, value)) = &found else {
            if self.report.borrow().is_listing && self.source == 0 {
                return vec![self.child(name, path, &pattern, None, None)];
            }
            return Vec::new();
        };
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong_type(name, value, "an array of tables", format!("write [[{name}]]"));
            return Vec::new();
        };
        if array.is_empty() {
            self.push(path.clone(), value.span(), "is empty", format!("write [[{name}]]"));
        }
        let mut tables = Vec::new();
        for (index, element) in array.iter().enumerate() {
            match element.get_ref() {
                DeValue::Table(table) => tables.push(self.child(
                    name,
                    format!("{path}[{index}]"),
                    &pattern,
                    Some(table),
                    Some((key.clone(), element)),
                )),
                _ => self.wrong_type(name, element, "a table", format!("write [[{name}]]")),
            }
        }
        tables
    }

    fn child(
        &self,
        name: &'static str,
        path: String,
        pattern: &str,
        table: Option<&'a DeTable<'a>>,
        found: Option<(Range<usize>, &Spanned<DeValue<'a>>)>,
    ) -> Table<'a> {
        self.read_keys.borrow_mut().push(name);
        let is_reported = found.is_some() && table.is_none();
        let span = match found {
            // The span of `[section]` and `[[section]]` is that of the header line.
            Some((key, value)) if value.span().is_empty() => key,
            Some((_, value)) => value.span(),
            None => self.span.clone(),
        };
        Table {
            report: self.report,
            keys: table,
            path,
            pattern: format!("{}{pattern}", prefix(&self.pattern)),
            source: self.source,
            span,
            included: Vec::new(),
            is_reported,
            read_keys: RefCell::default(),
        }
    }

    /// The value of a key. `None`: it is missing, or a problem was reported.
    pub fn get<T: FromValue>(&self, name: &'static str) -> Option<Located<T>> {
        self.mark_read(name);
        let (_, value) = self.find(name)?;
        match T::from_value(value.get_ref()) {
            Ok(parsed) => Some(self.located(name, parsed, value.span())),
            Err(message) => {
                self.push(self.key(name), value.span(), message, help_for(value.get_ref()));
                None
            }
        }
    }

    fn located<T>(&self, name: &str, value: T, span: Range<usize>) -> Located<T> {
        Located { value, key: self.key(name), source: self.source, span }
    }

    /// The value of a key that has a default.
    pub fn get_or<T: FromValue>(&self, name: &'static str, default: T) -> T {
        self.get(name).map_or(default, |located| located.value)
    }

    /// The value of a required key.
    pub fn require<T: FromValue>(&self, name: &'static str) -> Option<Located<T>> {
        self.report_missing(name, "");
        self.get(name)
    }

    /// One value or a list of values. `None` if the key is missing; problems are reported.
    pub fn list<T: FromValue>(&self, name: &'static str) -> Option<Vec<Located<T>>> {
        self.mark_read(name);
        let (_, value) = self.find(name)?;
        let values: Vec<_> = match value.get_ref() {
            DeValue::Array(array) => array.iter().collect(),
            _ => vec![value],
        };
        let mut located = Vec::with_capacity(values.len());
        for value in values {
            match T::from_value(value.get_ref()) {
                Ok(parsed) => located.push(self.located(name, parsed, value.span())),
                Err(message) => {
                    self.push(self.key(name), value.span(), message, help_for(value.get_ref()));
                }
            }
        }
        Some(located)
    }

    /// An optional list, which must not be empty if it is present.
    pub fn some<T: FromValue>(&self, name: &'static str, help: &str) -> Option<Vec<Located<T>>> {
        let array = self.raw(name).and_then(|raw| raw.get_ref().as_array());
        if array.is_some_and(|array| array.is_empty()) {
            let span = self.raw(name).map_or(self.span.clone(), Spanned::span);
            self.push(self.key(name), span, "is empty", help);
        }
        self.list(name)
    }

    /// A required list, which must not be empty.
    pub fn require_some<T: FromValue>(&self, name: &'static str, help: &str) -> Vec<Located<T>> {
        self.report_missing(name, help);
        self.some(name, help).unwrap_or_default()
    }

    /// The entries of a table with keys of the operator's choice. Entries with problems are
    /// reported and left out.
    pub fn entries<K: FromValue, V: FromValue>(
        &self,
        name: &'static str,
    ) -> Vec<(Located<K>, Located<V>)> {
        self.mark_read(name);
        let Some((_, value)) = self.find(name) else { return Vec::new() };
        let DeValue::Table(table) = value.get_ref() else {
            self.wrong_type(name, value, "a table", format!("write {name} = {{ KEY = ... }}"));
            return Vec::new();
        };
        let mut entries = Vec::with_capacity(table.len());
        for (key, value) in table {
            let shown = format!("{}.{}", self.key(name), key.get_ref());
            let located_key = K::from_value(&DeValue::String(key.get_ref().clone()));
            match (located_key, V::from_value(value.get_ref())) {
                (Ok(key_value), Ok(parsed)) => entries.push((
                    Located {
                        value: key_value,
                        key: shown.clone(),
                        source: self.source,
                        span: key.span(),
                    },
                    Located { value: parsed, key: shown, source: self.source, span: value.span() },
                )),
                (Err(message), _) => self.push(shown, key.span(), message, ""),
                (_, Err(message)) => {
                    self.push(shown, value.span(), message, help_for(value.get_ref()));
                }
            }
        }
        entries
    }

    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some() || self.included.iter().any(|included| included.has(name))
    }

    /// Whether all keys are listed, and nothing is read.
    pub fn is_listing(&self) -> bool {
        self.report.borrow().is_listing
    }

    /// The raw value of a key, to check its type.
    pub fn raw(&self, name: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.find(name).map(|(_, value)| value)
    }

    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", prefix(&self.path))
    }

    /// Reports the keys that were not read.
    pub fn finish(self) {
        let read_keys = self.read_keys.borrow();
        for (key, _) in self.keys.into_iter().flatten() {
            let name: &str = key.get_ref();
            if read_keys.contains(&name) {
                continue;
            }
            let help = suggestion(&read_keys, name);
            // It may be a secret under a misspelled name.
            let place = (self.key(name), key.span());
            self.report(self.source, place.0, place.1, "unknown key", help, Redaction::Always);
        }
        drop(read_keys);
        self.included.into_iter().for_each(Table::finish_included);
    }

    fn finish_included(self) {
        let read_keys = self.read_keys.borrow();
        for (key, _) in self.keys.into_iter().flatten() {
            let name: &str = key.get_ref();
            if !read_keys.contains(&name) {
                let message = "is not allowed in an included file";
                let names: BTreeSet<_> = read_keys.iter().collect();
                let tables: Vec<_> = names.iter().map(|name| format!("[[{name}]]")).collect();
                let help = format!("only {} are allowed", tables.join(", "));
                self.report(
                    self.source,
                    self.key(name),
                    key.span(),
                    message,
                    help,
                    Redaction::Always,
                );
            }
        }
    }

    fn find(&self, name: &str) -> Option<(Range<usize>, &'a Spanned<DeValue<'a>>)> {
        self.keys?
            .iter()
            .find(|(key, _)| key.get_ref() == name)
            .map(|(key, value)| (key.span(), value))
    }

    fn mark_read(&self, name: &'static str) {
        self.read_keys.borrow_mut().push(name);
        self.report.borrow_mut().keys.insert(format!("{}{name}", prefix(&self.pattern)));
    }
}

/// Known keys that may have been intended.
fn suggestion(known: &[&str], name: &str) -> String {
    let mut meant: Vec<&str> =
        known.iter().copied().filter(|known| known.split('_').any(|word| word == name)).collect();
    meant.sort_unstable();
    meant.dedup();
    if meant.is_empty() {
        let distance = |known: &&str| strsim::damerau_levenshtein(known, name);
        let nearest = known.iter().copied().min_by_key(|known| (distance(known), *known));
        meant.extend(nearest.filter(|known| distance(known) <= 2 + name.len() / 6));
    }
    let quoted: Vec<_> = meant.iter().map(|known| format!("\"{known}\"")).collect();
    match &quoted[..] {
        [] => String::new(),
        [one] => format!("did you mean {one}?"),
        [first @ .., last] => format!("did you mean {} or {last}?", first.join(", ")),
    }
}

/// Help for a value that looks right, but has different characters.
fn help_for(value: &DeValue<'_>) -> String {
    value.as_str().and_then(lookalike_in_value).unwrap_or_default()
}

/// The values of a list, without their places.
pub fn values<T>(listed: Vec<Located<T>>) -> Vec<T> {
    listed.into_iter().map(|located| located.value).collect()
}

fn prefix(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("{path}.") }
}
