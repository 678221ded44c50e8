//! From which peers `X-Forwarded-*` headers are used.
//!
//! Client address, protocol, host and request id are taken from the headers of peers in
//! `server.trusted_proxies`; the headers of all other peers are ignored. `X-Forwarded-For` is read
//! from the right, past trusted addresses only, so what a client put at its left end is never used.
//! `identity_headers` writes what is found here.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::header::{HOST, HeaderName, HeaderValue};
use ipnet::IpNet;
use rand::Rng;

use crate::access::identity_headers::{
    FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO, Forwarding, REQUEST_ID,
};
use crate::message::header::Headers;

/// What `X-Forwarded-Proto` says of TLS.
pub const HTTPS: &[u8] = b"https";

/// The networks of the trusted proxies.
pub struct TrustedProxies {
    networks: Vec<IpNet>,
    /// Whether the warning about an untrusted peer was logged.
    has_warned: AtomicBool,
}

/// The peer of a connection and the client behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The address that connected to the gateway.
    pub peer: IpAddr,
    /// The client's address, as far as it is known.
    pub address: IpAddr,
    pub is_trusted: bool,
}

impl TrustedProxies {
    pub fn new(networks: &[IpNet]) -> Self {
        Self { networks: networks.to_vec(), has_warned: AtomicBool::new(false) }
    }

    /// Whether an address, in its canonical form, is a trusted proxy's.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }

    pub fn client(&self, peer: IpAddr, headers: &impl Headers) -> Client {
        let peer = peer.to_canonical();
        let is_trusted = self.contains(peer);
        if !is_trusted {
            self.warn_once(peer, headers);
        }
        let address =
            if is_trusted { self.forwarded_client(headers).unwrap_or(peer) } else { peer };
        Client { peer, address, is_trusted }
    }

    /// Logged once: it shows a forgotten setting, but any client can cause it.
    fn warn_once(&self, peer: IpAddr, headers: &impl Headers) {
        let is_news = !self.has_warned.load(Ordering::Relaxed)
            && headers.first(&FORWARDED_FOR).is_some()
            && !self.has_warned.swap(true, Ordering::Relaxed);
        if is_news {
            tracing::warn!(
                %peer,
                "ignoring X-Forwarded-For from an untrusted peer: if it is your proxy, add it to \
                 server.trusted_proxies; logged once"
            );
        }
    }

    /// The nearest address that is not a trusted proxy's, or the farthest trusted one. An element
    /// that is not an address ends the search: nothing to the left of it can be trusted.
    fn forwarded_client(&self, headers: &impl Headers) -> Option<IpAddr> {
        let lines: Vec<_> = headers.values_of(&FORWARDED_FOR).collect();
        let hops = lines.iter().rev().flat_map(|line| line.rsplit(|b| *b == b','));
        let mut nearest = None;
        for hop in hops {
            let Some(address) = parse_hop(hop) else { break };
            nearest = Some(address);
            if !self.contains(address) {
                break;
            }
        }
        nearest
    }
}

/// An address, with or without a port.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim();
    let address = text
        .parse()
        .or_else(|_| text.parse::<std::net::SocketAddr>().map(|address| address.ip()))
        .or_else(|_| text.trim_matches(['[', ']']).parse())
        .ok()?;
    Some(IpAddr::to_canonical(&address))
}

impl Client {
    /// The request id of a trusted proxy, or a new one.
    pub fn request_id(&self, headers: &impl Headers) -> HeaderValue {
        self.trusted_value(headers, &REQUEST_ID, is_request_id).unwrap_or_else(fresh_request_id)
    }

    /// The forwarding headers for the service; `own_proto` is the scheme of the gateway's listener.
    pub fn forwarding(
        &self,
        headers: &impl Headers,
        request_id: HeaderValue,
        own_proto: &HeaderValue,
        authority: Option<&str>,
    ) -> Forwarding {
        let host = self.trusted_value(headers, &FORWARDED_HOST, |value| !value.is_empty());
        let forwarded_for = self.forwarded_for(headers);
        let client = if self.is_trusted {
            address_value(self.address)
        } else {
            // There is no other hop.
            forwarded_for.clone()
        };
        Forwarding {
            request_id,
            forwarded_for,
            proto: self.proto(headers, own_proto),
            host: host
                .or_else(|| HeaderValue::from_bytes(headers.first(&HOST)?).ok())
                .or_else(|| HeaderValue::from_str(authority?).ok()),
            client,
            is_trusted: self.is_trusted,
        }
    }

    /// The scheme of the client's connection, as far as it is known; `own_proto` is that of the
    /// gateway's listener.
    pub fn proto(&self, headers: &impl Headers, own_proto: &HeaderValue) -> HeaderValue {
        let is_proto = |value: &[u8]| matches!(value, b"http" | HTTPS);
        let given = self.trusted_value(headers, &FORWARDED_PROTO, is_proto);
        given.unwrap_or_else(|| own_proto.clone())
    }

    fn forwarded_for(&self, headers: &impl Headers) -> HeaderValue {
        if !self.is_trusted || headers.first(&FORWARDED_FOR).is_none() {
            return address_value(self.peer);
        }
        let mut hops: Vec<&[u8]> = headers.values_of(&FORWARDED_FOR).collect();
        let peer = self.peer.to_string();
        hops.push(peer.as_bytes());
        HeaderValue::from_bytes(&hops.join(&b", "[..])).unwrap_or_else(|_| address_value(self.peer))
    }

