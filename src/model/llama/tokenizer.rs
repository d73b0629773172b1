//! Text ↔ tokens of a Llama: `tokenizer.json`, or SentencePiece's `tokenizer.model` with the marks added to it.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer as Json;

use super::sentencepiece::{Kind, Piece, SPACE, SentencePiece};
use super::stream::Stream;
use crate::error::{Error, Place, Result};
use crate::exec;
use crate::fsx;

/// A tokenizer with its rules about beginning and end.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Inner,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
}

#[derive(Clone, Debug)]
enum Inner {
    Pieces(Marked),
    Json(Box<Json>),
}

/// SentencePiece with whole words that are found in text before it, such as `<image>` and `</s>`.
#[derive(Clone, Debug)]
struct Marked {
    model: SentencePiece,
    marks: BTreeMap<String, u32>,
    special: Vec<u32>,
    /// transformers' `legacy`: a space is put before every part between marks, not only before the first.
    legacy: bool,
}

impl Tokenizer {
    /// From a model's folder: `tokenizer.json` if there, else `tokenizer.model`; `tokenizer_config.json` says the rest.
    pub fn open(folder: &Path) -> Result<Self> {
        let config = match folder.join("tokenizer_config.json") {
            path if path.is_file() => json(&path)?,
            _ => Value::Null,
        };
        if folder.join("tokenizer.json").is_file() {
            return Self::from_json_file(&folder.join("tokenizer.json"), &config);
        }
        let path = folder.join("tokenizer.model");
        if !path.is_file() {
            return Err(Error::input(format!("no tokenizer in {}", folder.display()))
                .hint("expected tokenizer.json or tokenizer.model"));
        }
        let model = SentencePiece::parse(&fsx::read(&path)?).map_err(|e| e.context(path.display().to_string()))?;
        let mut added = added_tokens(&config)?;
        let extra = folder.join("added_tokens.json");
        if let Some(map) = extra.is_file().then(|| json(&extra)).transpose()?.as_ref().and_then(Value::as_object) {
            added.extend(map.iter().filter_map(|(text, id)| Some((text.clone(), id.as_u64()? as u32))));
        }
        let legacy = config.get("legacy").and_then(Value::as_bool).unwrap_or(true);
        let add_bos = config.get("add_bos_token").and_then(Value::as_bool).unwrap_or(true);
        Ok(Self::from_pieces(model, added, legacy, add_bos))
    }

    /// From a SentencePiece model and words added to it; its control pieces are found in text too, as transformers
    /// has it.
    pub fn from_pieces(model: SentencePiece, mut marks: BTreeMap<String, u32>, legacy: bool, add_bos: bool) -> Self {
        let apart = |p: &Piece| matches!(p.kind, Kind::Control | Kind::Unknown);
        for (id, piece) in model.pieces().iter().enumerate().filter(|(_, p)| apart(p)) {
            marks.insert(piece.text.clone(), id as u32);
        }
        let special = marks.values().copied().collect();
        let (bos, eos) = (marks.get("<s>").copied(), marks.get("</s>").copied());
        Tokenizer { inner: Inner::Pieces(Marked { model, marks, special, legacy }), bos, eos, add_bos }
    }

    fn from_json_file(path: &Path, config: &Value) -> Result<Self> {
        let text = fsx::read_text(path)?;
        let mut inner = exec::tamed(|| Json::from_bytes(&text))
            .at(|| path.display().to_string())?
            .map_err(|e| Error::data(format!("{}: not a tokenizer: {e}", path.display())))?;
        // What a training session cut and filled texts to is no part of the model: transformers resets both.
        inner.with_truncation(None).map_err(|e| Error::data(format!("{}: {e}", path.display())))?;
        inner.with_padding(None);
        let named = |key: &str, usual: &str| {
            let said = config.get(key).and_then(|v| v.as_str().or_else(|| v.get("content")?.as_str()));
            inner.token_to_id(said.unwrap_or(usual))
        };
        let (bos, eos) = (named("bos_token", "<s>"), named("eos_token", "</s>"));
        // The file's own post-processor says whether a text begins with BOS.
        let probe = exec::tamed(|| inner.encode("a", true))
            .at(|| path.display().to_string())?
            .map_err(|e| Error::data(format!("{}: {e}", path.display())))?;
        let add_bos = bos.is_some() && probe.get_ids().first().copied() == bos;
        Ok(Tokenizer { inner: Inner::Json(Box::new(inner)), bos, eos, add_bos })
    }

