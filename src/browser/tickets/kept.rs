//! The record of a ticket, and which requests it is for.

use std::net::{IpAddr, Ipv6Addr};

use crate::identity::token::TokenDigest;

/// Format version. Others are not read.
const VERSION: u8 = 1;

const REUSE: u8 = 1;
const COOKIE: u8 = 2;
const HAS_CLIENT: u8 = 4;

#[derive(Clone, PartialEq, Eq)]
pub struct Kept {
    /// In milliseconds since 1970.
    pub ends_at_millis: u64,
    /// Of the session's token.
    pub digest: TokenDigest,
    pub reuse: bool,
    pub cookie: bool,
    /// The address of the first client; only with `reuse`.
    pub client: Option<IpAddr>,
    /// With a query if the ticket is for that query only.
    pub path: String,
}

impl Kept {
    /// Whether it is for a path and query, byte for byte.
    pub fn is_for(&self, target: &str) -> bool {
        let wanted = if self.path.contains('?') {
            target
        } else {
            target.split('?').next().unwrap_or_default()
        };
        self.path == wanted
    }

    pub fn encode(&self) -> Vec<u8> {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let client = match self.client {
            Some(IpAddr::V4(address)) => address.to_ipv6_mapped(),
            Some(IpAddr::V6(address)) => address,
            None => Ipv6Addr::UNSPECIFIED,
        };
        let flags = flag(self.reuse, REUSE)
            | flag(self.cookie, COOKIE)
            | flag(self.client.is_some(), HAS_CLIENT);
        let mut plain = vec![VERSION, flags];
        plain.extend(self.ends_at_millis.to_be_bytes());
        plain.extend(self.digest.as_bytes());
        plain.extend(client.octets());
        plain.extend(self.path.as_bytes());
        plain
    }

    pub fn decode(plain: &[u8]) -> Option<Self> {
        let (&[VERSION, flags], rest) = plain.split_first_chunk()? else { return None };
        let (ends, rest) = rest.split_first_chunk()?;
        let (digest, rest) = rest.split_first_chunk()?;
        let (client, path) = rest.split_first_chunk::<16>()?;
        let is = |flag| flags & flag != 0;
        Some(Self {
            ends_at_millis: u64::from_be_bytes(*ends),
            digest: TokenDigest::from_bytes(*digest),
            reuse: is(REUSE),
            cookie: is(COOKIE),
            client: is(HAS_CLIENT).then(|| Ipv6Addr::from(*client).to_canonical()),
            path: std::str::from_utf8(path).ok()?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept {
        Kept {
            ends_at_millis: 1_700_000_000_000,
            digest: TokenDigest::from_bytes([7; 32]),
            reuse: false,
            cookie: false,
            client: None,
            path: "/a".to_owned(),
        }
    }

    #[test]
    fn what_is_kept_is_read_as_it_was() {
        for kept in [
            kept(),
            Kept { reuse: true, client: Some(IpAddr::from([192, 0, 2, 1])), ..kept() },
            Kept { cookie: true, path: "/a?b=c".to_owned(), ..kept() },
            Kept { reuse: true, client: "2001:db8::1".parse().ok(), ..kept() },
        ] {
            let plain = kept.encode();
            assert!(Kept::decode(&plain) == Some(kept));
            assert!(Kept::decode(&plain[..57]).is_none());
            assert!(Kept::decode(&[&[2], &plain[1..]].concat()).is_none());
        }
    }

    #[test]
    fn a_path_is_compared_byte_for_byte_and_its_query_only_if_it_has_one() {
        for (path, target) in
            [("/a", "/a"), ("/a", "/a?b=c"), ("/a", "/a?"), ("/a?b=c", "/a?b=c"), ("/a?", "/a?")]
        {
            let kept = Kept { path: path.to_owned(), ..kept() };
            assert!(kept.is_for(target), "{path} {target}");
        }
        for (path, target) in [
            ("/a", "/a/"),
            ("/a", "/A"),
            ("/a", "/%61"),
            ("/a", "/ab"),
            ("/a/b", "/a%2fb"),
            ("/a", "//a"),
            ("/a?b=c", "/a"),
            ("/a?b=c", "/a?b=c&d"),
            ("/a?b=c", "/a?B=c"),
            ("/a?b=c&d=e", "/a?d=e&b=c"),
            ("/a?", "/a"),
            ("/a", ""),
        ] {
            let kept = Kept { path: path.to_owned(), ..kept() };
            assert!(!kept.is_for(target), "{path} {target}");
        }
    }
}
