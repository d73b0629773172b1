//! A procedural world of small pictures with sentences about them, for the demo and for tests.
//!
//! A picture is 32×32 RGB: one to three equal objects, each a [`Composition`] of colour, texture and shape (500 of
//! them), before one of 48 backgrounds, among distractors, under noise. Ten compositions are the benchmark's classes.
//!
//! Universes share nothing but the config: images that train the demo's CLIP, those that train its LLaVA, the open
//! pool, and the benchmark (training and test). Image `i` of a universe depends on the root key, the universe and `i` alone, never on how many
//! images are drawn, in what order, or by how many threads. The same bytes hold on one platform; sine and cosine come
//! from the platform's library, so another one may round a pixel otherwise.
//!
//! CLIP's and LLaVA's images never show a benchmark composition, distractors included. The pool's do in [`Mode::Covered`] only.

mod attributes;
mod caption;
mod config;
mod palette;
mod reading;
mod render;
mod scene;
mod sheet;

use rayon::prelude::*;

pub use attributes::{Attributes, Backdrop, Colour, Composition, Ground, Place, Shape, Size, Texture};
pub use caption::{Attribute, Caption, MAX_WORDS, vocabulary};
pub use config::{Difficulty, Mode, Shift, WorldConfig};
pub use reading::{Agreement, agreement, statements};
pub use sheet::{Sheet, contact_sheet};

use std::sync::Arc;

use super::pool::{Item, Pool, Source};
use super::{Benchmark, Dataset, Images, Order};
use crate::error::Result;
use crate::key::{Key, Purpose, Rng};
use scene::{Scene, Style};

/// Height and width of a picture, in pixels.
pub const SIDE: usize = 32;
/// Bytes of a picture: 3 × 32 × 32, channels first.
pub const PIXELS: usize = 3 * SIDE * SIDE;

/// Which universe an image belongs to. The number is part of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Universe {
    Clip = 1,
    Pool = 2,
    Train = 3,
    Test = 4,
    Llava = 5,
}

/// Pictures with sentences: CLIP's training images, or the pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Captioned {
    /// `(n, 3, 32, 32)` bytes, RGB, channels first.
    pub pixels: Vec<u8>,
    /// One of each image.
    pub captions: Vec<Caption>,
    /// What is true of each image.
    pub truth: Vec<Attributes>,
}

impl Captioned {
    /// The number of each image's composition, below [`Composition::COUNT`]: labels for supervised pretraining.
    pub fn labels(&self) -> Vec<u32> {
        self.truth.iter().map(|t| t.composition.index() as u32).collect()
    }
}

/// Pictures with labels: one side of the benchmark.
#[derive(Clone, Debug, PartialEq)]
pub struct Labelled {
    /// `(n, 3, 32, 32)` bytes, RGB, channels first.
    pub pixels: Vec<u8>,
    /// Indices into [`World::class_names`]; image `i` has label `i` modulo the classes, so any start is balanced.
    pub labels: Vec<u32>,
    /// What is true of each image.
    pub truth: Vec<Attributes>,
}

/// The world of one config and one key.
#[derive(Clone, Debug)]
pub struct World {
    config: WorldConfig,
    classes: Vec<Composition>,
    /// The classes, sorted.
    reserved: Vec<Composition>,
    key: Key,
}

impl World {
    /// A world, or what is wrong with its config.
    pub fn new(config: WorldConfig, key: Key) -> Result<World> {
        let classes = config.resolve()?;
        let mut reserved = classes.clone();
        reserved.sort_unstable();
        Ok(World { config, classes, reserved, key })
    }

    /// The config.
    pub fn config(&self) -> &WorldConfig {
        &self.config
    }

    /// The benchmark's classes in label order.
    pub fn classes(&self) -> &[Composition] {
        &self.classes
    }

    /// Names such as `red striped circle`, in label order; they fit "a picture of a {c}".
    pub fn class_names(&self) -> Vec<String> {
        self.classes.iter().map(|c| c.name()).collect()
    }

    /// The first `n` images for CLIP's training: never a benchmark composition, looks between pool and benchmark.
    pub fn clip_training(&self, n: usize) -> Captioned {
        self.captioned(Universe::Clip, n)
    }

