//! Convolution: where windows lie, how weights are packed, and the three products.

use std::ops::Range;

use super::map::Map;
use super::taps::{self, Lines};
use super::tile::{self, Pass, Run, Start};
use super::tiles::Tiles;
use super::winograd::{self, Finish, Images, Winograd};
use crate::nn::kernels::Isa;

/// Packed weights that stay in the second-level cache while tiles pass, in floats.
const BLOCK: usize = 65536;
/// Pixels that share one pass over all panels.
const PASS_PIXELS: usize = 512;

/// A convolution's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Window side.
    pub kernel: usize,
    /// Step.
    pub stride: usize,
    /// Zeros around.
    pub padding: usize,
    /// Channel groups.
    pub groups: usize,
}

impl Shape {
    /// Remainders of input pixels modulo the stride, of a map that has any.
    pub fn phases(&self, gx: &Map) -> impl Iterator<Item = (usize, usize)> {
        let (s, h, w) = (self.stride, gx.h, gx.w);
        (0..s * s).map(move |phase| (phase / s, phase % s)).filter(move |&(y, x)| y < h && x < w)
    }

    /// Border that the output's gradient needs for the input's gradient, given the input's and output's sides.
    pub fn grad_border(&self, sides: [(usize, usize); 2]) -> usize {
        let before = (self.kernel - 1).saturating_sub(self.padding).div_ceil(self.stride);
        let after = sides.iter().map(|&(x, y)| ((x - 1 + self.padding) / self.stride).saturating_sub(y - 1)).max();
        before.max(after.unwrap_or(0))
    }
}

/// Sixteen to sixty-four lanes of output channels and what they read.
#[derive(Debug)]
pub(super) struct Panel {
    pub lane: usize,
    pub vectors: usize,
    /// Channels read.
    channels: Range<usize>,
    /// Start of the packed weights.
    pub weights: usize,
    /// What the window reads.
    pub runs: Vec<Run>,
    /// The same, cut into blocks whose weights fit a cache.
    blocks: Vec<Vec<Run>>,
}

/// One product over one grid of output pixels.
#[derive(Debug)]
pub(super) struct Grid {
    taps: Vec<(usize, usize)>,
    pub panels: Vec<Panel>,
    pub from: Vec<u32>,
    to: Vec<u32>,
    /// Where neighbouring windows overlap and the instruction set gains by it.
    pub lines: Option<Lines>,
}

/// How convolutions are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// The sum as it is written; on the matrix unit where there is one and the convolution fills it.
    #[default]
    Direct,
    /// Winograd's F(4×4, 3×3) where it fits (3×3, stride 1, 64 channels and more): fewer products, about ten times the
    /// rounding error. Else the sum as it is written, never on the matrix unit.
    Winograd,
    /// The matrix unit where there is one and the convolution fills it, Winograd where that fits, else the sum as it is
    /// written.
    Fastest,
}

/// The products of a convolution that Winograd's algorithm computes.
#[derive(Debug)]
pub(super) struct Minimal {
    pub forward: Winograd,
    backward: Winograd,
}

/// A convolution in fixed memory layouts.
#[derive(Debug)]
pub(super) struct Conv {
    pub shape: Shape,
    pub isa: Isa,
    pub x: Map,
    pub y: Map,
    pub gy: Map,
    gx: Option<Map>,
    pub forward: Grid,
    backward: Vec<Grid>,
    pub minimal: Option<Minimal>,
    /// On the matrix unit, where the instruction set has one.
    pub tiles: Option<Box<Tiles>>,
}

