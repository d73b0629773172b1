//! VQA-RAD (Lau et al., Scientific Data 2018): questions that clinicians asked about radiology pictures.
//!
//! Its layout: `VQA_RAD Dataset Public.json`, one list, and the folder `VQA_RAD Image Folder`. It is split by question, by
//! `phrase_type`: `freeform` and `para` train, `test_freeform` and `test_para` test, so nearly every tested picture also
//! trains; that is the published protocol, and it is counted.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::reading::{self, Reading, Word};
use super::{AnswerType, Ask, Facets, Metric, Multimodal, Recipe, Sample, Subset};
use crate::data::census::Why;
use crate::data::resolve;
use crate::error::{Place, Result};

/// The VQA-RAD kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VqaRadConfig {
    /// The folder that holds the questions and the pictures; a relative one may lie below `$FEDLLAVA_DATA`.
    pub path: String,
    /// The file of questions.
    pub questions: String,
    /// The folder of pictures.
    pub images: String,
}

impl Default for VqaRadConfig {
    fn default() -> Self {
        VqaRadConfig {
            path: "vqa-rad".into(),
            questions: "VQA_RAD Dataset Public.json".into(),
            images: "VQA_RAD Image Folder".into(),
        }
    }
}

/// One question of VQA-RAD or SLAKE.
#[derive(Deserialize)]
pub(super) struct Row {
    qid: Word,
    #[serde(alias = "img_name")]
    image_name: String,
    question: Word,
    #[serde(default)]
    answer: Word,
    #[serde(default)]
    answer_type: String,
    #[serde(default)]
    pub phrase_type: String,
    #[serde(default)]
    pub q_lang: Word,
    #[serde(default)]
    question_type: Word,
    #[serde(default)]
    content_type: Word,
    #[serde(default)]
    image_organ: Word,
    #[serde(default)]
    location: Word,
    #[serde(default)]
    modality: Word,
}

impl Row {
    /// A record of `list`.
    pub fn read(list: &Path, place: &str, value: &Value) -> Result<Row> {
        reading::record(place, value).at(|| list.display().to_string())
    }

    /// Its name.
    pub fn id(&self) -> String {
        self.qid.text().unwrap_or_default()
    }

    /// Takes it as a sample whose picture lies below `folder`, or counts why not.
    pub fn take(self, folder: &Path, reading: &mut Reading) {
        let (Some(question), Some(answer)) = (self.question.text(), self.answer.text()) else {
            return reading.pass(Why::NoAnswer, self.id());
        };
        let Some(picture) = reading.picture(folder, &self.image_name) else {
            return reading.pass(Why::NoImage, &self.image_name);
        };
        if self.answer.is_number() {
            reading.note("answers that are numbers");
        }
        let answer_type = match reading.trimmed(&self.answer_type, "answer types").to_ascii_uppercase().as_str() {
            "OPEN" => Some(AnswerType::Open),
            "CLOSED" => Some(AnswerType::Closed),
            _ => {
                reading.note("neither open nor closed");
                None
            }
        };
        let more = reading::facets(&[
            ("question_type", &self.question_type),
            ("content_type", &self.content_type),
            ("organ", &self.image_organ),
            ("location", &self.location),
            ("modality", &self.modality),
            ("language", &self.q_lang),
        ]);
        let question = reading.trimmed(&question, "questions");
        let target = reading.trimmed(&answer, "answers");
        reading.take(Sample {
            id: self.id(),
            picture: Some(picture),
            text: None,
            ask: Ask::Open(question),
            target,
            label: None,
            facets: Facets { answer_type, more },
        });
    }
}

/// Reads the questions and parts them.
pub fn load(config: &VqaRadConfig) -> Result<Multimodal> {
    let root = resolve(&config.path)?;
    let list = reading::needed(&root, &config.questions, "VQA-RAD is on osf.io/89kps")?;
    let folder = root.join(&config.images);
    let (mut train, mut test) = (Reading::new(&list), Reading::new(&list));
    for (place, value) in reading::records(&list)? {
        let Some(value) = train.kept(value) else { continue };
        let row = Row::read(&list, &place, &value)?;
        match row.phrase_type.trim() {
            "freeform" | "para" => row.take(&folder, &mut train),
            "test_freeform" | "test_para" => row.take(&folder, &mut test),
            _ => train.pass(Why::Label, row.id()),
        }
    }
    let (train, mut trained) = train.close("vqa-rad train");
    let (test, mut tested) = test.close("vqa-rad test");
    trained.source += " (train)";
    tested.source += " (test)";
    reading::note_shared(&train, &test, &mut tested);
    reading::join(&train, &folder, &mut trained)?;
    reading::join(&test, &folder, &mut tested)?;
    Ok(Multimodal {
        name: "vqa-rad".into(),
        train,
        val: Subset::default(),
        tests: vec![test],
        options: Vec::new(),
        metric: Metric::ExactMatch,
        recipe: Recipe { seed: 41, ..Recipe::default() },
        sources: vec![trained, tested],
    })
}
