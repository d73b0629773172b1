//! Commands that run, judge and report.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::report::{Output, show};
use super::{Changes, Configured, machine, put, say};
use crate::config::Config;
use crate::error::{Class, Error, Result};
use crate::exec::Context;
use crate::fsx;
use crate::nn::Params;
use crate::pipeline::{self, Stages};
use crate::report;

/// `run`, `pretrain`, `finetune`, `align`.
pub fn stages(e: &Configured, stages: Stages, quiet: bool) -> Result<()> {
    let (config, cx) = machine::open(&e.config, &e.changes, quiet)?;
    arms(&config, stages, &cx)?;
    show(&[PathBuf::from(&config.run.dir)], &e.output)
}

/// Runs a config, or its arms one after another; a stop says how to go on.
pub fn arms(config: &Config, stages: Stages, cx: &Context) -> Result<()> {
    let library = pipeline::Library::default();
    if !config.arms.is_empty() {
        let names: Vec<&String> = config.arms.iter().map(|a| &a.name).collect();
        let text = json!({ "arms": names, "contrasts": config.contrasts }).to_string();
        fsx::write_atomic(&Path::new(&config.run.dir).join(report::EXPERIMENT), text.as_bytes())?;
    }
    for (name, arm) in config.expand()? {
        if !name.is_empty() {
            cx.events.on(crate::exec::Event::Note(&format!("— {name} —")));
        }
        pipeline::run(&arm, stages, &library, cx).map_err(|e| match e.class() {
            Class::Stopped => e.hint(format!("go on with: fedllava resume {}", arm.run.dir)),
            _ => e,
        })?;
    }
    Ok(())
}

/// `resume`.
#[derive(Args)]
pub struct Resume {
    /// The run's directory.
    run: PathBuf,
    /// Worker threads; 0 takes every core.
    #[arg(long)]
    threads: Option<usize>,
}

/// Goes on with the run that a directory holds.
pub fn resume(r: &Resume, quiet: bool) -> Result<()> {
    let file = r.run.join("config.toml");
    if !file.exists() {
        return Err(Error::input(format!("{} holds no run (no config.toml)", r.run.display()))
            .hint("a run with arms is resumed by the command that began it"));
    }
    let mut set = vec![format!("run.dir={}", toml::Value::String(r.run.to_string_lossy().into_owned()))];
    set.extend(r.threads.iter().map(|t| format!("run.threads={t}")));
    let config = Config::read(&file, &set)?;
    let cx = machine::context(&config, quiet)?;
    arms(&config, Stages::All, &cx)?;
    show(std::slice::from_ref(&r.run), &Output::default())
}

/// `evaluate`.
#[derive(Args)]
pub struct Evaluate {
    /// The experiment's TOML file.
    config: PathBuf,
    /// A model by PyTorch's names (safetensors).
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
    let params = Params::load(&e.model, &experiment.net.layout)?;
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

/// A file that must be there.
pub fn existing(path: &Path, what: &str) -> Result<PathBuf> {
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    let here = fsx::list(Path::new(".")).map(|l| l.len()).unwrap_or(0);
    Err(Error::input(format!("{what} {} does not exist", path.display()))
        .hint(format!("run fedllava from the folder of its checkout (this one holds {here} entries)")))
}
