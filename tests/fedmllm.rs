//! A multimodal LLM in the federated loop: the laws that a fake would break, on the demo's LLaVA.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fedllava::config::Config;
use fedllava::data::multimodal::scenario::{self, Holdings};
use fedllava::data::multimodal::{self, Multimodal};
use fedllava::exec::ranks::together;
use fedllava::exec::{Context, Event, Events, Ranks};
use fedllava::fl::round::Federation;
use fedllava::fl::trainer::CompactTrainer;
use fedllava::key::Key;
use fedllava::mllm::wording::Prompts;
use fedllava::model::lora::LoraConfig;
use fedllava::model::vlm::Opened;
use fedllava::nn::{Batch, Optimiser, OptimiserConfig, Samples, View};
use fedllava::pipeline::{self, Library, Served, Stages};
use fedllava::task::mllm::lessons::{Keep, Lessons};
use fedllava::task::mllm::speaker::School;
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
    let cx = Context::cpu(1);
    let stopping = Context { events: Arc::new(StopAfterOne(cx.cancel.clone())), ..cx };
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

/// Remembers what was begun.
#[derive(Default)]
struct Begun(std::sync::Mutex<Vec<String>>);

impl Events for Begun {
    fn on(&self, event: Event<'_>) {
        if let Event::Begin { name, .. } = event {
            self.0.lock().unwrap().push(name.to_string());
        }
    }
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
        let begun = Arc::new(Begun::default());
        let cx = Context { events: begun.clone(), ..Context::cpu(1) };
        let e = pipeline::run(&config, Stages::All, &Library::default(), &cx).unwrap_err();
        assert_eq!(e.class(), fedllava::error::Class::Input, "{kind}: {e}");
        assert!(!memes.root.path().join(kind).exists(), "{kind}");
        assert!(begun.0.lock().unwrap().is_empty(), "{kind}: no sample was prepared");
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
    memes.paint(90, 90);
    // Too long by their picture alone, or by their end mark: some of these are, wherever the limit lies.
    let with =
        |n: usize| format!(r#"{{"id": {n}, "img": "img/90.png", "text": "{}", "label": 1}}"#, vec!["red"; n].join(" "));
    let lines: Vec<String> = (130..250).step_by(8).map(with).collect();
    let known = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{known}\n{line}\n{}", lines.join("\n"))).unwrap();
    let whole = ["scenario={ kind = \"aligned\", clients = 1 }", "federated.cohort=1", "federated.rounds=1"];
    let strict = memes.config("strict", &whole);
    let e = pipeline::run(&strict, Stages::All, &Library::default(), &Context::cpu(1)).unwrap_err().to_string();
    assert!(e.contains("longer than the longest") && e.contains("90"), "{e}");
    let lenient = [&whole[..], &["run.tolerate=0.5"]].concat();
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
    let e = pipeline::run(&config, Stages::All, &Library::default(), &Context::cpu(1)).unwrap_err().to_string();
    assert!(e.contains("all 2 clients of the exchange failed"), "{e}");
}

/// Lessons of which one cannot be given: whoever holds it panics.
struct Faulty<'a>(&'a Lessons, u32);

impl Samples for Faulty<'_> {
    fn fill(&self, ids: &[u32], view: View, key: Key, batch: &mut Batch) -> fedllava::error::Result<()> {
        assert!(!ids.contains(&self.1), "a lesson is torn");
        self.0.fill(ids, view, key, batch)
    }
}

#[test]
fn a_round_in_which_one_client_fails_is_the_round_of_the_others() {
    let memes = Memes::new(false);
    let config = memes.config("unused", &["federated.on_failure=\"skip\"", "federated.rounds=1"]);
    let (set, holdings) = memes.held();
    let (task, cx) = (config.task.mllm().unwrap(), Context::cpu(1));
    let opened = Opened::open(Path::new(&task.model), &cx).unwrap();
    let plan = opened.plan(&task.lora).unwrap();
    let start = opened.fresh(&plan, Key::from_seed(5)).unwrap();
    let keep = Keep { budget: 1 << 28, features: true };
    let lessons = Lessons::prepare(opened.frozen().unwrap(), &set, &holdings, Prompts::Base, 1200, keep, &cx).unwrap();
    let school = Arc::new(School { opened, plan, lessons, micro_batch: 1, recompute: false });
    let net = Arc::new(school.net());
    let round = |samples: &dyn Samples, cohort: Vec<u32>| {
        let (inner, session_net) = (school.clone(), net.clone());
        let session = move |_: &Context, _| Ok(inner.session(&session_net));
        let trainer = CompactTrainer::within(net.clone(), session, samples, &school.lessons.clients);
        let federation = Federation {
            algorithm: config.algorithm.algorithm(),
            trainer: &trainer,
            config: &config.federated,
            clients: 2,
            cohort: &move |_| Ok(cohort.clone()),
            align: None,
            feedback: false,
            key: Key::from_seed(6),
        };
        let mut failed = Vec::new();
        let server = federation.start(start.clone(), &cx).unwrap();
        let server = federation.run(server, &cx, &mut |done| {
            failed.extend(done.failed.iter().map(|f| f.client));
            Ok(())
        });
        (server.unwrap().model.digest(), failed)
    };
    let bad = *school.lessons.clients[1].last().unwrap();
    let (both, none) = round(&school.lessons, vec![0, 1]);
    let (first, _) = round(&school.lessons, vec![0]);
    let (skipped, failed) = round(&Faulty(&school.lessons, bad), vec![0, 1]);
    assert_eq!((skipped == first, skipped == both), (true, false));
    assert_eq!((none, failed), (vec![], vec![1]));
}

