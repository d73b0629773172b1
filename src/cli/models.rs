//! `fedllava train-demo-models`: the models that the demo ships with.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::{Changes, machine, say};
use crate::config::Config;
use crate::data::DataConfig;
use crate::data::multimodal::world::QuestionsConfig;
use crate::data::world::{World, WorldConfig};
use crate::error::{Error, Result};
use crate::exec::Context;
use crate::key::{Key, Purpose};
use crate::stage::demo_llava::{DemoLlavaConfig, train_llava};
use crate::stage::demo_mllm::{DemoMllmConfig, train_mllm};
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
    /// Where the multimodal LLM that a federation finetunes goes; its tower is that of `--llava`.
    #[arg(long, default_value = "data/demo-mllm")]
    mllm: PathBuf,
    /// Train one of them.
    #[arg(long)]
    only: Option<Which>,
    /// Optimiser steps of the multimodal LLM.
    #[arg(long)]
    steps: Option<usize>,
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
    Mllm,
}

/// What makes one of the models.
type Step = fn(&TrainDemoModels, &WorldConfig, &Context) -> Result<()>;

/// Trains the demo's CLIP, then its LLaVA, then its multimodal LLM for questions, on the world of `config`.
pub fn train(t: &TrainDemoModels, config: &str, quiet: bool) -> Result<()> {
    let (read, cx): (Config, _) = machine::open(Path::new(config), &t.changes, quiet)?;
    let DataConfig::World(world) = &read.data else {
        return Err(Error::input(format!("{config}: data.kind is not world")));
    };
    let wanted = |which| t.only.is_none_or(|only| only == which);
    let steps: [(Which, Step); 3] = [(Which::Clip, clip), (Which::Llava, llava), (Which::Mllm, mllm)];
    steps.into_iter().filter(|(which, _)| wanted(*which)).try_for_each(|(_, step)| step(t, world, &cx))
}

fn drawn(world: &WorldConfig, seed: u64) -> Result<World> {
    World::new(world.clone(), Key::from_seed(seed).fold(Purpose::World, 0))
}

fn clip(t: &TrainDemoModels, world: &WorldConfig, cx: &Context) -> Result<()> {
    let mut clip = DemoClipConfig::default();
    clip.images = t.images.unwrap_or(clip.images);
    clip.epochs = t.epochs.unwrap_or(clip.epochs);
    let loss = train_clip(&clip, &drawn(world, clip.seed)?, &t.out, cx)?;
    say(&format!("{}: last loss {loss:.4}", t.out.display()));
    Ok(())
}

fn llava(t: &TrainDemoModels, world: &WorldConfig, cx: &Context) -> Result<()> {
    let mut llava = DemoLlavaConfig::default();
    llava.images = t.images.unwrap_or(llava.images);
    llava.epochs = t.epochs.unwrap_or(llava.epochs);
    let loss = train_llava(&llava, &drawn(world, llava.seed)?, &t.llava, cx)?;
    say(&format!(
        "{}: loss {loss:.4} nats a token; `fedllava demo --recaption` writes its captions",
        t.llava.display()
    ));
    Ok(())
}

fn mllm(t: &TrainDemoModels, world: &WorldConfig, cx: &Context) -> Result<()> {
    let mut mllm = DemoMllmConfig::default();
    mllm.images = t.images.unwrap_or(mllm.images);
    mllm.steps = t.steps.unwrap_or(mllm.steps);
    // Pictures as hard as those that it will be asked about.
    let world = WorldConfig { difficulty: QuestionsConfig::default().difficulty, ..world.clone() };
    let known = train_mllm(&mllm, &drawn(&world, mllm.seed)?, &t.llava, &t.mllm, cx)?;
    let shares: Vec<String> = known.iter().map(|(kind, v)| format!("{} {:.0} %", kind.name(), 100.0 * v)).collect();
    say(&format!("{}: answered to the letter: {}", t.mllm.display(), shares.join(", ")));
    Ok(())
}
