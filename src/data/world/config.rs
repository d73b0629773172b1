//! The knobs of the world.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::attributes::Composition;
use crate::error::{Error, Result};

/// What the pool shows of the benchmark's compositions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A share of the pool shows them.
    Covered,
    /// Every attribute is seen, the benchmark's combinations never.
    HeldOut,
}

/// The procedural world: how many images, how they are captioned, how hard they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorldConfig {
    /// What the pool shows of the benchmark's compositions.
    pub mode: Mode,
    /// The benchmark's classes, each `colour texture shape`; their order is their label.
    pub classes: Vec<String>,
    /// Images in the open pool.
    pub pool_images: usize,
    /// What the open pool is drawn from: like any published pool it is the same for every run.
    pub pool_seed: u64,
    /// Training images of each class before any long tail.
    pub train_per_class: usize,
    /// Test images of each class.
    pub test_per_class: usize,
    /// In covered mode, the share of pool images that show one of the classes, in `[0, 1]`.
    pub covered_share: f64,
    /// Probability that a caption says one wrong thing, in `[0, 1]`.
    pub caption_noise: f64,
    /// Probability that a caption leaves out colour, texture, shape or count (each by itself), in `[0, 1]`.
    pub caption_dropout: f64,
    /// Probability that a caption speaks of size, place or background (each by itself), in `[0, 1]`.
    pub caption_detail: f64,
    /// How the pool differs from the benchmark.
    pub shift: Shift,
    /// How hard an image is.
    pub difficulty: Difficulty,
}

/// How the pool differs from the benchmark; images for CLIP's training are spread evenly between the two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Shift {
    /// Degrees by which the pool's object colours are turned.
    pub hue: f64,
    /// Relative growth of the pool's objects, above -0.5.
    pub size: f64,
    /// Probability that a background is drawn from its side's own half of patterns and colours, in `[0, 1]`.
    pub background: f64,
    /// Added to the pool's noise, in `[0, 1]` of full scale; negative: a cleaner pool.
    pub noise: f64,
}

/// How hard an image is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Difficulty {
    /// Mean standard deviation of pixel noise, in `[0, 1]` of full scale.
    pub noise: f64,
    /// 0: colours as in the palette; 1: hue with a deviation of 10 degrees, up to 40 % paler and darker.
    pub colour_jitter: f64,
    /// The light goes from `1 - light` to 1, in `[0, 1]`.
    pub light: f64,
    /// At most so many small distractors.
    pub clutter: usize,
    /// Smallest and largest radius of a distractor, in pixels.
    pub clutter_radius: [f64; 2],
    /// Probability of a bar across the picture, in `[0, 1]`.
    pub occlusion: f64,
    /// Smallest and largest radius of a single object, in pixels; two or three objects are smaller.
    pub radius: [f64; 2],
    /// Largest rotation to either side, in degrees.
    pub tilt: f64,
    /// Smallest and largest contrast of a texture's second colour, in `[0, 1]`.
    pub contrast: [f64; 2],
}

/// Five colours of two classes each, which differ in texture, in shape, or (purple) in both, so that no single
/// attribute tells the classes apart. The order is that of the long tail; most twins stand far apart in it.
const CLASSES: [&str; 10] = [
    "red striped circle",
    "blue dotted heart",
    "green checkered heart",
    "red dotted circle",
    "yellow checkered star",
    "blue dotted star",
    "purple solid circle",
    "green striped heart",
    "yellow checkered cross",
    "purple striped cross",
];

impl Default for WorldConfig {
    fn default() -> Self {
        WorldConfig {
            mode: Mode::HeldOut,
            classes: CLASSES.map(String::from).to_vec(),
            pool_images: 8000,
            pool_seed: 0,
            train_per_class: 500,
            test_per_class: 100,
            covered_share: 0.1,
            caption_noise: 0.1,
            caption_dropout: 0.2,
            caption_detail: 0.3,
            shift: Shift::default(),
            difficulty: Difficulty::default(),
        }
    }
}

impl Default for Shift {
    fn default() -> Self {
        Shift { hue: 10.0, size: 0.15, background: 0.7, noise: 0.02 }
    }
}

/// Chosen on key seed 11, before any result of the method was seen. With these, PyTorch gave (one run each, flips
/// only, 2,000 test images): a centralised ResNet-8 of widths 8-16-32 on 1,000 balanced images a class 87 % (SGD with
/// momentum, one cycle, 2,500 steps of 64), on 50 a class 72 % (600 steps); FedAvg without momentum on a long tail from
/// 500 images (imbalance 50, Dirichlet 0.5, 20 clients, 8 a round, 5 local epochs, 30 rounds) 51 %, its last two
/// classes at 0; a CLIP of 0.32 M parameters (ViT patch 4, width 64, 4 blocks) after 160,000 views of 40,000 images
/// 67 % zero-shot, of which colour alone gives 50 %.
impl Default for Difficulty {
    fn default() -> Self {
        Difficulty {
            noise: 0.05,
            colour_jitter: 0.8,
            light: 0.3,
            clutter: 3,
            clutter_radius: [2.0, 4.0],
            occlusion: 0.25,
            radius: [6.5, 11.5],
            tilt: 20.0,
            contrast: [0.55, 0.85],
        }
    }
}

