//! CReFF and CLIP2FL: against PyTorch (`tests/golden/methods/federated_features.py`), and their laws.

use fedllava::error::Result;
use fedllava::exec::Context;
use fedllava::fl::round::{Federation, Finished, Server};
use fedllava::fl::trainer::{CompactTrainer, Supplies};
use fedllava::fl::{ClientId, Sizes};
use fedllava::key::Key;
use fedllava::nn::{Backend, Params};

use crate::methods_golden::{Left, run, run_with, same, same_model};
use crate::net_golden::noise;
use crate::toy::{CLASSES, Toy, algorithm, deal, federated, net};

/// The golden toy's sizes.
const GOLDEN: &str = "features_per_class = 5\nmatch_steps = 3\nhead_epochs = 4\nhead_batch = 0\nrepeats = 1\n\
                      dsa = false\nfresh_head = false\n";
const WIDTH: usize = 16;
const FEATURES: u32 = 7810;
const FIRST_HEAD: u32 = 7811;
const FRESH_HEAD: u32 = 7813;

/// The hashed features and classifiers of the golden toy in place of drawn ones.
fn hashed(server: &mut Server) {
    let scale = (6.0 / WIDTH as f64).sqrt();
    let head = |salt: u32, like: &Params| -> Params {
        let weight = noise(4 * WIDTH, salt).into_iter().map(|u| (f64::from(u) * scale) as f32);
        let bias = noise(4, salt + 1).into_iter().map(|u| (0.1 * f64::from(u)) as f32);
        Params::new(like.layout().clone(), weight.chain(bias).collect::<Vec<f32>>()).unwrap()
    };
    let (first, start) = (head(FIRST_HEAD, &server.state["head"]), head(FRESH_HEAD, &server.state["start"]));
    let features = Params::tensor("features", &[20, WIDTH], noise(20 * WIDTH, FEATURES)).unwrap();
    server.state.extend([("head".into(), first), ("start".into(), start), ("features".into(), features)]);
}

fn golden(name: &str, config: &str) -> Left {
    run_with(name, &format!("kind = \"{name}\"\n{config}"), |_| (), hashed)
}

/// Three draws of all images without augmentation have the mean of one.
#[test]
fn creff_and_clip2fl_equal_pytorch() {
    let thrice = GOLDEN.replace("repeats = 1", "repeats = 3");
    for (name, config) in [("creff", GOLDEN), ("creff", &thrice), ("clip2fl", GOLDEN)] {
        let Left { server, deployed } = golden(name, config);
        same_model(name, "model", &server.model);
        same_model(name, "deployed", &deployed);
        same(name, "state/features", server.state["features"].data());
        for tensor in ["classifier.weight", "classifier.bias"] {
            same(name, &format!("state/{tensor}"), server.state["head"].get(tensor).unwrap());
        }
    }
}

#[test]
fn the_federated_model_of_creff_is_fedavgs_byte_for_byte_and_the_deployed_one_is_not() {
    let plain = run("creff", "kind = \"fedavg\"", |_| ());
    let creff = golden("creff", GOLDEN);
    assert_eq!(creff.server.model.digest(), plain.server.model.digest());
    assert_ne!(creff.deployed.digest(), plain.deployed.digest());
    let head = creff.server.state["head"].layout().clone();
    for entry in creff.deployed.layout().entries().iter().filter(|e| head.get(&e.name).is_none()) {
        assert_eq!(creff.deployed.get(&entry.name).unwrap(), plain.deployed.get(&entry.name).unwrap());
    }
    // In small batches, whose order is drawn.
    let clients = deal(&[8, 12, 5, 9]);
    let model = |config: &str| toy_run(config, 2, &clients, None).unwrap().server.model.digest();
    assert_eq!(model(&format!("kind = \"creff\"\n{SMALL}")), model("kind = \"fedavg\""));
}

/// Everything that a run leaves.
fn digests(left: &Left) -> Vec<String> {
    let state = left.server.state.values().map(Params::digest);
    [left.server.model.digest(), left.deployed.digest()].into_iter().chain(state).collect()
}

#[test]
fn clip2fl_without_teacher_and_texts_is_creff_byte_for_byte_and_with_either_is_not() {
    let clip2fl =
        |config: &str| digests(&run_with("creff", &format!("kind = \"clip2fl\"\n{GOLDEN}{config}"), |_| (), hashed));
    let creff = digests(&golden("creff", GOLDEN));
    assert_eq!(clip2fl("alpha = 0.0\neta = 0.0"), creff);
    let (taught, drawn) = (clip2fl("alpha = 1.0\neta = 0.0"), clip2fl("alpha = 0.0\neta = 1.0"));
    assert_ne!(taught[0], creff[0], "the teacher changes the model");
    assert_eq!(drawn[0], creff[0], "the texts do not");
    assert_ne!(drawn[1..], creff[1..]);
}

