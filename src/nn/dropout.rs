//! Dropout masks, the same for every interpreter.

use super::net::Node;
use crate::key::{Key, Purpose};

/// Fills `mask` with 0 (probability `p`) or 1/(1−p); element `i` depends on the key, the node and `i` only.
/// The order is row-major over `(rows, shape of the node…)`, channels before space.
pub fn mask(key: Key, node: Node, p: f32, mask: &mut [f32]) {
    let mut rng = key.fold(Purpose::Dropout, node as u64).rng();
    let keep = 1.0 / (1.0 - p);
    for value in mask {
        *value = if rng.f32() < p { 0.0 } else { keep };
    }
}
