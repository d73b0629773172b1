//! The offline demo.

use std::path::{Path, PathBuf};

use clap::Args;

use super::captions;
use super::commands::{arms, existing};
use super::report::{Output, figures, show};
use super::{Changes, machine, say};
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
    let path = existing(Path::new(file), "the demo's config")?;
    let (config, cx) = machine::open(&path, &d.changes, quiet)?;
    captions::show(&config, d.recaption, &cx)?;
    let root = config.run.dir.clone();
    for seed in 0..d.seeds {
        let mut config = config.clone();
        if d.seeds > 1 {
            config.run.seed += seed;
            config.run.dir = format!("{root}/seed-{}", config.run.seed);
            say(&format!("seed {} ({} of {})", config.run.seed, seed + 1, d.seeds));
        }
        arms(&config, Stages::All, &cx)?;
    }
    let runs = [PathBuf::from(root)];
    if let Some(folder) = &d.figures {
        figures(&runs, folder)?;
    }
    show(&runs, &d.output)
}
