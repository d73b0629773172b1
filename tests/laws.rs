//! Laws of the federated loop and of its algorithms.

use fedllava::error::{Error, Result};
use fedllava::exec::Context;
use fedllava::fl::round::ServerStep;
use fedllava::key::Key;
use fedllava::nn::{Backend, Batch, Mode, Params, Role, Samples, View, loss};

use crate::toy::{Setting, Toy, algorithm, deal, federated, net, run, run_from, run_on};

fn digest(kind: &str, threads: usize) -> String {
    let clients = deal(&[8, 12, 5, 9, 4, 7]);
    let (algorithm, config) = (algorithm(kind), federated(3, 4));
    let setting =
        Setting { algorithm: &algorithm, config: &config, clients: &clients, align: None, feedback: false, threads };
    run(&setting).unwrap().model.digest()
}

#[test]
fn the_same_seed_gives_the_same_bytes_for_any_number_of_threads() {
    for kind in ["kind = \"fedavg\"", "kind = \"fedprox\"", "kind = \"scaffold\""] {
        let one = digest(kind, 1);
        assert_eq!(one, digest(kind, 2), "{kind}");
        assert_eq!(one, digest(kind, 3), "{kind}");
    }
}

/// Three clients on up to eight threads: some workers use several threads of their own.
#[test]
fn the_cpu_engine_gives_the_same_bytes_whether_threads_go_to_clients_or_into_them() {
    let (clients, algorithm, config) = (deal(&[8, 12, 5, 9]), algorithm("kind = \"fedavg\""), federated(2, 3));
    let digest = |threads| {
        let (algorithm, config, clients) = (&algorithm, &config, &clients[..]);
        let setting = Setting { algorithm, config, clients, align: None, feedback: false, threads };
        run_on(Backend::Cpu, &setting, net().init(Key::from_seed(5))).unwrap().model.digest()
    };
    let one = digest(1);
    for threads in [2, 4, 5, 8] {
        assert_eq!(digest(threads), one, "{threads} threads");
    }
}

#[test]
fn fedprox_without_its_term_is_fedavg_byte_for_byte_and_with_it_is_not() {
    let fedavg = digest("kind = \"fedavg\"", 2);
    assert_eq!(fedavg, digest("kind = \"fedprox\"\nmu = 0.0", 2));
    assert_ne!(fedavg, digest("kind = \"fedprox\"\nmu = 1.0", 2));
}

/// The gradient of the mean cross-entropy over all `ids`, batch statistics on, and the buffers it leaves.
fn full_gradient(params: &Params, ids: &[u32], toy: &Toy) -> (Vec<f32>, Params) {
    let net = net();
    let mut interpreter = Backend::Candle.workspace(&net, &Context::cpu(1), 1).unwrap();
    let (mut batch, mut logits, mut grads) = (Batch::default(), Vec::new(), vec![0.0; params.data().len()]);
    toy.fill(ids, View::Plain, Key::from_seed(0), &mut batch).unwrap();
    let mode = Mode::Train(Key::from_seed(0));
    interpreter.forward(params.data(), &batch.x, &batch.rows, mode.alone()).unwrap();
    interpreter.read(net.logits, &mut logits).unwrap();
    let mut seed = vec![0.0; logits.len()];
    loss::cross_entropy(&logits, &batch.y, net.outputs(), 1.0, &mut seed).unwrap();
    interpreter.backward(params.data(), &[(net.logits, &seed)], &mut grads).unwrap();
    let mut moved = params.clone();
    interpreter.update_buffers(moved.data_mut()).unwrap();
    (grads, moved)
}

fn assert_close(got: &[f32], want: &[f32], tolerance: f32) {
    let scale = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let worst = got.iter().zip(want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst <= tolerance * scale, "max error {worst} at magnitude {scale}");
}

#[test]
fn one_client_with_one_full_batch_takes_a_plain_sgd_step() {
    let mut config = federated(1, 1);
    (config.local_epochs, config.batch_size) = (1, 0);
    let clients = deal(&[12]);
    let start = net().init(Key::from_seed(5));
    for kind in ["kind = \"fedavg\"", "kind = \"scaffold\""] {
        let algorithm = algorithm(kind);
        let setting = Setting {
            algorithm: &algorithm,
            config: &config,
            clients: &clients,
            align: None,
            feedback: false,
            threads: 1,
        };
        let got = run_from(&setting, start.clone()).unwrap().model;
        let (gradient, mut want) = full_gradient(&start, &clients[0], &Toy::new(12));
        want.data_mut().iter_mut().zip(&gradient).for_each(|(p, g)| *p -= 0.05 * g);
        assert_close(got.data(), want.data(), 1e-6);
    }
}

#[test]
fn fedavg_of_full_batches_is_the_size_weighted_mean_of_the_clients_steps() {
    let mut config = federated(1, 3);
    (config.local_epochs, config.batch_size) = (1, 0);
    let clients = deal(&[6, 9, 3]);
    let algorithm = algorithm("kind = \"fedavg\"");
    let setting =
        Setting { algorithm: &algorithm, config: &config, clients: &clients, align: None, feedback: false, threads: 2 };
    let start = net().init(Key::from_seed(5));
    let got = run_from(&setting, start.clone()).unwrap().model;
    let toy = Toy::new(18);
    let mut want = vec![0.0f64; start.data().len()];
    for ids in &clients {
        let (gradient, moved) = full_gradient(&start, ids, &toy);
        for ((w, m), g) in want.iter_mut().zip(moved.data()).zip(gradient) {
            *w += ids.len() as f64 / 18.0 * f64::from(m - 0.05 * g);
        }
    }
    let want: Vec<f32> = want.iter().map(|&w| w as f32).collect();
    assert_close(got.data(), &want, 1e-6);
}

