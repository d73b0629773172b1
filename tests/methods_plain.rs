//! Methods that change the server's step or the client's loss alone: beside PyTorch's (`tests/golden/methods/server_side.py`
//! and `client_side.py`, whose docstrings are the definitions), and by laws.

use std::collections::BTreeMap;

use fedllava::error::Result;
use fedllava::fl::methods::fednova::FedNova;
use fedllava::fl::round::Server;
use fedllava::fl::{
    About, Algorithm, AlgorithmConfig, Brief, ClientId, Collected, Exchange, FederatedConfig, Job, Named, Now, Order,
    Outcome, Reply, Step,
};
use fedllava::key::Key;
use fedllava::nn::{Params, Role};

use crate::methods_golden::{run, run_method, same, same_model};
use crate::toy::{Setting, algorithm, deal, federated, net, run as run_toy, run_from};

/// Compares the weights of a vector with `prefix/<tensor>`.
fn same_weights(name: &str, prefix: &str, got: &Params) {
    for entry in got.layout().entries().iter().filter(|e| e.role == Role::Weight) {
        same(name, &format!("{prefix}/{}", entry.name), got.get(&entry.name).unwrap());
    }
}

#[test]
fn servers_with_momentum_or_moments_equal_pytorch() {
    let adaptive = |kind: &str| format!("kind = \"{kind}\"\nlr = 0.1\nbeta1 = 0.9");
    let cases = [
        ("fedavgm", "kind = \"fedavgm\"\nbeta = 0.9".to_string(), &["v"][..]),
        ("fedavgm-ema", "kind = \"fedavgm\"\nbeta = 0.9\nform = \"ema\"".to_string(), &["v"]),
        ("fedadam", adaptive("fedadam"), &["m", "v"]),
        ("fedyogi", adaptive("fedyogi"), &["m", "v"]),
        ("fedadagrad", adaptive("fedadagrad"), &["m", "v"]),
    ];
    for (name, config, moments) in cases {
        let server = run(name, &config, |_| ()).server;
        same_model(name, "model", &server.model);
        moments.iter().for_each(|m| same_weights(name, &format!("state/{m}"), &server.state[*m]));
    }
}

#[test]
fn feddyn_equals_pytorch_in_model_server_state_and_what_clients_keep() {
    let server = run("feddyn", "kind = \"feddyn\"", |_| ()).server;
    same_model("feddyn", "model", &server.model);
    same_weights("feddyn", "state/h", &server.state["h"]);
    for client in [3, 4] {
        same_weights("feddyn", &format!("kept/{client}"), &server.kept[&client].named["g"]);
    }
}

/// FedNova on batches in stored order.
struct Stored(FedNova);

impl Algorithm for Stored {
    fn about(&self) -> About {
        self.0.about()
    }

    fn brief(&self, m: &Params, state: &Named, e: &Exchange, now: &Now<'_>, client: ClientId) -> Result<Brief> {
        let mut brief = self.0.brief(m, state, e, now, client)?;
        for step in &mut brief.steps {
            if let Step::Train(train) = step {
                train.feeds.iter_mut().for_each(|feed| feed.order = Order::Stored);
            }
        }
        Ok(brief)
    }

    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        self.0.reply(job, outcome)
    }

    fn server(&self, m: &Params, s: &Named, e: &Exchange, got: &Collected, now: &Now<'_>) -> Result<(Params, Named)> {
        self.0.server(m, s, e, got, now)
    }
}

#[test]
fn fednova_with_unequal_steps_equals_pytorch() {
    let left = run_method("fednova", &Stored(FedNova {}), |c| c.batch_size = 4, |_| ());
    same_model("fednova", "model", &left.server.model);
}

#[test]
fn losses_with_a_prior_or_a_focus_equal_pytorch() {
    let cases = [
        ("focal", "kind = \"focal\""),
        ("fedir", "kind = \"fedir\""),
        ("logit-adjustment-local", "kind = \"logit-adjustment\""),
        ("logit-adjustment-global", "kind = \"logit-adjustment\"\nprior = \"global\""),
        ("fedlc", "kind = \"fedlc\""),
    ];
    for (name, config) in cases {
        let left = run(name, config, |_| ());
        same_model(name, "model", &left.server.model);
        same_model(name, "model", &left.deployed);
        if let Some(counts) = left.server.state.get("counts") {
            assert_eq!(counts.data(), [20.0, 12.0, 6.0, 2.0], "{name}");
        }
    }
}

