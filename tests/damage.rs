//! Damage to every file of a run, finished or stopped: the same command then gives the same figures, or an error of the
//! data; never another number, never a panic, never what calls itself our mistake.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fedllava::config::Config;
use fedllava::error::{Class, Result};
use fedllava::exec::{Cancel, Context, Event, Events};
use fedllava::pipeline::{self, Library, Stages};
use serde_json::Value;

const CONFIG: &str = r#"
[run]
seed = 7
[data]
kind = "world"
pool_images = 8
train_per_class = 8
test_per_class = 2
[longtail]
imbalance = 2
[partition]
kind = "dirichlet"
clients = 3
min_size = 2
[server_set]
per_class = 2
[model]
kind = "resnet8"
width = 2
[algorithm]
kind = "scaffold"
[pretrain]
enabled = false
[federated]
rounds = 4
cohort = 2
batch_size = 8
keep_checkpoints = 2
optimiser = { kind = "sgd", lr = 0.02 }
[align]
beta = 0.0
steps = 1
batch_size = 4
[evaluate]
shots = "rank:3/4/3"
overlaps = false
"#;

/// Stops after a round of the federated stage.
struct StopAfter(u64, Cancel);

impl Events for StopAfter {
    fn on(&self, event: Event<'_>) {
        if matches!(event, Event::Advance { done, .. } if done == self.0) {
            self.1.stop();
        }
    }
}

fn run(dir: &Path, seed: i64, stop: u64) -> Result<()> {
    let mut table: toml::Table = toml::from_str(CONFIG).unwrap();
    let own = table["run"].as_table_mut().unwrap();
    own.insert("dir".into(), dir.display().to_string().into());
    own.insert("seed".into(), seed.into());
    let config = Config::from_table(table).unwrap();
    let cancel = Cancel::default();
    let events = Arc::new(StopAfter(stop, cancel.clone()));
    pipeline::run(&config, Stages::All, &Library::default(), &Context { cancel, events, ..Context::cpu(1) })
}

fn eval(dir: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join("eval.json")).unwrap()).unwrap()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path.strip_prefix(dir).unwrap().to_path_buf()) }
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        std::fs::create_dir_all(to.join(&file).parent().unwrap()).unwrap();
        std::fs::copy(from.join(&file), to.join(&file)).unwrap();
    }
}

/// What is done to a file; `other` is the same file of a run with another seed.
const DAMAGES: [&str; 6] = ["deleted", "emptied", "halved", "a bit early", "a bit late", "another run's"];

fn damage(path: &Path, how: &str, other: &Path) -> bool {
    let mut bytes = std::fs::read(path).unwrap();
    let n = bytes.len();
    match how {
        "deleted" => return std::fs::remove_file(path).is_ok(),
        "another run's" if !other.exists() => return false,
        "another run's" => bytes = std::fs::read(other).unwrap(),
        _ if n == 0 => return false,
        "emptied" => bytes.clear(),
        "halved" => bytes.truncate(n / 2),
        "a bit early" => bytes[n / 3] ^= 1,
        _ => bytes[n - 1 - n / 5] ^= 1,
    }
    std::fs::write(path, bytes).unwrap();
    true
}

#[test]
fn after_any_damage_the_figures_are_the_same_or_the_command_fails_and_says_what() {
    let root = tempfile::tempdir().unwrap();
    let [whole, stopped, other, other_stopped] =
        ["whole", "stopped", "other", "other-stopped"].map(|n| root.path().join(n));
    run(&whole, 7, u64::MAX).unwrap();
    run(&other, 8, u64::MAX).unwrap();
    for (dir, seed) in [(&stopped, 7), (&other_stopped, 8)] {
        assert_eq!(run(dir, seed, 3).unwrap_err().class(), Class::Stopped);
    }
    let expected = eval(&whole);
    let (mut same, mut refused) = (0, Vec::new());
    for (state, other) in [(&whole, &other), (&stopped, &other_stopped)] {
        for file in files(state) {
            for how in DAMAGES {
                let dir = root.path().join("damaged");
                std::fs::remove_dir_all(&dir).ok();
                copy(state, &dir);
                if !damage(&dir.join(&file), how, &other.join(&file)) {
                    continue;
                }
                let case = format!("{} of {}, {how}", file.display(), state.display());
                match run(&dir, 7, u64::MAX) {
                    Ok(()) => {
                        assert_eq!(eval(&dir), expected, "{case}");
                        same += 1;
                    }
                    Err(e) => {
                        assert!(matches!(e.class(), Class::Data | Class::Input), "{case}: {e}");
                        assert!(e.to_string().contains(&dir.display().to_string()), "{case} is not said: {e}");
                        refused.push(case);
                    }
                }
            }
        }
    }
    assert!(same > 60 && refused.len() > 20, "{same} the same, refused: {refused:#?}");
    // A damaged checkpoint, or state of a client, is got over.
    let over = |case: &String| case.contains("checkpoints/round-000003") && case.contains("stopped");
    assert!(!refused.iter().any(over), "{refused:#?}");
}
