//! What SmolVLM, Qwen2.5-VL and MiniCPM-V read of their folders alike: tokenizer, chat template, the picture's token, the
//! tokens that end an answer, the picture processor's settings.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::fsx;
use crate::model::chat::Chat;
use crate::model::llama::Tokenizer;
use crate::model::llama::config::tokens;

const SAME: &str = "take tokenizer and weights from the same model";

/// A tokenizer and the template of its conversations.
pub(super) struct Speech {
    pub tokenizer: Tokenizer,
    pub chat: Chat,
}

impl Speech {
    /// Reads both; a tokenizer that exceeds the model's vocabulary is refused, and a folder without a template. `mark`
    /// stands for a picture in a written conversation.
    pub fn open(folder: &Path, vocabulary: usize, mark: &str) -> Result<Self> {
        let tokenizer = Tokenizer::open(folder)?;
        tokenizer.check_fits(vocabulary)?;
        let chat = Chat::open_marked(folder, mark)?;
        match chat.has_template() {
            true => Ok(Speech { tokenizer, chat }),
            false => Err(Error::data("no chat template").hint(
                "the published model has it in chat_template.json, chat_template.jinja or tokenizer_config.json",
            )),
        }
    }

    /// The token that is exactly this mark.
    pub fn token(&self, mark: &str) -> Result<u32> {
        self.tokenizer.id(mark).ok_or_else(|| Error::data(format!("the tokenizer has no {mark}")).hint(SAME))
    }

    /// Refuses a tokenizer whose `mark` is another token than the model's `own`.
    pub fn agree(&self, mark: &str, own: u32) -> Result<()> {
        match self.tokenizer.id(mark) {
            Some(id) if id == own => Ok(()),
            other => {
                Err(Error::data(format!("the tokenizer's {mark} is token {other:?}, the model's is {own}")).hint(SAME))
            }
        }
    }
}

/// The tokens that end an answer as `generation_config.json` names them; `known` where it names none or is not there.
pub(super) fn stops(folder: &Path, known: Vec<u32>) -> Result<Vec<u32>> {
    let path = folder.join("generation_config.json");
    if !path.is_file() {
        return Ok(known);
    }
    Ok(tokens(&fsx::read_json(&path)?, "eos_token_id")?.filter(|s| !s.is_empty()).unwrap_or(known))
}

/// `image_token_id` of a `config.json`, `usual` where it is absent; one outside of the vocabulary is refused.
pub(super) fn image_token(json: &Value, usual: u32, vocabulary: usize) -> Result<u32> {
    let token = match tokens(json, "image_token_id")?.as_deref() {
        None => usual,
        Some([one]) => *one,
        Some(_) => return Err(Error::data("image_token_id is not one token id")),
    };
    match (token as usize) < vocabulary {
        true => Ok(token),
        false => Err(Error::data(format!("image_token_id = {token} is outside of the vocabulary of {vocabulary}"))),
    }
}

/// A picture processor's settings: `preprocessor_config.json`, or transformers 5's `processor_config.json`; and where.
pub(super) fn processor(folder: &Path) -> Result<(Value, PathBuf)> {
    let (alone, joint) = (folder.join("preprocessor_config.json"), folder.join("processor_config.json"));
    let path = if alone.is_file() { alone } else { joint };
    if !path.is_file() {
        return Err(Error::input(format!("{}: no preprocessor_config.json here", folder.display())));
    }
    let mut json: Value = fsx::read_json(&path)?;
    let inner = json.get_mut("image_processor").map(Value::take);
    Ok((inner.unwrap_or(json), path))
}

/// A number for each colour under `key`, `usual` where it is absent.
pub(super) fn three(json: &Value, key: &str, usual: [f32; 3]) -> Result<[f32; 3]> {
    let Some(list) = json.get(key) else { return Ok(usual) };
    let numbers: Option<Vec<f32>> =
        list.as_array().map(|l| l.iter().filter_map(|v| v.as_f64()).map(|v| v as f32).collect());
    numbers.and_then(|n| n.try_into().ok()).ok_or_else(|| Error::data(format!("{key} is not three numbers")))
}

/// A written conversation cut at its `pictures` marks; another number of them is refused. `form` is how one is written.
pub(super) fn around<'t>(text: &'t str, mark: &str, form: &str, pictures: usize) -> Result<Vec<&'t str>> {
    let pieces: Vec<&str> = text.split(mark).collect();
    match pieces.len() == pictures + 1 {
        true => Ok(pieces),
        false => {
            let places = pieces.len() - 1;
            Err(Error::input(format!("the prompt has places for {places} pictures, {pictures} are given"))
                .hint(format!("write {form} once for each picture")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_folder_says_of_pictures_is_read_or_refused_by_its_key() {
        assert_eq!(image_token(&json!({}), 7, 10).unwrap(), 7);
        assert_eq!(image_token(&json!({ "image_token_id": 3 }), 7, 10).unwrap(), 3);
        let e = image_token(&json!({ "image_token_id": 12 }), 7, 10).unwrap_err().to_string();
        assert!(e.contains("image_token_id = 12") && e.contains("of 10"), "{e}");
        assert_eq!(three(&json!({ "mean": [1, 2, 3] }), "mean", [0.5; 3]).unwrap(), [1.0, 2.0, 3.0]);
        assert_eq!(three(&json!({}), "mean", [0.5; 3]).unwrap(), [0.5; 3]);
        assert!(three(&json!({ "mean": [1, 2] }), "mean", [0.5; 3]).unwrap_err().to_string().contains("mean"));
    }

    #[test]
    fn marks_and_pictures_are_as_many() {
        assert_eq!(around("a#b#c", "#", "#", 2).unwrap(), ["a", "b", "c"]);
        let e = around("a#b", "#", "<#>", 2).unwrap_err().to_string();
        assert!(e.contains("places for 1 pictures, 2 are given") && e.contains("write <#> once"), "{e}");
    }

    #[test]
    fn ends_are_those_of_the_generation_config_where_it_names_some() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(stops(dir.path(), vec![2]).unwrap(), [2]);
        std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [5, 6]}"#).unwrap();
        assert_eq!(stops(dir.path(), vec![2]).unwrap(), [5, 6]);
    }
}
