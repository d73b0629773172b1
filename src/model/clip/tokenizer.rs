//! CLIP's tokenizer: lower case, clean spaces, byte-level BPE with `</w>` at the end of words.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tokenizers::{Tokenizer as Engine, TruncationParams};

use crate::error::{Error, Result};
use crate::exec;
use crate::fsx::{self, bound};

/// The token before every text.
pub const START: &str = "<|startoftext|>";
/// The token after every text, also the unknown and the padding token.
pub const END: &str = "<|endoftext|>";

/// How OpenAI's `simple_tokenizer.py` splits a cleaned text into words.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Pairs in order of rank.
type Merges = Vec<(String, String)>;

/// Text → token ids.
pub struct Tokenizer {
    engine: Engine,
    definition: String,
    pad: u32,
    length: usize,
}

impl Tokenizer {
    /// Reads a folder's `tokenizer.json`, or builds it from `vocab.json` and `merges.txt`; texts have at most `length`
    /// tokens (77 in published models).
    pub fn open(folder: &Path, length: usize) -> Result<Tokenizer> {
        let whole = folder.join("tokenizer.json");
        let tokenizer = if whole.is_file() {
            Self::from_json(fsx::read_text(&whole)?, END, length).map_err(|e| e.context(whole.display().to_string()))?
        } else if folder.join("vocab.json").is_file() && folder.join("merges.txt").is_file() {
            Self::from_files(folder, length)?
        } else {
            return Err(Error::input(format!("{}: no tokenizer here", folder.display()))
                .hint("expected tokenizer.json, or vocab.json and merges.txt"));
        };
        tokenizer.with_pad(folder)
    }

    fn from_files(folder: &Path, length: usize) -> Result<Tokenizer> {
        let path = folder.join("vocab.json");
        let vocab: BTreeMap<String, u32> = fsx::read_json(&path)?;
        let path = folder.join("merges.txt");
        let text = fsx::read_text(&path)?;
        let mut merges = Vec::new();
        for line in text.lines().filter(|l| !l.starts_with("#version") && !l.trim().is_empty()) {
            match line.split_once(' ') {
                Some((left, right)) => merges.push((left.to_string(), right.trim_end().to_string())),
                None => return Err(Error::data(format!("{}: not a merge: {line:?}", path.display()))),
            }
        }
        Self::from_parts(&vocab, &merges, length)
    }

    /// From token ids and merges in order of rank.
    pub fn from_parts(vocab: &BTreeMap<String, u32>, merges: &[(String, String)], length: usize) -> Result<Tokenizer> {
        Self::from_json(definition(vocab, merges)?, END, length)
    }

    fn from_json(definition: String, pad: &str, length: usize) -> Result<Tokenizer> {
        let bad = |e: &dyn std::fmt::Display| Error::data(format!("not a tokenizer: {e}"));
        let mut engine = exec::tamed(|| Engine::from_bytes(&definition))?.map_err(|e| bad(&e))?;
        // Cuts the words so that the start and end tokens stay.
        let cut = TruncationParams { max_length: length, ..Default::default() };
        engine.with_truncation(Some(cut)).map_err(|e| bad(&e))?.with_padding(None);
        let pad = engine.token_to_id(pad).ok_or_else(|| bad(&format!("no token {pad:?}")))?;
        Ok(Tokenizer { engine, definition, pad, length })
    }

