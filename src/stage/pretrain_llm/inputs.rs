//! What pretraining through a language model reads: annotations as tokens, and the tower's features, cached.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::DType;

use super::tokens;
use crate::data::captions::Caption;
use crate::data::decode;
use crate::data::features::Features;
use crate::data::pool::Pool;
use crate::error::{Error, Place, Result};
use crate::exec::{Context, Event, ordered};
use crate::mllm::Instruction;
use crate::mllm::caption_loss::Sample;
use crate::mllm::filter::text_of;
use crate::model::clip::Picture;
use crate::model::llava::Llava;

/// Annotations of each of the pool's items `kept`, `(kept,)`, as the language model reads them: each record answers
/// the prompt that it names, or the first of `prompts`. An item without one is an error: it has nothing to teach.
pub fn annotations(
    llava: &Llava,
    pool: &Pool,
    kept: &[u32],
    records: &[Caption],
    prompts: &[Instruction],
) -> Result<Vec<Vec<Sample>>> {
    let one = |(id, records): (&str, Vec<&Caption>)| {
        let sample = |record: &&Caption| llava.sample(&asked(record, prompts)?.text, &text_of(record));
        let samples: Vec<Sample> = records.iter().map(sample).collect::<Result<_>>().at(|| format!("image {id}"))?;
        match samples.is_empty() {
            true => Err(Error::data(format!("image {id} has no annotation"))),
            false => Ok(samples),
        }
    };
    by_item(pool, kept, records).into_iter().map(one).collect()
}

/// The id of each of the items `kept`, and the records about it: by its id, or by a name whose stem is its id.
fn by_item<'a>(pool: &'a Pool, kept: &[u32], records: &'a [Caption]) -> Vec<(&'a str, Vec<&'a Caption>)> {
    let mut named: BTreeMap<&str, Vec<&Caption>> = BTreeMap::new();
    let ids: BTreeSet<&str> = pool.items.iter().map(|item| item.id.as_str()).collect();
    for record in records {
        let stem = record.image.rsplit_once('.').map_or(record.image.as_str(), |(stem, _)| stem);
        let name = if ids.contains(record.image.as_str()) { record.image.as_str() } else { stem };
        named.entry(name).or_default().push(record);
    }
    let one = |&i: &u32| {
        let id = pool.items.get(i as usize).map_or("", |item| item.id.as_str());
        (id, named.get(id).cloned().unwrap_or_default())
    };
    kept.iter().map(one).collect()
}

/// As [`annotations`], read from `folder` where the same model has cut the same texts before.
pub fn cached_annotations(
    llava: &Llava,
    pool: &Pool,
    kept: &[u32],
    records: &[Caption],
    prompts: &[Instruction],
    folder: &Path,
    cx: &Context,
) -> Result<Vec<Vec<Sample>>> {
    let model = llava.revision()?;
    let mut made_of = model.clone();
    for (id, records) in by_item(pool, kept, records) {
        made_of += &format!("\n{id}");
        for record in records {
            let prompt = asked(record, prompts)?;
            made_of += &format!("\t{} {}", prompt.digest, crate::fsx::sha256(text_of(record).as_bytes()));
        }
    }
    let digest = crate::fsx::sha256(made_of.as_bytes());
    let path = folder.join(format!("tokens-{model:.12}-{digest:.12}.safetensors"));
    if path.exists() {
        match tokens::load(&path, &digest) {
            Ok(kept) => return Ok(kept),
            Err(e) => cx.events.on(Event::Warning(&format!("{}: made again", e.message()))),
        }
    }
    let made = annotations(llava, pool, kept, records, prompts)?;
    tokens::save(&made, &path, &digest)?;
    Ok(made)
}

/// The prompt that a record answers.
fn asked<'p>(record: &Caption, prompts: &'p [Instruction]) -> Result<&'p Instruction> {
    let named = |p: &&Instruction| record.prompt.as_ref().is_none_or(|id| *id == p.id);
    let Some(prompt) = prompts.iter().find(named) else {
        let ids: Vec<&str> = prompts.iter().map(|p| p.id.as_str()).collect();
        return Err(Error::data(format!(
            "a caption answers prompt {:?}",
            record.prompt.as_deref().unwrap_or_default()
        ))
        .hint(format!("the prompts are {}", ids.join(", "))));
    };
    if record.more.get("prompt_digest").is_some_and(|d| d.as_str() != Some(&prompt.digest)) {
        return Err(Error::data(format!("the captions were made with another text of prompt {}", prompt.id)));
    }
    Ok(prompt)
}

/// What LLaVA's tower sees in the pool's items `kept`: rows of `places · width`, computed once and cached in `folder`
/// under the model's and the images' digests.
pub fn tower_features(llava: &Llava, pool: &Pool, kept: &[u32], folder: &Path, cx: &Context) -> Result<Features> {
    const CHUNK: usize = 8;
    let model = llava.revision()?;
    let digests = pool.seen_digests(cx)?;
    let items: Vec<String> = kept.iter().map(|&i| digests[i as usize].clone()).collect();
    let all = crate::fsx::sha256(items.join("\n").as_bytes());
    let path = folder.join(format!("tower-{model:.12}-{all:.12}.safetensors"));
    if let Some(kept) = Features::kept(&path, &model, &items, &*cx.events) {
        return Ok(kept);
    }
    let chunk = |_: &mut (), n: usize| -> Result<Vec<f32>> {
        cx.cancel.check()?;
        let mut pictures = Vec::new();
        for &i in kept.iter().skip(n * CHUNK).take(CHUNK) {
            let image = pool.rgb(i as usize)?;
            let mut planes = Vec::new();
            decode::planes(&image, &mut planes);
            let (height, width) = (image.height() as usize, image.width() as usize);
            pictures.push(Picture { height, width, pixels: planes.into() });
        }
        let pixels = llava.preprocess().batch(&pictures, llava.device())?;
        Ok(llava.tower_features(&pixels)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    };
    let (mut data, total) = (Vec::new(), kept.len().div_ceil(CHUNK));
    cx.events.on(Event::Begin { name: "tower features", unit: "image", done: 0, total: kept.len() as u64 });
    let workers = if cx.device.is_cpu() { cx.threads } else { 1 };
    let fold = |n: usize, rows: Vec<f32>| {
        data.extend(rows);
        cx.events.on(Event::Advance { done: ((n + 1) * CHUNK).min(kept.len()) as u64, figures: &[] });
        Ok(())
    };
    ordered(workers, total, 2 * workers, |_| Ok(()), chunk, fold)?;
    cx.events.on(Event::End);
    let dim = data.len() / kept.len().max(1);
    let ids = kept.iter().map(|&i| pool.items[i as usize].id.clone()).collect();
    let features = Features { dim, ids, digests: items, data, model };
    features.save(&path)?;
    Ok(features)
}
