//! The blocks that a window needs, decoded.

use std::ops::Range;

use super::Memory;
use super::colour::{self, Plane};
use super::header::Header;
use super::huffman::{Bits, Table};
use super::idct::{self, Block};
use crate::nn::kernels::Isa;
use crate::nn::kernels::resample::Window;

/// How a component's samples lie.
#[derive(Clone, Copy)]
struct Lie {
    /// Blocks of a unit across and down.
    blocks: (usize, usize),
    /// Samples on a block's side: 8, or fewer for a smaller picture.
    side: usize,
    /// Pixels for each sample, across and down: 1 or 2.
    spread: (usize, usize),
}

/// What a picture at `side` samples a block needs of each component.
fn lies(header: &Header<'_>, side: usize) -> Vec<Lie> {
    let (across, down) = (header.sampling.across, header.sampling.down);
    let colour = match (across, down) {
        // Colour keeps samples that brightness gives up.
        (2, 2) if side < 8 => Lie { blocks: (1, 1), side: 2 * side, spread: (1, 1) },
        _ => Lie { blocks: (1, 1), side, spread: (across, down) },
    };
    let mut all = vec![Lie { blocks: (across, down), side, spread: (1, 1) }, colour, colour];
    all.truncate(header.components.len());
    all
}

/// Units along one side that hold samples `from..to` of the picture and what their filter sees.
fn units(from: usize, to: usize, spread: usize, unit: usize, samples: usize) -> Range<usize> {
    let margin = spread - 1;
    let (first, last) = ((from / spread).saturating_sub(margin), ((to - 1) / spread + margin).min(samples - 1));
    first / unit..last / unit + 1
}

fn union(a: Range<usize>, b: Range<usize>) -> Range<usize> {
    a.start.min(b.start)..a.end.max(b.end)
}

/// Decodes the blocks behind `window` of the picture at `side` samples a block into the memory's planes. None where the
/// file is damaged.
pub(super) fn planes(header: &Header<'_>, window: Window, side: usize, memory: &mut Memory) -> Option<()> {
    let lies = lies(header, side);
    let none = Range { start: usize::MAX, end: 0 };
    let (mut rows, mut columns) = (none.clone(), none);
    for (lie, plane) in lies.iter().zip(&mut memory.planes) {
        let samples = |pixels: usize, blocks: usize, most: usize| (pixels * blocks * lie.side).div_ceil(8 * most);
        plane.height = samples(header.height, lie.blocks.1, header.sampling.down);
        plane.width = samples(header.width, lie.blocks.0, header.sampling.across);
        let (across, down) = (lie.blocks.0 * lie.side, lie.blocks.1 * lie.side);
        let (bottom, right) = (window.top + window.height, window.left + window.width);
        rows = union(rows, units(window.top, bottom, lie.spread.1, down, plane.height));
        columns = union(columns, units(window.left, right, lie.spread.0, across, plane.width));
    }
    for (lie, plane) in lies.iter().zip(&mut memory.planes) {
        let (across, down) = (lie.blocks.0 * lie.side, lie.blocks.1 * lie.side);
        (plane.top, plane.left, plane.stride) = (rows.start * down, columns.start * across, columns.len() * across);
        plane.samples.resize(plane.stride * rows.len() * down, 0);
    }
    Reader { header, lies: &lies, rows, columns, pending: Pending::default() }.read(memory)
}

struct Reader<'a> {
    header: &'a Header<'a>,
    lies: &'a [Lie],
    rows: Range<usize>,
    columns: Range<usize>,
    pending: Pending<'a>,
}

impl<'a> Reader<'a> {
    fn read(mut self, memory: &mut Memory) -> Option<()> {
        let header = self.header;
        let parts: Vec<(&Table, &Table, &[i16; 64])> =
            header.components.iter().map(|c| header.parts(c)).collect::<Option<_>>()?;
        let across = header.width.div_ceil(8 * header.sampling.across);
        let (mut bits, mut means, mut unit) = (Bits::new(header.scan), [0; 3], 0usize);
        for row in 0..self.rows.end {
            for column in 0..across {
                if header.restart > 0 && unit > 0 && unit.is_multiple_of(header.restart) {
                    bits.restart(((unit / header.restart - 1) % 8) as u8)?;
                    means = [0; 3];
                }
                unit += 1;
                let needed = self.rows.contains(&row) && self.columns.contains(&column);
                for (c, (&(dc, ac, quant), mean)) in parts.iter().zip(&mut means).enumerate() {
                    let lie = self.lies[c];
                    for b in 0..lie.blocks.0 * lie.blocks.1 {
                        if !needed {
                            bits.pass((dc, ac), mean)?;
                            continue;
                        }
                        let (x, y) = (column * lie.blocks.0 + b % lie.blocks.0, row * lie.blocks.1 + b / lie.blocks.0);
                        let plane = &memory.planes[c];
                        let at = (y * lie.side - plane.top) * plane.stride + x * lie.side - plane.left;
                        let last = bits.block((dc, ac), mean, self.pending.next())?;
                        self.pending.push(Place { component: c, at, side: lie.side, quant }, last, memory);
                    }
                }
            }
        }
        self.pending.flush(memory);
        (!bits.spent()).then_some(())
    }
}