    /// Tokens of a text, beginning with BOS if the model wants it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = self.bos.filter(|_| self.add_bos).into_iter().collect();
        ids.extend(self.encode_plain(text)?);
        Ok(ids)
    }

    /// Tokens of a text alone.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        fsx::bound::said(text)?;
        match &self.inner {
            Inner::Pieces(marked) => Ok(marked.encode(text)),
            Inner::Json(inner) => {
                let encoding = inner.encode(text, false).map_err(|e| Error::data(format!("tokenizer: {e}")))?;
                Ok(encoding.get_ids().to_vec())
            }
        }
    }

    /// The text of tokens; marks such as `</s>` are left out, bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.inner {
            Inner::Pieces(marked) => Ok(marked.decode(ids)),
            Inner::Json(inner) => inner.decode(ids, true).map_err(|e| Error::data(format!("tokenizer: {e}"))),
        }
    }

    /// The token that is exactly this text.
    pub fn id(&self, token: &str) -> Option<u32> {
        match &self.inner {
            Inner::Pieces(marked) => {
                let piece = || marked.model.pieces().iter().position(|p| p.text == token).map(|i| i as u32);
                marked.marks.get(token).copied().or_else(piece)
            }
            Inner::Json(inner) => inner.token_to_id(token),
        }
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// One more than the highest id.
    pub fn size(&self) -> usize {
        match &self.inner {
            Inner::Pieces(marked) => {
                let highest = marked.marks.values().max().map_or(0, |&id| id as usize + 1);
                highest.max(marked.model.pieces().len())
            }
            Inner::Json(inner) => inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1),
        }
    }

    /// Refuses a tokenizer that gives ids which a model with this vocabulary does not have.
    pub fn check_fits(&self, vocabulary: usize) -> Result<()> {
        if self.size() <= vocabulary {
            return Ok(());
        }
        Err(Error::data(format!("the tokenizer has {} tokens, the model only {vocabulary}", self.size()))
            .hint("take tokenizer and weights from the same model"))
    }

    /// Text as it comes, token by token.
    pub fn stream(&self) -> Result<Stream<'_>> {
        Stream::new(self)
    }
}

impl Marked {
    fn encode(&self, text: &str) -> Vec<u32> {
        let (mut ids, mut rest, mut first) = (Vec::new(), text, true);
        while let Some((at, mark, id)) = self.next_mark(rest) {
            ids.extend(self.model.encode(&rest[..at], first || self.legacy));
            ids.push(id);
            rest = &rest[at + mark..];
            first = false;
        }
        ids.extend(self.model.encode(rest, first || self.legacy));
        ids
    }

    /// Place, length and id of the first mark in a text; the longest where several begin.
    fn next_mark(&self, text: &str) -> Option<(usize, usize, u32)> {
        let places = self.marks.iter().filter_map(|(mark, &id)| Some((text.find(mark.as_str())?, mark.len(), id)));
        places.min_by_key(|&(at, len, _)| (at, usize::MAX - len))
    }

    fn decode(&self, ids: &[u32]) -> String {
        let mut bytes: Vec<u8> = Vec::new();
        for &id in ids.iter().filter(|id| !self.special.contains(id)) {
            match self.model.pieces().get(id as usize) {
                Some(Piece { kind: Kind::Byte(b), .. }) => bytes.push(*b),
                Some(piece) => bytes.extend(piece.text.replace(SPACE, " ").into_bytes()),
                None => {}
            }
        }
        let text = lossy(&bytes);
        match text.strip_prefix(' ') {
            Some(rest) if self.model.prefix() => rest.to_string(),
            _ => text,
        }
    }
}

/// UTF-8 with one U+FFFD for each byte that belongs to no character, as SentencePiece has it.
fn lossy(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '\u{fffd}'));
    }
    text
}

fn json(path: &Path) -> Result<Value> {
    fsx::read_json(path)
}

/// `added_tokens_decoder` of `tokenizer_config.json`: id → {content}.
fn added_tokens(config: &Value) -> Result<BTreeMap<String, u32>> {
    let mut added = BTreeMap::new();
    if let Some(map) = config.get("added_tokens_decoder").and_then(Value::as_object) {
        for (id, token) in map {
            let text = token.get("content").and_then(Value::as_str);
            match (id.parse(), text) {
                (Ok(id), Some(text)) => added.insert(text.to_string(), id),
                _ => return Err(Error::data(format!("tokenizer_config.json: added token {id} has no id or content"))),
            };
        }
    }
    Ok(added)
}

