//! What a multimodal model is asked about an image: the paper's three kinds and a plain sentence, as files.
//!
//! The texts are this project's own (the paper's were not published). They name no class of any benchmark.

use std::path::Path;

use crate::error::{Error, Result};
use crate::fsx;

/// One instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// `conversation`, `detail`, `reasoning`, `short`, or the stem of a person's own file.
    pub id: String,
    /// What is asked.
    pub text: String,
    /// SHA-256 of the text.
    pub digest: String,
}

const SHIPPED: [(&str, &str); 4] = [
    ("conversation", include_str!("../../data/prompts/conversation.txt")),
    ("detail", include_str!("../../data/prompts/detail.txt")),
    ("reasoning", include_str!("../../data/prompts/reasoning.txt")),
    ("short", include_str!("../../data/prompts/short.txt")),
];

impl Instruction {
    /// From its text; blanks at both ends do not count.
    pub fn new(id: impl Into<String>, text: &str) -> Result<Self> {
        let (id, text) = (id.into(), text.trim().to_string());
        if text.is_empty() {
            return Err(Error::input(format!("prompt {id} is empty")));
        }
        let digest = fsx::sha256(text.as_bytes());
        Ok(Instruction { id, text, digest })
    }

    /// A shipped one by its name, or the contents of a text file.
    pub fn find(name: &str) -> Result<Self> {
        if let Some((id, text)) = SHIPPED.iter().find(|(id, _)| *id == name) {
            return Self::new(*id, text);
        }
        let path = Path::new(name);
        if !path.is_file() {
            let names: Vec<&str> = SHIPPED.iter().map(|(id, _)| *id).collect();
            return Err(
                Error::input(format!("no prompt {name:?}")).hint(format!("{}, or a text file", names.join(", ")))
            );
        }
        let id = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        Self::new(id, &fsx::read_written(path)?)
    }

    /// Several, with different ids.
    pub fn find_all(names: &[String]) -> Result<Vec<Self>> {
        let found: Vec<Self> = names.iter().map(|n| Self::find(n)).collect::<Result<_>>()?;
        for (i, prompt) in found.iter().enumerate() {
            if found[..i].iter().any(|other| other.id == prompt.id) {
                return Err(Error::input(format!("two prompts are called {}", prompt.id)));
            }
        }
        if found.is_empty() {
            return Err(Error::input("no prompt is given").hint("prompts = [\"detail\"]"));
        }
        Ok(found)
    }
}

/// Questions and answers of a text with `Q:` and `A:`; a text without them is one answer to no question.
pub fn dialogue(text: &str) -> Vec<(Option<String>, String)> {
    let mut turns: Vec<(Option<String>, String)> = Vec::new();
    let mut question: Option<String> = None;
    let mut answering = false;
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
        if let Some(q) = line.strip_prefix("Q:") {
            question = Some(q.trim().to_string());
            answering = false;
        } else if let Some(a) = line.strip_prefix("A:") {
            turns.push((question.take(), a.trim().to_string()));
            answering = true;
        } else if let (true, Some((_, answer))) = (answering, turns.last_mut()) {
            answer.push(' ');
            answer.push_str(line);
        } else if question.is_none() {
            turns.push((None, line.to_string()));
            answering = true;
        }
    }
    turns.retain(|(_, answer)| !answer.is_empty());
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_kinds_are_there_and_name_no_benchmark_class() {
        let all = Instruction::find_all(&["conversation".into(), "detail".into(), "reasoning".into()]).unwrap();
        let classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
        for prompt in &all {
            let words: Vec<String> = prompt.text.split(|c: char| !c.is_alphabetic()).map(str::to_lowercase).collect();
            assert!(words.len() > 30);
            assert!(classes.iter().all(|c| !words.iter().any(|w| w == c || w == &format!("{c}s"))), "{}", prompt.id);
        }
        assert!(
            Instruction::find("details").unwrap_err().to_string().contains("conversation, detail, reasoning, short")
        );
    }

    #[test]
    fn questions_and_answers_are_parted_and_plain_text_is_one_answer() {
        let got = dialogue("Q: How many?\nA: Two.\nBoth red.\n\nQ: Where?\nA: On grass.\nQ: Unanswered?");
        let want = [(Some("How many?".into()), "Two. Both red.".into()), (Some("Where?".into()), "On grass.".into())];
        assert_eq!(got, want);
        assert_eq!(dialogue("A red star.\nIt shines."), [(None, "A red star. It shines.".to_string())]);
    }
}