impl Conv {
    /// Lays out the products. `x`, `y`: input and output; `gy`, `gx`: their gradients (`gx` absent: not needed).
    pub fn new(shape: Shape, isa: Isa, x: Map, y: Map, gy: Map, gx: Option<Map>, algorithm: Algorithm) -> Self {
        let tiles = (isa == Isa::Amx && algorithm != Algorithm::Winograd).then(|| Tiles::new(shape, x, y, gy, gx));
        let tiles = tiles.flatten().map(Box::new);
        let isa = isa.vectors();
        let forward = forward_grid(&shape, isa, &x, &y);
        let backward = gx.map(|gx| backward_grids(&shape, isa, &gy, &gx)).unwrap_or_default();
        let plain = (shape.kernel, shape.stride, shape.padding, shape.groups) == (3, 1, 1, 1);
        let fits = plain && winograd::fits(&x, &y) && gx.is_none_or(|gx| winograd::fits(&gy, &Map { border: 1, ..gx }));
        let minimal = (algorithm != Algorithm::Direct && tiles.is_none() && fits).then(|| Minimal {
            forward: Winograd::new(isa, shape.inputs, shape.outputs),
            backward: Winograd::new(isa, shape.outputs, shape.inputs),
        });
        Conv { shape, isa, x, y, gy, gx, forward, backward, minimal, tiles }
    }

    /// Floats of the packed weights for the forward product, bias at the end.
    pub fn packed(&self) -> usize {
        self.products() + self.y.cp
    }

    /// Floats of the packed weight gradient.
    pub fn packed_gradient(&self) -> usize {
        self.tiles.as_ref().map_or_else(|| self.packed(), |t| t.packed_gradient())
    }

    /// Floats of the packed weights without the bias.
    fn products(&self) -> usize {
        match (&self.tiles, &self.minimal) {
            (Some(t), _) => t.packed(),
            (_, Some(m)) => m.forward.packed(),
            _ => self.forward.packed(),
        }
    }

    /// Floats of scratch that each worker needs.
    pub fn scratch(&self) -> usize {
        match (&self.tiles, &self.minimal) {
            (Some(t), _) => t.scratch(),
            (_, Some(m)) => m.forward.scratch(),
            _ => self.gradient_scratch(),
        }
    }

    /// The nine weights between two channels.
    fn window(&self, weight: &[f32], output: usize, input: usize) -> [f32; 9] {
        let first = 9 * (output * self.shape.inputs + input);
        std::array::from_fn(|t| weight[first + t])
    }

    /// Floats of the packed weights for the input's gradient.
    pub fn packed_back(&self) -> usize {
        match (&self.tiles, &self.minimal) {
            (Some(t), _) => t.packed_back(),
            (_, Some(m)) => m.backward.packed(),
            _ => self.backward.iter().map(Grid::packed).sum(),
        }
    }

    /// Packs weights `(out, in/groups, k, k)` and bias `(out)` for [`Conv::forward`].
    pub fn pack(&self, weight: &[f32], bias: Option<&[f32]>, to: &mut [f32]) {
        match (&self.tiles, &self.minimal) {
            (Some(t), _) => t.pack(weight, None, to),
            (_, Some(m)) => m.forward.pack(|o, i| self.window(weight, o, i), to),
            _ => self.forward.each(&self.shape, false, |at, index| to[at] = weight[index]),
        }
        let end = &mut to[self.products()..][..self.y.cp];
        if let Some(bias) = bias {
            end[..bias.len()].copy_from_slice(bias);
        }
    }

    /// Packs weights and bias as [`Conv::pack`], the output scaled and shifted by channel: batch norm with running
    /// statistics inside the convolution.
    pub fn pack_folded(&self, weight: &[f32], bias: Option<&[f32]>, [scale, shift]: [&[f32]; 2], to: &mut [f32]) {
        let window = weight.len() / self.shape.outputs.max(1);
        match (&self.tiles, &self.minimal) {
            (Some(t), _) => t.pack(weight, Some(scale), to),
            (_, Some(m)) => m.forward.pack(|o, i| self.window(weight, o, i).map(|v| v * scale[o]), to),
            _ => self.forward.each(&self.shape, false, |at, index| to[at] = weight[index] * scale[index / window]),
        }
        let end = &mut to[self.products()..][..self.y.cp];
        for (c, end) in end.iter_mut().enumerate().take(self.shape.outputs) {
            *end = shift[c] + bias.map_or(0.0, |b| scale[c] * b[c]);
        }
    }

