//! A picture in tiles, as Idefics3's image processor cuts it (Pillow's Lanczos, each step on the 8-bit result of the one
//! before).

use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::super::folder::{processor, three};
use super::super::pixels::{Pixels, Planes, tables};
use crate::error::{Error, Place, Result};
use crate::nn::kernels::resample::Filter;

/// Sides above this are scaled down, whatever the settings say.
const MOST: usize = 4096;

/// The image part of `preprocessor_config.json` (the Hub) or `processor_config.json` (transformers 5).
#[derive(Clone, Debug, PartialEq)]
pub struct Tiling {
    /// Side of a tile, in pixels.
    pub tile: usize,
    /// What the longer side is resized to first, in pixels.
    pub longest: usize,
    /// Whether pictures are cut in tiles at all.
    pub split: bool,
    filter: Filter,
    tables: Box<[[f32; 256]; 3]>,
}

/// A picture's tiles.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    /// Rows and columns; 0 × 0 where there is one tile only.
    pub grid: [usize; 2],
    /// Row by row, and then the whole.
    pub tiles: Vec<Planes>,
}

/// Sizes on the way, `(height, width)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub first: (usize, usize),
    pub second: (usize, usize),
}

impl Tiling {
    /// Reads the folder's settings.
    pub fn open(folder: &Path) -> Result<Self> {
        let (json, path) = processor(folder)?;
        Self::from_json(&json).at(|| path.display().to_string())
    }

    fn from_json(json: &Value) -> Result<Self> {
        let edge = |key: &str, default: u64| {
            let value = json.get(key).map_or(Some(default), |v| v["longest_edge"].as_u64());
            value
                .filter(|e| *e > 0)
                .map(|e| e as usize)
                .ok_or_else(|| Error::data(format!("{key} has no longest_edge")))
        };
        let on = |key: &str| json.get(key).is_none_or(|v| *v == true);
        if let Some(off) = ["do_resize", "do_rescale", "do_normalize", "do_convert_rgb"].into_iter().find(|k| !on(k)) {
            return Err(Error::data(format!("{off} = false is not supported")));
        }
        let three = |key: &str| three(json, key, [0.5; 3]);
        let filter = match json.get("resample").and_then(Value::as_u64) {
            None => Filter::Lanczos,
            Some(code) => {
                u8::try_from(code).map_err(|e| e.to_string()).and_then(Filter::try_from).map_err(Error::data)?
            }
        };
        let factor = json.get("rescale_factor").and_then(Value::as_f64).unwrap_or(1.0 / 255.0);
        let tile = edge("max_image_size", 364)?;
        if tile > MOST {
            return Err(Error::data(format!("max_image_size: a side of {tile} pixels, expected 1 to {MOST}")));
        }
        Ok(Tiling {
            tile,
            longest: edge("size", 4 * 364)?,
            split: on("do_image_splitting"),
            filter,
            tables: Box::new(tables(factor, three("image_mean")?, three("image_std")?)),
        })
    }

    /// Sizes on the way of a picture `(height, width)`.
    pub(super) fn sizes(&self, (height, width): (usize, usize)) -> Sizes {
        let (l, t) = (self.longest, self.tile);
        let even = |n: f64| (n as usize + n as usize % 2).max(1);
        let ratio = width as f64 / height as f64;
        let (mut h, mut w) = if width >= height { (even(l as f64 / ratio), l) } else { (l, even(l as f64 * ratio)) };
        let ratio = w as f64 / h as f64;
        if w >= h && w > MOST {
            (h, w) = (((MOST as f64 / ratio) as usize).max(1), MOST);
        } else if h > w && h > MOST {
            (h, w) = (MOST, ((MOST as f64 * ratio) as usize).max(1));
        }
        let first = (h, w);
        if !self.split {
            return Sizes { first, second: (t, t) };
        }
        let (up, ratio) = (|n: usize| n.div_ceil(t) * t, w as f64 / h as f64);
        let second = if w >= h {
            let w = up(w);
            (up((w as f64 / ratio) as usize), w)
        } else {
            let h = up(h);
            (h, up((h as f64 * ratio) as usize))
        };
        Sizes { first, second }
    }

    /// Rows and columns of tiles of a picture of the second size; 0 × 0: it is one tile.
    pub(super) fn grid(&self, (height, width): (usize, usize)) -> [usize; 2] {
        match height > self.tile || width > self.tile {
            true => [height.div_ceil(self.tile), width.div_ceil(self.tile)],
            false => [0, 0],
        }
    }

    /// Cuts a picture.
    pub(super) fn cut(&self, picture: &Planes) -> Result<Cut> {
        let (sizes, t) = (self.sizes((picture.height, picture.width)), self.tile);
        let whole = picture.resized(sizes.first, self.filter)?.resized(sizes.second, self.filter)?;
        let grid @ [rows, columns] = self.grid(sizes.second);
        let mut tiles = Vec::with_capacity(rows * columns + 1);
        for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
            tiles.push(whole.part((row * t, column * t), (t, t))?);
        }
        tiles.push(whole.resized((t, t), self.filter)?);
        Ok(Cut { grid, tiles })
    }
}

impl Cut {
    /// `(tiles, 3, T, T)`.
    pub fn pixels(&self, tiling: &Tiling, device: &Device) -> Result<Pixels> {
        let numbers: Vec<f32> = self.tiles.iter().flat_map(|t| t.numbers(&tiling.tables)).collect();
        let shape = (self.tiles.len(), 3, tiling.tile, tiling.tile);
        Ok(Pixels { tensors: vec![Tensor::from_vec(numbers, shape, device)?], grids: vec![self.grid] })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::golden::{folders, json};
    use super::*;

    fn tiling(longest: usize, tile: usize) -> Tiling {
        let json =
            serde_json::json!({ "size": { "longest_edge": longest }, "max_image_size": { "longest_edge": tile } });
        Tiling::from_json(&json).unwrap()
    }

    #[test]
    fn a_tile_that_no_memory_holds_is_refused() {
        for tile in [MOST as u64 + 1, 1 << 31, u64::MAX] {
            let json = serde_json::json!({ "max_image_size": { "longest_edge": tile } });
            assert!(Tiling::from_json(&json).unwrap_err().to_string().contains("max_image_size"));
        }
    }

    /// By hand: 77 × 45 at 2048 / 512.
    #[test]
    fn a_thumbnail_is_enlarged_and_cut_in_tiles() {
        let tiling = tiling(2048, 512);
        let sizes = tiling.sizes((45, 77));
        assert_eq!(sizes, Sizes { first: (1196, 2048), second: (1536, 2048) });
        assert_eq!(tiling.grid(sizes.second), [3, 4]);
    }

    #[test]
    fn sizes_are_the_references_at_real_sizes() {
        let Some((_, root)) = folders("smolvlm").into_iter().next_back() else { return };
        let path = root.join("tables/idefics3_tiles.json");
        if !path.is_file() {
            return;
        }
        for row in json(&path).as_array().unwrap() {
            let n = |key: &str| row[key].as_u64().unwrap() as usize;
            let tiling = tiling(n("longest_edge"), n("tile"));
            let sizes = tiling.sizes((n("height"), n("width")));
            assert_eq!(serde_json::json!(sizes.first), row["first_resize"], "{row}");
            assert_eq!(serde_json::json!(sizes.second), row["second_resize"], "{row}");
            let [rows, columns] = tiling.grid(sizes.second);
            assert_eq!([rows, columns, rows * columns + 1], [n("rows"), n("cols"), n("tiles")], "{row}");
        }
    }
}
