//! CrisisMMD 2.0 (Alam, Ofli and Imran, ICWSM 2018), its humanitarian task: tweets with pictures from disasters.
//!
//! Its layout: `crisismmd_datasplit_all/task_humanitarian_text_img_{train,dev,test}.tsv`, tables with a header, and the
//! folder `data_image` that their column `image` names. The label is `label_image` (picture and text may be labelled
//! otherwise), and web addresses are taken out of `tweet_text`, as FedMLLM does.

use std::path::Path;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::reading::{self, Reading};
use super::{Ask, Choice, Facets, Metric, Multimodal, Recipe, Sample, Subset};
use crate::data::census::{Census, Why};
use crate::data::resolve;
use crate::error::{Error, Place, Result};

/// The CrisisMMD kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CrisisMmdConfig {
    /// The folder that holds `data_image` and the folder of the split; a relative one may lie below `$FEDLLAVA_DATA`.
    pub path: String,
    /// The training table.
    pub train: String,
    /// The validation table; none where it is not there.
    pub val: String,
    /// The test table.
    pub test: String,
}

impl Default for CrisisMmdConfig {
    fn default() -> Self {
        let table = |part: &str| format!("crisismmd_datasplit_all/task_humanitarian_text_img_{part}.tsv");
        CrisisMmdConfig { path: "crisismmd".into(), train: table("train"), val: table("dev"), test: table("test") }
    }
}

/// The categories in the order of their letters.
const CATEGORIES: [&str; 8] = [
    "affected_individuals",
    "infrastructure_and_utility_damage",
    "injured_or_dead_people",
    "missing_or_found_people",
    "rescue_volunteering_or_donation_effort",
    "vehicle_damage",
    "other_relevant_information",
    "not_humanitarian",
];

/// The question and its options.
pub fn choice() -> Choice {
    let options = CATEGORIES.map(String::from).to_vec();
    Choice { question: "What is the humanitarian category?".into(), options, image_first: true }
}

/// Reads the three tables.
pub fn load(config: &CrisisMmdConfig) -> Result<Multimodal> {
    let (root, choice) = (resolve(&config.path)?, Arc::new(choice()));
    let read = |part: &str, table: &str| rows(&reading::needed(&root, table, "CrisisMMD 2.0")?, &root, part, &choice);
    let (train, seen) = read("train", &config.train)?;
    let mut sources = vec![seen];
    let val = match reading::file(&root, &config.val) {
        Some(table) => {
            let (val, seen) = rows(&table, &root, "val", &choice)?;
            sources.push(seen);
            val
        }
        None => Subset::default(),
    };
    let (test, mut seen) = read("test", &config.test)?;
    reading::note_shared(&train, &test, &mut seen);
    sources.push(seen);
    Ok(Multimodal {
        name: "crisismmd".into(),
        train,
        val,
        tests: vec![test],
        options: choice.options.clone(),
        metric: Metric::MacroF1,
        recipe: Recipe { fills_first_label_only: true, ..Recipe::default() },
        sources,
    })
}

fn rows(table: &Path, root: &Path, part: &str, choice: &Arc<Choice>) -> Result<(Subset, Census)> {
    let (mut reading, text) = (Reading::new(table), reading::text(table)?);
    let mut rows = csv::ReaderBuilder::new().delimiter(b'\t').flexible(true).from_reader(text.as_bytes());
    let damaged = |_| Error::data(format!("{}: a damaged table", table.display()));
    let header = rows.headers().map_err(damaged)?.clone();
    let column = |name: &str| {
        let missing =
            || Error::data(format!("no column `{name}`; there are {}", header.iter().collect::<Vec<_>>().join(", ")));
        header.iter().position(|h| h == name).ok_or_else(missing).at(|| table.display().to_string())
    };
    let [id, image, tweet, label] = ["image_id", "image", "tweet_text", "label_image"].map(column);
    let (id, image, tweet, label) = (id?, image?, tweet?, label?);
    for row in rows.records() {
        let row = row.map_err(damaged)?;
        let of = |column: usize| row.get(column).unwrap_or_default();
        let Some(at) = choice.options.iter().position(|o| o == of(label)) else {
            reading.pass(Why::Label, of(id));
            continue;
        };
        let Some(picture) = reading.picture(root, of(image)) else {
            reading.pass(Why::NoImage, of(image));
            continue;
        };
        let (text, target) = (without_addresses(of(tweet)).trim().to_string(), choice.options[at].clone());
        if text.is_empty() {
            reading.note("whose text was an address alone");
        }
        reading.take(Sample {
            id: of(id).to_string(),
            picture: Some(picture),
            text: Some(text),
            ask: Ask::Choice(choice.clone()),
            target,
            label: Some(at as u32),
            facets: Facets::default(),
        });
    }
    let (part, mut census) = reading.close(format!("crisismmd {part}"));
    reading::join(&part, &root.join("data_image"), &mut census)?;
    Ok((part, census))
}

/// A text without what begins with `http` and goes on to the next blank.
fn without_addresses(text: &str) -> String {
    let (mut kept, mut rest) = (String::new(), text);
    while let Some(at) = rest.find("http") {
        let behind = &rest[at + 4..];
        let end = behind.find(char::is_whitespace).unwrap_or(behind.len());
        // Four letters alone are no address.
        let cut = if end == 0 { at + 4 } else { at };
        kept.push_str(&rest[..cut]);
        rest = &behind[end..];
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_and_the_blanks_between_words_stay() {
        let cases = [
            ("Help https://t.co/a1 now http://x", "Help  now "),
            ("seehttps://t.co/b", "see"),
            ("http is four letters", "http is four letters"),
            ("http", "http"),
            ("ü http://ü\nnew", "ü \nnew"),
        ];
        for (text, want) in cases {
            assert_eq!(without_addresses(text), want);
        }
    }
}
