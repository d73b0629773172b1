//! The micro-kernels: four tiles of f32 sums, from three parts of each factor.

use std::arch::asm;
use std::marker::PhantomData;

use super::{DEPTH, SIDE, TILE};

/// Bytes of a tile.
pub(in crate::nn) const BYTES: usize = 4 * TILE;

/// Sums of a call: four tiles.
#[derive(Clone)]
#[repr(C, align(64))]
pub(in crate::nn) struct Sums(pub [f32; 4 * TILE]);

/// The shapes of the eight tile registers, as the processor wants them.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(in crate::nn) struct Shapes([u8; 64]);

impl Shapes {
    /// For left factors of `rows` rows (up to 16) and steps of `depth` values (even, up to 32).
    pub fn new(rows: usize, depth: usize) -> Self {
        assert!((1..=SIDE).contains(&rows) && depth.is_multiple_of(2) && (2..=DEPTH).contains(&depth));
        let mut all = [0; 64];
        all[0] = 1;
        for tile in 0..8 {
            // Sums, left, right.
            let (high, bytes) = match tile {
                ..4 => (rows, 64),
                4 | 5 => (rows, 2 * depth),
                _ => (depth / 2, 64),
            };
            all[16 + 2 * tile] = bytes as u8;
            all[48 + tile] = high as u8;
        }
        Shapes(all)
    }
}

/// The tile registers of this thread in some shapes; given back empty, so that nobody saves them.
pub(in crate::nn) struct Unit(PhantomData<*const ()>);

impl Unit {
    /// Sets the shapes. No other may be set while this lives.
    ///
    /// # Safety
    /// The machine has the unit (`available`).
    pub unsafe fn open(shapes: &Shapes) -> Self {
        // SAFETY: sixty-four readable bytes that say what the processor wants to know.
        unsafe { asm!("ldtilecfg [{}]", in(reg) shapes.0.as_ptr(), options(nostack, readonly)) }
        Unit(PhantomData)
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // SAFETY: the machine has the unit.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}

impl Default for Sums {
    fn default() -> Self {
        Sums([0.0; 4 * TILE])
    }
}

/// One of the two factors of a product.
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::nn) struct Factor {
    /// First row of each block (left: rows of the result; right: columns) at its first step and part.
    pub blocks: [*const u8; 2],
    /// Bytes from one part to the next.
    pub part: usize,
}

/// Two blocks of the left factor times two of the right: four tiles of sums, `[left][right]`. A tile's rows lie a cache
/// line apart in both factors; rows of the right factor are pairs of values.
#[repr(C)]
pub(in crate::nn) struct Product<'a> {
    pub left: Factor,
    pub right: Factor,
    /// Where each step lies in both, in bytes from the first. Not empty.
    pub steps: &'a [[usize; 2]],
}

