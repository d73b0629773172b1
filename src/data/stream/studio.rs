//! One picture: its file's bytes → planes.

use super::Decode;
use crate::data::crop::Cut;
use crate::data::decode;
use crate::data::jpeg::{self, Jpeg};
use crate::error::Result;
use crate::nn::kernels::resample::{Area, Frame, Resampler, Window};

/// A worker's memory.
#[derive(Default)]
pub(super) struct Studio {
    resampler: Resampler,
    jpeg: jpeg::Memory,
    pixels: Vec<u8>,
}

impl Studio {
    /// Fills `planes`, `(3, rows, columns)` of what stays of the picture; `cut` knows its rows and columns.
    pub fn picture(
        &mut self,
        bytes: &[u8],
        decode: Decode,
        cut: impl Fn((usize, usize)) -> Cut,
        planes: &mut [u8],
    ) -> Result<()> {
        let Studio { resampler, jpeg, pixels } = self;
        let part = Jpeg::open(bytes).filter(|_| decode::jpeg_ends(bytes)).and_then(|file| {
            let cut = cut(file.size());
            let side = if decode == Decode::Scaled { smallest(&file, &cut.frame) } else { 8 };
            let frame = Frame { from: scaled(cut.frame.from, side, file.scaled(side)), ..cut.frame };
            let held = frame.needs();
            file.decode(held, side, jpeg, pixels)?;
            Some((Cut { frame, ..cut }, held))
        });
        let image;
        let (cut, pixels, held) = match part {
            Some((cut, held)) => (cut, pixels.as_slice(), held),
            None => {
                image = decode::rgb(bytes)?;
                let size = (image.height() as usize, image.width() as usize);
                (cut(size), image.as_raw().as_slice(), Window::all(size.0, size.1))
            }
        };
        resampler.planes(Area { pixels, held, frame: cut.frame }, cut.mirror, planes)?;
        cut.jitter.apply(planes, planes.len() / 3);
        Ok(())
    }
}

/// The smallest number of samples a block at which what is cut out is not enlarged by resizing where it was not before.
fn smallest(file: &Jpeg<'_>, frame: &Frame) -> usize {
    let enough = |side: &usize| {
        let Window { height, width, .. } = scaled(frame.from, *side, file.scaled(*side));
        file.has(*side) && height >= frame.to.0 && width >= frame.to.1
    };
    [1, 2, 4].into_iter().find(enough).unwrap_or(8)
}

/// A window of a picture in the picture at `side` / 8 of its size, `(rows, columns)`: to the nearest pixels, one at least.
fn scaled(window: Window, side: usize, size: (usize, usize)) -> Window {
    let along = |first: usize, length: usize, all: usize| {
        let near = |v: usize| (v * side + 4) / 8;
        let begin = near(first).min(all - 1);
        (begin, near(first + length).clamp(begin + 1, all) - begin)
    };
    let (top, height) = along(window.top, window.height, size.0);
    let (left, width) = along(window.left, window.width, size.1);
    Window { top, left, height, width }
}
