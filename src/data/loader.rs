//! Batches: bytes to normalised floats, cropped and flipped, and the order in which a client sees its images.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::dataset::{Dataset, Images};
use crate::error::{Error, Result};
use crate::key::{Key, Purpose};
use crate::nn::Batch;

/// Normalisation and augmentation of training images.
///
/// Order as in the reference code: normalise, **then** pad with zeros, crop, flip; so the border is the mean colour.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Pixels of zeros on every side before a crop of the original size at a random place. 0: no crop.
    pub crop: usize,
    /// Whether to mirror left and right with probability ½.
    pub flip: bool,
    /// One crop and flip for the whole batch, as the reference code does, or for each image.
    pub per: Per,
    /// Mean of each channel, of values in `[0, 1]`.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel.
    pub std: Vec<f32>,
}

/// What shares one draw of the augmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Per {
    /// The batch (CReFF, CLIP2FL).
    Batch,
    /// The image (most other code).
    Image,
}

impl Default for Augment {
    /// The reference's: pad 4, flip, once per batch, its constants for CIFAR-10 and CIFAR-100.
    fn default() -> Self {
        Augment {
            crop: 4,
            flip: true,
            per: Per::Batch,
            mean: vec![0.4914, 0.4822, 0.4465],
            std: vec![0.2023, 0.1994, 0.2010],
        }
    }
}

impl Augment {
    /// The same normalisation with neither crop nor flip.
    pub fn without(&self) -> Self {
        Augment { crop: 0, flip: false, ..self.clone() }
    }
}

/// Fills batches from images of one shape.
#[derive(Clone, Debug)]
pub struct Loader {
    augment: Augment,
    shape: [usize; 3],
    /// The normalised value of each byte, `(channels, 256)`.
    table: Vec<[f32; 256]>,
}

/// Where one image is cut and whether it is mirrored; `(crop, crop)` is the middle.
#[derive(Clone, Copy)]
struct Cut {
    dy: usize,
    dx: usize,
    flip: bool,
}

impl Loader {
    /// A loader for images of `shape`, `[C, H, W]`; the constants must fit C.
    pub fn new(augment: &Augment, shape: [usize; 3]) -> Result<Self> {
        let channels = shape[0];
        if augment.mean.len() != channels || augment.std.len() != channels {
            return Err(Error::input(format!(
                "augment: {} means and {} deviations for {channels} channels",
                augment.mean.len(),
                augment.std.len()
            )));
        }
        if let Some(std) = augment.std.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
            return Err(Error::input(format!("augment.std: {std} is not a positive number")));
        }
        // In f32, step by step, as torchvision's ToTensor and Normalize compute it.
        let row = |(&mean, &std): (&f32, &f32)| std::array::from_fn(|v| (v as f32 / 255.0 - mean) / std);
        let table = augment.mean.iter().zip(&augment.std).map(row).collect();
        Ok(Loader { augment: augment.clone(), shape, table })
    }

    /// Fills `batch` with the augmented images at `indices`; `key` is the step's own. One client: `rows` has one entry.
    /// The batch's memory is reused.
    pub fn train(&self, data: &Dataset, indices: &[u32], key: Key, batch: &mut Batch) -> Result<()> {
        self.begin(data, indices, batch)?;
        let mut rng = key.fold(Purpose::Augment, 0).rng();
        let mut draw = || {
            let span = 2 * self.augment.crop + 1;
            let (dy, dx) = if span > 1 { (rng.below(span), rng.below(span)) } else { (0, 0) };
            Cut { dy, dx, flip: self.augment.flip && rng.below(2) == 1 }
        };
        let mut cut = draw();
        for (position, (&i, target)) in indices.iter().zip(batch.x.chunks_exact_mut(data.images.size())).enumerate() {
            if position > 0 && self.augment.per == Per::Image {
                cut = draw();
            }
            self.place(data.images.get(i as usize), cut, target);
        }
        Ok(())
    }

    /// Fills `batch` with the images at `indices`, normalised only.
    pub fn plain(&self, data: &Dataset, indices: &[u32], batch: &mut Batch) -> Result<()> {
        self.begin(data, indices, batch)?;
        for (&i, target) in indices.iter().zip(batch.x.chunks_exact_mut(data.images.size())) {
            self.normalise(data.images.get(i as usize), target);
        }
        Ok(())
    }

    /// Fills `batch` with images `range` of unlabelled pixels (a decoded pool), normalised only; labels are 0.
    pub fn images(&self, images: &Images, range: Range<usize>, batch: &mut Batch) -> Result<()> {
        if range.end > images.len() || images.shape() != self.shape {
            return Err(Error::defect(format!(
                "loader for {:?}: images {range:?} of {} with shape {:?}",
                self.shape,
                images.len(),
                images.shape()
            )));
        }
        self.resize(batch, range.len());
        batch.y.resize(range.len(), 0);
        batch.ids.extend(range.clone().map(|i| i as u32));
        for (i, target) in range.zip(batch.x.chunks_exact_mut(images.size())) {
            self.normalise(images.get(i), target);
        }
        Ok(())
    }

    fn begin(&self, data: &Dataset, indices: &[u32], batch: &mut Batch) -> Result<()> {
        if data.images.shape() != self.shape {
            return Err(Error::defect(format!("loader for {:?} given images {:?}", self.shape, data.images.shape())));
        }
        if let Some(i) = indices.iter().find(|&&i| i as usize >= data.len()) {
            return Err(Error::data(format!("{}: no image {i}; it has {}", data.name, data.len())));
        }
        self.resize(batch, indices.len());
        batch.y.extend(indices.iter().map(|&i| data.labels[i as usize]));
        batch.ids.extend_from_slice(indices);
        Ok(())
    }

    /// Every pixel is written afterwards, so old values need not go.
    fn resize(&self, batch: &mut Batch, rows: usize) {
        batch.x.resize(rows * self.shape.iter().product::<usize>(), 0.0);
        batch.y.clear();
        batch.ids.clear();
        batch.rows.clear();
        batch.rows.push(rows);
    }

    fn normalise(&self, image: &[u8], target: &mut [f32]) {
        let plane = self.shape[1] * self.shape[2];
        for ((from, to), table) in image.chunks_exact(plane).zip(target.chunks_exact_mut(plane)).zip(&self.table) {
            for (t, &v) in to.iter_mut().zip(from) {
                *t = table[usize::from(v)];
            }
        }
    }

    /// Pixel `(y, x)` of the result is pixel `(y + dy − pad, x + dx − pad)` of the image, or zero outside it; then
    /// the mirror.
    fn place(&self, image: &[u8], cut: Cut, target: &mut [f32]) {
        let ([_, h, w], pad) = (self.shape, self.augment.crop);
        // Columns of the result that lie inside the image, and where they begin in it.
        let (first, last) = (pad.saturating_sub(cut.dx).min(w), (w + pad).saturating_sub(cut.dx).min(w));
        let source = (first + cut.dx).saturating_sub(pad).min(w);
        for ((from, to), table) in image.chunks_exact(h * w).zip(target.chunks_exact_mut(h * w)).zip(&self.table) {
            for (y, row) in to.chunks_exact_mut(w).enumerate() {
                match (y + cut.dy).checked_sub(pad).filter(|&sy| sy < h) {
                    None => row.fill(0.0),
                    Some(sy) => {
                        row[..first].fill(0.0);
                        row[last..].fill(0.0);
                        let line = &from[sy * w + source..sy * w + source + last - first];
                        for (t, &v) in row[first..last].iter_mut().zip(line) {
                            *t = table[usize::from(v)];
                        }
                        if cut.flip {
                            row.reverse();
                        }
                    }
                }
            }
        }
    }
}

