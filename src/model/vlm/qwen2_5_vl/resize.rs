//! Sizes of pictures, and pictures as patches, as Qwen2-VL's image processor has them.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::super::folder::{processor, three};
use super::super::pixels::{PictureConfig, Pixels, Planes, tables};
use crate::error::{Error, Place, Result};
use crate::nn::kernels::resample::Filter;

/// Longest side over shortest of a picture that is read.
const MOST_APART: f64 = 200.0;

/// The image part of `preprocessor_config.json` (the Hub) or `processor_config.json` (transformers 5).
#[derive(Clone, Debug, PartialEq)]
pub struct Resize {
    /// Side of a patch, in pixels.
    pub patch: usize,
    /// Patches a side that become one token.
    pub merge: usize,
    /// Pictures that a patch spans.
    pub frames: usize,
    /// Fewest pixels of a picture.
    pub min_pixels: usize,
    /// Most pixels of a picture.
    pub max_pixels: usize,
    tables: Box<[[f32; 256]; 3]>,
}

impl Resize {
    /// Reads the folder's settings.
    pub fn open(folder: &Path, how: &PictureConfig) -> Result<Self> {
        let (json, path) = processor(folder)?;
        Self::from_json(&json, how).at(|| path.display().to_string())
    }

    pub(super) fn from_json(json: &Value, how: &PictureConfig) -> Result<Self> {
        let count = |v: Option<&Value>, default: usize| v.and_then(Value::as_u64).map_or(default, |n| n as usize);
        let size = |old: &str, new: &str, default: usize| count(json.get(old), count(json["size"].get(new), default));
        let mean = three(json, "image_mean", [0.48145466, 0.4578275, 0.40821073])?;
        let std = three(json, "image_std", [0.26862954, 0.261_302_6, 0.275_777_1])?;
        let resize = Resize {
            patch: count(json.get("patch_size"), 14),
            merge: count(json.get("merge_size"), 2),
            frames: count(json.get("temporal_patch_size"), 2),
            min_pixels: how.min_pixels.unwrap_or(size("min_pixels", "shortest_edge", 56 * 56)),
            max_pixels: how.max_pixels.unwrap_or(size("max_pixels", "longest_edge", 28 * 28 * 1280)),
            tables: Box::new(tables(1.0 / 255.0, mean, std)),
        };
        let sizes = [resize.patch, resize.merge, resize.frames, resize.max_pixels];
        if sizes.contains(&0) || resize.min_pixels > resize.max_pixels {
            let (least, most) = (resize.min_pixels, resize.max_pixels);
            return Err(Error::data(format!("pictures of {least} to {most} pixels in patches of {}", resize.patch)));
        }
        Ok(resize)
    }

    /// `(height, width)` that a picture of `(height, width)` becomes: multiples of patch · merge.
    pub fn size(&self, (height, width): (usize, usize)) -> Result<(usize, usize)> {
        let (f, h, w) = ((self.patch * self.merge) as f64, height as f64, width as f64);
        if h.max(w) / h.min(w) > MOST_APART {
            return Err(Error::data(format!(
                "a picture of {height}×{width}: one side is more than {MOST_APART} times the other"
            )));
        }
        let near = |x: f64| (x / f).round_ties_even() * f;
        let (mut to_h, mut to_w) = (near(h), near(w));
        if to_h * to_w > self.max_pixels as f64 {
            let by = (h * w / self.max_pixels as f64).sqrt();
            let less = |x: f64| f.max((x / by / f).floor() * f);
            (to_h, to_w) = (less(h), less(w));
        } else if to_h * to_w < self.min_pixels as f64 {
            let by = (self.min_pixels as f64 / (h * w)).sqrt();
            let more = |x: f64| (x * by / f).ceil() * f;
            (to_h, to_w) = (more(h), more(w));
        }
        Ok((to_h as usize, to_w as usize))
    }

    /// Patches `(patches, 3 · frames · p · p)`, merged cell by merged cell, and their grid.
    pub(super) fn pixels(&self, picture: &Planes, device: &Device) -> Result<Pixels> {
        let (height, width) = self.size((picture.height, picture.width))?;
        let numbers = picture.resized((height, width), Filter::Bicubic)?.numbers(&self.tables);
        let grid = [height / self.patch, width / self.patch];
        let row = 3 * self.frames * self.patch * self.patch;
        let mut out = Vec::with_capacity(grid[0] * grid[1] * row);
        for [r, c] in super::tower::patch_places(grid, self.merge) {
            let (top, left) = (r as usize * self.patch, c as usize * self.patch);
            for plane in numbers.chunks_exact(height * width) {
                for _ in 0..self.frames {
                    for line in plane.chunks_exact(width).skip(top).take(self.patch) {
                        out.extend_from_slice(&line[left..left + self.patch]);
                    }
                }
            }
        }
        Ok(Pixels { tensors: vec![Tensor::from_vec(out, (grid[0] * grid[1], row), device)?], grids: vec![grid] })
    }
}
