//! CCVR, FedDF and FedBE: beside PyTorch's toy rounds (`tests/golden/methods/distil.py`), and their laws.

use std::borrow::Cow;
use std::sync::Mutex;

use fedllava::error::Result;
use fedllava::exec::Context;
use fedllava::fl::feed::Source;
use fedllava::fl::methods::ccvr::{Gaussian, pooled};
use fedllava::fl::methods::fedbe::FedBe;
use fedllava::fl::round::{Federation, Server};
use fedllava::fl::trainer::{CompactTrainer, Supplies};
use fedllava::fl::{
    About, Algorithm, AlgorithmConfig, Brief, ClientId, Collected, Exchange, FederatedConfig, Job, Named, Now, Outcome,
    Reply, Slot,
};
use fedllava::key::Key;
use fedllava::nn::{Backend, Params, Role};

use crate::methods_golden::{golden, run, run_method, same, same_model};
use crate::net_golden::noise;
use crate::toy::{Toy, algorithm, deal, federated, net as toy_net};

const FEDDF: &str = "kind = \"feddf\"\nsteps = 5\nbatch_size = 0\nschedule = \"constant\"\nstop_after = 0\n";
const FEDBE: &str = "kind = \"fedbe\"\nsamples = 3\nepochs = 5\nbatch_size = 0\ncycle = 0\naverage_after = 0\n\
    average_every = 1\nbn = \"frozen\"\noptimiser = { kind = \"sgd\", lr = 0.05 }\n";

#[test]
fn feddf_with_frozen_and_with_moving_statistics_equals_pytorch() {
    same_model("feddf-frozen", "model", &run("feddf-frozen", &format!("{FEDDF}bn = \"frozen\""), |_| ()).server.model);
    same_model("feddf-batch", "model", &run("feddf-batch", &format!("{FEDDF}bn = \"update\""), |_| ()).server.model);
}

/// An algorithm whose moments and calibration are seen, or whose draws are given.
struct Beside<'a> {
    inner: &'a dyn Algorithm,
    given: Option<&'a FedBe>,
    moments: Mutex<Vec<(u32, Gaussian)>>,
    calibration: Mutex<Option<Brief>>,
}

impl<'a> Beside<'a> {
    fn new(config: &'a AlgorithmConfig) -> Self {
        let given = if let AlgorithmConfig::FedBe(fedbe) = config { Some(fedbe) } else { None };
        Beside { inner: config.algorithm(), given, moments: Mutex::default(), calibration: Mutex::default() }
    }
}

/// Draw `j` of the golden file, in the order of the model's weights.
fn given(model: &Params, j: usize) -> Vec<f64> {
    let entries = model.layout().entries().iter().enumerate().filter(|(_, e)| e.role == Role::Weight);
    let of = |(i, e): (usize, &fedllava::nn::params::Entry)| noise(e.len(), (7900 + 100 * j + i) as u32);
    let all: Vec<f32> = entries.flat_map(of).collect();
    all.into_iter().map(f64::from).collect()
}

impl Algorithm for Beside<'_> {
    fn about(&self) -> About {
        self.inner.about()
    }

    fn exchanges(&self, state: &Named, now: &Now<'_>) -> Vec<Exchange> {
        self.inner.exchanges(state, now)
    }

    fn brief(&self, model: &Params, state: &Named, e: &Exchange, now: &Now<'_>, client: ClientId) -> Result<Brief> {
        if let Some(fedbe) = self.given.filter(|_| e.name == "distil") {
            return fedbe.distil(model, now, &|j| given(model, j));
        }
        let brief = self.inner.brief(model, state, e, now, client)?;
        if e.name == "calibrate" {
            *self.calibration.lock().unwrap() = Some(brief.clone());
        }
        Ok(brief)
    }

    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        self.inner.reply(job, outcome)
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        e: &Exchange,
        got: &Collected,
        now: &Now<'_>,
    ) -> Result<(Params, Named)> {
        if e.name == "moments" {
            *self.moments.lock().unwrap() = pooled(got, now.head()?.features)?.into_iter().collect();
        }
        self.inner.server(model, state, e, got, now)
    }

    fn deploy<'m>(&self, model: &'m Params, state: &Named, now: &Now<'_>) -> Result<Cow<'m, Params>> {
        self.inner.deploy(model, state, now)
    }
}

