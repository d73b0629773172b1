//! Images → the pixels a CLIP expects: resize, centre crop, rescale, normalise.
//!
//! Equal to transformers' PIL backend (`CLIPImageProcessorPil`, the "slow" processor, and OpenAI's own code). Its
//! torchvision backend resizes tensors without Pillow's 8-bit step between the passes and differs by a grey level here
//! and there.

use std::borrow::Cow;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::resize::{Filter, resize};
use crate::error::{Error, Result};
use crate::fsx;

/// An 8-bit RGB image, `(3, height, width)`.
#[derive(Clone, Debug)]
pub struct Picture<'a> {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `3 · height · width` bytes, one colour plane after the other.
    pub pixels: Cow<'a, [u8]>,
}

/// Sizes as published configs write them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// The shorter side; the longer one follows.
    Shortest {
        /// Pixels.
        shortest_edge: usize,
    },
    /// Both sides.
    Exact {
        /// Pixels.
        height: usize,
        /// Pixels.
        width: usize,
    },
    /// Old files: the shorter side of a resize, both sides of a crop.
    Number(usize),
}

impl Size {
    fn resized(self, height: usize, width: usize) -> (usize, usize) {
        match self {
            Size::Exact { height, width } => (height, width),
            Size::Shortest { shortest_edge: edge } | Size::Number(edge) => {
                // Python: int(edge * long / short).
                let longer = |long: usize, short: usize| (edge as f64 * long as f64 / short as f64) as usize;
                if width <= height { (longer(height, width), edge) } else { (edge, longer(width, height)) }
            }
        }
    }

    fn cropped(self) -> (usize, usize) {
        match self {
            Size::Exact { height, width } => (height, width),
            Size::Shortest { shortest_edge: edge } | Size::Number(edge) => (edge, edge),
        }
    }
}

/// The image part of `preprocessor_config.json` or `processor_config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Preprocess {
    /// Whether to resize.
    pub do_resize: bool,
    /// To what.
    pub size: Size,
    /// How.
    pub resample: Filter,
    /// Whether to cut out the centre; what lies outside the image is black.
    pub do_center_crop: bool,
    /// How much.
    pub crop_size: Size,
    /// Whether to multiply.
    pub do_rescale: bool,
    /// By what.
    pub rescale_factor: f64,
    /// Whether to subtract the mean and divide by the standard deviation.
    pub do_normalize: bool,
    /// Per channel.
    pub image_mean: [f32; 3],
    /// Per channel.
    pub image_std: [f32; 3],
}

impl Default for Preprocess {
    /// OpenAI's.
    fn default() -> Self {
        Preprocess {
            do_resize: true,
            size: Size::Shortest { shortest_edge: 224 },
            resample: Filter::Bicubic,
            do_center_crop: true,
            crop_size: Size::Exact { height: 224, width: 224 },
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: [0.48145466, 0.4578275, 0.40821073],
            image_std: [0.26862954, 0.261_302_6, 0.275_777_1],
        }
    }
}

impl Preprocess {
    /// OpenAI's steps for images of another side.
    pub fn square(side: usize) -> Self {
        Preprocess {
            size: Size::Shortest { shortest_edge: side },
            crop_size: Size::Exact { height: side, width: side },
            ..Preprocess::default()
        }
    }

    /// Reads the folder's `preprocessor_config.json` (the Hub) or `processor_config.json` (transformers 5).
    pub fn open(folder: &Path) -> Result<Preprocess> {
        let (alone, joint) = (folder.join("preprocessor_config.json"), folder.join("processor_config.json"));
        let path = if alone.is_file() { alone } else { joint };
        if !path.is_file() {
            return Err(Error::input(format!("{}: no preprocessor_config.json here", folder.display())));
        }
        let bad = |e: serde_json::Error| Error::data(format!("{}: {e}", path.display()));
        let json: serde_json::Value = serde_json::from_str(&fsx::read_text(&path)?).map_err(bad)?;
        let section = json.get("image_processor").unwrap_or(&json);
        serde_json::from_value(section.clone()).map_err(bad)
    }

