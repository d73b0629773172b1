//! A byte-level BPE tokenizer, learnt from a few texts, for language models made from scratch: what GPT-2 and Llama 3 have,
//! at any size. Every text comes back as it was, known words or not.

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Trainer};

use super::words::{self, MARKS};
use crate::error::{Error, Result};

/// Learns merges from `texts` until there are `size` tokens ([`MARKS`] and the 256 bytes among them) or none that occurs
/// twice is left, and writes `tokenizer.json` and `tokenizer_config.json`. A text begins with `<s>`. Gives the number of
/// tokens.
pub fn save(texts: &[String], size: usize, folder: &Path) -> Result<usize> {
    let model = learn(texts, size.saturating_sub(MARKS.len())).map_err(|e| Error::defect(format!("tokenizer: {e}")))?;
    let mut pieces: Vec<(String, u32)> = model.get_vocab().into_iter().collect();
    pieces.sort_by_key(|(_, id)| *id);
    let first = MARKS.len() as u32;
    let marks = MARKS.iter().map(ToString::to_string).zip(0u32..);
    let all = marks.chain(pieces.into_iter().map(|(piece, id)| (piece, first + id)));
    let vocab: serde_json::Map<String, Value> = all.map(|(piece, id)| (piece, id.into())).collect();
    let tokens = vocab.len();
    let merges = serde_json::to_value(&model).map_err(|e| Error::defect(format!("tokenizer: {e}")))?["merges"].take();
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let model = json!({ "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab,
        "merges": merges });
    words::write(folder, &json!({ "normalizer": null, "pre_tokenizer": bytes, "decoder": bytes, "model": model }))?;
    Ok(tokens)
}

fn learn(texts: &[String], size: usize) -> tokenizers::Result<BPE> {
    let cut = ByteLevel::new(false, true, true);
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(size)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    trainer.feed(texts.iter(), |text| {
        let mut pieces = PreTokenizedString::from(text);
        cut.pre_tokenize(&mut pieces)?;
        let words = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        Ok(words.into_iter().map(|(word, _, _)| word.to_string()).collect())
    })?;
    let mut model = BPE::default();
    trainer.train(&mut model)?;
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::llama::Tokenizer;

    #[test]
    fn every_text_comes_back_and_words_of_the_texts_are_one_token() {
        let dir = tempfile::tempdir().unwrap();
        let texts = vec!["USER: Which colour is it? (A) red".to_string(), "red then blue, is it red".to_string()];
        let tokens = save(&[texts.clone(), texts].concat(), 400, dir.path()).unwrap();
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.size()), (Some(1), Some(2), tokens));
        assert!(tokens > 261 && tokens <= 400, "{tokens}");
        for text in ["(A) red\n(B) blue", " Pneumothorax — é, 3 × 4?", "Options:\n\n", "a<image>b"] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(ids[0], 1);
            assert_eq!(tokenizer.decode(&ids).unwrap(), text.replace("<image>", ""), "{ids:?}");
        }
        assert_eq!(tokenizer.encode("is it red").unwrap().len(), 5, "<s>, i, s: no blank before; it; red");
        assert_eq!(tokenizer.encode("<image>\n").unwrap()[1], 3);
    }

    #[test]
    fn the_same_texts_give_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let texts: Vec<String> = (0..40).map(|i| format!("word{} then word{}", i % 7, i % 5)).collect();
        let bytes = |name: &str| {
            save(&texts, 320, &dir.path().join(name)).unwrap();
            std::fs::read(dir.path().join(name).join("tokenizer.json")).unwrap()
        };
        assert_eq!(bytes("a"), bytes("b"));
    }
}