    /// Packs weights for [`Conv::input_gradient`].
    pub fn pack_back(&self, weight: &[f32], to: &mut [f32]) {
        if let Some(tiles) = &self.tiles {
            return tiles.pack_back(weight, to);
        }
        if let Some(m) = &self.minimal {
            // The window turned by half a circle.
            let turned = |i: usize, o: usize| {
                let mut g = self.window(weight, o, i);
                g.reverse();
                g
            };
            return m.backward.pack(turned, to);
        }
        let mut rest = to;
        for grid in &self.backward {
            grid.each(&self.shape, true, |at, index| rest[at] = weight[index]);
            rest = &mut rest[grid.packed()..];
        }
    }

    /// Writes a packed gradient into `grad`, all of the convolution's weights.
    pub fn unpack(&self, from: &[f32], grad: &mut [f32]) {
        if let Some(tiles) = &self.tiles {
            return tiles.unpack(from, grad);
        }
        let Some(m) = &self.minimal else {
            return self.forward.each(&self.shape, false, |at, index| grad[index] = from[at]);
        };
        m.forward.unpack(from, |o, i, g| {
            let first = 9 * (o * self.shape.inputs + i);
            grad[first..first + 9].copy_from_slice(&g);
        });
    }

    /// Images that share one pass over the weights.
    pub fn images_per_pass(&self) -> usize {
        match (&self.tiles, &self.minimal) {
            (Some(t), _) => t.images_per_pass(),
            (_, Some(_)) => Winograd::group(&self.y),
            _ => (PASS_PIXELS / self.y.pixels().max(1)).max(1),
        }
    }

    /// The output of `images` images.
    ///
    /// # Safety
    /// `x` and `y` point to `images` images of these maps' sizes, `w` to [`Conv::packed`] floats, `scratch` to
    /// [`Conv::scratch`] of the caller's own; nobody else writes them or reads `y`.
    #[allow(clippy::too_many_arguments, reason = "kernels take their operands one by one")]
    pub unsafe fn forward(
        &self,
        x: *const f32,
        y: *mut f32,
        w: *const f32,
        bias: bool,
        relu: bool,
        images: usize,
        scratch: *mut f32,
    ) {
        // SAFETY: the bias lies behind the weights.
        let bias = if bias { unsafe { w.add(self.products()) } } else { std::ptr::null() };
        if let Some(m) = &self.minimal {
            let [x, y] = [(x.cast_mut(), &self.x), (y, &self.y)].map(|(at, map)| Images { at, map, count: images });
            // SAFETY: passed on.
            return unsafe { m.forward.product(x, y, w, scratch, Finish { bias, add: None, relu }) };
        }
        let to = Target { at: y, map: &self.y, to: &self.forward.to };
        if let Some(tiles) = &self.tiles {
            // SAFETY: passed on.
            return unsafe { tiles.forward(x, to, w, End { start: None, bias, relu }, images, scratch) };
        }
        // SAFETY: passed on.
        unsafe { self.forward.run(self.isa, (x, &self.x), to, w, End { start: None, bias, relu }, images) }
    }

    /// As [`Conv::forward`] with the bias, into another value of the same pixels and channels, on top of a `skip`.
    ///
    /// # Safety
    /// As [`Conv::forward`]; both tables belong to maps of this output's pixels and channels.
    #[allow(clippy::too_many_arguments, reason = "kernels take their operands one by one")]
    pub unsafe fn forward_into(
        &self,
        x: *const f32,
        w: *const f32,
        y: Target<'_>,
        skip: Option<Target<'_>>,
        relu: bool,
        images: usize,
        scratch: *mut f32,
    ) {
        // SAFETY: the bias lies behind the weights; the rest is passed on.
        unsafe {
            let bias = w.add(self.products());
            if let Some(m) = &self.minimal {
                let x = Images { at: x.cast_mut(), map: &self.x, count: images };
                let end = Finish { bias, add: skip.map(|s| s.images(images)), relu };
                return m.forward.product(x, y.images(images), w, scratch, end);
            }
            let skip = skip.map(|s| s.start());
            if let Some(tiles) = &self.tiles {
                return tiles.forward(x, y, w, End { start: skip, bias, relu }, images, scratch);
            }
            self.forward.run(self.isa, (x, &self.x), y, w, End { start: skip, bias, relu }, images);
        }
    }