    /// The same world with sentences that say number, colour, texture and shape, nothing else and nothing untrue. The
    /// pictures are the same.
    pub fn plain_spoken(&self) -> World {
        let said = WorldConfig { caption_noise: 0.0, caption_dropout: 0.0, caption_detail: 0.0, ..self.config.clone() };
        World { config: said, ..self.clone() }
    }

    /// The first `n` images for LLaVA's training, drawn as CLIP's are.
    pub fn llava_training(&self, n: usize) -> Captioned {
        self.captioned(Universe::Llava, n)
    }

    /// The first `n` images of the open pool.
    pub fn pool(&self, n: usize) -> Captioned {
        self.captioned(Universe::Pool, n)
    }

    /// What is true of the first `n` images of the open pool; nothing is rendered.
    pub fn pool_truth(&self, n: usize) -> Vec<Attributes> {
        (0..n).map(|i| self.scene(Universe::Pool, i).0.truth).collect()
    }

    /// The benchmark: `train_per_class` training and `test_per_class` test images of every class.
    pub fn benchmark(&self) -> (Labelled, Labelled) {
        let side = |universe, per_class: usize| {
            let n = per_class * self.classes.len();
            let mut pixels = vec![0; n * PIXELS];
            let truth = draw(&mut pixels, |i, out| self.image(universe, i, out).0);
            let labels = (0..n).map(|i| (i % self.classes.len()) as u32).collect();
            Labelled { pixels, labels, truth }
        };
        (side(Universe::Train, self.config.train_per_class), side(Universe::Test, self.config.test_per_class))
    }

    /// The benchmark as data sets.
    pub fn load(&self) -> Result<Benchmark> {
        let (train, test) = self.benchmark();
        let set = |name: &str, side: Labelled| {
            let images = Images::new([3, SIDE, SIDE], side.pixels)?;
            Dataset::new(name, images, side.labels, self.class_names(), Order::Original)
        };
        Benchmark::new(set("world train", train)?, set("world test", test)?)
    }

    /// The open pool, `pool_images` of the config, with its captions; with `labels`, with its compositions' names.
    pub fn open_pool(&self, labels: bool) -> Result<Pool> {
        let mut drawn = self.pool(self.config.pool_images);
        if labels {
            let truth = drawn.truth.iter().map(|t| Caption { text: t.composition.name(), wrong: None });
            drawn.captions = truth.collect();
        }
        let images = Arc::new(Images::new([3, SIDE, SIDE], drawn.pixels)?);
        let item = |(i, caption): (usize, Caption)| Item {
            id: format!("world-{i:06}"),
            texts: vec![caption.text],
            source: Source::Pixels(images.clone(), i),
        };
        Pool::new("world", drawn.captions.into_iter().enumerate().map(item).collect(), labels)
    }

    /// Draws a picture of `composition` in the benchmark's look into `out`, [`PIXELS`] bytes, and says what is true of it. The
    /// key is the picture's own; distractors never show one of the classes.
    pub fn picture(&self, composition: Composition, key: Key, out: &mut [u8]) -> Attributes {
        let mut rng = key.rng();
        let scene = self.style(Universe::Train, &mut rng).scene(&mut rng, composition, &self.reserved);
        render::render(&scene, key, out);
        scene.truth
    }

    fn captioned(&self, universe: Universe, n: usize) -> Captioned {
        let mut pixels = vec![0; n * PIXELS];
        let drawn = draw(&mut pixels, |i, out| {
            let (truth, key) = self.image(universe, i, out);
            (caption::caption(&self.config, &truth, &mut key.fold(Purpose::Caption, 0).rng()), truth)
        });
        let (captions, truth) = drawn.into_iter().unzip();
        Captioned { pixels, captions, truth }
    }

    /// Draws image `i` into `out` and gives its truth and its key.
    fn image(&self, universe: Universe, i: usize, out: &mut [u8]) -> (Attributes, Key) {
        let (scene, key) = self.scene(universe, i);
        render::render(&scene, key, out);
        (scene.truth, key)
    }

    fn scene(&self, universe: Universe, i: usize) -> (Scene, Key) {
        let key = self.key.fold(Purpose::World, universe as u64).fold(Purpose::Item, i as u64);
        let mut rng = key.rng();
        let composition = self.composition(universe, i, &mut rng);
        (self.style(universe, &mut rng).scene(&mut rng, composition, &self.reserved), key)
    }

