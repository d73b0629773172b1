//! How well sentences about pictures agree with what is true of them.

use std::collections::BTreeMap;

use super::attributes::{Attributes, Backdrop, Colour, Ground, Place, Shape, Size, Texture};
use super::caption::Attribute;

/// Attributes that every picture has and a whole caption names.
const CORE: [Attribute; 4] = [Attribute::Count, Attribute::Colour, Attribute::Texture, Attribute::Shape];

/// What a sentence says, attribute by attribute, and whether it is true; read from its words alone.
pub fn statements(text: &str, truth: &Attributes) -> BTreeMap<Attribute, bool> {
    let c = truth.composition;
    let words: Vec<String> =
        text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase).collect();
    let mut said = BTreeMap::new();
    let mut note = |what: Attribute, right: bool| {
        let all = said.entry(what).or_insert(true);
        *all &= right;
    };
    let has = |word: &str| words.iter().any(|w| w == word);
    for word in words.iter().map(String::as_str) {
        if let Some(shape) = Shape::ALL.iter().find(|s| s.word() == word || s.plural() == word) {
            note(Attribute::Shape, *shape == c.shape);
            if shape.word() == word && !has("some") {
                note(Attribute::Count, truth.count == 1);
            }
        }
        if let Some(texture) = Texture::ALL.iter().find(|t| t.word() == word || t.noun() == Some(word)) {
            note(Attribute::Texture, *texture == c.texture);
        }
        let others = [
            (
                Attribute::Count,
                [("two", 2), ("three", 3), ("object", 1)].iter().find(|n| n.0 == word).map(|n| n.1 == truth.count),
            ),
            (Attribute::Colour, Colour::from_word(word).map(|v| v == c.colour)),
            (Attribute::Backdrop, Backdrop::from_word(word).map(|v| v == truth.backdrop)),
            (Attribute::Ground, Ground::from_word(word).map(|v| v == truth.ground)),
            (Attribute::Place, Place::from_word(word).map(|v| Some(v) == truth.place)),
            (Attribute::Size, Size::from_word(word).map(|v| v == truth.size)),
        ];
        for (what, right) in others {
            if let Some(right) = right {
                note(what, right);
            }
        }
    }
    said
}

/// Counts over many captions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Agreement {
    /// Statements.
    pub said: usize,
    /// True ones.
    pub right: usize,
    /// What there was to say.
    pub there: usize,
}

impl Agreement {
    /// The harmonic mean of the true share of what is said and the said share of what is true, in `[0, 1]`.
    pub fn f1(&self) -> f64 {
        2.0 * self.right as f64 / ((self.said + self.there) as f64).max(1.0)
    }
}

/// Agreement of captions with the truth about their pictures on number, colour, texture and shape: all together, and
/// each.
pub fn agreement<'a>(
    pairs: impl IntoIterator<Item = (&'a str, &'a Attributes)>,
) -> (Agreement, Vec<(Attribute, Agreement)>) {
    let mut each = CORE.map(|a| (a, Agreement::default()));
    for (text, truth) in pairs {
        let said = statements(text, truth);
        for (attribute, sum) in &mut each {
            sum.there += 1;
            sum.said += usize::from(said.contains_key(attribute));
            sum.right += usize::from(said.get(attribute) == Some(&true));
        }
    }
    let all = each.iter().fold(Agreement::default(), |a, (_, b)| Agreement {
        said: a.said + b.said,
        right: a.right + b.right,
        there: a.there + b.there,
    });
    (all, each.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::world::{World, WorldConfig};
    use crate::key::Key;

    #[test]
    fn captions_of_the_renderer_are_as_true_and_as_complete_as_their_rates_say() {
        let of = |caption_noise, caption_dropout| {
            let config = WorldConfig { caption_noise, caption_dropout, caption_detail: 0.0, ..WorldConfig::default() };
            let drawn = World::new(config, Key::from_seed(1)).unwrap().pool(2000);
            agreement(drawn.captions.iter().map(|c| c.text.as_str()).zip(&drawn.truth)).0
        };
        assert_eq!(of(0.0, 0.0).f1(), 1.0);
        let noisy = of(0.2, 0.0);
        // One of four statements is wrong in a fifth of the captions.
        assert!((noisy.right as f64 / noisy.said as f64 - 0.95).abs() < 0.01, "{noisy:?}");
        let silent = of(0.0, 0.3);
        assert_eq!(silent.right, silent.said);
        assert!(silent.said < silent.there * 4 / 5, "{silent:?}");
    }

    #[test]
    fn a_sentence_of_another_picture_disagrees() {
        let drawn = World::new(WorldConfig::default(), Key::from_seed(2)).unwrap().pool(1000);
        let own = agreement(drawn.captions.iter().map(|c| c.text.as_str()).zip(&drawn.truth)).0.f1();
        let others = agreement(drawn.captions.iter().map(|c| c.text.as_str()).zip(drawn.truth[1..].iter())).0.f1();
        assert!(own > 0.8 && others < 0.4, "{own} {others}");
    }
}