#[cfg(test)]
#[allow(clippy::print_stdout, reason = "a skipped test says so")]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::path::PathBuf;

    /// `tests/golden/llama-tokenizer/make.py`.
    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama-tokenizer")
    }

    fn rows(file: &str, part: &str) -> Vec<(String, Vec<u32>, Option<String>)> {
        let all = json(&folder().join(file)).unwrap();
        let text = |v: &Value| v.as_str().map(str::to_string);
        let row = |v: &Value| {
            let ids = v["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            (text(&v["text"]).unwrap(), ids, text(&v["decoded"]))
        };
        let rows: Vec<_> = all[part].as_array().unwrap().iter().map(row).collect();
        assert!(rows.len() >= 8);
        rows
    }

    fn pieces(path: &Path, legacy: bool) -> Tokenizer {
        let model = SentencePiece::parse(&fsx::read(path).unwrap()).unwrap();
        let added = [("<image>".to_string(), 480), ("<pad>".to_string(), 481)].into();
        Tokenizer::from_pieces(model, added, legacy, true)
    }

    fn check_plain(path: &Path, expected: &str) {
        let model = SentencePiece::parse(&fsx::read(path).unwrap()).unwrap();
        let tokenizer = Tokenizer::from_pieces(model.clone(), BTreeMap::new(), true, true);
        for (text, ids, decoded) in rows(expected, "plain") {
            assert_eq!(model.encode(&text, true), ids, "{text:?}");
            assert_eq!(Some(tokenizer.decode(&ids).unwrap()), decoded, "{text:?}");
        }
    }

    #[test]
    fn a_small_sentencepiece_model_cuts_texts_as_the_reference_does() {
        check_plain(&folder().join("tiny.model"), "tiny.json");
    }

    #[test]
    fn llama_2_cuts_texts_as_the_reference_does() {
        match std::env::var_os("FEDLLAVA_DATA") {
            Some(data) => check_plain(&Path::new(&data).join("llama2-tokenizer/tokenizer.model"), "llama2.json"),
            None => println!("skipped: FEDLLAVA_DATA is not set"),
        }
    }

    #[test]
    fn marks_are_found_before_the_text_is_cut() {
        for (part, legacy) in [("marked-legacy", true), ("marked-modern", false)] {
            let tokenizer = pieces(&folder().join("tiny.model"), legacy);
            for (text, ids, _) in rows("tiny.json", part) {
                assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{part} {text:?}");
            }
        }
    }

    #[test]
    fn tokenizer_json_gives_what_transformers_gives() {
        for part in ["legacy", "modern"] {
            let tokenizer = Tokenizer::open(&folder().join(part)).unwrap();
            assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.id("<image>")), (Some(1), Some(2), Some(480)));
            for (text, ids, decoded) in rows("tiny.json", part) {
                assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{part} {text:?}");
                assert_eq!(Some(tokenizer.decode(&ids).unwrap()), decoded, "{part} {text:?}");
            }
        }
    }

    #[test]
    fn what_a_training_session_cut_and_filled_texts_to_is_reset() {
        let modern = folder().join("modern");
        let plain = Tokenizer::open(&modern).unwrap().encode("A brown dog runs on the grass.").unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(modern.join("tokenizer_config.json"), dir.path().join("tokenizer_config.json")).unwrap();
        let mut definition = json(&modern.join("tokenizer.json")).unwrap();
        let cut = serde_json::json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
        let fill = serde_json::json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 2, "pad_type_id": 0, "pad_token": "<pad>"});
        for (key, value) in [("truncation", cut), ("padding", fill)] {
            definition[key] = value;
            // A byte order mark before it is no matter either.
            std::fs::write(dir.path().join("tokenizer.json"), format!("\u{feff}{definition}")).unwrap();
            let got = Tokenizer::open(dir.path()).unwrap().encode("A brown dog runs on the grass.").unwrap();
            assert_eq!(got, plain, "{key}");
        }
    }

    #[test]
    fn streamed_text_is_the_text_and_never_half_a_character() {
        for tokenizer in
            [pieces(&folder().join("tiny.model"), true), Tokenizer::open(&folder().join("modern")).unwrap()]
        {
            let mut texts: Vec<Vec<u32>> =
                rows("tiny.json", "plain").into_iter().map(|(t, ..)| tokenizer.encode(&t).unwrap()).collect();
            // Bytes of no character, in a row and before a good one. (tokenizer.json gives up the good one too.)
            if matches!(tokenizer.inner, Inner::Pieces(_)) {
                texts.push(vec![3 + 0x80, 3 + 0x80, 3 + 0x80, 3 + 0xe4, 3 + 0xb8, 3 + 0xad, 3 + 0xff, 3 + 0xe4]);
            }
            for ids in texts {
                let mut stream = tokenizer.stream().unwrap();
                let (mut text, mut whole) = (String::new(), true);
                for &id in &ids {
                    let new = stream.push(id).unwrap();
                    whole &= !new.contains('\u{fffd}');
                    text.push_str(&new);
                }
                text.push_str(&stream.finish().unwrap());
                let all = tokenizer.decode(&ids).unwrap();
                assert_eq!(text, all, "{ids:?}");
                assert!(whole || all.contains('\u{fffd}'), "{ids:?}");
            }
        }
    }

    #[test]
    fn a_tokenizer_of_another_model_is_refused() {
        let e = pieces(&folder().join("tiny.model"), true).check_fits(480).unwrap_err().to_string();
        assert!(e.contains("482 tokens") && e.contains("480"), "{e}");
    }
}
