//! An OpenAI-compatible server as judge of open answers.
//!
//! It is asked one question a sample: whether the given answer is right or good enough, 1 or 0, as FedMLLM asks GPT-4 (the
//! words here are this project's). What it says is kept in a [`Verdicts`](super::verdicts::Verdicts) under a digest of the question
//! and the model's name, so a repeated run asks nothing twice. A busy server (429), one that fails (5xx) and one that does
//! not answer are asked again, after pauses that double, or that the server asks for (`Retry-After`, a minute at most). A verdict that is none counts as wrong and is counted apart.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::JudgeConfig;
use super::verdicts::{Verdict, Verdicts};
use super::vqa::MatchScores;
use crate::data::multimodal::AnswerType;
use crate::error::{Error, Place, Result};
use crate::exec::Context;
use crate::fsx;

/// What is judged.
#[derive(Clone, Debug)]
pub struct Case<'a> {
    /// Of the sample.
    pub id: &'a str,
    /// Open or closed.
    pub kind: Option<AnswerType>,
    /// What was asked.
    pub question: &'a str,
    /// The right answer.
    pub right: &'a str,
    /// The answer that is judged.
    pub given: &'a str,
}

/// What a judge made of many cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Judgements {
    /// Answers that it called right, by type.
    pub scores: MatchScores,
    /// Verdicts that could not be read; wrong above.
    pub unjudged: usize,
    /// Requests that were sent; the rest was known.
    pub asked: usize,
}

/// A judge at work.
pub struct Endpoint {
    config: JudgeConfig,
    verdicts: Verdicts,
    /// Before the first repetition.
    pause: Duration,
}

impl Endpoint {
    /// Of a config that names an endpoint; verdicts are kept in the file `verdicts`.
    pub fn open(config: &JudgeConfig, verdicts: &Path) -> Result<Endpoint> {
        config.check()?;
        if config.endpoint.is_empty() {
            return Err(Error::input("judge.endpoint is empty: nobody judges open answers"));
        }
        Ok(Endpoint { config: config.clone(), verdicts: Verdicts::open(verdicts)?, pause: Duration::from_secs(1) })
    }

    /// Judges all, in order.
    pub fn judge(&mut self, cases: &[Case], cx: &Context) -> Result<Judgements> {
        let mut judged = Judgements::default();
        for case in cases {
            cx.cancel.check()?;
            let (said, fresh) = self.said(case, cx).at(|| format!("judge: sample {}", case.id))?;
            let verdict = verdict(&said);
            judged.asked += usize::from(fresh);
            judged.unjudged += usize::from(verdict.is_none());
            judged.scores.count(case.kind, verdict == Some(true));
        }
        Ok(judged)
    }

    /// What the judge says of a case, and whether it was asked now.
    fn said(&mut self, case: &Case, cx: &Context) -> Result<(String, bool)> {
        let prompt = prompt(case);
        let asked = fsx::hex(fsx::proof(&[self.config.model.as_bytes(), prompt.as_bytes()]));
        if let Some(said) = self.verdicts.get(&asked) {
            return Ok((said.to_string(), false));
        }
        let body = json!({
            "model": self.config.model,
            "messages": [{ "role": "user", "content": prompt }],
            "max_tokens": self.config.max_tokens,
            "temperature": 0,
        });
        let said = self.request(&body, cx)?;
        let model = self.config.model.clone();
        self.verdicts.keep(Verdict { asked, id: case.id.to_string(), model, said: said.clone() })?;
        Ok((said, true))
    }

    /// The text of the server's answer, after as many attempts as the config allows.
    fn request(&self, body: &Value, cx: &Context) -> Result<String> {
        let mut pause = self.pause;
        for attempt in 0..=self.config.retries {
            match self.send(body)? {
                Reply::Said(text) => return Ok(text),
                Reply::Busy { why, .. } if attempt == self.config.retries => {
                    let times = attempt + 1;
                    return Err(Error::environment(format!("{}: {why}, {times} times", self.config.endpoint))
                        .hint("what was judged so far is kept; the same command goes on from there"));
                }
                Reply::Busy { wanted, .. } => wait(wanted.map_or(pause, |wanted| wanted.min(LONGEST)), cx)?,
            }
            pause *= 2;
        }
        Err(Error::defect("judge: no attempt"))
    }

