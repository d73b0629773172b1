//! A benchmark: images, labels, class names, and where the order of its images comes from.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::ops::Deref;
use std::sync::Arc;

use memmap2::Mmap;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::census::Census;
use super::pictures::Pictures;
use crate::error::{Error, Result};
use crate::exec::human;
use crate::fsx;

/// Images of one size, one after the other: `(len, C, H, W)` bytes, channels first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    shape: [usize; 3],
    pixels: Pixels,
}

/// Bytes of images.
#[derive(Clone)]
enum Pixels {
    /// This process's own.
    Own(Vec<u8>),
    /// Those of a file, which other processes see too.
    Mapped(Arc<Mmap>),
}

impl Deref for Pixels {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Pixels::Own(bytes) => bytes,
            Pixels::Mapped(bytes) => bytes,
        }
    }
}

impl PartialEq for Pixels {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Pixels {}

impl fmt::Debug for Pixels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl Images {
    /// Takes `(len, C, H, W)` bytes; the length must be a whole number of images.
    pub fn new(shape: [usize; 3], pixels: Vec<u8>) -> Result<Self> {
        let size = shape.iter().product::<usize>();
        if size == 0 || !pixels.len().is_multiple_of(size) {
            return Err(Error::data(format!("images: {} bytes are not whole images of shape {shape:?}", pixels.len())));
        }
        Ok(Images { shape, pixels: Pixels::Own(pixels) })
    }

    /// The same images in a file without a name, and the file, for [`mapped`](Self::mapped) in other processes.
    pub fn shared(&self) -> Result<(Images, File)> {
        let refused = |e: std::io::Error| {
            let (folder, bytes) = (std::env::temp_dir(), human(self.pixels.len() as u64));
            Error::environment(format!("cannot put {bytes} of images into {}: {e}", folder.display()))
                .hint("TMPDIR names another folder, with room for the images")
        };
        let mut file = tempfile::tempfile().map_err(refused)?;
        file.write_all(&self.pixels).map_err(refused)?;
        Ok((Images::mapped(self.shape, &file)?, file))
    }

    /// Images whose bytes are those of a file, `(len, C, H, W)`.
    pub fn mapped(shape: [usize; 3], file: &File) -> Result<Images> {
        // SAFETY: the file has no name and its maker never writes to it again, so the bytes stay as they are.
        let bytes = unsafe { Mmap::map(file) };
        let bytes = bytes.map_err(|e| Error::environment(format!("cannot map images: {e}")))?;
        let images = Images::new(shape, Vec::new())?;
        match bytes.len().is_multiple_of(images.size()) {
            true => Ok(Images { shape, pixels: Pixels::Mapped(Arc::new(bytes)) }),
            false => Err(Error::data(format!("images: {} bytes are not whole images of shape {shape:?}", bytes.len()))),
        }
    }

    /// `[C, H, W]`.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Bytes of one image, C·H·W.
    pub fn size(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.pixels.len() / self.size()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }

    /// Image `i`, `(C, H, W)` bytes. `i` < [`len`](Self::len), as any slice index.
    pub fn get(&self, i: usize) -> &[u8] {
        let size = self.size();
        &self.pixels[i * size..(i + 1) * size]
    }

    /// All bytes, `(len, C, H, W)`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Mean of each channel in `[0, 1]`, `(C,)`.
    pub fn channel_means(&self) -> Vec<f64> {
        let [channels, h, w] = self.shape;
        let mut sums = vec![0u64; channels];
        for image in self.pixels.chunks_exact(self.size()) {
            for (sum, plane) in sums.iter_mut().zip(image.chunks_exact(h * w)) {
                *sum += plane.iter().map(|&v| u64::from(v)).sum::<u64>();
            }
        }
        let count = (self.len() * h * w).max(1) as f64;
        sums.into_iter().map(|s| s as f64 / count / 255.0).collect()
    }

    /// The images at `indices`, in that order.
    pub fn select(&self, indices: &[u32]) -> Images {
        let mut pixels = Vec::with_capacity(indices.len() * self.size());
        for &i in indices {
            pixels.extend_from_slice(self.get(i as usize));
        }
        Images { shape: self.shape, pixels: Pixels::Own(pixels) }
    }
}

/// Where the order of the images comes from: published seeds pick published images only in the original order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// The order of the data set's own distribution, which is torchvision's.
    Original,
    /// Within each class that of the distribution, whatever lies between: enough for seeds that draw class by class.
    Classes,
    /// A copy that may have been shuffled. Callers warn where a published split is drawn from it.
    Unknown,
}

