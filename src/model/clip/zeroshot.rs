//! Zero-shot classification: class names → prompts → one unit text feature a class → probabilities of image features.
//!
//! As in Radford et al., 2021, section 3.1.4: the unit features of a class's prompts are averaged and made unit again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::embed::Features;
use super::{Clip, Tokenizer, normalise};
use crate::error::{Error, Place, Result, closest};
use crate::exec::{Context, ordered};
use crate::fsx;
use crate::shipped;

/// How a class becomes texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Prompts {
    /// Templates in the config.
    Templates(Templates),
    /// A file of templates, one a line; empty lines and lines that begin with `#` are skipped.
    TemplateFile(PromptFile),
    /// A JSON file of sentences for each class, `{"class": ["sentence", …]}` (as CuPL publishes).
    Descriptions(PromptFile),
}

/// Templates; `{c}` or `{}` stands for the class name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Templates {
    /// At least one.
    pub list: Vec<String>,
}

impl Default for Templates {
    fn default() -> Self {
        Templates { list: vec!["a photo of a {c}".into()] }
    }
}

/// A file that holds prompts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PromptFile {
    /// Where it is.
    pub path: PathBuf,
}

impl Default for Prompts {
    fn default() -> Self {
        Prompts::Templates(Templates::default())
    }
}

impl Prompts {
    /// Refuses templates without a place for the class, and none at all; files are looked at when they are read.
    pub fn check(&self) -> Result<()> {
        match self {
            Prompts::Templates(t) => filled(&t.list, &[]).map(|_| ()),
            Prompts::TemplateFile(_) | Prompts::Descriptions(_) => Ok(()),
        }
    }

    /// Each class's texts, in the order of `classes`. Underscores in class names are read as spaces.
    pub fn texts(&self, classes: &[String]) -> Result<Vec<Vec<String>>> {
        match self {
            Prompts::Templates(t) => filled(&t.list, classes),
            Prompts::TemplateFile(file) => {
                let text = shipped::read_text(&file.path)?;
                let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
                let list: Vec<String> = lines.map(String::from).collect();
                filled(&list, classes).at(|| file.path.display().to_string())
            }
            Prompts::Descriptions(file) => described(&file.path, classes),
        }
    }
}

fn spoken(class: &str) -> String {
    class.replace('_', " ")
}

fn filled(templates: &[String], classes: &[String]) -> Result<Vec<Vec<String>>> {
    if let Some(bad) = templates.iter().find(|t| !t.contains("{c}") && !t.contains("{}")) {
        return Err(Error::input(format!("prompt template {bad:?} has no place for the class"))
            .hint("write {c} where the class name goes: \"a photo of a {c}\""));
    }
    if templates.is_empty() {
        return Err(Error::input("no prompt templates"));
    }
    let one = |class: &String| {
        let name = spoken(class);
        templates.iter().map(|t| t.replace("{c}", &name).replace("{}", &name)).collect()
    };
    Ok(classes.iter().map(one).collect())
}

fn described(path: &Path, classes: &[String]) -> Result<Vec<Vec<String>>> {
    let sentences: BTreeMap<String, Vec<String>> =
        fsx::read_json(path).map_err(|e| e.hint("expected {\"class\": [\"sentence\", …], …}"))?;
    let known: BTreeMap<String, &Vec<String>> = sentences.iter().map(|(k, v)| (spoken(k), v)).collect();
    let one = |class: &String| match known.get(&spoken(class)) {
        Some(list) if !list.is_empty() => Ok((*list).clone()),
        _ => {
            let error = Error::data(format!("{}: no sentences about {class:?}", path.display()));
            Err(match closest(class, sentences.keys().map(String::as_str)) {
                Some(near) => error.hint(format!("did you mean {near:?}?")),
                None => error,
            })
        }
    };
    classes.iter().map(one).collect()
}

/// A classifier made of class names.
#[derive(Clone, Debug)]
pub struct ZeroShot {
    texts: Features,
    scale: f64,
}

impl ZeroShot {
    /// Embeds each class's prompts. A class's feature depends on its own prompts only, to the bit.
    pub fn new(
        clip: &Clip,
        tokenizer: &Tokenizer,
        prompts: &Prompts,
        classes: &[String],
        cx: &Context,
    ) -> Result<ZeroShot> {
        let texts = prompts.texts(classes)?;
        let dim = clip.config().projection_dim;
        let mut data = Vec::with_capacity(classes.len() * dim);
        let threads = if clip.device().is_cpu() { cx.threads } else { 1 };
        let job = |_: &mut (), i: usize| {
            cx.cancel.check()?;
            mean_feature(clip, tokenizer, &texts[i]).at(|| format!("class {:?}", classes[i]))
        };
        let fold = |_: usize, row: Vec<f32>| {
            data.extend(row);
            Ok(())
        };
        ordered(threads, classes.len(), 2 * threads, |_| Ok(()), job, fold)?;
        ZeroShot::from_features(Features::new(dim, data)?, clip.scale()?)
    }

    /// From text features that are there already, a row a class, and the factor on cosines (100 for published CLIPs).
    pub fn from_features(texts: Features, scale: f64) -> Result<ZeroShot> {
        if texts.rows() == 0 || !scale.is_finite() {
            return Err(Error::data(format!("zero-shot: {} classes, scale {scale}", texts.rows())));
        }
        Ok(ZeroShot { texts, scale })
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.texts.rows()
    }

