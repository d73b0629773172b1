//! Two 8×8 inverse transforms side by side with AVX2, the same steps as `idct`; sixteen pixels to RGB, as
//! `colour`.

use std::arch::x86_64::*;

use super::idct::Block;

/// Bytes of two blocks, 64 each, row after row.
#[target_feature(enable = "avx2")]
pub(super) fn pair(blocks: [Block<'_>; 2], out: &mut [[u8; 64]; 2]) {
    let load = |i: usize| {
        let row = |b: usize| {
            let (c, q) = (&blocks[b].coefficients[8 * i..8 * i + 8], &blocks[b].quant[8 * i..8 * i + 8]);
            // SAFETY: eight words each, at any address.
            unsafe { _mm_mullo_epi16(_mm_loadu_si128(c.as_ptr().cast()), _mm_loadu_si128(q.as_ptr().cast())) }
        };
        _mm256_set_m128i(row(1), row(0))
    };
    let rows = std::array::from_fn(load);
    let between = turn(pass::<11>(rows));
    let rows = turn(pass::<18>(between));
    let middle = _mm256_set1_epi8(-128);
    for i in 0..4 {
        let bytes = _mm256_add_epi8(_mm256_packs_epi16(rows[2 * i], rows[2 * i + 1]), middle);
        let halves = [_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes)];
        for (to, half) in out.iter_mut().zip(halves) {
            let to = &mut to[16 * i..16 * i + 16];
            // SAFETY: sixteen bytes, at any address.
            unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), half) };
        }
    }
}

/// A pair of factors in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn factors(a: i32, b: i32) -> __m256i {
    _mm256_set1_epi32((a & 0xffff) | b << 16)
}

/// `x·a + y·b`, `x·c + y·d`: of the lower and of the upper four lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn rotate(x: __m256i, y: __m256i, (a, b): (i32, i32), (c, d): (i32, i32)) -> [[__m256i; 2]; 2] {
    let (low, high) = (_mm256_unpacklo_epi16(x, y), _mm256_unpackhi_epi16(x, y));
    let by = |f: __m256i| [_mm256_madd_epi16(low, f), _mm256_madd_epi16(high, f)];
    [by(factors(a, b)), by(factors(c, d))]
}

/// The transform along the eight registers, rounded by `SHIFT` bits to words.
#[inline]
#[target_feature(enable = "avx2")]
fn pass<const SHIFT: i32>(v: [__m256i; 8]) -> [__m256i; 8] {
    let add = |a: [__m256i; 2], b: [__m256i; 2]| [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])];
    let sub = |a: [__m256i; 2], b: [__m256i; 2]| [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])];
    let wide = |x: __m256i| {
        let zero = _mm256_setzero_si256();
        let (low, high) = (_mm256_unpacklo_epi16(zero, x), _mm256_unpackhi_epi16(zero, x));
        [_mm256_srai_epi32::<3>(low), _mm256_srai_epi32::<3>(high)]
    };
    // The constants are those of `idct`, added up.
    let [a, b] = rotate(v[2], v[6], (4433 + 6270, 4433), (4433, 4433 - 15137));
    let (sum, difference) = (wide(_mm256_add_epi16(v[0], v[4])), wide(_mm256_sub_epi16(v[0], v[4])));
    let evens = [add(sum, a), add(difference, b), sub(difference, b), sub(sum, a)];
    let (z3, z4) = (_mm256_add_epi16(v[7], v[3]), _mm256_add_epi16(v[5], v[1]));
    let [s3, s4] = rotate(z3, z4, (9633 - 16069, 9633), (9633, 9633 - 3196));
    let [t0, t3] = rotate(v[7], v[1], (2446 - 7373, -7373), (-7373, 12299 - 7373));
    let [t1, t2] = rotate(v[5], v[3], (16819 - 20995, -20995), (-20995, 25172 - 20995));
    let odds = [add(t3, s4), add(t2, s3), add(t1, s4), add(t0, s3)];
    let half = _mm256_set1_epi32(1 << (SHIFT - 1));
    let round = |x: [__m256i; 2]| {
        let one = |x| _mm256_srai_epi32::<SHIFT>(_mm256_add_epi32(x, half));
        _mm256_packs_epi32(one(x[0]), one(x[1]))
    };
    let (first, last) = (|i: usize| round(add(evens[i], odds[i])), |i: usize| round(sub(evens[i], odds[i])));
    [first(0), first(1), first(2), first(3), last(3), last(2), last(1), last(0)]
}

