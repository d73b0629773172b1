//! A picture as a whole and in slices (LLaVA-UHD's scheme; Xu et al., 2024), bicubic, always from the original.

use candle_core::{Device, Tensor};

use super::super::pixels::{Pixels, Planes};
use crate::error::Result;
use crate::nn::kernels::resample::Filter;

/// How pictures are sliced.
#[derive(Clone, Debug, PartialEq)]
pub struct Slicing {
    /// Most slices.
    pub most: usize,
    /// About as many pixels as this squared are in a slice.
    pub scale: usize,
    /// Side of a patch, in pixels.
    pub patch: usize,
    /// Whether a picture's number is said before it.
    pub numbered: bool,
    pub(super) tables: Box<[[f32; 256]; 3]>,
}

/// Sizes of a sliced picture; all (width, height), as the published code has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Of the whole.
    pub source: (usize, usize),
    /// Columns and rows of slices, and the size of one; none where it is not sliced.
    pub slices: Option<((usize, usize), (usize, usize))>,
}

impl Slicing {
    /// `max(round(side / patch) · patch, patch)`, halves to even.
    fn whole(&self, side: f64) -> usize {
        ((side / self.patch as f64).round_ties_even() as usize * self.patch).max(self.patch)
    }

    /// A size of about scale² pixels of the same shape.
    fn fit(&self, (w, h): (f64, f64)) -> (usize, usize) {
        let ratio = w / h;
        let height = (self.scale as f64 / ratio.sqrt()).trunc();
        (self.whole((height * ratio).trunc()), self.whole(height))
    }

    /// Columns and rows, if a picture is sliced.
    fn grid(&self, (w, h): (usize, usize)) -> Option<(usize, usize)> {
        let about = ((w * h) as f64 / (self.scale * self.scale) as f64).ceil() as usize;
        let count = about.min(self.most);
        if count <= 1 {
            return None;
        }
        let shape = (w as f64 / h as f64).ln();
        let mut best: Option<((usize, usize), f64)> = None;
        for slices in [count - 1, count, count + 1].into_iter().filter(|n| *n > 1 && *n <= self.most) {
            for columns in (1..=slices).filter(|c| slices.is_multiple_of(*c)) {
                let off = (shape - (columns as f64 / (slices / columns) as f64).ln()).abs();
                if best.is_none_or(|(_, least)| off < least) {
                    best = Some(((columns, slices / columns), off));
                }
            }
        }
        best.map(|(grid, _)| grid)
    }

    /// Sizes for a picture of (width, height).
    pub(super) fn sizes(&self, (w, h): (usize, usize)) -> Sizes {
        let fitted = self.fit((w as f64, h as f64));
        let Some((columns, rows)) = self.grid((w, h)) else { return Sizes { source: fitted, slices: None } };
        let large = w * h > self.scale * self.scale;
        let source = if large { fitted } else { (self.whole(w as f64), self.whole(h as f64)) };
        // Each side first becomes a multiple of the grid.
        let near = |side: usize, n: usize| ((side as f64 / n as f64).round_ties_even() as usize * n).max(n);
        let cell = (near(w, columns) as f64 / columns as f64, near(h, rows) as f64 / rows as f64);
        Sizes { source, slices: Some(((columns, rows), self.fit(cell))) }
    }

    /// The whole and the slices, row by row.
    pub(super) fn cut(&self, picture: &Planes) -> Result<(Sizes, Vec<Planes>)> {
        let sizes = self.sizes((picture.width, picture.height));
        let (width, height) = sizes.source;
        let mut all = vec![picture.resized((height, width), Filter::Bicubic)?];
        if let Some(((columns, rows), (w, h))) = sizes.slices {
            let refined = picture.resized((h * rows, w * columns), Filter::Bicubic)?;
            for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
                all.push(refined.part((row * h, column * w), (h, w))?);
            }
        }
        Ok((sizes, all))
    }

    /// Patches of each part.
    pub(super) fn pixels(&self, parts: &[Planes], device: &Device) -> Result<Pixels> {
        let one = |p: &Planes| p.patches(&self.tables, self.patch, device);
        let tensors: Vec<Tensor> = parts.iter().map(one).collect::<Result<_>>()?;
        let grids = parts.iter().map(|p| [p.height / self.patch, p.width / self.patch]).collect();
        Ok(Pixels { tensors, grids })
    }
}
