//! Batches: bytes to normalised floats, cropped and flipped.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::dataset::Dataset;
use super::pictures::{Pictures, Streamed};
use super::{autoaugment, dsa};
use crate::error::{Error, Place, Result};
use crate::key::{Key, Purpose, Rng};
use crate::nn::engine::cuda;
use crate::nn::{Batch, View};

/// Normalisation and augmentation of training images. Crop, flip and `per` are those of images in memory; how images in
/// files are cut says `data.crop`.
///
/// Order as in the reference code: normalise, **then** pad with zeros, crop, flip; so the border is the mean colour.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

    /// Refuses constants that do not fit images of `shape`, `[C, H, W]`, or any.
    pub fn check(&self, shape: [usize; 3]) -> Result<()> {
        let (channels, Augment { crop, mean, std, .. }) = (shape[0], self);
        if mean.len() != channels || std.len() != channels {
            let (means, deviations) = (mean.len(), std.len());
            return Err(Error::input(format!(
                "augment: {means} means and {deviations} deviations for {channels} channels"
            )));
        }
        if let Some(mean) = mean.iter().find(|m| !m.is_finite()) {
            return Err(Error::input(format!("augment.mean: {mean} is not a number")));
        }
        if let Some(std) = std.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
            return Err(Error::input(format!("augment.std: {std} is not a positive number")));
        }
        if *crop > shape[1].max(shape[2]).saturating_mul(4) {
            return Err(Error::input(format!("augment.crop = {crop} is far larger than the image, {shape:?}")));
        }
        Ok(())
    }
}