    #[cfg(not(feature = "net"))]
    fn send(&self, _: &Value) -> Result<Reply> {
        Err(Error::environment("this binary was built without the feature `net`: it asks no server"))
    }

    #[cfg(feature = "net")]
    fn send(&self, body: &Value) -> Result<Reply> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(self.config.timeout)))
            .http_status_as_error(false)
            .build()
            .into();
        let url = format!("{}/chat/completions", self.config.endpoint.trim_end_matches('/'));
        let mut request = agent.post(&url).header("Content-Type", "application/json");
        if let Some(key) = std::env::var(&self.config.key_variable).ok().filter(|key| !key.is_empty()) {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let mut response = match request.send(body.to_string().as_str()) {
            Ok(response) => response,
            Err(e) => return Ok(Reply::Busy { why: e.to_string(), wanted: None }),
        };
        let status = response.status().as_u16();
        let wanted = response.headers().get("retry-after").and_then(|v| v.to_str().ok()?.trim().parse().ok());
        let text = match response.body_mut().read_to_string() {
            Ok(text) => text,
            Err(e) => return Ok(Reply::Busy { why: e.to_string(), wanted: None }),
        };
        self.reply(status, &text, wanted.map(Duration::from_secs))
    }

    /// What a response means.
    #[cfg_attr(not(feature = "net"), allow(dead_code))]
    fn reply(&self, status: u16, text: &str, wanted: Option<Duration>) -> Result<Reply> {
        let short: String = text.chars().take(300).collect();
        match status {
            200..=299 => {
                let answer: Value = fsx::json(text).at(|| self.config.endpoint.clone())?;
                let said = answer["choices"][0]["message"]["content"].as_str();
                let none =
                    || Error::data(format!("{}: no choices[0].message.content in {short}", self.config.endpoint));
                said.map(|s| Reply::Said(s.to_string())).ok_or_else(none)
            }
            408 | 429 | 500..=599 => Ok(Reply::Busy { why: format!("status {status}"), wanted }),
            401 | 403 => Err(Error::input(format!("{}: status {status}: {short}", self.config.endpoint))
                .hint(format!("put the server's key into {}", self.config.key_variable))),
            _ => Err(Error::input(format!("{}: status {status}: {short}", self.config.endpoint))
                .hint("judge.endpoint goes up to /v1, and judge.model is a name that the server knows")),
        }
    }
}

/// What came of one request.
#[cfg_attr(not(feature = "net"), allow(dead_code))]
enum Reply {
    Said(String),
    /// Why, and after how long it wants to be asked again.
    Busy {
        why: String,
        wanted: Option<Duration>,
    },
}

/// The longest pause that a server is granted.
const LONGEST: Duration = Duration::from_secs(60);

/// Waits, and asks now and then whether to stop.
fn wait(pause: Duration, cx: &Context) -> Result<()> {
    let mut left = pause;
    while !left.is_zero() {
        cx.cancel.check()?;
        let part = left.min(Duration::from_millis(100));
        std::thread::sleep(part);
        left -= part;
    }
    Ok(())
}

/// What the judge is asked.
fn prompt(case: &Case) -> String {
    format!(
        "You judge answers to questions about medical images.\n\n\
         Question: {}\nCorrect answer: {}\nAnswer to be judged: {}\n\n\
         If the answer to be judged says what the correct answer says, or is a good enough answer to the question, the \
         correctness is 1; otherwise it is 0.\nReply with one line of this form and nothing else:\nCorrectness: 0 or 1",
        case.question, case.right, case.given
    )
}

/// Whether a verdict says right: the first number behind the first `Correctness:`, which must be 0 or 1.
pub fn verdict(said: &str) -> Option<bool> {
    let (_, rest) = said.split_once("Correctness:")?;
    let number = rest
        .split(|c: char| !(c.is_alphanumeric() || c == '.'))
        .find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    match number.trim_end_matches('.') {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

#[cfg(all(test, feature = "net"))]
mod tests;