impl Product<'_> {
    /// Writes the product to four tiles of sums.
    ///
    /// # Safety
    /// The unit has the shapes of these factors; rows of all blocks, parts and steps are readable; four tiles of sums are
    /// writable.
    pub unsafe fn write_to(&self, sums: *mut f32, _: &Unit) {
        macro_rules! four {
            () => {
                concat!(
                    "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7\n",
                    "tdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7\n",
                )
            };
        }
        // SAFETY: reads and writes what the caller vouches for; no tile register keeps anything for later.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "mov {q}, [{step}]",
                "mov {p}, [{product}]",
                "add {p}, {q}",
                "add {q}, [{product} + 8]",
                "mov {s}, [{step} + 8]",
                "mov {r}, [{product} + 24]",
                "add {r}, {s}",
                "add {s}, [{product} + 32]",
                // Third part of the left, first of the right; then the others with that one.
                "tileloadd tmm6, [{r} + {line}*1]",
                "tileloadd tmm7, [{s} + {line}*1]",
                "lea {t}, [{p} + 2*{left}]",
                "tileloadd tmm4, [{t} + {line}*1]",
                "lea {t}, [{q} + 2*{left}]",
                "tileloadd tmm5, [{t} + {line}*1]",
                four!(),
                "tileloadd tmm4, [{p} + {line}*1]",
                "tileloadd tmm5, [{q} + {line}*1]",
                four!(),
                "lea {t}, [{p} + {left}]",
                "tileloadd tmm4, [{t} + {line}*1]",
                "lea {t}, [{q} + {left}]",
                "tileloadd tmm5, [{t} + {line}*1]",
                four!(),
                // Second part of the right, with second and first of the left.
                "add {r}, {right}",
                "add {s}, {right}",
                "tileloadd tmm6, [{r} + {line}*1]",
                "tileloadd tmm7, [{s} + {line}*1]",
                four!(),
                "tileloadd tmm4, [{p} + {line}*1]",
                "tileloadd tmm5, [{q} + {line}*1]",
                four!(),
                // Third part of the right, with the first of the left.
                "add {r}, {right}",
                "add {s}, {right}",
                "tileloadd tmm6, [{r} + {line}*1]",
                "tileloadd tmm7, [{s} + {line}*1]",
                four!(),
                "add {step}, 16",
                "cmp {step}, {end}",
                "jne 2b",
                "tilestored [{sums} + {line}*1], tmm0",
                "tilestored [{sums} + {line}*1 + 1024], tmm1",
                "tilestored [{sums} + {line}*1 + 2048], tmm2",
                "tilestored [{sums} + {line}*1 + 3072], tmm3",
                p = out(reg) _,
                q = out(reg) _,
                r = out(reg) _,
                s = out(reg) _,
                t = out(reg) _,
                left = in(reg) self.left.part,
                right = in(reg) self.right.part,
                product = in(reg) self,
                step = inout(reg) self.steps.as_ptr_range().start => _,
                end = in(reg) self.steps.as_ptr_range().end,
                line = in(reg) 64usize,
                sums = in(reg) sums,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// Multiply-adds of f32 that `rounds` calls on cached data do, and the seconds they take.
///
/// # Safety
/// The machine has the unit (`available`).
pub(in crate::nn::kernels) unsafe fn peak(rounds: usize) -> (f64, f64) {
    // Sixty-four steps of two blocks with weights of 384 KiB, as in a wide convolution.
    let steps: Vec<[usize; 2]> = (0..64).map(|s| [s % 4 * BYTES, s * 6 * BYTES]).collect();
    let (left, right) = (vec![Sums::default(); 6], vec![Sums::default(); 64 * 6 / 4]);
    let factor = |at: *const Sums, block: usize, part: usize| Factor {
        blocks: [0, block].map(|b| at.cast::<u8>().wrapping_add(b)),
        part,
    };
    let (left, right) = (factor(left.as_ptr(), 4 * BYTES, 8 * BYTES), factor(right.as_ptr(), BYTES, 2 * BYTES));
    let (shapes, product) = (Shapes::new(SIDE, DEPTH), Product { left, right, steps: &steps });
    let mut sums = Sums::default();
    // SAFETY: the caller has the unit.
    let unit = unsafe { Unit::open(&shapes) };
    let start = std::time::Instant::now();
    for _ in 0..rounds {
        // SAFETY: parts, steps and tiles lie in the buffers.
        unsafe { product.write_to(sums.0.as_mut_ptr(), &unit) };
    }
    let done = (rounds * steps.len() * 4 * SIDE * SIDE * DEPTH) as f64;
    (done, start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::super::{available, split};
    use super::*;
    use crate::nn::kernels::check::noise;

    /// Factors of very different magnitudes: sums are off by about as much as plain f32 sums are.
    #[test]
    fn products_are_as_exact_as_f32() {
        if !available() {
            return;
        }
        let value = |i: usize, k: usize, seed: u32| {
            let n = noise(2 * 16 * DEPTH, seed);
            n[i * DEPTH + k] * (40.0 * n[16 * DEPTH + i * DEPTH + k]).exp2()
        };
        let a: Vec<Vec<f32>> = (0..16).map(|i| (0..DEPTH).map(|k| value(i, k, 1)).collect()).collect();
        let b: Vec<Vec<f32>> = (0..DEPTH).map(|k| (0..16).map(|j| value(j, k, 2)).collect()).collect();
        // Lines of the left factor hold pairs of neighbours, as the right factor's tiles do.
        let mut left = vec![Sums::default(); 1];
        for (i, row) in a.iter().enumerate() {
            let [even, odd] = [0, 1].map(|p| row.iter().skip(p).step_by(2).copied().collect::<Vec<_>>());
            // SAFETY: sixteen values each; a line of each part's tile.
            unsafe { split::line(even.as_ptr(), odd.as_ptr(), left[0].0.as_mut_ptr().add(16 * i), TILE) }
        }
        let mut right = vec![Sums::default(); 1];
        let rows: Vec<*const f32> = b.iter().map(|r| r.as_ptr()).collect();
        // SAFETY: rows of sixteen values; a tile for each part.
        unsafe { split::tile(&rows, right[0].0.as_mut_ptr(), TILE) }
        let factor = |s: &[Sums]| Factor { blocks: [s.as_ptr().cast(); 2], part: BYTES };
        let product = Product { left: factor(&left), right: factor(&right), steps: &[[0, 0]] };
        let mut sums = Sums([f32::NAN; 4 * TILE]);
        // SAFETY: tiles of three parts; the machine has the unit.
        unsafe { product.write_to(sums.0.as_mut_ptr(), &Unit::open(&Shapes::new(SIDE, DEPTH))) };
        let (mut ours, mut plain) = (0.0f64, 0.0f64);
        for (i, j) in (0..16).flat_map(|i| (0..16).map(move |j| (i, j))) {
            let terms = || (0..DEPTH).map(|k| f64::from(a[i][k]) * f64::from(b[k][j]));
            let (want, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
            let off = |sum: f32| (f64::from(sum) - want).abs() / size;
            plain = plain.max(off((0..DEPTH).fold(0.0, |sum, k| sum + a[i][k] * b[k][j])));
            sums.0.chunks_exact(TILE).for_each(|tile| ours = ours.max(off(tile[16 * i + j])));
        }
        assert!(plain > 1e-7 && ours < 3.0 * plain, "off by {ours:.1e} of the terms, f32 sums by {plain:.1e}");
    }
}
