//! Bad federations: a client whose numbers are no numbers, or whose work panics, and a round that goes on without it.

use fedllava::error::Result;
use fedllava::exec::Context;
use fedllava::fl::FederatedConfig;
use fedllava::fl::failure::{Failure, OnFailure};
use fedllava::fl::round::{Federation, Server};
use fedllava::fl::trainer::CompactTrainer;
use fedllava::key::Key;
use fedllava::nn::{Backend, Batch, Samples, View};

use super::toy::{Toy, algorithm, deal, federated, net};

/// The toy, but for image 9, a NaN, and image 20, which panics.
struct Bad(Toy);

impl Samples for Bad {
    fn labels(&self) -> &[u32] {
        &self.0.labels
    }

    fn fill(&self, ids: &[u32], view: View, key: Key, batch: &mut Batch) -> Result<()> {
        self.0.fill(ids, view, key, batch)?;
        assert!(!ids.contains(&20), "image 20");
        if let Some(at) = ids.iter().position(|&i| i == 9) {
            batch.x[at * 64] = f32::NAN;
        }
        Ok(())
    }
}

/// Clients 1 and 3 of five are bad.
fn run(kind: &str, backend: Backend, threads: usize, config: &FederatedConfig) -> Result<(Server, Vec<Failure>)> {
    let (toy, clients, algorithm) = (Bad(Toy::new(40)), deal(&[8, 8, 4, 8, 12]), algorithm(kind));
    let trainer = CompactTrainer::new(net(), backend, &toy, &clients);
    let federation = Federation {
        algorithm: algorithm.algorithm(),
        trainer: &trainer,
        config,
        clients: clients.len(),
        cohort: &|_| Ok(vec![4, 3, 0, 1, 2]),
        align: None,
        feedback: false,
        key: Key::from_seed(11),
    };
    let (cx, mut failed) = (Context::cpu(threads), Vec::new());
    let server = federation.start(net().init(Key::from_seed(5)), &cx)?;
    let server = federation.run(server, &cx, &mut |finished| {
        failed.extend_from_slice(finished.failed);
        Ok(())
    })?;
    Ok((server, failed))
}

#[test]
fn a_round_goes_on_without_clients_that_diverge_or_panic_with_the_same_bytes_for_any_threads() {
    let skip = FederatedConfig { on_failure: OnFailure::Skip, ..federated(2, 5) };
    let mut cases = vec![("fedavg", Backend::Cpu), ("fedavg", Backend::Candle), ("scaffold", Backend::Cpu)];
    // Side by side, where each failure must be found to be one client's.
    cases.extend(super::cuda_engine::card(1).map(|_| ("fedavg", Backend::Emulated)));
    for (kind, backend) in cases {
        let kind = format!("kind = {kind:?}");
        let (server, failed) = run(&kind, backend, 1, &skip).unwrap();
        let (other, again) = run(&kind, backend, 3, &skip).unwrap();
        assert_eq!((server.model.digest(), &failed), (other.model.digest(), &again));
        assert_eq!(failed.iter().map(|f| f.client).collect::<Vec<_>>(), [3, 1, 3, 1], "{failed:?}");
        assert!(failed[0].why.contains("round 1, client 3: local epoch 0, step") && failed[0].why.contains("image 20"));
        assert!(failed[1].why.contains("client 1") && failed[1].why.contains("diverged"), "{}", failed[1].why);
        assert!(server.model.data().iter().all(|v| v.is_finite()));
        assert!(!server.kept.contains_key(&1) && !server.kept.contains_key(&3));
        assert_eq!(server.kept.len(), if kind.contains("scaffold") { 3 } else { 0 });
    }
}

#[test]
fn by_default_the_first_bad_client_ends_the_run() {
    let config = federated(2, 5);
    for threads in [1, 3] {
        let e = run("kind = \"fedavg\"", Backend::Cpu, threads, &config).unwrap_err();
        assert!(e.to_string().contains("round 1, client 3: local epoch 0, step"), "{e}");
        assert!(e.to_string().contains("federated.on_failure"), "{e}");
    }
}

/// Huge steps diverge; held to a norm they do not, and a limit that is never met changes no byte.
#[test]
fn a_clipped_gradient_holds_a_wild_rate_and_a_wide_limit_changes_nothing() {
    let clients = deal(&[8, 12, 5]);
    let with = |lr: f64, clip_gradient: f32, backend: Backend, threads: usize| {
        let mut config = FederatedConfig { clip_gradient, ..federated(2, 3) };
        config.optimiser = toml::from_str(&format!("kind = \"sgd\"\nlr = {lr:?}")).unwrap();
        let algorithm = algorithm("kind = \"fedprox\"");
        let setting = super::toy::Setting {
            algorithm: &algorithm,
            config: &config,
            clients: &clients,
            align: None,
            feedback: false,
            threads,
        };
        super::toy::run_on(backend, &setting, net().init(Key::from_seed(5))).map(|server| server.model.digest())
    };
    for backend in [Backend::Cpu, Backend::Candle] {
        assert!(with(1e20, 0.0, backend, 1).is_err());
        assert_eq!(with(0.05, 1e9, backend, 1).unwrap(), with(0.05, 0.0, backend, 1).unwrap());
        let held = with(0.05, 0.1, backend, 1).unwrap();
        assert_ne!(held, with(0.05, 0.0, backend, 1).unwrap());
        assert_eq!(held, with(0.05, 0.1, backend, 3).unwrap());
    }
}
