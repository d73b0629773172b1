//! `fedllava split`: who holds what, as a picture, as JSON, as a file for other code.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Changes, machine, put, say};
use crate::config::Config;
use crate::data;
use crate::error::{Error, Result};
use crate::exec::Context;
use crate::pipeline::{Experiment, Held};

/// `split`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Split {
    #[command(subcommand)]
    action: Option<Action>,
    /// The experiment's TOML file.
    config: Option<PathBuf>,
    #[command(flatten)]
    changes: Changes,
    /// Print the clients × classes matrix and its digests.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Write image indices and cohorts to a JSON file.
    Export {
        /// The experiment's TOML file.
        config: PathBuf,
        /// The file to write.
        file: PathBuf,
        #[command(flatten)]
        changes: Changes,
    },
    /// Check a file of image indices against a config's data set, and say how to use it.
    Import {
        /// The experiment's TOML file.
        config: PathBuf,
        /// The file to read.
        file: PathBuf,
        #[command(flatten)]
        changes: Changes,
    },
}

/// Draws, exports or imports.
pub fn split(s: &Split, quiet: bool) -> Result<()> {
    match (&s.action, &s.config) {
        (Some(Action::Export { config, file, changes }), _) => export(config, file, changes, quiet),
        (Some(Action::Import { config, file, changes }), _) => import(config, file, changes, quiet),
        (None, Some(config)) => draw(config, s, quiet),
        (None, None) => Err(Error::input("split: no config").hint("fedllava split configs/demo.toml")),
    }
}

fn draw(config: &Path, s: &Split, quiet: bool) -> Result<()> {
    let (config, cx) = machine::open(config, &s.changes, quiet)?;
    if config.task.mllm().is_some() {
        return modalities(&config, s.json, &cx);
    }
    let e = Experiment::open(config, &cx)?;
    let [server, validation] = e.reserved();
    if s.json {
        let facts = json!({
            "counts": e.split.counts(), "counts_sha1": e.split.counts_sha1(), "digest": e.split.digest(),
            "server": server, "validation": validation,
        });
        return put(&facts.to_string());
    }
    put(&picture(&e.split.counts(), &e.benchmark.train.classes))?;
    let held: usize = e.split.clients.iter().map(Vec::len).sum();
    put(&format!(
        "{} clients hold {held} images · server {} · validation {} · left out {}",
        e.split.clients.len(),
        server.iter().sum::<u32>(),
        validation.iter().sum::<u32>(),
        e.split.discarded.len()
    ))?;
    put(&format!("counts {} · split {}", e.split.counts_sha1(), &e.split.digest()[..12]))
}

/// Who holds which modality of how many samples, and their labels.
fn modalities(config: &Config, json: bool, cx: &Context) -> Result<()> {
    let ledger = data::Ledger::default();
    let held = Held::open(config, &|census| ledger.enter(census, config.run.tolerate, cx), cx)?;
    let train = &held.set.train.samples;
    let facts = held.holdings.to_json(train)?;
    if json {
        return put(&facts.to_string());
    }
    let mixes = held.holdings.mixes(train)?;
    let options = &held.set.options;
    let labels: String = options.iter().map(|o| format!(" {o:>14.14}")).collect();
    put(&format!("{:>8}{:>8}{:>8}{:>8}{:>9}{:>8}{labels}", "client", "both", "image", "text", "neither", "all"))?;
    for (client, mix) in mixes.iter().enumerate() {
        let of = |label: usize| mix.labels.get(&(label as u32)).copied().unwrap_or(0);
        let labels: String = (0..options.len()).map(|label| format!(" {:>14}", of(label))).collect();
        let (both, image, text, neither) = (mix.both, mix.image, mix.text, mix.neither);
        put(&format!("{client:>8}{both:>8}{image:>8}{text:>8}{neither:>9}{:>8}{labels}", mix.total()))?;
    }
    let sum: usize = mixes.iter().map(|m| m.total()).sum();
    let digest = facts["digest"].as_str().unwrap_or_default();
    put(&format!(
        "{} clients hold {sum} samples of {} · split {}",
        mixes.len(),
        held.set.name,
        &digest[..digest.len().min(12)]
    ))
}

/// Shades from nothing to the largest cell, by the square root, so that small cells can be seen.
const SHADES: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A row a client, a column a class: bars whose height is the square root of the count.
fn picture(counts: &[Vec<u32>], classes: &[String]) -> String {
    let wide = classes.len() <= 20;
    let most = counts.iter().flatten().copied().max().unwrap_or(1).max(1);
    let shade = |n: u32| {
        let level = (8.0 * (f64::from(n) / f64::from(most)).sqrt()).ceil() as usize;
        SHADES[level.min(8)]
    };
    let mut lines = Vec::new();
    if wide {
        lines.push(format!(
            "{:>8}{}{:>8}",
            "client",
            classes.iter().map(|c| format!("{c:>9.8}")).collect::<String>(),
            "all"
        ));
    }
    for (client, row) in counts.iter().enumerate() {
        let cells: String = match wide {
            true => row
                .iter()
                .map(|&n| if n == 0 { format!("{:>9}", "·") } else { format!("{n:>7} {}", shade(n)) })
                .collect(),
            false => row.iter().map(|&n| shade(n)).collect(),
        };
        lines.push(format!("{client:>8}{}{cells}{:>8}", if wide { "" } else { "  " }, row.iter().sum::<u32>()));
    }
    let totals: Vec<u32> = (0..classes.len()).map(|c| counts.iter().map(|row| row[c]).sum()).collect();
    if wide {
        let cells: String = totals.iter().map(|n| format!("{n:>7}  ")).collect();
        lines.push(format!("{:>8}{cells}{:>8}", "all", totals.iter().sum::<u32>()));
    }
    lines.join("\n")
}

fn export(config: &Path, file: &Path, changes: &Changes, quiet: bool) -> Result<()> {
    let (config, cx) = machine::open(config, changes, quiet)?;
    let mut e = Experiment::open(config, &cx)?;
    let cohorts: Result<Vec<Vec<usize>>> = (1..=e.config.federated.rounds)
        .map(|round| Ok(e.cohort(round)?.into_iter().map(|c| c as usize).collect()))
        .collect();
    e.split.cohorts = Some(cohorts?);
    e.split.export(file)?;
    say(&format!(
        "{}: {} clients, cohorts of {} rounds",
        file.display(),
        e.split.clients.len(),
        e.config.federated.rounds
    ));
    put(&e.split.digest())
}

fn import(config: &Path, file: &Path, changes: &Changes, quiet: bool) -> Result<()> {
    let (config, cx) = machine::open(config, changes, quiet)?;
    let e = Experiment::open(config, &cx)?;
    let (split, census) = data::import_split(file, &e.benchmark)?;
    e.enter(&census, &cx)?;
    say(&format!("{} fits: {} clients, {} server images", file.display(), split.clients.len(), split.server.len()));
    say("use it in a config, or by --set:");
    put(&format!(
        "[partition]\nkind = \"file\"\npath = {}\nclients = {}",
        toml::Value::String(file.to_string_lossy().into_owned()),
        split.clients.len()
    ))
}