    /// The only value of a header, if the peer is trusted and the value is valid.
    fn trusted_value(
        &self,
        headers: &impl Headers,
        name: &HeaderName,
        is_valid: impl Fn(&[u8]) -> bool,
    ) -> Option<HeaderValue> {
        if !self.is_trusted {
            return None;
        }
        let value = headers.only(name).filter(|value| is_valid(value))?;
        HeaderValue::from_bytes(value).ok()
    }
}

/// An address as a header value for services.
pub fn address_value(address: IpAddr) -> HeaderValue {
    // Digits, letters, dots and colons are always legal.
    let value = match address {
        // Most addresses are of this kind, and the standard library formats them slowly.
        IpAddr::V4(address) => {
            let mut text = Vec::with_capacity("255.255.255.255".len());
            for octet in address.octets() {
                let digits = [octet / 100, octet / 10 % 10, octet % 10];
                let leading_zeros = 2 - usize::from(octet > 9) - usize::from(octet > 99);
                text.extend(digits.iter().skip(leading_zeros).map(|digit| b'0' + digit));
                text.push(b'.');
            }
            text.pop();
            HeaderValue::from_maybe_shared(Bytes::from(text))
        }
        IpAddr::V6(address) => HeaderValue::from_maybe_shared(Bytes::from(address.to_string())),
    };
    value.unwrap_or(HeaderValue::from_static("unknown"))
}

/// Whether a request id can be written to logs and headers without escaping.
pub fn is_request_id(value: &[u8]) -> bool {
    let legal = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=128).contains(&value.len()) && value.iter().all(legal)
}

/// 128 random bits in hex, like nginx's `$request_id`.
pub fn fresh_request_id() -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut random = [0u8; 32];
    rand::rng().fill_bytes(&mut random);
    let digit = |byte: u8| DIGITS.get(usize::from(byte & 15)).copied().unwrap_or(b'0');
    HeaderValue::from_bytes(&random.map(digit)).unwrap_or(HeaderValue::from_static("none"))
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn client(trusted: &[&str], peer: &str, lines: &[&str]) -> Client {
        let networks: Vec<IpNet> = trusted.iter().map(|network| network.parse().unwrap()).collect();
        TrustedProxies::new(&networks).client(peer.parse().unwrap(), &forwarded_for(lines))
    }

    fn forwarded_for(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(&FORWARDED_FOR, HeaderValue::from_str(line).unwrap());
        }
        headers
    }

    #[test]
    fn addresses_are_formatted_as_by_the_standard_library() {
        for address in
            ["0.0.0.0", "9.10.99.100", "127.0.0.1", "200.101.109.255", "2001:db8::1", "::"]
        {
            assert_eq!(address_value(address.parse().unwrap()), address);
        }
    }

    #[test]
    fn headers_of_an_untrusted_peer_are_ignored() {
        let untrusted = client(&["10.0.0.0/8"], "192.0.2.1", &["198.51.100.7"]);
        assert_eq!(untrusted.address, untrusted.peer);
        assert!(!untrusted.is_trusted);
        let forwarding = untrusted.forwarding(
            &forwarded_for(&["6.6.6.6"]),
            fresh_request_id(),
            &HeaderValue::from_static("http"),
            None,
        );
        assert_eq!(forwarding.forwarded_for, "192.0.2.1");
        assert_eq!(forwarding.client, "192.0.2.1");
    }

    #[test]
    fn trusted_hops_are_read_from_the_right() {
        let trusted = &["10.0.0.0/8", "fd00::/8"];
        let address = |lines: &[&str]| client(trusted, "10.1.1.1", lines).address.to_string();
        assert_eq!(address(&[]), "10.1.1.1");
        assert_eq!(address(&["198.51.100.7"]), "198.51.100.7");
        assert_eq!(address(&["6.6.6.6, 198.51.100.7, 10.2.2.2"]), "198.51.100.7");
        assert_eq!(address(&["6.6.6.6", "198.51.100.7 ,10.2.2.2"]), "198.51.100.7");
        assert_eq!(address(&["6.6.6.6, a, 10.2.2.2"]), "10.2.2.2");
        assert_eq!(address(&["a"]), "10.1.1.1");
        assert_eq!(address(&["10.3.3.3, 10.2.2.2"]), "10.3.3.3");
        assert_eq!(address(&["198.51.100.7:1234"]), "198.51.100.7");
        assert_eq!(address(&["[2001:db8::1]:1234, fd00::1"]), "2001:db8::1");
        assert_eq!(address(&["::ffff:198.51.100.7"]), "198.51.100.7");
    }

    #[test]
    fn only_a_valid_request_id_of_a_trusted_peer_is_used() {
        let mut headers = HeaderMap::new();
        headers.insert(&REQUEST_ID, HeaderValue::from_static("abc-1"));
        assert_eq!(client(&["10.0.0.0/8"], "10.0.0.1", &[]).request_id(&headers), "abc-1");
        assert_ne!(client(&[], "10.0.0.1", &[]).request_id(&headers), "abc-1");
        for odd in ["", "a b", "a\"b"] {
            headers.insert(&REQUEST_ID, HeaderValue::from_str(odd).unwrap());
            assert_eq!(client(&["10.0.0.0/8"], "10.0.0.1", &[]).request_id(&headers).len(), 32);
        }
        headers.insert(&REQUEST_ID, HeaderValue::from_static("a"));
        headers.append(&REQUEST_ID, HeaderValue::from_static("b"));
        assert_eq!(client(&["10.0.0.0/8"], "10.0.0.1", &[]).request_id(&headers).len(), 32);
    }
}