/// What each byte of a channel becomes: in f32, step by step, as torchvision's `ToTensor` and `Normalize` compute it.
pub(super) fn normal(mean: f32, std: f32) -> [f32; 256] {
    std::array::from_fn(|v| (v as f32 / 255.0 - mean) / std)
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
        augment.check(shape)?;
        let table = augment.mean.iter().zip(&augment.std).map(|(&mean, &std)| normal(mean, std)).collect();
        Ok(Loader { augment: augment.clone(), shape, table })
    }

    /// Fills `batch` with the images at `indices` in a view; `key` is the draw's own. One client: `rows` has one entry.
    /// The batch's memory is reused.
    pub fn fill(&self, data: &Dataset, indices: &[u32], view: View, key: Key, batch: &mut Batch) -> Result<()> {
        self.images(&data.images, indices, view, key, batch).at(|| data.name.clone())?;
        batch.y.extend(indices.iter().map(|&i| data.labels[i as usize]));
        Ok(())
    }

    /// Says which images will be filled in soon: work on those in files begins.
    pub fn ahead(&self, data: &Dataset, indices: &[u32], view: View, key: Key) {
        if let Pictures::Streamed(pictures) = &data.images {
            pictures.ahead(indices, drawn(view, key));
        }
    }

    /// Pictures of files: cut as their section says, then as the view has it.
    fn streamed(&self, pictures: &Streamed, indices: &[u32], view: View, key: Key, batch: &mut Batch) -> Result<()> {
        let (mut squares, mut scratch) = (Vec::new(), Vec::new());
        pictures.squares(indices, drawn(view, key), &mut squares)?;
        self.resize(batch, indices.len());
        batch.ids.extend_from_slice(indices);
        let size: usize = self.shape.iter().product();
        let targets = batch.x.chunks_exact_mut(size);
        for (position, (image, target)) in squares.chunks_exact_mut(size).zip(targets).enumerate() {
            if view == View::Strong {
                let key = key.fold(Purpose::Item, position as u64);
                autoaugment::strong(image, self.shape, key, &mut scratch)?;
            }
            self.normalise(image, target);
        }
        if view == View::Dsa {
            dsa::dsa(&mut batch.x, self.shape, key);
        }
        Ok(())
    }

    /// Everything but the labels, which are left empty.
    fn images(&self, images: &Pictures, indices: &[u32], view: View, key: Key, batch: &mut Batch) -> Result<()> {
        if images.shape() != self.shape {
            return Err(Error::defect(format!("loader for {:?} given images {:?}", self.shape, images.shape())));
        }
        if let Some(i) = indices.iter().find(|&&i| i as usize >= images.len()) {
            return Err(Error::data(format!("no image {i}; there are {}", images.len())));
        }
        let images = match images {
            Pictures::Held(images) => images,
            Pictures::Streamed(pictures) => return self.streamed(pictures, indices, view, key, batch),
        };
        self.resize(batch, indices.len());
        batch.ids.extend_from_slice(indices);
        let targets = indices.iter().zip(batch.x.chunks_exact_mut(images.size()));
        if matches!(view, View::Plain | View::Dsa) {
            targets.for_each(|(&i, target)| self.normalise(images.get(i as usize), target));
            if view == View::Dsa {
                dsa::dsa(&mut batch.x, self.shape, key);
            }
            return Ok(());
        }
        let (mut bytes, mut scratch) = (vec![0; images.size()], Vec::new());
        let cuts = self.draws(indices.len(), key);
        for (position, ((&i, target), cut)) in targets.zip(cuts).enumerate() {
            if view == View::Weak {
                self.place(images.get(i as usize), cut, |channel, v| self.table[channel][usize::from(v)], 0.0, target);
                continue;
            }
            self.place(images.get(i as usize), cut, |_, v| v, 0, &mut bytes);
            let key = key.fold(Purpose::Item, position as u64);
            autoaugment::strong(&mut bytes, self.shape, key, &mut scratch)?;
            self.normalise(&bytes, target);
        }
        Ok(())
    }

    /// Where the images of a batch are cut, for who cuts them elsewhere (bytes that lie on a card): as
    /// [`Loader::fill`] does in this view and by this key. Views that do more than cut are refused.
    pub fn cuts(&self, count: usize, view: View, key: Key) -> Result<Vec<cuda::Cut>> {
        let middle = Cut { dy: self.augment.crop, dx: self.augment.crop, flip: false };
        let cuts = match view {
            View::Plain => vec![middle; count],
            View::Weak => self.draws(count, key),
            View::Strong | View::Dsa => return Err(Error::defect(format!("{view:?} does more than cut images"))),
        };
        Ok(cuts.into_iter().map(|c| cuda::Cut { dy: c.dy as u32, dx: c.dx as u32, flip: c.flip }).collect())
    }

    /// The normalised value of each byte, `(channels, 256)`.
    pub fn table(&self) -> &[[f32; 256]] {
        &self.table
    }

    /// The cuts of so many images of a batch.
    fn draws(&self, count: usize, key: Key) -> Vec<Cut> {
        let mut rng = key.fold(Purpose::Augment, 0).rng();
        let mut cut = self.draw(&mut rng);
        let one = |position: usize| {
            if position > 0 && self.augment.per == Per::Image {
                cut = self.draw(&mut rng);
            }
            cut
        };
        (0..count).map(one).collect()
    }

    fn draw(&self, rng: &mut Rng) -> Cut {
        let span = 2 * self.augment.crop + 1;
        let (dy, dx) = if span > 1 { (rng.below(span), rng.below(span)) } else { (0, 0) };
        Cut { dy, dx, flip: self.augment.flip && rng.below(2) == 1 }
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

    /// Pixel `(y, x)` of the result is `value` of channel and pixel `(y + dy − pad, x + dx − pad)` of the image, or
    /// `border` outside it; then the mirror.
    fn place<T: Copy>(&self, image: &[u8], cut: Cut, value: impl Fn(usize, u8) -> T, border: T, target: &mut [T]) {
        let ([_, h, w], pad) = (self.shape, self.augment.crop);
        // Columns of the result that lie inside the image, and where they begin in it.
        let (first, last) = (pad.saturating_sub(cut.dx).min(w), (w + pad).saturating_sub(cut.dx).min(w));
        let source = (first + cut.dx).saturating_sub(pad).min(w);
        for (channel, (from, to)) in image.chunks_exact(h * w).zip(target.chunks_exact_mut(h * w)).enumerate() {
            for (y, row) in to.chunks_exact_mut(w).enumerate() {
                match (y + cut.dy).checked_sub(pad).filter(|&sy| sy < h) {
                    None => row.fill(border),
                    Some(sy) => {
                        row[..first].fill(border);
                        row[last..].fill(border);
                        let line = &from[sy * w + source..sy * w + source + last - first];
                        row[first..last].iter_mut().zip(line).for_each(|(t, &v)| *t = value(channel, v));
                        if cut.flip {
                            row.reverse();
                        }
                    }
                }
            }
        }
    }
}

