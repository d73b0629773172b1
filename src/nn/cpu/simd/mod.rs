//! Sixteen f32 lanes in the widest registers that the machine has, chosen at run time.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt;

pub(super) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What the compiler emits for the target's baseline; multiply and add are rounded apart.
    Portable,
    /// x86-64 with AVX2 and FMA: two 256-bit registers for sixteen lanes.
    Avx2,
    /// x86-64 with AVX-512F: one 512-bit register for sixteen lanes.
    Avx512,
}

impl Isa {
    /// Every instruction set that this machine can run, the best last.
    pub fn available() -> Vec<Isa> {
        let mut all = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(Isa::Avx2);
            }
            if is_x86_feature_detected!("avx512f") {
                all.push(Isa::Avx512);
            }
        }
        all
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
        })
    }
}

/// Sixteen f32 lanes. Callers run inside a function that enables the instruction set (see `per_isa!`).
pub(super) trait Simd: Copy {
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
        pub(super) unsafe fn $name(isa: $crate::nn::cpu::simd::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[allow(clippy::too_many_arguments, reason = "as above")]
                #[target_feature(enable = "avx512f")]
                unsafe fn avx512($($arg: $ty),*) {
                    // SAFETY: the instruction set is enabled here; the rest is the caller's promise.
                    unsafe { $body::<$crate::nn::cpu::simd::Avx512>($($arg),*) }
                }
                #[allow(clippy::too_many_arguments, reason = "as above")]
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2($($arg: $ty),*) {
                    // SAFETY: as above.
                    unsafe { $body::<$crate::nn::cpu::simd::Avx2>($($arg),*) }
                }
                match isa {
                    // SAFETY: the caller has checked the machine.
                    $crate::nn::cpu::simd::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::nn::cpu::simd::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::nn::cpu::simd::Isa::Portable => {}
                }
            }
            let _ = isa;
            // SAFETY: the portable body needs nothing but the caller's promise.
            unsafe { $body::<$crate::nn::cpu::simd::Portable>($($arg),*) }
        }
    };
}
pub(super) use per_isa;
