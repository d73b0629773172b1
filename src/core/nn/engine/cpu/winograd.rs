//! 3×3 convolutions of stride 1 by Winograd's minimal filtering, F(4×4, 3×3).
//!
//! A tile of 4×4 outputs costs 36 products a channel pair instead of 144 (Lavin and Gray, arXiv:1509.09308; the weight
//! gradient is the transposed algorithm). Each of the 36 positions is a product of matrices, by the same micro-kernels
//! as direct convolution. The price is rounding: about ten times the direct sum's error (see the tests).

#![allow(clippy::needless_range_loop, reason = "the loops are unrolled over registers of equal shape")]

use std::ops::Range;

use super::map::Map;
use super::tile::{self, GradPass, Pass, Run};
use crate::nn::kernels::simd::{Isa, Simd, per_isa};

/// Side of an output tile.
const OUT: usize = 4;
/// Side of an input tile.
const IN: usize = 6;
/// Products of a tile.
const POSITIONS: usize = IN * IN;
/// Lanes of the widest panel.
const LANES: usize = 32;
/// Tiles that share one pass over the weights: four register tiles of twelve.
pub(super) const TILES: usize = 48;

/// One product of all positions, from `inputs` to `outputs` channels (multiples of 16).
#[derive(Debug)]
pub(super) struct Winograd {
    isa: Isa,
    inputs: usize,
    outputs: usize,
    /// First lane and width in vectors of each panel of outputs.
    panels: Vec<(usize, usize)>,
    from: Vec<u32>,
    to: Vec<u32>,
}

/// A value of some images, read or written by tiles.
#[derive(Clone, Copy)]
pub(super) struct Images<'a> {
    /// First image.
    pub at: *mut f32,
    /// Their layout.
    pub map: &'a Map,
    /// How many.
    pub count: usize,
}

impl Images<'_> {
    /// Tiles of all images.
    pub fn tiles(&self) -> usize {
        self.count * self.per_image()
    }

    fn per_image(&self) -> usize {
        self.map.h / OUT * (self.map.w / OUT)
    }

    /// The pixel `(−before, −before)` of a tile.
    unsafe fn tile(&self, tile: usize, before: usize) -> *mut f32 {
        let (image, tile) = (tile / self.per_image(), tile % self.per_image());
        let (y, x) = (tile / (self.map.w / OUT) * OUT, tile % (self.map.w / OUT) * OUT);
        let at = image * self.map.image() + self.map.at(y, x) - before * (self.map.row() + self.map.cp);
        // SAFETY: the tile is one of these images', and `before` not more than their border.
        unsafe { self.at.add(at) }
    }
}

/// Whether tiles cover a 3×3 convolution of stride 1 and padding 1 between these maps.
pub(super) fn fits(x: &Map, y: &Map) -> bool {
    let full = |m: &Map| m.c == m.cp && m.c >= 64 && m.h.is_multiple_of(OUT) && m.w.is_multiple_of(OUT);
    full(x) && full(y) && x.border >= 1 && (x.h, x.w) == (y.h, y.w)
}

impl Winograd {
    /// A product for an instruction set.
    pub fn new(isa: Isa, inputs: usize, outputs: usize) -> Self {
        let mut panels = Vec::new();
        let mut lane = 0;
        while lane < outputs {
            let fits = |v: &&usize| lane + 16 * **v <= outputs;
            let vectors = tile::widths(isa).iter().find(fits).copied().unwrap_or(1);
            panels.push((lane, vectors));
            lane += 16 * vectors;
        }
        let table = |stride: usize| (0..TILES).map(|t| (t * stride) as u32).collect();
        Winograd { isa, inputs, outputs, panels, from: table(inputs), to: table(outputs) }
    }

    /// Floats of the transformed weights.
    pub fn packed(&self) -> usize {
        POSITIONS * self.inputs * self.outputs
    }

    /// Floats of scratch that one worker needs.
    pub fn scratch(&self) -> usize {
        POSITIONS * TILES * (self.inputs + self.outputs)
    }

