//! Keys of a config: each can be changed on every shipped config, and a mistake is answered in a config's own words.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fedllava::config::tree::{Form, Node, leaves};
use fedllava::config::{Config, Resolved};
use fedllava::error::Class;
use fedllava::exec::Context;
use fedllava::pipeline;

fn configs() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs"), &mut found);
    found.sort();
    assert!(found.len() > 20, "{found:?}");
    found
}

fn set(path: &Path, items: &[&str]) -> Config {
    let items: Vec<String> = items.iter().map(|i| i.to_string()).collect();
    Config::read(path, &items).unwrap_or_else(|e| panic!("{} {items:?}: {e}", path.display()))
}

/// `key = value` of every key in force, as TOML.
fn in_force(path: &Path) -> Vec<(String, String)> {
    let all = Resolved::read(path, &[]).unwrap().values();
    let own = |(key, value, _): (String, toml::Value, String)| (key, value.to_string());
    let whole = |(key, _): &(String, String)| !["arms", "contrasts"].contains(&key.as_str());
    all.into_iter().map(own).filter(whole).collect()
}

/// Keys are set one at a time on the first config of each task, in four groups on the others, where one that fails is then
/// looked for.
#[test]
fn every_key_in_force_can_be_set_to_its_own_value_on_every_config_and_nothing_changes() {
    let mut tasks = std::collections::BTreeSet::new();
    for path in configs() {
        let (config, keys) = (set(&path, &[]), in_force(&path));
        assert!(keys.len() > 80, "{}: {}", path.display(), keys.len());
        let items: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let holds = |items: &[&str]| assert_eq!(set(&path, items), config, "{} {items:?}", path.display());
        let groups = if tasks.insert(config.task.mllm().is_some()) { items.len() } else { 4 };
        for first in 0..groups {
            let group: Vec<&str> = items.iter().skip(first).step_by(groups).map(String::as_str).collect();
            let together = Config::read(&path, &group.iter().map(|i| i.to_string()).collect::<Vec<_>>());
            if together.ok().as_ref() != Some(&config) {
                group.iter().for_each(|item| holds(&[item]));
                holds(&group);
            }
        }
    }
}

#[test]
fn arms_and_files_on_a_base_may_name_every_key_too() {
    let dir = tempfile::tempdir().unwrap();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/cifar10-lt/quick.toml");
    std::fs::copy(&base, dir.path().join("base.toml")).unwrap();
    let path = dir.path().join("c.toml");
    let mut plain = set(&dir.path().join("base.toml"), &["run.dir=x"]);
    for (key, value) in in_force(&base).into_iter().filter(|(key, _)| key != "run.dir") {
        let text = format!("base = \"base.toml\"\nrun.dir = \"x\"\n[[arms]]\nname = \"a\"\nset.{key} = {value}\n");
        std::fs::write(&path, text).unwrap();
        let arm = set(&path, &[]).expand().unwrap().remove(0).1;
        plain.run.dir = "x/a/seed-7".into();
        assert_eq!(arm, plain, "arm: {key} = {value}");
        std::fs::write(&path, format!("base = \"base.toml\"\n{key} = {value}\n")).unwrap();
        plain.run.dir = "x".into();
        assert_eq!(set(&path, &["run.dir=x"]), plain, "on a base: {key} = {value}");
    }
}

#[test]
fn rates_and_knobs_can_be_set_where_the_file_leaves_the_section_out() {
    for path in configs() {
        let config =
            set(&path, &["federated.optimiser.lr=0.03", "align.optimiser.lr=0.04", "pretrain.optimiser.lr=0.05"]);
        assert_eq!((config.federated.optimiser.lr(), config.align.optimiser.lr()), (0.03, 0.04));
        assert_eq!(config.pretrain.optimiser.lr(), 0.05);
        let either = ["algorithm.mu=0.3", "algorithm.kind=fedprox"];
        assert_eq!(set(&path, &either), set(&path, &["algorithm.kind=fedprox", "algorithm.mu=0.3"]), "in any order");
    }
}

/// Words of this program's source that no person wrote in a config.
const FOREIGN: [&str; 12] = [
    "usize",
    "u64",
    "f32",
    "expected a ",
    "expected in",
    "expected one of",
    "expected struct",
    "Config",
    "tagged",
    "enum",
    "invalid type",
    "missing field",
];