#[test]
fn fedbe_with_given_draws_equals_pytorch() {
    let config = algorithm(FEDBE);
    let left = run_method("fedbe", &Beside::new(&config), |_| (), |_| ());
    assert_eq!(golden("fedbe", "eps/2/classifier.bias").unwrap().len(), 4);
    let bias = left.server.model.layout().get("classifier.bias").unwrap();
    let weights = left.server.model.layout().weights();
    let eps = given(&left.server.model, 2);
    let last: Vec<f32> = eps[weights - bias.len()..].iter().map(|&v| v as f32).collect();
    same("fedbe", "eps/2/classifier.bias", &last);
    same_model("fedbe", "model", &left.server.model);
}

#[test]
fn ccvr_trains_as_fedavg_and_pools_the_moments_of_all_clients_as_pytorch() {
    let config = algorithm("kind = \"ccvr\"\nsamples = 20");
    let beside = Beside::new(&config);
    let left = run_method("ccvr", &beside, |_| (), |_| ());
    same_model("ccvr", "model", &left.server.model);
    assert_ne!(left.deployed.digest(), left.server.model.digest());
    let moments = beside.moments.into_inner().unwrap();
    let all = |of: &dyn Fn(&Gaussian) -> Vec<f64>| -> Vec<f32> {
        moments.iter().flat_map(|(_, g)| of(g)).map(|v| v as f32).collect()
    };
    assert_eq!(moments.iter().map(|m| m.0).collect::<Vec<_>>(), [0, 1, 2, 3]);
    same("ccvr", "state/count", &all(&|g| vec![g.count]));
    same("ccvr", "state/mean", &all(&|g| g.mean.clone()));
    same("ccvr", "state/covariance", &all(&|g| g.covariance.clone()));
}

/// One step on all drawn features at once: `W ← W − η (p − y)ᵀ h / n`, in f64.
#[test]
fn ccvr_takes_gradient_steps_of_the_own_classifier_on_equally_many_features_of_every_class() {
    let config = algorithm("kind = \"ccvr\"\nsamples = 25\nepochs = 1\noptimiser = { kind = \"sgd\", lr = 0.5 }");
    let beside = Beside::new(&config);
    let left = run_method("ccvr", &beside, |_| (), |_| ());
    let brief = beside.calibration.into_inner().unwrap().unwrap();
    let [_, Slot::Sent(_, features), Slot::Sent(_, labels)] = &brief.slots[..] else { panic!("two slots") };
    let class: Vec<usize> = labels.data().iter().map(|&y| y as usize).collect();
    assert!((0..4).all(|c| class.iter().filter(|y| **y == c).count() == 25) && class.len() == 100);
    let start =
        |name: &str| left.server.model.get(&format!("classifier.{name}")).unwrap().iter().map(|&v| f64::from(v));
    let (mut weight, mut bias): (Vec<f64>, Vec<f64>) = (start("weight").collect(), start("bias").collect());
    let (w, b, d) = (weight.clone(), bias.clone(), weight.len() / 4);
    for (h, y) in features.data().chunks(d).zip(class) {
        let z = |c: usize| b[c] + (0..d).map(|i| w[c * d + i] * f64::from(h[i])).sum::<f64>();
        let sum: f64 = (0..4).map(|c| z(c).exp()).sum();
        for c in 0..4 {
            let step = 0.5 / 100.0 * (z(c).exp() / sum - if c == y { 1.0 } else { 0.0 });
            (0..d).for_each(|i| weight[c * d + i] -= step * f64::from(h[i]));
            bias[c] -= step;
        }
    }
    for (name, want) in [("weight", weight), ("bias", bias)] {
        let got = left.deployed.get(&format!("classifier.{name}")).unwrap();
        assert!(got.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6), "{name}");
        assert_ne!(got, left.server.model.get(&format!("classifier.{name}")).unwrap());
    }
}

/// A toy run with 10 images without labels and 6 labelled ones on the server.
struct Setting<'a> {
    config: FederatedConfig,
    clients: &'a [Vec<u32>],
    threads: usize,
}

