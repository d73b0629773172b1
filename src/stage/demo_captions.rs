//! What the demo's LLaVA says of the demo's pool, written once and shipped, and how true it is.

use std::collections::BTreeMap;
use std::path::Path;

use super::caption::{CaptionConfig, Captioned, Judges, caption_with};
use super::demo_llava::INSTRUCTION;
use crate::data::captions::{Caption, Captions};
use crate::data::world::{Agreement, Attribute, World, agreement};
use crate::error::Result;
use crate::exec::Context;
use crate::mllm::captioner::LlavaCaptioner;
use crate::mllm::filter::FilterConfig;
use crate::model::llava::Llava;
use crate::model::sample::Decoding;

/// Longest answer, in tokens; the world's longest caption has 19 words.
const LONGEST: usize = 24;

/// Lets the LLaVA in `llava` describe `world`'s pool and writes what the filters keep to `file`, with the digest of
/// each image and the model's revision. Answers gather in a folder of `work` that names the model, so that a stopped
/// call goes on.
pub fn recaption(world: &World, llava: &Path, file: &Path, work: &Path, cx: &Context) -> Result<Captioned> {
    let model = Llava::open(llava, cx)?;
    let folder = work.join(format!("captions-{:.12}", model.revision()?));
    let name = llava.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let captioner = LlavaCaptioner::new(model, &name, Decoding::greedy(LONGEST), 0)?;
    let config = CaptionConfig {
        prompts: vec![INSTRUCTION.into()],
        batch_size: 32,
        filter: FilterConfig { min_similarity: -1.0, ..FilterConfig::default() },
        ..CaptionConfig::default()
    };
    let done = caption_with(&captioner, &config, &world.open_pool(false)?, Judges::default(), &folder, cx)?;
    let short = |r: Caption| Caption {
        decoding: None,
        more: BTreeMap::new(),
        revision: r.revision.map(|v| v.chars().take(12).collect()),
        ..r
    };
    let kept = Captions::read(&folder.join("kept.jsonl"))?.records;
    Captions::save(&kept.into_iter().map(short).collect::<Vec<_>>(), file)?;
    Ok(done)
}

/// How captions agree with the truth about the pool's pictures.
pub struct Judged {
    /// Captions that are about a picture of the pool.
    pub captions: usize,
    /// Number, colour, texture and shape together.
    pub all: Agreement,
    /// Each of them.
    pub each: Vec<(Attribute, Agreement)>,
    /// Some pictures: id, what is true, what is said.
    pub samples: Vec<(String, String, String)>,
}

/// Reads a caption file of `world`'s pool against the truth.
pub fn judge(world: &World, file: &Path, samples: usize) -> Result<Judged> {
    let truth = world.pool_truth(world.config().pool_images);
    let records = Captions::read(file)?.records;
    let number = |id: &str| id.strip_prefix("world-").and_then(|n| n.parse::<usize>().ok());
    let found: Vec<_> =
        records.iter().filter_map(|r| Some((r, truth.get(number(&r.image)?)?, r.captions.first()?.as_str()))).collect();
    let (all, each) = agreement(found.iter().map(|(_, truth, text)| (*text, *truth)));
    let sample = |(record, truth, text): &(&Caption, &crate::data::world::Attributes, &str)| {
        let what = format!("{} × {}", truth.count, truth.composition.name());
        (record.image.clone(), what, text.to_string())
    };
    Ok(Judged { captions: found.len(), all, each, samples: found.iter().take(samples).map(sample).collect() })
}
