//! How answers are judged.
//!
//! | file | what |
//! |---|---|
//! | [`grammar`] | a choice read from an answer: strictly, or as FedMLLM's scripts do |
//! | [`scores`] | accuracy, AUC, macro-F1 of choices |
//! | [`vqa`] | exact match of open answers after the VQA normaliser, by open and closed |
//! | [`answers`] | all of them for the samples of a set |
//! | [`endpoint`], [`verdicts`] | an OpenAI-compatible server as judge, off unless asked; what it said is kept |

pub mod answers;
pub mod endpoint;
pub mod grammar;
pub mod verdicts;
pub mod scores;
pub mod vqa;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub use answers::AnswerScores;
pub use endpoint::{Case, Endpoint, Judgements};
pub use grammar::{Parser, Read};
pub use scores::{Answered, ChoiceScores};
pub use vqa::{MatchScores, Share};

/// The `judge` section: how answers are read and who judges open ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JudgeConfig {
    /// How a choice is read from an answer.
    pub parser: Parser,
    /// Address of an OpenAI-compatible server that judges open answers, up to `/v1`; empty: nobody is asked.
    pub endpoint: String,
    /// The judging model's name on that server.
    pub model: String,
    /// The environment variable that holds the server's key; where it is not set, none is sent.
    pub key_variable: String,
    /// Most tokens of a verdict.
    pub max_tokens: usize,
    /// Seconds that one request may take.
    pub timeout: u64,
    /// How often a request is repeated when the server is busy or does not answer; the pauses double from one second.
    pub retries: usize,
}

impl Default for JudgeConfig {
    fn default() -> Self {
        JudgeConfig {
            parser: Parser::Strict,
            endpoint: String::new(),
            model: "gpt-4".into(),
            key_variable: "OPENAI_API_KEY".into(),
            max_tokens: 100,
            timeout: 60,
            retries: 5,
        }
    }
}

impl JudgeConfig {
    /// Refuses values that cannot be used.
    pub fn check(&self) -> Result<()> {
        if self.endpoint.is_empty() {
            return Ok(());
        }
        if !(self.endpoint.starts_with("http://") || self.endpoint.starts_with("https://")) {
            return Err(Error::input(format!("judge.endpoint = {:?} is no address", self.endpoint))
                .hint("such as http://localhost:8000/v1"));
        }
        match self.timeout == 0 || self.max_tokens == 0 || self.model.is_empty() {
            true => Err(Error::input("judge: timeout, max_tokens and model may not be empty or 0")),
            false => Ok(()),
        }
    }
}