/// Every kind of this file, and the variants that take another way through the code.
const ALL: [&str; 13] = [
    "kind = \"fedavgm\"",
    "kind = \"fedadam\"",
    "kind = \"fedyogi\"",
    "kind = \"fedadagrad\"\nweighting = \"uniform\"\nsecond_moment = \"momentum\"",
    "kind = \"fednova\"",
    "kind = \"feddyn\"",
    "kind = \"feddyn\"\nalpha_scale = \"size\"",
    "kind = \"focal\"",
    "kind = \"fedir\"\nnormalised = true",
    "kind = \"fedir\"\nprior = \"uniform\"",
    "kind = \"logit-adjustment\"\nprior = \"global\"\nabsent = \"floor\"",
    "kind = \"fedlc\"",
    "kind = \"fedlc\"\nprior = \"global\"",
];

fn left(kind: &str, clients: &[Vec<u32>], config: &FederatedConfig, threads: usize) -> Server {
    let algorithm = &algorithm(kind);
    run_toy(&Setting { algorithm, config, clients, align: None, feedback: false, threads }).unwrap()
}

fn digest(kind: &str, clients: &[Vec<u32>], threads: usize) -> String {
    left(kind, clients, &federated(2, 4), threads).model.digest()
}

#[test]
fn every_method_gives_the_same_bytes_for_any_number_of_threads_and_its_own() {
    // 46 images of three classes, so that no global prior is even.
    let clients = deal(&[8, 12, 5, 9, 4, 8]);
    let mut seen = BTreeMap::from([(digest("kind = \"fedavg\"", &clients, 2), "fedavg")]);
    for kind in ALL {
        let one = digest(kind, &clients, 1);
        assert_eq!(one, digest(kind, &clients, 2), "{kind}");
        assert_eq!(one, digest(kind, &clients, 3), "{kind}");
        if let Some(other) = seen.insert(one, kind) {
            panic!("{kind} does what {other} does");
        }
    }
}

#[test]
fn without_its_cause_a_method_is_fedavg_byte_for_byte() {
    // Clients of 6 and 12 images hold as many of each of the three classes.
    let even = deal(&[6, 12, 6, 12]);
    let uneven = deal(&[8, 12, 5, 9, 4, 7]);
    let cases = [
        ("kind = \"fedavgm\"\nbeta = 0.0", &uneven),
        ("kind = \"fedavgm\"\nbeta = 0.0\nform = \"ema\"", &uneven),
        ("kind = \"focal\"\ngamma = 0.0", &uneven),
        ("kind = \"logit-adjustment\"\ntau = 0.0", &uneven),
        ("kind = \"logit-adjustment\"\ntau = 0.0\nprior = \"global\"", &uneven),
        ("kind = \"fedlc\"\ntau = 0.0\nprior = \"global\"", &uneven),
        ("kind = \"logit-adjustment\"\nabsent = \"floor\"", &even),
        ("kind = \"fedlc\"", &even),
        ("kind = \"fedir\"\nprior = \"uniform\"", &even),
    ];
    for (kind, clients) in cases {
        assert_eq!(digest(kind, clients, 2), digest("kind = \"fedavg\"", clients, 2), "{kind}");
    }
}

