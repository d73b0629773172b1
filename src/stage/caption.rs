//! A pool becomes annotations: a multimodal model looks at every image and writes; filters keep what is worth it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::embed::Embedder;
use crate::data::Pictures;
use crate::data::captions::{Caption, Captions};
use crate::data::pool::Pool;
use crate::error::{Error, Place, Result};
use crate::exec::Context;
use crate::mllm::captioner::{self, Captioner, CaptionerConfig};
use crate::mllm::filter::{self, Dropped, Evidence, FilterConfig};
use crate::mllm::{Captioning, Instruction, Report, journal};

/// The `caption` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CaptionConfig {
    /// Who answers.
    pub captioner: CaptionerConfig,
    /// What is asked about each image: `conversation`, `detail`, `reasoning`, or text files.
    pub prompts: Vec<String>,
    /// Images answered side by side.
    pub batch_size: usize,
    /// Only so many images, in the pool's order; 0: all.
    pub limit: usize,
    /// What is kept.
    pub filter: FilterConfig,
}

impl Default for CaptionConfig {
    fn default() -> Self {
        CaptionConfig {
            captioner: CaptionerConfig::default(),
            prompts: vec!["conversation".into(), "detail".into(), "reasoning".into()],
            batch_size: 16,
            limit: 0,
            filter: FilterConfig::default(),
        }
    }
}

impl CaptionConfig {
    /// Refuses values that no pool could make right.
    pub fn check(&self) -> Result<()> {
        if self.batch_size == 0 {
            return Err(Error::input("caption.batch_size = 0: expected at least 1"));
        }
        Instruction::find_all(&self.prompts).at(|| "caption.prompts")?;
        match &self.captioner {
            CaptionerConfig::Llava(c) => c.decoding.check().at(|| "caption.captioner.decoding"),
            CaptionerConfig::File(_) => Ok(()),
        }
    }
}

/// What the filters may look at besides the records.
#[derive(Clone, Copy, Default)]
pub struct Judges<'a> {
    /// Test images, none of which may be in the pool.
    pub test: Option<&'a Pictures>,
    /// A CLIP that says whether image and text go together.
    pub clip: Option<&'a Embedder>,
}

/// What the stage did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Captioned {
    /// Writing.
    pub report: Report,
    /// Filtering.
    pub dropped: Dropped,
}

/// Writes `captions.jsonl` (every answer, resumable) and `kept.jsonl` (those that passed the filters) in `folder`.
pub fn caption(
    config: &CaptionConfig,
    pool: &Pool,
    judges: Judges,
    folder: &Path,
    seed: u64,
    cx: &Context,
) -> Result<Captioned> {
    let captioner = captioner::open(&config.captioner, seed, cx).at(|| "caption.captioner")?;
    caption_with(captioner.as_ref(), config, pool, judges, folder, cx)
}

/// As [`caption`], with a captioner that is open already.
pub fn caption_with(
    captioner: &dyn Captioner,
    config: &CaptionConfig,
    pool: &Pool,
    judges: Judges,
    folder: &Path,
    cx: &Context,
) -> Result<Captioned> {
    let prompts = Instruction::find_all(&config.prompts).at(|| "caption.prompts")?;
    let path = folder.join("captions.jsonl");
    let work = Captioning { pool, captioner, prompts: &prompts, batch_size: config.batch_size, limit: config.limit };
    let report = work.run(&path, cx)?;
    let records = in_order(journal::read(&path)?, pool, &prompts);
    let mut evidence = evidence(&config.filter, pool, judges, &records, cx)?;
    evidence.undecodable.extend(report.undecodable.iter().map(|(id, _)| id.clone()));
    let (kept, mut dropped) = filter::apply(&config.filter, records, &evidence)?;
    // Images that could not be decoded have no record to drop.
    for (id, _) in &report.undecodable {
        dropped.note(filter::Reason::Undecodable, id);
    }
    Captions::save(&kept, &folder.join("kept.jsonl"))?;
    Ok(Captioned { report, dropped })
}

/// Records by the pool's order, then by the prompts': the file's order says how it was written, not what it says.
fn in_order(mut records: Vec<Caption>, pool: &Pool, prompts: &[Instruction]) -> Vec<Caption> {
    let place: BTreeMap<&str, usize> = pool.items.iter().enumerate().map(|(i, item)| (item.id.as_str(), i)).collect();
    let asked = |r: &Caption| prompts.iter().position(|p| Some(&p.id) == r.prompt.as_ref());
    records.sort_by_cached_key(|r| (place.get(r.image.as_str()).copied(), asked(r), r.prompt.clone()));
    records
}