#[test]
fn a_run_starts_from_a_round_of_another_and_a_finished_one_grows_to_the_bytes_of_a_longer_one() {
    let memes = Memes::new(false);
    let yogi = ["algorithm.kind=\"fedyogi\"", "federated.keep_checkpoints=9"];
    let with = |more: &[&str]| -> Vec<String> { yogi.iter().chain(more).map(ToString::to_string).collect() };
    let run = |name: &str, more: &[&str]| {
        let set = with(more);
        memes.run(name, 2, &set.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let long = run("long", &["federated.rounds=4"]);
    let grown = {
        run("grown", &["federated.rounds=2"]);
        run("grown", &["federated.rounds=4"])
    };
    assert_eq!(long["digest"], grown["digest"]);
    let read = |run: &str, file: &str| std::fs::read_to_string(memes.root.path().join(run).join(file)).unwrap();
    assert_eq!(read("long", "metrics.jsonl"), read("grown", "metrics.jsonl"));
    assert_eq!(read("long", "answers.jsonl"), read("grown", "answers.jsonl"));
    // From round 2 of the long one: its adapters are the start, and so its figures before any round.
    let from = memes.root.path().join("long");
    let start = |round: &str| format!("finetune.from=\"{}{round}\"", from.display());
    let zero = run("zero", &[&start("@2"), "federated.rounds=0"]);
    let short = run("short", &["federated.rounds=2"]);
    assert_eq!(zero["digest"], short["digest"]);
    assert_eq!(run("last", &[&start(""), "federated.rounds=0"])["digest"], long["digest"]);
    assert_ne!(run("on", &[&start("@2"), "federated.rounds=1"])["digest"], short["digest"]);
    let other = memes.config("other", &[&start("@2"), "task.lora={ rank = 3 }"]);
    let e = pipeline::run(&other, Stages::All, &Library::default(), &Context::cpu(1)).unwrap_err().to_string();
    assert!(e.contains("finetune.from") && e.contains("task.lora"), "{e}");
}

#[test]
fn a_table_of_its_runs_shows_what_they_have_and_no_groups_of_classes() {
    let memes = Memes::new(false);
    memes.run("one", 2, &["federated.rounds=1"]);
    let report = fedllava::report::Report::read(&[memes.root.path().join("one")]).unwrap();
    let view = report.summary(&Default::default(), fedllava::report::Room { width: None, wide: true });
    let text = view.markdown();
    for head in ["accuracy", "AUC", "AUC by likelihood", "macro-F1", "unparsed"] {
        assert!(text.contains(head), "{head}: {text}");
    }
    for head in ["many", "medium", "few", "worst class"] {
        assert!(!text.contains(head), "{head}: {text}");
    }
}

#[test]
fn adapters_trained_on_two_ranks_are_those_of_one_process() {
    let memes = Memes::new(false);
    // Enough for more clients than a leaf has.
    let line = |i: u32| {
        let (picture, text, label) = (i % 24, WORDS[(i % 6) as usize], i / 6 % 2);
        format!(r#"{{"id": {}, "img": "img/{picture}.png", "text": "{text}", "label": {label}}}"#, 1000 + i)
    };
    let lines: Vec<String> = (0..72).map(line).collect();
    std::fs::write(memes.folder().join("train.jsonl"), lines.join("\n")).unwrap();
    let set = [
        "scenario.clients=18",
        "scenario.alpha=1e6",
        "federated.cohort=18",
        "federated.rounds=2",
        "algorithm.kind='scaffold'",
    ];
    let set = [&set[..], &["federated.optimiser={kind='sgd',lr=0.05}"]].concat();
    let one = memes.digest("one", &set);
    let ranks = together(2);
    let context = |ranks: &Ranks| Context { ranks: ranks.clone(), ..Context::cpu(1) };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let cx = context(&ranks[1]);
            while let Some(run) = Served::next(&cx).unwrap() {
                run.serve(&cx).unwrap();
            }
            ranks[1].close(None);
        });
        let done = pipeline::run(&memes.config("two", &set), Stages::All, &Library::default(), &context(&ranks[0]));
        ranks[0].close(done.as_ref().err());
        other.join().unwrap();
        done.unwrap();
    });
    assert_eq!(memes.eval("two")["digest"], one);
}