/// Labelled images of one size.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Name for people: `cifar10 train`.
    pub name: String,
    /// The images.
    pub images: Pictures,
    /// A class for each image, below `classes.len()`.
    pub labels: Vec<u32>,
    /// Class names in label order.
    pub classes: Vec<String>,
    /// Where the order comes from.
    pub order: Order,
    /// SHA-256 over class names, shape, labels and pixels (of images in files: their names,
    /// lengths or places, and all bytes of up to 1,000 of them): names these
    /// very images in this very order.
    pub digest: String,
    /// What its reader saw; without a source where it was not read from anywhere.
    pub census: Census,
}

impl Dataset {
    /// Puts a data set together: checks lengths and labels, and computes the digest (on all of rayon's threads).
    pub fn new(
        name: impl Into<String>,
        images: impl Into<Pictures>,
        labels: Vec<u32>,
        classes: Vec<String>,
        order: Order,
    ) -> Result<Self> {
        let (name, images) = (name.into(), images.into());
        if images.len() != labels.len() {
            return Err(Error::data(format!("{name}: {} images but {} labels", images.len(), labels.len())));
        }
        if let Some(i) = labels.iter().position(|&y| y as usize >= classes.len()) {
            let y = labels[i];
            return Err(Error::data(format!(
                "{name}: image {i} has label {y}, but there are {} classes",
                classes.len()
            )));
        }
        let digest = digest(&images, &labels, &classes);
        Ok(Dataset { name, images, labels, classes, order, digest, census: Census::default() })
    }

