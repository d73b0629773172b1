//! A multimodal LLM in the federated loop: the laws that a fake would break, on the demo's LLaVA.

use std::path::{Path, PathBuf};

use fedllava::config::Config;
use fedllava::data::multimodal::scenario::{self, Holdings};
use fedllava::data::multimodal::{self, Multimodal};
use fedllava::exec::{Context, Event, Events};
use fedllava::key::Key;
use fedllava::mllm::wording::Prompts;
use fedllava::model::lora::LoraConfig;
use fedllava::model::vlm::Opened;
use fedllava::nn::{Optimiser, OptimiserConfig};
use fedllava::pipeline::{self, Library, Stages};
use fedllava::task::mllm::lessons::{Keep, Lessons};
use serde_json::Value;

const BASE: &str = r#"
[task]
kind = "mllm"
answer_tokens = 4
lora = { rank = 2, alpha = 4 }
[data]
kind = "hateful-memes"
[scenario]
kind = "cross"
images = 1
clients = 2
alpha = 2.0
[pretrain]
enabled = false
[align]
enabled = false
[federated]
rounds = 2
cohort = 2
local_epochs = 1
batch_size = 4
checkpoint_every = 1
optimiser = { kind = "adamw", lr = 0.01 }
"#;

/// Memes of a few coloured pixels, a line and a label each, in the published layout.
struct Memes {
    root: tempfile::TempDir,
}

const WORDS: [&str; 6] =
    ["a red circle", "two blue stars", "three rings", "a large arrow", "striped squares", "one heart"];

impl Memes {
    fn new(flip: bool) -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("memes/img")).unwrap();
        let memes = Memes { root };
        for (part, first, n) in [("train", 0, 24u32), ("test_seen", 100, 6)] {
            let line = |i: u32| {
                let label = (i + u32::from(flip)) % 2;
                let text = WORDS[(i / 2 % 6) as usize];
                format!(
                    r#"{{"id": {}, "img": "img/{}.png", "text": "{text}", "label": {label}}}"#,
                    first + i,
                    first + i
                )
            };
            let lines: Vec<String> = (0..n).map(line).collect();
            std::fs::write(memes.folder().join(format!("{part}.jsonl")), lines.join("\n")).unwrap();
            (0..n).for_each(|i| memes.paint(first + i, first + i));
        }
        memes
    }

    fn folder(&self) -> PathBuf {
        self.root.path().join("memes")
    }

    fn paint(&self, id: u32, seed: u32) {
        let pixel = |x, y| image::Rgb([(seed * 37 + x * 20) as u8, (seed * 91 + y * 15) as u8, (seed * 53) as u8]);
        let picture = image::RgbImage::from_fn(12, 12, pixel);
        picture.save(self.folder().join(format!("img/{id}.png"))).unwrap();
    }

    fn config(&self, name: &str, set: &[&str]) -> Config {
        let mut table: toml::Table = toml::from_str(BASE).unwrap();
        let text = |p: &Path| toml::Value::String(p.display().to_string());
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo-llava");
        let own = [
            ("run", "dir", text(&self.root.path().join(name))),
            ("data", "path", text(&self.folder())),
            ("task", "model", text(&model)),
        ];
        for (section, key, value) in own {
            let section = table.entry(section).or_insert(toml::Table::new().into());
            section.as_table_mut().unwrap().insert(key.into(), value);
        }
        for item in set {
            let (path, value) = item.split_once('=').unwrap();
            let value: toml::Table = toml::from_str(&format!("v = {value}")).unwrap();
            let mut at = &mut table;
            let mut parts: Vec<&str> = path.split('.').collect();
            let last = parts.pop().unwrap();
            for part in parts {
                at = at.entry(part).or_insert(toml::Table::new().into()).as_table_mut().unwrap();
            }
            at.insert(last.into(), value["v"].clone());
        }
        Config::from_table(table).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn run(&self, name: &str, threads: usize, set: &[&str]) -> Value {
        let config = self.config(name, set);
        pipeline::run(&config, Stages::All, &Library::default(), &Context::cpu(threads))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        self.eval(name)
    }

    fn eval(&self, name: &str) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.root.path().join(name).join("eval.json")).unwrap()).unwrap()
    }

    fn digest(&self, name: &str, set: &[&str]) -> String {
        self.run(name, 2, set)["digest"].as_str().unwrap().to_string()
    }

    /// What the runs read and deal.
    fn held(&self) -> (Multimodal, Holdings) {
        let (config, cx) = (self.config("unused", &[]), Context::cpu(1));
        let key = Key::from_seed(config.run.seed);
        let set = multimodal::load(&config.data.multimodal().unwrap(), key, &cx).unwrap();
        let holdings = scenario::draw(&config.scenario, &set.train.samples, &set.recipe, key).unwrap();
        (set, holdings)
    }
}

