//! Stage 1 of a run: the pool, its features, the pretrained body.

use std::sync::Arc;

use serde_json::json;

use super::Experiment;
use crate::data::pool::Pool;
use crate::data::{self, Dataset, Order, PoolConfig, overlap};
use crate::error::{Error, Result};
use crate::exec::{Context, Event};
use crate::key::Purpose;
use crate::model::Head;
use crate::model::clip::zeroshot::ZeroShot;
use crate::nn::{Net, Params};
use crate::run::{RunDir, Shelf};
use crate::stage::Loaded;
use crate::stage::metrics::Evaluation;
use crate::stage::pretrain::{PoolFeatures, Pretext, Pretrain};

/// The pretrained network and what it can do.
pub struct Pretrained {
    /// Body and projection.
    pub net: Arc<Net>,
    /// Their parameters.
    pub params: Params,
    /// Zero-shot over the class names; none after pretraining through a language model, which trains no projection to
    /// CLIP's text space.
    pub evaluation: Option<Evaluation>,
    pub(super) zero_shot: ZeroShot,
    /// Mean length of the projected features.
    pub(super) norm: f64,
    /// Images of the pool.
    pub images: usize,
}

impl Experiment {
    /// Runs stage 1, or reads it back.
    pub fn pretrain(&self, dir: &RunDir, cx: &Context) -> Result<Pretrained> {
        let shape = self.benchmark.train.images.shape();
        let width = self.embedder.width(cx)?;
        let net = Arc::new(self.config.model.build(shape, Head::Projection(width))?);
        let finished = dir.finished("pretrain", &net.layout)?.is_some();
        // A finished one that waits to be kept: its process was killed before it could.
        let shelf = if finished && !Shelf::awaits(dir, "pretrain") { None } else { self.pretrain_shelf(cx)? };
        if !finished && !shelf.as_ref().map_or(Ok(false), |s| s.give(dir, &*cx.events))? {
            shelf.as_ref().map_or(Ok(()), |s| s.begin(dir))?;
            self.pretrain_on_pool(dir, &net, cx)?;
        }
        shelf.map_or_else(|| Shelf::forget(dir, "pretrain"), |s| s.keep(dir, &["pool"]))?;
        let done = dir.finished("pretrain", &net.layout)?;
        let (params, done) = done.ok_or_else(|| Error::defect("pretraining left no model"))?;
        let norm = done.facts["norm"].as_f64().filter(|n| *n > 0.0).unwrap_or(1.0);
        let zero_shot = self.embedder.zero_shot(&self.benchmark.train.classes, cx)?;
        let evaluation = match self.config.pretrain.objective {
            Pretext::Contrast => Some(self.judge().projection(&net, &params, &zero_shot, cx)?),
            Pretext::Llm => None,
        };
        let images = done.facts["images"].as_u64().unwrap_or(0) as usize;
        Ok(Pretrained { net, params, evaluation, zero_shot, norm, images })
    }

    fn pretrain_on_pool(&self, dir: &RunDir, net: &Arc<Net>, cx: &Context) -> Result<Params> {
        let pool = self.open_pool(cx)?;
        self.prove_pool(dir, "pool", &pool, cx)?;
        let captioned: Vec<u32> =
            (0..pool.len() as u32).filter(|&i| !pool.items[i as usize].texts.is_empty()).collect();
        if captioned.is_empty() {
            return Err(Error::input(format!("pool {}: no image has a caption", pool.name))
                .hint("name a caption file with pool.captions, or a text field with pool.text"));
        }
        let decoded = pool.like(&self.benchmark.train.images, &captioned, cx)?;
        self.enter(&decoded.census(&pool.name), cx)?;
        let (texts, captions) = captions_of(&pool, &decoded.kept);
        self.describe_pool(dir, &pool, &decoded.images, &texts, cx)?;
        let (n, kept) = (decoded.images.len(), decoded.kept);
        let data = Dataset::new("pool", decoded.images, vec![0; n], vec!["pool".into()], Order::Original)?;
        let images = Loaded { data: &data, loader: &self.loader };
        if self.config.pretrain.objective == Pretext::Llm {
            return self.pretrain_through_llm(dir, net, &pool, &kept, &images, cx);
        }
        let text = self.embedder.texts(&texts, cx)?;
        let image = match self.embedder.sees() {
            true => Some(self.embedder.pool_features(&pool, &kept, cx)?),
            false => None,
        };
        let features = PoolFeatures {
            images: &images,
            len: n,
            captions: &captions,
            text: &text.data,
            image: image.as_ref().map(|f| f.data.as_slice()),
        };
        let key = self.key.fold(Purpose::Pretrain, 0);
        let (backend, config) = (self.config.run.engine, &self.config.pretrain);
        Pretrain { dir, net, backend, config, pool: features, key }.run(cx)
    }