fn evidence(config: &FilterConfig, pool: &Pool, judges: Judges, records: &[Caption], cx: &Context) -> Result<Evidence> {
    let mut evidence = Evidence::default();
    if let Some(test) = judges.test {
        evidence.near_test = filter::near_test(pool, test, config, cx)?;
    }
    if let Some(clip) = judges.clip
        && config.min_similarity > -1.0
        && !records.is_empty()
    {
        evidence.similarity = Some(similarity(clip, pool, records, cx)?);
    }
    Ok(evidence)
}

/// Cosines of CLIP's features of each record's image and text, `(records,)`.
fn similarity(clip: &Embedder, pool: &Pool, records: &[Caption], cx: &Context) -> Result<Vec<f32>> {
    let place: BTreeMap<&str, u32> = pool.items.iter().zip(0u32..).map(|(item, i)| (item.id.as_str(), i)).collect();
    let of = |record: &Caption| {
        let stranger = || Error::data(format!("pool {} has no image {}", pool.name, record.image));
        place.get(record.image.as_str()).copied().ok_or_else(stranger)
    };
    let items: Vec<u32> = records.iter().map(of).collect::<Result<_>>()?;
    let distinct: Vec<u32> = items.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    let images = clip.pool_features(pool, &distinct, cx)?;
    let texts: Vec<String> = records.iter().map(filter::text_of).collect();
    let texts = clip.texts(&texts, cx)?;
    let cosine = |(record, item): (usize, &u32)| {
        let row = distinct.binary_search(item).unwrap_or(0);
        images.row(row).iter().zip(texts.row(record)).map(|(a, b)| a * b).sum()
    };
    Ok(items.iter().enumerate().map(cosine).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Images;
    use crate::data::pool::{Item, Source};
    use crate::mllm::{Answer, Identity, Seen};
    use std::sync::Arc;

    /// Says what colour an image has, where it is not black.
    struct Painter(Identity);

    impl Captioner for Painter {
        fn identity(&self) -> &Identity {
            &self.0
        }

        fn answers(&self, images: &[Seen], _: &Instruction, _: &Context) -> Result<Vec<Option<Answer>>> {
            let answer = |s: &Seen| {
                let text = match s.picture.pixels[0] {
                    0 => String::new(),
                    level => format!("A plain grey of level {level}."),
                };
                Some(Answer { text, ended: true })
            };
            Ok(images.iter().map(answer).collect())
        }
    }

    #[test]
    fn every_answer_is_kept_but_those_the_filters_name() {
        let side = 8;
        let noise = |seed: usize| (0..3 * side * side).map(move |i| (seed * 37 + i * i * seed + i * 11) as u8 | 1);
        let mut pixels: Vec<u8> = (1..4).flat_map(noise).collect();
        pixels.extend(vec![0; 3 * side * side]);
        let images = Arc::new(Images::new([3, side, side], pixels).unwrap());
        let item = |i: usize| Item { id: format!("i{i}"), texts: vec![], source: Source::Pixels(images.clone(), i) };
        let mut items: Vec<Item> = (0..4).map(item).collect();
        items.push(Item { id: "torn".into(), texts: vec![], source: Source::File("no such file.png".into()) });
        let pool = Pool::new("p", items, false).unwrap();
        let test: Pictures = images.select(&[1]).into();
        let dir = tempfile::tempdir().unwrap();
        let painter =
            Painter(Identity { model: "painter".into(), revision: "1".into(), decoding: serde_json::Value::Null });
        let config = CaptionConfig { prompts: vec!["detail".into()], batch_size: 2, ..CaptionConfig::default() };
        let judges = Judges { test: Some(&test), clip: None };
        let run = || caption_with(&painter, &config, &pool, judges, dir.path(), &Context::cpu(2)).unwrap();
        let done = run();
        let dropped = [(filter::Reason::Undecodable, 1), (filter::Reason::Short, 1), (filter::Reason::NearTest, 1)];
        assert_eq!(done.dropped.dropped, BTreeMap::from(dropped));
        assert_eq!((done.report.written, done.report.records, done.dropped.kept), (4, 4, 2));
        let kept = Captions::read(&dir.path().join("kept.jsonl")).unwrap().records;
        assert_eq!(kept.iter().map(|r| r.image.as_str()).collect::<Vec<_>>(), ["i0", "i2"]);
        assert_eq!(kept[0].digest, Some(crate::fsx::sha256(images.get(0))));
        let again = run();
        assert_eq!((again.report.written, again.dropped), (0, done.dropped));
    }
}