#[test]
fn the_bytes_do_not_depend_on_threads_and_every_answer_is_written_down() {
    let memes = Memes::new(false);
    let (one, two) = (memes.run("one", 1, &[]), memes.run("two", 2, &[]));
    assert_eq!(one["digest"], two["digest"]);
    let read = |run: &str, file: &str| std::fs::read_to_string(memes.root.path().join(run).join(file)).unwrap();
    assert_eq!(read("one", "metrics.jsonl"), read("two", "metrics.jsonl"));
    assert_eq!(read("one", "answers.jsonl"), read("two", "answers.jsonl"));
    assert_eq!(read("one", "answers.jsonl").lines().count(), 6);
    let split: Value = serde_json::from_str(&read("one", "split.json")).unwrap();
    let (a, b) = (&split["clients"][0], &split["clients"][1]);
    let alone = |c: &Value, what: &str| c[what].as_u64().unwrap() > 0 && c["both"] == 0;
    assert!((alone(a, "image") && alone(b, "text")) || (alone(a, "text") && alone(b, "image")), "{split}");
}

#[test]
fn a_client_learns_from_what_it_holds_and_from_nothing_else() {
    let memes = Memes::new(false);
    let before = memes.digest("before", &[]);
    let (set, holdings) = memes.held();
    let id = |sample: u32| set.train.samples[sample as usize].id.parse::<u32>().unwrap();
    let of = |image: bool| {
        let held = holdings.clients.iter().flatten().filter(|h| h.holds.image == image);
        held.map(|h| id(h.sample)).collect::<Vec<_>>()
    };
    assert!(!of(true).is_empty() && !of(false).is_empty());
    of(false).into_iter().for_each(|i| memes.paint(i, 200 + i));
    assert_eq!(memes.digest("texts", &[]), before, "a text client's pictures are not looked at");
    of(true).into_iter().for_each(|i| memes.paint(i, 200 + i));
    assert_ne!(memes.digest("pictures", &[]), before, "an image client's pictures are");
}

