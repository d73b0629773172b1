//! A convolution's weight gradient: blocks of pixels, and tiles of weights over each block.

use std::ops::Range;

use super::conv::{Conv, Panel};
use super::map::Map;
use super::overlap::{self, Pixels};
use super::plan::RING;
use super::taps::Lines;
use super::tile::{self, GradPass, Run};
use super::winograd::Images;
use crate::nn::kernels::Isa;

/// Pixels of a block: the accumulators are added to memory after about so many.
const PIXELS: usize = 128;

/// Some rows of pixels of some images.
#[derive(Clone, Copy)]
struct Block {
    /// Window base of the first pixel, at the first channel.
    x: *const f32,
    /// Output gradient of the first pixel, at the first channel.
    gy: *const f32,
    images: usize,
    rows: usize,
}

impl Conv {
    /// Tiles of the weight gradient: what workers share.
    pub fn gradient_tiles(&self) -> usize {
        match (&self.tiles, &self.minimal) {
            (Some(t), _) => t.gradient_tiles(),
            (_, Some(m)) => m.forward.positions(),
            _ => self.forward.panels.iter().map(|p| self.tiles(p)).sum(),
        }
    }

    /// Tiles of a panel.
    fn tiles(&self, panel: &Panel) -> usize {
        if let Some(lines) = self.overlapping(panel) {
            return 3 * lines.channels / overlap::CHANNELS;
        }
        let height = tile::grad_rows(self.isa, panel.vectors);
        panel.runs.iter().map(|run| run.len.div_ceil(height)).sum()
    }

    /// How the windows overlap, where the weight gradient can use that.
    fn overlapping(&self, panel: &Panel) -> Option<&Lines> {
        let whole = |l: &&Lines| (l.height, l.kind.0) == (3, 3) && l.channels.is_multiple_of(overlap::CHANNELS);
        self.forward.lines.as_ref().filter(whole).filter(|_| panel.vectors == overlap::VECTORS && self.y.w >= 2)
    }

    /// Rows of a block, and images.
    fn block(&self) -> (usize, usize) {
        let rows = (PIXELS / self.y.w.max(1)).clamp(1, self.y.h.max(1));
        (rows, 1 << (PIXELS / self.y.pixels().max(1)).clamp(1, RING).ilog2())
    }

    /// Rows and columns of the inputs under so many rows of pixels.
    fn under(&self, rows: usize) -> [usize; 2] {
        [rows, self.y.w].map(|n| (n - 1) * self.shape.stride + self.shape.kernel)
    }

    /// Floats where a block is copied to.
    pub(super) fn gradient_scratch(&self) -> usize {
        if !self.copies() || !self.forward.panels.iter().any(|p| self.overlapping(p).is_some()) {
            return 0;
        }
        let (rows, images) = self.block();
        let [high, wide] = self.under(rows);
        images * (high * wide * overlap::GROUP + rows * self.y.w * self.y.cp)
    }

    /// Adds the packed weight gradient over `images` images, these tiles of it.
    ///
    /// # Safety
    /// As [`Conv::forward`]; `gw` is a region of [`Conv::packed_gradient`] floats whose tiles nobody else touches.
    pub unsafe fn weight_gradient(
        &self,
        x: *const f32,
        gy: *const f32,
        gw: *mut f32,
        tiles: Range<usize>,
        images: usize,
        scratch: *mut f32,
    ) {
        if let Some(t) = &self.tiles {
            // SAFETY: passed on.
            return unsafe { t.weight_gradient(x, gy, gw, tiles, images, scratch) };
        }
        if let Some(m) = &self.minimal {
            let [x, gy] =
                [(x, &self.x), (gy, &self.gy)].map(|(at, map)| Images { at: at.cast_mut(), map, count: images });
            // SAFETY: passed on.
            return unsafe { m.forward.weight_gradient(x, gy, gw, scratch, tiles) };
        }
        let (step, group) = self.block();
        for image in (0..images).step_by(group) {
            for row in (0..self.y.h).step_by(step) {
                // SAFETY: pixel (row, 0) of the image, window base inside the border.
                unsafe {
                    let x = x.add(image * self.x.image() + self.forward.from[row * self.y.w] as usize);
                    let gy = gy.add(image * self.gy.image() + self.gy.at(row, 0));
                    let block = Block { x, gy, images: group.min(images - image), rows: step.min(self.y.h - row) };
                    self.plain_tiles(&block, gw, tiles.clone());
                    self.overlapping_tiles(&block, gw, tiles.clone(), scratch);
                }
            }
        }
    }

    /// The panels of which some of these tiles are, with those tiles counted from the panel's first.
    fn touched(&self, tiles: Range<usize>) -> impl Iterator<Item = (&Panel, Range<usize>)> {
        let mut next = 0;
        self.forward.panels.iter().filter_map(move |panel| {
            let (first, count) = (next, self.tiles(panel));
            next += count;
            let own = tiles.start.max(first)..tiles.end.min(next);
            (!own.is_empty()).then(|| (panel, own.start - first..own.end - first))
        })
    }

    /// Tiles of panels whose windows are taken one by one.
    unsafe fn plain_tiles(&self, block: &Block, gw: *mut f32, tiles: Range<usize>) {
        for (panel, own) in self.touched(tiles).filter(|t| self.overlapping(t.0).is_none()) {
            // SAFETY: the panel's lanes lie in the pixel, its rows in the packed gradient; windows lie inside the
            // bordered input, the region's slack follows it.
            unsafe {
                let pass = GradPass {
                    x: block.x,
                    y: block.gy.add(panel.lane),
                    images: block.images,
                    image_step: [self.x.image(), self.gy.image()],
                    rows: block.rows,
                    columns: self.y.w,
                    x_step: [self.shape.stride * self.x.row(), self.shape.stride * self.x.cp],
                    y_step: [self.gy.row(), self.gy.cp],
                    w: gw.add(panel.weights),
                    offset: 0,
                    len: 0,
                    vectors: panel.vectors,
                };
                by_runs(self.isa, &panel.runs, &pass, own);
            }
        }
    }