    /// The file transformers reads.
    pub fn to_json(&self) -> Result<String> {
        let defect = |e: serde_json::Error| Error::defect(format!("preprocessor_config.json: {e}"));
        let mut json = serde_json::to_value(self).map_err(defect)?;
        // f32 as the shortest decimal, not as its f64 neighbour.
        for (key, values) in [("image_mean", self.image_mean), ("image_std", self.image_std)] {
            let short: Result<Vec<f64>, _> = values.iter().map(|v| v.to_string().parse::<f64>()).collect();
            json[key] = short.map_err(|e| Error::defect(e.to_string()))?.into();
        }
        json["do_convert_rgb"] = true.into();
        json["image_processor_type"] = "CLIPImageProcessor".into();
        serde_json::to_string_pretty(&json).map_err(defect)
    }

    /// `(height, width)` of what [`Preprocess::pixels`] gives for an image of this size.
    pub fn output(&self, height: usize, width: usize) -> (usize, usize) {
        match (self.do_center_crop, self.do_resize) {
            (true, _) => self.crop_size.cropped(),
            (false, true) => self.size.resized(height, width),
            (false, false) => (height, width),
        }
    }

    /// `(3, height, width)` numbers of one image.
    pub fn pixels(&self, image: &Picture) -> Result<Vec<f32>> {
        let (mut height, mut width) = (image.height, image.width);
        if height == 0 || width == 0 || image.pixels.len() != 3 * height * width {
            return Err(Error::data(format!("image of {} bytes as (3, {height}, {width})", image.pixels.len())));
        }
        let mut bytes = Cow::Borrowed(&*image.pixels);
        if self.do_resize {
            let to = self.size.resized(height, width);
            bytes = resize(&bytes, (3, height, width), to, self.resample)?.into();
            (height, width) = to;
        }
        if self.do_center_crop {
            let to = self.crop_size.cropped();
            bytes = crop(&bytes, (height, width), to).into();
            (height, width) = to;
        }
        let tables = [0, 1, 2].map(|channel| self.table(channel));
        let planes = bytes.chunks_exact(height * width).zip(&tables);
        Ok(planes.flat_map(|(plane, table)| plane.iter().map(|b| table[*b as usize])).collect())
    }

    /// `(n, 3, height, width)` on `device`; the images must come out in one size.
    pub fn batch(&self, images: &[Picture], device: &Device) -> Result<Tensor> {
        let sizes: Vec<_> = images.iter().map(|p| self.output(p.height, p.width)).collect();
        let (height, width) = sizes.first().copied().unwrap_or((0, 0));
        if let Some(other) = sizes.iter().find(|s| **s != (height, width)) {
            return Err(Error::data(format!("images of {other:?} and {:?} pixels in one batch", (height, width)))
                .hint("this preprocessor does not crop; embed them one by one"));
        }
        let mut all = Vec::with_capacity(images.len() * 3 * height * width);
        for image in images {
            all.extend(self.pixels(image)?);
        }
        Ok(Tensor::from_vec(all, (images.len(), 3, height, width), device)?)
    }

    /// What each byte becomes: f64 product rounded to f32, then f32 arithmetic, as numpy does it.
    fn table(&self, channel: usize) -> [f32; 256] {
        std::array::from_fn(|byte| {
            let scaled = if self.do_rescale { (byte as f64 * self.rescale_factor) as f32 } else { byte as f32 };
            match self.do_normalize {
                true => (scaled - self.image_mean[channel]) / self.image_std[channel],
                false => scaled,
            }
        })
    }
}

/// The centre of each plane; outside is 0.
fn crop(image: &[u8], (height, width): (usize, usize), (to_height, to_width): (usize, usize)) -> Vec<u8> {
    let start = |from: usize, to: usize| (from as i64 - to as i64).div_euclid(2);
    let (top, left) = (start(height, to_height), start(width, to_width));
    let mut out = Vec::with_capacity(image.len() / (height * width) * to_height * to_width);
    for plane in image.chunks_exact(height * width) {
        for y in (0..to_height as i64).map(|y| y + top) {
            let row = usize::try_from(y).ok().filter(|y| *y < height).map(|y| &plane[y * width..(y + 1) * width]);
            out.extend((0..to_width as i64).map(|x| {
                let x = usize::try_from(x + left).ok();
                row.and_then(|row| row.get(x?)).copied().unwrap_or(0)
            }));
        }
    }
    out
}
