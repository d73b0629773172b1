//! Where no processor has Intel's matrix unit.

/// Nothing.
///
/// # Safety
/// Always given.
pub(super) unsafe fn peak(_: usize) -> (f64, f64) {
    (0.0, 1.0)
}
