//! Image files to pixels: JPEG, PNG and WebP bytes to `(3, H, W)` bytes, many at once.

use image::RgbImage;
use image::imageops::{self, FilterType};
use rayon::prelude::*;

use super::dataset::Images;
use crate::error::{Error, Place, Result};
use crate::exec::Context;

/// Decodes an image file of any known format to RGB.
pub fn rgb(bytes: &[u8]) -> Result<RgbImage> {
    match image::load_from_memory(bytes) {
        Ok(image) => Ok(image.into_rgb8()),
        Err(e) => Err(Error::data(format!("not a readable image: {e}"))),
    }
}

/// Scales the shorter side to `side` (bicubic) and cuts the middle square: `(side, side)`.
pub fn square(image: &RgbImage, side: u32) -> RgbImage {
    let (w, h) = image.dimensions();
    if (w, h) == (side, side) {
        return image.clone();
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

/// Decodes `count` images of one size on `cx.threads` threads; `bytes(i)` gives file `i`, `side` scales it.
///
/// Without `side` every image must have the size of the first. The first failing image, by index, is the error.
pub fn all<B: AsRef<[u8]>>(
    cx: &Context,
    count: usize,
    side: Option<usize>,
    bytes: impl Fn(usize) -> Result<B> + Sync,
) -> Result<Images> {
    let one = |i: usize| -> Result<RgbImage> {
        let image = rgb(bytes(i)?.as_ref())?;
        Ok(side.map_or_else(|| image.clone(), |s| square(&image, s as u32)))
    };
    if count == 0 {
        return Err(Error::data("there is no image"));
    }
    let (w, h) = one(0).at(|| "image 0")?.dimensions();
    let size = 3 * w as usize * h as usize;
    let decode = |(chunk, out): (usize, &mut [u8])| -> Result<()> {
        cx.cancel.check()?;
        let mut pixels = Vec::with_capacity(size);
        for (k, target) in out.chunks_exact_mut(size).enumerate() {
            let i = chunk * CHUNK + k;
            let image = one(i).at(|| format!("image {i}"))?;
            if image.dimensions() != (w, h) {
                let (iw, ih) = image.dimensions();
                return Err(Error::data(format!("image {i} is {iw}×{ih}, the first is {w}×{h}"))
                    .hint("set a size to scale all of them"));
            }
            pixels.clear();
            planes(&image, &mut pixels);
            target.copy_from_slice(&pixels);
        }
        Ok(())
    };
    let mut pixels = vec![0u8; count * size];
    let results: Vec<Result<()>> =
        on_threads(cx, || pixels.par_chunks_mut(size * CHUNK).enumerate().map(decode).collect())?;
    results.into_iter().collect::<Result<()>>()?;
    Images::new([3, h as usize, w as usize], pixels)
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

    #[test]
    fn decoded_images_are_planes_in_order_for_any_threads() {
        let file = |i: usize| Ok(png(2, 1, |x, _| [i as u8, x as u8, 9]));
        for threads in [1, 3] {
            let images = all(&Context::cpu(threads), 130, None, file).unwrap();
            assert_eq!(images.shape(), [3, 1, 2]);
            for i in 0..130 {
                assert_eq!(images.get(i), [i as u8, i as u8, 0, 1, 9, 9]);
            }
        }
    }

    #[test]
    fn a_damaged_or_odd_image_is_named() {
        let damaged = |i: usize| Ok(if i == 70 { vec![1, 2, 3] } else { png(1, 1, |_, _| [0; 3]) });
        let e = all(&Context::cpu(2), 100, None, damaged).unwrap_err().to_string();
        assert!(e.starts_with("image 70: not a readable image"), "{e}");
        let odd = |i: usize| Ok(png(1 + i as u32, 1, |_, _| [0; 3]));
        assert!(all(&Context::cpu(1), 2, None, odd).unwrap_err().to_string().contains("image 1 is 2×1"));
        assert_eq!(all(&Context::cpu(1), 2, Some(4), odd).unwrap().shape(), [3, 4, 4]);
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
