//! LLaVA's `conversations`: turns of a person and of the model, as samples.
//!
//! Turns are `{"from": "human" | "gpt", "value": …}` (LLaVA) or `{"role": "user" | "assistant", "content": …}` (MiniCPM-V,
//! FedMLLM). Each answer is a sample of its own with the question before it; what was said earlier is not part of it,
//! which is counted. The placeholder `<image>` is taken out: whether there is a picture is the sample's to say.

use serde::Deserialize;
use serde_json::Value;

use super::reading::Word;
use crate::error::{Error, Result};

/// The picture's place in a question.
pub const PLACEHOLDER: &str = "<image>";

#[derive(Deserialize)]
struct Turn {
    #[serde(alias = "role", default)]
    from: String,
    #[serde(alias = "content", default)]
    value: Word,
}

/// Questions and their answers, in order.
pub fn turns(talk: &Value) -> Result<Vec<(String, String)>> {
    let wrong = |_| Error::data("conversations is no list of turns");
    let turns: Vec<Turn> = serde_json::from_value(talk.clone()).map_err(wrong)?;
    let (mut asked, mut found) = (String::new(), Vec::new());
    for turn in turns {
        let said = turn.value.text().unwrap_or_default();
        match turn.from.as_str() {
            "human" | "user" => asked = said.replace(PLACEHOLDER, "").trim().to_string(),
            "gpt" | "assistant" => found.push((std::mem::take(&mut asked), said.trim().to_string())),
            "system" => {}
            other => {
                return Err(Error::data(format!("a turn of {other:?}"))
                    .hint("turns are from human and gpt, or user and assistant"));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read_and_a_stranger_is_refused() {
        let talk = |a: &str, b: &str, who: &str, what: &str| serde_json::json!([{ who: a, what: "<image>\nWhat?" }, { who: b, what: "A star." }, { who: a, what: "Red?\n<image>" }, { who: b, what: "Yes" }]);
        let want = [("What?", "A star."), ("Red?", "Yes")].map(|(q, a)| (q.to_string(), a.to_string()));
        assert_eq!(turns(&talk("human", "gpt", "from", "value")).unwrap(), want);
        assert_eq!(turns(&talk("user", "assistant", "role", "content")).unwrap(), want);
        let e = turns(&talk("user", "someone", "role", "content")).unwrap_err().to_string();
        assert!(e.contains("someone"), "{e}");
        assert!(turns(&serde_json::json!("x")).is_err());
    }
}