#[test]
fn a_value_of_the_wrong_kind_is_answered_in_words_of_a_config_whatever_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, "").unwrap();
    for leaf in leaves().iter().filter(|l| !l.path.contains("arms") && !l.path.contains("contrasts")) {
        let mut items: Vec<String> = leaf.of[0].chain.iter().map(|(s, k)| format!("{s}.kind={k}")).collect();
        items.push(format!("{}={{ a = 1 }}", leaf.path));
        let Err(e) = Config::read(&path, &items) else {
            let text = matches!(leaf.of[0].key.node, Node::Value(Form::Text | Form::Names(_)));
            assert!(text, "{items:?} was taken");
            continue;
        };
        let text = e.to_string();
        // What is text is taken, and may be refused for what it lacks beside it.
        let taken = matches!(leaf.of[0].key.node, Node::Value(Form::Text));
        assert!(taken || text.contains(leaf.path.rsplit('.').next().unwrap()), "{items:?}: {text}");
        // What numbers are kept in has the names that everybody gives it.
        let text = text.replace("valid: f32, f16, bf16", "");
        assert!(FOREIGN.iter().all(|w| !text.contains(w)), "{items:?}: {text}");
    }
}

/// A mistake, and what its answer holds.
const MISTAKES: [(&str, &[&str]); 18] = [
    ("rounds = 3", &["c.toml:1", "1 | rounds = 3", "^^^^^^", "federated.rounds"]),
    ("[federated]\nround = 3", &["c.toml:2", "^^^^^", "valid: ", "did you mean `rounds`?"]),
    ("[federated]\nrounds = \"many\"", &["needs a whole number", "2 | rounds = \"many\"", "         ^^^^^^"]),
    ("[federated]\ncohort = 0", &["federated.cohort = 0", "2 | cohort = 0", "^"]),
    ("[federated]\nlocal_epochs = 0", &["federated.local_epochs = 0", "c.toml:2", "smallest is 1"]),
    ("[pretrain]\nepochs = 0", &["pretrain.epochs = 0", "c.toml:2", "pretrain.enabled=false"]),
    ("[align]\nsteps = 0", &["align.steps = 0", "c.toml:2", "align.enabled=false"]),
    ("[federated.optimiser]\nlr = 0", &["federated.optimiser.lr = 0", "c.toml:2"]),
    ("[align]\noptimiser.lr = -0.1", &["align.optimiser.lr = -0.1", "c.toml:2"]),
    ("[federated]\nrounds = 99999999999", &["federated.rounds = 99999999999", "the most is"]),
    ("[run]\ntolerate = -0.5", &["run.tolerate = -0.5", "from 0 to 1"]),
    ("[run]\nthreads = 4294967295", &["run.threads = 4294967295", "c.toml:2", "0 takes every core"]),
    ("[algorithm]\nkind = \"FedAvg\"", &["unknown name `FedAvg`", "2 | kind = \"FedAvg\"", "`fedavg`? Case matters"]),
    ("[algorithm]\nmu = 0.1", &["belongs to fedprox", "c.toml:2", "set algorithm.kind=fedprox"]),
    ("[evaluate]\nshots = \"rank\"", &["evaluate.shots", "c.toml:2", "^^^^^^"]),
    ("[run\n", &["this is not TOML", "c.toml:1"]),
    ("[[arms]]\nname = \"a\"\nset = { federated.round = 3 }", &["arm a", "c.toml:3", "did you mean `rounds`?"]),
    ("[[arms]]\nname = \"a\"\nset = { federated.cohort = 99 }", &["arm a", "federated.cohort = 99", "c.toml:3"]),
];

#[test]
fn a_mistake_shows_its_line_with_the_text_underlined() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    for (text, parts) in MISTAKES {
        std::fs::write(&path, text).unwrap();
        let e = Config::read(&path, &[]).err().unwrap_or_else(|| panic!("{text:?} was taken")).to_string();
        assert!(parts.iter().all(|p| e.contains(p)), "{text:?} is answered by\n{e}");
        assert!(FOREIGN.iter().all(|w| !e.contains(w)), "{text:?} is answered by\n{e}");
    }
}

