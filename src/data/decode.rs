//! Image files to pixels: BMP, JPEG, PNG, PNM, TIFF and WebP bytes to `(3, H, W)` bytes, many at once.
//!
//! A picture is turned as its EXIF orientation says, as transformers' `load_image` and `datasets` turn it. A file that
//! was cut is refused in every format.

use std::io::Cursor;

use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};
use rayon::prelude::*;

use super::dataset::Images;
use crate::error::{Error, Result};
use crate::exec::Context;

/// Endings of image files that are read; what a file is, its first bytes say.
pub const ENDINGS: [&str; 14] =
    ["png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "dib", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"];

/// Whether an ending, in lower case, is an image's that is read.
pub fn is_read(ending: &str) -> bool {
    ENDINGS.contains(&ending)
}

/// Whether a file that begins with these bytes, or has this ending, is an image that is not read.
pub fn is_foreign(ending: &str, first: &[u8]) -> bool {
    const KNOWN: [&str; 20] = [
        "gif", "avif", "heic", "heif", "jxl", "jp2", "j2k", "tga", "ico", "psd", "svg", "exr", "hdr", "dds", "dng",
        "cr2", "nef", "arw", "raw", "pcx",
    ];
    KNOWN.contains(&ending) || image::guess_format(first).is_ok()
}

const FORMATS: &str = "BMP, JPEG, PNG, PNM, TIFF and WebP";

/// Decodes an image file of any known format to RGB, upright.
pub fn rgb(bytes: &[u8]) -> Result<RgbImage> {
    let refuse = |what: String| Err(Error::data(format!("not a readable image: {what}")));
    if bytes.is_empty() {
        return refuse("an empty file".into());
    }
    let Ok(format) = image::guess_format(bytes) else {
        return refuse(format!("its first bytes are those of no known format ({FORMATS} are read)"));
    };
    if !format.reading_enabled() {
        let name = format!("{format:?}").to_uppercase();
        return refuse(format!("a {name}, which is not read ({FORMATS} are)"));
    }
    if format == ImageFormat::Jpeg && !jpeg_ends(bytes) {
        return refuse("a JPEG that is cut off".into());
    }
    upright(bytes, format).or_else(|e| refuse(in_words(&e, format)))
}

