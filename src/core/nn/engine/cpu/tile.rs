//! The two micro-kernels that nearly all time is spent in.
//!
//! Forward and input gradient: `MR` pixels × `NV`·16 channels of output stay in registers while the kernel walks the
//! runs of the window; per step one broadcast a pixel and one load a vector. Weight gradient: `MR` rows of the window
//! × `NV`·16 channels stay in registers while the kernel walks the pixels. Each output is one chain of multiply-adds
//! in a fixed order, whatever the tile it falls in.

#![allow(clippy::needless_range_loop, reason = "the loops are unrolled over registers of equal shape")]

use crate::nn::kernels::simd::{Isa, Simd, per_isa};

/// Consecutive floats that a window reads, relative to a pixel's base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// From the base, in floats.
    pub offset: isize,
    /// Floats.
    pub len: usize,
}

/// What a pass begins with: the output's present values, or another value of the same shape.
#[derive(Clone, Copy)]
pub(super) struct Start<'a> {
    /// First image, at the panel's first channel.
    pub at: *const f32,
    /// Floats between images.
    pub image: usize,
    /// Place of each output pixel in an image.
    pub to: &'a [u32],
}

/// One panel of output channels over the pixels of some images.
pub(super) struct Pass<'a> {
    /// First image's input.
    pub x: *const f32,
    /// First image's output, at the panel's first channel.
    pub y: *mut f32,
    /// Floats between images of the input.
    pub x_image: usize,
    /// Floats between images of the output.
    pub y_image: usize,
    /// Images.
    pub images: usize,
    /// Base of each output pixel's window in an image.
    pub from: &'a [u32],
    /// Place of each output pixel in an image.
    pub to: &'a [u32],
    /// What the window reads.
    pub runs: &'a [Run],
    /// Packed weights, `[Σ len][16·vectors]`.
    pub w: *const f32,
    /// Vectors of sixteen channels, one of [`widths`].
    pub vectors: usize,
    /// Start from these, `16·vectors` values, or null for zero.
    pub bias: *const f32,
    /// Add these values, pixel by pixel.
    pub start: Option<Start<'a>>,
    /// Rectify at the end.
    pub relu: bool,
}

/// Rows of packed weights, and pixels of a weight gradient, asked for before they are used.
const WEIGHTS_AHEAD: usize = 8;
const PIXELS_AHEAD: usize = 8;

/// Panel widths that an instruction set has tiles for, widest first.
pub(super) fn widths(isa: Isa) -> &'static [usize] {
    match isa {
        Isa::Avx512 => &[2, 1],
        _ => &[1],
    }
}

