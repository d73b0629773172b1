//! The pass along rows of interleaved RGB with AVX2: four output pixels of two rows at a time.
//!
//! A weight of 22 bits is two of 11, so that products are made of 16-bit halves in pairs (`pmaddwd`), exactly.

use std::arch::x86_64::*;

use super::BITS;
use super::taps::Taps;

/// Bits of a weight's lower part.
const LOW: u32 = 11;

/// Rows of `from`, `stride` bytes apart → planes `(3, rows, taps)`; returns how many rows are done, an even number: rows
/// whose vectors would reach behind `from` are left to the caller.
#[target_feature(enable = "avx2")]
pub(super) fn horizontal(from: &[u8], stride: usize, rows: usize, taps: &Taps, mirror: bool, out: &mut [u8]) -> usize {
    let (n, plane) = (taps.len(), rows * taps.len());
    assert!(out.len() >= 3 * plane, "resize: the planes");
    if n < 4 {
        return 0;
    }
    let (each, weights) = taps.padded();
    let starts: Vec<usize> = (0..n).map(|i| 3 * taps.of(i).0).collect();
    // Where the last vector of a row ends, counted from the row's first byte.
    let reach = starts.iter().max().map_or(0, |last| last + 3 * (each - 4) + 16);
    let fitting = from.len().checked_sub(reach).map_or(0, |room| room / stride + 1).min(rows) & !1;
    let pairs: Vec<[i32; 4]> = weights.as_chunks::<4>().0.iter().map(halves).collect();
    let planar = by_colour(mirror);
    for row in (0..fitting).step_by(2) {
        // SAFETY: vectors of the rows below `fitting` end inside `from`.
        let lines = unsafe { [from.as_ptr().add(row * stride), from.as_ptr().add((row + 1) * stride)] };
        for block in (0..n).step_by(4) {
            let i = block.min(n - 4);
            let one = |i: usize| {
                // SAFETY: as above.
                unsafe { pixel([lines[0].add(starts[i]), lines[1].add(starts[i])], &pairs[i * each / 4..][..each / 4]) }
            };
            let (a, b) = (_mm256_packs_epi32(one(i), one(i + 1)), _mm256_packs_epi32(one(i + 2), one(i + 3)));
            let four = _mm256_shuffle_epi8(_mm256_packus_epi16(a, b), planar);
            let words = [_mm256_castsi256_si128(four), _mm256_extracti128_si256::<1>(four)];
            let at = row * n + if mirror { n - 4 - i } else { i };
            for (r, words) in words.into_iter().enumerate() {
                let colours =
                    [_mm_extract_epi32::<0>(words), _mm_extract_epi32::<1>(words), _mm_extract_epi32::<2>(words)];
                for (c, colour) in colours.into_iter().enumerate() {
                    out[c * plane + at + r * n..][..4].copy_from_slice(&colour.to_le_bytes());
                }
            }
        }
    }
    fitting
}

/// One pixel of two rows, from 0 to 255 or cut later: red, green, blue and nothing, of the first row and of the second.
///
/// # Safety
/// From each line on, 12 bytes for each but the last of the weights, and 16 for it.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn pixel(lines: [*const u8; 2], weights: &[[i32; 4]]) -> __m256i {
    let (first, second) = (spread(0), spread(6));
    let (mut high, mut low) = (_mm256_setzero_si256(), _mm256_set1_epi32(1 << (BITS - 1)));
    for (k, w) in weights.iter().enumerate() {
        // SAFETY: the caller's promise.
        let pixels = unsafe {
            let line = |r: usize| _mm_loadu_si128(lines[r].add(12 * k).cast());
            _mm256_set_m128i(line(1), line(0))
        };
        let (a, b) = (_mm256_shuffle_epi8(pixels, first), _mm256_shuffle_epi8(pixels, second));
        high = _mm256_add_epi32(high, _mm256_madd_epi16(a, _mm256_set1_epi32(w[0])));
        low = _mm256_add_epi32(low, _mm256_madd_epi16(a, _mm256_set1_epi32(w[1])));
        high = _mm256_add_epi32(high, _mm256_madd_epi16(b, _mm256_set1_epi32(w[2])));
        low = _mm256_add_epi32(low, _mm256_madd_epi16(b, _mm256_set1_epi32(w[3])));
    }
    _mm256_srai_epi32::<{ BITS as i32 }>(_mm256_add_epi32(_mm256_slli_epi32::<{ LOW as i32 }>(high), low))
}

/// Picks the pixels at byte `at` and behind it: red and red, green and green, blue and blue, as words.
#[inline]
#[target_feature(enable = "avx2")]
fn spread(at: i8) -> __m256i {
    let (a, z) = (at, -1);
    let half = _mm_setr_epi8(a, z, a + 3, z, a + 1, z, a + 4, z, a + 2, z, a + 5, z, z, z, z, z);
    _mm256_set_m128i(half, half)
}

/// Four pixels of four bytes → four reds, four greens, four blues, in order or against it.
#[target_feature(enable = "avx2")]
fn by_colour(mirror: bool) -> __m256i {
    let half = match mirror {
        false => _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
        true => _mm_setr_epi8(12, 8, 4, 0, 13, 9, 5, 1, 14, 10, 6, 2, 15, 11, 7, 3),
    };
    _mm256_set_m128i(half, half)
}

/// Four weights as pairs of words: upper halves of the first two, lower halves, and of the other two.
fn halves(w: &[i32; 4]) -> [i32; 4] {
    let pair = |a: i32, b: i32| (a & 0xffff) | b << 16;
    let (high, low) = (|w: i32| w >> LOW, |w: i32| w & ((1 << LOW) - 1));
    [pair(high(w[0]), high(w[1])), pair(low(w[0]), low(w[1])), pair(high(w[2]), high(w[3])), pair(low(w[2]), low(w[3]))]
}
