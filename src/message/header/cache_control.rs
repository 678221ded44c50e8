//! `Cache-Control`, as far as it decides what shared caches do with responses to users.

use super::quoted_elements;

/// Whether a `Cache-Control` line either allows or forbids shared caches to reuse a response
/// although its request was authorized (RFC 9111, section 3.5).
pub fn decides(line: &[u8]) -> bool {
    quoted_elements(line).any(|directive| KEEPING.is(directive) || SHARING.is(directive))
}

/// Whether a `Cache-Control` line allows shared caches to reuse a response to an authorized
/// request.
pub fn is_shared(line: &[u8]) -> bool {
    quoted_elements(line).any(|directive| SHARING.is(directive))
}

/// Directives by name: those without an argument, and those with seconds.
struct Directives(&'static [&'static str], &'static [&'static str]);

const KEEPING: Directives = Directives(&["private", "no-store", "no-cache"], &[]);
const SHARING: Directives = Directives(&["public", "must-revalidate"], &["s-maxage"]);

impl Directives {
    /// With an argument, `private` and `no-cache` apply only to some headers of the response.
    fn is(&self, directive: &[u8]) -> bool {
        let mut parts = directive.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default();
        let (names, argument) = match parts.next() {
            None => (self.0, None),
            Some(argument) => (self.1, Some(argument)),
        };
        names.iter().any(|other| name.eq_ignore_ascii_case(other.as_bytes()))
            && argument.is_none_or(is_seconds)
    }
}

fn is_seconds(argument: &[u8]) -> bool {
    let quoted = argument.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    let digits = quoted.unwrap_or(argument);
    !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_for_shared_caches_are_recognised() {
        for line in ["public", "max-age=1, must-revalidate", "s-maxage=1"] {
            assert!(is_shared(line.as_bytes()), "{line}");
        }
        for line in ["", "max-age=1", "private", "no-store", "no-cache", "x=\"public\""] {
            assert!(!is_shared(line.as_bytes()), "{line}");
        }
    }
}
