//! What the demo's multimodal LLM is taught: to look, to find a word in a row, to do both at once, and to choose a letter.
//! Never all of it: no lesson gives a picture and a text and asks for a choice, which is what the demo's questions do.

use std::sync::Arc;

use crate::data::Images;
use crate::data::multimodal::world::{PLACES, in_a_row};
use crate::data::multimodal::{Ask, Choice, Facets, Modalities, Sample};
use crate::data::pool::Source;
use crate::data::world::{Attributes, Colour, Shape};
use crate::key::Rng;
use crate::mllm::wording::Prompts;

/// A kind of lesson.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A picture becomes a sentence.
    Caption,
    /// The colour of a picture's object.
    Look,
    /// The place of a word in a text.
    Find,
    /// The place of a picture's colour in a text.
    Point,
    /// The place of a word as a choice of letters, without a picture.
    ChoosePlace,
    /// The colour of a picture's object as a choice of letters, without a text.
    ChooseColour,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 6] =
        [Kind::Caption, Kind::Look, Kind::Find, Kind::Point, Kind::ChoosePlace, Kind::ChooseColour];
    /// What the shards of a step are about, in turn.
    pub const TURNS: [Kind; 8] = [
        Kind::Caption,
        Kind::Look,
        Kind::Find,
        Kind::Find,
        Kind::Point,
        Kind::Point,
        Kind::ChoosePlace,
        Kind::ChooseColour,
    ];

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Caption => "describe the picture",
            Kind::Look => "name its colour",
            Kind::Find => "find a word",
            Kind::Point => "find its colour",
            Kind::ChoosePlace => "choose a word's place",
            Kind::ChooseColour => "choose its colour",
        }
    }
}

/// The pictures that lessons are about, what is true of each and what is said of it.
pub struct Gallery {
    /// `(n, 3, 32, 32)` bytes.
    pub images: Arc<Images>,
    /// Of each picture.
    pub truth: Vec<Attributes>,
    /// Of each picture.
    pub captions: Vec<String>,
    /// What asks for a caption.
    pub instruction: String,
}

/// One lesson.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taught {
    /// The picture before the question, if any.
    pub picture: Option<usize>,
    /// The question.
    pub ask: String,
    /// Its answer.
    pub answer: String,
}

impl Gallery {
    /// A lesson drawn from `rng`.
    pub fn draw(&self, kind: Kind, rng: &mut Rng) -> Taught {
        let i = rng.below(self.truth.len());
        let colour = self.truth[i].composition.colour;
        let about = |ask: String, answer: String| Taught { picture: Some(i), ask, answer };
        match kind {
            Kind::Caption => about(self.instruction.clone(), self.captions[i].clone()),
            Kind::Look => about("Which colour is it?".into(), colour.word().into()),
            Kind::Find => {
                let (words, place) = row(None, rng);
                let ask = format!("{}\nWhere is {}?", in_a_row(&words), words[place]);
                Taught { picture: None, ask, answer: PLACES[place].into() }
            }
            Kind::Point => {
                let (words, place) = row(Some(colour), rng);
                about(format!("{}\nWhere is its colour?", in_a_row(&words)), PLACES[place].into())
            }
            Kind::ChoosePlace => {
                let (words, place) = row(None, rng);
                let (question, options) = (format!("Where is {}?", words[place]), PLACES[..words.len()].to_vec());
                self.choose(None, Some(in_a_row(&words)), question, &options, place, rng)
            }
            Kind::ChooseColour => {
                let (words, place) = row(Some(colour), rng);
                self.choose(Some(i), None, "Which colour is it?".into(), &words, place, rng)
            }
        }
    }

    fn choose(
        &self,
        picture: Option<usize>,
        text: Option<String>,
        question: String,
        options: &[&str],
        right: usize,
        rng: &mut Rng,
    ) -> Taught {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let sample = Sample {
            id: String::new(),
            picture: picture.map(|i| Source::Pixels(self.images.clone(), i)),
            text,
            target: options[right].clone(),
            ask: Ask::Choice(Arc::new(Choice { question, options, image_first: false })),
            label: Some(right as u32),
            facets: Facets::default(),
        };
        let worded = WORDINGS[rng.below(WORDINGS.len())].training(&sample, Modalities::BOTH);
        Taught { picture, ask: worded.ask, answer: worded.answer }
    }
}

/// Words in a row.
const WORDS: usize = 2;

/// All wordings that a federation may ask in.
const WORDINGS: [Prompts; 6] = [Prompts::Base, Prompts::Agnostic, Prompts::P1, Prompts::P2, Prompts::P4, Prompts::P5];

/// Two different words and the place of one: of `shown` among other colours, else of any among colours or shapes.
fn row(shown: Option<Colour>, rng: &mut Rng) -> (Vec<&'static str>, usize) {
    let place = rng.below(WORDS);
    let colours: Vec<&str> = Colour::ALL.iter().map(|c| c.word()).collect();
    let all = match (shown, rng.below(2)) {
        (None, 1) => Shape::ALL.iter().map(|s| s.word()).collect(),
        _ => colours,
    };
    let mut words: Vec<&str> = rng.choose(all.len(), WORDS).into_iter().map(|i| all[i]).collect();
    if let Some(colour) = shown {
        match words.iter().position(|w| *w == colour.word()) {
            Some(at) => words.swap(at, place),
            None => words[place] = colour.word(),
        }
    }
    (words, place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::world::{World, WorldConfig};
    use crate::key::Key;

    pub(super) fn gallery(n: usize) -> Gallery {
        let drawn = World::new(WorldConfig::default(), Key::from_seed(1)).unwrap().plain_spoken().llava_training(n);
        Gallery {
            images: Arc::new(Images::new([3, 32, 32], drawn.pixels).unwrap()),
            truth: drawn.truth,
            captions: drawn.captions.into_iter().map(|c| c.text).collect(),
            instruction: "What is it?".into(),
        }
    }

    #[test]
    fn a_lesson_is_true_and_its_row_holds_every_word_once() {
        let gallery = gallery(20);
        let mut rng = Key::from_seed(2).rng();
        for _ in 0..300 {
            let lesson = gallery.draw(Kind::Point, &mut rng);
            let colour = gallery.truth[lesson.picture.unwrap()].composition.colour.word();
            let words: Vec<&str> = lesson.ask.lines().next().unwrap().split(" then ").collect();
            assert_eq!(words.iter().filter(|w| **w == colour).count(), 1, "{lesson:?}");
            assert_eq!(words[PLACES.iter().position(|p| *p == lesson.answer).unwrap()], colour, "{lesson:?}");
        }
    }

    #[test]
    fn no_lesson_shows_picture_and_text_and_asks_for_a_choice() {
        let gallery = gallery(5);
        let mut rng = Key::from_seed(3).rng();
        for kind in Kind::ALL {
            for _ in 0..100 {
                let lesson = gallery.draw(kind, &mut rng);
                let all = lesson.picture.is_some() && lesson.ask.contains(" then ") && lesson.ask.contains("Options:");
                assert!(!all, "{lesson:?}");
            }
        }
    }
}
