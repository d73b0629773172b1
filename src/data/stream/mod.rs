//! Pictures decoded when they are needed: read, decoded, cut and resized by worker threads ahead of the trainer, never
//! all held.
//!
//! | file | what |
//! |---|---|
//! | this one | [`Stream`]: batches of pictures, as bytes or normalised |
//! | `studio` | one picture: its file's bytes → planes |
//! | `line` | what is under way, and who works on it |
//! | `cache` | encoded bytes that stay in memory |
//!
//! Pictures are turned as EXIF says (torchvision's own reader leaves them as they lie). A picture depends on its bytes and
//! its key alone, so neither the number of threads nor what was asked ahead changes a batch.

use std::sync::Arc;
use std::thread::JoinHandle;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::crop::{CropConfig, Sight};
use super::encoded::Encoded;
use super::loader::normal;
use crate::error::{Error, Place, Result};
use crate::exec::Context;
use cache::Cache;
use line::{Line, Lot};
use studio::Studio;

mod cache;
mod line;
mod studio;

#[cfg(test)]
mod tests;

/// Which picture, and how it is seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ask {
    /// Its number.
    pub index: u32,
    /// How it is cut.
    pub sight: Sight,
}

/// How JPEGs are decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Decode {
    /// Every pixel, as Pillow decodes it.
    #[default]
    Exact,
    /// At a half, a quarter or an eighth of the size where what is cut out stays at least as large as what the network
    /// sees: faster for large pictures, and a little different.
    Scaled,
}

/// What a stream needs to know beside its pictures.
#[derive(Clone, Debug)]
pub struct StreamConfig {
    /// Sizes and augmentation.
    pub crop: CropConfig,
    /// Mean of each colour, of values in `[0, 1]`.
    pub mean: [f32; 3],
    /// Standard deviation of each colour.
    pub std: [f32; 3],
    /// How JPEGs are decoded.
    pub decode: Decode,
    /// Encoded bytes that may stay in memory, MiB.
    pub cache: usize,
    /// Pictures that may be decoded before they are asked for; each takes 3·side² bytes.
    pub ahead: usize,
}

impl Default for StreamConfig {
    /// ImageNet's usual constants, no cache (the system keeps files), up to 512 pictures ahead.
    fn default() -> Self {
        StreamConfig {
            crop: CropConfig::default(),
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            decode: Decode::Exact,
            cache: 0,
            ahead: 512,
        }
    }
}

/// Batches of pictures from encoded ones. Shared by the threads that train; its own threads end with it.
pub struct Stream {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    tables: [[f32; 256]; 3],
}

/// What the workers see.
struct Shared {
    source: Cache,
    crop: CropConfig,
    decode: Decode,
    line: Line,
    cx: Context,
}

impl Shared {
    /// Decodes one picture of a lot.
    fn work(&self, studio: &mut Studio, lot: &Lot, i: usize) {
        let Ask { index, sight } = lot.asks[i];
        let mut planes = self.line.spare();
        planes.resize(3 * self.crop.side * self.crop.side, 0);
        let made = crate::exec::caught(|| {
            let show =
                |bytes: &[u8]| studio.picture(bytes, self.decode, |size| self.crop.cut(size, sight), &mut planes);
            self.source.with(index as usize, show)
        });
        lot.put(i, made.map(|()| planes));
    }
}

impl Stream {
    /// Starts `cx.threads` workers on these pictures. They stop when `cx.cancel` says so, or with the stream.
    pub fn new(source: Arc<dyn Encoded>, config: &StreamConfig, cx: &Context) -> Result<Self> {
        config.crop.check("crop")?;
        let tables = std::array::from_fn(|c| normal(config.mean[c], config.std[c]));
        let shared = Arc::new(Shared {
            source: Cache::new(source, config.cache.saturating_mul(1 << 20)),
            crop: config.crop.clone(),
            decode: config.decode,
            line: Line::new(config.ahead),
            cx: cx.clone(),
        });
        let mut stream = Stream { shared, workers: Vec::new(), tables };
        for n in 0..cx.threads {
            let shared = stream.shared.clone();
            let worker = std::thread::Builder::new().name(format!("pictures {n}")).spawn(move || {
                let mut studio = Studio::default();
                while let Some((lot, i)) = shared.line.next(&shared.cx.cancel) {
                    shared.work(&mut studio, &lot, i);
                }
            });
            stream.workers.push(worker.map_err(|e| Error::environment(format!("cannot start a worker thread: {e}")))?);
        }
        Ok(stream)
    }

    /// Bytes of one picture, 3·side².
    pub fn size(&self) -> usize {
        3 * self.shared.crop.side * self.shared.crop.side
    }

    /// Says what will be asked for next, so that workers begin with it. Never waits; what is too much is not begun.
    pub fn ahead(&self, asks: &[Ask]) {
        self.shared.line.hint(asks);
    }

    /// Fills `out` with the pictures, `(asks, 3, side, side)` bytes in their order.
    ///
    /// The first picture that cannot be read or decoded is an error that names it; [`Error::stopped`] after a request.
    pub fn bytes(&self, asks: &[Ask], out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        self.each(asks, |planes| out.extend_from_slice(planes))
    }

    /// The same, normalised: `(v / 255 − mean) / std`, `(asks, 3, side, side)`.
    pub fn fill(&self, asks: &[Ask], out: &mut Vec<f32>) -> Result<()> {
        out.resize(asks.len() * self.size(), 0.0);
        let plane = self.size() / 3;
        let mut rest = out.as_mut_slice();
        self.each(asks, |planes| {
            let (own, others) = std::mem::take(&mut rest).split_at_mut(planes.len());
            rest = others;
            for ((to, from), table) in own.chunks_exact_mut(plane).zip(planes.chunks_exact(plane)).zip(&self.tables) {
                to.iter_mut().zip(from).for_each(|(t, v)| *t = table[usize::from(*v)]);
            }
        })
    }

    fn each(&self, asks: &[Ask], mut take: impl FnMut(&[u8])) -> Result<()> {
        let (shared, pictures) = (&self.shared, self.shared.source.len());
        if let Some(ask) = asks.iter().find(|a| a.index as usize >= pictures) {
            return Err(Error::defect(format!("no picture {}; there are {pictures}", ask.index)));
        }
        let lot = shared.line.ask(asks);
        let mut studio = None;
        while let Some(i) = lot.claim() {
            shared.cx.cancel.check()?;
            shared.work(studio.get_or_insert_with(Studio::default), &lot, i);
        }
        for (made, ask) in lot.finish(&shared.cx.cancel)?.into_iter().zip(asks) {
            let planes = made.at(|| shared.source.name(ask.index as usize))?;
            take(&planes);
            shared.line.keep(planes);
        }
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.line.close();
        for worker in self.workers.drain(..) {
            // A worker's panic was reported with its picture.
            let _ = worker.join();
        }
    }
}
