//! A part of an interleaved RGB image, resized; of the result a part, as planes, mirrored where asked.

use super::taps::{self, Taps, vertical};
use super::{BITS, Filter, clip8, tall};
use crate::error::{Error, Result};
use crate::nn::kernels::Isa;

/// A rectangle of pixels in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first row.
    pub top: usize,
    /// The first column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Window {
    /// All of an image.
    pub fn all(height: usize, width: usize) -> Self {
        Window { top: 0, left: 0, height, width }
    }

    fn fits(&self, height: usize, width: usize) -> bool {
        self.height > 0 && self.width > 0 && self.top + self.height <= height && self.left + self.width <= width
    }
}

/// A part of an image.
#[derive(Clone, Copy)]
pub struct Area<'a> {
    /// Bytes of what is held of the image, `(height, width, 3)`, and any others behind them.
    pub pixels: &'a [u8],
    /// What is held of the image: at least what the part kept of the result [needs](Frame::needs).
    pub held: Window,
    /// How the part is resized.
    pub frame: Frame,
}

/// What part of an image is resized, and how much of the result stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The part of the image.
    pub from: Window,
    /// Rows and columns of the whole result.
    pub to: (usize, usize),
    /// What stays of it.
    pub keep: Window,
    /// The interpolation.
    pub filter: Filter,
}

impl Frame {
    /// The part of the image that what stays depends on.
    pub fn needs(&self) -> Window {
        let Frame { from, to, keep, filter } = self;
        let rows = taps::inputs(from.height, to.0, keep.top..keep.top + keep.height, *filter);
        let columns = taps::inputs(from.width, to.1, keep.left..keep.left + keep.width, *filter);
        let (top, left) = (from.top + rows.start, from.left + columns.start);
        Window { top, left, height: rows.len(), width: columns.len() }
    }
}

impl Area<'_> {
    /// Where the needed part begins in `pixels`.
    fn check(&self, out: usize) -> Result<usize> {
        let Area { pixels, held, frame } = self;
        let Frame { from, to, keep, .. } = frame;
        let refuse = || Err(Error::defect(format!("resize: {frame:?} of {held:?} into {out} bytes")));
        let sound = from.height > 0 && from.width > 0 && keep.fits(to.0, to.1);
        if !sound || out != 3 * keep.height * keep.width || pixels.len() < 3 * held.height * held.width {
            return refuse();
        }
        let needs = frame.needs();
        match (needs.top.checked_sub(held.top), needs.left.checked_sub(held.left)) {
            (Some(top), Some(left)) if Window { top, left, ..needs }.fits(held.height, held.width) => {
                Ok(3 * (top * held.width + left))
            }
            _ => refuse(),
        }
    }
}

/// Resizes one picture after the other in the same memory.
pub struct Resampler {
    isa: Isa,
    across: Taps,
    down: Taps,
    between: Vec<u8>,
}

impl Default for Resampler {
    fn default() -> Self {
        Resampler::new(Isa::detect())
    }
}

impl Resampler {
    /// On an instruction set of this machine; every one gives the same bytes.
    pub fn new(isa: Isa) -> Self {
        Resampler { isa, across: Taps::default(), down: Taps::default(), between: Vec::new() }
    }

    /// Resizes the area as Pillow does after a crop, and writes the part that stays as planes, `(3, height, width)`;
    /// `mirror` turns that part left to right.
    pub fn planes(&mut self, area: Area<'_>, mirror: bool, out: &mut [u8]) -> Result<()> {
        let from = &area.pixels[area.check(out.len())?..];
        let (stride, Frame { from: of, to, keep, filter }) = (3 * area.held.width, area.frame);
        self.across.fill(of.width, to.1, keep.left..keep.left + keep.width, filter);
        self.down.fill(of.height, to.0, keep.top..keep.top + keep.height, filter);
        let needs = area.frame.needs();
        self.down.shift(needs.top - of.top);
        self.across.shift(needs.left - of.left);
        let plane = keep.height * keep.width;
        if tall((of.height, of.width), to) {
            let width = 3 * needs.width;
            // Bytes behind the last row, for vectors.
            self.between.resize(keep.height * width + 16, 0);
            vertical(self.isa, from, stride, &self.down, &mut self.between[..keep.height * width], width);
            horizontal(self.isa, &self.between, width, keep.height, &self.across, mirror, out);
        } else {
            let between = needs.height * keep.width;
            self.between.resize(3 * between, 0);
            horizontal(self.isa, from, stride, needs.height, &self.across, mirror, &mut self.between);
            for (from, to) in self.between.chunks_exact(between).zip(out.chunks_exact_mut(plane)) {
                vertical(self.isa, from, keep.width, &self.down, to, keep.width);
            }
        }
        Ok(())
    }
}

/// Rows of interleaved RGB, `stride` bytes apart → planes `(3, rows, taps)`.
fn horizontal(isa: Isa, from: &[u8], stride: usize, rows: usize, taps: &Taps, mirror: bool, out: &mut [u8]) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if isa > Isa::Portable {
        // SAFETY: every instruction set above the portable one of x86-64 has AVX2.
        done = unsafe { super::avx2::horizontal(from, stride, rows, taps, mirror, out) };
    }
    let _ = isa;
    let (n, plane) = (taps.len(), rows * taps.len());
    for row in done..rows {
        for i in 0..n {
            let (first, weights) = taps.of(i);
            let mut sums = [1i32 << (BITS - 1); 3];
            let pixels = &from[row * stride + 3 * first..][..3 * weights.len()];
            for (pixel, w) in pixels.as_chunks::<3>().0.iter().zip(weights) {
                sums.iter_mut().zip(pixel).for_each(|(sum, p)| *sum += i32::from(*p) * w);
            }
            let at = row * n + if mirror { n - 1 - i } else { i };
            sums.iter().enumerate().for_each(|(c, sum)| out[c * plane + at] = clip8(*sum));
        }
    }
}
