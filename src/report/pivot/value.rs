//! Which number of a run a table shows.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::runs::{Run, Stage, judged};
use super::super::summary::{figure_names_of, of_rounds};
use super::Pivot;
use crate::error::{Error, Result, closest};

/// Numbers that are no figure of `eval.json` by their own name.
const NAMED: [&str; 3] = ["last10", "last", "selected"];

/// A number of a run's stage, as `eval.json` holds it; why there is none.
pub fn of(run: &Run, stage: &Stage, number: &str) -> std::result::Result<f64, String> {
    // The server's model of clients that train alone is nobody's: their own models' mean stands for it.
    if alone(run) && NAMED.contains(&number) {
        return stage.figure("personal/mean").ok_or_else(|| "no accuracy of the clients' own models".into());
    }
    let best = run.keys.get("federated.export").and_then(toml::Value::as_str) == Some("best");
    let exported = || stage.figure("overall").ok_or_else(|| "no accuracy".to_string());
    match number {
        "last10" => stage.figure("last10").ok_or_else(|| "no rounds were judged".into()),
        "last" if !best => exported(),
        "selected" if best => exported(),
        "last" => judged_rounds(run, stage, "test")?.pop().map(|(_, a)| a).ok_or_else(|| NO_RECORDS.into()),
        "selected" => selected(run, stage),
        _ => stage.figure(number).ok_or_else(|| format!("no {number}")),
    }
}

const NO_RECORDS: &str = "its rounds are not recorded";

/// Whether its clients train alone.
pub fn alone(run: &Run) -> bool {
    run.eval["facts"]["mode"] == "local"
}

/// Test accuracy of the round with the highest accuracy on the validation set, the earliest of equals.
fn selected(run: &Run, stage: &Stage) -> std::result::Result<f64, String> {
    let mut best: Option<(u64, f64)> = None;
    for (round, accuracy) in judged_rounds(run, stage, "validation")? {
        if best.is_none_or(|(_, highest)| accuracy > highest) {
            best = Some((round, accuracy));
        }
    }
    let (round, _) = best.ok_or("no round was judged on a validation set")?;
    let on_test = judged_rounds(run, stage, "test")?.into_iter().find(|(r, _)| *r == round);
    on_test.map(|(_, a)| a).ok_or_else(|| format!("round {round} was not judged on test"))
}

fn judged_rounds(run: &Run, stage: &Stage, split: &str) -> std::result::Result<Vec<(u64, f64)>, String> {
    let records = run.records().map_err(|e| e.message().to_string())?;
    let of = |r: &Value| match split {
        "test" => judged(r, &stage.name),
        _ => r["stage"] == stage.name.as_str() && r["split"] == split && r["round"].as_u64() > Some(0),
    };
    Ok(records.iter().filter(|r| of(r)).filter_map(|r| Some((r["round"].as_u64()?, r["accuracy"].as_f64()?))).collect())
}

/// How a table calls a number.
pub fn head(number: &str) -> &str {
    match number {
        "last10" => "last ten",
        "selected" => "by validation",
        "overall" => "accuracy",
        "worst_class" => "worst class",
        other => other,
    }
}

impl Pivot {
    /// Refuses a number that no finished run has.
    pub(super) fn value_names_are_known(&self) -> Result<()> {
        let stages = || self.runs.iter().flat_map(|r| &r.stages);
        let known: BTreeSet<String> = stages().flat_map(|s| figure_names_of([s])).collect();
        for name in &self.asked.numbers {
            if NAMED.contains(&name.as_str()) || self.runs.is_empty() || known.contains(name) {
                continue;
            }
            let all: Vec<&str> = NAMED.into_iter().chain(known.iter().map(String::as_str)).collect();
            let e = Error::input(format!("table.numbers: no run has `{name}`; there are {}", all.join(", ")));
            return Err(match closest(name, all.iter().copied()) {
                Some(near) => e.hint(format!("did you mean `{near}`?")),
                None => e,
            });
        }
        Ok(())
    }

    /// What the numbers are, and of which runs something else.
    pub(super) fn value_notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.asked.numbers.iter().any(|n| n == "last10") {
            let rounds: BTreeSet<u64> = self
                .cells
                .values()
                .flat_map(|c| c.values.iter().map(|(_, i, _)| *i))
                .filter(|&i| !alone(&self.runs[i]))
                .filter_map(|i| self.runs[i].stages.iter().find(|s| s.figure("last10").is_some())?.rounds)
                .collect();
            let told: Vec<String> = rounds.iter().map(|n| of_rounds(*n)).collect();
            if !told.is_empty() {
                notes.push(format!("\"last ten\": the mean over the last judged rounds ({}).", told.join(", ")));
            }
        }
        if self.runs.iter().any(alone) {
            notes.push("Where clients train alone: the mean over their own models, of the last round.".into());
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(export: &str, mode: &str) -> (tempfile::TempDir, Run) {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        write("config.toml", format!("[run]\nseed = 1\n[federated]\nexport = \"{export}\""));
        let entry = json!({ "overall": 0.5, "last10": 0.4, "few": 0.1, "digest": "d", "personal": { "mean": 0.3 } });
        write("eval.json", json!({ "facts": { "mode": mode }, "stages": { "finetune": entry } }).to_string());
        let line = |round: u64, split: &str, a: f64| json!({ "stage": "finetune", "round": round, "split": split, "accuracy": a });
        let lines = [(1, "validation", 0.7), (1, "test", 0.55), (2, "validation", 0.7), (2, "test", 0.6)];
        let lines: Vec<String> = lines.iter().map(|(r, s, a)| line(*r, s, *a).to_string()).collect();
        write("metrics.jsonl", lines.join("\n"));
        let run = Run::read(dir.path()).unwrap();
        (dir, run)
    }

    #[test]
    fn a_number_is_the_last_rounds_the_chosen_rounds_or_a_figure() {
        let of = |export: &str, mode: &str, number: &str| {
            let (_dir, run) = run(export, mode);
            of(&run, &run.stages[0], number)
        };
        assert_eq!(of("last", "federated", "last10"), Ok(0.4));
        assert_eq!(of("last", "federated", "last"), Ok(0.5));
        assert_eq!(of("last", "federated", "selected"), Ok(0.55), "the earliest of the best by validation, on test");
        assert_eq!(of("best", "federated", "selected"), Ok(0.5), "what was exported");
        assert_eq!(of("best", "federated", "last"), Ok(0.6), "the last record");
        assert_eq!(of("last", "federated", "few"), Ok(0.1));
        assert_eq!(of("last", "local", "last10"), Ok(0.3), "clients' own models");
        assert!(of("last", "federated", "fewer").is_err());
    }
}