/// The order of a client's images in an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampler {
    /// Images of a batch, at least 1.
    pub batch_size: usize,
    /// Whether a last batch that is not full is left out.
    pub drop_last: bool,
}

impl Default for Sampler {
    fn default() -> Self {
        Sampler { batch_size: 32, drop_last: false }
    }
}

impl Sampler {
    /// Puts `samples` into `order`, shuffled by `key` (the epoch's own); its memory is reused.
    pub fn shuffle(&self, samples: &[u32], key: Key, order: &mut Vec<u32>) {
        order.clear();
        order.extend_from_slice(samples);
        key.fold(Purpose::Shuffle, 0).rng().shuffle(order);
    }

    /// The batches of an order, one after the other.
    pub fn batches<'o>(&self, order: &'o [u32]) -> impl Iterator<Item = &'o [u32]> + use<'o> {
        let size = self.batch_size.max(1);
        let kept = if self.drop_last { order.len() / size * size } else { order.len() };
        order[..kept].chunks(size)
    }

    /// Batches of an epoch over `samples` images.
    pub fn steps(&self, samples: usize) -> usize {
        let size = self.batch_size.max(1);
        if self.drop_last { samples / size } else { samples.div_ceil(size) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::dataset::Order;
    use super::*;

    /// `n` images `(1, 3, 4)` whose bytes count up from 1.
    fn toy(n: usize) -> Dataset {
        let pixels = (0..n * 12).map(|i| (i + 1) as u8).collect();
        let images = Images::new([1, 3, 4], pixels).unwrap();
        Dataset::new("toy", images, (0..n as u32).collect(), vec!["c".into(); n], Order::Original).unwrap()
    }

    fn augment(crop: usize, flip: bool, per: Per) -> Augment {
        Augment { crop, flip, per, mean: vec![0.0], std: vec![1.0 / 255.0] }
    }

    /// Written the slow way: pad, crop, flip.
    fn slow(image: &[f32], [h, w]: [usize; 2], pad: usize, dy: usize, dx: usize, flip: bool) -> Vec<f32> {
        let at = |y: isize, x: isize| {
            let inside = y >= 0 && x >= 0 && (y as usize) < h && (x as usize) < w;
            if inside { image[y as usize * w + x as usize] } else { 0.0 }
        };
        let mut out = Vec::new();
        for y in 0..h {
            for x in 0..w {
                let x = if flip { w - 1 - x } else { x };
                out.push(at((y + dy) as isize - pad as isize, (x + dx) as isize - pad as isize));
            }
        }
        out
    }

    #[test]
    fn every_crop_and_flip_is_what_padding_and_cutting_give() {
        let (data, mut plain) = (toy(1), Batch::default());
        for pad in [0, 1, 2, 5] {
            let loader = Loader::new(&augment(pad, true, Per::Batch), [1, 3, 4]).unwrap();
            loader.plain(&data, &[0], &mut plain).unwrap();
            let mut got = vec![f32::NAN; 12];
            for (dy, dx, flip) in
                (0..=2 * pad).flat_map(|a| (0..=2 * pad).flat_map(move |b| [(a, b, false), (a, b, true)]))
            {
                loader.place(data.images.get(0), Cut { dy, dx, flip }, &mut got);
                assert_eq!(got, slow(&plain.x, [3, 4], pad, dy, dx, flip), "pad {pad} at {dy}, {dx}, {flip}");
            }
        }
    }

    #[test]
    fn one_draw_serves_the_batch_or_each_image_and_the_key_decides() {
        let images = Images::new([1, 3, 4], [1u8, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12].repeat(64)).unwrap();
        let data = Dataset::new("same", images, vec![0; 64], vec!["c".into()], Order::Original).unwrap();
        let all: Vec<u32> = (0..64).collect();
        let distinct = |per: Per, seed: u64| {
            let mut batch = Batch::default();
            let loader = Loader::new(&augment(1, true, per), [1, 3, 4]).unwrap();
            loader.train(&data, &all, Key::from_seed(seed), &mut batch).unwrap();
            let mut rows: Vec<Vec<u32>> =
                batch.x.chunks(12).map(|r| r.iter().map(|v| v.round() as u32).collect()).collect();
            rows.sort();
            rows.dedup();
            rows
        };
        assert_eq!(distinct(Per::Batch, 1).len(), 1);
        assert!(distinct(Per::Image, 1).len() > 12, "of 3 · 3 · 2 ways");
        assert_eq!(distinct(Per::Image, 1), distinct(Per::Image, 1));
        let ways: std::collections::BTreeSet<_> = (0..200).map(|s| distinct(Per::Batch, s)).collect();
        assert_eq!(ways.len(), 18, "every crop and flip is reached");
    }

    #[test]
    fn normalisation_is_torchvisions() {
        let loader = Loader::new(&Augment::default(), [3, 1, 1]).unwrap();
        let images = Images::new([3, 1, 1], vec![0, 255, 128]).unwrap();
        let data = Dataset::new("one", images, vec![0], vec!["c".into()], Order::Original).unwrap();
        let mut batch = Batch::default();
        loader.plain(&data, &[0], &mut batch).unwrap();
        // torch: (torch.tensor([0, 255, 128.]) / 255 - mean) / std, float32
        assert_eq!(batch.x, [-2.429_065_7, 2.596_790_3, 0.275_924_4]);
    }

    #[test]
    fn a_batch_keeps_its_memory_and_carries_labels_and_ids() {
        let (data, mut batch) = (toy(8), Batch::default());
        let loader = Loader::new(&augment(1, true, Per::Image), [1, 3, 4]).unwrap();
        loader.train(&data, &[7, 2, 5], Key::from_seed(1), &mut batch).unwrap();
        assert_eq!(
            (batch.y.as_slice(), batch.ids.as_slice(), batch.rows.as_slice()),
            ([7, 2, 5].as_slice(), [7, 2, 5].as_slice(), [3].as_slice())
        );
        let at = batch.x.as_ptr();
        loader.train(&data, &[1, 3], Key::from_seed(1), &mut batch).unwrap();
        loader.plain(&data, &[1, 3, 4], &mut batch).unwrap();
        assert_eq!((batch.x.as_ptr(), batch.x.len(), batch.len()), (at, 36, 3));
        assert!(loader.plain(&data, &[8], &mut batch).unwrap_err().to_string().contains("no image 8"));
    }

    #[test]
    fn an_epoch_holds_every_sample_once_and_ends_with_the_rest() {
        let (samples, mut order): (Vec<u32>, _) = ((100..170).collect(), Vec::new());
        let sampler = Sampler::default();
        sampler.shuffle(&samples, Key::from_seed(1), &mut order);
        assert_ne!(order, samples);
        assert_eq!(sampler.batches(&order).map(<[u32]>::len).collect::<Vec<_>>(), [32, 32, 6]);
        let drop = Sampler { drop_last: true, ..sampler.clone() };
        assert_eq!((drop.batches(&order).count(), drop.steps(70), sampler.steps(70)), (2, 2, 3));
        let first = order.clone();
        sampler.shuffle(&samples, Key::from_seed(2), &mut order);
        assert_ne!(order, first);
        order.sort_unstable();
        assert_eq!(order, samples);
    }
}