/// Rows become columns, in both halves.
#[inline]
#[target_feature(enable = "avx2")]
fn turn(v: [__m256i; 8]) -> [__m256i; 8] {
    let words = |a, b| [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)];
    let doubles = |a, b| [_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)];
    let quads = |a, b| [_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)];
    let ([a0, a1], [b0, b1]) = (words(v[0], v[1]), words(v[2], v[3]));
    let ([c0, c1], [d0, d1]) = (words(v[4], v[5]), words(v[6], v[7]));
    let ([e0, e1], [e2, e3]) = (doubles(a0, b0), doubles(a1, b1));
    let ([f0, f1], [f2, f3]) = (doubles(c0, d0), doubles(c1, d1));
    let ([r0, r1], [r2, r3]) = (quads(e0, f0), quads(e1, f1));
    let ([r4, r5], [r6, r7]) = (quads(e2, f2), quads(e3, f3));
    [r0, r1, r2, r3, r4, r5, r6, r7]
}

/// Sixteen pixels at a time; returns how many are done.
#[target_feature(enable = "avx2")]
pub(super) fn rgb(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [[u8; 3]]) -> usize {
    let blocks = y.as_chunks::<16>().0.iter().zip(cb.as_chunks::<16>().0).zip(cr.as_chunks::<16>().0);
    let mut done = 0;
    for (((y, cb), cr), out) in blocks.zip(out.as_chunks_mut::<16>().0) {
        let [red, green, blue] = colours(words(y), words(cb), words(cr));
        let bytes = interleave(red, green, blue);
        for (to, from) in out.as_flattened_mut().as_chunks_mut::<16>().0.iter_mut().zip(bytes) {
            // SAFETY: sixteen bytes, at any address.
            unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), from) };
        }
        done += 16;
    }
    done
}

/// Sixteen bytes as words.
#[inline]
#[target_feature(enable = "avx2")]
fn words(bytes: &[u8; 16]) -> __m256i {
    // SAFETY: sixteen bytes, at any address.
    _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

/// The bytes of red, green and blue.
#[inline]
#[target_feature(enable = "avx2")]
fn colours(y: __m256i, cb: __m256i, cr: __m256i) -> [__m128i; 3] {
    let middle = _mm256_set1_epi16(128);
    let (cb, cr) = (_mm256_sub_epi16(cb, middle), _mm256_sub_epi16(cr, middle));
    let twice = |v| _mm256_add_epi16(v, v);
    let part = |v, by: i16| {
        let high = _mm256_mulhi_epi16(twice(v), _mm256_set1_epi16(by));
        _mm256_srai_epi16::<1>(_mm256_add_epi16(high, _mm256_set1_epi16(1)))
    };
    let red = _mm256_add_epi16(_mm256_add_epi16(y, cr), part(cr, 26345));
    let blue = _mm256_add_epi16(_mm256_add_epi16(y, twice(cb)), part(cb, -14942));
    let half = _mm256_set1_epi32(32768);
    let mixed = |pairs| {
        let products = _mm256_madd_epi16(pairs, factors(-22554, 18734));
        _mm256_srai_epi32::<16>(_mm256_add_epi32(products, half))
    };
    let mixed = _mm256_packs_epi32(mixed(_mm256_unpacklo_epi16(cb, cr)), mixed(_mm256_unpackhi_epi16(cb, cr)));
    let green = _mm256_add_epi16(_mm256_sub_epi16(y, cr), mixed);
    [red, green, blue].map(|v| {
        let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi16(v, v));
        _mm256_castsi256_si128(packed)
    })
}

/// Three times sixteen bytes, in turn.
#[inline]
#[target_feature(enable = "avx2")]
fn interleave(red: __m128i, green: __m128i, blue: __m128i) -> [__m128i; 3] {
    // Byte `i` of part `p` is pixel (16·p + i) / 3 of colour (16·p + i) % 3.
    const MASKS: [[[i8; 16]; 3]; 3] = {
        let mut masks = [[[-1; 16]; 3]; 3];
        let mut n = 0;
        while n < 48 {
            masks[n / 16][n % 3][n % 16] = (n / 3) as i8;
            n += 1;
        }
        masks
    };
    let pick = |v, mask: &[i8; 16]| {
        // SAFETY: sixteen bytes, at any address.
        _mm_shuffle_epi8(v, unsafe { _mm_loadu_si128(mask.as_ptr().cast()) })
    };
    let part = |p: usize| {
        let [r, g, b] = &MASKS[p];
        _mm_or_si128(_mm_or_si128(pick(red, r), pick(green, g)), pick(blue, b))
    };
    [part(0), part(1), part(2)]
}
