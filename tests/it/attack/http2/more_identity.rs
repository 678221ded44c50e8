//! The same identity headers over HTTP/2.

use super::super::frames::{DATA, END_HEADERS, END_STREAM, Field, HEADERS, block, frame, request};
use super::super::more_identity::{FORGED, HEADERS as CARRIERS};
use super::super::siege::{Must, Siege};
use super::{fields, run};
use crate::harness::more_identity::NAMES;

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_the_other_identity_headers_is_trusted_over_http_2() {
    for header in CARRIERS {
        let mut siege = Siege::start_with_more(header, true).await;
        let token = siege.token().to_owned();
        let session: Field<'_> = (b"x-3rd-session", token.as_bytes());
        let header = header.to_lowercase().into_bytes();
        let own = format!("Bearer {token}");
        let mut cases: Vec<Vec<(Vec<u8>, &[u8])>> = vec![
            vec![(header.clone(), b"a"), (header.clone(), b"b")],
            vec![(header.clone(), b"")],
            vec![(header.clone(), &[b'e'; 9000])],
            vec![(header.clone(), FORGED[0].as_bytes()), (b"te".to_vec(), b"trailers")],
        ];
        if header == b"authorization" {
            cases.push(vec![(header.clone(), own.as_bytes())]);
            cases.push(vec![(header.clone(), b"Basic c2hvcA==")]);
        }
        for byte in b"!#$%&'*+-.^_`|~" {
            let byte = char::from(*byte).to_string();
            let spelled = |name: &str| name.to_lowercase().replace('-', &byte).into_bytes();
            cases.push(NAMES.map(|name| (spelled(name), FORGED[1].as_bytes())).to_vec());
        }
        for case in &cases {
            for (path, has_token) in
                [("/required", true), ("/optional", true), ("/optional", false), ("/none", true)]
            {
                let mut more: Vec<Field<'_>> =
                    case.iter().map(|(name, value)| (name.as_slice(), *value)).collect();
                if has_token {
                    more.push(session);
                }
                let bytes = request(1, &fields("GET", path, &more));
                let name = format!("{path} {}", bytes.escape_ascii());
                run(&mut siege, &name, &bytes, &[1], Must::Served(1)).await;
            }
        }
        for path in ["/required", "/optional", "/none"] {
            let opening = block(&fields("POST", path, &[session, (b"te", b"trailers")]));
            let trailers: Vec<Field<'_>> = vec![
                (b"x-user-id", b"evil"),
                (b"x_wxgate_jwt", b"evil"),
                (b"x-wx-openid", b"evil"),
                (b"x_wx_source", b"wx_client"),
                (&header, b"evil"),
            ];
            let bytes = [
                frame(HEADERS, END_HEADERS, 1, &opening),
                frame(DATA, 0, 1, b"hello"),
                frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&trailers)),
            ];
            run(&mut siege, path, &bytes.concat(), &[1], Must::Harmless).await;
        }
    }
}
