//! A contact sheet: pictures to look at, with what is said of them.

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

use super::{Captioned, PIXELS, SIDE};
use crate::error::{Error, Result};

/// How many times a pixel is enlarged.
const ZOOM: usize = 4;
/// Pixels between pictures.
const GAP: usize = 8;

/// A contact sheet in three forms.
#[derive(Clone, Debug)]
pub struct Sheet {
    /// The pictures alone in rows, four times enlarged.
    pub png: Vec<u8>,
    /// Numbered captions, row by row; wrong ones say what is wrong.
    pub text: String,
    /// The pictures with their captions beneath, wrong ones in red with a cross; follows the reader's light or dark.
    pub svg: String,
}

/// Draws all of `images`, `columns` in a row.
pub fn contact_sheet(images: &Captioned, columns: usize) -> Result<Sheet> {
    let columns = columns.max(1);
    let pictures: Vec<&[u8]> = images.pixels.chunks_exact(PIXELS).collect();
    if pictures.is_empty() || pictures.len() != images.captions.len() {
        let (p, c) = (pictures.len(), images.captions.len());
        return Err(Error::input(format!("a contact sheet needs pictures and as many captions, not {p} and {c}")));
    }
    let text = images.captions.iter().enumerate().map(|(i, c)| match c.wrong {
        Some(what) => format!("{:3}  {}  (wrong: {what:?})\n", i + 1, c.text),
        None => format!("{:3}  {}\n", i + 1, c.text),
    });
    Ok(Sheet { png: grid(&pictures, columns)?, text: text.collect(), svg: svg(images, &pictures, columns)? })
}

fn png(pixels: &[u8], width: usize, height: usize) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    PngEncoder::new(&mut out)
        .write_image(pixels, width as u32, height as u32, ExtendedColorType::Rgb8)
        .map_err(|e| Error::defect(format!("cannot encode a {width}×{height} PNG: {e}")))?;
    Ok(out)
}

fn grid(pictures: &[&[u8]], columns: usize) -> Result<Vec<u8>> {
    let cell = SIDE * ZOOM + GAP;
    let (width, height) = (columns * cell + GAP, pictures.len().div_ceil(columns) * cell + GAP);
    let mut out = vec![128u8; width * height * 3];
    for (n, picture) in pictures.iter().enumerate() {
        let (left, top) = (n % columns * cell + GAP, n / columns * cell + GAP);
        for y in 0..SIDE * ZOOM {
            for x in 0..SIDE * ZOOM {
                let to = ((top + y) * width + left + x) * 3;
                let from = y / ZOOM * SIDE + x / ZOOM;
                for channel in 0..3 {
                    out[to + channel] = picture[channel * SIDE * SIDE + from];
                }
            }
        }
    }
    png(&out, width, height)
}

fn svg(images: &Captioned, pictures: &[&[u8]], columns: usize) -> Result<String> {
    let (cell, line, lines) = (SIDE * 4 + 32, 14, 4);
    let tall = SIDE * 4 + 16 + line * lines;
    let (width, height) = (columns * cell, pictures.len().div_ceil(columns) * tall + 2 * line);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         font-family=\"sans-serif\" font-size=\"11\"><style>.page{{fill:#fff}}text{{fill:#222}}.wrong{{fill:#b00020}}\
         @media screen and (prefers-color-scheme:dark){{.page{{fill:#0d1117}}text{{fill:#ddd}}.wrong{{fill:#ff7b8a}}}}\
         image{{image-rendering:pixelated}}</style><rect class=\"page\" width=\"{width}\" height=\"{height}\"/>\n"
    );
    for (n, (picture, caption)) in pictures.iter().zip(&images.captions).enumerate() {
        let (left, top) = (n % columns * cell + 8, n / columns * tall + 8);
        let interleaved: Vec<u8> =
            (0..SIDE * SIDE).flat_map(|i| (0..3).map(move |c| picture[c * SIDE * SIDE + i])).collect();
        let data = base64(&png(&interleaved, SIDE, SIDE)?);
        let side = SIDE * 4;
        out += &format!(
            "<image x=\"{left}\" y=\"{top}\" width=\"{side}\" height=\"{side}\" href=\"data:image/png;base64,{data}\"/>\n"
        );
        let (class, mark) = if caption.wrong.is_some() { (" class=\"wrong\"", "✗ ") } else { ("", "") };
        for (row, words) in wrap(&format!("{mark}{}", caption.text), 24).iter().take(lines).enumerate() {
            let y = top + side + line * (row + 1);
            out += &format!("<text x=\"{left}\" y=\"{y}\"{class}>{words}</text>\n");
        }
    }
    let y = height - line;
    out +=
        &format!("<text x=\"8\" y=\"{y}\">✗ red: the caption says one wrong thing; many leave something out</text>\n");
    Ok(out + "</svg>\n")
}

/// Lines of at most `most` characters where words allow it.
fn wrap(text: &str, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= most => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

/// RFC 4648 with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().chain([0, 0].iter()).take(3).fold(0u32, |acc, b| acc << 8 | u32::from(*b));
        for place in 0..4 {
            let digit = (bits >> (18 - 6 * place) & 63) as usize;
            out.push(if place <= chunk.len() { DIGITS[digit] as char } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::world::{World, WorldConfig};
    use crate::key::Key;

    /// RFC 4648, section 10.
    #[test]
    fn base64_gives_the_published_vectors() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn the_sheet_shows_each_picture_in_its_cell() {
        let images = World::new(WorldConfig::default(), Key::from_seed(1)).unwrap().pool(5);
        let sheet = contact_sheet(&images, 3).unwrap();
        let decoded = image::load_from_memory(&sheet.png).unwrap().to_rgb8();
        assert_eq!(decoded.dimensions(), (3 * 136 + 8, 2 * 136 + 8));
        // The fifth picture's pixel (x 7, y 3): second row, second column.
        let pixel = decoded.get_pixel(136 + 8 + 7 * 4, 136 + 8 + 3 * 4).0;
        let want = [0, 1, 2].map(|c| images.pixels[4 * PIXELS + c * SIDE * SIDE + 3 * SIDE + 7]);
        assert_eq!(pixel, want);
        assert_eq!(sheet.text.lines().count(), 5);
        assert_eq!(sheet.svg.matches("<image").count(), 5);
        assert!(contact_sheet(&World::new(WorldConfig::default(), Key::from_seed(1)).unwrap().pool(0), 3).is_err());
    }
}
