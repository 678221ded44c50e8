//! Headers that a route removes and writes.
//!
//! The configuration has seen to it that none of them is the gateway's own. What is removed
//! goes before the gateway writes its headers, in every spelling that a CGI-like service
//! would take for it; what is written comes after that.

use http::{HeaderMap, HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};

use crate::answer::Answer;
use crate::config::HeaderEdits;
use crate::header::FoldedNames;

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

    pub fn remove_from(&self, request: &mut RequestHeader) {
        for name in self.among(&request.headers) {
            request.remove_header(&name);
        }
    }

    /// # Errors
    /// None that is known: names and values were read as such.
    pub fn write_to(&self, request: &mut RequestHeader) -> pingora::Result<()> {
        for (name, value) in &self.set {
            request.insert_header(name.clone(), value.clone())?;
        }
        Ok(())
    }

    /// # Errors
    /// None that is known: names and values were read as such.
    pub fn apply(&self, response: &mut ResponseHeader) -> pingora::Result<()> {
        for name in self.among(&response.headers) {
            response.remove_header(&name);
        }
        for (name, value) in &self.set {
            response.insert_header(name.clone(), value.clone())?;
        }
        Ok(())
    }

    pub fn apply_to_answer(&self, answer: &mut Answer) {
        answer.headers.retain(|(name, _)| !self.removed.contains(name.as_str()));
        answer.headers.extend(self.set.iter().cloned());
    }

    fn among(&self, headers: &HeaderMap) -> Vec<HeaderName> {
        headers.keys().filter(|name| self.removed.contains(name.as_str())).cloned().collect()
    }
}