/// The largest distance of two models over the second's largest entry.
fn off(got: &[f32], want: &[f32]) -> f32 {
    let scale = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    got.iter().zip(want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / scale
}

fn one_round(kind: &str, clients: &[Vec<u32>], batch_size: usize) -> Params {
    let config = FederatedConfig { batch_size, ..federated(1, clients.len()) };
    left(kind, clients, &config, 2).model
}

/// The exchange for the counts gives the training of round 1 another key, so another order in the batch's sums.
#[test]
fn an_even_global_prior_is_fedavg_up_to_rounding() {
    let even = deal(&[6, 12, 6, 12]);
    let want = one_round("kind = \"fedavg\"", &even, 0);
    for kind in ["fedir", "fedlc", "logit-adjustment"] {
        let prior = if kind == "fedir" { "" } else { "prior = \"global\"" };
        let got = one_round(&format!("kind = \"{kind}\"\n{prior}"), &even, 0);
        assert!(off(got.data(), want.data()) < 1e-5, "{kind}: {}", off(got.data(), want.data()));
    }
}

#[test]
fn fednova_is_fedavg_up_to_rounding_where_all_take_as_many_steps_and_is_not_elsewhere() {
    // Batches of 4: 5 to 8 images are two steps an epoch, 12 are three.
    let (equal, unequal) = (deal(&[8, 5, 6, 8]), deal(&[8, 5, 12, 8]));
    let far = |clients: &[Vec<u32>]| {
        let want = one_round("kind = \"fedavg\"", clients, 4);
        off(one_round("kind = \"fednova\"", clients, 4).data(), want.data())
    };
    assert!(far(&equal) < 1e-6 && far(&unequal) > 1e-4, "{} {}", far(&equal), far(&unequal));
}

#[test]
fn feddyn_with_a_vanishing_alpha_gives_twice_the_mean_less_the_start_in_round_one() {
    let clients = deal(&[6, 6, 6, 6]);
    let (start, config) = (net().init(Key::from_seed(5)), federated(1, 4));
    let run = |kind: &str| {
        let (algorithm, config) = (&algorithm(kind), &config);
        let setting = Setting { algorithm, config, clients: &clients, align: None, feedback: false, threads: 2 };
        run_from(&setting, start.clone()).unwrap().model
    };
    let (mean, got) = (run("kind = \"fedavg\""), run("kind = \"feddyn\"\nalpha = 1e-8"));
    let mut want = mean.clone();
    for range in start.layout().clone().ranges(Role::Weight) {
        let moved = &mut want.data_mut()[range.clone()];
        moved.iter_mut().zip(&start.data()[range]).for_each(|(w, s)| *w = 2.0 * *w - s);
    }
    assert!(off(got.data(), want.data()) < 1e-6, "{}", off(got.data(), want.data()));
    assert!(off(got.data(), mean.data()) > 1e-3);
}

/// Equal sizes: every client's α is α itself.
#[test]
fn feddyn_by_size_is_feddyn_for_clients_of_one_size() {
    let clients = deal(&[6, 6, 6, 6]);
    let want = one_round("kind = \"feddyn\"", &clients, 0);
    let got = one_round("kind = \"feddyn\"\nalpha_scale = \"size\"", &clients, 0);
    assert!(off(got.data(), want.data()) < 1e-5, "{}", off(got.data(), want.data()));
}

/// With β₁ = β₂ = 0 FedAdam moves by η Δ / (|Δ| + τ); with a τ that dwarfs |Δ|, and η = τ, that is FedAvg.
#[test]
fn an_adaptive_server_of_great_tau_and_no_memory_is_fedavg() {
    let clients = deal(&[8, 12, 5, 9]);
    let want = one_round("kind = \"fedavg\"", &clients, 4);
    let got = one_round("kind = \"fedadam\"\nlr = 1e6\ntau = 1e6\nbeta1 = 0.0\nbeta2 = 0.0", &clients, 4);
    assert!(off(got.data(), want.data()) < 1e-5, "{}", off(got.data(), want.data()));
    let uniform = "kind = \"fedadam\"\nlr = 1e6\ntau = 1e6\nbeta1 = 0.0\nbeta2 = 0.0\nweighting = \"uniform\"";
    assert!(off(one_round(uniform, &clients, 4).data(), want.data()) > 1e-4);
}

#[test]
fn values_out_of_range_are_refused_before_a_run_starts() {
    let cases = [
        ("kind = \"fedavgm\"\nbeta = 1.0", "beta"),
        ("kind = \"fedadam\"\ntau = 0.0", "tau"),
        ("kind = \"fedyogi\"\nbeta2 = 1.5", "beta2"),
        ("kind = \"feddyn\"\nalpha = 0.0", "alpha"),
        ("kind = \"focal\"\ngamma = -1.0", "gamma"),
        ("kind = \"logit-adjustment\"\ntau = -1.0", "tau"),
        ("kind = \"fedlc\"\ntau = inf", "tau"),
    ];
    for (config, key) in cases {
        let error = algorithm(config).algorithm().check().unwrap_err().to_string();
        assert!(error.contains(&format!("algorithm.{key} =")), "{config}: {error}");
    }
    let mut config = federated(1, 2);
    config.optimiser = toml::from_str("kind = \"adamw\"").unwrap();
    let (clients, algorithm): (_, AlgorithmConfig) = (deal(&[4, 4]), algorithm("kind = \"fednova\""));
    let setting =
        Setting { algorithm: &algorithm, config: &config, clients: &clients, align: None, feedback: false, threads: 1 };
    let error = run_toy(&setting).unwrap_err().to_string();
    assert!(error.contains("fednova") && error.contains("sgd"), "{error}");
}
