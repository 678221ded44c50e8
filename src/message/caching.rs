//! Cache headers of responses, for caches between the gateway and its clients.
//!
//! HTTP does not allow shared caches to reuse a response to a request with `Authorization` (RFC
//! 9111, section 3.5), but caches do not know the session header. So a response that depends on a
//! session lists the carriers in `Vary`, and a response to a user is `private`, for caches that
//! ignore `Vary`. If the service's own `Cache-Control` already decides this, as HTTP allows, it is
//! not changed.
//!
//! Each of the two headers is sent as one line: some caches read only the last of several.

use http::header::{CACHE_CONTROL, VARY};
use http::{HeaderName, HeaderValue};

use crate::message::header::cache_control::{decides, is_shared};
use crate::message::header::{HeadersMut, trim};
use crate::message::own_response::OwnResponse;

const PRIVATE: &str = "private";

/// What is added to the responses of a route.
pub struct Caching {
    vary: Option<Vary>,
    is_private: bool,
}

impl Caching {
    /// For responses that depend on the `carriers` and on `others`. There are no carriers if no
    /// session is looked up, or if the route leaves the cache headers to its service.
    pub fn new(carriers: &[HeaderName], others: &[HeaderName]) -> Self {
        let vary = Vary::new(others.iter().chain(carriers).cloned());
        Self { vary, is_private: !carriers.is_empty() }
    }

    /// Adds the cache headers to a service's response; `has_session`: its request had a session.
    pub fn mark(&self, response: &mut impl HeadersMut, has_session: bool) {
        if let Some(vary) = &self.vary
            && let Some(value) = vary.merged(|| response.values_of(&VARY))
        {
            replace(response, &VARY, &value);
        }
        if self.is_private && has_session {
            add_private(response);
        }
    }

    /// Adds the cache headers to one of the gateway's own responses.
    pub fn mark_own_response(&self, response: &mut OwnResponse, has_session: bool) {
        if let Some(vary) = &self.vary
            && let Some(value) = vary.merged(|| response.values(&VARY).map(HeaderValue::as_bytes))
        {
            response.replace(VARY, value);
        }
        if self.is_private && has_session {
            add_private_to_own(response);
        }
    }
}

/// Makes a response private, even if its own `Cache-Control` allows shared caches.
pub fn make_private(response: &mut impl HeadersMut) {
    if response.values_of(&CACHE_CONTROL).any(is_shared) {
        replace(response, &CACHE_CONTROL, &HeaderValue::from_static(PRIVATE));
    } else {
        add_private(response);
    }
}

/// The same for one of the gateway's own responses.
pub fn make_own_private(response: &mut OwnResponse) {
    if response.values(&CACHE_CONTROL).map(HeaderValue::as_bytes).any(is_shared) {
        response.replace(CACHE_CONTROL, HeaderValue::from_static(PRIVATE));
    } else {
        add_private_to_own(response);
    }
}

/// Adds `private` to a response, unless its own `Cache-Control` decides.
#[inline]
fn add_private(response: &mut impl HeadersMut) {
    if let Some(value) = with_private(|| response.values_of(&CACHE_CONTROL)) {
        replace(response, &CACHE_CONTROL, &value);
    }
}

/// The same for one of the gateway's own responses.
fn add_private_to_own(response: &mut OwnResponse) {
    let values = || response.values(&CACHE_CONTROL).map(HeaderValue::as_bytes);
    if let Some(value) = with_private(values) {
        response.replace(CACHE_CONTROL, value);
    }
}

/// Request headers that a response depends on.
pub struct Vary {
    names: Vec<HeaderName>,
    value: HeaderValue,
}

impl Vary {
    /// `None` if there are no names.
    pub fn new(names: impl Iterator<Item = HeaderName>) -> Option<Self> {
        let names: Vec<_> = names.collect();
        let shown: Vec<_> = names.iter().map(title_case).collect();
        let value = HeaderValue::try_from(shown.join(", ")).ok()?;
        (!names.is_empty()).then_some(Self { names, value })
    }

    /// The whole header value, if nothing else is added to it.
    pub fn value(&self) -> &HeaderValue {
        &self.value
    }

    /// The line that replaces the existing ones; `None` if they already list all names.
    fn merged<'a, I>(&self, lines: impl Fn() -> I) -> Option<HeaderValue>
    where
        I: Iterator<Item = &'a [u8]>,
    {
        let mut all = lines();
        let Some(first) = all.next() else { return Some(self.value.clone()) };
        let is_one_line = all.next().is_none();
        let members = || {
            let members = lines().flat_map(|line| line.split(|byte| *byte == b','));
            members.map(trim)
        };
        if members().any(|member| member == b"*") {
            // Caches recognise `*` only if it is alone.
            let is_alone = is_one_line && trim(first) == b"*";
            return (!is_alone).then(|| HeaderValue::from_static("*"));
        }
        let is_listed = |name: &&HeaderName| {
            let name = name.as_str().as_bytes();
            members().any(|member| member.eq_ignore_ascii_case(name))
        };
        if is_one_line && self.names.iter().all(|name| is_listed(&name)) {
            return None;
        }
        let missing: Vec<_> =
            self.names.iter().filter(|name| !is_listed(name)).map(title_case).collect();
        let lines = lines().map(trim).filter(|line| !line.is_empty());
        let missing = missing.iter().map(String::as_bytes);
        let parts: Vec<&[u8]> = lines.map(|line: &[u8]| line).chain(missing).collect();
        // `*` if the value is not a legal header value.
        let joined = HeaderValue::from_bytes(&parts.join(&b", "[..]));
        Some(joined.unwrap_or(HeaderValue::from_static("*")))
    }
}