    /// `(panel's place in a position, lane, input channel)` of every row of packed weights.
    fn rows(&self) -> impl Iterator<Item = (usize, Range<usize>, usize)> + '_ {
        self.panels.iter().flat_map(move |&(lane, vectors)| {
            let width = 16 * vectors;
            (0..self.inputs).map(move |i| (lane * self.inputs + i * width, lane..lane + width, i))
        })
    }

    /// `U = G g Gᵀ` of weights `g(lane, channel)`, packed by position.
    pub fn pack<'w>(&self, g: impl Fn(usize, usize) -> [f32; 9] + 'w, to: &mut [f32]) {
        let position = self.inputs * self.outputs;
        let mut window = [[0.0; LANES]; 9];
        for (place, lanes, input) in self.rows() {
            let width = lanes.len();
            for (i, lane) in lanes.enumerate() {
                g(lane, input).into_iter().zip(&mut window).for_each(|(value, tap)| tap[i] = value);
            }
            let mut half = [[[0.0; LANES]; IN]; 3];
            for (c, half) in half.iter_mut().enumerate() {
                lines([&window[c], &window[3 + c], &window[6 + c]], half, weights);
            }
            for r in 0..IN {
                let mut row = [[0.0; LANES]; IN];
                lines([&half[0][r], &half[1][r], &half[2][r]], &mut row, weights);
                for (c, row) in row.iter().enumerate() {
                    to[(r * IN + c) * position + place..][..width].copy_from_slice(&row[..width]);
                }
            }
        }
    }

    /// `Gᵀ dU G`: calls `add(lane, channel, gradient)` for every pair of channels.
    pub fn unpack(&self, from: &[f32], mut each: impl FnMut(usize, usize, [f32; 9])) {
        let position = self.inputs * self.outputs;
        for (place, lanes, input) in self.rows() {
            let mut all = [[0.0; LANES]; POSITIONS];
            for (p, all) in all.iter_mut().enumerate() {
                all[..lanes.len()].copy_from_slice(&from[p * position + place..][..lanes.len()]);
            }
            let mut half = [[[0.0; LANES]; 3]; IN];
            for (c, half) in half.iter_mut().enumerate() {
                lines(std::array::from_fn::<_, IN, _>(|r| &all[r * IN + c]), half, gradient);
            }
            let mut window = [[[0.0; LANES]; 3]; 3];
            for (r, window) in window.iter_mut().enumerate() {
                lines(std::array::from_fn::<_, IN, _>(|c| &half[c][r]), window, gradient);
            }
            for (i, lane) in lanes.enumerate() {
                each(lane, input, std::array::from_fn(|t| window[t / 3][t % 3][i]));
            }
        }
    }

    /// Images whose tiles a weight gradient sums before it adds to memory: a power of two, the same for any caller.
    pub fn group(map: &Map) -> usize {
        1 << (64 / (map.h / OUT * (map.w / OUT)).max(1)).clamp(1, 8).ilog2()
    }

    /// Blocks of tiles that share a pass over the weights.
    fn blocks(tiles: usize) -> impl Iterator<Item = Range<usize>> {
        (0..tiles).step_by(TILES).map(move |first| first..tiles.min(first + TILES))
    }

    /// `y = bias + x ∗ w` (or on top of what is in `y`), perhaps rectified.
    ///
    /// # Safety
    /// `x` has a border of at least one; both have this product's channels; `w` holds [`Winograd::packed`] and
    /// `scratch` [`Winograd::scratch`] floats that nobody else touches.
    pub unsafe fn product(&self, x: Images<'_>, y: Images<'_>, w: *const f32, scratch: *mut f32, end: Finish<'_>) {
        for tiles in Self::blocks(x.tiles()) {
            // SAFETY: the scratch holds both sides of every position.
            unsafe {
                let m = scratch.add(POSITIONS * TILES * self.inputs);
                spread(self.isa, x, tiles.clone(), scratch);
                for position in 0..POSITIONS {
                    self.multiply(scratch, m, w, position, tiles.len());
                }
                gather(self.isa, m, y, tiles, end);
            }
        }
    }

    unsafe fn multiply(&self, v: *const f32, m: *mut f32, w: *const f32, position: usize, tiles: usize) {
        // SAFETY: one position of each operand.
        let (v, m, w) = unsafe {
            let w = w.add(position * self.inputs * self.outputs);
            (v.add(position * TILES * self.inputs), m.add(position * TILES * self.outputs), w)
        };
        for &(lane, vectors) in &self.panels {
            // SAFETY: the panel's lanes and weights.
            unsafe {
                let pass = Pass {
                    x: v,
                    y: m.add(lane),
                    x_image: 0,
                    y_image: 0,
                    images: 1,
                    from: &self.from[..tiles],
                    to: &self.to[..tiles],
                    runs: &[Run { offset: 0, len: self.inputs }],
                    w: w.add(lane * self.inputs),
                    vectors,
                    bias: std::ptr::null(),
                    start: None,
                    relu: false,
                };
                tile::pass(self.isa, &pass);
            }
        }
    }

    /// Adds `dU` of some images: these positions of it.
    ///
    /// # Safety
    /// As [`Winograd::product`]; `gw` is laid out as the packed weights.
    pub unsafe fn weight_gradient(
        &self,
        x: Images<'_>,
        gy: Images<'_>,
        gw: *mut f32,
        scratch: *mut f32,
        positions: Range<usize>,
    ) {
        let group = Self::group(x.map) * x.per_image();
        let groups = (0..x.tiles()).step_by(group).map(|first| first..x.tiles().min(first + group));
        for tiles in groups.flat_map(|g| Self::blocks(g.len()).map(move |b| g.start + b.start..g.start + b.end)) {
            // SAFETY: the scratch holds both sides of every position.
            unsafe {
                let m = scratch.add(POSITIONS * TILES * self.inputs);
                spread(self.isa, x, tiles.clone(), scratch);
                scatter(self.isa, gy, tiles.clone(), m);
                for position in positions.clone() {
                    self.outer(scratch, m, gw, position, tiles.len());
                }
            }
        }
    }

    /// Positions that workers share.
    pub fn positions(&self) -> usize {
        POSITIONS
    }

    unsafe fn outer(&self, v: *const f32, m: *const f32, gw: *mut f32, position: usize, tiles: usize) {
        for &(lane, vectors) in &self.panels {
            let height = tile::grad_rows(self.isa, vectors);
            for first in (0..self.inputs).step_by(height) {
                // SAFETY: one position of each operand; the panel's lanes and rows.
                unsafe {
                    let w = gw.add((position * self.outputs + lane) * self.inputs + first * 16 * vectors);
                    let pass = GradPass {
                        images: 1,
                        image_step: [0, 0],
                        x: v.add(position * TILES * self.inputs),
                        y: m.add(position * TILES * self.outputs + lane),
                        rows: 1,
                        columns: tiles,
                        x_step: [0, self.inputs],
                        y_step: [0, self.outputs],
                        w,
                        offset: first as isize,
                        len: height.min(self.inputs - first),
                        vectors,
                    };
                    tile::grad_pass(self.isa, &pass);
                }
            }
        }
    }
}

