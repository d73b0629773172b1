//! The way of updates from outside: real training on any number of threads, stopped and resumed, and what a person reads.

use fedllava::error::Result;
use fedllava::exec::Context;
use fedllava::fl::round::{Federation, Server};
use fedllava::fl::trainer::CompactTrainer;
use fedllava::fl::way::LinkConfig;
use fedllava::fl::{ClientId, FederatedConfig};
use fedllava::key::Key;
use fedllava::model::{Head, ModelConfig};
use fedllava::nn::Backend;

use crate::cli::Desk;
use crate::toy::{CLASSES, SIDE, Setting, Toy, algorithm, deal, federated, run};

fn way(text: &str) -> Vec<LinkConfig> {
    let table: toml::Table = toml::from_str(&format!("way = [{text}]")).unwrap();
    table["way"].clone().try_into().unwrap()
}

/// Chains of every link that a network with batch norm allows.
const CHAINS: [&str; 4] = [
    "{ kind = 'attack', attackers = 1, scale = 2.0 }, { kind = 'clip', norm = 0.5, quantile = 0.6 }, \
     { kind = 'compress', share = 0.2 }, { kind = 'drop', share = 0.2, deadline = 0.5 }",
    "{ kind = 'drop', share = 0.3 }, { kind = 'clip' }, { kind = 'mask' }",
    "{ kind = 'attack', how = 'label-flip', attackers = 2 }, { kind = 'compress', codec = 'qsgd', bits = 4 }, \
     { kind = 'robust', rule = 'geometric-median' }",
    "{ kind = 'attack', how = 'gaussian', attackers = 1 }, { kind = 'compress', codec = 'sign' }, \
     { kind = 'robust', rule = 'multi-krum', attackers = 1 }",
];

fn trained(chain: &str, threads: usize) -> Server {
    let clients = deal(&[8, 12, 5, 9, 4, 7]);
    let (algorithm, config) = (algorithm("kind = \"fedavg\""), FederatedConfig { way: way(chain), ..federated(3, 5) });
    let (align, feedback) = (None, false);
    run(&Setting { algorithm: &algorithm, config: &config, clients: &clients, align, feedback, threads }).unwrap()
}

#[test]
fn every_chain_gives_the_same_bytes_on_any_number_of_threads() {
    let plain = trained("", 1).model.digest();
    for chain in CHAINS {
        let one = trained(chain, 1);
        assert_ne!(one.model.digest(), plain, "{chain}");
        for threads in [2, 3] {
            let more = trained(chain, threads);
            assert_eq!(more.model.digest(), one.model.digest(), "{chain} on {threads}");
            let kept =
                |s: &Server| s.kept.values().flat_map(|k| k.named.values().map(|p| p.digest())).collect::<Vec<_>>();
            assert_eq!(kept(&more), kept(&one), "{chain}");
        }
    }
}

/// Two rounds of everybody on images with these labels.
fn on(labels: impl Fn(u32) -> u32, chain: &str) -> String {
    let (clients, mut toy) = (deal(&[8, 12, 5]), Toy::new(25));
    toy.labels.iter_mut().for_each(|y| *y = labels(*y));
    let model: ModelConfig = toml::from_str("kind = \"resnet8\"\nwidth = 4").unwrap();
    let net = std::sync::Arc::new(model.build([1, SIDE, SIDE], Head::Classes(CLASSES)).unwrap());
    let start = net.init(Key::from_seed(5));
    let trainer = CompactTrainer::new(net, Backend::Candle, &toy, &clients);
    let (algorithm, config) = (algorithm("kind = \"fedavg\""), FederatedConfig { way: way(chain), ..federated(2, 3) });
    let cohort = |_: usize| -> Result<Vec<ClientId>> { Ok(vec![0, 1, 2]) };
    let federation = Federation {
        algorithm: algorithm.algorithm(),
        trainer: &trainer,
        config: &config,
        clients: 3,
        cohort: &cohort,
        align: None,
        feedback: false,
        key: Key::from_seed(11),
    };
    let cx = Context::cpu(1);
    let server = federation.start(start, &cx).unwrap();
    federation.run(server, &cx, &mut |_| Ok(())).unwrap().model.digest()
}

