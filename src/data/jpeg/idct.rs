//! Inverse cosine transforms of 8×8 coefficients to 8×8, 4×4, 2×2 or 1×1 bytes: the integer ones of the Independent JPEG
//! Group, whose steps and roundings libjpeg-turbo and so Pillow have, to the bit.
//!
//! The large one is Loeffler, Ligtenberg and Moschytz, *Practical fast 1-D DCT algorithms with 11 multiplications*,
//! ICASSP 1989, in 13 bits of fraction.

/// Bits of the constants' fraction.
const BITS: u32 = 13;
/// Bits of fraction between the passes.
const BETWEEN: u32 = 2;

const F_0_211: i32 = 1730;
const F_0_298: i32 = 2446;
const F_0_390: i32 = 3196;
const F_0_509: i32 = 4176;
const F_0_541: i32 = 4433;
const F_0_601: i32 = 4926;
const F_0_720: i32 = 5906;
const F_0_765: i32 = 6270;
const F_0_850: i32 = 6967;
const F_0_899: i32 = 7373;
const F_1_061: i32 = 8697;
const F_1_175: i32 = 9633;
const F_1_272: i32 = 10426;
const F_1_451: i32 = 11893;
const F_1_501: i32 = 12299;
const F_1_847: i32 = 15137;
const F_1_961: i32 = 16069;
const F_2_053: i32 = 16819;
const F_2_172: i32 = 17799;
const F_2_562: i32 = 20995;
const F_3_072: i32 = 25172;
const F_3_624: i32 = 29692;

/// Coefficients and the steps of their quantisation, in natural order.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub coefficients: &'a [i16; 64],
    pub quant: &'a [i16; 64],
}

impl Block<'_> {
    fn at(&self, i: usize) -> i32 {
        i32::from(self.coefficients[i].wrapping_mul(self.quant[i]))
    }
}

/// `side`² bytes of a block into rows `stride` apart; `side` is 8, 4, 2 or 1.
pub(super) fn transform(block: Block<'_>, side: usize, out: &mut [u8], stride: usize) {
    match side {
        8 => separable(block, 8, 0, eight, out, stride),
        4 => separable(block, 4, 1, four, out, stride),
        2 => separable(block, 2, 2, two, out, stride),
        _ => out[0] = byte((block.at(0) + 4) >> 3),
    }
}

fn byte(value: i32) -> u8 {
    (value + 128).clamp(0, 255) as u8
}

/// Columns, then rows, by a transform of 8 values to `n`, which has `extra` bits of fraction more than [`BITS`].
fn separable(
    block: Block<'_>,
    n: usize,
    extra: u32,
    one: impl Fn([i32; 8]) -> [i32; 8],
    out: &mut [u8],
    stride: usize,
) {
    let round = |v: i32, bits: u32| v.wrapping_add(1 << (bits - 1)) >> bits;
    let mut between = [[0i32; 8]; 8];
    for column in 0..8 {
        let values = one(std::array::from_fn(|row| block.at(8 * row + column)));
        for (row, v) in between.iter_mut().zip(values).take(n) {
            // Vectors keep 16 bits here.
            row[column] = round(v, BITS - BETWEEN + extra).clamp(i16::MIN.into(), i16::MAX.into());
        }
    }
    for (row, values) in between.into_iter().take(n).enumerate() {
        for (to, v) in out[row * stride..][..n].iter_mut().zip(one(values)) {
            *to = byte(round(v, BITS + BETWEEN + 3 + extra));
        }
    }
}

/// The sum of products.
fn sum(pairs: &[(i32, i32)]) -> i32 {
    pairs.iter().fold(0, |s, (a, b)| s.wrapping_add(a.wrapping_mul(*b)))
}

fn wrapped(a: i32) -> i32 {
    i32::from(a as i16)
}

fn eight(v: [i32; 8]) -> [i32; 8] {
    let (even, odd) = ((wrapped(v[0] + v[4]) << BITS, wrapped(v[0] - v[4]) << BITS), (v[7], v[5], v[3], v[1]));
    let (a, b) =
        (sum(&[(v[2], F_0_541 + F_0_765), (v[6], F_0_541)]), sum(&[(v[2], F_0_541), (v[6], F_0_541 - F_1_847)]));
    let evens = [even.0.wrapping_add(a), even.1.wrapping_add(b), even.1.wrapping_sub(b), even.0.wrapping_sub(a)];
    let (z3, z4) = (wrapped(odd.0 + odd.2), wrapped(odd.1 + odd.3));
    let (s3, s4) = (sum(&[(z3, F_1_175 - F_1_961), (z4, F_1_175)]), sum(&[(z3, F_1_175), (z4, F_1_175 - F_0_390)]));
    let odds = [
        sum(&[(odd.3, F_1_501 - F_0_899), (odd.0, -F_0_899), (s4, 1)]),
        sum(&[(odd.2, F_3_072 - F_2_562), (odd.1, -F_2_562), (s3, 1)]),
        sum(&[(odd.1, F_2_053 - F_2_562), (odd.2, -F_2_562), (s4, 1)]),
        sum(&[(odd.0, F_0_298 - F_0_899), (odd.3, -F_0_899), (s3, 1)]),
    ];
    std::array::from_fn(|i| match i {
        0..4 => evens[i].wrapping_add(odds[i]),
        _ => evens[7 - i].wrapping_sub(odds[7 - i]),
    })
}

fn four(v: [i32; 8]) -> [i32; 8] {
    let even = sum(&[(v[0], 1 << (BITS + 1))]);
    let turned = sum(&[(v[2], F_1_847), (v[6], -F_0_765)]);
    let inner = sum(&[(v[7], -F_0_211), (v[5], F_1_451), (v[3], -F_2_172), (v[1], F_1_061)]);
    let outer = sum(&[(v[7], -F_0_509), (v[5], -F_0_601), (v[3], F_0_899), (v[1], F_2_562)]);
    let (a, b) = (even.wrapping_add(turned), even.wrapping_sub(turned));
    [a.wrapping_add(outer), b.wrapping_add(inner), b.wrapping_sub(inner), a.wrapping_sub(outer), 0, 0, 0, 0]
}

fn two(v: [i32; 8]) -> [i32; 8] {
    let even = sum(&[(v[0], 1 << (BITS + 2))]);
    let odd = sum(&[(v[7], -F_0_720), (v[5], F_0_850), (v[3], -F_1_272), (v[1], F_3_624)]);
    [even.wrapping_add(odd), even.wrapping_sub(odd), 0, 0, 0, 0, 0, 0]
}
