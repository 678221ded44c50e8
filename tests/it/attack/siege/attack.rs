//! Attacks as data: bytes, a target, and the outcome that they must have.

/// The outcome that an attack must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Must {
    /// At most one 4xx, then the connection is closed; nothing is forwarded.
    Cut,
    /// Only rejections; nothing is forwarded.
    Rejected,
    /// So many requests are forwarded and get 200, and the connection is kept.
    Served(usize),
    /// The connection may be kept or not, as long as the invariants hold.
    Harmless,
}

/// Bytes with `{method}`, `{path}` and `{auth}` to be filled in.
#[derive(Clone, Debug)]
pub struct Attack {
    pub(super) template: Vec<u8>,
    pub(super) must: Must,
    pub(super) is_unfinished: bool,
    pub(super) part: usize,
}

impl Attack {
    pub fn new(template: impl AsRef<[u8]>, must: Must) -> Self {
        let template = template.as_ref().to_vec();
        Self { template, must, is_unfinished: false, part: usize::MAX }
    }

    /// More bytes would be read as the rest of it: the client closes its half instead.
    pub fn unfinished(mut self) -> Self {
        self.is_unfinished = true;
        self
    }

    /// Sends it in parts of this size.
    pub fn in_parts(mut self, part: usize) -> Self {
        self.part = part;
        self
    }
}

/// The target of an attack.
#[derive(Clone, Copy, Debug)]
pub struct Aim {
    pub method: &'static str,
    pub path: &'static str,
    pub has_token: bool,
}

const fn aim(method: &'static str, path: &'static str, has_token: bool) -> Aim {
    Aim { method, path, has_token }
}

/// The three kinds of routes, with a token and without.
pub const ROUTES: [Aim; 6] = [
    aim("GET", "/required", true),
    aim("GET", "/required", false),
    aim("GET", "/optional", true),
    aim("GET", "/optional", false),
    aim("GET", "/none", true),
    aim("GET", "/none", false),
];

/// Every kind of reader of a request's body.
pub const READERS: [Aim; 8] = [
    aim("POST", "/required", true),
    aim("POST", "/none", false),
    aim("GET", "/optional", true),
    aim("OPTIONS", "/none", false),
    aim("POST", "/login", false),
    aim("POST", "/logout", false),
    aim("GET", "/session", true),
    aim("POST", "/nowhere", true),
];
