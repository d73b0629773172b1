//! FedYoYo and FEDIC: against PyTorch on the golden toy, and their laws on the other.

use fedllava::error::Result;
use fedllava::exec::Context;
use fedllava::fl::feed::Source;
use fedllava::fl::round::{Federation, Server};
use fedllava::fl::trainer::{CompactTrainer, Supplies};
use fedllava::fl::{ClientId, FederatedConfig};
use fedllava::key::Key;
use fedllava::nn::{Backend, Params};

use crate::methods_golden::{run, run_with, same, same_model};
use crate::net_golden::noise;
use crate::toy::{CLASSES, Toy, algorithm, deal, federated, net};

/// The images of the golden toy have one view, so the weak view's teaching is 0 there.
#[test]
fn fedyoyo_equals_pytorch() {
    let left = run("fedyoyo", "kind = \"fedyoyo\"", |_| ());
    for name in ["estimate", "prior"] {
        same("fedyoyo", &format!("state/{name}"), left.server.state[name].data());
    }
    same_model("fedyoyo", "model", &left.server.model);
}

/// The prior's first exchange by itself: what the first round leaves.
#[test]
fn fedyoyos_estimate_of_the_first_round_equals_pytorch() {
    let left = run("fedyoyo", "kind = \"fedyoyo\"", |config| config.rounds = 1);
    same("fedyoyo", "trace/1/estimate", left.server.state["estimate"].data());
}

/// The toy with strong views: the weak ones mirrored.
#[test]
fn fedyoyo_with_a_strong_view_that_differs_equals_pytorch() {
    let left = run("fedyoyo-flipped", "kind = \"fedyoyo\"", |_| ());
    same("fedyoyo-flipped", "state/prior", left.server.state["prior"].data());
    same_model("fedyoyo-flipped", "model", &left.server.model);
}

const FEDIC: &str = "kind = \"fedic\"\nsteps = 3\nbatch_size = 0\nunlabelled_batch = 0";

/// (w, b_w) of the golden gate, hashed as make.py does.
fn hashed_carry(gate: &Params) -> Params {
    let salt = 7830;
    let mut gate = gate.clone();
    let (weight, bias) =
        (gate.layout().get("carry.weight").unwrap().clone(), gate.layout().get("carry.bias").unwrap().clone());
    let scale = (6.0 / weight.len() as f64).sqrt();
    let w: Vec<f32> = noise(weight.len(), salt).iter().map(|&u| (f64::from(u) * scale) as f32).collect();
    let b = (f64::from(noise(1, salt + 1)[0]) * 0.1) as f32;
    gate.data_mut()[weight.range()].copy_from_slice(&w);
    gate.data_mut()[bias.range()].copy_from_slice(&[b]);
    gate
}

#[test]
fn fedic_equals_pytorch() {
    let prepare = |server: &mut Server| {
        let gate = hashed_carry(&server.state["gate"]);
        server.state.insert("gate".into(), gate);
    };
    let left = run_with("fedic", FEDIC, |_| (), prepare);
    let (state, gate) = (&left.server.state, &left.server.state["gate"]);
    for entry in gate.layout().entries() {
        same("fedic", &format!("state/{}", entry.name), gate.get(&entry.name).unwrap());
        for (own, other) in [("first", "m"), ("second", "v")] {
            let moment = &state[&format!("ensemble/gate/{own}")];
            same("fedic", &format!("state/gate/{other}/{}", entry.name), moment.get(&entry.name).unwrap());
        }
    }
    let steps = [("calibrate", "calibrate"), ("gate", "ensemble/gate"), ("student", "student")];
    for (golden, own) in steps {
        same("fedic", &format!("state/{golden}/steps"), state[&format!("{own}/steps")].data());
    }
    for stage in ["calibrate", "student"] {
        for (own, other) in [("first", "m"), ("second", "v")] {
            let moment = &state[&format!("{stage}/{own}")];
            for entry in moment.layout().entries().iter().filter(|e| !e.name.contains(".running_")) {
                same("fedic", &format!("state/{stage}/{other}/{}", entry.name), moment.get(&entry.name).unwrap());
            }
        }
    }
    same_model("fedic", "model", &left.server.model);
    assert_eq!(left.deployed.data(), left.server.model.data(), "the student is judged");
}

const SIZES: [usize; 6] = [8, 12, 5, 9, 4, 7];
const COHORT: usize = 4;

fn cohort(round: usize) -> Vec<ClientId> {
    fedllava::fl::cohort::by_key(Key::from_seed(3), round, SIZES.len(), COHORT)
}

/// A method on the small toy, with a labelled set and images without labels on the server.
fn small(config: &str, change: impl Fn(&mut FederatedConfig)) -> Server {
    let (toy, clients, mut federated) = (Toy::new(60), deal(&SIZES), federated(3, COHORT));
    change(&mut federated);
    let (labelled, unlabelled): (Vec<u32>, Vec<u32>) = ((45..51).collect(), (51..60).collect());
    let supplies = Supplies {
        server: Some(Source { samples: &toy, ids: &labelled }),
        unlabelled: Some(Source { samples: &toy, ids: &unlabelled }),
        ..Supplies::default()
    };
    let trainer = CompactTrainer::new(net(), Backend::Candle, &toy, &clients).with(supplies);
    let (algorithm, cohort) = (algorithm(config), |round: usize| -> Result<Vec<ClientId>> { Ok(cohort(round)) });
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
    let server = federation.start(net().init(Key::from_seed(5)), &cx).unwrap();
    federation.run(server, &cx, &mut |_| Ok(())).unwrap()
}

#[test]
fn fedic_without_steps_on_the_server_is_fedavg_byte_for_byte_and_with_them_is_not() {
    let digest = |config: &str| small(config, |_| ()).model.digest();
    let fedavg = digest("kind = \"fedavg\"");
    assert_eq!(digest("kind = \"fedic\"\nsteps = 0"), fedavg);
    assert_ne!(digest("kind = \"fedic\"\nsteps = 1"), fedavg);
}

/// In a batch of one image every class that is there counts once, so a client's sum is its counts.
#[test]
fn fedyoyos_effective_numbers_of_single_images_are_the_cohorts_counts() {
    let server = small("kind = \"fedyoyo\"", |config| (config.rounds, config.batch_size) = (1, 1));
    let (toy, clients, mut want) = (Toy::new(60), deal(&SIZES), vec![1.0f32; CLASSES]);
    for client in cohort(1) {
        clients[client as usize].iter().for_each(|&i| want[toy.labels[i as usize] as usize] += 1.0);
    }
    let total: f32 = want.iter().sum();
    assert_eq!(server.state["estimate"].data(), want);
    assert!(server.state["prior"].data().iter().zip(&want).all(|(p, n)| (p - n / total).abs() < 1e-6));
}
