//! Sentences about a scene: several phrasings, incomplete, and wrong at a stated rate.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::attributes::{Attributes, Backdrop, Colour, Ground, Place, Shape, Size, Texture};
use super::config::WorldConfig;
use crate::key::Rng;

/// What a caption can be wrong about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attribute {
    /// How many objects.
    Count,
    /// Small or large.
    Size,
    /// The object's colour.
    Colour,
    /// The object's fill.
    Texture,
    /// The object's outline.
    Shape,
    /// Where the object is.
    Place,
    /// The background's pattern.
    Backdrop,
    /// The background's colour.
    Ground,
}

/// A sentence, and what is wrong with it: known to the experimenter, never to a learner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caption {
    /// Lower case, no punctuation, words of [`vocabulary`] only.
    pub text: String,
    /// The attribute that is said wrongly, if one is.
    pub wrong: Option<Attribute>,
}

/// What a sentence says; nothing is left out unless it is `None`.
#[derive(Clone, Copy)]
struct Said {
    count: Option<u8>,
    size: Option<Size>,
    colour: Option<Colour>,
    texture: Option<Texture>,
    shape: Option<Shape>,
    place: Option<Place>,
    backdrop: Option<Backdrop>,
    ground: Option<Ground>,
}

/// Words of the longest caption.
pub const MAX_WORDS: usize = 19;

/// The noun where the shape is left out.
const THING: [&str; 2] = ["object", "objects"];
const FRAMES: [&str; 7] =
    ["", "a picture of", "a photo of", "an image showing", "there", "this picture shows", "we see"];

/// One caption of a scene.
pub(super) fn caption(config: &WorldConfig, truth: &Attributes, rng: &mut Rng) -> Caption {
    let mut said = choose(config, truth, rng);
    let wrong = (rng.f64() < config.caption_noise).then(|| falsify(&mut said, rng));
    let some = truth.count > 1;
    Caption { text: sentence(&said, some, rng), wrong }
}

/// Which attributes are spoken of; at least one of colour, texture and shape.
fn choose(config: &WorldConfig, truth: &Attributes, rng: &mut Rng) -> Said {
    let mut keep = || rng.f64() >= config.caption_dropout;
    let (mut colour, mut texture, mut shape, count) = (keep(), keep(), keep(), keep());
    let mut detail = || rng.f64() < config.caption_detail;
    let (size, place, background) = (detail(), detail(), detail());
    if !(colour || texture || shape) {
        match rng.below(3) {
            0 => colour = true,
            1 => texture = true,
            _ => shape = true,
        }
    }
    // A background is named by its pattern, its colour, or both.
    let (backdrop, ground) = [(true, true), (true, false), (false, true)][rng.below(3)];
    let c = truth.composition;
    Said {
        // A single object is always "a …": there is no way not to say it.
        count: (count || truth.count == 1).then_some(truth.count),
        size: (size && truth.size != Size::Medium).then_some(truth.size),
        colour: colour.then_some(c.colour),
        texture: texture.then_some(c.texture),
        shape: shape.then_some(c.shape),
        place: truth.place.filter(|_| place),
        backdrop: (background && backdrop).then_some(truth.backdrop),
        ground: (background && ground).then_some(truth.ground),
    }
}

/// Replaces one of the things said, each equally likely, by another of its kind.
fn falsify(said: &mut Said, rng: &mut Rng) -> Attribute {
    let spoken = [
        (Attribute::Count, said.count.is_some()),
        (Attribute::Size, said.size.is_some()),
        (Attribute::Colour, said.colour.is_some()),
        (Attribute::Texture, said.texture.is_some()),
        (Attribute::Shape, said.shape.is_some()),
        (Attribute::Place, said.place.is_some()),
        (Attribute::Backdrop, said.backdrop.is_some()),
        (Attribute::Ground, said.ground.is_some()),
    ];
    let spoken: Vec<Attribute> = spoken.into_iter().filter_map(|(a, yes)| yes.then_some(a)).collect();
    let victim = spoken[rng.below(spoken.len())];
    match victim {
        Attribute::Count => said.count = said.count.map(|n| (n + rng.below(2) as u8) % 3 + 1),
        Attribute::Size => {
            said.size = said.size.map(|s| if s == Size::Small { Size::Large } else { Size::Small });
        }
        Attribute::Colour => said.colour = said.colour.map(|v| v.another(rng)),
        Attribute::Texture => said.texture = said.texture.map(|v| v.another(rng)),
        Attribute::Shape => said.shape = said.shape.map(|v| v.another(rng)),
        Attribute::Place => said.place = said.place.map(|v| v.another(rng)),
        Attribute::Backdrop => said.backdrop = said.backdrop.map(|v| v.another(rng)),
        Attribute::Ground => said.ground = said.ground.map(|v| v.another(rng)),
    }
    victim
}

