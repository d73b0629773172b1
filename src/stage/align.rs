//! Stage 3, once at the end: the global model corrected on the server's balanced set.

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::metrics::Evaluation;
use crate::error::Result;
use crate::exec::{Context, Event};
use crate::fl::round::ServerStep;
use crate::nn::{Net, Params};
use crate::run::{Records, RunDir, Times};

/// Aligns `model` after `round` rounds; a finished stage is read back.
pub fn align(
    dir: &RunDir,
    net: &Arc<Net>,
    step: &dyn ServerStep,
    model: &Params,
    round: usize,
    evaluate: &dyn Fn(&Params) -> Result<Evaluation>,
    cx: &Context,
) -> Result<Params> {
    if let Some((aligned, _)) = dir.finished("align", &net.layout)? {
        return Ok(aligned);
    }
    cx.events.on(Event::Begin { name: "align", unit: "step", done: 0, total: 1 });
    let began = Instant::now();
    let aligned = step.apply(model, round, cx)?;
    let trained = began.elapsed().as_secs_f64();
    let after = evaluate(&aligned)?;
    let judged = began.elapsed().as_secs_f64() - trained;
    let times = [("seconds", trained), ("evaluation", judged)];
    Times::open(dir.path(), "align", round)?.add("align", round, &times)?;
    let mut records = Records::open(&dir.file("metrics.jsonl"))?;
    records.cut("align", round)?;
    records.add("align", round, "test", &after.figures())?;
    records.seal()?;
    dir.finish("align", &aligned, json!({ "rounds": round, "when": "end" }))?;
    cx.events.on(Event::Advance { done: 1, figures: &[("accuracy", after.overall)] });
    cx.events.on(Event::End);
    Ok(aligned)
}