    /// Tiles of panels whose windows overlap.
    unsafe fn overlapping_tiles(&self, block: &Block, gw: *mut f32, tiles: Range<usize>, scratch: *mut f32) {
        let panels = || self.touched(tiles.clone()).filter_map(|(p, own)| Some((p, own, self.overlapping(p)?)));
        let Some((_, _, lines)) = panels().next() else { return };
        let channels = (0..lines.channels).step_by(overlap::GROUP);
        // SAFETY: `scratch` has room for the copies; everything else lies in the block's maps and the packed gradient.
        unsafe {
            let x = Pixels { at: block.x.offset(lines.rows[0]), pitch: self.pitch(&self.x, self.shape.stride) };
            let y = Pixels { at: block.gy, pitch: self.pitch(&self.gy, 1) };
            let copied = self.copies().then(|| self.copy_gradients(block, y, panels().map(|p| p.0.lane), scratch));
            for first in channels {
                let x = match copied {
                    Some((_, free)) => self.copy_inputs(block, x.after(first), free),
                    None => x.after(first),
                };
                for (i, (panel, own, lines)) in panels().enumerate() {
                    let y = match copied {
                        Some((y, _)) => y.after(i * block.images * y.pitch[0]),
                        None => y.after(panel.lane),
                    };
                    let count = [block.images, block.rows, self.y.w];
                    let (w, tap) = (gw.add(panel.weights), overlap::LANES * lines.channels);
                    let tile = overlap::Tile { x, y, count, step: self.shape.stride, w, tap };
                    self.group_tiles(&tile, first..lines.channels, own);
                }
            }
        }
    }

    /// Whether a block is copied: with one panel, nothing that is read lies far apart.
    fn copies(&self) -> bool {
        self.forward.panels.len() > 1
    }

    /// How pixels under windows `step` apart lie in a map.
    fn pitch(&self, map: &Map, step: usize) -> [usize; 3] {
        [map.image(), step * map.row(), map.cp]
    }

    /// Copies panels of the output gradient, one behind the other; the first of them, and what is free behind them.
    unsafe fn copy_gradients(
        &self,
        block: &Block,
        from: Pixels,
        lanes: impl Iterator<Item = usize>,
        scratch: *mut f32,
    ) -> (Pixels, *mut f32) {
        let (mut to, row) = (scratch, self.y.w * overlap::LANES);
        for lane in lanes {
            for image in 0..block.images {
                // SAFETY: the caller's contract.
                unsafe {
                    let from = from.at.add(image * from.pitch[0] + lane);
                    let pitch = [self.gy.row(), self.gy.cp];
                    let rows = overlap::Rows { from, pitch, count: [block.rows, self.y.w, overlap::VECTORS], to };
                    overlap::copy(self.isa, &rows);
                    to = rows.end();
                }
            }
        }
        (Pixels { at: scratch, pitch: [block.rows * row, row, overlap::LANES] }, to)
    }

    /// Copies a group of channels of the inputs under a block.
    unsafe fn copy_inputs(&self, block: &Block, from: Pixels, scratch: *mut f32) -> Pixels {
        let [high, wide] = self.under(block.rows);
        let (mut to, row) = (scratch, wide * overlap::GROUP);
        for image in 0..block.images {
            // SAFETY: the caller's contract.
            unsafe {
                let from = from.at.add(image * from.pitch[0]);
                let rows = overlap::Rows { from, pitch: [self.x.row(), self.x.cp], count: [high, wide, 1], to };
                overlap::copy(self.isa, &rows);
                to = rows.end();
            }
        }
        Pixels { at: scratch, pitch: [high * row, self.shape.stride * row, overlap::GROUP] }
    }

    /// Those of a panel's tiles that read the first group of these channels.
    unsafe fn group_tiles(&self, all: &overlap::Tile, channels: Range<usize>, own: Range<usize>) {
        let (a_row, line) = (channels.end / overlap::CHANNELS, all.x.pitch[1] / self.shape.stride);
        for row in 0..3 {
            for channel in channels.clone().take(overlap::GROUP).step_by(overlap::CHANNELS) {
                if own.contains(&(row * a_row + channel / overlap::CHANNELS)) {
                    // SAFETY: inside the copies and the packed gradient.
                    unsafe {
                        let x = all.x.after(row * line + channel - channels.start);
                        let w = all.w.add(3 * row * all.tap + overlap::LANES * channel);
                        overlap::add(self.isa, &overlap::Tile { x, w, ..*all });
                    }
                }
            }
        }
    }
}

/// These tiles of a panel, run by run.
unsafe fn by_runs(isa: Isa, runs: &[Run], pass: &GradPass, tiles: Range<usize>) {
    let height = tile::grad_rows(isa, pass.vectors);
    let (mut tile, mut k) = (0, 0);
    for run in runs {
        for first in (0..run.len).step_by(height) {
            if tiles.contains(&tile) {
                // SAFETY: passed on; the tile's first weight lies in the packed gradient.
                unsafe {
                    let w = pass.w.add((k + first) * 16 * pass.vectors);
                    let (offset, len) = (run.offset + first as isize, height.min(run.len - first));
                    tile::grad_pass(isa, &GradPass { w, offset, len, ..*pass });
                }
            }
            tile += 1;
        }
        k += run.len;
    }
}
