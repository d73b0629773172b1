//! Choosing the next token.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::key::{Key, Purpose};

/// How text is written; transformers' meanings and order: temperature, then `top_k`, then `top_p`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Decoding {
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Scores are divided by it; 0 always takes the best token.
    pub temperature: f64,
    /// Only so many best tokens; 0 keeps all.
    pub top_k: usize,
    /// Only the best tokens that together reach this probability; 1 keeps all.
    pub top_p: f64,
}

impl Default for Decoding {
    fn default() -> Self {
        Decoding { max_new_tokens: 256, temperature: 0.0, top_k: 0, top_p: 1.0 }
    }
}

impl Decoding {
    /// Always the best token.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Decoding { max_new_tokens, ..Decoding::default() }
    }

    /// Refuses numbers out of range.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::input(format!("temperature = {}: expected a number ≥ 0", self.temperature)));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::input(format!("top_p = {}: expected a number in (0, 1]", self.top_p)));
        }
        if self.max_new_tokens == 0 {
            return Err(Error::input("max_new_tokens = 0: expected at least 1"));
        }
        Ok(())
    }

    /// The token after `scores` `(vocabulary,)`, which is token number `step` of the text with this key: the draw
    /// depends on nothing else, so neither on the batch nor on a resumption.
    pub fn pick(&self, scores: &[f32], key: Key, step: usize) -> Result<u32> {
        if self.temperature == 0.0 {
            return best(scores);
        }
        let mut tokens: Vec<usize> = (0..scores.len()).collect();
        tokens.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        if self.top_k > 0 {
            tokens.truncate(self.top_k);
        }
        let top = tokens.first().map_or(0.0, |&i| f64::from(scores[i]));
        if !top.is_finite() {
            return Err(not_finite());
        }
        let mut weights: Vec<f64> =
            tokens.iter().map(|&i| ((f64::from(scores[i]) - top) / self.temperature).exp()).collect();
        weights.truncate(self.nucleus(&weights));
        let total: f64 = weights.iter().sum();
        let mut left = key.fold(Purpose::Step, step as u64).rng().f64() * total;
        for (&token, weight) in tokens.iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return Ok(token as u32);
            }
        }
        Ok(tokens.get(weights.len().saturating_sub(1)).copied().unwrap_or(0) as u32)
    }

    /// How many of the sorted tokens reach `top_p` together.
    fn nucleus(&self, weights: &[f64]) -> usize {
        let aim = self.top_p * weights.iter().sum::<f64>();
        let mut reached = 0.0;
        let fewer = weights.iter().position(|w| {
            reached += w;
            reached >= aim
        });
        if self.top_p < 1.0 { fewer.map_or(weights.len(), |i| i + 1) } else { weights.len() }
    }
}

/// The first token with the highest score.
pub fn best(scores: &[f32]) -> Result<u32> {
    let mut at = 0;
    for (i, s) in scores.iter().enumerate() {
        if s.is_nan() {
            return Err(not_finite());
        }
        if *s > scores[at] {
            at = i;
        }
    }
    Ok(at as u32)
}

fn not_finite() -> Error {
    Error::data("the language model's scores are not finite").hint("f16 overflows on some models: try --dtype f32")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(decoding: &Decoding, scores: &[f32]) -> Vec<f64> {
        let mut counts = vec![0.0; scores.len()];
        let n = 20_000;
        for i in 0..n {
            counts[decoding.pick(scores, Key::from_seed(i), 0).unwrap() as usize] += 1.0 / n as f64;
        }
        counts
    }

    #[test]
    fn draws_follow_the_softmax_at_the_temperature() {
        let scores = [0.0f32, 1.0, 2.0];
        let shares = shares(&Decoding { temperature: 2.0, ..Decoding::default() }, &scores);
        let z: f64 = scores.iter().map(|s| (f64::from(*s) / 2.0).exp()).sum();
        for (s, share) in scores.iter().zip(shares) {
            assert!((share - (f64::from(*s) / 2.0).exp() / z).abs() < 0.01);
        }
    }

    #[test]
    fn top_k_and_top_p_leave_only_the_best_tokens() {
        let scores: Vec<f32> = [0.1f32, 0.5, 0.3, 0.1].iter().map(|p| p.ln()).collect();
        let hot = Decoding { temperature: 1.0, ..Decoding::default() };
        let k = shares(&Decoding { top_k: 1, ..hot.clone() }, &scores);
        assert_eq!(k, [0.0, k[1], 0.0, 0.0]);
        // 0.5 < 0.6 ≤ 0.8: two tokens stay, in the ratio 5 to 3.
        let p = shares(&Decoding { top_p: 0.6, ..hot }, &scores);
        assert_eq!((p[0], p[3]), (0.0, 0.0));
        assert!((p[1] - 0.625).abs() < 0.015);
    }

    #[test]
    fn the_same_key_and_step_draw_the_same_token() {
        let scores: Vec<f32> = (0..50).map(|i| (i as f32).cos()).collect();
        let hot = Decoding { temperature: 1.0, ..Decoding::default() };
        let text =
            |seed| -> Vec<u32> { (0..20).map(|i| hot.pick(&scores, Key::from_seed(seed), i).unwrap()).collect() };
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }

    #[test]
    fn scores_that_are_not_numbers_are_an_error() {
        assert!(best(&[0.0, f32::NAN]).is_err());
        let hot = Decoding { temperature: 1.0, ..Decoding::default() };
        assert!(hot.pick(&[f32::NAN, 0.0], Key::from_seed(1), 0).is_err());
    }
}
