//! A knob's value for each cell and seed, by the accuracy on the validation set; test is not looked at.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{State, Sweep};
use crate::error::{Error, Result};
use crate::fsx;
use crate::run::directory::read_json;

/// The file that says what was chosen.
pub const FILE: &str = "selected.json";

/// The chosen run of a cell and a seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// The cell.
    pub cell: String,
    /// `run.seed`, and `run.split_seed` where the sweep sets one.
    pub seeds: (u64, Option<u64>),
    /// The knobs' values, as the directory names them; empty where the method has none of the knobs.
    pub knob: String,
    /// Of all knobs, in the plan's order: accuracy on the validation set, in `[0, 1]`.
    pub validation: Vec<(String, f64)>,
    /// Where the run lies.
    pub dir: PathBuf,
}

/// A cell, and its seeds.
type Place = (String, u64, Option<u64>);

/// What is chosen, and the names of cells and seeds whose runs are not all finished.
pub fn choose(sweep: &Sweep) -> Result<(Vec<Chosen>, Vec<String>)> {
    let mut groups: Vec<(Place, Vec<usize>)> = Vec::new();
    let mut place = BTreeMap::new();
    for (i, run) in sweep.plan.runs.iter().enumerate() {
        let key = (run.cell.clone(), run.config.run.seed, run.config.run.split_seed);
        let at = *place.entry(key.clone()).or_insert_with(|| {
            groups.push((key, Vec::new()));
            groups.len() - 1
        });
        groups[at].1.push(i);
    }
    let (mut chosen, mut open) = (Vec::new(), Vec::new());
    for ((cell, seed, split), members) in groups {
        match best(sweep, &members)? {
            Some((at, validation, dir)) => {
                let knob = sweep.plan.runs[at].knob.clone();
                chosen.push(Chosen { cell, seeds: (seed, split), knob, validation, dir });
            }
            None => open.push(format!("{cell}, seed {seed}")),
        }
    }
    Ok((chosen, open))
}

type Best = Option<(usize, Vec<(String, f64)>, PathBuf)>;

/// The first of the best runs by validation; none where one is not finished.
fn best(sweep: &Sweep, members: &[usize]) -> Result<Best> {
    let mut best: Option<(usize, f64, PathBuf)> = None;
    let mut all = Vec::new();
    for &i in members {
        let State::Done(dir) = sweep.state(&sweep.plan.runs[i])? else { return Ok(None) };
        let accuracy = validation(&read_json(&dir.join("eval.json"))?).ok_or_else(|| {
            Error::data(format!("{}: no accuracy on a validation set", dir.join("eval.json").display()))
        })?;
        all.push((sweep.plan.runs[i].knob.clone(), accuracy));
        if best.as_ref().is_none_or(|(_, highest, _)| accuracy > *highest) {
            best = Some((i, accuracy, dir));
        }
    }
    Ok(best.map(|(i, _, dir)| (i, all, dir)))
}

/// The final stage's accuracy on the validation set.
fn validation(eval: &Value) -> Option<f64> {
    eval["stages"][eval["stage"].as_str()?]["validation"]["overall"].as_f64()
}

/// Writes what was chosen to [`FILE`] in the sweep's folder.
pub fn write(sweep: &Sweep, chosen: &[Chosen]) -> Result<()> {
    let rows: Vec<Value> = chosen
        .iter()
        .map(|c| {
            let tried: Vec<Value> = c.validation.iter().map(|(k, a)| json!({ "knob": k, "validation": a })).collect();
            json!({ "cell": c.cell, "seed": c.seeds.0, "split_seed": c.seeds.1, "knob": c.knob, "tried": tried,
                "run": c.dir })
        })
        .collect();
    let text = serde_json::to_string_pretty(&rows).map_err(|e| Error::defect(format!("{FILE}: {e}")))?;
    fsx::write_atomic(&sweep.root.join(FILE), format!("{text}\n").as_bytes())
}