/// Where a block's samples go.
#[derive(Clone, Copy)]
struct Place<'a> {
    component: usize,
    at: usize,
    side: usize,
    quant: &'a [i16; 64],
}

/// Up to two blocks whose coefficients are read: two are transformed as fast as one.
struct Pending<'a> {
    coefficients: [[i16; 64]; 2],
    places: [Option<Place<'a>>; 2],
}

impl Default for Pending<'_> {
    fn default() -> Self {
        Pending { coefficients: [[0; 64]; 2], places: [None; 2] }
    }
}

impl<'a> Pending<'a> {
    /// Zeros for the next block.
    #[inline(always)]
    fn next(&mut self) -> &mut [i16; 64] {
        &mut self.coefficients[usize::from(self.places[0].is_some())]
    }

    /// The block in `next` belongs here; `last` is its last coefficient's place.
    #[inline(always)]
    fn push(&mut self, place: Place<'a>, last: usize, memory: &mut Memory) {
        let slot = usize::from(self.places[0].is_some());
        if last == 0 {
            let coefficients = &mut self.coefficients[slot];
            let mut value = [0];
            idct::transform(Block { coefficients, quant: place.quant }, 1, &mut value, 1);
            coefficients[0] = 0;
            let plane = &mut memory.planes[place.component];
            for row in plane.samples[place.at..].chunks_mut(plane.stride).take(place.side) {
                row[..place.side].fill(value[0]);
            }
            return;
        }
        self.places[slot] = Some(place);
        if slot == 1 {
            self.flush(memory);
        }
    }

    fn flush(&mut self, memory: &mut Memory) {
        #[cfg(target_arch = "x86_64")]
        if memory.isa > Isa::Portable
            && let [Some(a), Some(b)] = self.places
            && a.side == 8
            && b.side == 8
        {
            let [first, second] = &self.coefficients;
            let blocks =
                [Block { coefficients: first, quant: a.quant }, Block { coefficients: second, quant: b.quant }];
            let mut bytes = [[0; 64]; 2];
            // SAFETY: every instruction set above the portable one of x86-64 has AVX2.
            unsafe { super::avx2::pair(blocks, &mut bytes) };
            for (place, bytes) in [a, b].into_iter().zip(&bytes) {
                let Plane { samples, stride, .. } = &mut memory.planes[place.component];
                for (row, from) in samples[place.at..].chunks_mut(*stride).zip(bytes.as_chunks::<8>().0) {
                    row[..8].copy_from_slice(from);
                }
            }
            self.places = [None; 2];
            self.coefficients = [[0; 64]; 2];
            return;
        }
        for (coefficients, place) in self.coefficients.iter_mut().zip(&mut self.places) {
            if let Some(Place { component, at, side, quant }) = place.take() {
                let plane = &mut memory.planes[component];
                idct::transform(Block { coefficients, quant }, side, &mut plane.samples[at..], plane.stride);
                *coefficients = [0; 64];
            }
        }
    }
}

/// The window in RGB, `(height, width, 3)`, from the planes.
pub(super) fn paint(header: &Header<'_>, window: Window, side: usize, memory: &mut Memory, out: &mut [[u8; 3]]) {
    let spread = lies(header, side).last().map_or((1, 1), |lie| lie.spread);
    let grey = header.components.len() == 1;
    #[cfg(target_arch = "x86_64")]
    if memory.isa > Isa::Portable {
        #[target_feature(enable = "avx2")]
        fn avx2(window: Window, spread: (usize, usize), grey: bool, memory: &mut Memory, out: &mut [[u8; 3]]) {
            body(window, spread, grey, memory, out);
        }
        // SAFETY: as above.
        return unsafe { avx2(window, spread, grey, memory, out) };
    }
    body(window, spread, grey, memory, out);
}

#[inline(always)]
fn body(window: Window, spread: (usize, usize), grey: bool, memory: &mut Memory, out: &mut [[u8; 3]]) {
    let (from, to) = (window.left, window.left + window.width);
    let [brightness, blue, red] = &memory.planes;
    let [one, two] = &mut memory.rows;
    for (y, out) in (window.top..).zip(out.chunks_exact_mut(window.width)) {
        let row = &brightness.row(y as isize)[from - brightness.left..to - brightness.left];
        if grey {
            out.iter_mut().zip(row).for_each(|(to, v)| *to = [*v; 3]);
        } else if spread.0 == 2 {
            let (cb, cr) = (one.spread(blue, y, spread.1, from, to), two.spread(red, y, spread.1, from, to));
            colour::rgb(memory.isa, row, cb, cr, out);
        } else {
            let part = |plane: &'_ Plane| from - plane.left..to - plane.left;
            let (cb, cr) = (&blue.row(y as isize)[part(blue)], &red.row(y as isize)[part(red)]);
            colour::rgb(memory.isa, row, cb, cr, out);
        }
    }
}
