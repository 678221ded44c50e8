//! CORS: which origins may use a route from a browser.
//!
//! A preflight gets its response before a session is looked up, because browsers send no
//! credentials with it. All later responses get the CORS headers, including errors of the gateway:
//! otherwise a page could not tell an expired session from a network failure. CORS headers of the
//! service are replaced, because browsers reject duplicates.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
};
use http::{HeaderName, HeaderValue, Method};

use crate::config;
use crate::config::Origins;
use crate::message::header::{Headers, HeadersMut, nominated};
use crate::message::own_response::OwnResponse;

pub struct Cors {
    origins: Origins,
    credentials: bool,
    /// Headers of the response to a preflight, except for the origin.
    preflight: Vec<(HeaderName, HeaderValue)>,
    /// Headers of other responses, except for the origin.
    actual: Vec<(HeaderName, HeaderValue)>,
}

/// The method that a preflight names; `None` if the request is not a preflight.
pub fn preflight_method(method: &Method, headers: &impl Headers) -> Option<Method> {
    if method != Method::OPTIONS || headers.first(&ORIGIN).is_none() {
        return None;
    }
    let requested = headers.only(&ACCESS_CONTROL_REQUEST_METHOD)?;
    let method = Method::from_bytes(requested).ok()?;
    // These headers are removed before forwarding, so the service would not see a preflight.
    let is_of_one = |name: &[u8]| {
        [ORIGIN, ACCESS_CONTROL_REQUEST_METHOD]
            .iter()
            .any(|other| name.eq_ignore_ascii_case(other.as_str().as_bytes()))
    };
    (!nominated(headers).any(is_of_one)).then_some(method)
}

impl Cors {
    pub fn new(section: &config::Cors) -> Self {
        let mut both = Vec::new();
        if section.credentials {
            both.push((ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")));
        }
        let names =
            |names: &[HeaderName]| list(&names.iter().map(HeaderName::as_str).collect::<Vec<_>>());
        let methods: Vec<_> = section.methods.iter().map(String::as_str).collect();
        let mut preflight = both.clone();
        preflight.extend(list(&methods).map(|list| (ACCESS_CONTROL_ALLOW_METHODS, list)));
        preflight.extend(names(&section.headers).map(|list| (ACCESS_CONTROL_ALLOW_HEADERS, list)));
        preflight.push((ACCESS_CONTROL_MAX_AGE, section.max_age.as_secs().into()));
        let mut actual = both;
        actual.extend(names(&section.expose).map(|list| (ACCESS_CONTROL_EXPOSE_HEADERS, list)));
        Self {
            origins: section.origins.clone(),
            credentials: section.credentials,
            preflight,
            actual,
        }
    }

    /// Whether a response stored for one origin must not be served to another: always, unless all
    /// origins are allowed.
    pub fn varies_by_origin(section: &config::Cors) -> bool {
        matches!(section.origins, Origins::Listed(_))
    }

    /// The response to a preflight. For an origin that is not allowed it has no CORS headers, which
    /// browsers treat as a denial.
    pub fn preflight_response(&self, headers: &impl Headers) -> OwnResponse {
        let mut response = OwnResponse::empty(204);
        self.mark_with(&self.preflight, headers, |name, value| response.header(name, value));
        response
    }

    /// Adds the CORS headers to one of the gateway's own responses.
    pub fn mark_own_response(&self, headers: &impl Headers, response: &mut OwnResponse) {
        self.mark_with(&self.actual, headers, |name, value| response.header(name, value));
    }

    /// Adds the CORS headers to a response of the service.
    pub fn mark(&self, headers: &impl Headers, response: &mut impl HeadersMut) {
        const OF_CORS: &[u8] = b"access-control-";
        response.remove_if(|name, _| {
            name.get(..OF_CORS.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(OF_CORS))
        });
        self.mark_with(&self.actual, headers, |name, value| {
            response.add(&name, &value);
        });
    }

    fn mark_with(
        &self,
        marks: &[(HeaderName, HeaderValue)],
        headers: &impl Headers,
        mut write: impl FnMut(HeaderName, HeaderValue),
    ) {
        let Some(origin) = self.allowed(headers) else { return };
        write(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        for (name, value) in marks {
            write(name.clone(), value.clone());
        }
    }

    /// Whether the request's one origin is listed, and may send cookies.
    pub fn allows_credentials(&self, headers: &impl Headers) -> bool {
        let Origins::Listed(listed) = &self.origins else { return false };
        let origin = headers.only(&ORIGIN);
        self.credentials && origin.is_some_and(|origin| listed.iter().any(|one| one == origin))
    }

    /// The value of `Access-Control-Allow-Origin`; `None` if the origin is not allowed.
    fn allowed(&self, headers: &impl Headers) -> Option<HeaderValue> {
        let origin = headers.only(&ORIGIN)?;
        match &self.origins {
            Origins::Any => Some(HeaderValue::from_static("*")),
            Origins::Listed(listed) => listed.iter().find(|other| *other == origin).cloned(),
        }
    }
}

/// `None` if the list is empty: the header is left out.
fn list(names: &[&str]) -> Option<HeaderValue> {
    HeaderValue::from_str(&names.join(", ")).ok().filter(|_| !names.is_empty())
}
