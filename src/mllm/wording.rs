//! How a sample is put into words: FedMLLM's templates, by what a client holds and by strategy.
//!
//! ```text
//! [<image>]
//! Select the best answer to the following multiple-choice question{clause}.
//! [the text]
//! Is the content hateful{clause}?
//! Options:
//! (A) not-hateful
//! (B) hateful
//! Answer with the option's letter … The best answer is: ⟵ (B) hateful
//! ```
//!
//! The base strategy's clause names the modalities that are there; the agnostic one (the paper's prompt strategy) says one
//! thing whatever is there, in training and in evaluation. P1 to P5 are the authors' ablation: like the agnostic one they
//! do not look at what is there (so P1 is not the base), and P3 is the agnostic one. An open question is asked as it is.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::multimodal::{Ask, Choice, Modalities, Sample};

/// How samples are put into words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Prompts {
    /// Names the modalities that the client holds of the sample.
    #[default]
    Base,
    /// The prompt strategy: "without considering the modality", whatever is there.
    Agnostic,
    /// The ablation's first: always text and image.
    P1,
    /// Its second: the available content from text and image.
    P2,
    /// Its third: the agnostic one.
    P3,
    /// Its fourth: all available information, regardless of its modality.
    P4,
    /// Its fifth: no clause.
    P5,
}

/// What is said about one sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worded {
    /// Whether the picture goes before the question.
    pub picture: bool,
    /// What is asked, without a placeholder.
    pub ask: String,
    /// What the answer is trained towards.
    pub answer: String,
}

impl Worded {
    /// The question with `placeholder` on a line before it where there is a picture.
    pub fn placed(&self, placeholder: &str) -> String {
        match self.picture {
            true => format!("{placeholder}\n{}", self.ask),
            false => self.ask.clone(),
        }
    }
}

const LAST_LINE: &str = "Answer with the option's letter from the given choices directly and only give the best option. The best answer is: ";

impl Prompts {
    /// What a client that holds `holds` of a sample trains on.
    pub fn training(self, sample: &Sample, holds: Modalities) -> Worded {
        let (picture, text) = sample.seen(holds);
        let seen = Modalities { image: picture.is_some(), text: text.is_some() };
        match &sample.ask {
            Ask::Choice(choice) => Worded {
                picture: seen.image,
                ask: self.choice(choice, seen, text),
                answer: match sample.label {
                    Some(label) => format!("({}) {}", Choice::letter(label as usize), sample.target),
                    None => sample.target.clone(),
                },
            },
            Ask::Open(question) => Worded {
                picture: seen.image,
                ask: text.map_or_else(|| question.clone(), |text| format!("{text}\n{question}")),
                answer: sample.target.clone(),
            },
        }
    }

    /// What a model is asked when it is judged: all that the sample has.
    pub fn evaluation(self, sample: &Sample) -> Worded {
        self.training(sample, Modalities::BOTH)
    }

    fn choice(self, choice: &Choice, seen: Modalities, text: Option<&str>) -> String {
        let mut said =
            format!("Select the best answer to the following multiple-choice question{}.\n", self.clause(seen, false));
        if let Some(text) = text {
            said += &format!("{text}\n");
        }
        said += &format!("{}\nOptions:\n", with_clause(&choice.question, self.clause(seen, choice.image_first)));
        for (i, option) in choice.options.iter().enumerate() {
            said += &format!("({}) {option}\n", Choice::letter(i));
        }
        said + LAST_LINE
    }

    /// What is said of the modalities, with the blank or comma before it.
    fn clause(self, seen: Modalities, image_first: bool) -> &'static str {
        let pair = if image_first { " based on the image and text" } else { " based on the text and image" };
        match self {
            Prompts::Base => match seen {
                Modalities::BOTH => pair,
                Modalities::IMAGE => " based on the image",
                Modalities::TEXT => " based on the text",
                _ => "",
            },
            Prompts::P1 => pair,
            Prompts::P2 => " based on the available content from the text and image",
            Prompts::Agnostic | Prompts::P3 => ", without considering the modality",
            Prompts::P4 => " based on all available information, regardless of its modality",
            Prompts::P5 => "",
        }
    }
}

