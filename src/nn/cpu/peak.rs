//! What this core can do at best, measured now: products, and reading.

use std::hint::black_box;
use std::time::Instant;

use super::simd::{Isa, Simd, per_isa};

/// Independent multiply-adds in a row, of sixteen lanes each; half as many where a value takes two registers.
const CHAINS: usize = 12;
const ROUNDS: usize = 20_000;

per_isa! {
    /// Independent chains of multiply-adds in registers.
    chains = chains_body(out: &mut [f32; 16])
}

#[inline(always)]
unsafe fn chains_body<S: Simd>(out: &mut [f32; 16]) {
    // SAFETY: registers only, and one store of sixteen values into `out`.
    unsafe {
        let (a, b) = (S::splat(black_box(0.999)), S::splat(black_box(1e-3)));
        // Two registers a value on AVX2: half the chains fill them.
        let mut acc = [S::splat(1.0); CHAINS];
        let used = if S::ISA == Isa::Avx512 { CHAINS } else { CHAINS / 2 };
        for _ in 0..ROUNDS {
            for v in &mut acc[..used] {
                *v = S::fma(*v, a, b);
            }
        }
        let sum = acc[1..].iter().fold(acc[0], |s, &v| S::add(s, v));
        S::store(out.as_mut_ptr(), sum);
    }
}

/// GFLOP/s of one core in multiply-adds on an instruction set: the best of `tries` short runs. 0 where it is missing.
pub fn peak(isa: Isa, tries: usize) -> f64 {
    if !Isa::available().contains(&isa) {
        return 0.0;
    }
    let used = if isa == Isa::Avx512 { CHAINS } else { CHAINS / 2 };
    let flop = (ROUNDS * used * 16 * 2) as f64;
    let once = |_| {
        let mut out = [0.0; 16];
        let start = Instant::now();
        // SAFETY: the machine has the instruction set.
        unsafe { chains(isa, &mut out) };
        black_box(out);
        flop / start.elapsed().as_secs_f64() / 1e9
    };
    (0..tries).map(once).fold(0.0, f64::max)
}

per_isa! {
    /// Eight sums of sixteen lanes each, then all together.
    sweep_kernel = sweep_body(values: &[f32], out: &mut f32)
}

#[inline(always)]
unsafe fn sweep_body<S: Simd>(values: &[f32], out: &mut f32) {
    const SUMS: usize = 8;
    let (whole, rest) = values.as_chunks::<{ 16 * SUMS }>();
    // SAFETY: a chunk holds the vectors that are loaded from it.
    unsafe {
        let mut acc = [S::zero(); SUMS];
        for chunk in whole {
            for (i, sum) in acc.iter_mut().enumerate() {
                *sum = S::add(*sum, S::load(chunk.as_ptr().add(16 * i)));
            }
        }
        *out = S::fold(acc[1..].iter().fold(acc[0], |s, &v| S::add(s, v))) + rest.iter().sum::<f32>();
    }
}

/// The sum of values by the widest loads that this machine has: how fast they can be read.
pub fn sweep(values: &[f32]) -> f32 {
    let mut out = 0.0;
    // SAFETY: `detect` names an instruction set of this machine.
    unsafe { sweep_kernel(Isa::detect(), values, &mut out) };
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_reads_every_value_once_on_every_instruction_set() {
        for len in [0, 1, 127, 128, 1000] {
            // Whole numbers, whose sums are exact.
            let values: Vec<f32> = (0..len).map(|i| i as f32).collect();
            for isa in Isa::available() {
                let mut sum = -1.0;
                // SAFETY: the instruction set is one of this machine's.
                unsafe { sweep_kernel(isa, &values, &mut sum) };
                assert_eq!(sum, values.iter().sum::<f32>(), "{len} on {isa}");
            }
        }
    }
}