    /// With what its reader saw.
    pub fn counted(mut self, census: Census) -> Self {
        self.census = census;
        self
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Images of each class, `(classes,)`.
    pub fn class_counts(&self) -> Vec<u32> {
        class_counts(&self.labels, self.classes.len())
    }

    /// SHA-256 over the pixels, class by class, each class in its own order: the same however classes lie among each other.
    /// None of images in files.
    pub fn digest_by_class(&self) -> Option<String> {
        let images = self.images.held()?;
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_by_key(|&i| self.labels[i]);
        let mut hasher = Sha256::new();
        order.into_iter().for_each(|i| hasher.update(images.get(i)));
        Some(fsx::hex(hasher.finalize()))
    }

    /// The images at `indices` as a data set of its own; its order is the given one.
    pub fn select(&self, name: impl Into<String>, indices: &[u32]) -> Result<Dataset> {
        if let Some(&i) = indices.iter().find(|&&i| i as usize >= self.len()) {
            return Err(Error::data(format!("{}: no image {i}; it has {}", self.name, self.len())));
        }
        let labels = indices.iter().map(|&i| self.labels[i as usize]).collect();
        Dataset::new(name, self.images.select(indices), labels, self.classes.clone(), self.order)
    }
}

/// Number of labels of each class below `classes`, `(classes,)`; labels beyond are not counted.
pub fn class_counts(labels: &[u32], classes: usize) -> Vec<u32> {
    let mut counts = vec![0; classes];
    for &y in labels {
        if let Some(count) = counts.get_mut(y as usize) {
            *count += 1;
        }
    }
    counts
}

/// What is trained on, and what is only ever tested on.
#[derive(Clone, Debug)]
pub struct Benchmark {
    /// The whole training set, before any tail.
    pub train: Dataset,
    /// The whole test set.
    pub test: Dataset,
    /// A validation set of its own, where the benchmark has one.
    pub val: Option<Dataset>,
    /// What was seen of places that several sets lie in.
    pub sources: Vec<Census>,
}

impl Benchmark {
    /// Puts both together: equal shapes and equal classes.
    pub fn new(train: Dataset, test: Dataset) -> Result<Self> {
        if train.images.shape() != test.images.shape() {
            let (a, b) = (train.images.shape(), test.images.shape());
            return Err(Error::data(format!("{} has images {a:?}, {} has {b:?}", train.name, test.name)));
        }
        if train.classes != test.classes {
            return Err(Error::data(format!(
                "{} has classes {}, {} has {}",
                train.name,
                train.classes.join(", "),
                test.name,
                test.classes.join(", ")
            ))
            .hint("both need the same classes; one may have no image in the test set: an empty folder of its name"));
        }
        Ok(Benchmark { train, test, val: None, sources: Vec::new() })
    }
}

/// A digest of digests, so that threads can share the work.
fn digest(images: &Pictures, labels: &[u32], classes: &[String]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("{:?} {:?}\n", images.shape(), classes));
    labels.iter().for_each(|y| hasher.update(y.to_le_bytes()));
    match images {
        Pictures::Held(images) => {
            let chunk = images.size() * 1024;
            let parts: Vec<_> = images.pixels().par_chunks(chunk).map(Sha256::digest).collect();
            parts.iter().for_each(|part| hasher.update(part));
        }
        Pictures::Streamed(pictures) => hasher.update(pictures.digest()),
    }
    fsx::hex(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Dataset {
        let images = Images::new([1, 1, 2], vec![1, 2, 3, 4, 5, 6]).unwrap();
        Dataset::new("toy", images, vec![0, 1, 0], vec!["a".into(), "b".into()], Order::Original).unwrap()
    }

    #[test]
    fn images_are_found_by_index_and_selected_in_order() {
        let toy = three();
        assert_eq!(toy.images.get(1), [3, 4]);
        let some = toy.select("some", &[2, 0]).unwrap();
        assert_eq!(
            (some.images.held().unwrap().pixels(), some.labels.as_slice()),
            ([5, 6, 1, 2].as_slice(), [0, 0].as_slice())
        );
        assert_eq!(toy.class_counts(), [2, 1]);
        assert!(toy.select("none", &[3]).unwrap_err().to_string().contains("no image 3"));
    }

    #[test]
    fn the_digest_sees_a_pixel_a_label_a_name_and_the_order() {
        let toy = three();
        let remade = |pixels: Vec<u8>, labels: Vec<u32>, name: &str| {
            let images = Images::new([1, 1, 2], pixels).unwrap();
            Dataset::new("toy", images, labels, vec!["a".into(), name.into()], Order::Original).unwrap().digest
        };
        assert_eq!(remade(vec![1, 2, 3, 4, 5, 6], vec![0, 1, 0], "b"), toy.digest);
        assert_ne!(remade(vec![1, 2, 3, 4, 5, 7], vec![0, 1, 0], "b"), toy.digest);
        assert_ne!(remade(vec![1, 2, 3, 4, 5, 6], vec![0, 1, 1], "b"), toy.digest);
        assert_ne!(remade(vec![1, 2, 3, 4, 5, 6], vec![0, 1, 0], "c"), toy.digest);
        assert_ne!(remade(vec![5, 6, 3, 4, 1, 2], vec![0, 1, 0], "b"), toy.digest);
    }

    #[test]
    fn the_digest_by_class_sees_the_order_within_a_class_alone() {
        let remade = |pixels: Vec<u8>, labels: Vec<u32>| {
            let images = Images::new([1, 1, 2], pixels).unwrap();
            let classes = vec!["a".into(), "b".into()];
            Dataset::new("toy", images, labels, classes, Order::Unknown).unwrap().digest_by_class().unwrap()
        };
        assert_eq!(remade(vec![1, 2, 3, 4, 5, 6], vec![0, 1, 0]), fsx::sha256(&[1, 2, 5, 6, 3, 4]));
        assert_eq!(remade(vec![3, 4, 1, 2, 5, 6], vec![1, 0, 0]), fsx::sha256(&[1, 2, 5, 6, 3, 4]));
        assert_ne!(remade(vec![5, 6, 3, 4, 1, 2], vec![0, 1, 0]), fsx::sha256(&[1, 2, 5, 6, 3, 4]));
    }

    #[test]
    fn a_label_without_a_class_is_refused() {
        let images = Images::new([1, 1, 1], vec![1, 2]).unwrap();
        let e = Dataset::new("toy", images, vec![0, 4], vec!["a".into()], Order::Original).unwrap_err();
        assert!(e.to_string().contains("image 1 has label 4"), "{e}");
    }
}