/// How outputs are finished.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    /// One value a channel, or null.
    pub bias: *const f32,
    /// Added pixel by pixel: the output's present values, or another value of the same shape.
    pub add: Option<Images<'a>>,
    /// Whether to rectify.
    pub relu: bool,
}

/// A transform of lines, lane by lane.
fn lines<const N: usize, const M: usize>(
    from: [&[f32; LANES]; N],
    to: &mut [[f32; LANES]; M],
    transform: impl Fn([f32; N]) -> [f32; M],
) {
    for i in 0..LANES {
        let line = transform(from.map(|f| f[i]));
        for (to, value) in to.iter_mut().zip(line) {
            to[i] = value;
        }
    }
}

/// `G g`.
fn weights([a, b, c]: [f32; 3]) -> [f32; IN] {
    let (even, odd) = (-(a + c) / 6.0, b / 6.0);
    let (near, far) = (a / 24.0 + c / 6.0, b / 12.0);
    [a / 4.0, even - odd, even + odd, near + far, near - far, c]
}

/// `Gᵀ u`.
fn gradient(u: [f32; IN]) -> [f32; 3] {
    let (s, d) = (u[1] + u[2], u[2] - u[1]);
    let (t, e) = (u[3] + u[4], u[3] - u[4]);
    [u[0] / 4.0 - s / 6.0 + t / 24.0, d / 6.0 + e / 12.0, t / 6.0 - s / 6.0 + u[5]]
}

/// `Bᵀ d`.
#[inline(always)]
unsafe fn spread_line<S: Simd>(d: [S::V; IN]) -> [S::V; IN] {
    // SAFETY: registers only.
    unsafe {
        let (four, five, two) = (S::splat(4.0), S::splat(-5.0), S::splat(2.0));
        let minus = S::splat(-4.0);
        let (a, b) = (S::fma(minus, d[2], d[4]), S::fma(minus, d[1], d[3]));
        let (c, e) = (S::sub(d[4], d[2]), S::mul(two, S::sub(d[3], d[1])));
        let first = S::fma(four, d[0], S::fma(five, d[2], d[4]));
        let last = S::fma(four, d[1], S::fma(five, d[3], d[5]));
        [first, S::add(a, b), S::sub(a, b), S::add(c, e), S::sub(c, e), last]
    }
}

/// `Aᵀ m`.
#[inline(always)]
unsafe fn gather_line<S: Simd>(m: [S::V; IN]) -> [S::V; OUT] {
    // SAFETY: registers only.
    unsafe {
        let (s, d) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
        let (q, r) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
        [
            S::add(m[0], S::add(s, q)),
            S::fma(S::splat(2.0), r, d),
            S::fma(S::splat(4.0), q, s),
            S::add(m[5], S::fma(S::splat(8.0), r, d)),
        ]
    }
}