    /// The gradient of `images` images of the input; `add` to what is there, or instead of it.
    ///
    /// # Safety
    /// As [`Conv::forward`], with the gradients' maps and [`Conv::packed_back`].
    pub unsafe fn input_gradient(
        &self,
        gy: *const f32,
        gx: *mut f32,
        w: *const f32,
        add: bool,
        images: usize,
        scratch: *mut f32,
    ) {
        let Some(map) = &self.gx else { return };
        if let Some(m) = &self.minimal {
            let gx = Images { at: gx, map, count: images };
            let gy = Images { at: gy.cast_mut(), map: &self.gy, count: images };
            let end = Finish { bias: std::ptr::null(), add: add.then_some(gx), relu: false };
            // SAFETY: passed on.
            return unsafe { m.backward.product(gy, gx, w, scratch, end) };
        }
        let mut w = w;
        // Pixels that no window reaches keep what is there.
        for (phase, grid) in self.backward.iter().enumerate().filter(|(_, g)| !add || !g.taps.is_empty()) {
            let to = Target { at: gx, map, to: &grid.to };
            let end = End { start: add.then(|| to.start()), bias: std::ptr::null(), relu: false };
            // SAFETY: passed on; the grids' weights follow each other.
            unsafe {
                let tiles = self.tiles.as_ref();
                if let Some(floats) = tiles.and_then(|t| t.input_gradient(phase, gy, to, w, end, images, scratch)) {
                    w = w.add(floats);
                    continue;
                }
                grid.run(self.isa, (gy, &self.gy), to, w, end, images);
                w = w.add(grid.packed());
            }
        }
    }
}

/// Where a product goes.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    /// First image.
    pub at: *mut f32,
    /// Their layout.
    pub map: &'a Map,
    /// Place of each output pixel in an image.
    pub to: &'a [u32],
}

impl<'a> Target<'a> {
    fn start(&self) -> Start<'a> {
        Start { at: self.at, image: self.map.image(), to: self.to }
    }

    fn images(&self, count: usize) -> Images<'a> {
        Images { at: self.at, map: self.map, count }
    }
}

/// How a pass begins and ends.
#[derive(Clone, Copy)]
pub(super) struct End<'a> {
    /// Added pixel by pixel.
    pub start: Option<Start<'a>>,
    /// One value a channel, or null.
    pub bias: *const f32,
    /// Whether to rectify.
    pub relu: bool,
}

impl Grid {
    fn packed(&self) -> usize {
        self.panels.last().map_or(0, |p| p.weights + p.channels.len() * self.taps.len() * 16 * p.vectors)
    }

    /// Calls `each(packed place, weight index)` for every weight; places without a weight are left out (zero).
    /// `back`: lanes are inputs and channels outputs.
    fn each(&self, shape: &Shape, back: bool, mut each: impl FnMut(usize, usize)) {
        let (per_in, per_out) = (shape.inputs / shape.groups, shape.outputs / shape.groups);
        let (lanes, per_lane, per_channel) =
            if back { (shape.inputs, per_in, per_out) } else { (shape.outputs, per_out, per_in) };
        let area = shape.kernel * shape.kernel;
        for panel in &self.panels {
            let width = 16 * panel.vectors;
            let lanes = panel.lane..lanes.min(panel.lane + width);
            for channel in panel.channels.clone() {
                // The lanes of this channel's group, all of them without groups.
                let group = channel / per_channel;
                let own = lanes.start.max(group * per_lane)..lanes.end.min((group + 1) * per_lane);
                let first = panel.weights + (channel - panel.channels.start) * width;
                for (t, &(ky, kx)) in self.taps.iter().enumerate() {
                    let at = first + t * panel.channels.len() * width;
                    for lane in own.clone() {
                        let (out, input) = if back {
                            (channel, lane - group * per_lane)
                        } else {
                            (lane, channel - group * per_channel)
                        };
                        each(at + lane - panel.lane, (out * per_in + input) * area + ky * shape.kernel + kx);
                    }
                }
            }
        }
    }

