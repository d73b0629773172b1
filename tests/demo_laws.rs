//! Laws of the method on small worlds. Each is shown twice: the effect is there, and it goes when its cause goes.
//!
//! Accuracies are of 1,000 test images, so the standard error of one is at most 1.6 points.

#![allow(clippy::print_stderr, reason = "a law says its numbers")]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use fedllava::config::Config;
use fedllava::exec::Context;
use fedllava::pipeline::{self, Library, Stages};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use tempfile::TempDir;

const WORLD: &str = r#"
[run]
share = true
[data]
kind = "world"
pool_images = 768
train_per_class = 100
caption_noise = 0.0
caption_dropout = 0.1
[longtail]
imbalance = 10
[partition]
kind = "dirichlet"
clients = 5
min_size = 2
[server_set]
per_class = 5
[model]
kind = "resnet8"
width = 8
[clip]
kind = "model"
path = "CLIP"
prompts = { kind = "templates", list = ["a picture of a {c}"] }
[pool]
kind = "world"
[pretrain]
epochs = 8
batch_size = 64
[federated]
rounds = 0
cohort = 2
local_epochs = 1
[align]
when = "end"
steps = 200
bn = "update"
weight = { kind = "constant" }
optimiser = { kind = "sgd", lr = 0.02, momentum = 0.9 }
[evaluate]
shots = "rank:3/4/3"
overlaps = false
"#;

/// A folder with the config and a cache.
struct World(TempDir);

impl World {
    fn new(clip: &Path) -> Self {
        let world = World(tempfile::tempdir().unwrap());
        std::fs::write(world.0.path().join("c.toml"), WORLD.replace("CLIP", clip.to_str().unwrap())).unwrap();
        world
    }

    /// `eval.json` of a run with these changes.
    fn run(&self, name: &str, changes: &[&str]) -> Value {
        let dir = self.0.path().join(name);
        let mut set: Vec<String> = changes.iter().map(|c| c.to_string()).collect();
        set.push(format!("run.dir={}", dir.display()));
        set.push(format!("run.cache={}", self.0.path().join("cache").display()));
        let config = Config::read(&self.0.path().join("c.toml"), &set).unwrap();
        pipeline::run(&config, Stages::All, &Library::default(), &Context::cpu(1)).unwrap();
        serde_json::from_str(&std::fs::read_to_string(dir.join("eval.json")).unwrap()).unwrap()
    }

    /// Accuracy of a stage in percent.
    fn accuracy(&self, name: &str, stage: &str, changes: &[&str]) -> f64 {
        100.0 * self.run(name, changes)["stages"][stage]["overall"].as_f64().unwrap()
    }
}

fn shipped_clip() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo-clip")
}

#[test]
fn the_gain_of_text_goes_when_captions_are_shuffled() {
    let world = World::new(&shipped_clip());
    // One seed's P moves by as much as captions bring: the mean of two, and a larger pool.
    let zero_shot = |name: &str, change: &[&str]| {
        let of = |seed: u64| {
            let seed_key = format!("run.seed={seed}");
            let own = ["align.enabled=false", "data.pool_images=1024", "pretrain.epochs=6", seed_key.as_str()];
            world.accuracy(&format!("{name}-{seed}"), "pretrain", &[&own[..], change].concat())
        };
        (of(7) + of(8)) / 2.0
    };
    let image = zero_shot("image", &["pretrain.text=false"]);
    let full = zero_shot("full", &[]);
    let shuffled = zero_shot("shuffled", &["pretrain.shuffle_captions=true"]);
    eprintln!("zero-shot: image term {image:.1}, with captions {full:.1}, with shuffled captions {shuffled:.1}");
    assert!(full > image + 2.0, "image term {image}, with captions {full}");
    assert!(shuffled < image + 1.5, "image term {image}, with shuffled captions {shuffled}");
}

/// Before any round: what the classifier starts as is all there is.
#[test]
fn a_probe_on_the_servers_images_is_a_better_start_than_a_random_head() {
    let world = World::new(&shipped_clip());
    let start = |name: &str, head: &str| {
        let own = ["align.enabled=false", "pretrain.epochs=2", head];
        world.accuracy(name, "finetune", &own)
    };
    let (random, probe) = (start("random", "finetune.head_init=random"), start("probe", "finetune.head_init=probe"));
    eprintln!("start of FedAvg: a random head {random:.1}, a probe {probe:.1}");
    assert!(random < 16.0 && probe > random + 6.0, "a random head {random}, a probe {probe}");
    let path = world.0.path().join("c.toml");
    let changes = ["finetune.head_init=probe", "server_set.per_class=0", "align.enabled=false", SCRATCH];
    let mut set: Vec<String> = changes.iter().map(|c| c.to_string()).collect();
    set.push(format!("run.dir={}", world.0.path().join("none").display()));
    let config = Config::read(&path, &set).unwrap();
    let e = pipeline::run(&config, Stages::All, &Library::default(), &Context::cpu(1)).unwrap_err().to_string();
    assert!(e.contains("server set, which is empty"), "{e}");
}

