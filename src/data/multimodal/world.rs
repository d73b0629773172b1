//! A procedural set whose questions need picture and text: for the demo and for tests.
//!
//! The text names two to four colours (or shapes) in a row, the picture shows one object of the world, and the question is
//! which of the named ones it is: the first, the second, … So the text alone says which words there are and not which is
//! right, the picture alone says the colour and not its place. Samples come in blocks of options²: one choice of words in
//! each rotation, with each of its words shown; within a block every text stands with every answer once, and so does every
//! colour. So whoever sees one modality is right in exactly one of `options`, and who sees both can always be.
//!
//! The label is the place, which a Dirichlet partition goes by. Training and test pictures have keys of their own.
//!
//! `form = "name"` is the easier set: the text names a thing ("a cup") and the picture shows its colour; the question, an
//! open one, is which one it is: "red cup". In a block options things stand with options colours, each pair once.

use std::collections::BTreeSet;
use std::sync::Arc;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AnswerType, Ask, Choice, Facets, Metric, Multimodal, Recipe, Sample, Subset};
use crate::data::Images;
use crate::data::census::Census;
use crate::data::pool::Source;
use crate::data::world::{Colour, Composition, Difficulty, PIXELS, SIDE, Shape, World, WorldConfig};
use crate::error::{Error, Result};
use crate::key::{Key, Purpose, Rng};

/// What the text names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Naming {
    /// The object's colour.
    #[default]
    Colour,
    /// The object's outline.
    Shape,
}

/// What is asked about picture and text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Which of the named words is shown: a choice among their places.
    #[default]
    Which,
    /// Colour and thing: the picture shows the one, the text names the other.
    Name,
}

/// The procedural set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QuestionsConfig {
    /// Which of several words is shown (a choice), or which one it is (colour and thing).
    pub form: Form,
    /// Words in a text, and so options of a question: 2 to 4; with form = "name" things and colours in a block.
    pub options: usize,
    /// What the words name.
    pub about: Naming,
    /// Training samples, a multiple of options².
    pub train: usize,
    /// Test samples, a multiple of options².
    pub test: usize,
    /// How hard a picture is.
    pub difficulty: Difficulty,
}

impl Default for QuestionsConfig {
    fn default() -> Self {
        let plain = Difficulty::default();
        let difficulty = Difficulty { clutter: 0, occlusion: 0.0, noise: 0.02, colour_jitter: 0.4, ..plain };
        QuestionsConfig { form: Form::Which, options: 2, about: Naming::Colour, train: 1152, test: 288, difficulty }
    }
}

/// Colours and shapes that are far apart.
const COLOURS: [Colour; 6] = [Colour::Red, Colour::Yellow, Colour::Green, Colour::Blue, Colour::Purple, Colour::White];
const SHAPES: [Shape; 6] = [Shape::Circle, Shape::Square, Shape::Star, Shape::Ring, Shape::Cross, Shape::Arrow];
/// The options, by place.
pub const PLACES: [&str; 4] = ["first", "second", "third", "fourth"];
const BETWEEN: &str = "then";
/// What a text names beside a picture's colour.
pub const THINGS: [&str; 6] = ["cup", "hat", "ball", "book", "bird", "car"];
const WHICH_ONE: &str = "Which one is it?";

/// Words in a row, as a text names them.
pub fn in_a_row(words: &[&str]) -> String {
    words.join(&format!(" {BETWEEN} "))
}

/// Subset of the key of each side's pictures.
enum Side {
    Train = 11,
    Test = 12,
}

impl Naming {
    fn word(self, n: usize) -> &'static str {
        match self {
            Naming::Colour => COLOURS[n].word(),
            Naming::Shape => SHAPES[n].word(),
        }
    }

    /// Any composition that the world shows, but of the `n`-th word.
    fn shown(self, n: usize, rng: &mut Rng) -> Composition {
        let any = Composition::nth(rng.below(Composition::COUNT));
        match self {
            Naming::Colour => Composition { colour: COLOURS[n], ..any },
            Naming::Shape => Composition { shape: SHAPES[n], ..any },
        }
    }

    fn question(self) -> &'static str {
        match self {
            Naming::Colour => "Which colour is it?",
            Naming::Shape => "Which shape is it?",
        }
    }
}

