//! A step's gradients, computed in shards of the batch side by side.

use crate::error::Result;
use crate::exec::{Context, ordered};
use crate::mllm::objective::{Gradients, Objective, Step};
use crate::nn::Params;

/// Images that a worker handles at a time on a CPU; it fixes the order of sums.
const SHARD: usize = 4;

/// As [`Objective::gradients`]; on a CPU every core takes shards of the batch, and their parts, weighted by their
/// answers' tokens, are added in order.
pub fn gradients(objective: &Objective, step: Step, projections: &Params, cx: &Context) -> Result<Gradients> {
    let rows = step.samples.len();
    if !cx.device.is_cpu() || rows <= SHARD {
        return objective.gradients(step, projections);
    }
    let answers = |at: usize, n: usize| {
        step.samples[at..at + n].iter().map(|s| s.ids.len().saturating_sub(s.from)).sum::<usize>() as f64
    };
    let (all, size) = (answers(0, rows).max(1.0), step.map.len() / rows);
    let one = |_: &mut (), i: usize| {
        let (at, n) = (i * SHARD, SHARD.min(rows - i * SHARD));
        let tower = step.tower.map(|t| t.narrow(0, at, n)).transpose()?;
        let map = &step.map[at * size..(at + n) * size];
        let part = Step { samples: &step.samples[at..at + n], map, tower: tower.as_ref(), a: step.a };
        Ok((objective.gradients(part, projections)?, answers(at, n) / all))
    };
    let mut sum = Gradients {
        loss: 0.0,
        map: Vec::with_capacity(step.map.len()),
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