/// The key that the views which are cut at random draw from.
fn drawn(view: View, key: Key) -> Option<Key> {
    matches!(view, View::Weak | View::Strong).then(|| key.fold(Purpose::Augment, 0))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::dataset::{Images, Order};
    use super::*;
    use crate::nn::optim::OptimiserConfig;
    use crate::nn::session::{Session, Training};
    use crate::nn::{Mode, NetBuilder};

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
            loader.fill(&data, &[0], View::Plain, Key::from_seed(0), &mut plain).unwrap();
            let mut got = vec![f32::NAN; 12];
            for (dy, dx, flip) in
                (0..=2 * pad).flat_map(|a| (0..=2 * pad).flat_map(move |b| [(a, b, false), (a, b, true)]))
            {
                let table = |c: usize, v: u8| loader.table[c][usize::from(v)];
                loader.place(data.images.get(0), Cut { dy, dx, flip }, table, 0.0, &mut got);
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
            loader.fill(&data, &all, View::Weak, Key::from_seed(seed), &mut batch).unwrap();
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

    /// What a network says of bytes that lie on a card is what it says of the batch that the host cuts.
    #[test]
    #[allow(clippy::print_stderr, reason = "a test that did not run says so")]
    fn images_on_a_card_are_the_batch_to_the_last_bit() {
        let folder = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
        let Some(card) = cuda::Emulated::new(&folder, 1).unwrap() else {
            return eprintln!("skipped: no C++ compiler here (CXX may name one)");
        };
        let mut b = NetBuilder::new(1, 3, 4);
        let flat = b.flatten(NetBuilder::INPUT);
        b.tap("feature", flat);
        let logits = b.linear(flat, "fc", 2).unwrap();
        let net = Arc::new(b.finish("flat", logits).unwrap());
        let mut session = cuda::Resident::new(&net, card, 2).unwrap();
        let optimiser = OptimiserConfig::default();
        let training = Training { optimiser, trained: None, pulls: vec![], moments: Default::default() };
        (0..2).for_each(|k| session.load(k, net.init(Key::from_seed(k as u64)), &training).unwrap());
        let (data, mut batch, mut seen) = (toy(8), Batch::default(), Vec::new());
        for (per, view) in [(Per::Image, View::Weak), (Per::Batch, View::Weak), (Per::Image, View::Plain)] {
            let loader = Loader::new(&augment(2, true, per), [1, 3, 4]).unwrap();
            session.hold(data.images.held().unwrap().pixels(), loader.table(), 2).unwrap();
            let (ids, mut want) = ([&[7u32, 2, 5, 2][..], &[0, 6]], Vec::new());
            let keys = [Key::from_seed(3), Key::from_seed(4)];
            let cut = |k: usize| loader.cuts(ids[k].len(), view, keys[k]).unwrap();
            for (ids, key) in ids.iter().zip(keys) {
                loader.fill(&data, ids, view, key, &mut batch).unwrap();
                want.extend_from_slice(&batch.x);
            }
            session.forward_held(&ids, &[&cut(0), &cut(1)], Mode::Eval).unwrap();
            session.read(flat, &mut seen).unwrap();
            assert_eq!(seen, want, "{per:?} {view:?}");
        }
        let loader = Loader::new(&augment(2, true, Per::Image), [1, 3, 4]).unwrap();
        assert!(loader.cuts(1, View::Strong, Key::from_seed(1)).is_err());
    }

    #[test]
    fn constants_that_do_not_fit_are_refused() {
        let refuse = |a: Augment| Loader::new(&a, [3, 32, 32]).unwrap_err().to_string();
        assert!(refuse(Augment { mean: vec![0.5], ..Default::default() }).contains("1 means and 3 deviations"));
        assert!(refuse(Augment { std: vec![0.2, 0.0, 0.2], ..Default::default() }).contains("0 is not a positive"));
        assert!(refuse(Augment { crop: 1000, ..Default::default() }).contains("crop = 1000"));
    }

    #[test]
    fn normalisation_is_torchvisions() {
        let loader = Loader::new(&Augment::default(), [3, 1, 1]).unwrap();
        let images = Images::new([3, 1, 1], vec![0, 255, 128]).unwrap();
        let data = Dataset::new("one", images, vec![0], vec!["c".into()], Order::Original).unwrap();
        let mut batch = Batch::default();
        loader.fill(&data, &[0], View::Plain, Key::from_seed(0), &mut batch).unwrap();
        // torch: (torch.tensor([0, 255, 128.]) / 255 - mean) / std, float32
        assert_eq!(batch.x, [-2.429_065_7, 2.596_790_3, 0.275_924_4]);
    }

    #[test]
    fn a_batch_keeps_its_memory_and_carries_labels_and_ids() {
        let (data, mut batch) = (toy(8), Batch::default());
        let loader = Loader::new(&augment(1, true, Per::Image), [1, 3, 4]).unwrap();
        loader.fill(&data, &[7, 2, 5], View::Weak, Key::from_seed(1), &mut batch).unwrap();
        assert_eq!(
            (batch.y.as_slice(), batch.ids.as_slice(), batch.rows.as_slice()),
            ([7, 2, 5].as_slice(), [7, 2, 5].as_slice(), [3].as_slice())
        );
        let at = batch.x.as_ptr();
        loader.fill(&data, &[1, 3], View::Weak, Key::from_seed(1), &mut batch).unwrap();
        loader.fill(&data, &[1, 3, 4], View::Plain, Key::from_seed(0), &mut batch).unwrap();
        assert_eq!((batch.x.as_ptr(), batch.x.len(), batch.len()), (at, 36, 3));
        assert!(
            loader
                .fill(&data, &[8], View::Plain, Key::from_seed(0), &mut batch)
                .unwrap_err()
                .to_string()
                .contains("toy: no image 8")
        );
    }
}
