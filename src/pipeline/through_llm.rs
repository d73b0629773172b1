//! Stage 1 of a run through a large language model: the LLaVA, its captions and its features, cached.

use std::path::Path;
use std::sync::Arc;

use super::Experiment;
use crate::data::captions::{Caption, Captions};
use crate::data::pool::Pool;
use crate::data::{self, PoolConfig};
use crate::error::{Place, Result};
use crate::exec::Context;
use crate::key::Purpose;
use crate::mllm::Instruction;
use crate::mllm::caption_loss::CaptionLoss;
use crate::model::hub;
use crate::model::llava::Llava;
use crate::nn::{Net, Params, Samples};
use crate::run::RunDir;
use crate::stage::pretrain_llm::{LlmPretrain, cached_annotations, map_of, tower_features};

impl Experiment {
    /// Trains `net` to make the LLaVA of `pretrain.llm` say what the captions of the items `kept` say; `images` are
    /// those items as the network sees them.
    pub(super) fn pretrain_through_llm(
        &self,
        dir: &RunDir,
        net: &Arc<Net>,
        pool: &Pool,
        kept: &[u32],
        images: &dyn Samples,
        cx: &Context,
    ) -> Result<Params> {
        let config = &self.config.pretrain.llm;
        let folder = data::resolve(&config.llava)
            .or_else(|_| hub::resolve_until(&config.llava, &cx.cancel))
            .at(|| "pretrain.llm.llava")?;
        let llava = Llava::open(&folder, cx)?;
        let (_, shape) = map_of(net)?;
        let objective = CaptionLoss::new(&llava, shape, config.student, config.train_tower_projection)?;
        let prompts = Instruction::find_all(&config.prompts).at(|| "pretrain.llm.prompts")?;
        let cache = Path::new(&self.config.run.cache);
        let records = self.caption_records(pool)?;
        let annotations = cached_annotations(&llava, pool, kept, &records, &prompts, cache, cx)?;
        let tower = match config.needs_tower() {
            true => Some(tower_features(&llava, pool, kept, cache, cx)?),
            false => None,
        };
        let places = llava.config().image_tokens();
        let stage = LlmPretrain {
            dir,
            net,
            backend: self.config.run.engine,
            config,
            objective: &objective,
            images,
            annotations: &annotations,
            tower_shape: (places, tower.as_ref().map_or(0, |t| t.dim / places.max(1))),
            tower: tower.as_ref(),
            key: self.key.fold(Purpose::Pretrain, 0),
        };
        stage.run(cx)
    }

    /// What is said about the pool: its caption file's records, or its own texts as records that name no prompt.
    fn caption_records(&self, pool: &Pool) -> Result<Vec<Caption>> {
        let file = match &self.config.pool {
            PoolConfig::Folder(c) => &c.captions,
            PoolConfig::Webdataset(c) => &c.captions,
            PoolConfig::World(c) => &c.captions,
        };
        if !file.is_empty() {
            return Ok(Captions::read(&data::resolve(file)?)?.records);
        }
        let record = |(id, text): (&String, &String)| Caption {
            image: id.clone(),
            captions: vec![text.clone()],
            ..Caption::default()
        };
        Ok(pool.items.iter().flat_map(|i| i.texts.iter().map(move |t| (&i.id, t))).map(record).collect())
    }
}