    unsafe fn run(
        &self,
        isa: Isa,
        (x, x_map): (*const f32, &Map),
        y: Target<'_>,
        w: *const f32,
        end: End<'_>,
        images: usize,
    ) {
        for panel in &self.panels {
            let mut k = 0;
            let count = if self.lines.is_some() { 1 } else { panel.blocks.len().max(1) };
            for block in 0..count {
                let runs = panel.blocks.get(block).map_or(&[][..], Vec::as_slice);
                // SAFETY: offsets of images, lanes and packed rows inside the regions that the caller vouches for.
                unsafe {
                    let start = if block > 0 { Some(y.start()) } else { end.start };
                    let bias = if block > 0 { std::ptr::null() } else { end.bias };
                    let pass = Pass {
                        x,
                        y: y.at.add(panel.lane),
                        x_image: x_map.image(),
                        y_image: y.map.image(),
                        images,
                        from: &self.from,
                        to: y.to,
                        runs,
                        w: w.add(panel.weights + k * 16 * panel.vectors),
                        vectors: panel.vectors,
                        bias: if bias.is_null() { bias } else { bias.add(panel.lane) },
                        start: start.map(|s| Start { at: s.at.add(panel.lane), ..s }),
                        relu: end.relu && block + 1 == count,
                    };
                    match &self.lines {
                        Some(lines) => taps::pass(isa, &pass, lines),
                        None => tile::pass(isa, &pass),
                    }
                }
                k += runs.iter().map(|r| r.len).sum::<usize>();
            }
        }
    }
}

fn forward_grid(shape: &Shape, isa: Isa, x: &Map, y: &Map) -> Grid {
    let taps: Vec<_> = (0..shape.kernel).flat_map(|ky| (0..shape.kernel).map(move |kx| (ky, kx))).collect();
    let place = |ky: usize, kx: usize| (ky * x.row() + kx * x.cp) as isize;
    let places: Vec<isize> = taps.iter().map(|&(ky, kx)| place(ky, kx)).collect();
    let channels = |lanes: Range<usize>| group_range(lanes, shape.outputs, shape.inputs, shape.groups);
    let panels = panels(isa, y.cp, shape.groups, &places, x, channels);
    let corner = x.border - shape.padding;
    let (mut from, mut to) = (Vec::new(), Vec::new());
    for oy in 0..y.h {
        for ox in 0..y.w {
            let (iy, ix) = (oy * shape.stride + corner, ox * shape.stride + corner);
            from.push((iy * x.row() + ix * x.cp) as u32);
            to.push(y.at(oy, ox) as u32);
        }
    }
    let lines = lines(isa, shape, &taps, &places, x, (y.w, shape.stride, y.cp));
    Grid { taps, panels, from, to, lines }
}

/// How windows overlap, where there is a kernel for that: taps `(row, column)`, each reading at its place of `from`;
/// rows of so many `columns`, windows `step` pixels and outputs `pitch` floats apart.
fn lines(
    isa: Isa,
    shape: &Shape,
    taps: &[(usize, usize)],
    places: &[isize],
    from: &Map,
    (columns, step, pitch): (usize, usize, usize),
) -> Option<Lines> {
    let width = taps.iter().take_while(|t| t.0 == taps[0].0).count();
    let height = taps.len() / width.max(1);
    let side_by_side = |row: &[isize]| row.windows(2).all(|p| p[1] - p[0] == from.cp as isize);
    let known = shape.groups == 1 && height <= 3 && taps::KINDS.contains(&(width, step)) && taps::fits(isa, columns);
    if !known || !places.chunks(width).all(side_by_side) {
        return None;
    }
    let rows = std::array::from_fn(|r| places.get(r * width).copied().unwrap_or(0));
    Some(Lines { rows, height, kind: (width, step), channels: from.c, columns, pitch: [from.cp, pitch] })
}

/// One grid for each residue of the input pixel modulo the stride.
fn backward_grids(shape: &Shape, isa: Isa, gy: &Map, gx: &Map) -> Vec<Grid> {
    shape.phases(gx).map(|phase| backward_grid(shape, isa, gy, gx, phase)).collect()
}

