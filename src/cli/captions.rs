//! What the demo's LLaVA says of the demo's pool.

use std::path::Path;

use super::say;
use crate::config::Config;
use crate::data::DataConfig;
use crate::data::world::World;
use crate::error::Result;
use crate::exec::Context;
use crate::key::{Key, Purpose};
use crate::shipped;
use crate::stage::demo_captions::{judge, recaption};

const FILE: &str = "data/demo-captions.jsonl";
const LLAVA: &str = "data/demo-llava";
const SAMPLES: usize = 4;

/// Writes the captions anew where that is asked, and shows some beside the truth, and how true all are.
pub fn show(config: &Config, again: bool, cx: &Context) -> Result<()> {
    let DataConfig::World(world) = &config.data else { return Ok(()) };
    let world = World::new(world.clone(), Key::from_seed(world.pool_seed).fold(Purpose::World, 0))?;
    if again {
        let done =
            recaption(&world, &shipped::found(Path::new(LLAVA))?, Path::new(FILE), Path::new(&config.run.cache), cx)?;
        say(&format!("{FILE}: {} captions kept, dropped {:?}", done.dropped.kept, done.dropped.dropped));
    }
    let judged = judge(&world, &shipped::found(Path::new(FILE))?, SAMPLES)?;
    say(&format!("What the demo's LLaVA says of the pool ({FILE}, {} images):", judged.captions));
    for (id, truth, said) in &judged.samples {
        say(&format!("  {id}  {truth:30}  {said:?}"));
    }
    let each: Vec<String> =
        judged.each.iter().map(|(name, a)| format!("{} {:.2}", format!("{name:?}").to_lowercase(), a.f1())).collect();
    say(&format!("  F1 of what is said against the truth: {:.3} ({})", judged.all.f1(), each.join(", ")));
    Ok(())
}