    /// Fills the caches that the stages read: the pool's images and texts, the server set's images, class texts.
    pub fn embed(&self, cx: &Context) -> Result<serde_json::Value> {
        let mut facts = serde_json::Map::new();
        facts.insert("clip".into(), json!(self.embedder.digest(cx)?));
        facts.insert("width".into(), json!(self.embedder.width(cx)?));
        if self.config.pretrain.enabled {
            let pool = self.open_pool(cx)?;
            let all: Vec<u32> = (0..pool.len() as u32).collect();
            let decoded = pool.like(&self.benchmark.train.images, &all, cx)?;
            self.enter(&decoded.census(&pool.name), cx)?;
            let kept = decoded.kept;
            let (texts, _) = captions_of(&pool, &kept);
            facts.insert("pool_texts".into(), json!(self.embedder.texts(&texts, cx)?.rows()));
            if self.embedder.sees() {
                facts.insert("pool_images".into(), json!(self.embedder.pool_features(&pool, &kept, cx)?.rows()));
            }
        }
        let (data, set) = self.server_set();
        if self.config.align.enabled && !set.is_empty() {
            let q = crate::stage::teach::distributions(&self.config.teacher, data, &set, &self.embedder, cx)?;
            facts.insert("server_images".into(), json!(q.len() / data.classes.len()));
        }
        Ok(facts.into())
    }

    /// The pool of the config; the procedural world has its own.
    pub fn open_pool(&self, cx: &Context) -> Result<Pool> {
        self.pool_of(&self.config.pool, cx)
    }

    /// A pool, and what was seen of it said.
    pub(super) fn pool_of(&self, section: &PoolConfig, cx: &Context) -> Result<Pool> {
        let pool = super::captioning::open_pool(section, &self.config.data, cx)?;
        pool.census.iter().try_for_each(|c| self.enter(c, cx))?;
        Ok(pool)
    }

    /// Says what the pool is: duplicates with the benchmark, coverage of its classes, supervision.
    fn describe_pool(
        &self,
        dir: &RunDir,
        pool: &Pool,
        images: &data::Pictures,
        texts: &[String],
        cx: &Context,
    ) -> Result<()> {
        let classes = &self.benchmark.train.classes;
        let coverage = overlap::coverage(classes, texts.iter().map(String::as_str));
        let named = coverage.iter().filter(|&&n| n > 0).count();
        let (n, m) = (images.len(), classes.len());
        cx.events.on(Event::Note(&format!("pool {}: {n} images; captions name {named} of {m} classes", pool.name)));
        if pool.supervised {
            cx.events.on(Event::Warning("the pool's texts are human class labels: this is supervised pretraining"));
        }
        if self.config.evaluate.overlaps {
            dir.write_json("overlaps.json", &self.overlaps(&[("pool", images)], cx)?)?;
        }
        let coverage: Vec<_> =
            classes.iter().zip(coverage).map(|(c, n)| json!({ "class": c, "captions": n })).collect();
        let facts = json!({ "images": n, "supervised": pool.supervised, "coverage": coverage,
            "captions_digest": pool.captions_digest, "clip": self.embedder.digest(cx)? });
        dir.update_manifest(&[("pool", facts), ("sources", self.ledger.to_json())].into())
    }
}

/// All texts of the kept items, and where each item's are.
fn captions_of(pool: &Pool, kept: &[u32]) -> (Vec<String>, Vec<(usize, usize)>) {
    let (mut texts, mut places) = (Vec::new(), Vec::with_capacity(kept.len()));
    for &i in kept {
        let own = &pool.items[i as usize].texts;
        places.push((texts.len(), own.len()));
        texts.extend(own.iter().cloned());
    }
    (texts, places)
}
