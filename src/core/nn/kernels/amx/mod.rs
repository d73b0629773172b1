//! Products on Intel's matrix unit (AMX), to the accuracy of f32.
//!
//! The unit multiplies bf16 and adds in f32. A f32 has 24 significant bits, a bf16 eight: every value is cut into three
//! bf16 parts whose sum it is exactly, and of the nine products of two such values the six largest are taken; what is
//! left out is at most about 2⁻²¹ of the product, and 2⁻²⁴ on average. Six products a pair still leave the unit more than
//! twice as fast as AVX-512.
//!
//! Two things differ from f32 arithmetic: an infinite value leaves ∞ − ∞ in its second part, so that its products are
//! NaN; and the unit reads and writes subnormal numbers as 0.

pub(in crate::nn) mod product;
pub(in crate::nn) mod split;

use std::sync::OnceLock;

pub(super) use product::peak;

/// Rows of a tile register, and channels of a vector.
pub(in crate::nn) const SIDE: usize = 16;
/// Values that one instruction multiplies along each row: sixteen pairs.
pub(in crate::nn) const DEPTH: usize = 32;
/// Parts of a value.
pub(in crate::nn) const PARTS: usize = 3;
/// Floats of a tile register.
pub(in crate::nn) const TILE: usize = 256;

/// Whether this machine has the unit and this process may use it; asks Linux for it once.
pub(super) fn available() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| is_x86_feature_detected!("avx512f") && has_tiles() && permitted())
}

/// The processor's word: AMX-TILE and AMX-BF16.
fn has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let (bf16, tile) = (1 << 22, 1 << 24);
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (bf16 | tile) == bf16 | tile
}

/// Linux saves the tile registers of those processes alone that have asked.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}
