//! Where the parts of a LLaVA lie among a checkpoint's tensors.

use crate::error::{Error, Result};
use crate::model::llama::Names;

/// Where the parts of a LLaVA lie in a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    /// The language model.
    pub text: Names,
    /// The tower, up to `embeddings`.
    pub tower: String,
    /// The projector.
    pub projector: String,
}

impl Default for Parts {
    /// The Hub's names.
    fn default() -> Self {
        Parts {
            text: Names { body: "language_model.model".into(), head: "language_model.lm_head".into() },
            tower: "vision_tower.vision_model".into(),
            projector: "multi_modal_projector".into(),
        }
    }
}

impl Parts {
    /// Finds the naming scheme among a checkpoint's tensors: the Hub's, transformers 5's files, or its modules'.
    pub fn find(names: &[&str]) -> Result<Self> {
        let first = |what: &str, choices: &[&str], tail: &str| -> Result<String> {
            let there = |c: &&&str| names.binary_search(&format!("{c}{tail}").as_str()).is_ok();
            choices.iter().find(there).map(|c| c.to_string()).ok_or_else(|| {
                let tried: Vec<String> = choices.iter().map(|c| format!("{c}{tail}")).collect();
                Error::data(format!("no {what} among the weights")).hint(format!("looked for {}", tried.join(", ")))
            })
        };
        let bodies = ["language_model.model", "model.language_model", "language_model"];
        let towers =
            ["vision_tower.vision_model", "vision_tower", "model.vision_tower.vision_model", "model.vision_tower"];
        let projectors = ["multi_modal_projector", "model.multi_modal_projector"];
        let body = first("language model", &bodies, ".embed_tokens.weight")?;
        // A tied head is not in the file.
        let head =
            first("head", &["language_model.lm_head", "lm_head"], ".weight").unwrap_or_else(|_| "lm_head".into());
        Ok(Parts {
            text: Names { body, head },
            tower: first("image tower", &towers, ".embeddings.class_embedding")?,
            projector: first("projector", &projectors, ".linear_1.weight")?,
        })
    }
}