#[test]
fn scaffold_control_variates_after_one_full_step_are_the_clients_gradients() {
    let mut config = federated(1, 2);
    (config.local_epochs, config.batch_size) = (1, 0);
    let clients = deal(&[6, 6]);
    let algorithm = algorithm("kind = \"scaffold\"");
    let setting =
        Setting { algorithm: &algorithm, config: &config, clients: &clients, align: None, feedback: false, threads: 1 };
    let start = net().init(Key::from_seed(5));
    let server = run_from(&setting, start.clone()).unwrap();
    let toy = Toy::new(12);
    let layout = start.layout().clone();
    let mut mean = vec![0.0; start.data().len()];
    for (client, ids) in clients.iter().enumerate() {
        let (gradient, _) = full_gradient(&start, ids, &toy);
        let control = &server.kept[&(client as u32)].named["control"];
        for range in layout.ranges(Role::Weight) {
            assert_close(&control.data()[range.clone()], &gradient[range], 2e-3);
        }
        mean.iter_mut().zip(&gradient).for_each(|(m, g)| *m += g / 2.0);
    }
    for range in layout.ranges(Role::Weight) {
        assert_close(&server.state["control"].data()[range.clone()], &mean[range], 2e-3);
    }
}

#[test]
fn zero_rounds_leave_the_start_model() {
    let (config, clients, algorithm) = (federated(0, 2), deal(&[4, 4]), algorithm("kind = \"fedavg\""));
    let setting =
        Setting { algorithm: &algorithm, config: &config, clients: &clients, align: None, feedback: false, threads: 1 };
    let start = net().init(Key::from_seed(5));
    assert_eq!(run_from(&setting, start.clone()).unwrap().model.digest(), start.digest());
}

#[test]
fn a_diverging_client_is_named_with_round_and_step() {
    let (mut config, clients, algorithm) = (federated(2, 2), deal(&[8, 8]), algorithm("kind = \"fedavg\""));
    config.optimiser = toml::from_str("kind = \"sgd\"\nlr = 1e30").unwrap();
    let setting =
        Setting { algorithm: &algorithm, config: &config, clients: &clients, align: None, feedback: false, threads: 2 };
    let e = run(&setting).unwrap_err().to_string();
    assert!(
        e.contains("round 1, client") && e.contains("diverged") && e.contains("lower the rate of federated.optimiser"),
        "{e}"
    );
}

#[test]
fn scaffold_refuses_momentum_before_it_starts() {
    let (mut config, clients, algorithm) = (federated(1, 2), deal(&[8, 8]), algorithm("kind = \"scaffold\""));
    config.optimiser = toml::from_str("kind = \"sgd\"\nmomentum = 0.9").unwrap();
    let setting =
        Setting { algorithm: &algorithm, config: &config, clients: &clients, align: None, feedback: false, threads: 1 };
    assert!(run(&setting).unwrap_err().to_string().contains("plain SGD"));
}

/// A server step that fails in round 2.
struct Fails;

impl ServerStep for Fails {
    fn apply(&self, model: &Params, round: usize, _: &Context) -> Result<Params> {
        if round == 2 { Err(Error::data("no such image")) } else { Ok(model.clone()) }
    }
}

#[test]
fn a_failing_server_step_names_its_round() {
    let (config, clients, algorithm) = (federated(3, 2), deal(&[8, 8]), algorithm("kind = \"fedavg\""));
    let setting = Setting {
        algorithm: &algorithm,
        config: &config,
        clients: &clients,
        align: Some(&Fails),
        feedback: true,
        threads: 1,
    };
    assert!(run(&setting).unwrap_err().to_string().contains("round 2, alignment: no such image"));
}

/// A server step that changes nothing.
struct Nothing;

impl ServerStep for Nothing {
    fn apply(&self, model: &Params, _: usize, _: &Context) -> Result<Params> {
        Ok(model.clone())
    }
}

/// The known error of others' CReFF: the classifier that is judged must not reach the clients through alignment.
#[test]
fn feedback_returns_the_aligned_model_and_never_what_was_deployed() {
    let (config, clients) = (federated(3, 2), deal(&[8, 12, 5]));
    let run = |kind: &str, align: Option<&'static dyn ServerStep>| {
        let algorithm = algorithm(kind);
        let (config, clients) = (&config, &clients[..]);
        let setting = Setting { algorithm: &algorithm, config, clients, align, feedback: true, threads: 1 };
        run(&setting).unwrap().model.digest()
    };
    let creff = "kind = \"creff\"\nfeatures_per_class = 3\nmatch_steps = 2\nhead_epochs = 2";
    let plain = run("kind = \"fedavg\"", None);
    assert_eq!(run("kind = \"fedavg\"", Some(&Nothing)), plain);
    assert_eq!(run(creff, Some(&Nothing)), plain);
}
