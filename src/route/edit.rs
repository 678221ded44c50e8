//! Headers that a route removes and sets.
//!
//! The configuration ensures that none of them is reserved. Headers are removed before the gateway
//! writes its own, in every spelling that a CGI-like service could take for them; headers are set
//! after that.

use http::{HeaderName, HeaderValue};

use crate::config::HeaderEdits;
use crate::message::header::{FoldedNames, HeadersMut};
use crate::message::own_response::OwnResponse;

pub struct Edits {
    set: Vec<(HeaderName, HeaderValue)>,
    /// Includes the headers that are set, because they replace existing lines.
    removed: FoldedNames,
}

impl Edits {
    pub fn new(edits: &HeaderEdits) -> Self {
        let removed = edits.set.iter().map(|(name, _)| name).chain(&edits.remove);
        Self { set: edits.set.clone(), removed: FoldedNames::new(removed.map(HeaderName::as_str)) }
    }

    /// Whether lines of this name are removed, in any spelling.
    pub fn removes(&self, name: &[u8]) -> bool {
        self.removed.contains(name)
    }

    pub fn remove_from(&self, message: &mut impl HeadersMut) {
        if !self.removed.is_empty() {
            message.remove_if(|name, _| self.removes(name));
        }
    }

    /// Writes the headers that are set. Must be called after [`Self::remove_from`], on the same
    /// message.
    pub fn write_to(&self, message: &mut impl HeadersMut) {
        for (name, value) in &self.set {
            message.add(name, value);
        }
    }

    /// The headers that are set.
    pub fn set(&self) -> &[(HeaderName, HeaderValue)] {
        &self.set
    }

    pub fn apply_to_own_response(&self, response: &mut OwnResponse) {
        response.headers.retain(|(name, _)| !self.removes(name.as_str().as_bytes()));
        response.headers.extend(self.set.iter().cloned());
    }
}