fn toy_run(kind: &str, setting: &Setting<'_>) -> (Server, Params) {
    let clients = setting.clients;
    let toy = Toy::new(60);
    let (unlabelled, labelled): (Vec<u32>, Vec<u32>) = ((44..54).rev().collect(), (54..60).collect());
    let source = |ids| Some(Source { samples: &toy, ids });
    let supplies = Supplies { server: source(&labelled), unlabelled: source(&unlabelled), ..Supplies::default() };
    let trainer = CompactTrainer::new(toy_net(), Backend::Candle, &toy, clients).with(supplies);
    let (n, m) = (clients.len(), setting.config.cohort);
    let cohort =
        |round: usize| -> Result<Vec<ClientId>> { Ok(fedllava::fl::cohort::by_key(Key::from_seed(3), round, n, m)) };
    let algorithm = algorithm(kind);
    let federation = Federation {
        algorithm: algorithm.algorithm(),
        trainer: &trainer,
        config: &setting.config,
        clients: n,
        cohort: &cohort,
        align: None,
        feedback: false,
        key: Key::from_seed(11),
    };
    let cx = Context::cpu(setting.threads);
    let mut server = federation.start(toy_net().init(Key::from_seed(5)), &cx).unwrap();
    let mut deployed = server.model.clone();
    server = federation
        .run(server, &cx, &mut |finished| {
            deployed = finished.deployed.clone();
            Ok(())
        })
        .unwrap();
    (server, deployed)
}

const KINDS: [&str; 4] = [
    "kind = \"feddf\"\nsteps = 6\nbatch_size = 4\nlook_every = 2\nstop_after = 4",
    "kind = \"fedbe\"\nsamples = 2\nepochs = 2\nbatch_size = 4\naverage_after = 1\naverage_every = 2",
    "kind = \"fedbe\"\nposterior = \"dirichlet\"\nsamples = 2\nepochs = 2\nbatch_size = 4",
    "kind = \"ccvr\"\nsamples = 10\nepochs = 2",
];

#[test]
fn any_number_of_threads_gives_the_same_bytes_with_some_clients_taking_part() {
    let clients = deal(&[8, 12, 5, 9, 4, 6]);
    for kind in KINDS {
        let run = |threads| {
            let setting = Setting { config: federated(2, 3), clients: &clients, threads };
            let (server, deployed) = toy_run(kind, &setting);
            (server.model.digest(), deployed.digest())
        };
        let one = run(1);
        assert_eq!(one, run(2), "{kind}");
        assert_eq!(one, run(3), "{kind}");
    }
}

fn fedavg(setting: &Setting<'_>) -> Params {
    toy_run("kind = \"fedavg\"", setting).0.model
}

#[test]
fn without_steps_distillation_is_fedavg_byte_for_byte_and_with_steps_is_not() {
    let clients = deal(&[8, 12, 5, 9]);
    let setting = Setting { config: federated(2, 3), clients: &clients, threads: 2 };
    let plain = fedavg(&setting).digest();
    for kind in ["kind = \"feddf\"\nsteps = 0", "kind = \"fedbe\"\nepochs = 0\naverage_every = 0"] {
        assert_eq!(toy_run(kind, &setting).0.model.digest(), plain, "{kind}");
    }
    for kind in &KINDS[..3] {
        assert_ne!(toy_run(kind, &setting).0.model.digest(), plain, "{kind}");
    }
}

/// One client alone, or clients that hold the same images in one batch: the teacher says what the student says, up to
/// rounding, so plain gradient steps have nowhere to go. (Adam would make steps of its rate of the rounding.)
#[test]
fn feddf_of_one_client_or_of_equal_clients_is_fedavg() {
    let mut config = federated(2, 1);
    config.batch_size = 0;
    let alone = deal(&[9]);
    let equal = vec![alone[0].clone(), alone[0].clone(), alone[0].clone()];
    for (clients, cohort) in [(&alone, 1), (&equal, 3)] {
        let setting = Setting { config: FederatedConfig { cohort, ..config.clone() }, clients, threads: 1 };
        for average in ["logits", "probabilities"] {
            let kind = format!(
                "kind = \"feddf\"\naverage = \"{average}\"\nsteps = 8\nbatch_size = 4\nstop_after = 0\nbn = \"frozen\"\n\
                 optimiser = {{ kind = \"sgd\", lr = 0.1 }}"
            );
            near(&toy_run(&kind, &setting).0.model, &fedavg(&setting), 5e-7);
        }
    }
}