/// `some`: more than one object, for a sentence that leaves the number out.
fn sentence(said: &Said, some: bool, rng: &mut Rng) -> String {
    let plural = said.count.map_or(some, |n| n > 1);
    let mut words: Vec<&str> = FRAMES[rng.below(FRAMES.len())].split_whitespace().collect();
    if words == ["there"] {
        words.push(if plural { "are" } else { "is" });
    }
    words.extend(subject(said, plural, rng));
    if let Some(place) = said.place {
        words.extend(match place {
            Place::Left => ["on", "the", "left"],
            Place::Right => ["on", "the", "right"],
            Place::Top => ["at", "the", "top"],
            Place::Bottom => ["at", "the", "bottom"],
            Place::Middle => ["in", "the", "middle"],
        });
    }
    words.extend(background(said, rng));
    words.join(" ")
}

/// `a small red striped circle`, `two red circles with stripes`, `some striped objects in red`.
fn subject(said: &Said, plural: bool, rng: &mut Rng) -> Vec<&'static str> {
    let way = rng.below(4);
    let fill_noun = said.texture.and_then(Texture::noun).filter(|_| way == 0);
    let colour_last = way == 1;
    let noun = match (said.shape, plural) {
        (Some(shape), false) => shape.word(),
        (Some(shape), true) => shape.plural(),
        (None, many) => THING[usize::from(many)],
    };
    let mut words: Vec<&str> = said.size.map(Size::word).into_iter().collect();
    words.extend(said.colour.map(Colour::word).filter(|_| !colour_last));
    words.extend(said.texture.map(Texture::word).filter(|_| fill_noun.is_none()));
    words.push(noun);
    let determiner = match said.count {
        Some(2) => "two",
        Some(3) => "three",
        None if plural => "some",
        _ => article(words[0]),
    };
    words.insert(0, determiner);
    if let Some(fill) = fill_noun {
        words.extend(["with", fill]);
    }
    if let Some(colour) = said.colour.filter(|_| colour_last) {
        words.extend(["in", colour.word()]);
    }
    words
}

/// `on a tiled navy background`, `in front of a tiled background`, `on plain beige`.
fn background(said: &Said, rng: &mut Rng) -> Vec<&'static str> {
    let look: Vec<&str> =
        [said.backdrop.map(Backdrop::word), said.ground.map(Ground::word)].into_iter().flatten().collect();
    let way = rng.below(3);
    let Some(&first) = look.first() else { return Vec::new() };
    let bare = way == 0 && said.ground.is_some();
    let mut words = if way == 1 { vec!["in", "front", "of"] } else { vec!["on"] };
    if !bare {
        words.push(article(first));
    }
    words.extend(look);
    if !bare {
        words.push("background");
    }
    words
}

fn article(next: &str) -> &'static str {
    if next.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// Every word of any caption or class name, lower case, sorted.
