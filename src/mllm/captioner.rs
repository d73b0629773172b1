//! Who answers. A new back end (an OpenAI-compatible endpoint, for one) is a type with [`Captioner`] and one line in
//! [`CaptionerConfig`].

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::prompt::Instruction;
use crate::data::captions::{Caption, Captions, spelled};
use crate::error::{Error, Place, Result};
use crate::exec::Context;
use crate::key::{Key, Purpose};
use crate::model::chat::Message;
use crate::model::clip::Picture;
use crate::model::hub;
use crate::model::llava::Llava;
use crate::model::sample::Decoding;
use crate::model::vlm::{Ask, Opened, Prompt, Vlm};

/// The `caption.captioner` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum CaptionerConfig {
    /// A multimodal model on this machine: LLaVA-1.5, SmolVLM, Qwen2.5-VL or MiniCPM-V 2.6.
    Llava(LlavaCaptionerConfig),
    /// Answers that somebody else wrote down.
    File(FileCaptionerConfig),
}

impl Default for CaptionerConfig {
    fn default() -> Self {
        CaptionerConfig::Llava(LlavaCaptionerConfig::default())
    }
}

/// `captioner.kind = "llava"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LlavaCaptionerConfig {
    /// A folder in Hugging Face layout, or an id.
    pub path: String,
    /// How it writes.
    pub decoding: Decoding,
}

impl Default for LlavaCaptionerConfig {
    fn default() -> Self {
        LlavaCaptionerConfig { path: "llava-hf/llava-1.5-7b-hf".into(), decoding: Decoding::default() }
    }
}

/// `captioner.kind = "file"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FileCaptionerConfig {
    /// A caption file (JSONL).
    pub path: String,
}

/// An image as a captioner gets it.
pub struct Seen<'a> {
    /// Its id in the pool.
    pub id: &'a str,
    /// SHA-256 of its bytes.
    pub digest: &'a str,
    /// Its pixels.
    pub picture: Picture<'a>,
}

/// What makes answers what they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// Who answers.
    pub model: String,
    /// Which revision.
    pub revision: String,
    /// How it writes, and the seed.
    pub decoding: Value,
}

/// One answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// Whether the model came to an end by itself.
    pub ended: bool,
}

/// Answers questions about images.
pub trait Captioner: Sync {
    /// What its answers depend on besides image and prompt.
    fn identity(&self) -> &Identity;

    /// An answer for each image; none where it has nothing to say. An answer does not depend on the others in the
    /// batch but for rounding.
    fn answers(&self, images: &[Seen], prompt: &Instruction, cx: &Context) -> Result<Vec<Option<Answer>>>;
}

/// Opens the captioner of a section; draws come from `seed`.
pub fn open(config: &CaptionerConfig, seed: u64, cx: &Context) -> Result<Box<dyn Captioner>> {
    match config {
        CaptionerConfig::Llava(c) => Ok(Box::new(LlavaCaptioner::open(c, seed, cx)?)),
        CaptionerConfig::File(c) => Ok(Box::new(FileCaptioner::open(&crate::data::resolve(&c.path)?)?)),
    }
}

/// A multimodal model of any family.
pub struct LlavaCaptioner {
    model: Arc<dyn Vlm>,
    decoding: Decoding,
    seed: u64,
    identity: Identity,
}

impl LlavaCaptioner {
    /// Opens a model by folder or id.
    pub fn open(config: &LlavaCaptionerConfig, seed: u64, cx: &Context) -> Result<Self> {
        config.decoding.check().at(|| "captioner.decoding")?;
        let folder = match crate::data::resolve(&config.path) {
            Ok(folder) => folder,
            Err(_) => hub::resolve_until(&config.path, &cx.cancel)?,
        };
        let opened = Opened::open(&folder, cx)?;
        Self::of(opened.frozen()?, (&config.path, opened.revision()?), config.decoding.clone(), seed)
    }

    /// With an open LLaVA, called `name` in records.
    pub fn new(model: Llava, name: &str, decoding: Decoding, seed: u64) -> Result<Self> {
        let revision = model.revision()?;
        Self::of(Arc::new(model), (name, revision), decoding, seed)
    }

    /// With an open model, called by a name and a revision in records.
    pub fn of(model: Arc<dyn Vlm>, (name, revision): (&str, String), decoding: Decoding, seed: u64) -> Result<Self> {
        let mut how = serde_json::to_value(&decoding).map_err(|e| Error::defect(format!("decoding: {e}")))?;
        if decoding.temperature > 0.0 {
            how["seed"] = seed.into();
        }
        how["dtype"] = format!("{:?}", model.llm().dtype()).to_lowercase().into();
        let identity = Identity { model: name.into(), revision, decoding: how };
        Ok(LlavaCaptioner { model, decoding, seed, identity })
    }

    /// The model.
    pub fn model(&self) -> &dyn Vlm {
        &*self.model
    }

    /// A draw depends on the image and the prompt, not on the pool's order.
    fn key(&self, image: &str, prompt: &str) -> Key {
        let number = |digest: &str| u64::from_str_radix(digest.get(..16).unwrap_or("0"), 16).unwrap_or(0);
        Key::from_seed(self.seed).fold(Purpose::Caption, number(image)).fold(Purpose::Decode, number(prompt))
    }
}