    fn composition(&self, universe: Universe, i: usize, rng: &mut Rng) -> Composition {
        let covered = self.config.mode == Mode::Covered && universe == Universe::Pool;
        match universe {
            Universe::Train | Universe::Test => self.classes[i % self.classes.len()],
            _ if covered && rng.f64() < self.config.covered_share => self.classes[rng.below(self.classes.len())],
            _ => Composition::draw_except(rng, &self.reserved),
        }
    }

    fn style(&self, universe: Universe, rng: &mut Rng) -> Style<'_> {
        let (distance, pool_half) = match universe {
            Universe::Clip | Universe::Llava => (rng.f32(), rng.below(2) == 0),
            Universe::Pool => (1.0, true),
            Universe::Train | Universe::Test => (0.0, false),
        };
        Style { difficulty: &self.config.difficulty, shift: &self.config.shift, distance, pool_half }
    }
}

/// Fills the pictures in parallel; the results are in image order.
fn draw<T: Send>(pixels: &mut [u8], one: impl Fn(usize, &mut [u8]) -> T + Sync) -> Vec<T> {
    pixels.par_chunks_exact_mut(PIXELS).enumerate().map(|(i, out)| one(i, out)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn world(mode: Mode, seed: u64) -> World {
        let config = WorldConfig { mode, train_per_class: 50, test_per_class: 50, ..WorldConfig::default() };
        World::new(config, Key::from_seed(seed)).unwrap()
    }

    fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
    }

    #[test]
    fn one_key_gives_the_same_bytes_for_any_threads_and_any_number_of_images() {
        let world = world(Mode::Covered, 1);
        let one = with_threads(1, || (world.pool(200), world.benchmark()));
        let four = with_threads(4, || (world.pool(200), world.benchmark()));
        assert_eq!(one, four);
        let few = world.pool(20);
        assert_eq!(few.pixels, one.0.pixels[..20 * PIXELS]);
        assert_eq!(few.captions, one.0.captions[..20]);
    }

    #[test]
    fn another_key_gives_other_pictures_and_other_captions() {
        let (a, b) = (world(Mode::HeldOut, 1).pool(50), world(Mode::HeldOut, 2).pool(50));
        for i in 0..50 {
            assert_ne!(a.pixels[i * PIXELS..][..PIXELS], b.pixels[i * PIXELS..][..PIXELS]);
        }
        assert_ne!(a.captions, b.captions);
    }

    #[test]
    fn the_universes_share_no_picture() {
        let world = world(Mode::Covered, 3);
        let (train, test) = world.benchmark();
        let all = [
            world.clip_training(500).pixels,
            world.llava_training(500).pixels,
            world.pool(500).pixels,
            train.pixels,
            test.pixels,
        ]
        .concat();
        let different: BTreeSet<&[u8]> = all.chunks(PIXELS).collect();
        assert_eq!(different.len(), 2500);
    }

    #[test]
    fn held_out_shows_every_attribute_but_no_class_and_covered_shows_its_share() {
        let shown = |mode| {
            let world = world(mode, 4);
            let (pool, clip) = (world.pool(4000).truth, world.clip_training(4000).truth);
            let classes: BTreeSet<_> = world.classes().iter().copied().collect();
            let hits = |t: &[Attributes]| t.iter().filter(|a| classes.contains(&a.composition)).count();
            let colours: BTreeSet<_> = pool.iter().map(|a| a.composition.colour).collect();
            let textures: BTreeSet<_> = pool.iter().map(|a| a.composition.texture).collect();
            let shapes: BTreeSet<_> = pool.iter().map(|a| a.composition.shape).collect();
            assert_eq!((colours.len(), textures.len(), shapes.len()), (10, 5, 10));
            (hits(&pool), hits(&clip))
        };
        assert_eq!(shown(Mode::HeldOut), (0, 0));
        let (pool, clip) = shown(Mode::Covered);
        assert_eq!(clip, 0);
        // A tenth of 4,000, within four standard deviations.
        assert!((324..=476).contains(&pool), "{pool}");
    }

    #[test]
    fn every_label_agrees_with_what_is_true_of_the_picture() {
        let world = world(Mode::HeldOut, 5);
        let names = world.class_names();
        let (train, test) = world.benchmark();
        for side in [train, test] {
            assert_eq!(side.labels.len(), 500);
            for (label, truth) in side.labels.iter().zip(&side.truth) {
                assert_eq!(names[*label as usize], truth.composition.name());
            }
        }
    }

    #[test]
    fn the_pool_is_captioned_in_far_more_ways_than_there_are_classes() {
        let clip = world(Mode::HeldOut, 6).clip_training(4000);
        let compositions: BTreeSet<_> = clip.truth.iter().map(|t| t.composition).collect();
        let sentences: BTreeSet<_> = clip.captions.iter().map(|c| &c.text).collect();
        assert_eq!(compositions.len(), Composition::COUNT - 10);
        assert!(sentences.len() > 1000, "{}", sentences.len());
    }

    #[test]
    fn a_plain_spoken_world_shows_the_same_and_says_all_of_it_truly() {
        let world = world(Mode::HeldOut, 10);
        let (own, plain) = (world.llava_training(300), world.plain_spoken().llava_training(300));
        assert_eq!((&own.pixels, &own.truth), (&plain.pixels, &plain.truth));
        let f1 = |c: &Captioned| agreement(c.captions.iter().map(|c| c.text.as_str()).zip(&c.truth)).0.f1();
        assert_eq!(f1(&plain), 1.0);
        assert!(f1(&own) < 0.95, "{}", f1(&own));
    }

    #[test]
    fn a_full_shift_parts_the_backgrounds_and_none_leaves_them_together() {
        let seen = |background| {
            let shift = Shift { background, ..Shift::default() };
            let config = WorldConfig { shift, train_per_class: 40, ..WorldConfig::default() };
            let world = World::new(config, Key::from_seed(8)).unwrap();
            let looks = |t: &[Attributes]| t.iter().map(|a| (a.backdrop, a.ground)).collect::<BTreeSet<_>>();
            let (pool, bench) = (looks(&world.pool(400).truth), looks(&world.benchmark().0.truth));
            (pool.len(), bench.len(), pool.intersection(&bench).count())
        };
        assert_eq!(seen(1.0), (12, 12, 0));
        assert_eq!(seen(0.0), (48, 48, 48));
    }

    #[test]
    fn the_pool_is_larger_by_the_stated_ratio_and_noisier_by_the_stated_amount() {
        let shift = Shift { size: 0.25, noise: 0.02, ..Shift::default() };
        let config = WorldConfig { shift, ..WorldConfig::default() };
        let world = World::new(config, Key::from_seed(9)).unwrap();
        let mean = |universe| {
            let scenes = (0..4000).map(|i| world.scene(universe, i).0);
            scenes.fold((0.0, 0.0), |(r, n), s| (r + s.objects[0].radius / 4000.0, n + s.noise / 4000.0))
        };
        let (pool, bench) = (mean(Universe::Pool), mean(Universe::Train));
        assert!((pool.0 / bench.0 - 1.25).abs() < 0.02, "{pool:?} {bench:?}");
        assert!((pool.1 - bench.1 - 0.02).abs() < 0.002, "{pool:?} {bench:?}");
    }

    /// The colour that is painted is the colour that is named, as the middle of clean pictures shows.
    #[test]
    fn a_clean_solid_object_has_its_colour_in_the_picture() {
        let difficulty = Difficulty {
            noise: 0.0,
            clutter: 0,
            occlusion: 0.0,
            light: 0.0,
            radius: [10.0, 11.0],
            ..Difficulty::default()
        };
        let config = WorldConfig {
            classes: ["red solid circle", "blue solid circle", "green solid circle"].map(String::from).to_vec(),
            train_per_class: 100,
            shift: Shift { hue: 0.0, size: 0.0, background: 0.0, noise: 0.0 },
            difficulty,
            ..WorldConfig::default()
        };
        let (train, _) = World::new(config, Key::from_seed(7)).unwrap().benchmark();
        let mut looked_at = 0;
        for (i, (truth, label)) in train.truth.iter().zip(&train.labels).enumerate() {
            if truth.place == Some(Place::Middle) {
                let middle = |c: usize| train.pixels[i * PIXELS + c * SIDE * SIDE + 16 * SIDE + 16];
                let brightest = (0..3).max_by_key(|c| middle(*c)).unwrap();
                assert_eq!(brightest, [0, 2, 1][*label as usize], "image {i}");
                looked_at += 1;
            }
        }
        assert!(looked_at > 30, "{looked_at}");
    }
}
