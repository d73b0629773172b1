//! `fedllava train-demo-models`: the models that the demo ships with.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::{Changes, machine, say};
use crate::config::Config;
use crate::data::DataConfig;
use crate::data::world::World;
use crate::error::{Error, Result};
use crate::key::{Key, Purpose};
use crate::stage::demo_llava::{DemoLlavaConfig, train_llava};
use crate::stage::demo_models::{DemoClipConfig, train_clip};

/// `train-demo-models`.
#[derive(Args)]
pub struct TrainDemoModels {
    /// Where the CLIP goes.
    #[arg(long, default_value = "data/demo-clip")]
    out: PathBuf,
    /// Where the LLaVA goes.
    #[arg(long, default_value = "data/demo-llava")]
    llava: PathBuf,
    /// Train one of them.
    #[arg(long)]
    only: Option<Which>,
    /// Training images.
    #[arg(long)]
    images: Option<usize>,
    /// Passes over them.
    #[arg(long)]
    epochs: Option<usize>,
    #[command(flatten)]
    changes: Changes,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    Clip,
    Llava,
}

/// Trains the demo's CLIP, then its LLaVA, on the world of `config`.
pub fn train(t: &TrainDemoModels, config: &str, quiet: bool) -> Result<()> {
    let (read, cx): (Config, _) = machine::open(Path::new(config), &t.changes, quiet)?;
    let DataConfig::World(world) = &read.data else {
        return Err(Error::input(format!("{config}: data.kind is not world")));
    };
    let world = |seed: u64| World::new(world.clone(), Key::from_seed(seed).fold(Purpose::World, 0));
    if t.only != Some(Which::Llava) {
        let mut clip = DemoClipConfig::default();
        clip.images = t.images.unwrap_or(clip.images);
        clip.epochs = t.epochs.unwrap_or(clip.epochs);
        let loss = train_clip(&clip, &world(clip.seed)?, &t.out, &cx)?;
        say(&format!("{}: last loss {loss:.4}", t.out.display()));
    }
    if t.only != Some(Which::Clip) {
        let mut llava = DemoLlavaConfig::default();
        llava.images = t.images.unwrap_or(llava.images);
        llava.epochs = t.epochs.unwrap_or(llava.epochs);
        let loss = train_llava(&llava, &world(llava.seed)?, &t.llava, &cx)?;
        say(&format!(
            "{}: loss {loss:.4} nats a token; `fedllava demo --recaption` writes its captions",
            t.llava.display()
        ));
    }
    Ok(())
}
