//! What training adapters takes of memory.

use std::fmt;

use candle_core::DType;

use crate::exec::human;
use crate::model::llama::LlamaConfig;

/// An estimate in bytes: the base, one layer's activations, a state a layer, and the adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainingNeed {
    /// The frozen tensors.
    pub base: u64,
    /// Adapters, their gradient and two moments, in f32.
    pub adapters: u64,
    /// The state before each layer.
    pub states: u64,
    /// What one layer keeps while it is differentiated.
    pub layer: u64,
}

impl TrainingNeed {
    /// For a base of so many elements, adapters of so many, and batches of `rows` samples of `tokens` tokens.
    pub fn new(c: &LlamaConfig, elements: u64, dtype: DType, trained: u64, rows: usize, tokens: usize) -> Self {
        let n = |x: usize| x as u64;
        let (size, at) = (dtype.size_in_bytes() as u64, n(rows * tokens));
        let (d, inner) = (n(c.hidden_size), n(c.intermediate_size));
        let (q, kv) = (n(c.num_attention_heads * c.head_dim), n(c.num_key_value_heads * c.head_dim));
        // Norms, residuals and their gradients; projections and turned heads; the gated MLP; scores and softmax twice.
        let numbers = 10 * d + 6 * q + 6 * kv + 8 * inner;
        let scores = 4 * n(c.num_attention_heads) * n(tokens);
        TrainingNeed {
            base: size * elements,
            adapters: 4 * 4 * trained,
            states: size * at * d * (2 * n(c.num_hidden_layers) + 1),
            layer: at * (size * numbers + 4 * scores),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.base + self.adapters + self.states + self.layer
    }
}

impl fmt::Display for TrainingNeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} for the base, {} for adapters and their optimiser, {} for a state a layer, {} for one layer's activations",
            human(self.total()),
            human(self.base),
            human(self.adapters),
            human(self.states),
            human(self.layer)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: a base of 100 numbers in 2 bytes, 3 trained numbers, 2 layers 4 wide for 5 tokens.
    #[test]
    fn the_parts_add_up_and_grow_with_what_they_are_for() {
        let config = LlamaConfig {
            hidden_size: 4,
            intermediate_size: 8,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 2,
            ..LlamaConfig::default()
        };
        let need = |rows, tokens| TrainingNeed::new(&config, 100, DType::F16, 3, rows, tokens);
        let one = need(1, 5);
        assert_eq!((one.base, one.adapters, one.states), (200, 48, 2 * 5 * 4 * 5));
        assert_eq!(one.layer, 5 * (2 * (40 + 24 + 12 + 64) + 4 * 4 * 2 * 5));
        assert_eq!(one.total(), one.base + one.adapters + one.states + one.layer);
        assert_eq!(need(2, 5).states, 2 * one.states);
        assert!(need(1, 10).layer > 2 * one.layer, "scores grow with the square");
        assert!(one.to_string().contains("for the base"));
    }
}
