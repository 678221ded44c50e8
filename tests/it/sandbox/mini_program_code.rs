use std::io::Read;

use serde_json::{Value, json};

use super::{WeChat, assert_errcode};
use crate::harness::client::{self, Response};

async fn draw(wechat: &WeChat, path: &str, body: &Value) -> Response {
    let token = wechat.token().await;
    client::post(wechat.address, &format!("{path}?access_token={token}"), body).await
}

/// The pixels of a PNG of one bit, by row; true is black. Every checksum is verified.
fn pixels(png: &[u8]) -> Vec<Vec<bool>> {
    let mut rest = png.strip_prefix(b"\x89PNG\r\n\x1a\n").expect("the signature of PNG");
    let mut chunks = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        let (kind, data) = (&rest[4..8], &rest[8..8 + length]);
        let mut crc = flate2::Crc::new();
        crc.update(&rest[4..8 + length]);
        assert_eq!(crc.sum().to_be_bytes(), rest[8 + length..12 + length]);
        chunks.push((kind, data));
        rest = &rest[12 + length..];
    }
    let kinds: Vec<_> = chunks.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [b"IHDR", b"IDAT", b"IEND"]);
    let header = chunks[0].1;
    let side = u32::from_be_bytes(header[..4].try_into().unwrap()) as usize;
    assert_eq!(header[..4], header[4..8], "a square");
    assert_eq!(header[8..], [1, 0, 0, 0, 0], "one bit, grayscale");
    let mut data = Vec::new();
    flate2::read::ZlibDecoder::new(chunks[1].1).read_to_end(&mut data).unwrap();
    let bytes = side.div_ceil(8);
    assert_eq!(data.len(), side * (bytes + 1));
    let row = |line: &[u8]| {
        assert_eq!(line[0], 0, "no filter");
        (0..side).map(|x| line[1 + x / 8] >> (7 - x % 8) & 1 == 0).collect()
    };
    data.chunks(bytes + 1).map(row).collect()
}

#[tokio::test]
async fn a_code_is_an_image_of_the_width_that_was_asked_for() {
    let wechat = WeChat::start().await;
    let longest = "x".repeat(1024);
    for (path, body, side) in [
        ("/wxa/getwxacodeunlimit", json!({ "scene": "id=1", "page": "pages/index" }), 430),
        ("/wxa/getwxacodeunlimit", json!({ "scene": "a", "width": 281 }), 281),
        ("/wxa/getwxacode", json!({ "path": "pages/index?x=1", "width": 1280 }), 1280),
        ("/wxa/getwxacode", json!({ "path": longest, "width": 280 }), 280),
        ("/cgi-bin/wxaapp/createwxaqrcode", json!({ "path": "pages/index" }), 430),
    ] {
        let answer = draw(&wechat, path, &body).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("image/png")));
        let pixels = pixels(&answer.body);
        assert_eq!(pixels.len(), side);
        // The finder pattern at the top left: seven dark modules in the first row of the code, and
        // the code is in the middle.
        let first = pixels.iter().position(|row| row.contains(&true)).unwrap();
        let last = pixels.iter().rposition(|row| row.contains(&true)).unwrap();
        assert!(first.abs_diff(side - 1 - last) <= 1, "{first} {last}");
        let run = pixels[first][first..].iter().take_while(|is_dark| **is_dark).count();
        assert!(run % 7 == 0 && first >= 4 * run / 7, "{run} pixels, margin {first}");
        assert!(pixels[first][..first].iter().all(|is_dark| !is_dark));
    }
    let one = draw(&wechat, "/wxa/getwxacodeunlimit", &json!({ "scene": "a" })).await;
    let two = draw(&wechat, "/wxa/getwxacodeunlimit", &json!({ "scene": "b" })).await;
    assert_ne!(one.body, two.body);
}

#[tokio::test]
async fn an_error_of_a_code_is_json() {
    let wechat = WeChat::start().await;
    for (path, body, errcode) in [
        ("/wxa/getwxacodeunlimit", json!({}), 40129),
        ("/wxa/getwxacodeunlimit", json!({ "scene": "x".repeat(33) }), 40129),
        ("/wxa/getwxacodeunlimit", json!({ "scene": "中" }), 40129),
        ("/wxa/getwxacodeunlimit", json!({ "scene": "a", "page": "/pages/index" }), 41030),
        ("/wxa/getwxacodeunlimit", json!({ "scene": "a", "page": "pages/index?x=1" }), 41030),
        ("/wxa/getwxacodeunlimit", json!({ "scene": "a", "width": 279 }), 40097),
        ("/wxa/getwxacode", json!({ "path": "" }), 40159),
        ("/wxa/getwxacode", json!({ "path": "x".repeat(1025) }), 40159),
        ("/cgi-bin/wxaapp/createwxaqrcode", json!({ "path": "x".repeat(129) }), 40159),
        ("/wxa/getwxacode", json!({ "path": 1 }), 47001),
    ] {
        let answer = draw(&wechat, path, &body).await;
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_errcode(&answer.json(), errcode);
    }
}
