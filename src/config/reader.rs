//! Reading a TOML document key by key without giving up at the first problem.
//!
//! serde stops at the first error, and operators want all of them, so `check.rs` asks a
//! [`Section`] for each key it knows, with a default. A key that is absent gives the
//! default; one of the wrong type gives the default and a problem; a key that nobody asked
//! for is an unknown key. What was asked for is also the list of keys that exist.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Diagnostic;
use super::value::{FromValue, Size};

/// What reading has found so far.
#[derive(Default)]
pub struct Report {
    pub diagnostics: Vec<Diagnostic>,
    /// Keys asked for, as documented.
    pub known: BTreeSet<String>,
    /// Reading is only for `known`: sections that may be absent are walked through too.
    pub is_listing: bool,
}

/// A value with its place.
#[derive(Clone, Debug)]
pub struct Located<T> {
    pub value: T,
    pub key: String,
    pub span: Range<usize>,
}

/// One table of the document; an absent one reads as empty.
pub struct Section<'a> {
    report: &'a RefCell<Report>,
    table: Option<&'a DeTable<'a>>,
    /// As shown, with indexes.
    path: String,
    /// As documented, without.
    pattern: String,
    pub span: Range<usize>,
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    pub fn root(table: &'a Spanned<DeTable<'a>>, report: &'a RefCell<Report>) -> Self {
        Self {
            report,
            table: Some(table.get_ref()),
            path: String::new(),
            pattern: String::new(),
            span: 0..0,
            asked: RefCell::default(),
        }
    }

    /// A table of this one.
    pub fn section(&self, name: &'static str) -> Section<'a> {
        let found = self.find(name);
        let table = found.as_ref().and_then(|(_, value)| match value.get_ref() {
            DeValue::Table(table) => Some(table),
            _ => {
                self.wrong_type(name, value, "a table");
                None
            }
        });
        self.child(name, format!("{}{name}", prefix(&self.path)), name, table, found)
    }

    /// A table of this one that may be absent.
    pub fn optional_section(&self, name: &'static str) -> Option<Section<'a>> {
        let section = self.section(name);
        (section.table.is_some() || self.report.borrow().is_listing).then_some(section)
    }

    /// An array of tables.
    pub fn tables(&self, name: &'static str) -> Vec<Section<'a>> {
        let found = self.find(name);
        let path = format!("{}{name}", prefix(&self.path));
        let pattern = format!("{name}[]");
        let Some((key, value)) = &found else {
            if self.report.borrow().is_listing {
                return vec![self.child(name, path, &pattern, None, None)];
            }
            return Vec::new();
        };
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong_type(name, value, &format!("an array of tables: write [[{name}]]"));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, element) in array.iter().enumerate() {
            match element.get_ref() {
                DeValue::Table(table) => sections.push(self.child(
                    name,
                    format!("{path}[{index}]"),
                    &pattern,
                    Some(table),
                    Some((key.clone(), element)),
                )),
                _ => self.wrong_type(name, element, "a table"),
            }
        }
        sections
    }

    fn child(
        &self,
        name: &'static str,
        path: String,
        pattern: &str,
        table: Option<&'a DeTable<'a>>,
        found: Option<(Range<usize>, &Spanned<DeValue<'a>>)>,
    ) -> Section<'a> {
        self.asked.borrow_mut().push(name);
        let span = match found {
            // `[section]` and `[[section]]` have an own span that covers the header.
            Some((key, value)) if value.span().is_empty() => key,
            Some((_, value)) => value.span(),
            None => self.span.clone(),
        };
        Section {
            report: self.report,
            table,
            path,
            pattern: format!("{}{pattern}", prefix(&self.pattern)),
            span,
            asked: RefCell::default(),
        }
    }

    /// The value of a key, or `None` when it is absent or was reported.
    pub fn get<T: FromValue>(&self, name: &'static str) -> Option<Located<T>> {
        self.ask(name);
        let (_, value) = self.find(name)?;
        match T::from_value(value.get_ref()) {
            Ok(parsed) => Some(Located { value: parsed, key: self.key(name), span: value.span() }),
            Err(message) => {
                self.push(self.key(name), value.span(), message, "");
                None
            }
        }
    }

    /// The value of a key that has a default.
    pub fn get_or<T: FromValue>(&self, name: &'static str, default: T) -> T {
        self.get(name).map_or(default, |located| located.value)
    }

    /// The value of a key that must be there.
    pub fn require<T: FromValue>(&self, name: &'static str) -> Option<Located<T>> {
        if !self.has(name) {
            self.ask(name);
            self.push(self.key(name), self.span.clone(), "is missing".to_owned(), "");
            return None;
        }
        self.get(name)
    }

    /// One value or a list of them. `None` when absent; what is wrong is reported.
    pub fn list<T: FromValue>(&self, name: &'static str) -> Option<Vec<Located<T>>> {
        self.ask(name);
        let (_, value) = self.find(name)?;
        let values: Vec<_> = match value.get_ref() {
            DeValue::Array(array) => array.iter().collect(),
            _ => vec![value],
        };
        let mut located = Vec::with_capacity(values.len());
        for value in values {
            match T::from_value(value.get_ref()) {
                Ok(parsed) => {
                    located.push(Located {
                        value: parsed,
                        key: self.key(name),
                        span: value.span(),
                    });
                }
                Err(message) => self.push(self.key(name), value.span(), message, ""),
            }
        }
        Some(located)
    }

    /// Any value that serde can read, for small closed shapes such as `{ env = "..." }`.
    pub fn deserialize<T: Deserialize<'a>>(&self, name: &'static str) -> Option<Located<T>> {
        self.ask(name);
        let (_, value) = self.find(name)?;
        match T::deserialize(value.clone().into_deserializer()) {
            Ok(parsed) => Some(Located { value: parsed, key: self.key(name), span: value.span() }),
            Err(error) => {
                let message: toml::de::Error = error;
                self.push(self.key(name), value.span(), message.message().to_owned(), "");
                None
            }
        }
    }

    /// A duration that is longer than nothing.
    pub fn positive(&self, name: &'static str, default: Duration) -> Duration {
        let Some(given) = self.get::<Duration>(name) else { return default };
        if given.value.is_zero() {
            self.problem(&given, "must be longer than 0", "");
            return default;
        }
        given.value
    }

    /// A size within a range.
    pub fn size(&self, name: &'static str, default: usize, range: RangeInclusive<usize>) -> usize {
        let Some(given) = self.get::<Size>(name) else { return default };
        if let Some(size) = usize::try_from(given.value.0).ok().filter(|size| range.contains(size))
        {
            return size;
        }
        let show = |size: usize| bytesize::ByteSize(size as u64).display().iec().to_string();
        let message = format!("must be from {} to {}", show(*range.start()), show(*range.end()));
        self.problem(&given, message, "");
        default
    }

    /// A list that is not empty where it is given.
    pub fn some<T: FromValue>(&self, name: &'static str, help: &str) -> Option<Vec<Located<T>>> {
        let array = self.raw(name).and_then(|raw| raw.get_ref().as_array());
        if array.is_some_and(|array| array.is_empty()) {
            let span = self.raw(name).map_or(self.span.clone(), Spanned::span);
            self.push(self.key(name), span, "is empty", help);
        }
        self.list(name)
    }

    /// A list that must be there and not be empty.
    pub fn require_some<T: FromValue>(&self, name: &'static str, help: &str) -> Vec<Located<T>> {
        if !self.has(name) {
            self.push(self.key(name), self.span.clone(), "is missing", help);
        }
        self.some(name, help).unwrap_or_default()
    }

    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The raw value of a key, for questions about its type.
    pub fn raw(&self, name: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.find(name).map(|(_, value)| value)
    }

    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", prefix(&self.path))
    }

    /// Reports a problem of a value.
    pub fn problem<T>(&self, at: &Located<T>, message: impl Into<String>, help: impl Into<String>) {
        self.push(at.key.clone(), at.span.clone(), message, help);
    }

    /// Reports a problem of a place.
    pub fn push(
        &self,
        key: String,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.report.borrow_mut().diagnostics.push(Diagnostic {
            span: Some(span),
            key,
            message: message.into(),
            help: help.into(),
        });
    }

    /// Reports the keys that nobody asked for.
    pub fn finish(self) {
        let asked = self.asked.borrow();
        for (key, _) in self.table.into_iter().flatten() {
            let name: &str = key.get_ref();
            if asked.contains(&name) {
                continue;
            }
            let nearest = asked
                .iter()
                .map(|known| (strsim::damerau_levenshtein(known, name), known))
                .min()
                .filter(|(distance, _)| *distance <= 2 + name.len() / 6);
            let help = match nearest {
                Some((_, known)) => format!("did you mean \"{known}\"?"),
                None => String::new(),
            };
            self.push(self.key(name), key.span(), "unknown key", help);
        }
    }

    fn find(&self, name: &str) -> Option<(Range<usize>, &'a Spanned<DeValue<'a>>)> {
        self.table?
            .iter()
            .find(|(key, _)| key.get_ref() == name)
            .map(|(key, value)| (key.span(), value))
    }

    fn ask(&self, name: &'static str) {
        self.asked.borrow_mut().push(name);
        self.report.borrow_mut().known.insert(format!("{}{name}", prefix(&self.pattern)));
    }

    fn wrong_type(&self, name: &str, value: &Spanned<DeValue<'_>>, expected: &str) {
        let message = format!("expected {expected}, found {}", value.get_ref().type_str());
        self.push(self.key(name), value.span(), message, "");
    }
}

/// The values of a list, without their places.
pub fn values<T>(listed: Vec<Located<T>>) -> Vec<T> {
    listed.into_iter().map(|located| located.value).collect()
}

fn prefix(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("{path}.") }
}