/// What a run on the toy of `toy.rs` leaves, with what its rounds cost.
fn toy_run(config: &str, rounds: usize, clients: &[Vec<u32>], texts: Option<Params>) -> Result<ToyLeft> {
    let toy = Toy::new(clients.iter().map(Vec::len).sum());
    let supplies = Supplies { texts, ..Supplies::default() };
    let trainer = CompactTrainer::new(net(), Backend::Candle, &toy, clients).with(supplies);
    let (algorithm, federated) = (algorithm(config), federated(rounds, 2));
    let cohort = |round: usize| -> Result<Vec<ClientId>> {
        Ok(fedllava::fl::cohort::by_key(Key::from_seed(3), round, clients.len(), 2))
    };
    let federation = Federation {
        algorithm: algorithm.algorithm(),
        trainer: &trainer,
        config: &federated,
        clients: clients.len(),
        cohort: &cohort,
        align: None,
        feedback: false,
        key: Key::from_seed(11),
    };
    let cx = Context::cpu(1);
    let start = federation.start(net().init(Key::from_seed(5)), &cx)?;
    let features = start.state.get("features").cloned();
    let (mut costs, mut cohorts) = (Vec::new(), Vec::new());
    let server = federation.run(start, &cx, &mut |f: Finished<'_>| {
        costs.push((f.tally.bytes_down, f.tally.bytes_up, f.tally.multiply_adds));
        cohorts.push(f.cohort.to_vec());
        Ok(())
    })?;
    Ok(ToyLeft { server, features, costs, cohorts })
}

struct ToyLeft {
    server: Server,
    /// The features before the first round.
    features: Option<Params>,
    /// Bytes down, bytes up, multiply-adds of each round.
    costs: Vec<(u64, u64, u64)>,
    cohorts: Vec<Vec<ClientId>>,
}

const SMALL: &str = "features_per_class = 4\nmatch_steps = 5\nhead_epochs = 3\nhead_batch = 5\nrepeats = 2\n";

/// Toy labels go 0, 1, 2, 0, …: clients that hold every third image hold one class.
#[test]
fn features_of_a_class_that_nobody_in_the_cohort_holds_stay() {
    let clients: Vec<Vec<u32>> = (0..3).map(|class| (0..8).map(|i| 3 * i + class).collect()).collect();
    let left = toy_run(&format!("kind = \"creff\"\n{SMALL}"), 1, &clients, None).unwrap();
    let features = left.features.unwrap();
    let (before, after) = (features.data(), left.server.state["features"].data());
    let size = before.len() / CLASSES;
    for class in 0..CLASSES {
        let (own, held) = (class * size..(class + 1) * size, left.cohorts[0].contains(&(class as u32)));
        assert_eq!(before[own.clone()] != after[own], held, "class {class}");
    }
}

#[test]
fn what_creff_says_it_costs_is_what_a_round_records() {
    let (net, clients) = (net(), deal(&[12, 12, 12]));
    let head = net.classifier().unwrap();
    let sizes = Sizes {
        model: net.layout.len() as u64,
        head: head.ranges().iter().map(|r| r.len() as u64).sum(),
        classes: CLASSES as u64,
        features: head.features as u64,
        samples: 12,
        held: CLASSES as u64,
        epochs: 2,
        forward: net.multiply_adds(),
        texts: 0,
    };
    for (kind, real_batch) in [("creff", 3), ("creff", 32), ("clip2fl", 32)] {
        let plain = if kind == "clip2fl" { "alpha = 0.0\neta = 0.0\n" } else { "" };
        let config = format!("kind = \"{kind}\"\n{plain}{SMALL}real_batch = {real_batch}");
        let left = toy_run(&config, 1, &clients, None).unwrap();
        let cost = algorithm(&config).algorithm().cost(&sizes);
        let adds = cost.extra + 3 * sizes.samples * sizes.epochs * sizes.forward;
        assert_eq!(left.costs, [(2 * 4 * cost.down, 2 * 4 * cost.up, 2 * adds)], "{config}");
    }
}

#[test]
fn texts_of_another_width_are_refused_with_the_width_to_set() {
    let texts = Some(Params::tensor("texts", &[CLASSES, 7], noise(CLASSES * 7, 5)).unwrap());
    let refused = toy_run("kind = \"clip2fl\"\nalpha = 0.0", 1, &deal(&[6, 6]), texts);
    let text = refused.err().unwrap().to_string();
    assert!(text.contains("width 7") && text.contains("set model.mlp = 7"), "{text}");
    let none = toy_run("kind = \"clip2fl\"", 1, &deal(&[6, 6]), None).err().unwrap().to_string();
    assert!(none.contains("teacher"), "{none}");
}

#[test]
fn keys_out_of_range_are_refused_by_name() {
    let cases = [
        ("kind = \"creff\"\nrepeats = 0", "algorithm.repeats"),
        ("kind = \"creff\"\nmatch_lr = -1.0", "algorithm.match_lr"),
        ("kind = \"clip2fl\"\ntau = 0.0", "algorithm.tau"),
        ("kind = \"clip2fl\"\nfeatures_per_class = 1", "two features"),
    ];
    for (config, says) in cases {
        let refused = algorithm(config).algorithm().check().unwrap_err().to_string();
        assert!(refused.contains(says), "{refused}");
    }
}
