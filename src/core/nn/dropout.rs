//! Dropout masks, the same for every interpreter.

use super::net::Node;
use crate::key::{Key, Purpose};

/// Fills `out` with the multipliers of sample `row` at operation `node`: 0 with probability `p`, else 1/(1−p).
///
/// `out` is the sample's value in row-major `(C, H, W)` or `(F)` order. The draw depends on the step's key, the node
/// and the sample's place in the batch, nothing else. Inlined, so that a caller compiled for vectors uses them.
#[inline(always)]
pub fn mask(key: Key, node: Node, row: usize, p: f32, out: &mut [f32]) {
    let mut rng = key.fold(Purpose::Dropout, node as u64).fold(Purpose::Item, row as u64).rng();
    let below = (f64::from(p) * 4_294_967_296.0) as u64;
    let kept = 1.0 / (1.0 - p);
    let Some(last) = below.checked_sub(1) else { return out.fill(1.0) };
    let multiplier = |draw: u32| if draw <= last as u32 { 0.0 } else { kept };
    let (many, rest) = out.as_chunks_mut::<64>();
    for chunk in many {
        *chunk = rng.draws().map(multiplier);
    }
    rest.iter_mut().for_each(|value| *value = multiplier(rng.u32()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expected_multiplier_is_one_and_the_share_of_zeros_p() {
        let mut out = vec![0.0; 100_000];
        mask(Key::from_seed(1), 3, 0, 0.25, &mut out);
        let zeros = out.iter().filter(|&&v| v == 0.0).count() as f64 / out.len() as f64;
        let mean = out.iter().map(|&v| f64::from(v)).sum::<f64>() / out.len() as f64;
        assert!((zeros - 0.25).abs() < 0.005, "{zeros}");
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
    }

    #[test]
    fn rows_and_nodes_draw_apart() {
        let draw = |node, row| {
            let mut out = vec![0.0; 64];
            mask(Key::from_seed(1), node, row, 0.5, &mut out);
            out
        };
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }
}
