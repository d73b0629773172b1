//! The weight gradient's micro-kernel where windows overlap along a row: three taps at once share what they read.
//!
//! Inputs and output gradients of a block of pixels are first copied side by side ([`copy`]): in their maps they lie a
//! power of two apart and would push each other out of the first-level cache.

#![allow(clippy::needless_range_loop, reason = "the loops are unrolled over registers of equal shape")]

use crate::nn::kernels::simd::{Isa, Simd, per_isa};

/// Vectors of a panel: with one, the general tile is as fast.
pub(super) const VECTORS: usize = 2;
/// Channels of a window row that a tile computes at once.
pub(super) const CHANNELS: usize = 4;
/// Channels copied together: a cache line.
pub(super) const GROUP: usize = 16;
/// Floats of a pixel of the copied output gradient.
pub(super) const LANES: usize = 16 * VECTORS;
/// Pixels that are asked for before they are used.
const AHEAD: usize = 10;
/// The same of a copy.
const COPY_AHEAD: usize = 16;

/// Where pixels lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pixels {
    /// The first.
    pub at: *const f32,
    /// Floats from one image to the next, from one output row's to the next's, and from one pixel to the next.
    pub pitch: [usize; 3],
}

impl Pixels {
    /// The same pixels, read some floats later.
    ///
    /// # Safety
    /// They lie in the region.
    pub unsafe fn after(self, floats: usize) -> Self {
        // SAFETY: the caller's contract.
        Pixels { at: unsafe { self.at.add(floats) }, ..self }
    }
}

/// A tile: one window row, [`CHANNELS`] channels, three taps, all lanes of a panel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    /// The inputs, from the first pixel that the window row reads, at the tile's first channel.
    pub x: Pixels,
    /// The output gradient, at the panel's first channel.
    pub y: Pixels,
    /// Images, rows of output pixels, and output pixels in a row (at least two).
    pub count: [usize; 3],
    /// Pixels from one window to the next, one or two.
    pub step: usize,
    /// Gradient of the packed weights of the first tap and channel; added to.
    pub w: *mut f32,
    /// Floats from one tap to the next there.
    pub tap: usize,
}

/// Pixels of some rows, to be copied side by side.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// The first.
    pub from: *const f32,
    /// Floats from one row to the next, and from one pixel to the next.
    pub pitch: [usize; 2],
    /// Rows, pixels in a row, and vectors of sixteen floats of a pixel.
    pub count: [usize; 3],
    /// Where they go.
    pub to: *mut f32,
}

impl Rows {
    /// Where the next copy would go.
    pub fn end(&self) -> *mut f32 {
        self.to.wrapping_add(16 * self.count.iter().product::<usize>())
    }
}

per_isa! {
    /// Copies pixels. Contract: all of them lie in their regions, vectors included.
    copy = copy_body(p: &Rows)
}

#[inline(always)]
unsafe fn copy_body<S: Simd>(p: &Rows) {
    let ([rows, pixels, vectors], mut to) = (p.count, p.to);
    for row in 0..rows {
        for pixel in 0..pixels {
            // SAFETY: the caller's contract.
            unsafe {
                let from = p.from.add(row * p.pitch[0] + pixel * p.pitch[1]);
                for v in 0..vectors {
                    S::prefetch(from.wrapping_add(COPY_AHEAD * p.pitch[1] + 16 * v));
                    S::store(to, S::load(from.add(16 * v)));
                    to = to.add(16);
                }
            }
        }
    }
}

/// Accumulators: `[tap][channel][vector]`.
type Sums<V> = [[[V; VECTORS]; CHANNELS]; 3];

per_isa! {
    /// Adds one [`Tile`]. Contract: all its pixels lie in their regions, and it is called for instruction sets of
    /// thirty-two registers alone.
    add = add_body(p: &Tile)
}

