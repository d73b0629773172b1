//! A pool becomes annotations, with the judges that the config names.

use std::path::Path;

use crate::config::Config;
use crate::data::pool::Pool;
use crate::data::world::World;
use crate::data::{self, DataConfig, PoolConfig, pool};
use crate::error::Result;
use crate::exec::Context;
use crate::key::{Key, Purpose};
use crate::stage::caption::{Captioned, Judges, caption};
use crate::stage::embed::Embedder;

/// Writes `captions.jsonl` and `kept.jsonl` in `folder`; the same call goes on with a stopped one.
pub fn captioning(config: &Config, folder: &Path, cx: &Context) -> Result<Captioned> {
    let pool = images_of(config, cx)?;
    let section = &config.caption;
    let benchmark = match section.filter.test {
        true => Some(data::load(&config.data, config.run.split_key(), cx)?),
        false => None,
    };
    let embedder = Embedder::new(&config.clip, &config.run.cache);
    let judges = Judges {
        test: benchmark.as_ref().map(|b| &b.test.images),
        clip: (embedder.sees() && section.filter.min_similarity > -1.0).then_some(&embedder),
    };
    caption(section, &pool, judges, folder, config.run.seed, cx)
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
