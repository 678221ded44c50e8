//! Headers that a route removes and writes.
//!
//! The configuration has seen to it that none of them is the gateway's own. What is removed
//! goes before the gateway writes its headers, in every spelling that a CGI-like service
//! would take for it; what is written comes after that.

use http::{HeaderName, HeaderValue};

use crate::config::HeaderEdits;
use crate::message::header::{FoldedNames, HeadersMut};
use crate::message::own_response::OwnResponse;

pub struct Edits {
    set: Vec<(HeaderName, HeaderValue)>,
    /// With those that are set: what was there is replaced.
    removed: FoldedNames,
}

impl Edits {
    pub fn new(edits: &HeaderEdits) -> Self {
        let removed = edits.set.iter().map(|(name, _)| name).chain(&edits.remove);
        Self { set: edits.set.clone(), removed: FoldedNames::new(removed.map(HeaderName::as_str)) }
    }

    /// Whether lines of this name are removed, in whatever spelling.
    pub fn removes(&self, name: &[u8]) -> bool {
        self.removed.contains(name)
    }

    pub fn remove_from(&self, message: &mut impl HeadersMut) {
        if !self.removed.is_empty() {
            message.remove_if(|name, _| self.removes(name));
        }
    }

    /// Writes what is set. To be called after [`Self::remove_from`], on the same message.
    pub fn write_to(&self, message: &mut impl HeadersMut) {
        for (name, value) in &self.set {
            message.add(name, value);
        }
    }

    /// The lines that are set.
    pub fn set(&self) -> &[(HeaderName, HeaderValue)] {
        &self.set
    }

    pub fn apply_to_own_response(&self, response: &mut OwnResponse) {
        response.headers.retain(|(name, _)| !self.removes(name.as_str().as_bytes()));
        response.headers.extend(self.set.iter().cloned());
    }
}
