//! The PROXY header, with which a layer-4 load balancer sends the client's address.
//!
//! PROXY protocol, versions 1 and 2. Reads not a byte more than the header: a TLS handshake or a
//! request follows it.

use std::io;
use std::net::SocketAddr;

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt};

/// How version 2 begins. A header of version 1 is at least as long.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest header of version 1, line end included.
const LONGEST_V1: usize = 107;

/// The longest rest of a version 2 header: addresses and extensions.
const LONGEST_V2: usize = 4 << 10;

/// The byte after the signature for a connection of the load balancer itself.
const LOCAL: u8 = 0x20;

/// Where a connection comes from, according to its PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionOrigin {
    /// The load balancer itself, as in its health checks.
    Balancer,
    Client(SocketAddr),
    /// A client whose address is not given.
    Unknown,
}

/// Reads a header.
///
/// # Errors
/// When the connection does not begin with a valid header.
pub async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<ConnectionOrigin> {
    let mut header = vec![0; SIGNATURE.len()];
    stream.read_exact(&mut header).await?;
    if header == SIGNATURE {
        let mut rest = [0; 4];
        stream.read_exact(&mut rest).await?;
        header.extend_from_slice(&rest);
        let [_, _, length @ ..] = rest;
        let length = usize::from(u16::from_be_bytes(length));
        if length > LONGEST_V2 {
            return Err(malformed());
        }
        let begin = header.len();
        header.resize(begin + length, 0);
        stream.read_exact(header.get_mut(begin..).unwrap_or_default()).await?;
        if rest.first() == Some(&LOCAL) {
            return Ok(ConnectionOrigin::Balancer);
        }
    } else if header.starts_with(b"PROXY ") {
        while !header.ends_with(b"\r\n") {
            if header.len() >= LONGEST_V1 {
                return Err(malformed());
            }
            header.push(stream.read_u8().await?);
        }
    } else {
        return Err(malformed());
    }
    let config = ParseConfig { include_tlvs: false, allow_v1: true, allow_v2: true };
    match ProxyHeader::parse(&header, config) {
        Ok((parsed, length)) if length == header.len() => {
            let address = parsed.proxied_address();
            Ok(address.map_or(ConnectionOrigin::Unknown, |address| {
                ConnectionOrigin::Client(address.source)
            }))
        }
        _ => Err(malformed()),
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no PROXY header")
}

#[cfg(test)]
mod tests {
    use proxy_header::ProxiedAddress;

    use super::*;

    /// The result for some bytes, and how many of them are left.
    async fn read_all(bytes: &[u8]) -> (Option<ConnectionOrigin>, usize) {
        let mut left = bytes;
        let read = read(&mut left).await;
        (read.ok(), left.len())
    }

    fn client(address: &str) -> ConnectionOrigin {
        ConnectionOrigin::Client(address.parse().unwrap())
    }

    fn version_2(source: &str, destination: &str) -> Vec<u8> {
        let address = ProxiedAddress::stream(source.parse().unwrap(), destination.parse().unwrap());
        let mut bytes = Vec::new();
        ProxyHeader::with_address(address).encode_v2(&mut bytes).unwrap();
        bytes
    }

    #[tokio::test]
    async fn both_versions_give_the_address_and_leave_what_follows() {
        let v4 = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\nGET".as_slice();
        let v6 = b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\nGET".as_slice();
        assert_eq!(read_all(v4).await, (Some(client("192.0.2.1:56324")), 3));
        assert_eq!(read_all(v6).await, (Some(client("[2001:db8::1]:56324")), 3));
        let unknown = b"PROXY UNKNOWN\r\nGET".as_slice();
        assert_eq!(read_all(unknown).await, (Some(ConnectionOrigin::Unknown), 3));
        let long = b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\nGET".as_slice();
        assert_eq!(read_all(long).await, (Some(ConnectionOrigin::Unknown), 3));

        for (source, destination) in
            [("192.0.2.1:56324", "198.51.100.2:443"), ("[2001:db8::1]:56324", "[2001:db8::2]:443")]
        {
            let mut bytes = version_2(source, destination);
            bytes.extend_from_slice(b"GET");
            assert_eq!(read_all(&bytes).await, (Some(client(source)), 3));
        }
        let mut local = Vec::new();
        ProxyHeader::with_local().encode_v2(&mut local).unwrap();
        assert_eq!(read_all(&local).await, (Some(ConnectionOrigin::Balancer), 0));
        // Addresses are ignored then.
        let odd = b"\r\n\r\n\0\r\nQUIT\n\x20\x11\x00\x00GET";
        assert_eq!(read_all(odd).await, (Some(ConnectionOrigin::Balancer), 3));
        let unix = [b"\r\n\r\n\0\r\nQUIT\n\x21\x31\x00\xd8".as_slice(), &[0; 216]].concat();
        assert_eq!(read_all(&unix).await, (Some(ConnectionOrigin::Unknown), 0));
    }

    #[tokio::test]
    async fn extensions_are_skipped_whatever_length_they_claim() {
        let mut bytes = version_2("192.0.2.1:1", "198.51.100.2:443");
        // A type, a length that is far too long, and one byte.
        bytes.extend_from_slice(&[4, 0xff, 0xff, 0]);
        let length = u16::try_from(bytes.len() - 16).unwrap();
        bytes[14..16].copy_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(b"GET");
        assert_eq!(read_all(&bytes).await, (Some(client("192.0.2.1:1")), 3));
    }

    #[tokio::test]
    async fn an_invalid_header_is_rejected() {
        let mut short = version_2("192.0.2.1:1", "198.51.100.2:443");
        short[14..16].copy_from_slice(&4u16.to_be_bytes());
        let mut long = short.clone();
        long[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
        let mut version_3 = version_2("192.0.2.1:1", "198.51.100.2:443");
        version_3[12] = 0x31;
        let endless = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
        for bytes in [
            b"GET / HTTP/1.1\r\nHost: h\r\n\r\n".as_slice(),
            b"PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\n\r\n",
            b"PROXY TCP4 2001:db8::1 2001:db8::2 56324 443\r\n",
            b"PROXY UDP4 192.0.2.1 198.51.100.2 56324 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.2 99999 443\r\n",
            b"PROXY UNKNOWN",
            b"",
            &short,
            &long,
            &version_3,
            &endless,
        ] {
            assert_eq!(read_all(bytes).await.0, None, "{}", bytes.escape_ascii());
        }
    }
}
