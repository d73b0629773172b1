//! The product of output gradients with inputs, over pixels: a convolution's weight gradient.

use std::ops::Range;

use super::super::map::Map;
use super::layout::{Lattice, Windows};
use crate::nn::kernels::amx::product::{BYTES, Factor, Product, Shapes, Sums, Unit};
use crate::nn::kernels::amx::{DEPTH, PARTS, SIDE, TILE, split};

/// Bytes of the split copies that stay in the second-level cache.
const ROOM: usize = 1 << 20;

/// Sums over pixels of every output channel with every input channel under every tap.
#[derive(Debug)]
pub(super) struct OverPixels {
    lattice: Lattice,
    /// Floats of a pixel of the inputs, and lanes of one of the output gradients.
    channels: usize,
    lanes: usize,
    /// Pairs of neighbours that begin with an even place, and perhaps with an odd one.
    parities: usize,
    /// Where each step of pixels lies in both copies.
    steps: Vec<[usize; 2]>,
    shapes: Shapes,
}

impl OverPixels {
    /// Lays out the sums for these windows; none where the unit would idle.
    pub fn new(windows: &Windows, lanes: usize) -> Option<Self> {
        let channels = windows.map.cp;
        let room = ROOM / (2 * PARTS * (2 * channels + lanes));
        let lattice = Lattice::new(windows, [DEPTH, 2, DEPTH / 2], room)?;
        let runs = || (0..lattice.columns).step_by(lattice.run);
        let places = (0..lattice.band).flat_map(|row| runs().map(move |column| (row, column)));
        let places = places.map(|(row, column)| lattice.base(row, column));
        let steps = places.enumerate().map(|(s, place)| [s * PARTS * BYTES, place / 2 * 64]).collect();
        let shapes = Shapes::new(SIDE, lattice.run);
        let parities = if lattice.taps.iter().any(|t| t % 2 == 1) { 2 } else { 1 };
        Some(OverPixels { lattice, channels, lanes, parities, steps, shapes })
    }

    /// Images that share a block of the sums.
    pub fn turns(&self) -> usize {
        self.lattice.turns
    }

    /// Sixteen input channels under a tap each.
    fn blocks(&self) -> usize {
        self.lattice.taps.len() * self.channels / SIDE
    }

    /// Sixteen input channels and the tap of a block: taps follow each other, for they read the same lines.
    fn block(&self, block: usize) -> (usize, usize) {
        (block / self.lattice.taps.len(), block % self.lattice.taps.len())
    }

    /// Products of two blocks with thirty-two lanes.
    fn products(&self) -> usize {
        self.blocks().div_ceil(2)
    }

    /// Products with all lanes: what workers share.
    pub fn tiles(&self) -> usize {
        self.products() * self.lanes / DEPTH
    }

    /// Floats of the sums, four tiles a product.
    pub fn packed(&self) -> usize {
        self.tiles() * 4 * TILE
    }

    /// First float of the sums of a lane with sixteen input channels from `channel` on under a tap.
    pub fn row(&self, lane: usize, channel: usize, tap: usize) -> usize {
        let block = channel / SIDE * self.lattice.taps.len() + tap;
        let product = lane / DEPTH * self.products() + block / 2;
        (4 * product + lane % DEPTH / SIDE * 2 + block % 2) * TILE + lane % SIDE * SIDE
    }

    /// Bytes of one part of the pairs of sixteen channels that begin with even (or odd) places.
    fn part(&self) -> usize {
        64 * (self.lattice.places().div_ceil(2) | 1)
    }

    /// Bytes of sixteen channels of the inputs.
    fn group(&self) -> usize {
        self.parities * PARTS * self.part()
    }

    /// Floats of the split output gradients.
    fn turned(&self) -> usize {
        self.lanes / SIDE * self.steps.len() * PARTS * TILE
    }

    /// Floats of scratch that a worker needs.
    pub fn scratch(&self) -> usize {
        self.turned() + self.channels / SIDE * self.group() / 4
    }

