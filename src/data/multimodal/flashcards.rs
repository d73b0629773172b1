//! Questions and answers without pictures, in the form of MedAlpaca's Medical Meadow (Han et al., 2023): one JSON list of
//! `instruction`, `input` and `output`.
//!
//! FedMLLM's text clients train on its `medical_meadow_medical_flashcards`: `input` is the question, `output` the answer,
//! and `instruction` is dropped. A file of another name is read alike and keeps its own name in every table.

use std::collections::BTreeSet;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::reading::{self, Reading};
use super::{Ask, Facets, Metric, Multimodal, Recipe, Sample, Subset};
use crate::data::census::Why;
use crate::data::resolve;
use crate::error::{Place, Result};

/// The flashcards kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FlashcardsConfig {
    /// The file, gzipped or not; a relative one may lie below `$FEDLLAVA_DATA`.
    pub path: String,
}

impl Default for FlashcardsConfig {
    fn default() -> Self {
        FlashcardsConfig { path: "medalpaca/medical_meadow_wikidoc_medical_flashcards.json".into() }
    }
}

#[derive(Deserialize)]
struct Row {
    input: Option<String>,
    output: Option<String>,
}

/// Reads the file.
pub fn load(config: &FlashcardsConfig) -> Result<Multimodal> {
    let list = resolve(&config.path)?;
    let name = stem(&list);
    let (mut reading, mut met) = (Reading::new(&list), BTreeSet::new());
    for (n, (place, value)) in reading::records(&list)?.into_iter().enumerate() {
        let Some(value) = reading.kept(value) else { continue };
        let row: Row = reading::record(&place, &value).at(|| list.display().to_string())?;
        let (Some(question), Some(target)) = (row.input, row.output) else {
            reading.pass(Why::NoAnswer, place);
            continue;
        };
        let question = reading.trimmed(&question, "questions");
        let target = reading.trimmed(&target, "answers");
        if question.is_empty() || target.is_empty() {
            reading.note("with an empty question or answer");
        }
        if !met.insert((question.clone(), target.clone())) {
            reading.note("that say again what another says");
        }
        reading.take(Sample {
            id: format!("{name}-{n:06}"),
            picture: None,
            text: None,
            ask: Ask::Open(question),
            target,
            label: None,
            facets: Facets::default(),
        });
    }
    let (train, seen) = reading.close(format!("{name} train"));
    Ok(Multimodal {
        name,
        train,
        val: Subset::default(),
        tests: Vec::new(),
        options: Vec::new(),
        metric: Metric::ExactMatch,
        recipe: Recipe { seed: 41, ..Recipe::default() },
        sources: vec![seen],
    })
}

/// A file's name without its endings.
fn stem(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    name.trim_end_matches(".gz").trim_end_matches(".json").to_string()
}
