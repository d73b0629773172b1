//! The product of windows with weights: a convolution forward, or the gradient of its input.

use std::ops::Range;

use super::super::conv::{End, Target};
use super::super::map::Map;
use super::super::plan::RING;
use super::super::simd::{Avx512, Simd};
use super::super::tile::Start;
use super::layout::{Lattice, Windows};
use super::product::{BYTES, Factor, Product, Shapes, Sums, Unit};
use super::{DEPTH, PARTS, SIDE, TILE, split};

/// Bytes of a band's split copy, and of the copies of a pass, that stay in the second-level cache beside the results.
const ROOM: usize = 320 << 10;
const PASS_ROOM: usize = 640 << 10;
/// Bytes of weights that do not.
const MANY: usize = 1 << 20;
/// Pixels that share one pass over the weights.
const PASS_PIXELS: usize = 512;

/// A product of windows with weights.
#[derive(Debug)]
pub(in super::super) struct Windowed {
    lattice: Lattice,
    /// Floats of a pixel of the source, and output lanes.
    channels: usize,
    lanes: usize,
    /// Where each step, thirty-two channels of a tap, lies in the split copy and in a panel's weights.
    steps: Vec<[usize; 2]>,
    /// Taps and first channels of the steps.
    origins: Vec<(usize, usize)>,
    shapes: Shapes,
    /// Outputs: rows and columns.
    out: (usize, usize),
}

impl Windowed {
    /// Lays out the product of these windows with weights for so many lanes; none where the unit would idle.
    pub fn new(windows: &Windows, lanes: usize) -> Option<Self> {
        let channels = windows.map.cp;
        let room = ROOM / (2 * PARTS * channels);
        let lattice = Lattice::new(windows, [SIDE, 1, SIDE / 2], room)?;
        let shapes = Shapes::new(lattice.run, DEPTH);
        let (steps, origins) = (Vec::new(), Vec::new());
        let mut side = Windowed { lattice, channels, lanes, steps, origins, shapes, out: windows.out };
        // Taps follow each other, for they read the same lines.
        for line in 0..channels / DEPTH {
            for tap in 0..windows.taps.len() {
                let copy = line * PARTS * side.part() + 64 * side.lattice.taps[tap];
                side.steps.push([copy, side.steps.len() * 2 * PARTS * BYTES]);
                side.origins.push((tap, line * DEPTH));
            }
        }
        Some(side)
    }

    /// Bytes of one part of thirty-two channels of all pixels.
    fn part(&self) -> usize {
        64 * (self.lattice.places() | 1)
    }

    /// Floats of the split copy of the images that take turns, `[32 channels][part][place]`.
    fn copy(&self) -> usize {
        self.channels / DEPTH * PARTS * self.part() / 4
    }

    /// Images of a pass over the weights.
    pub fn pass(&self) -> usize {
        // Copies stay in the second-level cache, unless the weights do not and are read for every pass.
        let light = 2 * PARTS * self.lanes * self.channels * self.lattice.taps.len() < MANY;
        let room = if light { PASS_ROOM / (4 * self.copy()) * self.lattice.turns } else { PASS_PIXELS };
        (PASS_PIXELS / (self.out.0 * self.out.1).max(1)).min(room).clamp(self.lattice.turns, RING)
    }

    /// Floats of scratch that a worker needs.
    pub fn scratch(&self) -> usize {
        self.pass().div_ceil(self.lattice.turns) * self.copy()
    }

    /// Floats of the split weights.
    pub fn packed(&self) -> usize {
        self.steps.len() * PARTS * TILE * (self.lanes / SIDE)
    }

    /// Splits weights: `row(tap, channel)` points to those of sixteen lanes from `lane` on.
    pub fn pack(&self, lane: usize, row: impl Fn(usize, usize) -> *const f32, to: &mut [f32]) {
        let panel = &mut to[lane / DEPTH * self.steps.len() * 2 * PARTS * TILE..];
        for (&(tap, first), [_, at]) in self.origins.iter().zip(&self.steps) {
            // A line of the copy holds pairs of channels sixteen apart.
            let rows: [*const f32; DEPTH] = std::array::from_fn(|k| row(tap, first + k / 2 + k % 2 * SIDE));
            let to = &mut panel[at / 4 + lane % DEPTH / SIDE * TILE..][..(2 * PARTS - 1) * TILE];
            // SAFETY: the machine has the unit, so AVX-512; three tiles lie in `to`, every second one.
            unsafe { split::tile(&rows, to.as_mut_ptr(), 2 * TILE) }
        }
    }

    /// Splits a band of the images that take turns, `count` of them there.
    unsafe fn split(&self, x: *const f32, count: usize, to: *mut f32) {
        let part = self.part() / 4;
        for place in 0..self.lattice.places() {
            let first = self.lattice.pixel(place, x, count);
            for line in 0..self.channels / DEPTH {
                let [first, second] = [0, SIDE].map(|c| match first.is_null() {
                    true => first,
                    false => first.wrapping_add(line * DEPTH + c),
                });
                // SAFETY: vectors of a pixel, a line of the copy.
                unsafe { split::line(first, second, to.add(line * PARTS * part + 16 * place), part) }
            }
        }
    }

