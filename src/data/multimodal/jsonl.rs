//! One's own multimodal set: one record a line (or one JSON list), and a folder of pictures.
//!
//! ```json
//! {"id": "17", "image": "a/17.png", "text": "…", "question": "…?", "options": ["yes", "no"], "answer": "B"}
//! {"id": "18", "image": null, "question": "What is a star?", "answer": "A ball of gas.", "answer_type": "OPEN"}
//! {"id": "19", "image": "b.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "…"}]}
//! ```
//!
//! `question` and `options` may stand in the config, for all. Of a choice, `answer` is a letter, an option's words, or
//! `label` its number. LLaVA's and FedMLLM's files are the third form: see [`conversations`](super::conversations).

use std::path::Path;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::reading::{self, Reading, Word};
use super::{AnswerType, Ask, Choice, Facets, Metric, Multimodal, Recipe, Sample, Subset, conversations};
use crate::data::census::{Census, Why};
use crate::data::resolve;
use crate::error::{Error, Place, Result};

/// One's own files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JsonlConfig {
    /// The folder that holds the files; a relative one may lie below `$FEDLLAVA_DATA`.
    pub path: String,
    /// The file of training records.
    pub train: String,
    /// The file of validation records; none where it is not there.
    pub val: String,
    /// The file of test records; none where it is not there.
    pub test: String,
    /// The folder below `path` to which pictures' names are relative.
    pub images: String,
    /// The question of records that have none.
    pub question: String,
    /// The options of records that have none, at most 26; empty for open questions.
    pub options: Vec<String>,
}

impl Default for JsonlConfig {
    fn default() -> Self {
        let file = |part: &str| format!("{part}.jsonl");
        JsonlConfig {
            path: "multimodal".into(),
            train: file("train"),
            val: file("val"),
            test: file("test"),
            images: String::new(),
            question: String::new(),
            options: Vec::new(),
        }
    }
}

#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    id: Word,
    #[serde(default)]
    image: Value,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    question: Option<String>,
    #[serde(default)]
    options: Option<Vec<String>>,
    #[serde(default)]
    answer: Word,
    #[serde(default)]
    label: Option<u32>,
    #[serde(default)]
    answer_type: String,
    #[serde(default)]
    conversations: Option<Value>,
}

impl JsonlConfig {
    /// Refuses options that letters cannot name.
    pub fn check(&self, section: &str) -> Result<()> {
        match self.options.len() {
            1 | 27.. => {
                Err(Error::input(format!("{section}.options: {} of them; choose 2 to 26, or none", self.options.len())))
            }
            _ => Ok(()),
        }
    }
}

/// Reads the files.
pub fn load(config: &JsonlConfig) -> Result<Multimodal> {
    let root = resolve(&config.path)?;
    let mut sources = Vec::new();
    let mut part = |list: Option<&Path>, name: &str| -> Result<Subset> {
        let Some(list) = list else { return Ok(Subset::default()) };
        let (read, seen) =
            File { config, folder: root.join(&config.images), reading: Reading::new(list) }.read(list, name)?;
        sources.push(seen);
        Ok(read)
    };
    let train = part(Some(&reading::needed(&root, &config.train, "name the training file")?), "train")?;
    let val = part(reading::file(&root, &config.val).as_deref(), "val")?;
    let test = part(reading::file(&root, &config.test).as_deref(), "test")?;
    if let Some(seen) = sources.last_mut().filter(|_| !test.samples.is_empty()) {
        reading::note_shared(&train, &test, seen);
    }
    let options = options(&train);
    let metric = match options.len() {
        0 => Metric::ExactMatch,
        2 => Metric::Auc,
        _ => Metric::Accuracy,
    };
    let (name, tests) = (config.path.clone(), if test.samples.is_empty() { Vec::new() } else { vec![test] });
    Ok(Multimodal { name, train, val, tests, options, metric, recipe: Recipe::default(), sources })
}

/// The options where all samples have the same ones.
fn options(part: &Subset) -> Vec<String> {
    let of = |s: &Sample| match &s.ask {
        Ask::Choice(choice) => choice.options.clone(),
        Ask::Open(_) => Vec::new(),
    };
    let first = part.samples.first().map(of).unwrap_or_default();
    if part.samples.iter().all(|s| of(s) == first) { first } else { Vec::new() }
}

