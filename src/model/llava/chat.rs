//! Conversations as text, in the form that LLaVA-1.5 was trained on (`vicuna_v1`; the chat template of
//! `llava-hf/llava-1.5-7b-hf`).

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sets the scene; written without a name.
    System,
    /// Asks.
    User,
    /// Answers.
    Assistant,
}

/// What somebody says.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// Who.
    pub role: Role,
    /// How many images come before the text.
    pub images: usize,
    /// The text.
    pub text: String,
}

impl Turn {
    /// A question about one image.
    pub fn about_image(text: &str) -> Self {
        Turn { role: Role::User, images: 1, text: text.into() }
    }
}

/// Where an image stands in a prompt.
pub const IMAGE: &str = "<image>";

/// The prompt of a conversation; `open` ends it with the assistant's name, so that the model answers.
pub fn vicuna(turns: &[Turn], open: bool) -> String {
    let mut prompt = String::new();
    for turn in turns {
        prompt.push_str(match turn.role {
            Role::System => "",
            Role::User => "USER: ",
            Role::Assistant => "ASSISTANT: ",
        });
        for _ in 0..turn.images {
            prompt.push_str(IMAGE);
            prompt.push('\n');
        }
        prompt.push_str(&turn.text);
        prompt.push(' ');
    }
    if open {
        prompt.push_str("ASSISTANT:");
    }
    prompt
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tests/golden/llava/make.py`: the published template by jinja.
    #[test]
    fn prompts_are_those_of_the_published_template() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llava/prompts.json");
        let cases: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for case in cases.as_array().unwrap() {
            let turn = |m: &serde_json::Value| Turn {
                role: match m["role"].as_str().unwrap() {
                    "system" => Role::System,
                    "user" => Role::User,
                    _ => Role::Assistant,
                },
                images: m["images"].as_u64().unwrap() as usize,
                text: m["text"].as_str().unwrap().into(),
            };
            let turns: Vec<Turn> = case["messages"].as_array().unwrap().iter().map(turn).collect();
            assert_eq!(vicuna(&turns, case["open"].as_bool().unwrap()), case["prompt"].as_str().unwrap());
        }
        assert!(cases.as_array().unwrap().len() >= 5);
    }
}