    /// The classes' unit text features.
    pub fn text_features(&self) -> &Features {
        &self.texts
    }

    /// `scale · cosine`, `(images, classes)`.
    pub fn logits(&self, images: &Features) -> Result<Vec<f32>> {
        if images.dim != self.texts.dim {
            return Err(Error::data(format!(
                "zero-shot: image features of length {}, text features of length {}",
                images.dim, self.texts.dim
            ))
            .hint("they come from different CLIPs"));
        }
        let mut logits = Vec::with_capacity(images.rows() * self.classes());
        for image in images.data.chunks_exact(images.dim) {
            let texts = self.texts.data.chunks_exact(self.texts.dim);
            logits.extend(texts.map(|text| (self.scale * f64::from(dot(image, text))) as f32));
        }
        Ok(logits)
    }

    /// `softmax(scale · cosine / temperature)`, `(images, classes)`; rows sum to 1.
    pub fn probabilities(&self, images: &Features, temperature: f64) -> Result<Vec<f32>> {
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(Error::input(format!("zero-shot: temperature {temperature}")).hint("a positive number"));
        }
        let mut rows = self.logits(images)?;
        for row in rows.chunks_exact_mut(self.classes()) {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter_mut().for_each(|v| *v = (f64::from(*v - most) / temperature).exp() as f32);
            // Sorted, so that the order of the classes does not reach the sum.
            let mut sorted = row.to_vec();
            sorted.sort_by(f32::total_cmp);
            let total: f64 = sorted.iter().map(|v| f64::from(*v)).sum();
            row.iter_mut().for_each(|v| *v = (f64::from(*v) / total) as f32);
        }
        Ok(rows)
    }

    /// The likeliest class of each image; the first of equals.
    pub fn predict(&self, images: &Features) -> Result<Vec<usize>> {
        let logits = self.logits(images)?;
        let best = |row: &[f32]| (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
        Ok(logits.chunks_exact(self.classes()).map(best).collect())
    }
}

/// Eight sums side by side, so that the compiler may use vector registers; the same for every class.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let (head_a, head_b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = head_a.remainder().iter().zip(head_b.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in head_a.zip(head_b) {
        sums.iter_mut().zip(x.iter().zip(y)).for_each(|(s, (x, y))| *s += x * y);
    }
    sums.iter().sum::<f32>() + rest
}

fn mean_feature(clip: &Clip, tokenizer: &Tokenizer, texts: &[String]) -> Result<Vec<f32>> {
    let mut sum = vec![0f64; clip.config().projection_dim];
    for chunk in texts.chunks(32) {
        let unit = normalise(&clip.text_features(&tokenizer.encode_all(chunk)?)?)?;
        for row in unit.to_vec2::<f32>()? {
            sum.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(v));
        }
    }
    Ok(sum.iter().map(|s| (s / texts.len() as f64) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| s.to_string()).collect()
    }

    #[test]
    fn templates_come_from_the_config_or_from_a_file() {
        let classes = names(&["aquarium_fish", "cat"]);
        let one = Prompts::default().texts(&classes).unwrap();
        assert_eq!(one, [["a photo of a aquarium fish"], ["a photo of a cat"]]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.txt");
        std::fs::write(&path, "# OpenAI's\n\na {} here\n  two {c}s  \n").unwrap();
        let two = Prompts::TemplateFile(PromptFile { path }).texts(&classes).unwrap();
        assert_eq!(two[1], ["a cat here", "two cats"]);
        let bad = Prompts::Templates(Templates { list: names(&["a photo"]) }).texts(&classes).unwrap_err();
        assert!(bad.to_string().contains("no place for the class"), "{bad}");
    }

    #[test]
    fn descriptions_are_found_by_class_name_and_a_missing_class_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.json");
        std::fs::write(&path, r#"{"aquarium fish": ["It swims.", "It is small."], "cat": ["It purrs."]}"#).unwrap();
        let prompts = Prompts::Descriptions(PromptFile { path });
        assert_eq!(prompts.texts(&names(&["cat", "aquarium_fish"])).unwrap()[1], ["It swims.", "It is small."]);
        let e = prompts.texts(&names(&["cats"])).unwrap_err().to_string();
        assert!(e.contains("\"cats\"") && e.contains("\"cat\""), "{e}");
    }

    /// By hand: cosines 1 and 0.6, scale 10, temperature 2: a difference of 2 in the exponent.
    #[test]
    fn probabilities_are_the_softmax_of_scaled_cosines_over_the_temperature() {
        let texts = Features::new(2, vec![2.0, 0.0, 3.0, 4.0]).unwrap();
        let zero = ZeroShot::from_features(texts, 10.0).unwrap();
        let images = Features::new(2, vec![5.0, 0.0]).unwrap();
        let p = zero.probabilities(&images, 2.0).unwrap();
        assert!((p[0] - 1.0 / (1.0 + (-2f32).exp())).abs() < 1e-6, "{p:?}");
        assert_eq!(zero.predict(&images).unwrap(), [0]);
        assert!(zero.probabilities(&images, 0.0).is_err());
        assert!(zero.logits(&Features::new(3, vec![1.0; 3]).unwrap()).is_err());
    }
}