impl QuestionsConfig {
    /// Refuses what cannot be drawn; `section` is what the keys stand under.
    pub fn check(&self, section: &str) -> Result<()> {
        if !(2..=PLACES.len()).contains(&self.options) {
            return Err(Error::input(format!("{section}.options = {}: choose 2 to {}", self.options, PLACES.len())));
        }
        if self.form == Form::Name && self.about != Naming::Colour {
            return Err(Error::input(format!(
                "{section}.about: colour where form = \"name\": a thing has its own shape"
            )));
        }
        let block = self.options * self.options;
        for (key, value) in [("train", self.train), ("test", self.test)] {
            if value == 0 || value % block != 0 {
                return Err(Error::input(format!("{section}.{key} = {value} is no multiple of {block}"))
                    .hint("samples come in blocks of options², so that neither modality alone tells anything"));
            }
        }
        self.pictures().resolve().map(|_| ())
    }

    fn pictures(&self) -> WorldConfig {
        WorldConfig { difficulty: self.difficulty.clone(), ..WorldConfig::default() }
    }

    /// Every word of its texts, questions and options, sorted.
    pub fn vocabulary(&self) -> Vec<&'static str> {
        let mut words: BTreeSet<&str> = (0..COLOURS.len()).map(|n| self.about.word(n)).collect();
        words.extend(self.question().trim_end_matches('?').split_whitespace());
        match self.form {
            Form::Which => {
                words.extend(self.classes());
                words.insert(BETWEEN);
            }
            Form::Name => words.extend(THINGS.iter().chain(&["a"])),
        }
        words.into_iter().collect()
    }

    /// What labels stand for: places, or colours.
    fn classes(&self) -> Vec<&'static str> {
        match self.form {
            Form::Which => PLACES[..self.options.min(PLACES.len())].to_vec(),
            Form::Name => COLOURS.iter().map(|c| c.word()).collect(),
        }
    }

    fn question(&self) -> &'static str {
        match self.form {
            Form::Which => self.about.question(),
            Form::Name => WHICH_ONE,
        }
    }

    fn ask(&self) -> Ask {
        let options = self.classes().iter().map(ToString::to_string).collect();
        match self.form {
            Form::Which => {
                Ask::Choice(Arc::new(Choice { question: self.question().into(), options, image_first: false }))
            }
            Form::Name => Ask::Open(self.question().into()),
        }
    }

    fn metric(&self) -> Metric {
        match (self.form, self.options) {
            (Form::Name, _) => Metric::ExactMatch,
            (Form::Which, 2) => Metric::Auc,
            (Form::Which, _) => Metric::Accuracy,
        }
    }
}

/// One sample before its picture is drawn.
struct Plan {
    text: String,
    /// The word that is shown.
    shown: usize,
    label: usize,
    answer: String,
    key: Key,
}

/// Draws the set.
pub fn load(config: &QuestionsConfig, key: Key) -> Result<Multimodal> {
    config.check("data")?;
    let root = key.fold(Purpose::World, 1);
    let world = World::new(config.pictures(), root)?;
    let part = |name: &str, side: Side, count| {
        let plans = plans(config, count, root.fold(Purpose::World, side as u64));
        samples(config, &world, &plans, name)
    };
    let (train, test) = (part("train", Side::Train, config.train)?, part("test", Side::Test, config.test)?);
    let mut census = Census::new("the procedural world", "samples");
    census.read = config.train + config.test;
    Ok(Multimodal {
        name: "world".into(),
        train,
        val: Subset::default(),
        tests: vec![test],
        options: config.classes().iter().map(ToString::to_string).collect(),
        metric: config.metric(),
        recipe: Recipe::default(),
        sources: vec![census],
    })
}