fn near(a: &Params, b: &Params, tolerance: f32) {
    let off = a.data().iter().zip(b.data()).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(off < tolerance, "off by {off}");
}

/// All teachers are the mean then, and it teaches itself; without weight decay nothing pulls elsewhere.
#[test]
fn fedbe_without_variance_is_fedavg() {
    let alone = deal(&[9]);
    let setting = Setting { config: federated(2, 1), clients: &alone, threads: 1 };
    for posterior in ["gaussian", "dirichlet"] {
        let kind = format!(
            "kind = \"fedbe\"\nposterior = \"{posterior}\"\nepochs = 4\nbatch_size = 4\nbn = \"frozen\"\n\
             average_after = 2\naverage_every = 2\noptimiser = {{ kind = \"sgd\", lr = 0.1, momentum = 0.9 }}"
        );
        near(&toy_run(&kind, &setting).0.model, &fedavg(&setting), 2e-6);
    }
}

#[test]
fn ccvr_never_returns_what_it_calibrates_and_calibrates_the_classifier_alone() {
    let clients = deal(&[8, 12, 5, 9]);
    let setting = Setting { config: federated(3, 2), clients: &clients, threads: 2 };
    let (server, deployed) = toy_run("kind = \"ccvr\"\nsamples = 30\nepochs = 3", &setting);
    assert_eq!(server.model.digest(), fedavg(&setting).digest());
    let head = toy_net().classifier().unwrap().ranges();
    for entry in server.model.layout().entries() {
        let same = server.model.get(&entry.name).unwrap() == deployed.get(&entry.name).unwrap();
        let inside = head.iter().any(|r| r.start <= entry.offset && entry.range().end <= r.end);
        assert_eq!(same, !inside, "{}", entry.name);
    }
    let (server, deployed) = toy_run("kind = \"ccvr\"\nsamples = 30\nepochs = 0", &setting);
    assert_eq!(server.model.digest(), deployed.digest());
}

/// With twelve rounds the first two are not among the last ten, and are judged only if `eval_every` says so.
#[test]
fn ccvr_asks_for_moments_in_rounds_that_are_judged_alone() {
    let clients = deal(&[6, 7]);
    let mut config = federated(12, 2);
    (config.eval_every, config.local_epochs) = (12, 1);
    let federated =
        |rounds: usize| Setting { config: FederatedConfig { rounds, ..config.clone() }, clients: &clients, threads: 1 };
    let kind = "kind = \"ccvr\"\nsamples = 4\nepochs = 1";
    let mut early = federated(12);
    let asked = bytes(kind, &early);
    early.config.eval_every = 1;
    let (always, model) = (bytes(kind, &early), 4 * toy_net().layout.len() as u64);
    assert_eq!(asked[..2], [(2 * model, 2 * model); 2]);
    let d = toy_net().classifier().unwrap().features as u64;
    let moments = 2 * 3 * 4 * (1 + d + d * (d + 1) / 2);
    assert!(always.iter().all(|b| *b == (4 * model, 2 * model + moments)), "{always:?}");
    assert_eq!(asked[2..], always[2..]);
}

/// Bytes down and up of every round.
fn bytes(kind: &str, setting: &Setting<'_>) -> Vec<(u64, u64)> {
    let toy = Toy::new(60);
    let trainer = CompactTrainer::new(toy_net(), Backend::Candle, &toy, setting.clients);
    let n = setting.clients.len();
    let cohort = |_: usize| -> Result<Vec<ClientId>> { Ok((0..n as ClientId).collect()) };
    let algorithm = algorithm(kind);
    let federation = Federation {
        algorithm: algorithm.algorithm(),
        trainer: &trainer,
        config: &setting.config,
        clients: n,
        cohort: &cohort,
        align: None,
        feedback: false,
        key: Key::from_seed(11),
    };
    let (cx, mut all) = (Context::cpu(1), Vec::new());
    let server = federation.start(toy_net().init(Key::from_seed(5)), &cx).unwrap();
    let finished = federation.run(server, &cx, &mut |f| {
        all.push((f.tally.bytes_down, f.tally.bytes_up));
        Ok(())
    });
    finished.unwrap();
    all
}
