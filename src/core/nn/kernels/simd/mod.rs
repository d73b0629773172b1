//! Sixteen f32 lanes in the widest registers that the machine has, chosen at run time.

#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt;

#[cfg(target_arch = "aarch64")]
pub(in crate::nn) use neon::Neon;
pub(in crate::nn) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(in crate::nn) use x86::{Avx2, Avx512};

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What the compiler emits for the target's baseline; multiply and add are rounded apart.
    Portable,
    /// x86-64 with AVX2 and FMA: two 256-bit registers for sixteen lanes.
    Avx2,
    /// x86-64 with AVX-512F: one 512-bit register for sixteen lanes.
    Avx512,
    /// AVX-512F, and convolutions on Intel's matrix unit (AMX-BF16), every f32 as three bf16.
    Amx,
    /// aarch64: four 128-bit registers for sixteen lanes.
    Neon,
}

impl Isa {
    /// Every instruction set that this machine can run, the best last.
    pub fn available() -> Vec<Isa> {
        let mut all = vec![Isa::Portable];
        #[cfg(target_arch = "aarch64")]
        all.push(Isa::Neon);
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(Isa::Avx2);
            }
            if is_x86_feature_detected!("avx512f") {
                all.push(Isa::Avx512);
            }
            if super::amx::available() {
                all.push(Isa::Amx);
            }
        }
        all
    }

    /// The instruction set for everything that goes by vectors.
    pub(in crate::nn) fn vectors(self) -> Isa {
        if self == Isa::Amx { Isa::Avx512 } else { self }
    }

    /// The best instruction set of this machine.
    pub fn detect() -> Isa {
        Isa::available().last().copied().unwrap_or(Isa::Portable)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
            Isa::Neon => "neon",
        })
    }
}

/// Sixteen f32 lanes. Callers run inside a function that enables the instruction set (see `per_isa!`).
pub(in crate::nn) trait Simd: Copy {
    /// Sixteen lanes.
    type V: Copy;
    /// Which instruction set this is.
    const ISA: Isa;
    /// All lanes zero.
    unsafe fn zero() -> Self::V;
    /// Sixteen consecutive values, any alignment.
    unsafe fn load(at: *const f32) -> Self::V;
    /// Writes sixteen consecutive values, any alignment.
    unsafe fn store(at: *mut f32, v: Self::V);
    /// One value in every lane.
    unsafe fn splat(value: f32) -> Self::V;
    /// `a·b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a + b`.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a − b`.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a·b`.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `max(v, 0)`; NaN stays.
    unsafe fn relu(v: Self::V) -> Self::V;
    /// `g` where `y` is positive, else 0.
    unsafe fn gate(g: Self::V, y: Self::V) -> Self::V;
    /// The greater of `v` and `best`, NaN before all, with the mark of the one that it is; equal ones keep `best`.
    unsafe fn greater(v: Self::V, mark: Self::V, best: Self::V, marks: Self::V) -> (Self::V, Self::V);
    /// The sum of all lanes: halves are added lane by lane, eight, four, two, one.
    #[inline(always)]
    unsafe fn fold(v: Self::V) -> f32 {
        let mut parts = [0.0f32; 16];
        // SAFETY: sixteen writable values.
        unsafe { Self::store(parts.as_mut_ptr(), v) };
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                parts[l] += parts[l + half];
            }
        }
        parts[0]
    }
    /// Sixteen rows of sixteen values become columns; `stride` and `to_stride` floats lie between rows.
    #[inline(always)]
    unsafe fn turn(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        for i in 0..16 {
            for j in 0..16 {
                // SAFETY: the caller's rows hold sixteen values.
                unsafe { *to.add(j * to_stride + i) = *from.add(i * stride + j) };
            }
        }
    }
    /// Asks for the cache line at an address, which may lie outside of any operand.
    fn prefetch(at: *const f32);
}

