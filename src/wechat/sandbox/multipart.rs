//! Uploads: the file in a `multipart/form-data` body (RFC 7578).

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use memchr::memmem;

use super::Request;
use super::call::read_body;

/// Bytes of a body around its file.
const OVERHEAD: usize = 16 << 10;

/// Longest boundary (RFC 2046, section 5.1.1).
const LONGEST_BOUNDARY: usize = 70;

/// An uploaded file.
pub struct File {
    pub name: String,
    pub kind: Kind,
    pub content: Bytes,
}

/// The format of an image.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Png,
    Jpeg,
    Gif,
}

impl Kind {
    /// By the content: what the client says is not used.
    fn of(content: &[u8]) -> Option<Self> {
        match content {
            [0x89, b'P', b'N', b'G', ..] => Some(Self::Png),
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [b'G', b'I', b'F', b'8', ..] => Some(Self::Gif),
            _ => None,
        }
    }

    /// The file extension and the media type.
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Png => ("png", "image/png"),
            Self::Jpeg => ("jpg", "image/jpeg"),
            Self::Gif => ("gif", "image/gif"),
        }
    }
}

/// Reads the image in the part `media` of a body, of at most `limit` bytes. Reads no further than
/// that.
///
/// # Errors
/// The errcode.
pub async fn read_image(request: Request, limit: usize) -> Result<File, i64> {
    let boundary = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let boundary = boundary.and_then(boundary_of).ok_or(41005)?;
    let body = read_body(request, limit + OVERHEAD).await.map_err(|errcode| match errcode {
        45002 => 40006,
        other => other,
    })?;
    let (name, content) = media(&body, &boundary).ok_or(41005)?;
    if content.is_empty() || content.len() > limit {
        return Err(40006);
    }
    let kind = Kind::of(&content).ok_or(40004)?;
    Ok(File { name, kind, content })
}

/// The boundary of a Content-Type.
fn boundary_of(content_type: &str) -> Option<String> {
    let (kind, parameters) = content_type.split_once(';')?;
    let boundary = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.trim().split_once('=')?;
        name.eq_ignore_ascii_case("boundary").then(|| value.trim_matches('"').to_owned())
    })?;
    let is_boundary = (1..=LONGEST_BOUNDARY).contains(&boundary.len());
    (kind.trim().eq_ignore_ascii_case("multipart/form-data") && is_boundary).then_some(boundary)
}

/// Filename and content of the part `media`.
fn media(body: &Bytes, boundary: &str) -> Option<(String, Bytes)> {
    let delimiter = format!("--{boundary}");
    let end = format!("\r\n{delimiter}");
    // The first delimiter may be at the beginning.
    let mut at = memmem::find(body, delimiter.as_bytes())? + delimiter.len();
    loop {
        let part = body.get(at..)?.strip_prefix(b"\r\n")?;
        let start = at + 2;
        let length = memmem::find(part, end.as_bytes())?;
        let headers = memmem::find(part.get(..length)?, b"\r\n\r\n")?;
        let lines = std::str::from_utf8(part.get(..headers)?).ok()?;
        let disposition = lines.split("\r\n").find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-disposition").then_some(value)
        });
        let disposition = disposition.unwrap_or_default();
        if parameter(disposition, "name") == Some("media") {
            let name = parameter(disposition, "filename").unwrap_or_default().to_owned();
            return Some((name, body.slice(start + headers + 4..start + length)));
        }
        at = start + length + end.len();
    }
}

/// A parameter of a Content-Disposition.
fn parameter<'a>(disposition: &'a str, wanted: &str) -> Option<&'a str> {
    disposition.split(';').find_map(|parameter| {
        let (name, value) = parameter.trim().split_once('=')?;
        (name == wanted).then(|| value.trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"--x\r\nContent-Disposition: form-data; name=\"note\"\r\n\r\nhello\r\n\
        --x\r\ncontent-disposition: form-data; name=\"media\"; filename=\"a.png\"\r\n\
        Content-Type: image/png\r\n\r\n\x89PNG--x\r\n\r\n\r\n--x--\r\n";

    #[test]
    fn the_part_media_is_found_to_the_byte() {
        let (name, content) = media(&Bytes::from_static(BODY), "x").unwrap();
        assert_eq!((name.as_str(), &*content), ("a.png", &b"\x89PNG--x\r\n\r\n"[..]));
        assert!(Kind::of(&content) == Some(Kind::Png));
    }

    #[test]
    fn what_ends_too_early_has_no_part() {
        let whole = Bytes::from_static(BODY);
        let end = BODY.len() - b"\r\n--x--\r\n".len();
        for length in 0..end {
            assert!(media(&whole.slice(..length), "x").is_none(), "{length}");
        }
        assert!(media(&whole, "y").is_none());
    }

    #[test]
    fn a_boundary_is_taken_from_form_data_only() {
        let boundary = |text| boundary_of(text);
        assert_eq!(boundary("multipart/form-data; boundary=x").as_deref(), Some("x"));
        let quoted = "Multipart/Form-Data; charset=utf-8; Boundary=\"x y\"";
        assert_eq!(boundary(quoted).as_deref(), Some("x y"));
        for text in
            ["", "multipart/form-data", "multipart/form-data; boundary=", "text/x; boundary=x"]
        {
            assert_eq!(boundary(text), None, "{text}");
        }
    }
}
