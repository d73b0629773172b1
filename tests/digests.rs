//! The bytes of the loop: models of every stage that trains, on a tiny world, as they were when they were written down.
//!
//! `tests/golden/digests.json` holds SHA-256 digests by instruction set, for another set rounds otherwise; where this
//! machine's is not among them, the test says so and compares threads alone. A change that means to change no number
//! leaves the file as it is; one that does writes it anew: `FEDLLAVA_DIGESTS=write cargo test digests`.

#![allow(clippy::print_stderr, reason = "what was not compared is said")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fedllava::config::Config;
use fedllava::exec::Context;
use fedllava::nn::kernels::Isa;
use fedllava::pipeline::{self, Library, Stages};
use serde_json::Value;

const WORLD: &str = r#"
[data]
kind = "world"
pool_images = 96
train_per_class = 24
test_per_class = 4
[longtail]
imbalance = 8
[partition]
kind = "dirichlet"
clients = 5
min_size = 3
[server_set]
per_class = 3
[model]
kind = "resnet8"
width = 4
[clip]
kind = "model"
path = "data/demo-clip"
prompts = { kind = "templates", list = ["a picture of a {c}"] }
[pool]
kind = "world"
[pretrain]
epochs = 2
batch_size = 16
lambda = 5.0
[pretrain.llm]
llava = "tests/golden/llava/default"
prompts = ["short"]
epochs = 2
batch_size = 8
weight = { kind = "linear", until = 0.5 }
[federated]
rounds = 3
cohort = 3
local_epochs = 2
batch_size = 8
optimiser = { kind = "sgd", lr = 0.05 }
lr_decay = 0.9
[align]
steps = 7
batch_size = 8
when = "end"
[evaluate]
shots = "rank:3/4/3"
overlaps = false
"#;

/// Names of runs and what they change.
const RUNS: [(&str, &[&str]); 9] = [
    ("fedavg", &["pretrain.enabled=false", "align.enabled=false"]),
    ("fedavg-momentum", &["pretrain.enabled=false", "align.enabled=false", "federated.optimiser.momentum=0.9"]),
    (
        "fedavg-dropout",
        &["pretrain.enabled=false", "align.enabled=false", "model={kind=\"cnn\"}", "federated.rounds=1"],
    ),
    ("fedprox", &["pretrain.enabled=false", "align.enabled=false", "algorithm={kind=\"fedprox\",mu=0.5}"]),
    ("scaffold", &["pretrain.enabled=false", "align.enabled=false", "algorithm={kind=\"scaffold\"}"]),
    ("align-end", &["pretrain.enabled=false", "align.bn=update", "align.weight={kind=\"linear\"}"]),
    ("align-every-round", &["pretrain.enabled=false", "align.when=every-round", "align.feedback=true"]),
    ("contrast", &["federated.rounds=1", "align.trainable=head", "finetune.head_init=text"]),
    ("llm", &["federated.rounds=0", "align.enabled=false", "pretrain.objective=llm"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Digest of each finished stage's model, and every training loss.
fn run(folder: &Path, name: &str, changes: &[&str], threads: usize) -> BTreeMap<String, String> {
    let dir = folder.join(format!("{name}-{threads}"));
    let file = folder.join("c.toml");
    std::fs::write(&file, WORLD).unwrap();
    let mut set: Vec<String> = changes.iter().map(|c| c.to_string()).collect();
    set.push(format!("run.dir={}", dir.display()));
    set.push(format!("run.cache={}", folder.join("cache").display()));
    for (key, path) in [("clip.path", "data/demo-clip"), ("pretrain.llm.llava", "tests/golden/llava/default")] {
        set.push(format!("{key}={}", root().join(path).display()));
    }
    let config = Config::read(&file, &set).unwrap();
    pipeline::run(&config, Stages::All, &Library::default(), &Context::cpu(threads)).unwrap();
    let mut found = BTreeMap::new();
    for stage in ["pretrain", "finetune", "align"] {
        if let Ok(text) = std::fs::read_to_string(dir.join(stage).join("done.json")) {
            let done: Value = serde_json::from_str(&text).unwrap();
            found.insert(format!("{name} {stage}"), done["digest"].as_str().unwrap().to_string());
        }
    }
    let lines = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap_or_default();
    let records = lines.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    let losses: Vec<String> =
        records.filter(|r| r["split"] != "test").map(|r| format!("{} {}", r["loss"], r["student_loss"])).collect();
    found.insert(format!("{name} losses"), losses.join(", "));
    found
}

fn all(threads: usize) -> BTreeMap<String, String> {
    let folder = tempfile::tempdir().unwrap();
    RUNS.iter().flat_map(|(name, changes)| run(folder.path(), name, changes, threads)).collect()
}

#[test]
fn no_byte_of_any_stage_has_changed_and_threads_change_none() {
    let path: PathBuf = root().join("tests/golden/digests.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|_| "{}".into());
    let mut known: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&text).unwrap();
    let (one, set) = (all(1), Isa::detect().to_string());
    assert_eq!(one, all(2), "one and two threads");
    if std::env::var_os("FEDLLAVA_DIGESTS").is_some_and(|v| v == "write") {
        known.insert(set, one);
        std::fs::write(&path, serde_json::to_string_pretty(&known).unwrap() + "\n").unwrap();
        return;
    }
    match known.get(&set) {
        Some(want) => assert_eq!(&one, want),
        None => eprintln!("no digests were written down for {set}: threads are compared alone"),
    }
}
