//! Cutting f32 into three bf16 parts, two vectors at once: lane `j` of a part holds the part of the first vector's
//! lane `j` in its lower half and of the second's in its upper half.

use std::arch::x86_64::*;

use super::{PARTS, TILE};
use crate::nn::kernels::simd::{Avx512, Simd};

/// The upper half of a f32: a bf16 that is not greater in magnitude.
const UPPER: i32 = 0xffff_0000_u32 as i32;

/// Three lines of pairs. What the parts leave of a value is zero, unless it is so small that the rest is subnormal.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::nn) fn pairs(first: __m512, second: __m512) -> [__m512i; PARTS] {
    let upper = _mm512_set1_epi32(UPPER);
    let (mut a, mut b) = (first, second);
    let mut parts = [_mm512_setzero_si512(); PARTS];
    for part in &mut parts {
        let high = [a, b].map(|v| _mm512_and_si512(_mm512_castps_si512(v), upper));
        *part = _mm512_or_si512(_mm512_srli_epi32::<16>(high[0]), high[1]);
        a = _mm512_sub_ps(a, _mm512_castsi512_ps(high[0]));
        b = _mm512_sub_ps(b, _mm512_castsi512_ps(high[1]));
    }
    parts
}

/// Sixteen values, or zeros.
///
/// # Safety
/// Sixteen readable values, or null.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::nn) unsafe fn load(at: *const f32) -> __m512 {
    // SAFETY: the caller's contract.
    if at.is_null() { _mm512_setzero_ps() } else { unsafe { _mm512_loadu_ps(at) } }
}

/// Writes pairs of sixteen values each, `pitch` floats from one part to the next.
///
/// # Safety
/// Readable vectors (or null), room for three lines.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::nn) unsafe fn line(first: *const f32, second: *const f32, to: *mut f32, pitch: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        for (p, part) in pairs(load(first), load(second)).into_iter().enumerate() {
            _mm512_storeu_si512(to.add(p * pitch).cast(), part);
        }
    }
}

/// Rows of a right factor's tile: pair `j` is `rows[2j]`, `rows[2j + 1]` of sixteen values each; parts lie `pitch`
/// floats apart.
///
/// # Safety
/// As [`line`]; room for `rows.len() / 2` lines of each part.
#[target_feature(enable = "avx512f")]
pub(in crate::nn) unsafe fn tile(rows: &[*const f32], to: *mut f32, pitch: usize) {
    debug_assert!(rows.len() <= TILE / 8);
    for (j, pair) in rows.chunks_exact(2).enumerate() {
        // SAFETY: the caller's contract.
        unsafe { line(pair[0], pair[1], to.add(16 * j), pitch) }
    }
}

/// Turns thirty-two rows of sixteen values into a tile of sixteen lines of thirty-two bf16 for each part.
///
/// # Safety
/// As [`line`]; room for three tiles.
#[target_feature(enable = "avx512f")]
pub(in crate::nn) unsafe fn turned(rows: &[*const f32; 32], to: *mut f32) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut all = [[_mm512_setzero_si512(); 16]; PARTS];
        for j in 0..16 {
            let parts = pairs(load(rows[2 * j]), load(rows[2 * j + 1]));
            (0..PARTS).for_each(|p| all[p][j] = parts[p]);
        }
        for (p, lines) in all.iter().enumerate() {
            Avx512::turn(lines.as_ptr().cast(), 16, to.add(p * TILE), 16);
        }
    }
}

/// Writes a row of two tiles of sums, plus two more values (null: nothing), perhaps rectified.
///
/// # Safety
/// Sixteen readable and writable values a vector; the machine has AVX-512.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::nn) unsafe fn finish(sums: &[f32], more: [*const f32; 2], relu: bool, to: *mut f32) {
    for v in 0..2 {
        // SAFETY: the caller's contract; the slice is checked.
        unsafe {
            let mut sum = load(sums[v * TILE..][..16].as_ptr());
            for more in more {
                if !more.is_null() {
                    sum = _mm512_add_ps(sum, _mm512_loadu_ps(more.add(16 * v)));
                }
            }
            // MAXPS returns its second operand when one is NaN.
            let end = if relu { _mm512_max_ps(_mm512_setzero_ps(), sum) } else { sum };
            _mm512_storeu_ps(to.add(16 * v), end);
        }
    }
}

/// Adds values to those at `to`.
///
/// # Safety
/// As many readable and writable values, a multiple of sixteen; the machine has AVX-512.
#[target_feature(enable = "avx512f")]
pub(in crate::nn) unsafe fn add(values: &[f32], to: *mut f32) {
    for (i, values) in values.chunks_exact(16).enumerate() {
        // SAFETY: the caller's contract.
        unsafe {
            let to = to.add(16 * i);
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_loadu_ps(values.as_ptr())));
        }
    }
}

/// Sixteen rows of `rows` values become rows of sixteen.
///
/// # Safety
/// The machine has AVX-512; `rows` is a multiple of sixteen.
#[target_feature(enable = "avx512f")]
pub(in crate::nn) unsafe fn columns(from: &[f32], rows: usize, to: &mut [f32]) {
    assert!(from.len() == 16 * rows && to.len() == 16 * rows && rows.is_multiple_of(16));
    for first in (0..rows).step_by(16) {
        // SAFETY: sixteen columns of sixteen rows, checked.
        unsafe { Avx512::turn(from.as_ptr().add(first), rows, to.as_mut_ptr().add(16 * first), 16) }
    }
}

/// Sixteen windows of `area` values become at least `area` rows of sixteen; what follows in `to` may be overwritten.
///
/// # Safety
/// The machine has AVX-512.
#[target_feature(enable = "avx512f")]
pub(in crate::nn) unsafe fn windows(from: &[f32], area: usize, to: &mut [f32]) {
    if area == 1 {
        return to[..16].copy_from_slice(&from[..16]);
    }
    for first in (0..area).step_by(16) {
        if from.len() >= 15 * area + first + 16 && to.len() >= 16 * (first + 16) {
            // SAFETY: sixteen values of sixteen windows, and room for sixteen rows, checked.
            unsafe { Avx512::turn(from.as_ptr().add(first), area, to.as_mut_ptr().add(16 * first), 16) }
            continue;
        }
        for at in first..area.min(first + 16) {
            let row = &mut to[16 * at..][..16];
            row.iter_mut().zip(from[at..].iter().step_by(area)).for_each(|(to, from)| *to = *from);
        }
    }
}
