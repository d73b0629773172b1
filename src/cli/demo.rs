//! The offline demo.

use std::path::{Path, PathBuf};

use clap::Args;

use super::arms::arms_of;
use super::captions;
use super::report::{Output, figures, show};
use super::{Changes, machine};
use crate::error::Result;
use crate::pipeline::Stages;

/// The demo's config.
pub const CONFIG: &str = "configs/demo.toml";
const CONTROLS: &str = "configs/demo-controls.toml";

/// `demo`.
#[derive(Args)]
pub struct Demo {
    /// Repeat with this many seeds, one after another.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Run every control too (configs/demo-controls.toml), and answer the questions that a sceptic asks.
    #[arg(long)]
    controls: bool,
    /// Let the demo's LLaVA describe the pool again (data/demo-captions.jsonl) before the run.
    #[arg(long)]
    recaption: bool,
    #[command(flatten)]
    changes: Changes,
    /// Draw figures (SVG) into this folder.
    #[arg(long, value_name = "DIR")]
    figures: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// Runs `configs/demo.toml` or its controls, for one or several seeds, and prints the tables. What is done, by seed
/// and by arm, is not done again.
pub fn demo(d: &Demo, quiet: bool) -> Result<()> {
    let file = if d.controls { CONTROLS } else { CONFIG };
    let (config, cx) = machine::open(Path::new(file), &d.changes, quiet)?;
    captions::show(&config, d.recaption, &cx)?;
    let seeds: Vec<u64> = (0..d.seeds).map(|i| config.run.seed + i).collect();
    arms_of(&config, &seeds, Stages::All, &cx)?;
    let runs = [PathBuf::from(&config.run.dir)];
    if let Some(folder) = &d.figures {
        figures(&runs, folder)?;
    }
    show(&runs, &d.output)
}