const SCRATCH: &str = "pretrain.enabled=false";

/// Accuracy after alignment alone, the mean of three seeds: one moves by ten points.
fn aligned(world: &World, name: &str, change: &str) -> f64 {
    let of = |seed: u64| {
        let own = [SCRATCH, "align.beta=2.0", &format!("run.seed={seed}"), change];
        world.accuracy(&format!("{name}-{seed}"), "align", &own)
    };
    (of(7) + of(8) + of(9)) / 3.0
}

/// Models trained on the server's images and labels alone.
fn labels_alone() -> f64 {
    static ONCE: OnceLock<f64> = OnceLock::new();
    *ONCE.get_or_init(|| aligned(&World::new(&shipped_clip()), "labels", "align.beta=0.0"))
}

#[test]
fn the_gain_of_the_teacher_goes_when_its_distributions_are_shuffled() {
    let world = World::new(&shipped_clip());
    let labels = labels_alone();
    let taught = aligned(&world, "taught", "align.enabled=true");
    let shuffled = aligned(&world, "shuffled", "align.shuffle_teacher=true");
    eprintln!("aligned: labels {labels:.1}, with the teacher {taught:.1}, with a shuffled one {shuffled:.1}");
    assert!(taught > labels + 3.0, "labels {labels}, with the teacher {taught}");
    assert!(shuffled < labels + 1.5, "labels {labels}, with a shuffled teacher {shuffled}");
}

/// The shipped CLIP with each tensor's values in random order.
fn randomised_clip(folder: &Path, seed: u64) {
    for entry in std::fs::read_dir(shipped_clip()).unwrap() {
        let entry = entry.unwrap().path();
        std::fs::copy(&entry, folder.join(entry.file_name().unwrap())).unwrap();
    }
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut rng = fedllava::key::Key::from_seed(seed).rng();
    let mut tensors = file.tensors();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let shuffled: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, view)| {
            let mut values: Vec<[u8; 4]> = view.data().as_chunks().0.to_vec();
            rng.shuffle(&mut values);
            (name, view.dtype(), view.shape().to_vec(), values.concat())
        })
        .collect();
    let views = shuffled.iter().map(|(n, d, s, v)| (n, TensorView::new(*d, s.clone(), v).unwrap()));
    let meta = SafeTensors::read_metadata(&bytes).unwrap().1.metadata().clone();
    let bytes = safetensors::serialize(views, meta).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_randomised_clip_is_at_chance_and_teaches_nothing() {
    let sound = World::new(&shipped_clip());
    let alone = |world: &World| {
        world.accuracy("alone", "teacher", &[SCRATCH, "align.beta=2.0", "evaluate.teacher=true", "align.steps=1"])
    };
    let (knows, labels) = (alone(&sound), labels_alone());
    let mut all = Vec::new();
    for seed in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        randomised_clip(folder.path(), seed);
        let random = World::new(folder.path());
        let (guesses, taught) = (alone(&random), aligned(&random, "taught", "align.enabled=true"));
        eprintln!(
            "zero-shot: sound {knows:.1}, randomised {guesses:.1}; aligned: labels {labels:.1}, taught {taught:.1}"
        );
        assert!(knows > 50.0 && (guesses - 10.0).abs() < 5.0, "sound {knows}, randomised {guesses}");
        all.push(taught);
    }
    // One alone may gain two points by chance.
    let taught = all.iter().sum::<f64>() / all.len() as f64;
    assert!(taught < labels + 1.5, "labels {labels}, with randomised teachers {taught}");
}

#[test]
fn without_rounds_the_clients_images_do_not_matter_and_with_one_they_do() {
    let world = World::new(&shipped_clip());
    let digest = |name: &str, rounds: &str, alpha: &str| {
        let all = [SCRATCH, "align.steps=20", rounds, alpha];
        world.run(name, &all)["stages"]["align"]["digest"].as_str().unwrap().to_string()
    };
    let (none, one) = ("federated.rounds=0", "federated.rounds=1");
    let (even, uneven) = ("partition.alpha=100.0", "partition.alpha=0.3");
    assert_eq!(digest("a", none, even), digest("b", none, uneven));
    assert_ne!(digest("c", one, even), digest("d", one, uneven));
}
