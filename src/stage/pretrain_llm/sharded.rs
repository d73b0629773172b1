//! A step's gradients, computed in shards of the batch side by side.

use crate::error::Result;
use crate::exec::{Context, ordered};
use crate::mllm::caption_loss::{CaptionLoss, Gradients, Shown};
use crate::nn::Params;

/// Images that a worker handles at a time on a CPU; it fixes the order of sums.
const SHARD: usize = 4;

/// As [`CaptionLoss::gradients`]; on a CPU every core takes shards of the batch, and their parts, weighted by their
/// answers' tokens, are added in order.
pub fn gradients(objective: &CaptionLoss, shown: Shown, projections: &Params, cx: &Context) -> Result<Gradients> {
    let rows = shown.samples.len();
    if !cx.device.is_cpu() || rows <= SHARD {
        return objective.gradients(shown, projections);
    }
    let answers = |at: usize, n: usize| {
        shown.samples[at..at + n].iter().map(|s| s.ids.len().saturating_sub(s.from)).sum::<usize>() as f64
    };
    let (all, size) = (answers(0, rows).max(1.0), shown.map.len() / rows);
    let one = |_: &mut (), i: usize| {
        let (at, n) = (i * SHARD, SHARD.min(rows - i * SHARD));
        let tower = shown.tower.map(|t| t.narrow(0, at, n)).transpose()?;
        let map = &shown.map[at * size..(at + n) * size];
        let part = Shown { samples: &shown.samples[at..at + n], map, tower: tower.as_ref(), a: shown.a };
        Ok((objective.gradients(part, projections)?, answers(at, n) / all))
    };
    let mut sum = Gradients {
        loss: 0.0,
        map: Vec::with_capacity(shown.map.len()),
        projections: vec![0.0; projections.data().len()],
    };
    let fold = |_, (part, share): (Gradients, f64)| {
        sum.loss += share * part.loss;
        sum.map.extend(part.map.iter().map(|g| g * share as f32));
        sum.projections.iter_mut().zip(&part.projections).for_each(|(s, g)| *s += g * share as f32);
        Ok(())
    };
    ordered(cx.threads, rows.div_ceil(SHARD), rows, |_| Ok(()), one, fold)?;
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{Device, Tensor};

    use super::*;
    use crate::key::Key;
    use crate::mllm::caption_loss::{Sample, StudentProjection};
    use crate::model::llava::Llava;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    fn near(got: &[f32], want: &[f32], what: &str) {
        assert_eq!(got.len(), want.len(), "{what}");
        let most = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(most > 1e-4, "{what}: all gradients vanish");
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < 2e-5 * most, "{what}: {g} and {w}");
        }
    }

    /// Ten rows are two whole shards and a half, with answers of unequal length: an unweighted mean would be wrong.
    #[test]
    fn shards_add_up_to_the_gradients_of_the_whole_batch_for_any_threads() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llava/default");
        let llava = Llava::open(&folder, &Context::cpu(1)).unwrap();
        let objective = CaptionLoss::new(&llava, [3, 2, 2], StudentProjection::Linear, true).unwrap();
        let projections = objective.init(Key::from_seed(2)).unwrap();
        let sample = |i: usize| llava.sample("What is it?", &"a red star ".repeat(1 + i * i % 7)).unwrap();
        let samples: Vec<Sample> = (0..10).map(sample).collect();
        let samples: Vec<&Sample> = samples.iter().collect();
        let (map, tower) = (wave(10 * 12, 0.37), Tensor::from_vec(wave(10 * 108, 0.11), (10, 9, 12), &Device::Cpu));
        let shown = Shown { samples: &samples, map: &map, tower: Some(&tower.unwrap()), a: 0.6 };
        let whole = objective.gradients(shown, &projections).unwrap();
        let parts = gradients(&objective, shown, &projections, &Context::cpu(1)).unwrap();
        assert!((parts.loss - whole.loss).abs() < 1e-5, "{} and {}", parts.loss, whole.loss);
        near(&parts.map, &whole.map, "map");
        for entry in objective.layout().entries() {
            near(&parts.projections[entry.range()], &whole.projections[entry.range()], &entry.name);
        }
        assert_eq!(gradients(&objective, shown, &projections, &Context::cpu(3)).unwrap(), parts);
    }
}
