//! What is kept of annotations. Each filter says what it dropped and why.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::Pictures;
use crate::data::captions::Caption;
use crate::data::overlap::{Fingerprints, NEAR};
use crate::data::pool::Pool;
use crate::error::{Error, Result};
use crate::exec::Context;

/// The `caption.filter` section; the thresholds are this project's own choice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FilterConfig {
    /// Shortest text, in words.
    pub min_words: usize,
    /// Largest share of four-word runs that were there before in the same text.
    pub max_repeated: f64,
    /// Smallest cosine of CLIP's features of image and text; −1 keeps all.
    pub min_similarity: f32,
    /// Pool images within so many bits of 256 of a test image are dropped.
    pub near: u32,
    /// Whether the test images of the `data` section are looked at for that.
    pub test: bool,
}

impl Default for FilterConfig {
    fn default() -> Self {
        FilterConfig { min_words: 3, max_repeated: 0.3, min_similarity: 0.15, near: NEAR, test: true }
    }
}

/// Why a record was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The image cannot be decoded.
    Undecodable,
    /// Fewer words than `min_words`.
    Short,
    /// The text goes round in circles.
    Repetitive,
    /// Characters that no text has: U+FFFD or controls.
    Garbled,
    /// Image and text do not go together.
    Dissimilar,
    /// The image is nearly one of the test set.
    NearTest,
}

/// What the filters did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Dropped {
    /// Records kept.
    pub kept: usize,
    /// Records dropped, by reason.
    pub dropped: BTreeMap<Reason, usize>,
    /// Up to five images for each reason.
    pub examples: BTreeMap<Reason, Vec<String>>,
}

impl Dropped {
    /// Counts a record, or an image, as dropped.
    pub fn note(&mut self, reason: Reason, image: &str) {
        *self.dropped.entry(reason).or_default() += 1;
        let examples = self.examples.entry(reason).or_default();
        if examples.len() < 5 && !examples.iter().any(|e| e == image) {
            examples.push(image.to_string());
        }
    }
}

/// What the filters know besides the records. What is absent is not asked.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Ids of images that cannot be decoded.
    pub undecodable: BTreeSet<String>,
    /// Cosine of image and text for each record, `(records,)`.
    pub similarity: Option<Vec<f32>>,
    /// Ids of images that are nearly one of the test set.
    pub near_test: BTreeSet<String>,
}

/// Splits records into those kept and a report of the others; order stays.
pub fn apply(config: &FilterConfig, records: Vec<Caption>, evidence: &Evidence) -> Result<(Vec<Caption>, Dropped)> {
    if let Some(cosines) = evidence.similarity.as_ref().filter(|c| c.len() != records.len()) {
        return Err(Error::defect(format!("{} similarities for {} captions", cosines.len(), records.len())));
    }
    let (mut kept, mut report) = (Vec::new(), Dropped::default());
    for (i, record) in records.into_iter().enumerate() {
        let cosine = evidence.similarity.as_ref().and_then(|c| c.get(i)).copied();
        let reason = if evidence.undecodable.contains(&record.image) {
            Some(Reason::Undecodable)
        } else if evidence.near_test.contains(&record.image) {
            Some(Reason::NearTest)
        } else if let Some(reason) = degenerate(&text_of(&record), config) {
            Some(reason)
        } else {
            cosine.filter(|c| *c < config.min_similarity).map(|_| Reason::Dissimilar)
        };
        match reason {
            Some(reason) => report.note(reason, &record.image),
            None => kept.push(record),
        }
    }
    report.kept = kept.len();
    Ok((kept, report))
}

/// All that a record says.
pub fn text_of(record: &Caption) -> String {
    record.captions.iter().chain(&record.caption).map(String::as_str).collect::<Vec<_>>().join("\n")
}

/// Why a text is no annotation, if it is none.
pub fn degenerate(text: &str, config: &FilterConfig) -> Option<Reason> {
    if text.chars().any(|c| c == '\u{fffd}' || (c.is_control() && !c.is_whitespace())) {
        return Some(Reason::Garbled);
    }
    let words: Vec<String> =
        text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase).collect();
    if words.len() < config.min_words.max(1) {
        return Some(Reason::Short);
    }
    // Short texts are watched by single words, longer ones by runs of four.
    let run = if words.len() < 8 { 1 } else { 4 };
    let mut seen = BTreeSet::new();
    let repeated = words.windows(run).filter(|w| !seen.insert(*w)).count() as f64;
    let share = repeated / (words.len() + 1 - run) as f64;
    let limit = if run == 1 { config.max_repeated.max(0.5) } else { config.max_repeated };
    (share > limit).then_some(Reason::Repetitive)
}

/// Ids of the pool's images that are nearly one of `test`'s; squares of the test's own side are compared.
pub fn near_test(pool: &Pool, test: &Pictures, config: &FilterConfig, cx: &Context) -> Result<BTreeSet<String>> {
    let all = |n: usize| (0..n as u32).collect::<Vec<u32>>();
    let decoded = pool.like(test, &all(pool.len()), cx)?;
    let here = Fingerprints::new("pool", &decoded.images, &all(decoded.images.len()), cx)?;
    let there = Fingerprints::new("test", test, &all(test.len()), cx)?;
    let pairs = there.pairs(&here, config.near, cx)?;
    let id = |&(_, at, _): &(u32, u32, Option<u32>)| {
        let item = decoded.kept.get(at as usize).and_then(|&i| pool.items.get(i as usize));
        item.map(|item| item.id.clone())
    };
    Ok(pairs.iter().filter_map(id).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(image: &str, text: &str) -> Caption {
        Caption { image: image.into(), caption: Some(text.into()), ..Caption::default() }
    }

    #[test]
    fn each_reason_is_found_and_counted_and_the_rest_is_kept_in_order() {
        let loop_text = "a red star on the grass and ".repeat(6);
        let records = vec![
            record("good", "A red star stands on a table beside two green boxes."),
            record("short", "Yes."),
            record("loop", &loop_text),
            record("stutter", "star star star star star"),
            record("bytes", "A red \u{fffd}\u{fffd} star stands here."),
            record("broken", "A red star stands on a table."),
            record("tested", "A red star stands on a table."),
            record("wrong", "A red star stands on a table."),
            record("good too", "Two boxes. Two boxes lie under the table, two beside it."),
        ];
        let evidence = Evidence {
            undecodable: ["broken".to_string()].into(),
            near_test: ["tested".to_string()].into(),
            similarity: Some(vec![0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.1, 0.15]),
        };
        let (kept, report) = apply(&FilterConfig::default(), records, &evidence).unwrap();
        assert_eq!(kept.iter().map(|r| r.image.as_str()).collect::<Vec<_>>(), ["good", "good too"]);
        let want = [
            (Reason::Undecodable, 1),
            (Reason::Short, 1),
            (Reason::Repetitive, 2),
            (Reason::Garbled, 1),
            (Reason::Dissimilar, 1),
            (Reason::NearTest, 1),
        ];
        assert_eq!(report.dropped, BTreeMap::from(want));
        assert_eq!((report.kept, &report.examples[&Reason::NearTest]), (2, &vec!["tested".to_string()]));
    }
}