#[inline(always)]
unsafe fn add_body<S: Simd>(p: &Tile) {
    assert!(S::ISA == Isa::Avx512, "overlapping windows on {:?}", S::ISA);
    // SAFETY: the caller's contract.
    unsafe {
        let mut acc = [[[S::zero(); VECTORS]; CHANNELS]; 3];
        for t in 0..3 {
            for c in 0..CHANNELS * VECTORS {
                S::prefetch(p.w.wrapping_add(t * p.tap + 16 * c));
            }
        }
        let [images, rows, columns] = p.count;
        for image in 0..images {
            for row in 0..rows {
                let [x, y] = [&p.x, &p.y].map(|m| m.at.wrapping_add(image * m.pitch[0] + row * m.pitch[1]));
                let pitch = [p.x.pitch[2], p.y.pitch[2]];
                match p.step {
                    1 => by_one::<S>(&mut acc, x, y, pitch, columns),
                    _ => by_two::<S>(&mut acc, x, y, pitch, columns),
                }
            }
        }
        for t in 0..3 {
            for c in 0..CHANNELS {
                for v in 0..VECTORS {
                    let at = p.w.add(t * p.tap + 16 * (c * VECTORS + v));
                    S::store(at, S::add(S::load(at), acc[t][c][v]));
                }
            }
        }
    }
}

/// One row of pixels, windows one pixel apart. Pixel `i` of the inputs meets the outputs `i`, `i − 1` and `i − 2`.
#[inline(always)]
unsafe fn by_one<S: Simd>(
    acc: &mut Sums<S::V>,
    mut x: *const f32,
    mut y: *const f32,
    [dx, dy]: [usize; 2],
    columns: usize,
) {
    // SAFETY: the contract of `add`.
    unsafe {
        let (mut before, mut now) = (load::<S>(y), load::<S>(y.add(dy)));
        meet::<S>(&mut acc[0], x, &before);
        meet::<S>(&mut acc[0], x.add(dx), &now);
        meet::<S>(&mut acc[1], x.add(dx), &before);
        for _ in 2..columns {
            let next = load::<S>(y.add(2 * dy));
            S::prefetch(x.wrapping_add(AHEAD * dx));
            (0..VECTORS).for_each(|v| S::prefetch(y.wrapping_add(AHEAD * dy + 16 * v)));
            for c in 0..CHANNELS {
                let value = S::splat(*x.add(2 * dx + c));
                for v in 0..VECTORS {
                    acc[0][c][v] = S::fma(value, next[v], acc[0][c][v]);
                    acc[1][c][v] = S::fma(value, now[v], acc[1][c][v]);
                    acc[2][c][v] = S::fma(value, before[v], acc[2][c][v]);
                }
            }
            (before, now) = (now, next);
            (x, y) = (x.add(dx), y.add(dy));
        }
        meet::<S>(&mut acc[1], x.add(2 * dx), &now);
        meet::<S>(&mut acc[2], x.add(2 * dx), &before);
        meet::<S>(&mut acc[2], x.add(3 * dx), &now);
    }
}

/// One row of pixels, windows two pixels apart: every second pixel ends one window and begins the next.
#[inline(always)]
unsafe fn by_two<S: Simd>(
    acc: &mut Sums<S::V>,
    mut x: *const f32,
    mut y: *const f32,
    [dx, dy]: [usize; 2],
    columns: usize,
) {
    // SAFETY: the contract of `add`.
    unsafe {
        let mut now = load::<S>(y);
        meet::<S>(&mut acc[0], x, &now);
        for _ in 1..columns {
            y = y.add(dy);
            let next = load::<S>(y);
            meet::<S>(&mut acc[1], x.add(dx), &now);
            for c in 0..CHANNELS {
                let value = S::splat(*x.add(2 * dx + c));
                for v in 0..VECTORS {
                    acc[2][c][v] = S::fma(value, now[v], acc[2][c][v]);
                    acc[0][c][v] = S::fma(value, next[v], acc[0][c][v]);
                }
            }
            now = next;
            x = x.add(2 * dx);
        }
        meet::<S>(&mut acc[1], x.add(dx), &now);
        meet::<S>(&mut acc[2], x.add(2 * dx), &now);
    }
}

#[inline(always)]
unsafe fn load<S: Simd>(at: *const f32) -> [S::V; VECTORS] {
    // SAFETY: the contract of `add`.
    unsafe {
        let mut all = [S::zero(); VECTORS];
        for v in 0..VECTORS {
            all[v] = S::load(at.add(16 * v));
        }
        all
    }
}

/// Adds the products of some channels of one pixel with one pixel of the output gradient.
#[inline(always)]
unsafe fn meet<S: Simd>(acc: &mut [[S::V; VECTORS]; CHANNELS], x: *const f32, g: &[S::V; VECTORS]) {
    // SAFETY: the contract of `add`.
    unsafe {
        for c in 0..CHANNELS {
            let value = S::splat(*x.add(c));
            for v in 0..VECTORS {
                acc[c][v] = S::fma(value, g[v], acc[c][v]);
            }
        }
    }
}
