//! Sixteen f32 lanes in the widest registers that the machine has, chosen at run time.

use std::fmt;

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
            if super::amx::available() {
                all.push(Isa::Amx);
            }
        }
        all
    }

    /// The instruction set for everything that goes by vectors.
    pub(super) fn vectors(self) -> Isa {
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

/// Plain arrays.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Simd for Portable {
    type V = [f32; 16];
    const ISA: Isa = Isa::Portable;
    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [0.0; 16]
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self::V {
        // SAFETY: the caller guarantees sixteen readable values; `[f32; 16]` has the alignment of f32.
        unsafe { *at.cast() }
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, v: Self::V) {
        // SAFETY: the caller guarantees sixteen writable values.
        unsafe { *at.cast() = v }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        [value; 16]
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, mut c: Self::V) -> Self::V {
        for i in 0..16 {
            c[i] += a[i] * b[i];
        }
        c
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, mut b: Self::V) -> Self::V {
        for i in 0..16 {
            b[i] += a[i];
        }
        b
    }
    #[inline(always)]
    unsafe fn sub(mut a: Self::V, b: Self::V) -> Self::V {
        for i in 0..16 {
            a[i] -= b[i];
        }
        a
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, mut b: Self::V) -> Self::V {
        for i in 0..16 {
            b[i] *= a[i];
        }
        b
    }
    #[inline(always)]
    unsafe fn gate(mut g: Self::V, y: Self::V) -> Self::V {
        for i in 0..16 {
            g[i] = if y[i] > 0.0 { g[i] } else { 0.0 };
        }
        g
    }
    #[inline(always)]
    unsafe fn relu(mut v: Self::V) -> Self::V {
        for x in &mut v {
            *x = if 0.0 > *x { 0.0 } else { *x };
        }
        v
    }
    #[inline(always)]
    unsafe fn greater(v: Self::V, mark: Self::V, mut best: Self::V, mut marks: Self::V) -> (Self::V, Self::V) {
        for i in 0..16 {
            let wins = v[i] > best[i] || v[i].is_nan();
            (best[i], marks[i]) = if wins { (v[i], mark[i]) } else { (best[i], marks[i]) };
        }
        (best, marks)
    }
    #[inline(always)]
    fn prefetch(_: *const f32) {}
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Isa, Simd};

    /// Eight, four, two, one: the order of [`Simd::fold`].
    #[inline(always)]
    unsafe fn fold_eight(v: __m256) -> f32 {
        // SAFETY: AVX is enabled by the caller.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    /// Two 256-bit registers.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2;

    // SAFETY of the bodies below: the instruction set is enabled by the caller, and pointers hold sixteen values.
    impl Simd for Avx2 {
        type V = [__m256; 2];
        const ISA: Isa = Isa::Avx2;
        #[inline(always)]
        unsafe fn zero() -> Self::V {
            // SAFETY: see above.
            unsafe { [_mm256_setzero_ps(); 2] }
        }
        #[inline(always)]
        unsafe fn load(at: *const f32) -> Self::V {
            // SAFETY: see above.
            unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))] }
        }
        #[inline(always)]
        unsafe fn store(at: *mut f32, v: Self::V) {
            // SAFETY: see above.
            unsafe {
                _mm256_storeu_ps(at, v[0]);
                _mm256_storeu_ps(at.add(8), v[1]);
            }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self::V {
            // SAFETY: see above.
            unsafe { [_mm256_set1_ps(value); 2] }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: see above.
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see above.
            unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see above.
            unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see above.
            unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn gate(g: Self::V, y: Self::V) -> Self::V {
            // SAFETY: see above. A comparison gives all bits or none.
            unsafe {
                let zero = _mm256_setzero_ps();
                let pass = |i: usize| _mm256_and_ps(g[i], _mm256_cmp_ps::<_CMP_GT_OQ>(y[i], zero));
                [pass(0), pass(1)]
            }
        }
        #[inline(always)]
        unsafe fn relu(v: Self::V) -> Self::V {
            // SAFETY: see above. MAXPS returns its second operand when one is NaN.
            unsafe {
                let zero = _mm256_setzero_ps();
                [_mm256_max_ps(zero, v[0]), _mm256_max_ps(zero, v[1])]
            }
        }
        #[inline(always)]
        unsafe fn greater(v: Self::V, mark: Self::V, best: Self::V, marks: Self::V) -> (Self::V, Self::V) {
            // SAFETY: see above.
            unsafe {
                let wins = |i: usize| {
                    let (more, nan) =
                        (_mm256_cmp_ps::<_CMP_GT_OQ>(v[i], best[i]), _mm256_cmp_ps::<_CMP_UNORD_Q>(v[i], v[i]));
                    _mm256_or_ps(more, nan)
                };
                let wins = [wins(0), wins(1)];
                let pick = |a: Self::V, b: Self::V| {
                    [_mm256_blendv_ps(a[0], b[0], wins[0]), _mm256_blendv_ps(a[1], b[1], wins[1])]
                };
                (pick(best, v), pick(marks, mark))
            }
        }
        #[inline(always)]
        unsafe fn fold(v: Self::V) -> f32 {
            // SAFETY: see above.
            unsafe { fold_eight(_mm256_add_ps(v[0], v[1])) }
        }
        #[inline(always)]
        fn prefetch(at: *const f32) {
            // SAFETY: a prefetch touches nothing and never faults; every x86-64 has it.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
    }

    /// One 512-bit register.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512;

    impl Simd for Avx512 {
        type V = __m512;
        const ISA: Isa = Isa::Avx512;
        #[inline(always)]
        unsafe fn zero() -> Self::V {
            // SAFETY: see above.
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn load(at: *const f32) -> Self::V {
            // SAFETY: see above.
            unsafe { _mm512_loadu_ps(at) }
        }
        #[inline(always)]
        unsafe fn store(at: *mut f32, v: Self::V) {
            // SAFETY: see above.
            unsafe { _mm512_storeu_ps(at, v) }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self::V {
            // SAFETY: see above.
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: see above.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see above.
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see above.
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see above.
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn gate(g: Self::V, y: Self::V) -> Self::V {
            // SAFETY: see above.
            unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(y, _mm512_setzero_ps()), g) }
        }
        #[inline(always)]
        unsafe fn relu(v: Self::V) -> Self::V {
            // SAFETY: see above. MAXPS returns its second operand when one is NaN.
            unsafe { _mm512_max_ps(_mm512_setzero_ps(), v) }
        }
        #[inline(always)]
        unsafe fn greater(v: Self::V, mark: Self::V, best: Self::V, marks: Self::V) -> (Self::V, Self::V) {
            // SAFETY: see above.
            unsafe {
                let wins = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(v, best) | _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
                (_mm512_mask_mov_ps(best, wins, v), _mm512_mask_mov_ps(marks, wins, mark))
            }
        }
        #[inline(always)]
        unsafe fn fold(v: Self::V) -> f32 {
            // SAFETY: see above.
            unsafe {
                let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
                fold_eight(_mm256_add_ps(_mm512_castps512_ps256(v), high))
            }
        }
        #[inline(always)]
        unsafe fn turn(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
            // SAFETY: see above. Pairs of rows, then of pairs, then 128-bit quarters change places.
            unsafe {
                let mut a = [_mm512_setzero_ps(); 16];
                let mut b = a;
                for (i, row) in a.iter_mut().enumerate() {
                    *row = _mm512_loadu_ps(from.add(i * stride));
                }
                for i in 0..8 {
                    b[2 * i] = _mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]);
                    b[2 * i + 1] = _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]);
                }
                let low = |x, y| _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
                let high = |x, y| _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
                for i in (0..16).step_by(4) {
                    a[i] = low(b[i], b[i + 2]);
                    a[i + 1] = high(b[i], b[i + 2]);
                    a[i + 2] = low(b[i + 1], b[i + 3]);
                    a[i + 3] = high(b[i + 1], b[i + 3]);
                }
                for i in 0..4 {
                    b[i] = _mm512_shuffle_f32x4::<0x88>(a[i], a[4 + i]);
                    b[4 + i] = _mm512_shuffle_f32x4::<0xdd>(a[i], a[4 + i]);
                    b[8 + i] = _mm512_shuffle_f32x4::<0x88>(a[8 + i], a[12 + i]);
                    b[12 + i] = _mm512_shuffle_f32x4::<0xdd>(a[8 + i], a[12 + i]);
                }
                for i in 0..8 {
                    _mm512_storeu_ps(to.add(i * to_stride), _mm512_shuffle_f32x4::<0x88>(b[i], b[8 + i]));
                    _mm512_storeu_ps(to.add((8 + i) * to_stride), _mm512_shuffle_f32x4::<0xdd>(b[i], b[8 + i]));
                }
            }
        }
        #[inline(always)]
        fn prefetch(at: *const f32) {
            // SAFETY: a prefetch touches nothing and never faults; every x86-64 has it.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
    }
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
                match isa.vectors() {
                    // SAFETY: the caller has checked the machine.
                    $crate::nn::cpu::simd::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::nn::cpu::simd::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            let _ = isa;
            // SAFETY: the portable body needs nothing but the caller's promise.
            unsafe { $body::<$crate::nn::cpu::simd::Portable>($($arg),*) }
        }
    };
}
pub(super) use per_isa;
