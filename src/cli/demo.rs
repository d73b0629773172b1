//! The offline demo and the models it ships with.

use std::path::{Path, PathBuf};

use clap::Args;

use super::commands::{arms, existing, figures, show};
use super::{Changes, machine, say};
use crate::config::Config;
use crate::data::DataConfig;
use crate::data::world::World;
use crate::error::{Error, Result};
use crate::key::{Key, Purpose};
use crate::pipeline::Stages;
use crate::stage::demo_models::{DemoClipConfig, train_clip};

const CONFIG: &str = "configs/demo.toml";
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
    #[command(flatten)]
    changes: Changes,
    /// Draw figures (SVG) into this folder.
    #[arg(long, value_name = "DIR")]
    figures: Option<PathBuf>,
    /// Print the final numbers as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `configs/demo.toml` or its controls, for one or several seeds, and prints the tables. What is done, by seed
/// and by arm, is not done again.
pub fn demo(d: &Demo, quiet: bool) -> Result<()> {
    let file = if d.controls { CONTROLS } else { CONFIG };
    let path = existing(Path::new(file), "the demo's config")?;
    let (config, cx) = machine::open(&path, &d.changes, quiet)?;
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
    show(&runs, d.json)
}

/// `train-demo-models`.
#[derive(Args)]
pub struct TrainDemoModels {
    /// Where the CLIP goes.
    #[arg(long, default_value = "data/demo-clip")]
    out: PathBuf,
    /// Training images.
    #[arg(long)]
    images: Option<usize>,
    /// Passes over them.
    #[arg(long)]
    epochs: Option<usize>,
    #[command(flatten)]
    changes: Changes,
}

/// Trains the demo's CLIP on the world of `configs/demo.toml`.
pub fn train_models(t: &TrainDemoModels, quiet: bool) -> Result<()> {
    let path = existing(Path::new(CONFIG), "the demo's config")?;
    let (config, cx): (Config, _) = machine::open(&path, &t.changes, quiet)?;
    let DataConfig::World(world) = &config.data else {
        return Err(Error::input(format!("{CONFIG}: data.kind is not world")));
    };
    let mut clip = DemoClipConfig::default();
    clip.images = t.images.unwrap_or(clip.images);
    clip.epochs = t.epochs.unwrap_or(clip.epochs);
    let world = World::new(world.clone(), Key::from_seed(clip.seed).fold(Purpose::World, 0))?;
    let loss = train_clip(&clip, &world, &t.out, &cx)?;
    say(&format!("{}: last loss {loss:.4}", t.out.display()));
    Ok(())
}
