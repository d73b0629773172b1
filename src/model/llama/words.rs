//! A tokenizer of whole words, for language models made from scratch on a small vocabulary.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::fsx;

/// Marks before the words, by id: unknown word, beginning, end, image, filling.
pub const MARKS: [&str; 5] = ["<unk>", "<s>", "</s>", "<image>", "<pad>"];

/// Writes `tokenizer.json` and `tokenizer_config.json`: lower-case words and single punctuation marks, each one token,
/// [`MARKS`] before them. A text begins with `<s>`. The word `a` should be among them: streaming finds spaces by it. Gives the number of tokens.
pub fn save(words: &[&str], folder: &Path) -> Result<usize> {
    let mut sorted: Vec<String> = words.iter().map(|w| w.to_lowercase()).collect();
    sorted.sort_unstable();
    sorted.dedup();
    let all = MARKS.iter().map(|m| m.to_string()).chain(sorted);
    let vocab: serde_json::Map<String, Value> = all.zip(0u32..).map(|(word, id)| (word, id.into())).collect();
    let tokens = vocab.len();
    let model = json!({ "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" });
    write(
        folder,
        &json!({ "normalizer": { "type": "Lowercase" }, "pre_tokenizer": { "type": "Whitespace" }, "decoder": null,
            "model": model }),
    )?;
    Ok(tokens)
}

/// Writes the two files of a tokenizer with [`MARKS`] whose texts begin with `<s>`; `own` is what makes it this one: its
/// normaliser, cuts, decoder and model.
pub(super) fn write(folder: &Path, own: &Value) -> Result<()> {
    let mark = |(id, content): (usize, &&str)| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let begin = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
    let text = |id: &str, kind: u32| json!({ "Sequence": { "id": id, "type_id": kind } });
    let definition = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": MARKS.iter().enumerate().map(mark).collect::<Vec<_>>(),
        "normalizer": own["normalizer"],
        "pre_tokenizer": own["pre_tokenizer"],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text("A", 0)],
            "pair": [begin, text("A", 0), text("B", 1)],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } },
        },
        "decoder": own["decoder"],
        "model": own["model"],
    });
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "pad_token": "<pad>", "image_token": "<image>", "clean_up_tokenization_spaces": false,
        "model_max_length": 1_000_000,
    });
    fsx::create_dir(folder)?;
    for (name, value) in [("tokenizer.json", &definition), ("tokenizer_config.json", &config)] {
        let text = serde_json::to_string_pretty(value).map_err(|e| Error::defect(format!("{name}: {e}")))?;
        fsx::write_atomic(&folder.join(name), text.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::llama::Tokenizer;

    #[test]
    fn every_word_is_one_token_and_comes_back_and_others_are_unknown() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(save(&["a", "user", ":", "red", "star", "Star", "."], dir.path()).unwrap(), 5 + 6);
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        let id = |w: &str| tokenizer.id(w).unwrap();
        let ids = tokenizer.encode("USER: <image>\nA red moon star.").unwrap();
        assert_eq!(ids, [1, id("user"), id(":"), 3, id("a"), id("red"), 0, id("star"), id(".")]);
        assert_eq!(tokenizer.decode(&[1, id("red"), id("star"), 2]).unwrap(), "red star");
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.size()), (Some(1), Some(2), 11));
        let mut stream = tokenizer.stream().unwrap();
        assert_eq!(stream.push(id("red")).unwrap() + &stream.push(id("star")).unwrap(), "red star");
    }
}
