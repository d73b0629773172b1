//! Where a data set's images are: in memory, or in files from which each is decoded when it is needed.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use image::RgbImage;

use super::crop::Sight;
use super::dataset::Images;
use super::decode;
use super::encoded::Encoded;
use super::stream::{Ask, Stream, StreamConfig};
use crate::error::{Error, Place, Result};
use crate::exec::Context;
use crate::fsx;
use crate::key::{Key, Purpose};

/// The images of a data set, by number.
#[derive(Clone, Debug)]
pub enum Pictures {
    /// In memory, all of one size.
    Held(Images),
    /// In files.
    Streamed(Streamed),
}

/// Images that are decoded when they are needed, each in its own size.
#[derive(Clone)]
pub struct Streamed {
    source: Arc<dyn Encoded>,
    stream: Arc<Stream>,
    config: StreamConfig,
    /// Which of the source's pictures, in the data set's order.
    which: Arc<[u32]>,
    digest: String,
}

impl From<Images> for Pictures {
    fn from(images: Images) -> Pictures {
        Pictures::Held(images)
    }
}

impl From<Streamed> for Pictures {
    fn from(pictures: Streamed) -> Pictures {
        Pictures::Streamed(pictures)
    }
}

impl Pictures {
    /// `[C, H, W]` of an image as a network sees it.
    pub fn shape(&self) -> [usize; 3] {
        match self {
            Pictures::Held(images) => images.shape(),
            Pictures::Streamed(pictures) => [3, pictures.config.crop.side, pictures.config.crop.side],
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Pictures::Held(images) => images.len(),
            Pictures::Streamed(pictures) => pictures.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The images, where they are in memory.
    pub fn held(&self) -> Option<&Images> {
        match self {
            Pictures::Held(images) => Some(images),
            Pictures::Streamed(_) => None,
        }
    }

    /// Bytes of memory that they take.
    pub fn memory(&self) -> u64 {
        match self {
            Pictures::Held(images) => images.pixels().len() as u64,
            Pictures::Streamed(pictures) => pictures.memory(),
        }
    }

    /// Image `i` as it is: its height and width, and its planes `(C, H, W)`; one in a file in its own size, upright.
    pub fn seen(&self, i: usize) -> Result<([usize; 2], Cow<'_, [u8]>)> {
        match self {
            Pictures::Held(images) => {
                let [_, height, width] = images.shape();
                Ok(([height, width], images.get(i).into()))
            }
            Pictures::Streamed(pictures) => {
                let image = pictures.rgb(i)?;
                Ok(([image.height() as usize, image.width() as usize], decode::to_planes(&image).into()))
            }
        }
    }

    /// Image `i` in the size of [`shape`](Self::shape); one in a file scaled by its shorter side, its middle square.
    pub fn square(&self, i: usize) -> Result<RgbImage> {
        match self {
            Pictures::Held(images) => decode::from_planes(images.get(i), images.shape()),
            Pictures::Streamed(pictures) => Ok(decode::square(&pictures.rgb(i)?, pictures.config.crop.side as u32)),
        }
    }

    /// The images at `indices`, in that order.
    pub fn select(&self, indices: &[u32]) -> Pictures {
        match self {
            Pictures::Held(images) => images.select(indices).into(),
            Pictures::Streamed(pictures) => pictures.select(indices).into(),
        }
    }
}

impl fmt::Debug for Streamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pictures in files, seen in {} pixels", self.which.len(), self.config.crop.side)
    }
}

impl Streamed {
    /// No picture of a source yet, whose workers are started here.
    pub fn new(source: Arc<dyn Encoded>, config: &StreamConfig, cx: &Context) -> Result<Streamed> {
        let stream = Arc::new(Stream::new(source.clone(), config, cx)?);
        Ok(Streamed { source, stream, config: config.clone(), which: Vec::new().into(), digest: String::new() })
    }

    /// These pictures of the same source; `digest` names them in this order.
    pub fn with(&self, which: Vec<u32>, digest: String) -> Streamed {
        Streamed { which: which.into(), digest, ..self.clone() }
    }

    /// Another source's pictures, seen as these are.
    pub fn like(&self, source: Arc<dyn Encoded>, cx: &Context) -> Result<Streamed> {
        Streamed::new(source, &self.config, cx)
    }

    /// Bytes of memory that encoded pictures and those decoded ahead may take.
    pub fn memory(&self) -> u64 {
        let StreamConfig { crop, cache, ahead, .. } = &self.config;
        ((*cache as u64) << 20) + (ahead * 3 * crop.side * crop.side) as u64
    }

    fn asks(&self, indices: &[u32], random: Option<Key>) -> Result<Vec<Ask>> {
        let one = |(position, &i): (usize, &u32)| {
            let index = *self.which.get(i as usize).ok_or_else(|| Error::defect(format!("no picture {i}")))?;
            let sight = match random {
                Some(key) => Sight::Random(key.fold(Purpose::Item, position as u64)),
                None => Sight::Centre,
            };
            Ok(Ask { index, sight })
        };
        indices.iter().enumerate().map(one).collect()
    }

    /// Squares of the pictures `indices`, `(indices, 3, side, side)` bytes: cut at random by a key, or from the middle.
    pub fn squares(&self, indices: &[u32], random: Option<Key>, out: &mut Vec<u8>) -> Result<()> {
        self.stream.bytes(&self.asks(indices, random)?, out)
    }

    /// Says which squares will be asked for soon.
    pub fn ahead(&self, indices: &[u32], random: Option<Key>) {
        // What cannot be asked for is refused when it is.
        if let Ok(asks) = self.asks(indices, random) {
            self.stream.ahead(&asks);
        }
    }

    /// Names these pictures in this order.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    fn select(&self, indices: &[u32]) -> Streamed {
        let which = indices.iter().map(|&i| self.which[i as usize]).collect();
        let chosen: Vec<u8> = indices.iter().flat_map(|i| i.to_le_bytes()).collect();
        let digest = fsx::sha256(&[self.digest.as_bytes(), &chosen].concat());
        self.with(which, digest)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.which.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.which.is_empty()
    }

    /// What people call picture `i`.
    pub fn name(&self, i: usize) -> String {
        self.which.get(i).map_or_else(String::new, |&at| self.source.name(at as usize))
    }

    /// Picture `i` in its own size, upright.
    pub fn rgb(&self, i: usize) -> Result<RgbImage> {
        let at = *self.which.get(i).ok_or_else(|| Error::defect(format!("no picture {i} of {}", self.len())))?;
        self.source.bytes(at as usize).and_then(|bytes| decode::rgb(&bytes)).at(|| self.source.name(at as usize))
    }
}

#[cfg(test)]
impl Pictures {
    /// The bytes of an image that is in memory.
    pub(crate) fn get(&self, i: usize) -> &[u8] {
        self.held().expect("images in memory").get(i)
    }
}