    /// Adds these products to the sums over `images` images.
    ///
    /// # Safety
    /// As `Conv::weight_gradient`, with this scratch.
    pub unsafe fn run(
        &self,
        (x, x_map): (*const f32, &Map),
        (gy, gy_map): (*const f32, &Map),
        sums: *mut f32,
        tiles: Range<usize>,
        images: usize,
        scratch: *mut f32,
    ) {
        if tiles.is_empty() {
            return;
        }
        let pairs = scratch.wrapping_add(self.turned());
        // Panels of thirty-two lanes that these tiles belong to.
        let panels = tiles.start / self.products()..tiles.end.div_ceil(self.products());
        let groups = panels.start * 2..panels.end * 2;
        for image in (0..images).step_by(self.lattice.turns) {
            for band in 0..self.lattice.bands {
                let count = images - image;
                // SAFETY: images and bands lie in the regions, copies in the scratch.
                unsafe {
                    let x = x.add(image * x_map.image() + band * self.lattice.next);
                    let gy = gy.add(image * gy_map.image() + gy_map.at(band * self.lattice.band, 0));
                    self.turn(gy, gy_map, count, groups.clone(), scratch);
                    self.pair(x, count, pairs);
                    self.multiply(scratch, pairs, sums, tiles.clone());
                }
            }
        }
    }

    /// Splits and turns a band of the output gradients, these groups of sixteen lanes: `[16 lanes][step][part]`, tiles of
    /// lanes × pixels.
    unsafe fn turn(&self, gy: *const f32, map: &Map, count: usize, groups: Range<usize>, to: *mut f32) {
        let runs = self.lattice.columns / self.lattice.run;
        for step in 0..self.steps.len() {
            let (row, first) = (step / runs, step % runs * self.lattice.run);
            let mut pixels = [std::ptr::null(); DEPTH];
            for (pixel, &(column, image)) in
                pixels.iter_mut().zip(&self.lattice.outputs[first..first + self.lattice.run])
            {
                if image < count {
                    *pixel = gy.wrapping_add(image * map.image() + row * map.row() + column * map.cp);
                }
            }
            for group in groups.clone() {
                let rows = pixels.map(|p| if p.is_null() { p } else { p.wrapping_add(group * SIDE) });
                // SAFETY: sixteen lanes of pixels; three tiles of the copy.
                unsafe { split::turned(&rows, to.add((group * self.steps.len() + step) * PARTS * TILE)) }
            }
        }
    }

    /// Splits a band of the inputs: `[16 channels][parity][part][pair]`.
    unsafe fn pair(&self, x: *const f32, count: usize, to: *mut f32) {
        let from = |place: usize| self.lattice.pixel(place, x, count);
        let part = self.part() / 4;
        for first in (0..self.lattice.places()).step_by(2) {
            let pixels = [from(first), from(first + 1), from(first + 2)];
            for group in 0..self.channels / SIDE {
                let vector = pixels.map(|p| if p.is_null() { p } else { p.wrapping_add(group * SIDE) });
                for parity in 0..self.parities {
                    // SAFETY: sixteen channels of two pixels; a line of the copy.
                    unsafe {
                        let to = to.add((group * self.parities + parity) * PARTS * part + 8 * first);
                        split::line(vector[parity], vector[parity + 1], to, part);
                    }
                }
            }
        }
    }

    unsafe fn multiply(&self, turned: *const f32, pairs: *const f32, sums: *mut f32, tiles: Range<usize>) {
        let group = PARTS * BYTES * self.steps.len();
        // SAFETY: the machine has the unit.
        let unit = unsafe { Unit::open(&self.shapes) };
        let mut band = Sums::default();
        for tile in tiles {
            let (panel, block) = (tile / self.products(), tile % self.products() * 2);
            let lanes = [0, 1].map(|v| turned.cast::<u8>().wrapping_add((2 * panel + v) * group));
            let left = Factor { blocks: lanes, part: BYTES };
            let right = self.inputs(pairs, block);
            // SAFETY: copies hold all steps; the sums' tiles are this worker's.
            unsafe {
                Product { left, right, steps: &self.steps }.write_to(band.0.as_mut_ptr(), &unit);
                // One long sum over a batch would round ten times as much as sums of bands.
                split::add(&band.0, sums.add(4 * TILE * tile));
            }
        }
    }

    /// Two blocks; one too many repeats the last.
    fn inputs(&self, pairs: *const f32, first: usize) -> Factor {
        let blocks = [first, first + 1].map(|block| {
            let (group, tap) = self.block(block.min(self.blocks() - 1));
            let place = self.lattice.taps[tap];
            let at = group * self.group() + place % 2 * PARTS * self.part() + place / 2 * 64;
            pairs.cast::<u8>().wrapping_add(at)
        });
        Factor { blocks, part: self.part() }
    }
}
