//! A pool becomes annotations, with the judges that the config names.

use std::path::Path;

use crate::config::Config;
use crate::data::captions::Captions;
use crate::data::pool::Pool;
use crate::data::world::World;
use crate::data::{self, Census, DataConfig, Ledger, PoolConfig, pool};
use crate::error::Result;
use crate::exec::Context;
use crate::key::{Key, Purpose};
use crate::mllm::captioner::CaptionerConfig;
use crate::stage::caption::{Captioned, Judges, caption};
use crate::stage::embed::Embedder;

/// Writes `captions.jsonl` and `kept.jsonl` in `folder`; the same call goes on with a stopped one.
pub fn captioning(config: &Config, folder: &Path, cx: &Context) -> Result<Captioned> {
    config.caption.check()?;
    let (pool, section, ledger) = (images_of(config, cx)?, &config.caption, Ledger::default());
    let enter = |census: &Census| ledger.enter(census, config.run.tolerate, cx);
    pool.census.iter().try_for_each(enter)?;
    if let CaptionerConfig::File(file) = &section.captioner {
        enter(&pool.match_up(&Captions::read(&data::resolve(&file.path)?)?).0)?;
    }
    let benchmark = match section.filter.test {
        true => Some(data::load(&config.data, config.run.split_key(), cx)?),
        false => None,
    };
    let embedder = Embedder::new(&config.clip, &config.run.cache);
    let judges = Judges {
        test: benchmark.as_ref().map(|b| &b.test.images),
        clip: (embedder.sees() && section.filter.min_similarity > -1.0).then_some(&embedder),
    };
    let done = caption(section, &pool, judges, folder, config.run.seed, cx)?;
    let images = if section.limit == 0 { pool.len() } else { section.limit.min(pool.len()) };
    enter(&done.report.census(&pool.name, images))?;
    Ok(done)
}

/// The pool's images without what a caption file says of them.
fn images_of(config: &Config, cx: &Context) -> Result<Pool> {
    let mut section = config.pool.clone();
    match &mut section {
        PoolConfig::Folder(c) => c.captions.clear(),
        PoolConfig::Webdataset(c) => c.captions.clear(),
        PoolConfig::World(c) => c.captions.clear(),
    }
    open_pool(&section, &config.data, cx)
}

/// The pool of a config; the procedural world has its own.
pub fn open_pool(pool: &PoolConfig, data: &DataConfig, cx: &Context) -> Result<Pool> {
    match (pool, data) {
        (PoolConfig::World(c), DataConfig::World(world)) => {
            let key = Key::from_seed(world.pool_seed).fold(Purpose::World, 0);
            pool::captioned(World::new(world.clone(), key)?.open_pool(c.labels)?, &c.captions, cx)
        }
        (config, _) => pool::load(config, cx),
    }
}
