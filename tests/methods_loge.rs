//! FedLoGe, MOON, BalanceFL and Ratio Loss: beside PyTorch's toy rounds, and their laws on a toy of our own.

use std::sync::Arc;

use fedllava::exec::Context;
use fedllava::fl::feed::Source;
use fedllava::fl::round::{Federation, Server};
use fedllava::fl::trainer::{CompactTrainer, Supplies};
use fedllava::fl::{AlgorithmConfig, FederatedConfig, cohort};
use fedllava::key::Key;
use fedllava::nn::{Backend, Net, Params};

use crate::methods_golden::{Left, golden, run, run_with, same, same_model};
use crate::net_golden::noise;
use crate::toy::{self, Toy, algorithm, deal, federated};

/// FedLoGe's configuration in the golden files: the frame is given, so none is made.
const LOGE: &str = "kind = \"fedloge\"\netf_steps = 0\nlocal_head = \"initial\"";

/// The frozen classifier of the golden files: `M = 0.5 noise(7820)`, `(16, 4)`, transposed; `b = 0.1 noise(7821)`.
fn given_frame(server: &mut Server) {
    let frame: Vec<f32> = noise(64, 7820).iter().map(|v| 0.5 * v).collect();
    let bias = noise(4, 7821).into_iter().map(|v| 0.1 * v);
    let rows = (0..4).flat_map(|c| (0..16).map(move |i| (c, i))).map(|(c, i)| frame[4 * i + c]);
    let values: Vec<f32> = rows.chain(bias).collect();
    let frozen = server.state.get_mut("sse-c").unwrap();
    *frozen = Params::new(frozen.layout().clone(), values).unwrap();
}

fn same_kept(name: &str, kept: &str, left: &Left) {
    let mut compared = 0;
    for (client, kept_by) in &left.server.kept {
        let params = &kept_by.named[kept];
        for entry in params.layout().entries() {
            let tensor = format!("kept/{client}/{}", entry.name);
            if golden(name, &tensor).is_some() {
                same(name, &tensor, params.get(&entry.name).unwrap());
                compared += 1;
            }
        }
    }
    assert!(compared > 0, "{name}: nothing kept was compared");
}

#[test]
fn fedloge_equals_pytorch_in_both_forms() {
    for deploy in ["sse-c", "gla-fr"] {
        let left = run_with("fedloge", &format!("{LOGE}\ndeploy = \"{deploy}\""), |_| (), given_frame);
        same_model("fedloge", "model", &left.server.model);
        same_model("fedloge", &format!("deployed.{deploy}"), &left.deployed);
        same_kept("fedloge", "local-head", &left);
    }
}

#[test]
fn moon_equals_pytorch() {
    let left = run("moon", "kind = \"moon\"", |_| ());
    same_model("moon", "model", &left.server.model);
    same_kept("moon", "previous", &left);
}

#[test]
fn balancefl_equals_pytorch_with_the_sum_and_the_mean_of_entropies() {
    for (name, entropy) in [("balancefl", "sum"), ("balancefl-mean", "mean")] {
        let config = format!("kind = \"balancefl\"\nbalanced = false\nfeature_noise = false\nentropy = \"{entropy}\"");
        same_model(name, "model", &run(name, &config, |_| ()).server.model);
    }
}

#[test]
fn ratio_loss_equals_pytorch_with_ratios_of_either_model() {
    for (name, ratios) in [("ratio-loss", "previous"), ("ratio-loss-current", "current")] {
        let left = run(name, &format!("kind = \"ratio-loss\"\nratios = \"{ratios}\""), |_| ());
        same_model(name, "model", &left.server.model);
        same(name, "state/weights", left.server.state["weights"].data());
    }
}

/// What a run of our own toy leaves, and the work of its last round.
struct Ran {
    server: Server,
    deployed: Params,
    multiply_adds: u64,
}

const SIZES: [usize; 6] = [8, 12, 5, 9, 4, 7];
const COHORT: usize = 4;

fn ran(algorithm: &AlgorithmConfig, config: &FederatedConfig, threads: usize) -> Ran {
    let (images, clients, net) = (Toy::new(SIZES.iter().sum()), deal(&SIZES), toy::net());
    let (set, own) = (Toy::new(9), (0..9).collect::<Vec<u32>>());
    let supplies = Supplies { server: Some(Source { samples: &set, ids: &own }), ..Supplies::default() };
    let trainer = CompactTrainer::new(net.clone(), Backend::Cpu, &images, &clients).with(supplies);
    let cohort = |round| Ok(cohort::by_key(Key::from_seed(3), round, SIZES.len(), COHORT));
    let federation = Federation {
        algorithm: algorithm.algorithm(),
        trainer: &trainer,
        config,
        clients: SIZES.len(),
        cohort: &cohort,
        align: None,
        feedback: false,
        key: Key::from_seed(11),
    };
    let (cx, mut last) = (Context::cpu(threads), None);
    let server = federation.start(net.init(Key::from_seed(5)), &cx).unwrap();
    let server = federation.run(server, &cx, &mut |done| {
        last = Some((done.deployed.clone(), done.tally.multiply_adds));
        Ok(())
    });
    let (deployed, multiply_adds) = last.unwrap();
    Ran { server: server.unwrap(), deployed, multiply_adds }
}

fn everything(ran: &Ran) -> Vec<String> {
    let mut digests = vec![ran.server.model.digest(), ran.deployed.digest()];
    digests.extend(ran.server.state.values().map(Params::digest));
    digests.extend(ran.server.kept.values().flat_map(|k| k.named.values()).map(Params::digest));
    digests
}