/// Blocks of options² plans, in an order that does not show them.
fn plans(config: &QuestionsConfig, count: usize, root: Key) -> Vec<Plan> {
    let n = config.options;
    let mut plans = Vec::with_capacity(count);
    for block in 0..count / (n * n) {
        let key = root.fold(Purpose::Item, block as u64);
        let mut rng = key.rng();
        let words = rng.choose(COLOURS.len(), n);
        let things = if config.form == Form::Name { rng.choose(THINGS.len(), n) } else { Vec::new() };
        for turned in 0..n {
            for right in 0..n {
                let own = key.fold(Purpose::Item, (turned * n + right) as u64);
                plans.push(match config.form {
                    Form::Which => config.which(&words, turned, right, own),
                    Form::Name => config.name(words[right], THINGS[things[turned]], own),
                });
            }
        }
    }
    root.fold(Purpose::Shuffle, 0).rng().shuffle(&mut plans);
    plans
}

impl QuestionsConfig {
    /// `words` from the one at `turned` on, in a circle; the one at `right` of that row is shown.
    fn which(&self, words: &[usize], turned: usize, right: usize, key: Key) -> Plan {
        let row: Vec<usize> = (0..words.len()).map(|i| words[(i + turned) % words.len()]).collect();
        let said: Vec<&str> = row.iter().map(|&w| self.about.word(w)).collect();
        Plan { text: in_a_row(&said), shown: row[right], label: right, answer: PLACES[right].into(), key }
    }

    fn name(&self, colour: usize, thing: &str, key: Key) -> Plan {
        let answer = format!("{} {thing}", self.about.word(colour));
        Plan { text: format!("a {thing}"), shown: colour, label: colour, answer, key }
    }
}

