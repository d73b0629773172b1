//! The product of windows with weights: a convolution forward, or the gradient of its input.

use super::super::conv::{End, Target};
use super::super::map::Map;
use super::super::plan::RING;
use super::layout::{Lattice, Windows};
use crate::nn::kernels::amx::product::{BYTES, Factor, Product, Shapes, Sums, Unit};
use crate::nn::kernels::amx::{DEPTH, PARTS, SIDE, TILE, split};
use crate::nn::kernels::simd::{Avx512, Simd};

/// Bytes of a band's split copy, and of the copies of a pass, that stay in the second-level cache beside the results.
const ROOM: usize = 320 << 10;
const PASS_ROOM: usize = 640 << 10;
/// Bytes of weights that do not.
const MANY: usize = 1 << 20;
/// Pixels that share one pass over the weights.
const PASS_PIXELS: usize = 512;

/// A product of windows with weights.
#[derive(Debug)]
pub(super) struct Windowed {
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
    /// Image and pixel of the outputs of a band, of the images that take turns, in the order of their blocks.
    outputs: Vec<(u32, u32)>,
}

impl Windowed {
    /// Lays out the product of these windows with weights for so many lanes; none where the unit would idle.
    pub fn new(windows: &Windows, lanes: usize) -> Option<Self> {
        let channels = windows.map.cp;
        let room = ROOM / (2 * PARTS * channels);
        let lattice = Lattice::new(windows, [SIDE, 1, SIDE / 2], room)?;
        let shapes = Shapes::new(lattice.run, DEPTH);
        let (steps, origins) = (Vec::new(), Vec::new());
        let rows = 0..lattice.band * windows.out.1;
        let row = |first| lattice.outputs.iter().map(move |&(column, turn)| (turn as u32, (first + column) as u32));
        let outputs = rows.step_by(windows.out.1.max(1)).flat_map(row).collect();
        let mut side = Windowed { lattice, channels, lanes, steps, origins, shapes, out: windows.out, outputs };
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
        let turns = self.lattice.turns;
        let most = (PASS_PIXELS / (self.out.0 * self.out.1).max(1)).min(room).clamp(turns, RING);
        most / turns * turns
    }

    /// Floats of scratch that a worker needs.
    pub fn scratch(&self) -> usize {
        self.pass() / self.lattice.turns * self.copy()
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
        let (run, runs) = (lattice.run, lattice.columns / lattice.run);
        let total = lattice.band * runs;
        let right = Factor { blocks: [0, TILE].map(|at| w.wrapping_add(at).cast()), part: 2 * BYTES };
        let mut sums = Sums::default();
        // SAFETY: the machine has the unit.
        let unit = unsafe { Unit::open(&self.shapes) };
        for first in (0..total).step_by(2) {
            let blocks = [first, first + 1].map(|block| {
                // A block too many repeats the last.
                let block = block.min(total - 1);
                planes.wrapping_add(16 * lattice.base(block / runs, block % runs * run)).cast()
            });
            let left = Factor { blocks, part: self.part() };
            let outputs = &self.outputs[first * run..total.min(first + 2) * run];
            // SAFETY: the split copy and the weights hold all steps; outputs lie in their map.
            unsafe {
                let places = self.places(outputs, &y, at);
                Product { left, right, steps: &self.steps }.write_to(sums.0.as_mut_ptr(), &unit);
                self.finish(&sums, &places, outputs, at, end);
            }
        }
    }

    /// Where two blocks' outputs go, sixteen each; null where a block has no more. Asks for them: they come from memory
    /// while the unit multiplies.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn places(&self, outputs: &[(u32, u32)], y: &Target<'_>, at: &Place) -> [*mut f32; 2 * SIDE] {
        let (image, base) = (y.map.image(), y.at.wrapping_add(at.image * y.map.image() + at.lane));
        let to = &y.to[at.band * self.lattice.band * self.out.1..];
        let mut places = [std::ptr::null_mut(); 2 * SIDE];
        for (places, outputs) in places.chunks_exact_mut(SIDE).zip(outputs.chunks_exact(self.lattice.run)) {
            for (place, &(turn, pixel)) in places.iter_mut().zip(outputs) {
                if (turn as usize) < at.count {
                    *place = base.wrapping_add(turn as usize * image + to[pixel as usize] as usize);
                    Avx512::prefetch(*place);
                    Avx512::prefetch(place.wrapping_add(SIDE));
                }
            }
        }
        places
    }

    /// Adds what belongs to the outputs of two blocks, and writes them.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn finish(
        &self,
        sums: &Sums,
        places: &[*mut f32; 2 * SIDE],
        outputs: &[(u32, u32)],
        at: &Place,
        end: &End<'_>,
    ) {
        let bias = if end.bias.is_null() { end.bias } else { end.bias.wrapping_add(at.lane) };
        let band = at.band * self.lattice.band * self.out.1;
        let run = self.lattice.run;
        for (row, &to) in places.iter().enumerate().filter(|p| !p.1.is_null()) {
            let (block, row) = (row / SIDE, row % SIDE);
            let add = end.start.as_ref().map_or(std::ptr::null(), |s| {
                let (turn, pixel) = outputs[block * run + row];
                let image = at.image + turn as usize;
                s.at.wrapping_add(image * s.image + s.to[band + pixel as usize] as usize + at.lane)
            });
            // SAFETY: the pixel is one of the output's, the lanes are its own; the caller's contract.
            unsafe { split::finish(&sums.0[block * 2 * TILE + row * SIDE..], [bias, add], end.relu, to) }
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
