//! Hateful-Memes (Kiela et al., NeurIPS 2020): memes, hateful by what picture and text say together.
//!
//! Its layout: JSON lines of `id`, `img` (a path below the folder), `label` (0 or 1) and `text`; `test_seen.jsonl` is what
//! FedMLLM tests on. Files of ids and labels alone are read too, to draw who would hold what; nothing trains on them.

use std::path::Path;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::reading::{self, Reading, Word};
use super::{Ask, Choice, Facets, Metric, Multimodal, Recipe, Sample, Subset};
use crate::data::census::{Census, Why};
use crate::data::resolve;
use crate::error::{Place, Result};

/// The Hateful-Memes kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HatefulMemesConfig {
    /// The folder that holds the lists and `img`; a relative one may lie below `$FEDLLAVA_DATA`.
    pub path: String,
    /// The training list.
    pub train: String,
    /// The validation list; none where it is not there.
    pub val: String,
    /// The test list.
    pub test: String,
}

impl Default for HatefulMemesConfig {
    fn default() -> Self {
        let list = |part: &str| format!("{part}.jsonl");
        let (train, val, test) = (list("train"), list("dev_seen"), list("test_seen"));
        HatefulMemesConfig { path: "hateful-memes".into(), train, val, test }
    }
}

#[derive(Deserialize)]
struct Row {
    id: Word,
    #[serde(default)]
    img: Option<String>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    label: Option<u32>,
}

/// The question and its options.
pub fn choice() -> Choice {
    let options = ["not-hateful", "hateful"].map(String::from).to_vec();
    Choice { question: "Is the content hateful?".into(), options, image_first: false }
}

/// Reads the three lists.
pub fn load(config: &HatefulMemesConfig) -> Result<Multimodal> {
    let (root, choice) = (resolve(&config.path)?, Arc::new(choice()));
    let what = "Hateful-Memes is given out under a licence of its own";
    let read = |part: &str, list: &str| rows(&reading::needed(&root, list, what)?, &root, part, &choice);
    let (train, seen) = read("train", &config.train)?;
    let mut sources = vec![seen];
    let val = match reading::file(&root, &config.val) {
        Some(list) => {
            let (val, seen) = rows(&list, &root, "val", &choice)?;
            sources.push(seen);
            val
        }
        None => Subset::default(),
    };
    let (test, mut seen) = read("test", &config.test)?;
    reading::note_shared(&train, &test, &mut seen);
    sources.push(seen);
    Ok(Multimodal {
        name: "hateful-memes".into(),
        train,
        val,
        tests: vec![test],
        options: choice.options.clone(),
        metric: Metric::Auc,
        recipe: Recipe::default(),
        sources,
    })
}

fn rows(list: &Path, root: &Path, part: &str, choice: &Arc<Choice>) -> Result<(Subset, Census)> {
    let mut reading = Reading::new(list);
    for (place, value) in reading::records(list)? {
        let Some(value) = reading.kept(value) else { continue };
        let row: Row = reading::record(&place, &value).at(|| list.display().to_string())?;
        let id = row.id.text().unwrap_or(place);
        let picture = row.img.as_deref().map(|name| (name, reading.picture(root, name)));
        let picture = match picture {
            Some((name, None)) => {
                reading.pass(Why::NoImage, name);
                continue;
            }
            Some((_, found)) => found,
            None => None,
        };
        let Some((label, target)) = row.label.and_then(|l| Some((l, choice.options.get(l as usize)?))) else {
            reading.pass(Why::Label, id);
            continue;
        };
        if picture.is_none() && row.text.is_none() {
            reading.note("with neither picture nor text");
        }
        let text = row.text.map(|t| reading.trimmed(&t, "texts"));
        let (ask, target) = (Ask::Choice(choice.clone()), target.clone());
        reading.take(Sample { id, picture, text, ask, target, label: Some(label), facets: Facets::default() });
    }
    let (part, mut census) = reading.close(format!("hateful-memes {part}"));
    reading::join(&part, &root.join("img"), &mut census)?;
    Ok((part, census))
}
