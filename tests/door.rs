//! What a person meets first: the README, a copied binary, what a run leaves beside its numbers, a quiet terminal.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Keys that make the demo small.
const SMALL: [&str; 11] = [
    "data.pool_images=96",
    "data.train_per_class=24",
    "data.test_per_class=6",
    "longtail.imbalance=4",
    "partition.clients=6",
    "partition.min_size=1",
    "pretrain.epochs=1",
    "federated.rounds=2",
    "federated.cohort=3",
    "align.steps=2",
    "evaluate.overlaps=false",
];

/// A folder without a checkout, and a cache of its own.
struct Elsewhere(TempDir);

impl Elsewhere {
    fn new() -> Self {
        let desk = Elsewhere(tempfile::tempdir().unwrap());
        std::fs::write(desk.path("one.toml"), "base = \"configs/demo.toml\"\narms = []\n").unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, program: &Path, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.current_dir(self.0.path()).args(arguments).env_remove("FEDLLAVA_DATA").env_remove("NO_COLOR");
        command.env("XDG_CACHE_HOME", self.path("cache")).output().unwrap()
    }

    /// Runs the binary with these arguments and the keys that make the demo small, and expects success.
    fn small(&self, arguments: &[&str]) -> Output {
        let mut all = arguments.to_vec();
        SMALL.iter().for_each(|key| all.extend(["--set", key]));
        let output = self.run(Path::new(env!("CARGO_BIN_EXE_fedllava")), &all);
        assert!(output.status.success(), "{all:?}\n{}", String::from_utf8_lossy(&output.stderr));
        output
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn lines(&self, name: &str) -> Vec<Value> {
        self.read(name).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}

fn readme() -> String {
    std::fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap()
}

#[test]
fn the_readme_is_short_and_its_files_are_there() {
    let text = readme();
    assert!(text.len() <= 8192, "{} bytes", text.len());
    assert!(text.contains("cargo run --release -- demo") && text.contains("cargo test "));
    let links: Vec<&str> = text.split("](").skip(1).filter_map(|t| t.split(')').next()).collect();
    let local: Vec<&&str> = links.iter().filter(|l| !l.starts_with("http")).collect();
    assert!(local.len() > 8, "{local:?}");
    for link in local {
        assert!(Path::new(ROOT).join(link).exists(), "{link}");
    }
}

#[test]
fn the_readmes_methods_and_their_keys_are_the_registrys() {
    let known = fedllava::fl::AlgorithmConfig::all();
    let text = readme();
    assert!(text.contains(&format!("{} published methods", known.len())));
    let table = text.split("| kind | keys |").nth(1).unwrap().split("\n\n").next().unwrap();
    let mut named = Vec::new();
    let pairs = table.lines().skip(2).flat_map(|line| {
        let cells: Vec<Vec<&str>> = line.split('|').map(|c| c.split('`').skip(1).step_by(2).collect()).collect();
        [(cells[1].clone(), cells[2].clone()), (cells[3].clone(), cells[4].clone())]
    });
    for (kinds, keys) in pairs {
        let tables: Vec<Value> = kinds
            .iter()
            .map(|kind| {
                let found = known.iter().find(|(k, _)| k == kind).unwrap_or_else(|| panic!("no method {kind}"));
                serde_json::to_value(&found.1).unwrap()
            })
            .collect();
        for key in keys {
            assert!(tables.iter().any(|t| t.get(key).is_some()), "{kinds:?} have no key {key}");
        }
        named.extend(kinds);
    }
    let missing: Vec<_> = known.iter().filter(|(kind, _)| !named.contains(kind)).map(|(kind, _)| kind).collect();
    assert!(missing.is_empty(), "the README does not name {missing:?}");
}

#[test]
fn a_copied_binary_runs_the_demo_in_an_empty_folder() {
    let desk = Elsewhere::new();
    let copy = desk.path("copied");
    std::fs::copy(env!("CARGO_BIN_EXE_fedllava"), &copy).unwrap();
    let mut arguments = vec!["demo", "--set", "run.dir=out"];
    SMALL.iter().for_each(|key| arguments.extend(["--set", key]));
    let output = desk.run(&copy, &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("3 align") && table.contains("scratch"), "{table}");
    let carried = std::fs::read_dir(desk.path("cache/fedllava/shipped")).unwrap().count();
    assert!(carried >= 2, "CLIP and LLaVA are unpacked into the cache");
    assert!(!desk.path("configs").exists() && !desk.path("data").exists(), "nothing is left in the folder");
}

#[test]
fn a_run_says_when_how_long_and_by_which_program_and_equal_runs_share_all_else() {
    let desk = Elsewhere::new();
    for dir in ["run.dir=a", "run.dir=b"] {
        desk.small(&["run", "one.toml", "--set", dir, "--set", "run.share=false"]);
    }
    for name in ["metrics.jsonl", "metrics.csv", "split.json", "align/model.safetensors"] {
        let bytes = |run: &str| std::fs::read(desk.path(run).join(name)).unwrap();
        assert_eq!(bytes("a"), bytes("b"), "{name}");
    }
    let eval = |run: &str| serde_json::from_str::<Value>(&desk.read(&format!("{run}/eval.json"))).unwrap();
    assert_eq!(eval("a"), eval("b"));
    let records = desk.lines("a/metrics.jsonl");
    assert_eq!(desk.read("a/metrics.csv").lines().count(), records.len() + 1);
    let times = desk.lines("a/times.jsonl");
    let stages: Vec<&str> = times.iter().map(|t| t["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["pretrain", "finetune", "finetune", "align"]);
    for record in &times {
        assert!(record["seconds"].as_f64().unwrap() > 0.0 && record["at"].as_str().unwrap().ends_with('Z'), "{record}");
        assert!(record["peak_memory"].is_u64() || !cfg!(target_os = "linux"), "{record}");
    }
    let manifest: Value = serde_json::from_str(&desk.read("a/manifest.json")).unwrap();
    assert_eq!(manifest["program"].as_str().unwrap().len(), 64);
    assert!(!manifest["commit"].as_str().unwrap().is_empty(), "{manifest}");
}

#[test]
fn quiet_says_nothing_and_a_pipe_gets_no_colour() {
    let desk = Elsewhere::new();
    let quiet = desk.small(&["-q", "run", "one.toml", "--set", "run.dir=a", "--set", "run.share=false"]);
    assert_eq!(String::from_utf8_lossy(&quiet.stderr), "");
    let talk = desk.small(&["run", "one.toml", "--set", "run.dir=b", "--set", "run.share=false"]);
    let talk = String::from_utf8(talk.stderr).unwrap();
    for line in ["pretrain epoch 1/1", "finetune round 1/2", "finetune round 2/2"] {
        assert!(talk.contains(line), "{line}: {talk}");
    }
    let typo = desk.run(Path::new(env!("CARGO_BIN_EXE_fedllava")), &["demo", "--set", "federated.round=1"]);
    let typo = String::from_utf8(typo.stderr).unwrap();
    assert!(typo.starts_with("error: ") && typo.contains("\nhint: "), "{typo}");
    assert!(![talk, typo].concat().contains('\u{1b}'));
}

#[test]
fn tensorboards_file_has_an_event_for_every_record() {
    let desk = Elsewhere::new();
    let set = ["--set", "run.dir=a", "--set", "run.tensorboard=true"];
    desk.small(&[&["run", "one.toml"][..], &set].concat());
    let mut bytes = &std::fs::read(desk.path("a/events.out.tfevents.fedllava")).unwrap()[..];
    let mut events = 0;
    while !bytes.is_empty() {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let checksum = crc(&bytes[12..12 + length]);
        assert_eq!(u32::from_le_bytes(bytes[12 + length..16 + length].try_into().unwrap()), checksum);
        bytes = &bytes[16 + length..];
        events += 1;
    }
    assert_eq!(events, desk.lines("a/metrics.jsonl").len() + 1, "the version, and one a record");
}

/// TFRecord's masked CRC-32C, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[test]
fn doctor_and_man_work_anywhere() {
    let desk = Elsewhere::new();
    let program = Path::new(env!("CARGO_BIN_EXE_fedllava"));
    let found: Value = serde_json::from_slice(&desk.run(program, &["doctor", "--json"]).stdout).unwrap();
    for what in ["fedllava", "processor", "kernels", "memory", "gpu", "runs", "cache", "models", "data"] {
        assert!(found[what]["found"].is_string(), "{what}: {found}");
    }
    assert!(desk.run(program, &["man", "pages"]).status.success());
    assert!(desk.read("pages/fedllava-doctor.1").contains("fedllava"));
}

/// A CIFAR-10 of random bytes in the binary version, which both sides read.
fn cifar(folder: &Path) {
    let mut state = 1u32;
    let mut random = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::fs::create_dir_all(folder).unwrap();
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
        let images =
            (0..40u8).flat_map(|i| std::iter::once(i % 10).chain((0..3072).map(|_| random())).collect::<Vec<_>>());
        std::fs::write(folder.join(format!("{name}.bin")), images.collect::<Vec<u8>>()).unwrap();
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
fn pytorch_loads_an_exported_resnet_and_says_the_same() {
    let script = Path::new(ROOT).join("scripts/load_resnet.py");
    let (text, readme) = (std::fs::read_to_string(&script).unwrap(), readme());
    let block = readme.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let recipe = &block[block.find("def conv").unwrap()..];
    assert!(text.contains(recipe), "README.md and scripts/load_resnet.py differ:\n{recipe}");
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let ready = Command::new(&python).args(["-c", "import torch, safetensors, numpy"]).output();
    if !ready.is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: {python} has no torch (PYTHON may name another)");
        return;
    }
    let desk = Elsewhere::new();
    cifar(&desk.path("cifar10"));
    let config = "[data]\nkind = \"cifar10\"\npath = \"cifar10\"\n[longtail]\nimbalance = 2\n\
        [partition]\nkind = \"iid\"\nclients = 2\n[model]\nkind = \"resnet8\"\nwidth = 4\n\
        [server_set]\nper_class = 0\n[federated]\nrounds = 2\ncohort = 2\nlocal_epochs = 1\n\
        [pretrain]\nenabled = false\n[align]\nenabled = false\n[evaluate]\nlogits = true\noverlaps = false\n";
    std::fs::write(desk.path("c.toml"), config).unwrap();
    let ours = desk.run(Path::new(env!("CARGO_BIN_EXE_fedllava")), &["run", "c.toml", "--set", "run.dir=a"]);
    assert!(ours.status.success(), "{}", String::from_utf8_lossy(&ours.stderr));
    let theirs = desk.run(Path::new(&python), &[script.to_str().unwrap(), "a", "--data", "cifar10"]);
    assert!(theirs.status.success(), "{}", String::from_utf8_lossy(&theirs.stderr));
    let said: Value = serde_json::from_slice(&theirs.stdout).unwrap();
    assert!(said["largest difference"].as_f64().unwrap() < 1e-4, "{said}");
}
