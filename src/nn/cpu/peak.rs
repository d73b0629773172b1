//! What this core can do at best, measured now.

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
