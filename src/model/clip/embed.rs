//! Features of many images or texts by a frozen CLIP: in chunks, on worker threads, with progress.

use candle_core::Tensor;

use super::{Clip, Picture, Preprocess, Tokenizer, normalise};
use crate::error::{Error, Result};
use crate::exec::{Context, Event, ordered};

/// Images or texts a worker handles at a time. Fixed, so that features do not depend on the number of threads.
const CHUNK: usize = 32;

/// Unit features of many items: row `i` is item `i`'s.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Length of a row.
    pub dim: usize,
    /// `(rows, dim)`.
    pub data: Vec<f32>,
}

impl Features {
    /// Rows that are already computed, for example published ones; they are normalised here.
    pub fn new(dim: usize, mut data: Vec<f32>) -> Result<Self> {
        if dim == 0 || !data.len().is_multiple_of(dim) {
            return Err(Error::data(format!("features: {} numbers in rows of {dim}", data.len())));
        }
        for (i, row) in data.chunks_exact_mut(dim).enumerate() {
            let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            if !norm.is_finite() || norm == 0.0 {
                return Err(Error::data(format!("features: row {i} has norm {norm}")));
            }
            row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
        }
        Ok(Features { dim, data })
    }

    /// Number of items.
    pub fn rows(&self) -> usize {
        self.data.len() / self.dim.max(1)
    }

    /// Item `i`'s features.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.dim..(i + 1) * self.dim]
    }
}

/// Unit image features of `count` images, each given by `load` when its turn comes.
pub fn images<'p>(
    clip: &Clip,
    preprocess: &Preprocess,
    count: usize,
    load: impl Fn(usize) -> Result<Picture<'p>> + Sync,
    cx: &Context,
) -> Result<Features> {
    let chunk = |range: std::ops::Range<usize>| {
        let pictures: Vec<Picture> = range.map(&load).collect::<Result<_>>()?;
        clip.image_features(&preprocess.batch(&pictures, clip.device())?)
    };
    chunks(clip, "embed images", "image", count, chunk, cx)
}

/// Unit image features of square images in one array: `(n, 3, side, side)` bytes.
pub fn squares(clip: &Clip, preprocess: &Preprocess, pixels: &[u8], side: usize, cx: &Context) -> Result<Features> {
    let bytes = 3 * side * side;
    if bytes == 0 || !pixels.len().is_multiple_of(bytes) {
        return Err(Error::defect(format!("embed: {} bytes as images of side {side}", pixels.len())));
    }
    let load =
        |i: usize| Ok(Picture { height: side, width: side, pixels: (&pixels[i * bytes..(i + 1) * bytes]).into() });
    images(clip, preprocess, pixels.len() / bytes, load, cx)
}

/// Unit text features.
pub fn texts<S: AsRef<str> + Sync>(clip: &Clip, tokenizer: &Tokenizer, texts: &[S], cx: &Context) -> Result<Features> {
    let chunk = |range: std::ops::Range<usize>| clip.text_features(&tokenizer.encode_all(&texts[range])?);
    chunks(clip, "embed texts", "text", texts.len(), chunk, cx)
}

fn chunks(
    clip: &Clip,
    name: &str,
    unit: &str,
    count: usize,
    chunk: impl Fn(std::ops::Range<usize>) -> Result<Tensor> + Sync,
    cx: &Context,
) -> Result<Features> {
    cx.events.on(Event::Begin { name, unit, done: 0, total: count as u64 });
    let threads = if clip.device().is_cpu() { cx.threads } else { 1 };
    let dim = clip.config().projection_dim;
    let mut data = Vec::with_capacity(count * dim);
    let job = |_: &mut (), i: usize| {
        cx.cancel.check()?;
        let rows = chunk(i * CHUNK..count.min((i + 1) * CHUNK))?;
        Ok(normalise(&rows)?.flatten_all()?.to_vec1::<f32>()?)
    };
    let fold = |_: usize, rows: Vec<f32>| {
        data.extend(rows);
        cx.events.on(Event::Advance { done: (data.len() / dim) as u64, figures: &[] });
        Ok(())
    };
    ordered(threads, count.div_ceil(CHUNK), 2 * threads, |_| Ok(()), job, fold)?;
    cx.events.on(Event::End);
    Ok(Features { dim, data })
}