/// `A y`.
#[inline(always)]
unsafe fn scatter_line<S: Simd>(y: [S::V; OUT]) -> [S::V; IN] {
    // SAFETY: registers only.
    unsafe {
        let (e, o) = (S::add(y[0], y[2]), S::add(y[1], y[3]));
        let far = S::fma(S::splat(4.0), y[2], y[0]);
        let odd = S::fma(S::splat(8.0), y[3], S::mul(S::splat(2.0), y[1]));
        [y[0], S::add(e, o), S::sub(e, o), S::add(far, odd), S::sub(far, odd), y[3]]
    }
}

per_isa! {
    /// `V = Bᵀ d B` of each tile, `[position][tile][channel]`.
    spread = spread_body(x: Images<'_>, tiles: Range<usize>, v: *mut f32)
}

#[inline(always)]
unsafe fn spread_body<S: Simd>(x: Images<'_>, tiles: Range<usize>, v: *mut f32) {
    let (row, cp) = (x.map.row(), x.map.cp);
    for (t, tile) in tiles.enumerate() {
        // SAFETY: the tile and its border lie in the image; each position holds TILES rows of cp floats.
        unsafe {
            let from = x.tile(tile, 1);
            for c in (0..cp).step_by(16) {
                let mut half = [[S::zero(); IN]; IN];
                for j in 0..IN {
                    let mut d = [S::zero(); IN];
                    for i in 0..IN {
                        d[i] = S::load(from.add(i * row + j * cp + c));
                    }
                    half[j] = spread_line::<S>(d);
                }
                for i in 0..IN {
                    let line =
                        spread_line::<S>([half[0][i], half[1][i], half[2][i], half[3][i], half[4][i], half[5][i]]);
                    for j in 0..IN {
                        S::store(v.add(((i * IN + j) * TILES + t) * cp + c), line[j]);
                    }
                }
            }
        }
    }
}

per_isa! {
    /// `dM = A dY Aᵀ` of each tile, `[position][tile][channel]`.
    scatter = scatter_body(y: Images<'_>, tiles: Range<usize>, m: *mut f32)
}

#[inline(always)]
unsafe fn scatter_body<S: Simd>(y: Images<'_>, tiles: Range<usize>, m: *mut f32) {
    let (row, cp) = (y.map.row(), y.map.cp);
    for (t, tile) in tiles.enumerate() {
        // SAFETY: as in `spread_body`.
        unsafe {
            let from = y.tile(tile, 0);
            for c in (0..cp).step_by(16) {
                let mut half = [[S::zero(); IN]; OUT];
                for j in 0..OUT {
                    let mut d = [S::zero(); OUT];
                    for i in 0..OUT {
                        d[i] = S::load(from.add(i * row + j * cp + c));
                    }
                    half[j] = scatter_line::<S>(d);
                }
                for i in 0..IN {
                    let line = scatter_line::<S>([half[0][i], half[1][i], half[2][i], half[3][i]]);
                    for j in 0..IN {
                        S::store(m.add(((i * IN + j) * TILES + t) * cp + c), line[j]);
                    }
                }
            }
        }
    }
}

per_isa! {
    /// `Y = Aᵀ m A` of each tile, finished.
    gather = gather_body(m: *const f32, y: Images<'_>, tiles: Range<usize>, end: Finish<'_>)
}

#[inline(always)]
unsafe fn gather_body<S: Simd>(m: *const f32, y: Images<'_>, tiles: Range<usize>, end: Finish<'_>) {
    let (row, cp) = (y.map.row(), y.map.cp);
    for (t, tile) in tiles.enumerate() {
        // SAFETY: as in `spread_body`; the bias has cp values.
        unsafe {
            let to = y.tile(tile, 0);
            let skip = end.add.map(|s| (s.tile(tile, 0), s.map.row()));
            for c in (0..cp).step_by(16) {
                let mut half = [[S::zero(); OUT]; IN];
                for j in 0..IN {
                    let mut d = [S::zero(); IN];
                    for i in 0..IN {
                        d[i] = S::load(m.add(((i * IN + j) * TILES + t) * cp + c));
                    }
                    half[j] = gather_line::<S>(d);
                }
                let bias = if end.bias.is_null() { S::zero() } else { S::load(end.bias.add(c)) };
                for i in 0..OUT {
                    let line =
                        gather_line::<S>([half[0][i], half[1][i], half[2][i], half[3][i], half[4][i], half[5][i]]);
                    for j in 0..OUT {
                        let at = to.add(i * row + j * cp + c);
                        let mut v = S::add(line[j], bias);
                        if let Some((skip, row)) = skip {
                            v = S::add(v, S::load(skip.add(i * row + j * cp + c)));
                        }
                        S::store(at, if end.relu { S::relu(v) } else { v });
                    }
                }
            }
        }
    }
}