fn upright(bytes: &[u8], format: ImageFormat) -> Result<RgbImage, ImageError> {
    let mut decoder = ImageReader::with_format(Cursor::new(bytes), format).into_decoder()?;
    Limits::default().reserve(decoder.total_bytes())?;
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

/// What is wrong with an image, without the library's words.
fn in_words(e: &ImageError, format: ImageFormat) -> String {
    let (name, said) = (format!("{format:?}").to_uppercase(), e.to_string().to_lowercase());
    let cut = ["end of file", "unexpected end", "eof", "failed to fill", "no more bytes", "not enough"];
    match e {
        ImageError::Limits(_) => format!("a {name} too large to decode"),
        ImageError::Unsupported(_) => format!("a {name} of a kind that is not read"),
        _ if cut.iter().any(|c| said.contains(c)) => format!("a {name} that is cut off"),
        _ => format!("a damaged {name}"),
    }
}

/// Whether a JPEG goes on to its end mark: the decoder fills what is missing with grey and says nothing.
pub(super) fn jpeg_ends(bytes: &[u8]) -> bool {
    if bytes.ends_with(&[0xff, 0xd9]) {
        return true;
    }
    let mut at = 2;
    while let Some(next) = bytes.get(at..).and_then(|rest| rest.windows(2).position(|w| w[0] == 0xff && marks(w[1]))) {
        at += next + 2;
        if bytes[at - 1] == 0xd9 {
            return true;
        }
        let length = bytes.get(at..at + 2).map_or(0, |b| usize::from(b[0]) << 8 | usize::from(b[1]));
        at += length;
    }
    false
}

/// Whether a byte behind 0xff begins a segment, or ends the image: neither filling, nor a restart, nor 0xff itself.
fn marks(byte: u8) -> bool {
    !matches!(byte, 0x00 | 0x01 | 0xd0..=0xd8 | 0xff)
}

/// How many times as long as wide a picture is scaled whole.
const THIN: u32 = 16;

/// Scales the shorter side to `side` (bicubic) and cuts the middle square: `(side, side)`.
///
/// Of a picture more than [`THIN`] times as long as wide the middle is taken first: scaled whole it would not end.
pub fn square(image: &RgbImage, side: u32) -> RgbImage {
    let (side, (w, h)) = (side.max(1), image.dimensions());
    if (w, h) == (side, side) {
        return image.clone();
    }
    let most = w.min(h).max(1).saturating_mul(THIN);
    if w.max(h) > most {
        let (mw, mh) = (w.min(most), h.min(most));
        return square(&imageops::crop_imm(image, (w - mw) / 2, (h - mh) / 2, mw, mh).to_image(), side);
    }
    let short = u64::from(w.min(h).max(1));
    let scaled = |n: u32| ((u64::from(n) * u64::from(side) + short / 2) / short).max(u64::from(side)) as u32;
    let (sw, sh) = (scaled(w), scaled(h));
    let resized = imageops::resize(image, sw, sh, FilterType::CatmullRom);
    imageops::crop_imm(&resized, (sw - side) / 2, (sh - side) / 2, side, side).to_image()
}

/// Interleaved `(H, W, 3)` to planes `(3, H, W)`, appended to `out`.
pub fn planes(image: &RgbImage, out: &mut Vec<u8>) {
    for channel in 0..3 {
        out.extend(image.as_raw().iter().skip(channel).step_by(3));
    }
}

/// Interleaved `(H, W, 3)` as planes `(3, H, W)`.
pub fn to_planes(image: &RgbImage) -> Vec<u8> {
    let mut out = Vec::with_capacity(image.as_raw().len());
    planes(image, &mut out);
    out
}

/// Planes `(3, H, W)` or `(1, H, W)` back to an RGB image.
pub fn from_planes(pixels: &[u8], shape: [usize; 3]) -> Result<RgbImage> {
    let [channels, h, w] = shape;
    let plane = h * w;
    if !matches!(channels, 1 | 3) || pixels.len() != channels * plane {
        return Err(Error::defect(format!("image: {} bytes of shape {shape:?}, expected 1 or 3 planes", pixels.len())));
    }
    let step = if channels == 3 { plane } else { 0 };
    let at = |x: u32, y: u32| {
        let i = y as usize * w + x as usize;
        image::Rgb([pixels[i], pixels[i + step], pixels[i + 2 * step]])
    };
    Ok(RgbImage::from_fn(w as u32, h as u32, at))
}

/// Decodes `count` images of one size on `cx.threads` threads; `bytes(i)` gives file `i`, `name(i)` is what people call
/// it, `side` scales it.
///
/// Without `side` every image must have the size of the first. Images that cannot be decoded are an error that names
/// the first ten.
pub fn all<B: AsRef<[u8]>>(
    cx: &Context,
    count: usize,
    side: Option<usize>,
    name: impl Fn(usize) -> String + Sync,
    bytes: impl Fn(usize) -> Result<B> + Sync,
) -> Result<Images> {
    let one = |i: usize| -> Result<RgbImage> {
        let image = rgb(bytes(i)?.as_ref())?;
        Ok(side.map_or_else(|| image.clone(), |s| square(&image, s as u32)))
    };
    let (w, h) = match side {
        Some(side) => (side as u32, side as u32),
        None => (0..count).find_map(|i| one(i).ok()).map_or((1, 1), |image| image.dimensions()),
    };
    let size = 3 * w as usize * h as usize;
    let decode = |(chunk, out): (usize, &mut [u8])| -> Result<Vec<String>> {
        cx.cancel.check()?;
        let (mut pixels, mut failed) = (Vec::with_capacity(size), Vec::new());
        for (k, target) in out.chunks_exact_mut(size).enumerate() {
            let i = chunk * CHUNK + k;
            match one(i) {
                Ok(image) if image.dimensions() == (w, h) => {
                    pixels.clear();
                    planes(&image, &mut pixels);
                    target.copy_from_slice(&pixels);
                }
                Ok(image) => {
                    let (iw, ih) = image.dimensions();
                    failed.push(format!("{} is {iw}×{ih}, the first is {w}×{h}", name(i)));
                }
                Err(e) => failed.push(format!("{}: {}", name(i), e.message())),
            }
        }
        Ok(failed)
    };
    let all = count.checked_mul(size).filter(|n| isize::try_from(*n).is_ok());
    let mut pixels: Vec<u8> = Vec::new();
    if all.is_none_or(|n| pixels.try_reserve_exact(n).is_err()) {
        return Err(Error::environment(format!("no memory for {count} images of {w}×{h} pixels"))
            .hint("data.size makes them smaller; data.kind = \"list\" reads them from their files"));
    }
    pixels.resize(count * size, 0);
    let results: Vec<Result<Vec<String>>> =
        on_threads(cx, || pixels.par_chunks_mut(size * CHUNK).enumerate().map(decode).collect())?;
    match results.into_iter().collect::<Result<Vec<_>>>()?.concat() {
        _ if count == 0 => Err(Error::data("there is no image")),
        failed if failed.is_empty() => Images::new([3, h as usize, w as usize], pixels),
        failed => Err(useless(&failed, count)),
    }
}

fn useless(failed: &[String], count: usize) -> Error {
    let n = failed.len();
    let shown = failed[..n.min(10)].join("; ");
    let more = if n > 10 { "; …" } else { "" };
    let error = Error::data(format!("{n} of {count} images cannot be used: {shown}{more}"));
    match failed.iter().any(|f| f.contains(", the first is ")) {
        true => error.hint("set a size to scale all of them"),
        false => error.hint("a benchmark is read whole or not at all: mend these files, or take them out"),
    }
}

/// Images that one task decodes.
const CHUNK: usize = 64;

/// Runs data work on as many threads as the context allows.
pub fn on_threads<T: Send>(cx: &Context, work: impl FnOnce() -> T + Send) -> Result<T> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(cx.threads).build();
    Ok(pool.map_err(|e| Error::environment(format!("cannot start worker threads: {e}")))?.install(work))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A PNG of one pixel after the other.
    pub(crate) fn png(w: u32, h: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> Vec<u8> {
        let image = RgbImage::from_fn(w, h, |x, y| image::Rgb(pixel(x, y)));
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn number(i: usize) -> String {
        format!("image {i}")
    }

    fn written(format: ImageFormat) -> Vec<u8> {
        let image = RgbImage::from_fn(40, 24, |x, y| image::Rgb([6 * x as u8, 10 * y as u8, (x * y) as u8]));
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn a_cut_file_of_any_format_is_refused_in_plain_words() {
        use ImageFormat::{Bmp, Jpeg, Png, Pnm, Tiff, WebP};
        for format in [Bmp, Jpeg, Png, Pnm, Tiff, WebP] {
            let whole = written(format);
            assert_eq!(rgb(&whole).unwrap().dimensions(), (40, 24), "{format:?}");
            for cut in [0, 8, whole.len() / 2, whole.len() * 9 / 10] {
                let e = rgb(&whole[..cut]).unwrap_err().to_string();
                assert!(e.starts_with("not a readable image: ") && !e.contains("Error"), "{format:?} {cut}: {e}");
            }
        }
        let e = rgb(b"GIF89a and so on").unwrap_err().to_string();
        assert!(e.contains("a GIF, which is not read (BMP, JPEG"), "{e}");
    }

    /// A JPEG with an EXIF segment that holds orientation `n` alone.
    fn oriented(n: u8) -> Vec<u8> {
        let jpeg = written(ImageFormat::Jpeg);
        let mut exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
        exif.extend([n, 0, 0, 0, 0, 0, 0, 0]);
        let length = (exif.len() as u16 + 2).to_be_bytes();
        [&jpeg[..2], &[0xff, 0xe1], &length, &exif, &jpeg[2..]].concat()
    }

    #[test]
    fn a_picture_is_turned_as_its_exif_orientation_says() {
        let plain = rgb(&written(ImageFormat::Jpeg)).unwrap();
        assert_eq!(rgb(&oriented(1)).unwrap(), plain);
        assert_eq!(rgb(&oriented(3)).unwrap(), imageops::rotate180(&plain));
        assert_eq!(rgb(&oriented(6)).unwrap(), imageops::rotate90(&plain));
        assert_eq!(rgb(&oriented(8)).unwrap(), imageops::rotate270(&plain));
        assert_eq!(rgb(&oriented(2)).unwrap(), imageops::flip_horizontal(&plain));
    }

    #[test]
    fn decoded_images_are_planes_in_order_for_any_threads() {
        let file = |i: usize| Ok(png(2, 1, |x, _| [i as u8, x as u8, 9]));
        for threads in [1, 3] {
            let images = all(&Context::cpu(threads), 130, None, number, file).unwrap();
            assert_eq!(images.shape(), [3, 1, 2]);
            for i in 0..130 {
                assert_eq!(images.get(i), [i as u8, i as u8, 0, 1, 9, 9]);
            }
        }
    }

    #[test]
    fn a_damaged_or_odd_image_is_named() {
        let damaged = |i: usize| Ok(if i == 70 { vec![1, 2, 3] } else { png(1, 1, |_, _| [0; 3]) });
        let e = all(&Context::cpu(2), 100, None, number, damaged).unwrap_err().to_string();
        assert!(e.starts_with("1 of 100 images cannot be used: image 70: not a readable image"), "{e}");
        let odd = |i: usize| Ok(png(1 + i as u32, 1, |_, _| [0; 3]));
        assert!(all(&Context::cpu(1), 2, None, number, odd).unwrap_err().to_string().contains("image 1 is 2×1"));
        assert_eq!(all(&Context::cpu(1), 2, Some(4), number, odd).unwrap().shape(), [3, 4, 4]);
    }

    #[test]
    fn a_wide_image_keeps_its_middle_square() {
        let bytes = png(6, 2, |x, _| [if (2..4).contains(&x) { 255 } else { 0 }; 3]);
        let middle = square(&rgb(&bytes).unwrap(), 2);
        assert!(middle.as_raw().iter().all(|&v| v == 255), "{middle:?}");
    }

    #[test]
    fn planes_and_images_are_inverse() {
        let image = rgb(&png(3, 2, |x, y| [x as u8, y as u8, 7])).unwrap();
        let mut pixels = Vec::new();
        planes(&image, &mut pixels);
        assert_eq!(from_planes(&pixels, [3, 2, 3]).unwrap(), image);
    }
}
