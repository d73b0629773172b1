//! A run knows what it was made from, and may be another's beginning.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::sweep::{CONFIG, Desk, err};

/// One run of four rounds, with a checkpoint of each of the last three.
fn one(kind: &str) -> String {
    let config = CONFIG.split("[sweep]").next().unwrap().to_string();
    config.replace(
        "checkpoint_every = 1",
        "checkpoint_every = 1\nkeep_checkpoints = 3\noptimiser = { kind = \"sgd\", lr = 0.05 }",
    ) + &format!("[algorithm]\nkind = {kind:?}\n")
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn digest(desk: &Desk, run: &str) -> String {
    json(&desk.path(run).join("finetune/done.json"))["digest"].as_str().unwrap().to_string()
}

fn refused(output: &Output, code: i32, parts: &[&str]) {
    let said = err(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    parts.iter().for_each(|part| assert!(said.contains(part), "{part}: {said}"));
}

#[test]
fn a_run_starts_from_another_runs_round_with_the_servers_and_the_clients_state() {
    let desk = Desk::new(&one("scaffold"));
    desk.ok(&["run", "s.toml", "--set", "run.dir=a"]);
    let from = |text: &str, dir: &str, more: &[&str]| {
        let (from, dir) = (format!("finetune.from={text}"), format!("run.dir={dir}"));
        let mut arguments = vec!["run", "s.toml", "--set", from.as_str(), "--set", dir.as_str()];
        more.iter().for_each(|m| arguments.extend(["--set", m]));
        desk.run(&arguments)
    };
    // Of no rounds the start model is the result: the very model of the checkpoint.
    let none = from("a@3", "b", &["federated.rounds=0"]);
    assert!(none.status.success() && err(&none).contains("finetune.from: a@3, round 3"), "{}", err(&none));
    let last = from("a", "c", &["federated.rounds=0"]);
    assert!(err(&last).contains("round 4"), "{}", err(&last));
    assert_eq!(digest(&desk, "c"), digest(&desk, "a"), "the last round's model is the run's");
    assert_ne!(digest(&desk, "b"), digest(&desk, "a"));
    // With the state it is another run than with the model alone.
    let whole = from("a@3", "d", &["federated.rounds=1"]);
    assert!(whole.status.success() && !err(&whole).contains("begins anew"), "{}", err(&whole));
    let other = from("a@3", "e", &["federated.rounds=1", "algorithm.kind=fedavg"]);
    assert!(err(&other).contains("begins anew: it is scaffold's, and this is fedavg"), "{}", err(&other));
    let dealt = from("a@3", "f", &["federated.rounds=1", "run.split_seed=99"]);
    assert!(err(&dealt).contains("hold other samples here"), "{}", err(&dealt));
    refused(&from("a@1", "g", &[]), 2, &["no checkpoint of round 1; there are 2, 3, 4"]);
    assert!(!desk.path("g").exists());
    // Its own checkpoints are what it goes on from, whatever became of the other run.
    std::fs::remove_dir_all(desk.path("d/align")).ok();
    std::fs::remove_file(desk.path("d/eval.json")).unwrap();
    std::fs::rename(desk.path("a"), desk.path("elsewhere")).unwrap();
    desk.ok(&["finetune", "d/config.toml"]);
}

/// Pretraining on the world with the shipped CLIP, copied so that it can be changed.
const PRETRAINED: &str = r#"
[data]
kind = "world"
pool_images = 40
train_per_class = 24
test_per_class = 6
[longtail]
imbalance = 4
[partition]
kind = "dirichlet"
clients = 4
min_size = 2
[server_set]
per_class = 2
[model]
kind = "resnet8"
width = 4
[clip]
kind = "model"
path = "clip"
[pool]
kind = "world"
captions = "captions.jsonl"
[pretrain]
batch_size = 16
epochs = 1
[align]
enabled = false
[federated]
rounds = 1
cohort = 2
local_epochs = 1
batch_size = 8
[evaluate]
shots = "rank:3/4/3"
overlaps = false
"#;

#[test]
fn what_changed_between_two_stages_is_refused_and_named() {
    let desk = Desk::new(PRETRAINED);
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    std::fs::create_dir(desk.path("clip")).unwrap();
    for file in std::fs::read_dir(shipped.join("demo-clip")).unwrap().flatten() {
        std::fs::copy(file.path(), desk.path("clip").join(file.file_name())).unwrap();
    }
    std::fs::copy(shipped.join("demo-captions.jsonl"), desk.path("captions.jsonl")).unwrap();
    desk.ok(&["pretrain", "s.toml", "--set", "run.dir=r"]);
    let inputs = json(&desk.path("r/manifest.json"))["inputs"].clone();
    for key in ["clip.path", "pool.captions", "pool", "data: train"] {
        assert!(inputs[key]["digest"].is_string() && inputs[key]["covers"].is_string(), "{key}: {inputs}");
    }
    let run = || desk.run(&["run", "s.toml", "--set", "run.dir=r"]);
    let change = |name: &str, key: &str| {
        let path = desk.path(name);
        let whole = std::fs::read(&path).unwrap();
        let mut other = whole.clone();
        let at = other.len() - 9;
        other[at] ^= 1;
        std::fs::write(&path, other).unwrap();
        refused(&run(), 3, &["was made from other files", key, "there,", "run.dir=runs/another"]);
        std::fs::write(&path, whole).unwrap();
    };
    change("clip/model.safetensors", "clip.path");
    change("captions.jsonl", "pool.captions");
    assert!(run().status.success());
}

#[test]
fn clients_that_diverge_are_named_with_the_keys_that_help_or_left_out_recorded_and_said() {
    let desk = Desk::new(&one("fedavg"));
    // After one huge step numbers are finite, after two none: clients of one batch stay.
    let wild = "federated.optimiser={kind=\"sgd\",lr=1e25}";
    let some = ["run", "s.toml", "--set", "run.dir=s", "--set", wild, "--set", "federated.on_failure=skip"];
    let few = ["--set", "federated.rounds=1", "--set", "federated.cohort=6", "--set", "federated.batch_size=24"];
    let cap = ["--set", "federated.max_failures=0.9"];
    let output = desk.run(&[&some[..], &few, &cap].concat());
    assert!(output.status.success(), "{}", err(&output));
    let failures = json(&desk.path("s/eval.json"))["facts"]["failures"].clone();
    let n = failures["times"].as_u64().unwrap();
    assert!(n > 0 && n < 6 && failures["rounds"] == 1, "{failures}");
    let records = std::fs::read_to_string(desk.path("s/metrics.jsonl")).unwrap();
    assert_eq!(records.lines().filter(|l| l.contains("\"split\":\"failed\"")).count() as u64, n, "{records}");
    assert!(err(&output).contains("left out: round 1, client") && err(&output).contains("metrics.jsonl says why"));
    let stop = desk.run(&["run", "s.toml", "--set", "run.dir=a", "--set", wild]);
    refused(&stop, 2, &["round 1, client", "diverged", "federated.clip_gradient", "federated.on_failure = \"skip\""]);
    let all = ["run", "s.toml", "--set", "run.dir=b", "--set", wild, "--set", "federated.on_failure=skip"];
    refused(&desk.run(&all), 2, &["clients failed, more than federated.max_failures = 0.5 allows"]);
    let held = ["run", "s.toml", "--set", "run.dir=c", "--set", "federated.clip_gradient=1.0"];
    assert!(desk.run(&held).status.success());
}
