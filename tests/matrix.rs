//! MLLM-LLaVA-FL is no method of its own: it is any of them, started from stage 1, with stage 3. Every method × {scratch,
//! pretrained} × {no alignment, every round, at the end} runs on a tiny world; and the controls without a federation.

use std::path::Path;

use fedllava::config::Config;
use fedllava::exec::Context;
use fedllava::pipeline::{self, Library, Stages};
use serde_json::Value;

use crate::methods_small::small;

const WORLD: &str = r#"
[run]
share = true
[data]
kind = "world"
pool_images = 32
train_per_class = 12
test_per_class = 2
[longtail]
imbalance = 3
[partition]
kind = "dirichlet"
clients = 3
min_size = 2
[server_set]
per_class = 2
[model]
kind = "resnet8"
width = 4
mlp = 64
[clip]
kind = "model"
prompts = { kind = "templates", list = ["a picture of a {c}"] }
[pool]
kind = "world"
[unlabelled]
pool = { kind = "world" }
images = 16
[pretrain]
epochs = 1
batch_size = 16
[federated]
rounds = 2
cohort = 2
local_epochs = 1
batch_size = 8
optimiser = { kind = "sgd", lr = 0.02 }
[align]
steps = 2
batch_size = 4
feedback = true
[evaluate]
shots = "rank:3/4/3"
overlaps = false
"#;

fn run(folder: &Path, name: &str, algorithm: &toml::Table, set: &[(&str, &str, toml::Value)]) -> Value {
    let mut table: toml::Table = toml::from_str(WORLD).unwrap();
    table.insert("algorithm".into(), toml::Value::Table(algorithm.clone()));
    let text = |value: &str| toml::Value::String(value.into());
    let clip = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo-clip");
    let own = [
        ("run", "dir", text(&folder.join(name).display().to_string())),
        ("run", "cache", text(&folder.join("cache").display().to_string())),
        ("clip", "path", text(&clip.display().to_string())),
    ];
    for (section, key, value) in own.iter().chain(set) {
        table[*section].as_table_mut().unwrap().insert((*key).into(), value.clone());
    }
    let config = Config::from_table(table).unwrap();
    let done = pipeline::run(&config, Stages::All, &Library::default(), &Context::cpu(1));
    done.unwrap_or_else(|e| panic!("{name}: {e}"));
    serde_json::from_str(&std::fs::read_to_string(folder.join(name).join("eval.json")).unwrap()).unwrap()
}

#[test]
fn every_method_goes_with_every_start_and_every_alignment() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, algorithm) in small() {
        let algorithm = toml::Table::try_from(&algorithm).unwrap();
        for pretrained in [false, true] {
            for align in ["none", "every-round", "end"] {
                let name = format!("{kind}-{pretrained}-{align}");
                let mut set = vec![("pretrain", "enabled", pretrained.into())];
                match align {
                    "none" => set.push(("align", "enabled", false.into())),
                    when => set.push(("align", "when", toml::Value::String(when.into()))),
                }
                let eval = run(folder.path(), &name, &algorithm, &set);
                let stage = if align == "none" { "finetune" } else { "align" };
                assert_eq!(eval["stage"], stage, "{name}");
                assert!(eval["overall"].as_f64().is_some_and(|a| (0.0..=1.0).contains(&a)), "{name}");
                assert_eq!(eval["stages"].get("pretrain").is_some(), pretrained, "{name}");
                assert!(eval["facts"]["burden"]["multiply_adds"].as_f64().unwrap() > 0.0, "{name}");
            }
        }
    }
}

#[test]
fn clients_alone_send_nothing_and_are_judged_by_their_own_models_and_one_machine_has_as_many_steps() {
    let folder = tempfile::tempdir().unwrap();
    let fedavg = toml::toml! { kind = "fedavg" };
    let off = |mode: &str| {
        let mode = toml::Value::String(mode.into());
        [("pretrain", "enabled", false.into()), ("align", "enabled", false.into()), ("federated", "mode", mode)]
    };
    let [local, central, plain] =
        ["local", "centralised", "federated"].map(|m| run(folder.path(), m, &fedavg, &off(m)));
    let (alone, burden) = (&local["stages"]["finetune"], &local["facts"]["burden"]);
    assert_eq!((burden["bytes_down"].as_f64(), burden["bytes_up"].as_f64()), (Some(0.0), Some(0.0)));
    assert!(alone["personal"]["mean"].as_f64().is_some() && alone["personal_clients"].as_u64() >= Some(2), "{alone}");
    assert!(plain["stages"]["finetune"].get("personal").is_none());
    // Two of three clients a round against one machine with all images: two thirds of its passes, rounded up.
    let work = |e: &Value| e["facts"]["burden"]["multiply_adds"].as_f64().unwrap();
    assert!((0.6..1.7).contains(&(work(&central) / work(&plain))), "{} and {}", work(&central), work(&plain));
    assert_ne!(central["stages"]["finetune"]["digest"], plain["stages"]["finetune"]["digest"]);
}
