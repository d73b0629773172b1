//! A control: pictures or texts dealt anew among the samples of a part, so that they say nothing of the answer any more.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Multimodal, Sample, Subset};
use crate::error::{Error, Result};
use crate::key::{Key, Purpose};

/// What is dealt anew among samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Shuffled {
    /// Nothing: every sample as it is.
    #[default]
    Nothing,
    /// The pictures.
    Images,
    /// The texts beside the questions.
    Texts,
}

impl Shuffled {
    /// The set with this dealt anew within its training part, its validation part and each test: every sample that has one
    /// gets another sample's. Refused where no part holds two. What is dealt does not depend on who holds it.
    pub fn of(self, mut set: Multimodal, key: Key) -> Result<Multimodal> {
        if self == Shuffled::Nothing {
            return Ok(set);
        }
        let key = key.fold(Purpose::Shuffle, self as u64);
        let parts = [&mut set.train, &mut set.val].into_iter().chain(&mut set.tests);
        let moved: usize = parts.zip(0u64..).map(|(part, n)| self.deal(part, key.fold(Purpose::Item, n))).sum();
        if moved == 0 {
            return Err(Error::input(format!("task.shuffled: {} has no {} to deal anew", set.name, self.word()))
                .hint("choose the other modality, or task.shuffled = \"nothing\""));
        }
        Ok(set)
    }

    fn word(self) -> &'static str {
        match self {
            Shuffled::Nothing => "thing",
            Shuffled::Images => "picture",
            Shuffled::Texts => "text",
        }
    }

    fn there(self, sample: &Sample) -> bool {
        if self == Shuffled::Images { sample.picture.is_some() } else { sample.text.is_some() }
    }

    /// In a random circle each gives its own to the next. How many samples got another's.
    fn deal(self, part: &mut Subset, key: Key) -> usize {
        let mut circle: Vec<usize> = (0..part.samples.len()).filter(|&i| self.there(&part.samples[i])).collect();
        key.rng().shuffle(&mut circle);
        for pair in circle.windows(2) {
            let [from, to] = *pair else { continue };
            let (low, high) = part.samples.split_at_mut(from.max(to));
            let (a, b) = (&mut low[from.min(to)], &mut high[0]);
            match self {
                Shuffled::Images => std::mem::swap(&mut a.picture, &mut b.picture),
                _ => std::mem::swap(&mut a.text, &mut b.text),
            }
        }
        if circle.len() > 1 { circle.len() } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::multimodal::world::{QuestionsConfig, load};

    fn set() -> Multimodal {
        let config = QuestionsConfig { train: 36, test: 12, ..QuestionsConfig::default() };
        load(&config, Key::from_seed(1)).unwrap()
    }

    fn texts(part: &Subset) -> Vec<String> {
        part.samples.iter().map(|s| s.text.clone().unwrap()).collect()
    }

    fn pictures(part: &Subset) -> Vec<Vec<u8>> {
        part.samples.iter().map(|s| s.picture.as_ref().unwrap().bytes().unwrap()).collect()
    }

    #[test]
    fn every_sample_gets_anothers_picture_and_keeps_all_else() {
        let (old, new) = (set(), Shuffled::Images.of(set(), Key::from_seed(2)).unwrap());
        for (a, b) in [(&old.train, &new.train), (&old.tests[0], &new.tests[0])] {
            assert_eq!(texts(a), texts(b));
            let (before, mut after) = (pictures(a), pictures(b));
            assert!(before.iter().zip(&after).all(|(a, b)| a != b));
            let mut sorted = before.clone();
            sorted.sort();
            after.sort();
            assert_eq!(sorted, after, "the same pictures");
            assert!(a.samples.iter().zip(&b.samples).all(|(a, b)| a.id == b.id && a.label == b.label));
        }
        assert_eq!(pictures(&set().train), pictures(&Shuffled::Nothing.of(set(), Key::from_seed(2)).unwrap().train));
    }

    #[test]
    fn texts_alone_are_dealt_anew_by_the_key_and_what_is_not_there_is_refused() {
        let (old, new) = (set(), Shuffled::Texts.of(set(), Key::from_seed(2)).unwrap());
        assert_eq!(pictures(&old.train), pictures(&new.train));
        assert_ne!(texts(&old.train), texts(&new.train));
        assert_ne!(texts(&new.train), texts(&Shuffled::Texts.of(set(), Key::from_seed(3)).unwrap().train));
        let mut bare = set();
        let parts = [&mut bare.train].into_iter().chain(&mut bare.tests);
        parts.flat_map(|p| &mut p.samples).for_each(|s| s.text = None);
        let e = Shuffled::Texts.of(bare, Key::from_seed(2)).unwrap_err().to_string();
        assert!(e.contains("task.shuffled") && e.contains("no text"), "{e}");
    }
}