impl Captioner for LlavaCaptioner {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn answers(&self, images: &[Seen], prompt: &Instruction, cx: &Context) -> Result<Vec<Option<Answer>>> {
        let text = self.model.write(&[Message::about(1, prompt.text.as_str())], true)?;
        let read = |seen: &Seen| self.model.read(&text, std::slice::from_ref(&seen.picture));
        let prompts: Vec<Prompt> = images.iter().map(read).collect::<Result<_>>()?;
        let prompts: Vec<&Prompt> = prompts.iter().collect();
        let keys: Vec<Key> = images.iter().map(|seen| self.key(seen.digest, &prompt.digest)).collect();
        let asked = Ask { prompts: &prompts, keys: &keys, decoding: &self.decoding, cancel: &cx.cancel };
        let written = self.model.answer(&asked, &mut |_, _| Ok(()))?;
        let answer = |tokens: &Vec<u32>| {
            let ended = tokens.last().is_some_and(|t| self.model.stop().contains(t));
            Ok(Some(Answer { text: self.model.text(tokens)?, ended }))
        };
        written.tokens.iter().map(answer).collect()
    }
}

/// Answers from a caption file: by image id and, where the record names one, by prompt.
pub struct FileCaptioner {
    identity: Identity,
    records: BTreeMap<(String, Option<String>), Caption>,
}

impl FileCaptioner {
    /// Reads the file.
    pub fn open(path: &Path) -> Result<Self> {
        let Captions { records, digest, .. } = Captions::read(path)?;
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let identity = Identity { model: format!("file:{name}"), revision: digest, decoding: Value::Null };
        let records = records.into_iter().map(|r| ((spelled(&r.image).into_owned(), r.prompt.clone()), r)).collect();
        Ok(FileCaptioner { identity, records })
    }
}

impl Captioner for FileCaptioner {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn answers(&self, images: &[Seen], prompt: &Instruction, _: &Context) -> Result<Vec<Option<Answer>>> {
        let answer = |seen: &Seen| {
            let of = |prompt: Option<String>| self.records.get(&(spelled(seen.id).into_owned(), prompt));
            let Some(record) = of(Some(prompt.id.clone())).or_else(|| of(None)) else { return Ok(None) };
            if record.digest.as_ref().is_some_and(|d| !d.eq_ignore_ascii_case(seen.digest)) {
                return Err(Error::data(format!("the caption of {} was made from another image", seen.id)));
            }
            Ok(Some(Answer { text: record.captions.join("\n"), ended: true }))
        };
        images.iter().map(answer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The random tiny LLaVA of `tests/golden/llava`: it writes nonsense, but its own for each image.
    fn tiny(decoding: Decoding, seed: u64) -> LlavaCaptioner {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llava/default");
        LlavaCaptioner::new(Llava::open(&folder, &Context::cpu(1)).unwrap(), "tiny", decoding, seed).unwrap()
    }

    fn answers(captioner: &LlavaCaptioner, levels: &[u8]) -> Vec<String> {
        let draw = |level: &u8| (0..3 * 400u32).map(|i| ((i * u32::from(*level)) % 251) as u8).collect::<Vec<u8>>();
        let planes: Vec<Vec<u8>> = levels.iter().map(draw).collect();
        let digests: Vec<String> = planes.iter().map(|p| crate::fsx::sha256(p)).collect();
        let seen: Vec<Seen> = planes
            .iter()
            .zip(&digests)
            .map(|(p, digest)| Seen {
                id: "x",
                digest,
                picture: Picture { height: 20, width: 20, pixels: p.as_slice().into() },
            })
            .collect();
        let prompt = Instruction::new("p", "What is it?").unwrap();
        let answers = captioner.answers(&seen, &prompt, &Context::cpu(1)).unwrap();
        answers.into_iter().map(|a| a.unwrap().text).collect()
    }

    #[test]
    fn captions_change_with_the_image_and_not_with_its_place() {
        let captioner = tiny(Decoding::greedy(10), 1);
        let got = answers(&captioner, &[0, 3, 7]);
        assert!(got[0] != got[1] && got[1] != got[2], "{got:?}");
        let swapped = answers(&captioner, &[7, 3, 0]);
        assert_eq!(got, swapped.into_iter().rev().collect::<Vec<_>>());
    }

    #[test]
    fn drawn_captions_depend_on_seed_and_image_and_not_on_the_batch() {
        let hot = Decoding { temperature: 1.0, ..Decoding::greedy(10) };
        let together = answers(&tiny(hot.clone(), 1), &[3, 7]);
        assert_eq!(together[1], answers(&tiny(hot.clone(), 1), &[7])[0]);
        assert_ne!(together, answers(&tiny(hot, 2), &[3, 7]));
    }

    #[test]
    fn a_caption_file_answers_by_image_and_prompt_and_refuses_another_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.jsonl");
        let digest = crate::fsx::sha256(b"a");
        let lines = format!(
            "{{\"image\": \"a\", \"digest\": \"{digest}\", \"caption\": \"any\"}}\n\
             {{\"image\": \"a\", \"prompt\": \"p\", \"captions\": [\"one\", \"two\"]}}\n"
        );
        std::fs::write(&path, lines).unwrap();
        let file = FileCaptioner::open(&path).unwrap();
        let ask = |id: &str, digest: &str, prompt: &str| {
            let picture = Picture { height: 0, width: 0, pixels: Vec::new().into() };
            let seen = [Seen { id, digest, picture }];
            file.answers(&seen, &Instruction::new(prompt, "?").unwrap(), &Context::cpu(1))
        };
        let text = |got: Result<Vec<Option<Answer>>>| got.unwrap().remove(0).map(|a| a.text);
        assert_eq!(text(ask("a", &digest, "p")), Some("one\ntwo".into()));
        assert_eq!(text(ask("a", &digest, "q")), Some("any".into()));
        assert_eq!(text(ask("b", &digest, "q")), None);
        assert!(ask("a", "00", "q").unwrap_err().to_string().contains("another image"));
    }
}
