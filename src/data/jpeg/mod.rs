//! Baseline JPEGs, and of them only the part that is needed: blocks outside are read, not transformed, rows below not
//! even read. Photographs spend most of a training's decoding on what a crop throws away.
//!
//! | file | what |
//! |---|---|
//! | this one | [`Jpeg`]: which blocks are needed, and their planes |
//! | `header` | size and tables |
//! | `part` | the blocks behind a window |
//! | `huffman` | bits to coefficients |
//! | `idct` | coefficients to samples, at whole size or at a half, a quarter, an eighth |
//! | `colour` | samples to RGB |
//!
//! The bytes are those of libjpeg-turbo in its usual setting, and so Pillow's: at whole size, and at a smaller one those
//! of Pillow's `draft`. Other JPEGs (progressive, CMYK, turned by EXIF, unusual sampling) are left to [`super::decode`].

use crate::nn::kernels::Isa;
use crate::nn::kernels::resample::Window;
use colour::{Plane, Row};
use header::{Header, Sampling};

#[cfg(target_arch = "x86_64")]
mod avx2;
mod colour;
mod header;
mod huffman;
mod idct;
mod part;

#[cfg(test)]
mod tests;

/// Bytes of the largest picture; what says that it is larger is not believed.
const LARGEST: u64 = 512 << 20;

/// A JPEG whose tables are read.
pub struct Jpeg<'a>(Header<'a>);

/// A worker's memory.
pub struct Memory {
    isa: Isa,
    planes: [Plane; 3],
    rows: [Row; 2],
}

impl Default for Memory {
    fn default() -> Self {
        Memory::new(Isa::detect())
    }
}

impl Memory {
    /// On an instruction set of this machine; every one gives the same bytes.
    pub fn new(isa: Isa) -> Self {
        Memory { isa, planes: Default::default(), rows: Default::default() }
    }
}

impl<'a> Jpeg<'a> {
    /// None where the file is no JPEG of this kind, damaged, or to be turned.
    pub fn open(bytes: &'a [u8]) -> Option<Self> {
        let header = Header::read(bytes)?;
        // The filter for colour has another form below three samples.
        let (wide, sampling) = (header.width.div_ceil(2) > 2, header.sampling);
        let bytes = 3 * header.width as u64 * header.height as u64;
        ((sampling.across == 1 || wide) && bytes <= LARGEST && !header.turned).then_some(Jpeg(header))
    }

    /// Rows and columns.
    pub fn size(&self) -> (usize, usize) {
        (self.0.height, self.0.width)
    }

    /// Rows and columns of the picture at `side` / 8 of its size; `side` is 8, 4, 2 or 1.
    pub fn scaled(&self, side: usize) -> (usize, usize) {
        ((self.0.height * side).div_ceil(8), (self.0.width * side).div_ceil(8))
    }

    /// Whether the picture can be decoded at `side` / 8 of its size.
    pub fn has(&self, side: usize) -> bool {
        // Where colour is halved across alone, the smaller sizes have rules of their own.
        let halved = self.0.sampling == (Sampling { across: 2, down: 1 });
        side == 8 || (!halved && [4, 2, 1].contains(&side))
    }

    /// The window of the picture at `side` / 8 of its size, `(height, width, 3)`, and 16 bytes more for vectors. None where
    /// the window does not fit, there is no such size, or the file is damaged as far as it was read.
    pub fn decode(&self, window: Window, side: usize, memory: &mut Memory, out: &mut Vec<u8>) -> Option<()> {
        let size = self.scaled(side);
        let inside = window.top + window.height <= size.0 && window.left + window.width <= size.1;
        if !inside || window.height == 0 || window.width == 0 || !self.has(side) {
            return None;
        }
        part::planes(&self.0, window, side, memory)?;
        let bytes = 3 * window.height * window.width;
        out.resize(bytes + 16, 0);
        part::paint(&self.0, window, side, memory, out[..bytes].as_chunks_mut::<3>().0);
        Some(())
    }
}
