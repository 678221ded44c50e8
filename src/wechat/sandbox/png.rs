//! Black and white images as PNG (ISO/IEC 15948).

use std::io::Write;

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A square image. `is_dark` says which pixels are black, by column and row. `None`: it is too
/// large.
pub fn encode(width: usize, is_dark: impl Fn(usize, usize) -> bool) -> Option<Vec<u8>> {
    let side = u32::try_from(width).ok()?.to_be_bytes();
    // One bit for each pixel, grayscale, and the only methods of compression, filters and
    // interlacing that need no more.
    let header = [side.as_slice(), &side, &[1, 0, 0, 0, 0]].concat();
    let mut pixels = ZlibEncoder::new(Vec::new(), Compression::default());
    for row in 0..width {
        // Each row begins with its filter: none.
        let mut line = vec![0];
        for first in (0..width).step_by(8) {
            let bit = |x: usize| u8::from(x < width && !is_dark(x, row));
            line.push((first..first + 8).fold(0, |byte, x| byte << 1 | bit(x)));
        }
        pixels.write_all(&line).ok()?;
    }
    let mut image = SIGNATURE.to_vec();
    for (kind, data) in [(b"IHDR", header), (b"IDAT", pixels.finish().ok()?), (b"IEND", vec![])] {
        image.extend(u32::try_from(data.len()).ok()?.to_be_bytes());
        image.extend(kind);
        image.extend(&data);
        let mut crc = Crc::new();
        crc.update(kind);
        crc.update(&data);
        image.extend(crc.sum().to_be_bytes());
    }
    Some(image)
}