struct File<'a> {
    config: &'a JsonlConfig,
    folder: std::path::PathBuf,
    reading: Reading,
}

impl File<'_> {
    fn read(mut self, list: &Path, part: &str) -> Result<(Subset, Census)> {
        for (n, (place, value)) in reading::records(list)?.into_iter().enumerate() {
            let Some(value) = self.reading.kept(value) else { continue };
            let row: Row = reading::record(&place, &value).at(|| list.display().to_string())?;
            let id = row.id.text().unwrap_or_else(|| format!("{part}-{n:06}"));
            self.row(row, id).at(|| place).at(|| list.display().to_string())?;
        }
        Ok(self.reading.close(format!("{} {part}", self.config.path)))
    }

    fn row(&mut self, row: Row, id: String) -> Result<()> {
        let picture = match &row.image {
            Value::Null => Ok(None),
            Value::String(name) if name.is_empty() => Ok(None),
            Value::String(name) => self.reading.picture(&self.folder, name).map(Some).ok_or((Why::NoImage, name)),
            Value::Array(_) => Err((Why::Several, &id)),
            _ => return Err(Error::data("image is neither a text nor null")),
        };
        let picture = match picture {
            Ok(picture) => picture,
            Err((why, name)) => {
                self.reading.pass(why, name);
                return Ok(());
            }
        };
        let answer_type = match row.answer_type.trim().to_ascii_uppercase().as_str() {
            "OPEN" => Some(AnswerType::Open),
            "CLOSED" => Some(AnswerType::Closed),
            _ => None,
        };
        let facets = Facets { answer_type, ..Facets::default() };
        let blank = Sample {
            id,
            picture,
            text: row.text.clone(),
            ask: Ask::Open(String::new()),
            target: String::new(),
            label: None,
            facets,
        };
        match &row.conversations {
            Some(talk) => self.talk(&blank, conversations::turns(talk)?),
            None => self.asked(blank, row),
        }
        Ok(())
    }

    /// Each answer of a conversation, as a sample.
    fn talk(&mut self, blank: &Sample, turns: Vec<(String, String)>) {
        if turns.is_empty() {
            self.reading.pass(Why::NoAnswer, blank.id.clone());
        }
        for (n, (question, target)) in turns.into_iter().enumerate() {
            let id = if n == 0 { blank.id.clone() } else { format!("{}#{}", blank.id, n + 1) };
            if n > 0 {
                self.reading.note("later turns, without what was said before them");
            }
            self.reading.take(Sample { id, ask: Ask::Open(question), target, ..blank.clone() });
        }
    }

    /// A question with its answer.
    fn asked(&mut self, blank: Sample, row: Row) {
        let question = row.question.unwrap_or_else(|| self.config.question.clone());
        let options = row.options.unwrap_or_else(|| self.config.options.clone());
        let answer = row.answer.text().map(|a| a.trim().to_string());
        if options.is_empty() {
            return match answer.filter(|a| !a.is_empty()) {
                Some(target) => self.reading.take(Sample { ask: Ask::Open(question), target, ..blank }),
                None => self.reading.pass(Why::NoAnswer, blank.id),
            };
        }
        if options.len() > 26 {
            return self.reading.pass(Why::Label, blank.id);
        }
        let right = row.label.map(|l| l as usize).or_else(|| position(answer.as_deref()?, &options));
        let Some((at, target)) = right.and_then(|at| Some((at, options.get(at)?.clone()))) else {
            return self.reading.pass(Why::Label, blank.id);
        };
        let ask = Ask::Choice(Arc::new(Choice { question, options, image_first: false }));
        self.reading.take(Sample { ask, target, label: Some(at as u32), ..blank });
    }
}

/// Which option an answer means: by its words, or by its letter, in brackets or not.
fn position(answer: &str, options: &[String]) -> Option<usize> {
    let letter = || {
        let bare = answer.trim_matches(|c| "()".contains(c));
        (0..options.len().min(26)).find(|&i| bare.len() == 1 && bare.starts_with(Choice::letter(i)))
    };
    options.iter().position(|o| o == answer).or_else(letter)
}