/// A question with a clause before its question mark.
fn with_clause(question: &str, clause: &str) -> String {
    match question.strip_suffix('?') {
        Some(stem) => format!("{stem}{clause}?"),
        None => format!("{question}{clause}"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::data::multimodal::{Facets, crisismmd, hateful_memes};
    use crate::data::pool::Source;

    fn meme(label: u32) -> Sample {
        let choice = Arc::new(hateful_memes::choice());
        Sample {
            id: "1".into(),
            picture: Some(Source::File(PathBuf::from("img/1.png"))),
            text: Some("what a day".into()),
            target: choice.options[label as usize].clone(),
            ask: Ask::Choice(choice),
            label: Some(label),
            facets: Facets::default(),
        }
    }

    #[test]
    fn a_whole_meme_is_asked_about_as_published() {
        let turn = Prompts::Base.training(&meme(1), Modalities::BOTH);
        insta::assert_snapshot!(turn.placed("<image>") + &turn.answer, @r"
        <image>
        Select the best answer to the following multiple-choice question based on the text and image.
        what a day
        Is the content hateful based on the text and image?
        Options:
        (A) not-hateful
        (B) hateful
        Answer with the option's letter from the given choices directly and only give the best option. The best answer is: (B) hateful
        ");
        // The model's answer follows one blank.
        assert!(turn.ask.ends_with("answer is: "));
    }

    #[test]
    fn the_base_names_what_is_there_and_leaves_out_the_lines_of_what_is_not() {
        let said = |holds| {
            let turn = Prompts::Base.training(&meme(0), holds);
            let placed = turn.placed("<image>");
            placed.split("\nOptions").next().unwrap().to_string()
        };
        let head = "Select the best answer to the following multiple-choice question";
        let image = format!("<image>\n{head} based on the image.\nIs the content hateful based on the image?");
        assert_eq!(said(Modalities::IMAGE), image);
        let text = format!("{head} based on the text.\nwhat a day\nIs the content hateful based on the text?");
        assert_eq!(said(Modalities::TEXT), text);
        assert_eq!(said(Modalities::NEITHER), format!("{head}.\nIs the content hateful?"));
    }

    #[test]
    fn the_agnostic_one_says_the_same_whatever_is_there_in_evaluation_too() {
        let lines = |prompts: Prompts, holds| {
            let ask = prompts.training(&meme(0), holds).ask;
            let kept: Vec<&str> = ask.lines().filter(|l| !l.contains("what a day")).collect();
            kept.join("\n")
        };
        let all = [Modalities::BOTH, Modalities::IMAGE, Modalities::TEXT, Modalities::NEITHER];
        for prompts in [Prompts::Agnostic, Prompts::P1, Prompts::P2, Prompts::P4, Prompts::P5] {
            for holds in all {
                assert_eq!(lines(prompts, holds), lines(prompts, Modalities::BOTH));
            }
        }
        let evaluation = Prompts::Agnostic.evaluation(&meme(0));
        assert_eq!(evaluation, Prompts::P3.training(&meme(0), Modalities::BOTH));
        assert!(evaluation.ask.starts_with(
            "Select the best answer to the following multiple-choice question, without considering the modality.\nwhat a day\n\
             Is the content hateful, without considering the modality?\n"
        ));
    }

    #[test]
    fn the_ablations_five_clauses_are_the_authors() {
        let question = |prompts: Prompts| {
            let ask = prompts.training(&meme(0), Modalities::IMAGE).ask;
            ask.lines().nth(1).unwrap().to_string()
        };
        let said = [Prompts::P1, Prompts::P2, Prompts::P3, Prompts::P4, Prompts::P5].map(question).join("\n");
        insta::assert_snapshot!(said, @r"
        Is the content hateful based on the text and image?
        Is the content hateful based on the available content from the text and image?
        Is the content hateful, without considering the modality?
        Is the content hateful based on all available information, regardless of its modality?
        Is the content hateful?
        ");
    }

    #[test]
    fn a_tweet_has_eight_options_and_its_question_names_the_image_first() {
        let choice = Arc::new(crisismmd::choice());
        let tweet = Sample { ask: Ask::Choice(choice), target: "vehicle_damage".into(), label: Some(5), ..meme(0) };
        let turn = Prompts::Base.evaluation(&tweet);
        assert_eq!(turn.answer, "(F) vehicle_damage");
        insta::assert_snapshot!(turn.ask.trim_end(), @r"
        Select the best answer to the following multiple-choice question based on the text and image.
        what a day
        What is the humanitarian category based on the image and text?
        Options:
        (A) affected_individuals
        (B) infrastructure_and_utility_damage
        (C) injured_or_dead_people
        (D) missing_or_found_people
        (E) rescue_volunteering_or_donation_effort
        (F) vehicle_damage
        (G) other_relevant_information
        (H) not_humanitarian
        Answer with the option's letter from the given choices directly and only give the best option. The best answer is:
        ");
    }

    #[test]
    fn an_open_question_is_asked_raw_whatever_the_strategy() {
        let open =
            Sample { text: None, ask: Ask::Open("Is there air?".into()), target: "No".into(), label: None, ..meme(0) };
        for prompts in [Prompts::Base, Prompts::Agnostic, Prompts::P4] {
            let turn = prompts.training(&open, Modalities::IMAGE);
            assert_eq!((turn.placed("<image>").as_str(), turn.answer.as_str()), ("<image>\nIs there air?", "No"));
        }
        let alone = Sample { picture: None, ..open };
        assert_eq!(Prompts::Base.training(&alone, Modalities::TEXT).placed("<image>"), "Is there air?");
    }
}