    /// The product over `images` images.
    ///
    /// # Safety
    /// As `Conv::forward`, with these packed weights and this scratch.
    #[allow(clippy::too_many_arguments, reason = "kernels take their operands one by one")]
    pub unsafe fn run(
        &self,
        (x, map): (*const f32, &Map),
        y: Target<'_>,
        w: *const f32,
        end: End<'_>,
        images: usize,
        scratch: *mut f32,
    ) {
        let (turns, copy) = (self.lattice.turns, self.copy());
        for first in (0..images).step_by(self.pass()) {
            let pass = first..images.min(first + self.pass());
            let groups = || pass.clone().step_by(turns).enumerate();
            for band in 0..self.lattice.bands {
                // SAFETY: scratch has room for a pass; images and bands lie in the regions.
                unsafe {
                    for (g, image) in groups() {
                        let from = x.add(image * map.image() + band * self.lattice.next);
                        self.split(from, images - image, scratch.add(g * copy));
                    }
                    for lane in (0..self.lanes).step_by(DEPTH) {
                        let weights = w.add(lane * self.steps.len() * PARTS * TILE / SIDE);
                        for (g, image) in groups() {
                            let at = Place { band, image, count: (pass.end - image).min(turns), lane };
                            self.panel(scratch.add(g * copy), weights, y, &at, &end);
                        }
                    }
                }
            }
        }
    }

    unsafe fn panel(&self, planes: *const f32, w: *const f32, y: Target<'_>, at: &Place, end: &End<'_>) {
        let lattice = &self.lattice;
        let runs = lattice.columns / lattice.run;
        let total = lattice.band * runs;
        let right = Factor { blocks: [0, TILE].map(|at| w.wrapping_add(at).cast()), part: 2 * BYTES };
        let mut sums = Sums::default();
        // SAFETY: the machine has the unit.
        let unit = unsafe { Unit::open(&self.shapes) };
        for first in (0..total).step_by(2) {
            let blocks = [first, first + 1].map(|block| {
                // A block too many repeats the last.
                let block = block.min(total - 1);
                planes.wrapping_add(16 * lattice.base(block / runs, block % runs * lattice.run)).cast()
            });
            let left = Factor { blocks, part: self.part() };
            let outputs = self.outputs(first..total.min(first + 2), at);
            // Outputs come from memory while the unit multiplies.
            for (image, pixel) in outputs.iter().flatten() {
                let to = y.at.wrapping_add(image * y.map.image() + y.to[*pixel] as usize + at.lane);
                Avx512::prefetch(to);
                Avx512::prefetch(to.wrapping_add(SIDE));
            }
            // SAFETY: the split copy and the weights hold all steps; outputs lie in their map.
            unsafe {
                sums.0.fill(0.0);
                Product { left, right, steps: &self.steps }.add_to(sums.0.as_mut_ptr(), &unit);
                self.finish(&sums, &outputs, y, at.lane, end);
            }
        }
    }

    /// Image and pixel of the outputs of two blocks, sixteen each; none where a block has no more.
    fn outputs(&self, blocks: Range<usize>, at: &Place) -> [Option<(usize, usize)>; 2 * SIDE] {
        let (run, mut outputs) = (self.lattice.run, [None; 2 * SIDE]);
        for (outputs, block) in outputs.chunks_exact_mut(SIDE).zip(blocks) {
            let runs = self.lattice.columns / run;
            let (row, first) = (at.band * self.lattice.band + block / runs, block % runs * run);
            for (output, &(column, turn)) in outputs.iter_mut().zip(&self.lattice.outputs[first..first + run]) {
                *output = (turn < at.count).then_some((at.image + turn, row * self.out.1 + column));
            }
        }
        outputs
    }

    /// Adds what belongs to the outputs of two blocks, and writes them.
    unsafe fn finish(
        &self,
        sums: &Sums,
        outputs: &[Option<(usize, usize)>; 2 * SIDE],
        y: Target<'_>,
        lane: usize,
        end: &End<'_>,
    ) {
        let bias = if end.bias.is_null() { end.bias } else { end.bias.wrapping_add(lane) };
        for (row, output) in outputs.iter().enumerate() {
            let &Some((image, pixel)) = output else { continue };
            // SAFETY: the pixel is one of the output's, the lanes are its own; the caller's contract.
            unsafe {
                let place = |s: &Start<'_>| s.at.add(image * s.image + s.to[pixel] as usize + lane);
                let to = y.at.add(image * y.map.image() + y.to[pixel] as usize + lane);
                let add = end.start.as_ref().map_or(std::ptr::null(), place);
                let sums = &sums.0[row / SIDE * 2 * TILE + row % SIDE * SIDE..];
                split::finish(sums, [bias, add], end.relu, to);
            }
        }
    }
}

/// Which outputs a panel's products are.
struct Place {
    band: usize,
    /// The first image that takes turns, and how many there are.
    image: usize,
    count: usize,
    /// The first of thirty-two lanes.
    lane: usize,
}