#[test]
fn other_targets_are_learnt_otherwise_and_no_round_is_the_base() {
    let (memes, flipped) = (Memes::new(false), Memes::new(true));
    let alpha = ["scenario.alpha=100.0"];
    assert_ne!(memes.digest("straight", &alpha), flipped.digest("flipped", &alpha));
    let zero = memes.run("zero", 2, &["federated.rounds=0"]);
    assert_eq!(zero["stages"]["finetune"]["label"], "2 no round: zero-shot");
    // Fresh adapters change nothing: what the merged model answers is what the folder's own model answers.
    let opened =
        Opened::open(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/demo-llava"), &Context::cpu(1)).unwrap();
    let plan = opened.plan(&LoraConfig { rank: 2, alpha: 4.0, ..LoraConfig::default() }).unwrap();
    let fresh = opened.fresh(&plan, Key::from_seed(3)).unwrap();
    let prompt =
        opened.frozen().unwrap().prepare(&[fedllava::model::chat::Message::about(0, "a red circle")], &[]).unwrap();
    let logits = |vlm: &dyn fedllava::model::vlm::Vlm| {
        vlm.logits(&prompt).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(logits(&*opened.frozen().unwrap()), logits(&*opened.merged(&plan, &fresh).unwrap()));
}

#[test]
fn with_lambda_1_and_no_layer_skipped_the_regularisation_is_fedprox() {
    let memes = Memes::new(false);
    let prox = memes.digest("prox", &["algorithm.kind=\"fedprox\"", "algorithm.mu=0.5"]);
    let held = memes.digest("held", &["task.regularise={ mu = 0.5, lambda = 1.0, skip = 0 }"]);
    let plain = memes.digest("plain", &[]);
    assert_eq!(prox, held);
    assert_ne!(prox, plain);
    let refused = memes.config("none", &["task.regularise={ mu = 0.5, lambda = 1.0, skip = 1 }"]);
    let e = pipeline::run(&refused, Stages::All, &Library::default(), &Context::cpu(1)).unwrap_err().to_string();
    assert!(e.contains("task.regularise.skip"), "{e}");
}

/// One client, one round: the loop's adapters are those of plain finetuning, written here from the learner and AdamW alone.
#[test]
fn one_client_and_one_round_are_plain_finetuning() {
    let memes = Memes::new(false);
    let set_keys = ["scenario={ kind = \"aligned\", clients = 1 }", "federated.cohort=1", "federated.rounds=1"];
    let config = memes.config("solo", &set_keys);
    pipeline::run(&config, Stages::All, &Library::default(), &Context::cpu(1)).unwrap();
    let got = memes.eval("solo")["digest"].as_str().unwrap().to_string();

    let cx = Context::cpu(1);
    let task = config.task.mllm().unwrap();
    let opened = Opened::open(Path::new(&task.model), &cx).unwrap();
    let plan = opened.plan(&task.lora).unwrap();
    let key = Key::from_seed(config.run.seed);
    let set = multimodal::load(&config.data.multimodal().unwrap(), key, &cx).unwrap();
    let holdings = scenario::draw(&config.scenario, &set.train.samples, &set.recipe, key).unwrap();
    let keep = Keep { budget: 1 << 28, features: true };
    let lessons = Lessons::prepare(opened.frozen().unwrap(), &set, &holdings, Prompts::Base, 1200, keep, &cx).unwrap();
    let start = opened.fresh(&plan, key.fold(fedllava::key::Purpose::Init, 0)).unwrap();
    let learner = opened.learner(&plan, &start).unwrap();
    let OptimiserConfig::Adamw(adamw) = config.federated.optimiser.clone() else { panic!("adamw") };
    let mut optimiser = Optimiser::new(&OptimiserConfig::Adamw(adamw), plan.layout());
    let mut order = lessons.clients[0].clone();
    use fedllava::key::Purpose::{Client, Epoch, Item, Round, Shuffle, Step};
    let training = key.fold(Round, 1).fold(Client, 0).fold(Step, 0);
    training.fold(Epoch, 0).fold(Shuffle, 0).rng().shuffle(&mut order);
    let mut params = start.clone();
    for (step, batch) in order.chunks(4).enumerate() {
        let mut gradient = vec![0f32; plan.layout().len()];
        for (n, &id) in batch.iter().enumerate() {
            let draws = training.fold(Epoch, 0).fold(Step, step as u64).fold(Item, n as u64);
            let got = learner.gradients(&[&*lessons.sample(id).unwrap()], draws).unwrap();
            gradient.iter_mut().zip(&got.gradient).for_each(|(sum, g)| *sum += g);
        }
        gradient.iter_mut().for_each(|g| *g *= 1.0 / batch.len() as f32);
        optimiser.step(params.data_mut(), &gradient, 1.0);
        learner.set(&params).unwrap();
    }
    // The server moves by the difference to where all began: an ulp of the larger of the two.
    let path = memes.root.path().join("solo/finetune/model.safetensors");
    let model = fedllava::nn::Params::load(&path, plan.layout()).unwrap();
    assert_eq!(model.digest(), got);
    for ((a, b), s) in model.data().iter().zip(params.data()).zip(start.data()) {
        assert!((a - b).abs() <= f32::EPSILON * s.abs().max(b.abs()), "{a} {b} from {s}");
    }
}

/// Stops a run after its first round.
struct StopAfterOne(fedllava::exec::Cancel);

impl Events for StopAfterOne {
    fn on(&self, event: Event<'_>) {
        if let Event::Advance { done: 1, figures } = event
            && figures.iter().any(|(name, _)| *name == "loss")
        {
            self.0.stop();
        }
    }
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bytes_and_its_adapter_answers_as_before() {
    let memes = Memes::new(false);
    let whole = memes.digest("whole", &["task.lora.dropout=0.2"]);
    let config = memes.config("stopped", &["task.lora.dropout=0.2"]);
    let cx = Context::cpu(2);
    let stopping = Context { events: std::sync::Arc::new(StopAfterOne(cx.cancel.clone())), ..cx };
    let stopped = pipeline::run(&config, Stages::All, &Library::default(), &stopping).unwrap_err();
    assert_eq!(stopped.class(), fedllava::error::Class::Stopped);
    assert_eq!(memes.digest("stopped", &["task.lora.dropout=0.2"]), whole);
    // The folder that PEFT would read holds those adapters; folded in, they answer the same.
    let opened = Opened::open(Path::new(&config.task.mllm().unwrap().model), &Context::cpu(1)).unwrap();
    let (plan, params) = opened.adapter(&memes.root.path().join("stopped/adapter")).unwrap();
    assert_eq!(params.digest(), whole);
    let base = opened.fresh(&plan, Key::from_seed(1)).unwrap();
    assert!(params.data().iter().zip(base.data()).any(|(a, b)| (a - b).abs() > 1e-3), "something was learnt");
}

#[test]
fn methods_on_parameters_run_unchanged_and_those_on_scores_are_refused_before_the_start() {
    let memes = Memes::new(false);
    let kinds = ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad"];
    for kind in kinds {
        memes.run(kind, 2, &[&format!("algorithm.kind=\"{kind}\""), "federated.rounds=1"]);
    }
    for kind in ["scaffold", "feddyn", "fednova"] {
        let sgd = "federated.optimiser={ kind = \"sgd\", lr = 0.01 }";
        memes.run(kind, 2, &[&format!("algorithm.kind=\"{kind}\""), sgd, "federated.rounds=2"]);
    }
    for kind in ["focal", "moon", "creff", "ccvr", "feddf", "balancefl", "fedyoyo", "logit-adjustment"] {
        let config = memes.config(kind, &[&format!("algorithm.kind=\"{kind}\"")]);
        let e = pipeline::run(&config, Stages::All, &Library::default(), &Context::cpu(1)).unwrap_err();
        assert_eq!(e.class(), fedllava::error::Class::Input, "{kind}: {e}");
        assert!(!memes.root.path().join(kind).join("checkpoints").exists(), "{kind}");
    }
}

#[test]
fn local_clients_are_judged_by_their_own_adapters_and_one_machine_holds_all() {
    let memes = Memes::new(false);
    let local = memes.run("local", 2, &["federated.mode=\"local\""]);
    assert_eq!(local["personal_clients"], 2, "{local}");
    assert!(local["personal"]["mean"].as_f64().is_some());
    let one = memes.run("centralised", 2, &["federated.mode=\"centralised\"", "federated.cohort=1"]);
    assert_ne!(one["digest"], local["digest"]);
}

#[test]
fn a_text_longer_than_the_model_reads_is_left_out_counted_and_refused_where_it_is_too_much() {
    let memes = Memes::new(false);
    let path = memes.folder().join("train.jsonl");
    let long = vec!["red"; 300].join(" ");
    let line = format!(r#"{{"id": 90, "img": "img/90.png", "text": "{long}", "label": 0}}"#);
    std::fs::write(&path, format!("{}\n{line}", std::fs::read_to_string(&path).unwrap())).unwrap();
    memes.paint(90, 90);
    let whole = ["scenario={ kind = \"aligned\", clients = 1 }", "federated.cohort=1", "federated.rounds=1"];
    let strict = memes.config("strict", &whole);
    let e = pipeline::run(&strict, Stages::All, &Library::default(), &Context::cpu(1)).unwrap_err().to_string();
    assert!(e.contains("longer than the longest") && e.contains("90"), "{e}");
    let lenient = [&whole[..], &["run.tolerate=0.1"]].concat();
    memes.run("lenient", 2, &lenient);
    let manifest = std::fs::read_to_string(memes.root.path().join("lenient/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    assert!(manifest["sources"].to_string().contains("\"90\""), "{}", manifest["sources"]);
}

#[test]
fn clients_that_diverge_are_named_and_a_round_without_any_other_stops() {
    let memes = Memes::new(false);
    let wild = "federated.optimiser={ kind = \"sgd\", lr = 1e38 }";
    let config = memes.config("stop", &[wild]);
    let e = pipeline::run(&config, Stages::All, &Library::default(), &Context::cpu(1)).unwrap_err().to_string();
    assert!(e.contains("round 1, client") && e.contains("federated.on_failure"), "{e}");
    let skip = [wild, "federated.on_failure=\"skip\"", "federated.max_failures=1.0"];
    let config = memes.config("skip", &skip);
    let e = pipeline::run(&config, Stages::All, &Library::default(), &Context::cpu(2)).unwrap_err().to_string();
    assert!(e.contains("all 2 clients of the exchange failed"), "{e}");
}