    /// Padding is what `tokenizer_config.json` or `special_tokens_map.json` says, if anything.
    fn with_pad(mut self, folder: &Path) -> Result<Tokenizer> {
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            let path = folder.join(name);
            if !path.is_file() {
                continue;
            }
            let json: Value = fsx::read_json(&path)?;
            let pad = json.get("pad_token").map(|p| p.get("content").unwrap_or(p));
            if let Some(pad) = pad.and_then(Value::as_str) {
                self.pad = self.engine.token_to_id(pad).ok_or_else(|| {
                    Error::data(format!("{}: the padding token {pad:?} is not in the vocabulary", path.display()))
                })?;
                break;
            }
        }
        Ok(self)
    }

    /// The ids of one text, start and end tokens included, at most [`Tokenizer::length`] of them, not padded.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        bound::said(text)?;
        let encoding = self.engine.encode_fast(text, true);
        let encoding = encoding.map_err(|e| Error::data(format!("cannot tokenize {text:?}: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As [`Tokenizer::encode`], filled up to [`Tokenizer::length`] with the padding token.
    pub fn encode_padded(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text)?;
        ids.resize(self.length, self.pad);
        Ok(ids)
    }

    /// The ids of several texts, not padded.
    pub fn encode_all<S: AsRef<str>>(&self, texts: &[S]) -> Result<Vec<Vec<u32>>> {
        texts.iter().map(|text| self.encode(text.as_ref())).collect()
    }

    /// The longest text in tokens.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.engine.get_vocab_size(true)
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.engine.token_to_id(token)
    }

    /// The `tokenizer.json` it was made from.
    pub fn definition(&self) -> &str {
        &self.definition
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`, `vocab.json` and `merges.txt`.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let pad = self.engine.id_to_token(self.pad).unwrap_or_else(|| END.to_string());
        let special = json!({ "bos_token": START, "eos_token": END, "pad_token": pad, "unk_token": END });
        let mut config = special.clone();
        config["model_max_length"] = self.length.into();
        config["tokenizer_class"] = "CLIPTokenizer".into();
        config["do_lower_case"] = true.into();
        let write = |name: &str, text: String| fsx::write_atomic(&folder.join(name), text.as_bytes());
        write("tokenizer.json", self.definition.clone())?;
        write("tokenizer_config.json", pretty(&config)?)?;
        write("special_tokens_map.json", pretty(&special)?)?;
        let (vocab, merges) = self.parts()?;
        write("vocab.json", pretty(&json!(vocab))?)?;
        let lines: String = merges.iter().map(|(a, b)| format!("{a} {b}\n")).collect();
        write("merges.txt", format!("#version: 0.2\n{lines}"))
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Vocabulary and merges of the definition.
    pub(super) fn parts(&self) -> Result<(BTreeMap<String, u32>, Merges)> {
        let bad = |e: serde_json::Error| Error::data(format!("tokenizer.json: {e}"));
        let json: Value = serde_json::from_str(&self.definition).map_err(bad)?;
        let vocab = serde_json::from_value(json["model"]["vocab"].clone()).map_err(bad)?;
        let Some(list) = json["model"]["merges"].as_array() else {
            return Err(Error::data("tokenizer.json: no merges"));
        };
        // Older files write "a b", newer ones ["a", "b"].
        let pair = |v: &Value| match v {
            Value::String(s) => s.split_once(' ').map(|(a, b)| (a.to_string(), b.to_string())),
            other => serde_json::from_value(other.clone()).ok(),
        };
        let merges: Option<Vec<_>> = list.iter().map(pair).collect();
        Ok((vocab, merges.ok_or_else(|| Error::data("tokenizer.json: a merge is not a pair"))?))
    }
}

fn pretty(value: &Value) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|e| Error::defect(format!("tokenizer: {e}")))
}

/// The `tokenizer.json` that transformers makes of a vocabulary and merges.
fn definition(vocab: &BTreeMap<String, u32>, merges: &[(String, String)]) -> Result<String> {
    let id =
        |token: &str| vocab.get(token).copied().ok_or_else(|| Error::data(format!("vocab.json: no token {token:?}")));
    let (start, end) = (id(START)?, id(END)?);
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    let mut added = [(start, START), (end, END)];
    added.sort_unstable();
    let added: Vec<Value> = added.iter().map(|(id, content)| special(*id, content)).collect();
    let byte_level = |prefix: bool| json!({ "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true });
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
            { "type": "Lowercase" },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": WORDS }, "behavior": "Removed", "invert": true },
            byte_level(false),
        ] },
        "post_processor": { "type": "RobertaProcessing", "sep": [END, end], "cls": [START, start],
                            "trim_offsets": false, "add_prefix_space": false },
        "decoder": byte_level(true),
        "model": { "type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "",
                   "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                   "vocab": vocab, "merges": merges },
    });
    serde_json::to_string(&json).map_err(|e| Error::defect(format!("tokenizer: {e}")))
}