/// Replaces all lines of a header with one.
pub fn replace(response: &mut impl HeadersMut, name: &HeaderName, value: &HeaderValue) {
    if response.first(name).is_some() {
        response.remove_if(|other, _| other.eq_ignore_ascii_case(name.as_str().as_bytes()));
    }
    response.add(name, value);
}

/// The usual spelling: `X-3rd-Session`.
fn title_case(name: &HeaderName) -> String {
    let mut is_first = true;
    let spelled = name.as_str().chars().map(|letter| {
        let letter = if is_first { letter.to_ascii_uppercase() } else { letter };
        is_first = letter == '-';
        letter
    });
    spelled.collect()
}

/// The `Cache-Control` with `private` added; `None` if the existing one already decides.
fn with_private<'a, I>(lines: impl Fn() -> I) -> Option<HeaderValue>
where
    I: Iterator<Item = &'a [u8]>,
{
    if lines().next().is_none() {
        return Some(HeaderValue::from_static(PRIVATE));
    }
    if lines().any(decides) {
        return None;
    }
    let lines = lines().map(trim).filter(|line| !line.is_empty());
    // First, because after an unclosed quote it would be part of the quoted string.
    let parts: Vec<_> = std::iter::once(PRIVATE.as_bytes()).chain(lines).collect();
    let joined = HeaderValue::from_bytes(&parts.join(&b", "[..]));
    Some(joined.unwrap_or(HeaderValue::from_static(PRIVATE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(values: &[&str]) -> Vec<HeaderValue> {
        values.iter().map(|value| HeaderValue::from_str(value).unwrap()).collect()
    }

    fn shown(value: Option<HeaderValue>) -> Option<String> {
        value.map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn vary_is_one_line_with_each_name_once() {
        let names = ["x-3rd-session", "authorization"].map(HeaderName::from_static);
        let vary = Vary::new(names.into_iter()).unwrap();
        assert_eq!(vary.value(), "X-3rd-Session, Authorization");
        for (given, expected) in [
            (&[][..], Some("X-3rd-Session, Authorization")),
            (&[""], Some("X-3rd-Session, Authorization")),
            (&["Accept"], Some("Accept, X-3rd-Session, Authorization")),
            (&["Accept", "Origin"], Some("Accept, Origin, X-3rd-Session, Authorization")),
            (&["x-3RD-session"], Some("x-3RD-session, Authorization")),
            (&["Authorization,x-3rd-session"], None),
            (&["Authorization", "x-3rd-session"], Some("Authorization, x-3rd-session")),
            (&["X-3rd-Sessions"], Some("X-3rd-Sessions, X-3rd-Session, Authorization")),
            (&["*"], None),
            (&[" * "], None),
            (&["*", "*"], Some("*")),
            (&["Accept, *"], Some("*")),
            (&["*", "Accept"], Some("*")),
        ] {
            let given = lines(given);
            let merged = shown(vary.merged(|| given.iter().map(HeaderValue::as_bytes)));
            assert_eq!(merged.as_deref(), expected, "{given:?}");
        }
        assert!(Vary::new(std::iter::empty()).is_none());
    }

    #[test]
    fn private_is_added_where_no_directive_decides() {
        for (given, expected) in [
            (&[][..], "private"),
            (&[""], "private"),
            (&["max-age=60"], "private, max-age=60"),
            (&["max-age=60", "immutable"], "private, max-age=60, immutable"),
            (&["private=\"x\""], "private, private=\"x\""),
            (&["no-cache=\"set-cookie, x\""], "private, no-cache=\"set-cookie, x\""),
            (&["x=\"public\""], "private, x=\"public\""),
            (&["x=\"a, public, b\""], "private, x=\"a, public, b\""),
            (&["x=\"a\\\", public\""], "private, x=\"a\\\", public\""),
            (&["x=\"public, no-store"], "private, x=\"public, no-store"),
            (&["publicity, not-private"], "private, publicity, not-private"),
            (&["s-maxage"], "private, s-maxage"),
            (&["s-maxage=x"], "private, s-maxage=x"),
            (&["s-maxage=\"\""], "private, s-maxage=\"\""),
            (&["public=1"], "private, public=1"),
            (&["proxy-revalidate, max-age=1"], "private, proxy-revalidate, max-age=1"),
        ] {
            let given = lines(given);
            assert_eq!(
                shown(with_private(|| given.iter().map(HeaderValue::as_bytes))).as_deref(),
                Some(expected),
                "{given:?}"
            );
        }
        for given in [
            &["public"][..],
            &["max-age=60, PUBLIC"],
            &["max-age=60", "Public"],
            &["s-maxage=60"],
            &["S-MaxAge=\"60\""],
            &["must-revalidate"],
            &["private"],
            &["no-store"],
            &["no-cache"],
            &["x=\"y\\\\\", public"],
            &[",,no-store,"],
            &["max-age=1,\tno-store"],
        ] {
            let given = lines(given);
            assert_eq!(with_private(|| given.iter().map(HeaderValue::as_bytes)), None, "{given:?}");
        }
    }
}