fn samples(config: &QuestionsConfig, world: &World, plans: &[Plan], name: &str) -> Result<Subset> {
    let mut pixels = vec![0; plans.len() * PIXELS];
    pixels.par_chunks_exact_mut(PIXELS).zip(plans).for_each(|(out, plan)| {
        let shown = config.about.shown(plan.shown, &mut plan.key.fold(Purpose::World, 0).rng());
        world.picture(shown, plan.key, out);
    });
    let images = Arc::new(Images::new([3, SIDE, SIDE], pixels)?);
    let ask = config.ask();
    let sample = |(i, plan): (usize, &Plan)| Sample {
        id: format!("{name}-{i:06}"),
        picture: Some(Source::Pixels(images.clone(), i)),
        text: Some(plan.text.clone()),
        ask: ask.clone(),
        target: plan.answer.clone(),
        label: Some(plan.label as u32),
        facets: Facets {
            answer_type: (config.form == Form::Name).then_some(AnswerType::Open),
            more: [("shown", config.about.word(plan.shown).to_string())].into(),
        },
    };
    Ok(Subset { name: format!("world {name}"), samples: plans.iter().enumerate().map(sample).collect() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn set(options: usize, about: Naming, seed: u64) -> Multimodal {
        let config = QuestionsConfig { options, about, train: 144 * 4, test: 144, ..QuestionsConfig::default() };
        load(&config, Key::from_seed(seed)).unwrap()
    }

    /// The share of samples that the best guess from what `seen` says gets right, counted on these very samples.
    fn best_guess(part: &Subset, seen: impl Fn(&Sample) -> String) -> f64 {
        let mut counts: BTreeMap<String, BTreeMap<u32, usize>> = BTreeMap::new();
        for s in &part.samples {
            *counts.entry(seen(s)).or_default().entry(s.label.unwrap()).or_default() += 1;
        }
        let right: usize = counts.values().filter_map(|labels| labels.values().max()).sum();
        right as f64 / part.samples.len() as f64
    }

    #[test]
    fn either_modality_alone_is_at_chance_exactly_and_both_together_always_tell() {
        for (options, about) in [(2, Naming::Colour), (3, Naming::Shape), (4, Naming::Colour)] {
            let set = set(options, about, 3);
            for part in [&set.train, &set.tests[0]] {
                let chance = 1.0 / options as f64;
                let (text, shown) = (|s: &Sample| s.text.clone().unwrap(), |s: &Sample| s.facets.more["shown"].clone());
                assert!((best_guess(part, text) - chance).abs() < 1e-12);
                assert!((best_guess(part, shown) - chance).abs() < 1e-12);
                assert!((best_guess(part, |_| String::new()) - chance).abs() < 1e-12);
                assert_eq!(best_guess(part, |s| text(s) + &shown(s)), 1.0);
            }
        }
    }

    #[test]
    fn a_thing_and_a_colour_are_told_by_neither_modality_alone() {
        let config = QuestionsConfig { form: Form::Name, train: 720, test: 40, ..QuestionsConfig::default() };
        let part = load(&config, Key::from_seed(6)).unwrap().train;
        for s in &part.samples {
            let (thing, colour) = (s.text.as_ref().unwrap().trim_start_matches("a "), &s.facets.more["shown"]);
            assert_eq!((&s.target, s.ask.clone()), (&format!("{colour} {thing}"), Ask::Open(WHICH_ONE.into())));
            assert_eq!(COLOURS[s.label.unwrap() as usize].word(), colour);
        }
        // The colour is as often any of six whatever the text says: the best guess from it is no better than 3 in 10.
        let by_text = best_guess(&part, |s| s.text.clone().unwrap());
        assert!((1.0 / 6.0..0.3).contains(&by_text), "{by_text}");
        let e = QuestionsConfig { about: Naming::Shape, ..config }.check("data").unwrap_err().to_string();
        assert!(e.contains("data.about: colour"), "{e}");
    }

    #[test]
    fn the_shown_colour_is_in_the_picture_and_at_the_answers_place_in_the_text() {
        let set = set(3, Naming::Colour, 4);
        let (mut red, mut blue) = ((0.0, 0), (0.0, 0));
        for s in &set.train.samples {
            let words: Vec<&str> = s.text.as_ref().unwrap().split(" then ").collect();
            assert_eq!(words[s.label.unwrap() as usize], s.facets.more["shown"]);
            let image = s.image().unwrap().unwrap();
            let mean = |c: usize| image.pixels().map(|p| f64::from(p.0[c])).sum::<f64>() / 1024.0;
            match s.facets.more["shown"].as_str() {
                "red" => red = (red.0 + mean(0) - mean(2), red.1 + 1),
                "blue" => blue = (blue.0 + mean(0) - mean(2), blue.1 + 1),
                _ => {}
            }
        }
        assert!(red.0 / f64::from(red.1) > blue.0 / f64::from(blue.1) + 20.0, "{red:?} {blue:?}");
    }

    #[test]
    fn the_key_alone_decides_and_train_and_test_share_no_picture() {
        let pixels = |part: &Subset| {
            part.samples.iter().map(|s| s.picture.as_ref().unwrap().bytes().unwrap()).collect::<Vec<_>>()
        };
        let (a, b, c) = (set(2, Naming::Colour, 5), set(2, Naming::Colour, 5), set(2, Naming::Colour, 6));
        assert_eq!(pixels(&a.train), pixels(&b.train));
        assert_ne!(pixels(&a.train), pixels(&c.train));
        let all: BTreeSet<Vec<u8>> = [pixels(&a.train), pixels(&a.tests[0])].concat().into_iter().collect();
        assert_eq!(all.len(), 144 * 5);
    }

    #[test]
    fn every_word_is_in_the_small_vocabulary() {
        let config = QuestionsConfig { options: 4, train: 144, test: 16, ..QuestionsConfig::default() };
        let known = config.vocabulary();
        assert!(known.len() < 20, "{known:?}");
        for s in load(&config, Key::from_seed(1)).unwrap().train.samples {
            assert!(s.text.unwrap().split_whitespace().all(|w| known.contains(&w)));
        }
    }

    #[test]
    fn counts_that_are_no_blocks_and_too_many_options_are_refused() {
        let e = |config: QuestionsConfig| config.check("data").unwrap_err().to_string();
        assert!(e(QuestionsConfig { options: 3, train: 10, ..Default::default() }).contains("no multiple of 9"));
        assert!(e(QuestionsConfig { options: 5, ..Default::default() }).contains("choose 2 to 4"));
    }
}