#[test]
fn flipped_labels_are_those_of_a_set_with_its_classes_turned_round() {
    let all = "{ kind = 'attack', how = 'label-flip', attackers = 3 }";
    let turned = on(|y| CLASSES as u32 - 1 - y, "");
    assert_eq!(on(|y| y, all), turned);
    assert_ne!(on(|y| y, ""), turned);
}

/// Error feedback, a norm that follows, epsilon and lost clients: all of it goes on from the checkpoint.
#[test]
fn a_run_that_goes_on_has_the_bytes_of_one_that_never_stopped() {
    let desk = Desk::new();
    let clip = "{kind=\"clip\",norm=0.5,quantile=0.5,count_noise=1.0}";
    let noise = "{kind=\"noise\",multiplier=0.6,accountant=\"rdp\"}";
    for (name, chain) in [
        ("private", format!("[{{kind=\"drop\",share=0.2}},{clip},{noise}]")),
        ("compressed", "[{kind=\"clip\",quantile=0.5},{kind=\"compress\",share=0.1}]".to_string()),
    ] {
        let run = |dir: &str, rounds: usize| {
            let (dir, rounds) = (format!("run.dir={dir}"), format!("federated.rounds={rounds}"));
            let way = format!("federated.way={chain}");
            let model = if name == "private" { "model={kind=\"mlp\"}" } else { "federated.batch_size=8" };
            let fixed = ["pretrain.enabled=false", "align.enabled=false", model, &way, &dir, &rounds];
            let mut all = vec!["run", "c.toml"];
            fixed.iter().for_each(|item| all.extend(["--set", *item]));
            desk.ok(&all);
        };
        let (grown, whole) = (format!("{name}-grown"), format!("{name}-whole"));
        run(&grown, 3);
        run(&grown, 6);
        run(&whole, 6);
        for file in ["metrics.jsonl", "finetune/model.safetensors"] {
            let read = |dir: &str| std::fs::read(desk.path(dir).join(file)).unwrap();
            assert!(read(&grown) == read(&whole), "{name}: {file}");
        }
        let records = std::fs::read_to_string(desk.path(&whole).join("metrics.jsonl")).unwrap();
        let told = if name == "private" { "\"epsilon\":" } else { "\"clip_norm\":" };
        assert_eq!(records.lines().filter(|l| l.contains(told)).count(), 6, "{records}");
    }
}

#[test]
fn the_rounds_end_at_the_budget_and_the_run_is_whole() {
    let desk = Desk::new();
    let way = "federated.way=[{kind=\"clip\"},{kind=\"noise\",multiplier=2.0,epsilon=2.2}]";
    let fixed = ["pretrain.enabled=false", "align.enabled=false", "model={kind=\"mlp\"}", way, "run.dir=b"];
    let mut all = vec!["run", "c.toml"];
    fixed.iter().for_each(|item| all.extend(["--set", *item]));
    let output = desk.run(&all);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("above the budget of 2.2"), "{said}");
    let records = std::fs::read_to_string(desk.path("b/metrics.jsonl")).unwrap();
    let rounds = records.lines().filter(|l| l.contains("\"epsilon\":")).count();
    assert!((1..6).contains(&rounds), "{rounds}");
    assert!(desk.path("b/eval.json").exists());
    desk.ok(&all);
}

#[test]
fn the_keys_of_every_link_are_listed_and_explained_and_a_typo_is_found() {
    let desk = Desk::new();
    let said = |args: &[&str]| String::from_utf8_lossy(&desk.run(args).stdout).into_owned();
    let listed = said(&["config", "list", "federated.way"]);
    for key in ["kind = \"clip\"", "quantile = 0.0", "accountant = \"rdp\"", "threshold = 0.6", "deadline = 0.0"] {
        assert!(listed.contains(key), "{key}: {listed}");
    }
    assert!(said(&["explain", "mask"]).contains("fraction = 32"));
    assert!(said(&["config", "list", "federated.way", "--json"]).contains("\"multiplier\""));
    let wrong = desk.run(&["config", "check", "c.toml", "--set", "federated.way=[{kind=\"clip\",norms=1.0}]"]);
    let wrong = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(wrong.contains("federated.way[0]") && wrong.contains("did you mean `norm`?"), "{wrong}");
}
