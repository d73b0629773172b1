//! Pictures as numbers: 8-bit steps as Pillow does them, then each byte by a table.

use std::ops::Range;

use candle_core::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::clip::Picture;
use crate::nn::kernels::resample::{Filter, resize_across_first};

/// How pictures are read where it differs from the model's own settings: fewer tokens, less memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PictureConfig {
    /// SmolVLM: whether pictures are cut in tiles, each as many tokens as the whole.
    pub split: Option<bool>,
    /// SmolVLM: the longer side before pictures are cut, in pixels.
    pub longest_edge: Option<usize>,
    /// Qwen2.5-VL: fewest pixels of a picture.
    pub min_pixels: Option<usize>,
    /// Qwen2.5-VL: most pixels of a picture.
    pub max_pixels: Option<usize>,
    /// MiniCPM-V: most slices of a picture.
    pub max_slices: Option<usize>,
}

/// One picture, preprocessed.
#[derive(Clone, Debug)]
pub struct Pixels {
    /// LLaVA `(1, 3, S, S)`; SmolVLM `(tiles, 3, T, T)`; Qwen2.5-VL `(patches, 3 · 2 · p · p)`; MiniCPM-V one
    /// `(patches, 3 · p · p)` a slice, the whole picture first.
    pub tensors: Vec<Tensor>,
    /// Of each tensor: SmolVLM rows and columns of tiles; Qwen2.5-VL and MiniCPM-V rows and columns of patches.
    pub grids: Vec<[usize; 2]>,
}

/// An 8-bit RGB picture as planes, `(3, height, width)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Planes {
    pub height: usize,
    pub width: usize,
    pub bytes: Vec<u8>,
}

impl Planes {
    /// A decoded picture; its size and its bytes must agree.
    pub fn of(picture: &Picture) -> Result<Self> {
        let (height, width) = (picture.height, picture.width);
        if height == 0 || width == 0 || picture.pixels.len() != 3 * height * width {
            return Err(Error::data(format!("image of {} bytes as (3, {height}, {width})", picture.pixels.len())));
        }
        Ok(Planes { height, width, bytes: picture.pixels.to_vec() })
    }

    /// As Pillow resizes: along rows first, rounded to 8 bits, then along columns.
    pub fn resized(&self, (height, width): (usize, usize), filter: Filter) -> Result<Self> {
        if (height, width) == (self.height, self.width) {
            return Ok(self.clone());
        }
        let bytes = resize_across_first(&self.bytes, (3, self.height, self.width), (height, width), filter)?;
        Ok(Planes { height, width, bytes })
    }

    /// A rectangle of it.
    pub fn part(&self, (top, left): (usize, usize), (height, width): (usize, usize)) -> Result<Self> {
        if top + height > self.height || left + width > self.width {
            return Err(Error::defect(format!(
                "a part of {height}×{width} of a picture of {}×{}",
                self.height, self.width
            )));
        }
        let mut bytes = Vec::with_capacity(3 * height * width);
        for plane in self.bytes.chunks_exact(self.height * self.width) {
            for row in plane.chunks_exact(self.width).skip(top).take(height) {
                bytes.extend_from_slice(&row[left..left + width]);
            }
        }
        Ok(Planes { height, width, bytes })
    }

    /// Each byte by its channel's table, as planes.
    pub fn numbers(&self, tables: &[[f32; 256]; 3]) -> Vec<f32> {
        let planes = self.bytes.chunks_exact(self.height * self.width).zip(tables);
        planes.flat_map(|(plane, table)| plane.iter().map(|b| table[usize::from(*b)])).collect()
    }

    /// Square patches in reading order, `(patches, 3 · side · side)`; the sides are multiples of `side`.
    pub fn patches(&self, tables: &[[f32; 256]; 3], side: usize, device: &Device) -> Result<Tensor> {
        let (rows, columns) = (self.height / side, self.width / side);
        let numbers = self.numbers(tables);
        let mut out = Vec::with_capacity(numbers.len());
        for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
            for plane in numbers.chunks_exact(self.height * self.width) {
                for line in plane.chunks_exact(self.width).skip(row * side).take(side) {
                    out.extend_from_slice(&line[column * side..(column + 1) * side]);
                }
            }
        }
        Ok(Tensor::from_vec(out, (rows * columns, 3 * side * side), device)?)
    }
}

/// What each byte becomes: `(byte · factor − mean) / std`, the first product in f64, then f32, as numpy does it.
pub(super) fn tables(factor: f64, mean: [f32; 3], std: [f32; 3]) -> [[f32; 256]; 3] {
    let channel = |c: usize| std::array::from_fn(|byte| ((byte as f64 * factor) as f32 - mean[c]) / std[c]);
    [channel(0), channel(1), channel(2)]
}

/// Where `token` stands in `ids`, as runs; the n-th picture has `counts[n]` places. Another number is refused.
pub(super) fn slots(ids: &[u32], token: u32, counts: &[usize], mark: &str) -> Result<Vec<Range<usize>>> {
    let (mut slots, mut at) = (Vec::new(), 0);
    for run in ids.chunk_by(|a, b| (*a == token) == (*b == token)) {
        if run.first() == Some(&token) {
            slots.push(at..at + run.len());
        }
        at += run.len();
    }
    let (places, wanted): (usize, usize) = (slots.iter().map(ExactSizeIterator::len).sum(), counts.iter().sum());
    if places != wanted {
        return Err(Error::input(format!(
            "the prompt has {places} places of pictures, {} pictures fill {wanted}",
            counts.len()
        ))
        .hint(format!("write {mark} once for each picture, and nowhere else")));
    }
    Ok(slots)
}