/// Taps that reach input pixels of a phase, from the last, so that places grow; tap `k` of input `s·j + phase` belongs to
/// output `j + (phase + p − k)/s`: the second number is what is added to `j`.
pub(super) fn phase_taps(shape: &Shape, phase: usize) -> Vec<(usize, isize)> {
    let (s, p) = (shape.stride as isize, shape.padding as isize);
    let from = |k: usize| phase as isize + p - k as isize;
    let reaches = |k: &usize| from(*k).rem_euclid(s) == 0;
    (0..shape.kernel).rev().filter(reaches).map(|k| (k, from(k).div_euclid(s))).collect()
}

fn backward_grid(shape: &Shape, isa: Isa, gy: &Map, gx: &Map, (py, px): (usize, usize)) -> Grid {
    let (rows, columns) = (phase_taps(shape, py), phase_taps(shape, px));
    let (mut taps, mut places) = (Vec::new(), Vec::new());
    for &(ky, y) in &rows {
        for &(kx, x) in &columns {
            taps.push((ky, kx));
            places.push(y * gy.row() as isize + x * gy.cp as isize);
        }
    }
    let channels = |lanes: Range<usize>| group_range(lanes, shape.inputs, shape.outputs, shape.groups);
    let panels = panels(isa, gx.cp, shape.groups, &places, gy, channels);
    let (mut from, mut to) = (Vec::new(), Vec::new());
    for (j, y) in (py..gx.h).step_by(shape.stride).enumerate() {
        for (i, x) in (px..gx.w).step_by(shape.stride).enumerate() {
            from.push(((j + gy.border) * gy.row() + (i + gy.border) * gy.cp) as u32);
            to.push(gx.at(y, x) as u32);
        }
    }
    let columns = (px..gx.w).step_by(shape.stride).count();
    let lines = lines(isa, shape, &taps, &places, gy, (columns, 1, shape.stride * gx.cp));
    Grid { taps, panels, from, to, lines }
}

/// Channels on the other side that the groups of these lanes touch.
fn group_range(lanes: Range<usize>, this: usize, other: usize, groups: usize) -> Range<usize> {
    let (per_this, per_other) = (this / groups, other / groups);
    let last = lanes.end.min(this).max(lanes.start + 1) - 1;
    lanes.start / per_this * per_other..(last / per_this + 1) * per_other
}

fn panels(
    isa: Isa,
    lanes: usize,
    groups: usize,
    places: &[isize],
    source: &Map,
    channels: impl Fn(Range<usize>) -> Range<usize>,
) -> Vec<Panel> {
    let (mut lane, mut weights) = (0, 0);
    let mut all = Vec::new();
    while lane < lanes {
        let fits = |v: &&usize| lane + 16 * **v <= lanes && (groups == 1 || **v == 1);
        let vectors = tile::widths(isa).iter().find(fits).copied().unwrap_or(1);
        let channels = channels(lane..lane + 16 * vectors);
        let runs = runs(places, &channels, source);
        let blocks = blocks(&runs, BLOCK / (16 * vectors));
        let start = weights;
        weights += places.len() * channels.len() * 16 * vectors;
        all.push(Panel { lane, vectors, channels, weights: start, runs, blocks });
        lane += 16 * vectors;
    }
    all
}

/// What the taps read, neighbours in memory joined.
fn runs(places: &[isize], channels: &Range<usize>, source: &Map) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &place in places {
        let offset = place + channels.start as isize;
        match runs.last_mut() {
            Some(last) if last.offset + last.len as isize == offset && channels.len() == source.cp => {
                last.len += channels.len();
            }
            _ => runs.push(Run { offset, len: channels.len() }),
        }
    }
    runs
}

/// Cuts runs into blocks of at most `limit` floats, of equal size as far as possible.
fn blocks(runs: &[Run], limit: usize) -> Vec<Vec<Run>> {
    let total: usize = runs.iter().map(|r| r.len).sum();
    let size = total.div_ceil(total.div_ceil(limit).max(1)).max(1);
    let mut all: Vec<Vec<Run>> = Vec::new();
    let mut room = 0;
    for run in runs {
        let mut done = 0;
        while done < run.len {
            if room == 0 {
                all.push(Vec::new());
                room = size;
            }
            let len = room.min(run.len - done);
            if let Some(last) = all.last_mut() {
                last.push(Run { offset: run.offset + done as isize, len });
            }
            (done, room) = (done + len, room - len);
        }
    }
    all
}
