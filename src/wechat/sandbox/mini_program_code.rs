//! Images that open a page of the Mini Program: getUnlimitedQRCode, getQRCode, createQRCode.
//!
//! WeChat's own round codes have no public format. These are QR codes of a text with the app, the
//! page and the scene.

use qrcode::{Color, QrCode};
use serde::Deserialize;

use super::call::{Call, read_json};
use super::errors::Failure;
use super::{Response, Sandbox, png, response};

/// Empty modules around a QR code (ISO/IEC 18004).
const QUIET_ZONE: usize = 4;

/// The sides that WeChat draws, in pixels, and the one that it draws by default.
const WIDTHS: std::ops::RangeInclusive<usize> = 280..=1280;
const DEFAULT_WIDTH: usize = 430;

/// Longest scene, in characters.
const LONGEST_SCENE: usize = 32;

impl Sandbox {
    /// qrcode.getUnlimitedQRCode: the code of a scene.
    pub(super) async fn unlimited_code(&self, call: Call) -> Result<Response, Failure> {
        #[derive(Deserialize)]
        struct Wanted {
            #[serde(default)]
            scene: String,
            #[serde(default)]
            page: String,
            width: Option<usize>,
        }

        let Call { app_id, request, .. } = call;
        let wanted: Wanted = read_json(request).await?;
        let is_scene_byte =
            |b: u8| b.is_ascii_alphanumeric() || b"!#$&'()*+,/:;=?@-._~%".contains(&b);
        let length = wanted.scene.len();
        if !(1..=LONGEST_SCENE).contains(&length) || !wanted.scene.bytes().all(is_scene_byte) {
            return Err(40129.into());
        }
        // A page has no query and no slash before it.
        if wanted.page.starts_with('/') || wanted.page.contains('?') || wanted.page.len() > 1024 {
            return Err(41030.into());
        }
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("appid", &app_id)
            .append_pair("page", &wanted.page)
            .append_pair("scene", &wanted.scene)
            .finish();
        image(&query, wanted.width)
    }

    /// qrcode.getQRCode and qrcode.createQRCode: the code of a path with at most so many bytes.
    pub(super) async fn code(&self, call: Call, longest: usize) -> Result<Response, Failure> {
        #[derive(Deserialize)]
        struct Wanted {
            #[serde(default)]
            path: String,
            width: Option<usize>,
        }

        let Call { app_id, request, .. } = call;
        let wanted: Wanted = read_json(request).await?;
        if !(1..=longest).contains(&wanted.path.len()) {
            return Err(40159.into());
        }
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("appid", &app_id)
            .append_pair("path", &wanted.path)
            .finish();
        image(&query, wanted.width)
    }
}

/// A QR code as an image.
fn image(query: &str, width: Option<usize>) -> Result<Response, Failure> {
    let width = width.unwrap_or(DEFAULT_WIDTH);
    if !WIDTHS.contains(&width) {
        return Err(40097.into());
    }
    let text = format!("https://sandbox.invalid/mini-program?{query}");
    let image = QrCode::new(text).ok().and_then(|code| draw(&code, width));
    let image = image.ok_or(40097)?;
    Ok(response(200, "image/png", image))
}

/// A code in the middle of a white square. `None`: the square is too small.
pub fn draw(code: &QrCode, width: usize) -> Option<Vec<u8>> {
    let modules = code.width();
    let scale = width / (modules + 2 * QUIET_ZONE);
    let margin = (width - scale * modules) / 2;
    let colors = code.to_colors();
    let is_dark = |x: usize, y: usize| {
        let module = |at: usize| Some(at.checked_sub(margin)? / scale).filter(|at| *at < modules);
        let at = module(y).zip(module(x)).map(|(row, column)| row * modules + column);
        at.and_then(|at| colors.get(at)) == Some(&Color::Dark)
    };
    if scale == 0 { None } else { png::encode(width, is_dark) }
}
