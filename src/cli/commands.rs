//! Commands that run, judge and report.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::{Changes, Configured, machine, put, say};
use crate::config::Config;
use crate::data::DataConfig;
use crate::data::world::{World, contact_sheet};
use crate::error::{Class, Error, Result};
use crate::exec::Context;
use crate::fsx;
use crate::key::{Key, Purpose};
use crate::model::weights::Start;
use crate::pipeline::{self, Stages};
use crate::report::{self, contrast::Outcomes, figure};
use crate::run::directory::read_json;

/// `run`, `pretrain`, `finetune`, `align`.
pub fn stages(e: &Configured, stages: Stages, quiet: bool) -> Result<()> {
    let (config, cx) = machine::open(&e.config, &e.changes, quiet)?;
    arms(&config, stages, &cx)?;
    show(&[PathBuf::from(&config.run.dir)], e.json)
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

/// Prints finished runs: a Markdown table, or JSON.
pub fn show(paths: &[PathBuf], json: bool) -> Result<()> {
    if let ([path], true) = (paths, json)
        && path.join("eval.json").exists()
    {
        return put(&read_json(&path.join("eval.json"))?.to_string());
    }
    let (rows, outcomes) = (report::rows(paths)?, Outcomes::read(paths)?);
    if json {
        return put(&json!({ "rows": report::to_json(&rows), "contrasts": outcomes.to_json() }).to_string());
    }
    put(&report::markdown(&rows))?;
    let answers = outcomes.markdown();
    if answers.is_empty() { Ok(()) } else { put(&answers) }
}

/// `report`.
#[derive(Args)]
pub struct Report {
    /// Run directories, or directories of runs.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Draw figures (SVG) into this folder.
    #[arg(long, value_name = "DIR")]
    figures: Option<PathBuf>,
    /// With --figures: draw accuracy against this key of the configs, such as partition.alpha.
    #[arg(long, value_name = "KEY", requires = "figures")]
    curve: Option<String>,
    /// With --curve: steps of equal ratio are equally long.
    #[arg(long, requires = "curve")]
    log: bool,
}

/// Prints the tables, and draws the figures.
pub fn report(r: &Report) -> Result<()> {
    match (&r.figures, &r.curve) {
        (Some(folder), Some(key)) => {
            let path = folder.join(format!("{}.svg", key.replace('.', "-")));
            fsx::write_atomic(&path, figure::curve(&r.runs, key, r.log)?.as_bytes())?;
            say(&path.display().to_string());
        }
        (Some(folder), None) => figures(&r.runs, folder)?,
        _ => {}
    }
    show(&r.runs, r.json)
}

/// Pictures of a contact sheet and how many stand in a row.
const SHEET: (usize, usize) = (40, 8);

/// Draws the figures of finished runs; of the procedural world a contact sheet too.
pub fn figures(runs: &[PathBuf], folder: &Path) -> Result<()> {
    for path in figure::write(runs, folder)? {
        say(&path.display().to_string());
    }
    let Some(dir) = report::directories(runs)?.into_iter().next() else { return Ok(()) };
    let config = Config::read(&dir.join("config.toml"), &[])?;
    if let DataConfig::World(world) = config.data {
        let key = Key::from_seed(world.pool_seed).fold(Purpose::World, 0);
        let sheet = contact_sheet(&World::new(world, key)?.pool(SHEET.0), SHEET.1)?;
        let path = folder.join("contact-sheet.svg");
        fsx::write_atomic(&path, sheet.svg.as_bytes())?;
        say(&path.display().to_string());
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
    show(std::slice::from_ref(&r.run), false)
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
    if e.json { put(&facts.to_string()) } else { put(&pretty(&facts)) }
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