pub fn vocabulary() -> Vec<&'static str> {
    let mut words: BTreeSet<&str> = FRAMES.iter().flat_map(|f| f.split_whitespace()).collect();
    words.extend(THING);
    words.extend(["a", "an", "some", "two", "three", "is", "are", "with", "in", "on", "at", "the", "front", "of"]);
    words.insert("background");
    words.extend(Colour::ALL.iter().map(|v| v.word()));
    words.extend(Texture::ALL.iter().map(|v| v.word()));
    words.extend(Texture::ALL.iter().filter_map(|v| v.noun()));
    words.extend(Shape::ALL.iter().flat_map(|v| [v.word(), v.plural()]));
    words.extend(Backdrop::ALL.iter().map(|v| v.word()));
    words.extend(Ground::ALL.iter().map(|v| v.word()));
    words.extend(Place::ALL.iter().map(|v| v.word()));
    words.extend([Size::Small.word(), Size::Large.word()]);
    words.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::world::attributes::Composition;
    use crate::key::Key;

    fn draw_truth(rng: &mut Rng) -> Attributes {
        let count = 1 + rng.below(3) as u8;
        Attributes {
            composition: Composition::nth(rng.below(Composition::COUNT)),
            count,
            size: Size::draw(rng),
            place: (count == 1).then(|| Place::draw(rng)),
            backdrop: Backdrop::draw(rng),
            ground: Ground::draw(rng),
        }
    }

    /// Reads the words back, without the generator's own record: is any word of the sentence untrue?
    fn untrue(text: &str, truth: &Attributes) -> bool {
        let c = truth.composition;
        text.split(' ').any(|word| {
            let differs = |said: Option<bool>| said == Some(false);
            let number = match word {
                "two" => Some(truth.count == 2),
                "three" => Some(truth.count == 3),
                "some" | "objects" | "are" => Some(truth.count > 1 || text.contains("two") || text.contains("three")),
                "object" => Some(truth.count == 1),
                _ => None,
            };
            let shape = Shape::ALL.iter().find(|s| s.word() == word || s.plural() == word);
            let texture = Texture::ALL.iter().find(|t| t.word() == word || t.noun() == Some(word));
            differs(number)
                || differs(shape.map(|s| *s == c.shape))
                || differs(shape.filter(|s| s.word() == word).map(|_| truth.count == 1))
                || differs(texture.map(|t| *t == c.texture))
                || differs(Colour::from_word(word).map(|v| v == c.colour))
                || differs(Backdrop::from_word(word).map(|v| v == truth.backdrop))
                || differs(Ground::from_word(word).map(|v| v == truth.ground))
                || differs(Place::from_word(word).map(|v| Some(v) == truth.place))
                || differs(Size::from_word(word).map(|v| v == truth.size))
        })
    }

    #[test]
    fn a_caption_without_noise_says_only_what_is_true() {
        let config = WorldConfig { caption_noise: 0.0, ..WorldConfig::default() };
        let mut rng = Key::from_seed(1).rng();
        for _ in 0..5000 {
            let truth = draw_truth(&mut rng);
            let said = caption(&config, &truth, &mut rng);
            assert!(!untrue(&said.text, &truth), "{} of {truth:?}", said.text);
            assert_eq!(said.wrong, None);
        }
    }

    #[test]
    fn captions_are_wrong_at_the_stated_rate_as_read_from_their_words() {
        for rate in [0.1, 0.4, 1.0] {
            let config = WorldConfig { caption_noise: rate, ..WorldConfig::default() };
            let mut rng = Key::from_seed(2).rng();
            let n = 10_000;
            let mut wrong = 0.0;
            for _ in 0..n {
                let truth = draw_truth(&mut rng);
                let said = caption(&config, &truth, &mut rng);
                assert_eq!(untrue(&said.text, &truth), said.wrong.is_some(), "{} of {truth:?}", said.text);
                wrong += if said.wrong.is_some() { 1.0 } else { 0.0 };
            }
            // Three standard deviations of a binomial are below 0.015.
            assert!((wrong / f64::from(n) - rate).abs() < 0.015, "{wrong} at rate {rate}");
        }
    }

    #[test]
    fn attributes_are_left_out_at_the_stated_rate() {
        let config = WorldConfig { caption_noise: 0.0, caption_dropout: 0.3, ..WorldConfig::default() };
        let mut rng = Key::from_seed(3).rng();
        let n = 10_000;
        let silent = (0..n)
            .filter(|_| {
                let truth = draw_truth(&mut rng);
                let text = caption(&config, &truth, &mut rng).text;
                !text.split(' ').any(|w| Colour::from_word(w).is_some())
            })
            .count() as f64;
        // Left out with 0.3; a third of the time that all three are (0.027), the colour comes back.
        assert!((silent / f64::from(n) - (0.3 - 0.009)).abs() < 0.015, "{silent}");
    }

    #[test]
    fn every_word_of_ten_thousand_captions_is_in_the_vocabulary_and_every_word_of_it_is_used() {
        let words: BTreeSet<&str> = vocabulary().into_iter().collect();
        let config = WorldConfig { caption_detail: 0.8, ..WorldConfig::default() };
        let mut rng = Key::from_seed(4).rng();
        let (mut used, mut longest) = (BTreeSet::new(), 0);
        for _ in 0..10_000 {
            let truth = draw_truth(&mut rng);
            let text = caption(&config, &truth, &mut rng).text;
            longest = longest.max(text.split(' ').count());
            used.extend(text.split(' ').map(String::from));
        }
        assert_eq!(longest, MAX_WORDS);
        assert_eq!(used, words.into_iter().map(String::from).collect());
    }
}