/// Makes `$name(isa, …)`, which runs `$body::<S>(…)` compiled for that instruction set.
macro_rules! per_isa {
    ($(#[$meta:meta])* $name:ident = $body:ident($($arg:ident: $ty:ty),* $(,)?)) => {
        $(#[$meta])*
        ///
        /// # Safety
        /// The machine has `isa`, and the arguments satisfy the body's contract.
        #[allow(clippy::too_many_arguments, reason = "kernels take their operands one by one")]
        pub(in crate::nn) unsafe fn $name(isa: $crate::nn::kernels::simd::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[allow(clippy::too_many_arguments, reason = "as above")]
                #[target_feature(enable = "avx512f")]
                unsafe fn avx512($($arg: $ty),*) {
                    // SAFETY: the instruction set is enabled here; the rest is the caller's promise.
                    unsafe { $body::<$crate::nn::kernels::simd::Avx512>($($arg),*) }
                }
                #[allow(clippy::too_many_arguments, reason = "as above")]
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2($($arg: $ty),*) {
                    // SAFETY: as above.
                    unsafe { $body::<$crate::nn::kernels::simd::Avx2>($($arg),*) }
                }
                match isa.vectors() {
                    // SAFETY: the caller has checked the machine.
                    $crate::nn::kernels::simd::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::nn::kernels::simd::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    // Two cases are two comparisons, four a jump through a table.
                    _ => {}
                }
            }
            #[cfg(target_arch = "aarch64")]
            if isa == $crate::nn::kernels::simd::Isa::Neon {
                // SAFETY: every aarch64 has NEON; the rest is the caller's promise.
                return unsafe { $body::<$crate::nn::kernels::simd::Neon>($($arg),*) };
            }
            let _ = isa;
            // SAFETY: the portable body needs nothing but the caller's promise.
            unsafe { $body::<$crate::nn::kernels::simd::Portable>($($arg),*) }
        }
    };
}
pub(in crate::nn) use per_isa;

#[cfg(test)]
mod tests {
    use super::*;

    per_isa! {
        /// Every operation on lanes, of `a` and `b`.
        lanes = lanes_body(a: &[f32; 16], b: &[f32; 16], out: &mut [[f32; 16]; 9])
    }

    #[inline(always)]
    unsafe fn lanes_body<S: Simd>(a: &[f32; 16], b: &[f32; 16], out: &mut [[f32; 16]; 9]) {
        // SAFETY: sixteen values each.
        unsafe {
            let (x, y) = (S::load(a.as_ptr()), S::load(b.as_ptr()));
            let (best, mark) = S::greater(x, S::splat(1.0), y, S::splat(2.0));
            let products = [S::mul(x, y), S::fma(x, y, S::splat(1.0))];
            let made = [S::zero(), S::add(x, y), S::sub(x, y), S::relu(x), S::gate(x, y), best, mark];
            for (to, v) in out.iter_mut().zip(made.into_iter().chain(products)) {
                S::store(to.as_mut_ptr(), v);
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_lanes_that_the_definitions_give() {
        let values = [f32::NAN, -0.0, 0.0, 1.5, -2.0, f32::INFINITY, f32::NEG_INFINITY, 1e-40];
        let pairs: Vec<[f32; 2]> = values.iter().flat_map(|a| values.map(|b| [*a, b])).collect();
        let (chunks, []) = pairs.as_chunks::<16>() else { panic!("whole vectors") };
        for isa in Isa::available() {
            for chunk in chunks {
                let mut out = [[9.0; 16]; 9];
                // SAFETY: the instruction set is one of this machine's.
                unsafe { lanes(isa, &chunk.map(|p| p[0]), &chunk.map(|p| p[1]), &mut out) };
                for (lane, [a, b]) in chunk.iter().enumerate() {
                    let relu = if *a < 0.0 { 0.0 } else { *a };
                    let gate = if *b > 0.0 { *a } else { 0.0 };
                    let (best, mark) = if a > b || a.is_nan() { (*a, 1.0) } else { (*b, 2.0) };
                    let want = [0.0, a + b, a - b, relu, gate, best, mark, a * b, a * b + 1.0];
                    for (i, (want, got)) in want.iter().zip(out.map(|v| v[lane])).enumerate() {
                        let same = want.to_bits() == got.to_bits() || want.is_nan() && got.is_nan();
                        assert!(same, "{isa}, operation {i} of {a} and {b}: {got}, not {want}");
                    }
                }
            }
        }
    }

    per_isa! {
        /// The folds of sixteen rows of 17, and these rows turned into rows of 19.
        moves = moves_body(from: &[f32; 272], sums: &mut [f32; 16], to: &mut [f32; 304])
    }

    #[inline(always)]
    unsafe fn moves_body<S: Simd>(from: &[f32; 272], sums: &mut [f32; 16], to: &mut [f32; 304]) {
        // SAFETY: sixteen rows of sixteen values and more on both sides.
        unsafe {
            sums.iter_mut().enumerate().for_each(|(i, s)| *s = S::fold(S::load(from.as_ptr().add(17 * i))));
            S::turn(from.as_ptr(), 17, to.as_mut_ptr(), 19);
        }
    }

    #[test]
    fn every_instruction_set_folds_in_the_same_order_and_turns_rows_into_columns() {
        let from: [f32; 272] = std::array::from_fn(|i| (i as f32 * 0.7).sin());
        let want: [f32; 16] = std::array::from_fn(|row| {
            let mut parts = from[17 * row..][..16].to_vec();
            while parts.len() > 1 {
                let (low, high) = parts.split_at(parts.len() / 2);
                parts = low.iter().zip(high).map(|(a, b)| a + b).collect();
            }
            parts[0]
        });
        let mut turned = [9.0; 304];
        (0..256).for_each(|i| turned[i % 16 * 19 + i / 16] = from[i / 16 * 17 + i % 16]);
        for isa in Isa::available() {
            let (mut sums, mut to) = ([0.0; 16], [9.0; 304]);
            // SAFETY: the instruction set is one of this machine's.
            unsafe { moves(isa, &from, &mut sums, &mut to) };
            assert_eq!(sums, want, "{isa}");
            assert_eq!(to, turned, "{isa}");
        }
    }
}
