//! Images that lie on the card as bytes: a batch is gathered there, cropped, mirrored and normalised.

use super::card::{Card, Memory};
use super::pass::{Pass, at, fill, ints};
use crate::error::{Error, Result};

/// Where one image is cut, as `data::Loader` draws it: rows and columns from the corner of the image with its border,
/// `(crop, crop)` for the middle; and whether it is mirrored after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Rows from the top of the border, `0..=2·crop`.
    pub dy: u32,
    /// Columns from its left.
    pub dx: u32,
    /// Left and right change places.
    pub flip: bool,
}

/// Images `(n, C, H, W)` on the card.
pub(super) struct Held {
    images: Memory,
    table: Memory,
    count: usize,
    crop: usize,
    /// Numbers and cuts of a batch.
    batch: Option<[Memory; 2]>,
}

impl Held {
    /// Brings images, and what each byte of a channel becomes; `crop` is the border of zeros, in pixels.
    pub fn new<C: Card>(
        card: &mut C,
        [channels, height, width]: [usize; 3],
        images: &[u8],
        table: &[[f32; 256]],
        crop: usize,
    ) -> Result<Self> {
        let size = channels * height * width;
        if table.len() != channels || size == 0 || !images.len().is_multiple_of(size) {
            let (bytes, tables) = (images.len(), table.len());
            return Err(Error::defect(format!(
                "{bytes} bytes, {tables} tables for images of {channels}×{height}×{width}"
            )));
        }
        let (memory, normal) = (card.allocate(images.len())?, card.allocate(1024 * channels)?);
        card.write(memory, 0, images)?;
        card.write(normal, 0, bytemuck::cast_slice(table.as_flattened()))?;
        Ok(Held { images: memory, table: normal, count: images.len() / size, crop, batch: None })
    }

    /// Gives the memory back.
    pub fn release<C: Card>(self, card: &mut C) -> Result<()> {
        let batch = self.batch.into_iter().flatten();
        [self.images, self.table].into_iter().chain(batch).try_for_each(|memory| card.release(memory))
    }

    /// Brings a batch's images to their place: `ids[k]` client k's, with `cuts[k]`.
    pub fn gather<C: Card>(
        &mut self,
        pass: &mut Pass<'_, C>,
        image: Memory,
        ids: &[&[u32]],
        cuts: &[&[Cut]],
    ) -> Result<()> {
        let (lanes, capacity, shape) = (pass.lanes(), pass.capacity(), pass.shape(0));
        if let Some(id) = ids.iter().copied().flatten().find(|id| **id as usize >= self.count) {
            return Err(Error::data(format!("no image {id}; {} lie on the card", self.count)));
        }
        let (mut numbers, mut places) = (vec![0u32; lanes * capacity], vec![[0u32; 3]; lanes * capacity]);
        for (k, (ids, cuts)) in ids.iter().zip(cuts).enumerate() {
            if ids.len() != cuts.len() {
                return Err(Error::defect(format!("client {k}: {} images, {} cuts", ids.len(), cuts.len())));
            }
            for (r, (id, cut)) in ids.iter().zip(*cuts).enumerate() {
                numbers[k * capacity + r] = *id;
                places[k * capacity + r] = [cut.dy, cut.dx, cut.flip.into()];
            }
        }
        let bytes = 4 * numbers.len();
        let batch = match self.batch {
            Some(batch) if batch[0].bytes >= bytes => batch,
            old => {
                old.into_iter().flatten().try_for_each(|memory| pass.card.release(memory))?;
                [pass.card.allocate(bytes)?, pass.card.allocate(3 * bytes)?]
            }
        };
        self.batch = Some(batch);
        pass.card.write(batch[0], 0, bytemuck::cast_slice(&numbers))?;
        pass.card.write(batch[1], 0, bytemuck::cast_slice(places.as_flattened()))?;
        let sizes = ints([lanes, shape.channels, capacity, shape.height, shape.width, self.crop]);
        let (from, n) = ([at(self.images), at(batch[0]), at(batch[1]), at(self.table), pass.counts()?], pass.floats(0));
        pass.each("gather_images", n, &[&from, &sizes, &[fill(image, n)]])
    }
}
