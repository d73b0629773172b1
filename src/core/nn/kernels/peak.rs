//! What this core can do at best, measured now: products, and reading.

use std::hint::black_box;
use std::time::Instant;

use super::simd::{Isa, Simd, per_isa};

/// Independent multiply-adds in a row, of sixteen lanes each; half as many where a value takes several registers.
const CHAINS: usize = 12;
const ROUNDS: usize = 20_000;
/// The same of the matrix unit: about as long.
const AMX_ROUNDS: usize = 20;

per_isa! {
    /// Independent chains of multiply-adds in registers.
    chains = chains_body(out: &mut [f32; 16])
}

#[inline(always)]
unsafe fn chains_body<S: Simd>(out: &mut [f32; 16]) {
    // SAFETY: registers only, and one store of sixteen values into `out`.
    unsafe {
        let (a, b) = (S::splat(black_box(0.999)), S::splat(black_box(1e-3)));
        // Two registers a value on AVX2, four of twice as many on NEON: half the chains fill them.
        let mut acc = [S::splat(1.0); CHAINS];
        let used = if S::ISA == Isa::Avx512 { CHAINS } else { CHAINS / 2 };
        for _ in 0..ROUNDS {
            for v in &mut acc[..used] {
                // NEON's instruction overwrites the summand: a chain through a factor would copy `b` each time.
                *v = if S::ISA == Isa::Neon { S::fma(a, b, *v) } else { S::fma(*v, a, b) };
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
    if isa == Isa::Amx {
        let once = |_| {
            // SAFETY: the machine has the unit.
            let (products, seconds) = unsafe { super::amx::peak(AMX_ROUNDS) };
            2.0 * products / seconds / 1e9
        };
        return (0..tries).map(once).fold(0.0, f64::max);
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
    /// Four quarters side by side, each asked for ahead, because one stream alone does not reach the memory's speed.
    sweep_kernel = sweep_body(values: &[f32], out: &mut f32)
}

#[inline(always)]
unsafe fn sweep_body<S: Simd>(values: &[f32], out: &mut f32) {
    /// Values of a quarter that are read in one step.
    const STEP: usize = 32;
    /// Values asked for before they are read.
    const AHEAD: usize = 256;
    let quarter = values.len() / 4 / STEP * STEP;
    // SAFETY: each load is of sixteen values inside a quarter.
    unsafe {
        let mut acc = [[S::zero(); STEP / 16]; 4];
        for at in (0..quarter).step_by(STEP) {
            for (q, sums) in acc.iter_mut().enumerate() {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let from = values.as_ptr().add(q * quarter + at + 16 * i);
                    S::prefetch(from.wrapping_add(AHEAD));
                    *sum = S::add(*sum, S::load(from));
                }
            }
        }
        let sum = acc.as_flattened().iter().fold(S::zero(), |s, &v| S::add(s, v));
        *out = S::fold(sum) + values[4 * quarter..].iter().sum::<f32>();
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
        for len in [0, 1, 127, 128, 1000, 1300] {
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