/// Most images of the pool, of training, of test: 3 GB of pixels each.
const IMAGES: usize = 1_000_000;

impl WorldConfig {
    /// The classes' compositions in label order, or what is wrong with the config.
    pub fn resolve(&self) -> Result<Vec<Composition>> {
        let d = &self.difficulty;
        for (name, value) in [
            ("covered_share", self.covered_share),
            ("caption_noise", self.caption_noise),
            ("caption_dropout", self.caption_dropout),
            ("caption_detail", self.caption_detail),
            ("shift.background", self.shift.background),
            ("difficulty.light", d.light),
            ("difficulty.occlusion", d.occlusion),
            ("difficulty.noise", d.noise),
        ] {
            within(name, value, 0.0, 1.0)?;
        }
        within("shift.hue", self.shift.hue, -180.0, 180.0)?;
        within("shift.size", self.shift.size, -0.5, 1.0)?;
        within("shift.noise", self.shift.noise, -d.noise, 1.0)?;
        within("difficulty.colour_jitter", d.colour_jitter, 0.0, 2.0)?;
        within("difficulty.tilt", d.tilt, 0.0, 180.0)?;
        within("difficulty.clutter", d.clutter as f64, 0.0, 64.0)?;
        range("difficulty.radius", d.radius, 2.0, 16.0)?;
        range("difficulty.clutter_radius", d.clutter_radius, 0.5, 16.0)?;
        range("difficulty.contrast", d.contrast, 0.0, 1.0)?;
        let classes = self.compositions()?;
        for (name, n, of) in [
            ("pool_images", self.pool_images, 1),
            ("train_per_class", self.train_per_class, classes.len()),
            ("test_per_class", self.test_per_class, classes.len()),
        ] {
            if n.checked_mul(of).is_none_or(|all| all > IMAGES) {
                let text = format!("{name} = {n}: a world has at most {IMAGES} images of a kind");
                return Err(Error::input(text).hint("they are drawn into memory before anything else"));
            }
        }
        Ok(classes)
    }

    fn compositions(&self) -> Result<Vec<Composition>> {
        let classes = self.classes.iter().map(|c| Composition::parse(c)).collect::<Result<Vec<_>>>()?;
        let mut sorted = classes.clone();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|w| w[0] == w[1]) {
            return Err(Error::input(format!("the class {:?} is listed twice", twice[0].name())));
        }
        if classes.len() < 2 || classes.len() > Composition::COUNT / 2 {
            let most = Composition::COUNT / 2;
            return Err(Error::input(format!("a world needs 2 to {most} classes, not {}", classes.len())));
        }
        Ok(classes)
    }
}

fn within(name: &str, value: f64, low: f64, high: f64) -> Result<()> {
    // Written so that NaN fails.
    if value >= low && value <= high {
        return Ok(());
    }
    Err(Error::input(format!("{name} = {value} is not between {low} and {high}")))
}

fn range(name: &str, [a, b]: [f64; 2], low: f64, high: f64) -> Result<()> {
    within(name, a, low, high)?;
    within(name, b, low, high)?;
    if a > b { Err(Error::input(format!("{name} = [{a}, {b}]: the first is the smaller one"))) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_default_class_has_another_that_shares_its_colour_and_no_attribute_tells_all_apart() {
        let classes = WorldConfig::default().resolve().unwrap();
        let different = |f: fn(&Composition) -> usize| classes.iter().map(f).collect::<BTreeSet<_>>().len();
        assert_eq!(classes.len(), 10);
        assert_eq!(different(|c| c.colour as usize), 5);
        assert_eq!((different(|c| c.texture as usize), different(|c| c.shape as usize)), (4, 4));
        for a in &classes {
            let twins = classes.iter().filter(|b| b.colour == a.colour);
            assert_eq!(twins.count(), 2, "{}", a.name());
        }
    }

    #[test]
    fn a_rate_out_of_range_a_class_listed_twice_and_not_a_number_are_refused() {
        let bad = |change: fn(&mut WorldConfig)| {
            let mut config = WorldConfig::default();
            change(&mut config);
            config.resolve().unwrap_err().to_string()
        };
        assert!(bad(|c| c.caption_noise = 1.5).contains("caption_noise = 1.5"));
        assert!(bad(|c| c.difficulty.noise = f64::NAN).contains("noise = NaN"));
        assert!(bad(|c| c.difficulty.radius = [9.0, 5.0]).contains("[9, 5]"));
        assert!(bad(|c| c.shift.noise = -0.5).contains("shift.noise"));
        assert!(bad(|c| c.classes[3] = c.classes[0].clone()).contains("listed twice"));
        assert!(bad(|c| c.classes.truncate(1)).contains("not 1"));
    }
}
