//! Images → the pixels a CLIP expects: resize, centre crop, rescale, normalise.
//!
//! Equal to transformers' PIL backend (`CLIPImageProcessorPil`, the "slow" processor, and OpenAI's own code). Its
//! torchvision backend resizes tensors without Pillow's 8-bit step between the passes and differs by a grey level here
//! and there.

use std::borrow::Cow;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use serde_json::Value;

use crate::error::{Error, Place, Result};
use crate::fsx;
use crate::nn::kernels::resample::{Filter, resize};

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
    /// Whether to fill up to a square first, as LLaVA does; the colour is the mean, the image stays in the middle.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub do_pad: bool,
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
            do_pad: false,
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
        let json: Value = fsx::read_json(&path)?;
        let section = match (json.get("image_processor"), path.ends_with("processor_config.json")) {
            (Some(section), _) => section,
            (None, true) => return Err(Error::data(format!("{}: no image_processor in it", path.display()))),
            (None, false) => &json,
        };
        understood(section).at(|| path.display().to_string())?;
        sized(section).at(|| path.display().to_string())?;
        let read: Preprocess = fsx::json(&section.to_string()).map_err(|e| {
            let said = e.message().split_once(": ").map_or(e.message(), |(_, m)| m).to_string();
            Error::data(format!("{}: {said}", path.display()))
        })?;
        read.check().at(|| path.display().to_string())?;
        Ok(read)
    }

    /// Refuses sizes that no picture has, and deviations that divide by nothing.
    fn check(&self) -> Result<()> {
        for (key, size) in [("size", self.size), ("crop_size", self.crop_size)] {
            let (height, width) = size.cropped();
            if !(1..=SIDE).contains(&height) || !(1..=SIDE).contains(&width) {
                return Err(Error::data(format!("{key} = {height} × {width} pixels, expected 1 to {SIDE}")));
            }
        }
        if !self.image_std.iter().all(|s| s.is_finite() && *s > 0.0) {
            return Err(Error::data(format!("image_std = {:?}, expected numbers above 0", self.image_std)));
        }
        if self.do_rescale && !(self.rescale_factor > 0.0 && self.rescale_factor <= 1.0) {
            let text = format!("rescale_factor = {}, expected a number above 0, at most 1", self.rescale_factor);
            return Err(Error::data(text));
        }
        let exact = matches!(self.size, Size::Exact { .. });
        match self.do_center_crop || self.do_resize && (exact || self.do_pad) {
            true => Ok(()),
            false => Err(Error::data("do_center_crop = false: pictures come out in sizes of their own")
                .hint("a CLIP sees one size: size with height and width, or a centre crop")),
        }
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
        let kind = if self.do_pad { "LlavaImageProcessor" } else { "CLIPImageProcessor" };
        json["image_processor_type"] = kind.into();
        serde_json::to_string_pretty(&json).map_err(defect)
    }

    /// `(height, width)` of what [`Preprocess::pixels`] gives for an image of this size.
    pub fn output(&self, height: usize, width: usize) -> (usize, usize) {
        let (height, width) = if self.do_pad { (height.max(width), height.max(width)) } else { (height, width) };
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
        // The middle of a picture that is longer than anybody sees: scaled whole it would not end.
        let most = height.min(width).saturating_mul(THIN);
        if self.do_center_crop && self.do_resize && !self.do_pad && height.max(width) > most {
            let to = (height.min(most), width.min(most));
            bytes = crop(&bytes, (height, width), to).into();
            (height, width) = to;
        }
        if self.do_pad && height != width {
            let side = height.max(width);
            refuse_large(side, side)?;
            // Python: int(255 * mean).
            bytes = pad(&bytes, (height, width), side, self.image_mean.map(|m| (255.0 * f64::from(m)) as u8)).into();
            (height, width) = (side, side);
        }
        if self.do_resize {
            let to = self.size.resized(height, width);
            refuse_large(to.0, to.1)?;
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

/// Longest side that a processor makes.
const SIDE: usize = 8192;
/// Most pixels of a picture that is filled up or scaled, before it is cut.
const PIXELS: usize = 1 << 28;
/// How many times as long as wide a picture is scaled whole, where its middle is all that is looked at.
const THIN: usize = 16;

fn refuse_large(height: usize, width: usize) -> Result<()> {
    match height.checked_mul(width).is_some_and(|n| n <= PIXELS) {
        true => Ok(()),
        false => Err(Error::data(format!("a picture of {height} × {width} pixels when scaled, the most is {PIXELS}"))
            .hint("it is too thin: cut its middle out")),
    }
}

/// Keys that do not change what a picture becomes here.
const HARMLESS: [&str; 21] = [
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "do_convert_rgb",
    "data_format",
    "input_data_format",
    "device",
    "disable_grouping",
    "return_tensors",
    "default_to_square",
    "image_seq_length",
    "patch_size",
    "vision_feature_select_strategy",
    "num_additional_image_tokens",
    "image_token",
    "auto_map",
    "_valid_processor_keys",
    "use_fast",
    "model_input_names",
    "_name_or_path",
    "transformers_version",
];

/// Refuses a processor with keys that change pixels in ways that are not understood. What is off, or null, changes
/// nothing.
fn understood(section: &Value) -> Result<()> {
    let known = serde_json::to_value(Preprocess { do_pad: true, ..Preprocess::default() }).unwrap_or_default();
    let kind = section["image_processor_type"].as_str().or_else(|| section["feature_extractor_type"].as_str());
    let kind = kind.unwrap_or_default();
    if section["do_pad"] == true && !kind.is_empty() && !kind.starts_with("LlavaImageProcessor") {
        return Err(
            Error::data(format!("do_pad = true of a {kind} is not understood")).hint("LlavaImageProcessor's do_pad is")
        );
    }
    for (key, value) in section.as_object().into_iter().flatten() {
        let idle = value.is_null() || value == false || HARMLESS.contains(&key.as_str());
        if !idle && known.get(key).is_none() {
            return Err(Error::data(format!("{key} = {value} may change pixels and is not understood")).hint(
                "the model would see other pictures than it was trained on; take a CLIP's or LLaVA-1.5's processor",
            ));
        }
    }
    Ok(())
}

/// Refuses sizes of another form by their keys.
fn sized(section: &Value) -> Result<()> {
    for key in ["size", "crop_size"] {
        if let Some(value) = section.get(key).filter(|v| fsx::json::<Size>(&v.to_string()).is_err()) {
            return Err(Error::data(format!("{key} = {value} is not understood"))
                .hint("height and width, shortest_edge, or one number are"));
        }
    }
    Ok(())
}

/// A square of this side with the image in its middle.
fn pad(image: &[u8], (height, width): (usize, usize), side: usize, colour: [u8; 3]) -> Vec<u8> {
    let (top, left) = ((side - height) / 2, (side - width) / 2);
    let mut out = Vec::with_capacity(3 * side * side);
    for (plane, fill) in image.chunks_exact(height * width).zip(colour) {
        let at = out.len();
        out.resize(at + side * side, fill);
        for (y, row) in plane.chunks_exact(width).enumerate() {
            let from = at + (top + y) * side + left;
            out[from..from + width].copy_from_slice(row);
        }
    }
    out
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

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<Preprocess> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("preprocessor_config.json"), text).unwrap();
        Preprocess::open(dir.path())
    }

    #[test]
    fn a_wide_picture_is_filled_up_to_a_square_in_the_colour_of_the_mean() {
        let plain = Preprocess { do_resize: false, do_center_crop: false, ..Preprocess::default() };
        let wide: Vec<u8> = (0..3 * 2 * 4).collect();
        let fill = plain.image_mean.map(|m| (255.0 * m) as u8);
        assert_eq!(fill, [122, 116, 104]);
        let mut square = Vec::new();
        for c in 0..3 {
            square.extend([fill[c]; 4]);
            square.extend(&wide[8 * c..8 * c + 8]);
            square.extend([fill[c]; 4]);
        }
        let pixels = |p: &Preprocess, height: usize, data: &[u8]| {
            p.pixels(&Picture { height, width: 4, pixels: data.into() }).unwrap()
        };
        let padded = Preprocess { do_pad: true, ..plain.clone() };
        assert_eq!(pixels(&padded, 2, &wide), pixels(&plain, 4, &square));
        assert_eq!((padded.output(2, 4), plain.output(2, 4)), ((4, 4), (2, 4)));
    }

    #[test]
    fn keys_that_change_pixels_are_understood_or_refused() {
        assert!(
            open(r#"{"image_processor_type": "LlavaImageProcessor", "do_pad": true, "pad_size": null}"#)
                .unwrap()
                .do_pad
        );
        assert!(
            !open(r#"{"image_processor_type": "CLIPImageProcessorFast", "do_pad": false, "do_flip": false}"#)
                .unwrap()
                .do_pad
        );
        for (text, key) in [
            (r#"{"image_processor_type": "SiglipImageProcessor", "do_pad": true}"#, "do_pad"),
            (r#"{"do_flip_channel_order": true}"#, "do_flip_channel_order"),
            (r#"{"size_divisor": 32}"#, "size_divisor"),
            (r#"{"do_resize": "yes"}"#, "expected true or false"),
            (r#"{"size": {"longest_edge": 40}}"#, "size = {\"longest_edge\":40} is not understood"),
            (r#"{"do_center_crop": false}"#, "do_center_crop = false"),
            (r#"{"rescale_factor": 0}"#, "rescale_factor = 0"),
        ] {
            let e = open(text).unwrap_err().to_string();
            assert!(e.contains(key) && e.contains("preprocessor_config.json"), "{e}");
        }
        assert!(open(r#"{"do_center_crop": false, "size": {"height": 8, "width": 8}}"#).is_ok());
    }
}
