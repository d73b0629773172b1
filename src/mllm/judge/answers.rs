//! Scores of answers to samples: of choices by their options, of open questions by exact match, or by an endpoint.

use std::collections::BTreeMap;

use serde::Serialize;

use super::endpoint::Case;
use super::grammar::Parser;
use super::scores::{Answered, ChoiceScores};
use super::vqa::{MatchScores, normalised};
use crate::data::multimodal::{Ask, Sample};
use crate::error::{Error, Result};

/// The facet by which exact matches are also told apart: SLAKE asks in two languages.
const LANGUAGE: &str = "language";

/// What answers to a set's samples are worth.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AnswerScores {
    /// Of choices, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choices: Option<ChoiceScores>,
    /// Of open questions by exact match, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matches: Option<MatchScores>,
    /// The same by language, where samples name theirs.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub by_language: BTreeMap<String, MatchScores>,
}

impl AnswerScores {
    /// Of `answers[i]` to `samples[i]`; `probabilities[i]` are those of its options at the answer's first token, where they
    /// were asked (empty for an open question).
    pub fn of(
        samples: &[Sample],
        answers: &[String],
        probabilities: Option<&[Vec<f64>]>,
        parser: Parser,
    ) -> Result<AnswerScores> {
        let lengths = [Some(answers.len()), probabilities.map(<[_]>::len)];
        if let Some(n) = lengths.into_iter().flatten().find(|n| *n != samples.len()) {
            return Err(Error::defect(format!("judge: {n} answers or probabilities to {} samples", samples.len())));
        }
        let (mut scores, mut answered, mut options) = (AnswerScores::default(), Vec::new(), 0);
        for (i, (sample, answer)) in samples.iter().zip(answers).enumerate() {
            match (&sample.ask, sample.label) {
                (Ask::Choice(choice), Some(label)) => {
                    options = options.max(choice.options.len());
                    let read = parser.read(answer, &choice.options);
                    let probabilities = probabilities.map(|p| p[i].clone());
                    answered.push(Answered { read, label: label as usize, probabilities });
                }
                _ => {
                    let (kind, right) = (sample.facets.answer_type, normalised(&sample.target) == normalised(answer));
                    scores.matches.get_or_insert_default().count(kind, right);
                    if let Some(language) = sample.facets.more.get(LANGUAGE) {
                        scores.by_language.entry(language.clone()).or_default().count(kind, right);
                    }
                }
            }
        }
        scores.choices = (!answered.is_empty()).then(|| ChoiceScores::of(&answered, options));
        Ok(scores)
    }
}

/// What an endpoint would judge of the answers to open questions.
pub fn cases<'a>(samples: &'a [Sample], answers: &'a [String]) -> Vec<Case<'a>> {
    let case = |(sample, given): (&'a Sample, &'a String)| match &sample.ask {
        Ask::Open(question) => {
            let (kind, right) = (sample.facets.answer_type, sample.target.as_str());
            Some(Case { id: &sample.id, kind, question, right, given })
        }
        Ask::Choice(_) => None,
    };
    samples.iter().zip(answers).filter_map(case).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::data::multimodal::{AnswerType, Facets, hateful_memes};
    use crate::mllm::judge::vqa::Share;

    fn sample(ask: Ask, target: &str, label: Option<u32>, facets: Facets) -> Sample {
        Sample { id: target.into(), picture: None, text: None, ask, target: target.into(), label, facets }
    }

    fn answers<const N: usize>(all: [&str; N]) -> Vec<String> {
        all.map(String::from).to_vec()
    }

    #[test]
    fn choices_are_scored_by_option_with_the_probabilities_that_were_asked() {
        let meme = |label: u32| {
            let choice = Arc::new(hateful_memes::choice());
            let target = choice.options[label as usize].clone();
            sample(Ask::Choice(choice), &target, Some(label), Facets::default())
        };
        let samples = [meme(0), meme(1), meme(1)];
        let said = answers(["(A) not-hateful", "(B)", "I would say (A)"]);
        let sure = [vec![0.9, 0.1], vec![0.2, 0.8], vec![0.6, 0.4]];
        let strict = AnswerScores::of(&samples, &said, Some(&sure), Parser::Strict).unwrap();
        let choices = strict.choices.unwrap();
        assert_eq!((choices.unparsed, choices.auc, choices.auc_probability), (1, Some(0.75), Some(1.0)));
        assert!(strict.matches.is_none());
        let reference = AnswerScores::of(&samples, &said, None, Parser::Reference).unwrap().choices.unwrap();
        assert_eq!((reference.unparsed, reference.auc_probability), (0, None));
        assert!(AnswerScores::of(&samples, &said[1..], None, Parser::Strict).is_err());
    }

    #[test]
    fn open_questions_are_scored_by_match_also_by_language_and_become_cases() {
        let open = |target: &str, kind, language: &str| {
            let more = [("language", language.to_string())].into();
            sample(Ask::Open("q?".into()), target, None, Facets { answer_type: Some(kind), more })
        };
        let samples = [open("Yes", AnswerType::Closed, "en"), open("肺", AnswerType::Open, "zh")];
        let said = answers(["yes.", "肝"]);
        let scores = AnswerScores::of(&samples, &said, None, Parser::Strict).unwrap();
        assert_eq!(scores.matches.unwrap().overall, Share { right: 1, all: 2 });
        assert_eq!(scores.by_language["zh"].open, Share { right: 0, all: 1 });
        assert_eq!(scores.by_language["en"].closed, Share { right: 1, all: 1 });
        let cases = cases(&samples, &said);
        assert_eq!((cases.len(), cases[1].right, cases[1].given), (2, "肺", "肝"));
    }
}
