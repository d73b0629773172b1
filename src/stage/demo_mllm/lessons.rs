//! What the demo's multimodal LLM is taught: to describe a picture, to name its colour, and to read what a text names. Never
//! what the demo's federation asks: there text and picture come together, and the answer is of both.

use std::sync::Arc;

use crate::data::Images;
use crate::data::multimodal::world::THINGS;
use crate::data::world::Attributes;
use crate::key::Rng;

/// A kind of lesson.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A picture becomes a sentence.
    Caption,
    /// The colour of a picture's object.
    Look,
    /// The thing that a text names, without a picture.
    Read,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 3] = [Kind::Caption, Kind::Look, Kind::Read];
    /// What the shards of a step are about, in turn.
    pub const TURNS: [Kind; 4] = [Kind::Caption, Kind::Look, Kind::Look, Kind::Read];

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Caption => "describe the picture",
            Kind::Look => "name its colour",
            Kind::Read => "read a thing",
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
        let about = |ask: &str, answer: &str| Taught { picture: Some(i), ask: ask.into(), answer: answer.into() };
        match kind {
            Kind::Caption => about(&self.instruction, &self.captions[i]),
            Kind::Look => about("Which colour is it?", self.truth[i].composition.colour.word()),
            Kind::Read => {
                let thing = THINGS[i % THINGS.len()];
                Taught { picture: None, ask: format!("a {thing}\nWhat is it?"), answer: thing.into() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::world::{World, WorldConfig};
    use crate::key::Key;

    #[test]
    fn a_lesson_is_true_and_none_has_picture_and_text() {
        let drawn = World::new(WorldConfig::default(), Key::from_seed(1)).unwrap().plain_spoken().llava_training(20);
        let gallery = Gallery {
            images: Arc::new(Images::new([3, 32, 32], drawn.pixels).unwrap()),
            truth: drawn.truth,
            captions: drawn.captions.into_iter().map(|c| c.text).collect(),
            instruction: "What is it?".into(),
        };
        let mut rng = Key::from_seed(2).rng();
        for n in 0..300 {
            let lesson = gallery.draw(Kind::ALL[n % 3], &mut rng);
            match lesson.picture {
                Some(i) if n % 3 == 1 => assert_eq!(lesson.answer, gallery.truth[i].composition.colour.word()),
                Some(i) => assert_eq!(lesson.answer, gallery.captions[i]),
                None => assert_eq!(lesson.ask, format!("a {}\nWhat is it?", lesson.answer)),
            }
        }
    }
}