per_isa! {
    /// Runs one [`Pass`]. Contract: every window lies inside the input, every pixel inside the output (`from`, `to`
    /// and `runs` are computed from the same maps as the regions), and `w` holds what it says.
    pass = pass_body(p: &Pass<'_>)
}

#[inline(always)]
unsafe fn pass_body<S: Simd>(p: &Pass<'_>) {
    // SAFETY: the caller's contract. The branch is decided when compiling.
    unsafe {
        match (S::ISA, p.vectors) {
            (Isa::Avx512, 2) => walk::<S, 12, 2>(p),
            (Isa::Avx512, _) => walk::<S, 14, 1>(p),
            (Isa::Avx2 | Isa::Neon, _) => walk::<S, 6, 1>(p),
            _ => walk::<S, 3, 1>(p),
        }
    }
}

/// All pixels of all images in tiles of `MR`; the last tile repeats its last pixel.
#[inline(always)]
unsafe fn walk<S: Simd, const MR: usize, const NV: usize>(p: &Pass<'_>) {
    let total = p.images * p.from.len();
    let (mut image, mut pixel) = (0, 0);
    let mut next = 0;
    while next < total {
        let mut x = [p.x; MR];
        let mut y = [p.y; MR];
        let mut start = [std::ptr::null(); MR];
        for i in 0..MR {
            // SAFETY: pixel and image are in range, the tables by the contract.
            unsafe {
                if let Some(s) = &p.start {
                    start[i] = s.at.add(image * s.image + *s.to.get_unchecked(pixel) as usize);
                }
                x[i] = p.x.add(image * p.x_image + *p.from.get_unchecked(pixel) as usize);
                y[i] = p.y.add(image * p.y_image + *p.to.get_unchecked(pixel) as usize);
            }
            if next + i + 1 < total {
                pixel += 1;
                if pixel == p.from.len() {
                    (pixel, image) = (0, image + 1);
                }
            }
        }
        next += MR;
        fetch_ahead::<S, MR, NV>(p, &x, &y);
        // SAFETY: the contract.
        unsafe { tile::<S, MR, NV>(p, &x, &y, &start) }
    }
}

/// Asks for the outputs of this tile, and for the last window row's pixels of the next one, while this one computes:
/// images come from memory beyond the second-level cache, and so many streams escape the hardware's prefetcher.
#[inline(always)]
fn fetch_ahead<S: Simd, const MR: usize, const NV: usize>(p: &Pass<'_>, x: &[*const f32; MR], y: &[*mut f32; MR]) {
    let (&[first, second, ..], Some(last)) = (p.from, p.runs.last()) else { return };
    let pitch = second.wrapping_sub(first) as usize;
    let next = last.offset + last.len as isize + ((MR - 1) * pitch) as isize;
    for i in 0..MR {
        (0..NV).for_each(|v| S::prefetch(y[i].wrapping_add(16 * v)));
        (0..pitch.min(last.len)).step_by(16).for_each(|lane| S::prefetch(x[i].wrapping_offset(next + lane as isize)));
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, const MR: usize, const NV: usize>(
    p: &Pass<'_>,
    x: &[*const f32; MR],
    y: &[*mut f32; MR],
    start: &[*const f32; MR],
) {
    // SAFETY: the contract of `pass`.
    unsafe {
        let mut acc = [[S::zero(); NV]; MR];
        if !p.bias.is_null() {
            for row in &mut acc {
                for v in 0..NV {
                    row[v] = S::load(p.bias.add(16 * v));
                }
            }
        }
        if p.start.is_some() {
            for i in 0..MR {
                for v in 0..NV {
                    acc[i][v] = S::add(acc[i][v], S::load(start[i].add(16 * v)));
                }
            }
        }
        let mut w = p.w;
        for run in p.runs {
            let x = x.map(|x| x.offset(run.offset));
            for k in 0..run.len {
                let mut row = [S::zero(); NV];
                for v in 0..NV {
                    row[v] = S::load(w.add(16 * v));
                }
                if S::ISA == Isa::Avx512 {
                    (0..NV).for_each(|v| S::prefetch(w.wrapping_add(16 * (v + WEIGHTS_AHEAD * NV))));
                }
                w = w.add(16 * NV);
                for i in 0..MR {
                    let value = S::splat(*x[i].add(k));
                    for v in 0..NV {
                        acc[i][v] = S::fma(value, row[v], acc[i][v]);
                    }
                }
            }
        }
        for i in 0..MR {
            for v in 0..NV {
                let value = if p.relu { S::relu(acc[i][v]) } else { acc[i][v] };
                S::store(y[i].add(16 * v), value);
            }
        }
    }
}

/// One panel's weight gradient over some rows of pixels.
#[derive(Clone, Copy)]
pub(super) struct GradPass {
    /// Window base of the first pixel.
    pub x: *const f32,
    /// Output gradient of the first pixel, at the panel's first channel.
    pub y: *const f32,
    /// Images.
    pub images: usize,
    /// Floats between images of the input and of the output gradient.
    pub image_step: [usize; 2],
    /// Rows of pixels.
    pub rows: usize,
    /// Pixels in a row.
    pub columns: usize,
    /// Floats between rows and between pixels of the input windows.
    pub x_step: [usize; 2],
    /// Floats between rows and between pixels of the output gradient.
    pub y_step: [usize; 2],
    /// Gradient of the packed weights at the first row to compute, `[rows][16·vectors]`; added to.
    pub w: *mut f32,
    /// Where the first row reads, relative to the window base.
    pub offset: isize,
    /// Rows of the packed weights to compute, consecutive in memory.
    pub len: usize,
    /// Vectors of sixteen channels.
    pub vectors: usize,
}

/// Rows of packed weights that the weight-gradient tile computes at once.
pub(super) fn grad_rows(isa: Isa, vectors: usize) -> usize {
    match (isa, vectors) {
        (Isa::Avx512, 2) => 12,
        (Isa::Avx512, _) => 24,
        (Isa::Avx2 | Isa::Neon, _) => 6,
        _ => 3,
    }
}

per_isa! {
    /// Runs one [`GradPass`] of at most [`grad_rows`] rows. Contract: the windows of all pixels lie inside the input,
    /// with [`grad_rows`] floats readable from `offset`; `w` holds `len` rows.
    grad_pass = grad_body(p: &GradPass)
}

#[inline(always)]
unsafe fn grad_body<S: Simd>(p: &GradPass) {
    // SAFETY: the caller's contract.
    unsafe {
        match (S::ISA, p.vectors, p.len) {
            (Isa::Avx512, 2, ..=9) => grad_tile::<S, 9, 2>(p),
            (Isa::Avx512, 2, _) => grad_tile::<S, 12, 2>(p),
            (Isa::Avx512, _, ..=9) => grad_tile::<S, 9, 1>(p),
            (Isa::Avx512, _, ..=16) => grad_tile::<S, 16, 1>(p),
            (Isa::Avx512, _, _) => grad_tile::<S, 24, 1>(p),
            (Isa::Avx2 | Isa::Neon, ..) => grad_tile::<S, 6, 1>(p),
            _ => grad_tile::<S, 3, 1>(p),
        }
    }
}

#[inline(always)]
unsafe fn grad_tile<S: Simd, const MR: usize, const NV: usize>(p: &GradPass) {
    // SAFETY: the contract of `grad_pass`.
    unsafe {
        let mut acc = [[S::zero(); NV]; MR];
        for image in 0..p.images {
            for row in 0..p.rows {
                let mut x = p.x.add(image * p.image_step[0] + row * p.x_step[0]).offset(p.offset);
                let mut y = p.y.add(image * p.image_step[1] + row * p.y_step[0]);
                for _ in 0..p.columns {
                    let mut dy = [S::zero(); NV];
                    for v in 0..NV {
                        dy[v] = S::load(y.add(16 * v));
                    }
                    S::prefetch(x.wrapping_add(PIXELS_AHEAD * p.x_step[1]));
                    (0..NV).for_each(|v| S::prefetch(y.wrapping_add(PIXELS_AHEAD * p.y_step[1] + 16 * v)));
                    for i in 0..MR {
                        let value = S::splat(*x.add(i));
                        for v in 0..NV {
                            acc[i][v] = S::fma(value, dy[v], acc[i][v]);
                        }
                    }
                    x = x.add(p.x_step[1]);
                    y = y.add(p.y_step[1]);
                }
            }
        }
        for (i, row) in acc.iter().enumerate() {
            if i < p.len {
                for v in 0..NV {
                    let at = p.w.add(16 * (i * NV + v));
                    S::store(at, S::add(S::load(at), row[v]));
                }
            }
        }
    }
}
