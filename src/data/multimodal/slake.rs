//! SLAKE 1.0 (Liu et al., ISBI 2021): questions in English and Chinese about radiology pictures.
//!
//! Its layout: `train.json`, `validate.json`, `test.json`, one list each, and the folder `imgs` with a folder a picture.
//! FedMLLM tests on `test.json` in both languages; English alone is `languages = "en"`, or the facet `language` of a score.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::reading::{self, Reading};
use super::vqa_rad::Row;
use super::{Metric, Multimodal, Recipe, Subset};
use crate::data::census::{Census, Why};
use crate::data::resolve;
use crate::error::Result;

/// Which questions of SLAKE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Languages {
    /// English and Chinese.
    #[default]
    Both,
    /// English.
    En,
    /// Chinese.
    Zh,
}

impl Languages {
    fn has(self, language: &str) -> bool {
        match self {
            Languages::Both => true,
            Languages::En => language == "en",
            Languages::Zh => language == "zh",
        }
    }
}

/// The SLAKE kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SlakeConfig {
    /// The folder that holds the lists and the pictures; a relative one may lie below `$FEDLLAVA_DATA`.
    pub path: String,
    /// The folder of pictures.
    pub images: String,
    /// Which questions are asked.
    pub languages: Languages,
}

impl Default for SlakeConfig {
    fn default() -> Self {
        SlakeConfig { path: "slake".into(), images: "imgs".into(), languages: Languages::Both }
    }
}

/// Reads the lists that are there; `test.json` must be.
pub fn load(config: &SlakeConfig) -> Result<Multimodal> {
    let root = resolve(&config.path)?;
    let test = reading::needed(&root, "test.json", "SLAKE is on med-vqa.com/slake")?;
    let mut sources = Vec::new();
    let mut part = |list: Option<&Path>, name: &str, train: Option<&Subset>| -> Result<Subset> {
        let Some(list) = list else { return Ok(Subset::default()) };
        let (read, mut seen) = rows(list, &root.join(&config.images), config.languages, name)?;
        train.into_iter().for_each(|train| reading::note_shared(train, &read, &mut seen));
        sources.push(seen);
        Ok(read)
    };
    let train = part(reading::file(&root, "train.json").as_deref(), "train", None)?;
    let val = part(reading::file(&root, "validate.json").as_deref(), "val", None)?;
    let test = part(Some(&test), "test", Some(&train))?;
    Ok(Multimodal {
        name: "slake".into(),
        train,
        val,
        tests: vec![test],
        options: Vec::new(),
        metric: Metric::ExactMatch,
        recipe: Recipe { seed: 41, ..Recipe::default() },
        sources,
    })
}

fn rows(list: &Path, folder: &Path, languages: Languages, part: &str) -> Result<(Subset, Census)> {
    let mut reading = Reading::new(list);
    for (place, value) in reading::records(list)? {
        let Some(value) = reading.kept(value) else { continue };
        let row = Row::read(list, &place, &value)?;
        match languages.has(&row.q_lang.text().unwrap_or_default()) {
            true => row.take(folder, &mut reading),
            false => reading.pass(Why::Language, row.id()),
        }
    }
    let (part, mut census) = reading.close(format!("slake {part}"));
    reading::join(&part, folder, &mut census)?;
    Ok((part, census))
}
