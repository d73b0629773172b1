//! Exponentials over whole slices: softmax, SiLU gates, the quick GELU. Compiled for every instruction set without
//! contracting products and sums, so that all give the same bytes.

use super::simd::{Isa, Simd, per_isa};

/// `eˣ` for x ≤ 0 with a relative error below 2·10⁻⁷: Cephes' `expf` (Moshier), without branches.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = x.max(-87.0);
    // Adding and taking away 1.5·2²³ rounds to the nearest whole number, which is then in the lowest bits of the sum.
    let t = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = t - 12_582_912.0;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_2e-4_f32;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + c;
    }
    (p * r * r + r + 1.0) * f32::from_bits(t.to_bits().wrapping_add(127) << 23)
}

/// `1 / (1 + e⁻ˣ)`, by the exponential of a number that is not positive.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    let s = 1.0 / (1.0 + e);
    if x < 0.0 { e * s } else { s }
}

/// Sixteen sums side by side, added from the first on.
#[inline(always)]
pub fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (whole, rest) = values.as_chunks::<16>();
    for chunk in whole {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += v;
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += v;
    }
    lanes.iter().sum()
}

/// Softmax of scaled scores, in place.
pub fn softmax(scores: &mut [f32], scale: f32) {
    if scores.is_empty() {
        return;
    }
    // SAFETY: `detect` names an instruction set of this machine.
    unsafe { softmax_kernel(Isa::detect(), scores, scale) }
}

/// `gate ← gate · sigmoid(gate) · up`.
pub fn gated(gate: &mut [f32], up: &[f32]) {
    // SAFETY: as above.
    unsafe { gated_kernel(Isa::detect(), gate, up) }
}

/// The way back of [`gated`] from `grad`, in place: with s = sigmoid(gate), `gate ← grad · up · s · (1 + gate · (1 − s))`
/// and `up ← grad · gate · s`.
pub fn gated_back(gate: &mut [f32], up: &mut [f32], grad: &[f32]) {
    // SAFETY: as above.
    unsafe { gated_back_kernel(Isa::detect(), gate, up, grad) }
}

/// `x ← x · sigmoid(1.702 x)`.
pub fn quick_gelu(x: &mut [f32]) {
    // SAFETY: as above.
    unsafe { quick_gelu_kernel(Isa::detect(), x) }
}

per_isa! {
    /// See [`softmax`].
    softmax_kernel = softmax_body(scores: &mut [f32], scale: f32)
}

#[inline(always)]
pub(super) unsafe fn softmax_body<S: Simd>(scores: &mut [f32], scale: f32) {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|v| *v = exp((*v - most) * scale));
    let inverse = 1.0 / sum(scores);
    scores.iter_mut().for_each(|v| *v *= inverse);
}

per_isa! {
    /// See [`gated`].
    gated_kernel = gated_body(gate: &mut [f32], up: &[f32])
}

#[inline(always)]
unsafe fn gated_body<S: Simd>(gate: &mut [f32], up: &[f32]) {
    gate.iter_mut().zip(up).for_each(|(g, u)| *g = *g * sigmoid(*g) * u);
}

per_isa! {
    /// See [`gated_back`].
    gated_back_kernel = gated_back_body(gate: &mut [f32], up: &mut [f32], grad: &[f32])
}

#[inline(always)]
unsafe fn gated_back_body<S: Simd>(gate: &mut [f32], up: &mut [f32], grad: &[f32]) {
    for ((gate, up), grad) in gate.iter_mut().zip(up).zip(grad) {
        let (x, u, s) = (*gate, *up, sigmoid(*gate));
        *gate = grad * u * s * (1.0 + x * (1.0 - s));
        *up = grad * x * s;
    }
}

per_isa! {
    /// See [`quick_gelu`].
    quick_gelu_kernel = quick_gelu_body(x: &mut [f32])
}

#[inline(always)]
pub(super) unsafe fn quick_gelu_body<S: Simd>(x: &mut [f32]) {
    x.iter_mut().for_each(|v| *v *= sigmoid(1.702 * *v));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_exponential_is_within_three_units_in_the_last_place() {
        for i in 0..870_000 {
            let x = -(i as f32) * 1e-4;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 3.0 * f64::from(f32::EPSILON), "exp({x}) = {got}, not {want}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn every_instruction_set_gives_the_same_bytes() {
        let wave = |step: f32| (0..333).map(|i| (i as f32 * step).sin() * 9.0).collect::<Vec<f32>>();
        let run = |isa| {
            let (mut p, mut g, mut q) = (wave(0.7), wave(0.9), wave(1.1));
            let (mut gate, mut up) = (wave(0.8), wave(0.6));
            // SAFETY: the instruction set is one of this machine's.
            unsafe {
                softmax_kernel(isa, &mut p, 0.3);
                gated_kernel(isa, &mut g, &wave(0.2));
                quick_gelu_kernel(isa, &mut q);
                gated_back_kernel(isa, &mut gate, &mut up, &wave(0.5));
            }
            [p, g, q, gate, up]
        };
        let want = run(Isa::Portable);
        assert!((want[0].iter().sum::<f32>() - 1.0).abs() < 1e-5);
        for (i, ((x, u), g)) in wave(0.8).into_iter().zip(wave(0.6)).zip(wave(0.5)).enumerate() {
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let (x, u, g) = (f64::from(x), f64::from(u), f64::from(g));
            let slope = (silu(x + 1e-5) - silu(x - 1e-5)) / 2e-5;
            assert!((f64::from(want[3][i]) - g * u * slope).abs() < 1e-4, "gate {i}");
            assert!((f64::from(want[4][i]) - g * silu(x)).abs() < 1e-4, "up {i}");
        }
        Isa::available().into_iter().for_each(|isa| assert_eq!(run(isa), want, "{isa}"));
    }
}