/// What differs from the defaults.
const VARIANTS: [&str; 2] = [
    "kind = \"balancefl\"\npresent = \"batch\"\nteacher_bn = \"batch\"",
    "kind = \"ratio-loss\"\nratios = \"current\"\nepochs = 2\nbatch_size = 2",
];

#[test]
fn variants_give_the_same_bytes_for_any_number_of_threads() {
    for kind in VARIANTS {
        let [one, two, three] =
            [1, 2, 3].map(|threads| everything(&ran(&algorithm(kind), &federated(3, COHORT), threads)));
        assert_eq!(one, two, "{kind}");
        assert_eq!(one, three, "{kind}");
    }
}

#[test]
fn without_its_cause_each_method_is_fedavg_byte_for_byte_and_with_it_is_not() {
    let model = |kind: &str| ran(&algorithm(kind), &federated(3, COHORT), 2).server.model.digest();
    let fedavg = model("kind = \"fedavg\"");
    assert_eq!(fedavg, model("kind = \"moon\"\nmu = 0.0"));
    assert_eq!(fedavg, model("kind = \"ratio-loss\"\nbeta = 0.0"));
    let plain = "kind = \"balancefl\"\nlambda = 0.0\nbalanced = false\nfeature_noise = false";
    assert_eq!(fedavg, model(&format!("{plain}\nentropy_weight = 0.0")), "every client holds every class");
    let whole = ["fedloge\"\netf_steps = 20", "moon\"", "balancefl\"", "ratio-loss\""].map(|k| format!("kind = \"{k}"));
    for kind in whole.iter().map(String::as_str).chain(VARIANTS).chain([plain]) {
        assert_ne!(fedavg, model(kind), "{kind}");
    }
}

#[test]
fn moon_without_its_term_runs_no_frozen_network_and_keeps_nothing() {
    let of = |kind: &str| ran(&algorithm(kind), &federated(2, COHORT), 1);
    let (fedavg, moon, off) = (of("kind = \"fedavg\""), of("kind = \"moon\""), of("kind = \"moon\"\nmu = 0.0"));
    assert_eq!(off.multiply_adds, fedavg.multiply_adds);
    assert!(off.server.kept.is_empty());
    // Training counts three forward passes, two frozen networks one each.
    assert_eq!(3 * moon.multiply_adds, 5 * fedavg.multiply_adds);
}

fn rows(net: &Arc<Net>, model: &Params) -> Vec<Vec<f32>> {
    let head = net.classifier().unwrap();
    model.data()[head.weight.clone()].chunks(head.features).map(<[f32]>::to_vec).collect()
}

fn length(row: &[f32]) -> f64 {
    row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn fedloge_judges_rows_of_length_1_7_or_the_frame_which_never_changes() {
    let net = toy::net();
    let of = |rounds, deploy: &str| {
        let kind = format!("kind = \"fedloge\"\netf_steps = 20\ndeploy = \"{deploy}\"");
        ran(&algorithm(&kind), &federated(rounds, COHORT), 2)
    };
    let (real, frame, once) = (of(3, "gla-fr"), of(3, "sse-c"), of(1, "sse-c"));
    assert!(rows(&net, &real.deployed).iter().all(|row| (length(row) - 1.7).abs() < 1e-6));
    assert_eq!(real.server.model.digest(), frame.server.model.digest(), "what is judged never returns");
    let names = ["classifier.weight", "classifier.bias"];
    for name in names {
        assert_eq!(frame.deployed.get(name).unwrap(), frame.server.state["sse-c"].get(name).unwrap());
        assert_eq!(frame.deployed.get(name).unwrap(), once.deployed.get(name).unwrap());
    }
    let zeros = frame.server.state["sse-c"].get(names[0]).unwrap().iter().filter(|v| **v == 0.0).count();
    assert_eq!(zeros, 28, "0.6 · 3 · 16, rounded down");
}

#[test]
fn a_client_of_fedloge_adds_its_head_to_the_global_one_in_its_own_lengths() {
    let (net, kind) = (toy::net(), algorithm("kind = \"fedloge\"\netf_steps = 20"));
    let (config, trained) = (federated(2, COHORT), ran(&kind, &federated(2, COHORT), 2));
    let (images, clients) = (Toy::new(45), deal(&SIZES));
    let trainer = CompactTrainer::new(net.clone(), Backend::Cpu, &images, &clients);
    let cohort = |_| Ok(Vec::new());
    let (align, feedback, key) = (None, false, Key::from_seed(11));
    let (algorithm, clients) = (kind.algorithm(), SIZES.len());
    let federation =
        Federation { algorithm, trainer: &trainer, config: &config, clients, cohort: &cohort, align, feedback, key };
    let (cx, head) = (Context::cpu(1), net.classifier());
    let now = federation.now(2, head.as_ref(), &[], &cx);
    let kept = &trained.server.kept.values().next().unwrap().named;
    let own = algorithm.personal(&trained.server.model, &trained.deployed, kept, &now).unwrap().unwrap();
    let local = kept["local-head"].get("classifier.weight").unwrap();
    let global = rows(&net, &trained.server.model);
    for ((own, local), global) in rows(&net, &own).iter().zip(local.chunks(16)).zip(&global) {
        let scale = length(local);
        for ((o, l), g) in own.iter().zip(local).zip(global) {
            assert!((f64::from(*o) - f64::from(*l) - scale * f64::from(*g)).abs() < 1e-6);
        }
    }
    let bias = |p: &Params| p.get("classifier.bias").unwrap().to_vec();
    let sum = bias(&trained.server.model).into_iter().zip(bias(&kept["local-head"])).map(|(g, l)| g + l);
    assert_eq!(bias(&own), sum.collect::<Vec<f32>>());
}
