//! Commands that run, judge and report.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::arms::arms;
use super::report::show;
use super::{Changes, Configured, machine, put, say};
use crate::error::{Error, Result};
use crate::model::weights::Start;
use crate::pipeline::{self, Stages};

/// `run`, `pretrain`, `finetune`, `align`.
pub fn stages(e: &Configured, stages: Stages, quiet: bool) -> Result<()> {
    let (resolved, cx) = machine::resolved(&e.config, &e.changes, quiet)?;
    if stages == Stages::All {
        resolved.check_inputs()?;
    }
    let config = resolved.config;
    if config.sweeps() {
        return Err(Error::input(format!("{} has a section [sweep]: many runs", e.config.display()))
            .hint(format!("`fedllava sweep {}` runs them", e.config.display())));
    }
    arms(&config, stages, &cx)?;
    show(&[PathBuf::from(&config.run.dir)], &e.output)
}

/// `evaluate`.
#[derive(Args)]
pub struct Evaluate {
    /// The experiment's TOML file.
    config: PathBuf,
    /// A model by PyTorch's names: .safetensors, .pt, .pth, .bin or .npz.
    #[arg(long)]
    model: PathBuf,
    #[command(flatten)]
    changes: Changes,
    /// Print all figures as JSON.
    #[arg(long)]
    json: bool,
}

/// Judges a model on test.
pub fn evaluate(e: &Evaluate, quiet: bool) -> Result<()> {
    let (config, cx) = machine::open(&e.config, &e.changes, quiet)?;
    let experiment = pipeline::Experiment::open(config, &cx)?;
    let params = Start::whole(&e.model, &experiment.net.layout)?;
    let figures = experiment.judge().classifier(&experiment.net, &params, &cx)?;
    if e.json {
        let mut all = figures.to_json();
        all.insert("model".into(), json!(params.digest()));
        return put(&Value::Object(all).to_string());
    }
    for (name, value) in figures.figures() {
        put(&format!("{name:12} {value:.4}"))?;
    }
    say(&experiment.config.evaluate.shots.rule());
    Ok(())
}

/// `embed`: fills the caches that `pretrain` and `align` read.
pub fn embed(e: &Configured, quiet: bool) -> Result<()> {
    let (config, cx) = machine::open(&e.config, &e.changes, quiet)?;
    let experiment = pipeline::Experiment::open(config, &cx)?;
    let facts = experiment.embed(&cx)?;
    if e.output.as_json() { put(&facts.to_string()) } else { put(&pretty(&facts)) }
}

fn pretty(facts: &Value) -> String {
    let line = |(name, value): (&String, &Value)| format!("{name:14} {value}");
    facts.as_object().map(|m| m.iter().map(line).collect::<Vec<_>>().join("\n")).unwrap_or_default()
}
