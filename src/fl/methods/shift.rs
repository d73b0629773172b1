//! Cross-entropy of shifted logits, `mean_i CE(z_i + s, y_i)`: what every method with a class prior in its loss trains
//! by. At test the logits are taken as they are.

use crate::error::Result;
use crate::fl::Here;
use crate::nn::loss;

/// The loss with shift `s`, `(classes,)`; `softmax(z_i + s) − e_{y_i}` over rows is added to the logits' gradient.
pub fn cross_entropy(at: &mut Here<'_>, shift: &[f64]) -> Result<f64> {
    let row = |z: &[f32]| -> Vec<f32> { z.iter().zip(shift).map(|(&z, s)| (f64::from(z) + s) as f32).collect() };
    let shifted: Vec<f32> = at.logits.chunks_exact(at.classes.max(1)).flat_map(row).collect();
    loss::cross_entropy(&shifted, at.y, at.classes, 1.0, at.d_logits)
}

/// The shift less its largest entry: the same loss, and no shift at all where all entries are equal.
pub fn from_largest(mut shift: Vec<f64>) -> Vec<f64> {
    let top = shift.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    shift.iter_mut().for_each(|s| *s -= top);
    shift
}