#[test]
fn a_mistake_in_a_base_is_shown_there_and_one_in_a_set_in_the_set() {
    let dir = tempfile::tempdir().unwrap();
    let (below, path) = (dir.path().join("below.toml"), dir.path().join("c.toml"));
    std::fs::write(&path, "base = \"below.toml\"\n").unwrap();
    std::fs::write(&below, "[run]\nsed = 3").unwrap();
    let e = Config::read(&path, &[]).unwrap_err().to_string();
    assert!(e.contains("below.toml:2") && e.contains("did you mean `seed`?"), "{e}");
    std::fs::write(&below, "").unwrap();
    let e = Config::read(&path, &["federated.round=3".into()]).unwrap_err().to_string();
    assert!(e.contains("  --set federated.round=3\n        ^^^^^^^^^^^^^^^"), "{e}");
    let e = Config::read(&path, &["federated.cohort=99".into()]).unwrap_err().to_string();
    assert!(e.contains("  --set federated.cohort=99\n                         ^^"), "{e}");
}

#[test]
fn a_config_says_where_every_value_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let (below, path) = (dir.path().join("below.toml"), dir.path().join("c.toml"));
    std::fs::write(&below, "[federated]\ncohort = 4\nrounds = 9\n[algorithm]\nkind = \"fedprox\"\nmu = 0.5").unwrap();
    std::fs::write(&path, "base = \"below.toml\"\n[federated]\ncohort = 5").unwrap();
    let resolved = Resolved::read(&path, &["federated.eval_every=3".into(), "algorithm.kind=moon".into()]).unwrap();
    let origin = |key: &str| resolved.values().into_iter().find(|(k, ..)| k == key).unwrap().2;
    assert!(origin("federated.cohort").ends_with("c.toml:3") && origin("federated.rounds").ends_with("below.toml:3"));
    assert_eq!(origin("federated.eval_every"), "--set federated.eval_every=3");
    assert_eq!((origin("algorithm.mu").as_str(), origin("federated.lr_decay").as_str()), ("default", "default"));
}

/// What nobody means, and what sizes overflow at.
const ABSURD: [&str; 9] =
    ["0", "-1", "1e308", "nan", "1000000000", "9223372036854775807", "\"\"", "[]", "[9223372036854775807]"];

/// A run of a second.
const SMALL: &str = r#"
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
[pretrain]
enabled = false
[federated]
rounds = 1
cohort = 2
[align]
beta = 0.0
[evaluate]
shots = "rank:3/4/3"
"#;

/// Every key in every kind that has it, on a small run: whatever stands there is refused in time and in a config's words,
/// or taken. What `config check` adds for those that are taken, sizes and memory, is asked too.
#[test]
fn an_absurd_value_of_any_key_is_refused_or_taken_and_nothing_hangs_panics_or_calls_itself_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("small.toml");
    std::fs::write(&file, SMALL).unwrap();
    set(&file, &[]);
    let (cx, long) = (Context::cpu(1), format!("\"{}\"", "x".repeat(100_000)));
    let (mut speeds, mut refused, mut taken) = (pipeline::Speeds::new(), 0, 0);
    for leaf in leaves().iter().filter(|l| l.kinds.is_empty()) {
        // Kinds that share a key share its struct, but for a few: the first and the last.
        let [first, last] = [leaf.of.first(), leaf.of.last()].map(Option::unwrap);
        let owners = if first.chain == last.chain { vec![first] } else { vec![first, last] };
        for (owner, value) in
            owners.iter().flat_map(|o| ABSURD.iter().copied().chain([long.as_str()]).map(move |v| (o, v)))
        {
            let kinds = owner.chain.iter().map(|(section, kind)| format!("{section}.kind={kind}"));
            let items: Vec<String> = kinds.chain([format!("{}={value}", leaf.path)]).collect();
            let began = Instant::now();
            let looked = Config::read(&file, &items).and_then(|config| {
                // A look at the machine's speed takes its time; what depends on sizes comes before it.
                let sized = leaf.path.starts_with("model.") || leaf.path.starts_with("data.");
                if sized { pipeline::outlook(&config, &mut speeds, &cx).map(drop) } else { Ok(()) }
            });
            let (items, short) = (items.join(" "), items.join(" ").chars().take(200).collect::<String>());
            assert!(began.elapsed() < Duration::from_secs(20), "{short}: {:?}", began.elapsed());
            match looked {
                Ok(()) => taken += 1,
                Err(e) => {
                    assert!(matches!(e.class(), Class::Input | Class::Environment), "{short}: {e}");
                    assert!(
                        e.to_string().len() < 8 * items.len() + 4000,
                        "{short}: a message of {}",
                        e.to_string().len()
                    );
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 2000 && taken > 300, "{refused} refused, {taken} taken");
}
