//! Real training on ranks that are threads: what travels is enough for every client to train as on one process.

use fedllava::error::Result;
use fedllava::exec::ranks::together;
use fedllava::exec::{Context, Ranks};
use fedllava::fl::cohort::by_key;
use fedllava::fl::round::Federation;
use fedllava::fl::trainer::CompactTrainer;
use fedllava::fl::{ClientId, ranks};
use fedllava::key::Key;
use fedllava::nn::Backend;

use crate::toy::{Toy, algorithm, deal, federated, net};

const CLIENTS: usize = 24;

/// The digests of the model after three rounds, and of what clients keep.
fn trained(kind: &str, seats: Vec<Ranks>) -> Vec<String> {
    let (toy, clients, net) = (Toy::new(4 * CLIENTS), deal(&[4; CLIENTS]), net());
    let (algorithm, mut config) = (algorithm(&format!("kind = {kind:?}")), federated(3, 20));
    config.local_epochs = 1;
    let cohort = |round: usize| -> Result<Vec<ClientId>> { Ok(by_key(Key::from_seed(3), round, CLIENTS, 20)) };
    let on = |ranks: Ranks| {
        let trainer = CompactTrainer::new(net.clone(), Backend::Cpu, &toy, &clients);
        let (align, feedback, key) = (None, false, Key::from_seed(11));
        let federation = Federation {
            algorithm: algorithm.algorithm(),
            trainer: &trainer,
            config: &config,
            clients: CLIENTS,
            cohort: &cohort,
            align,
            feedback,
            key,
        };
        let cx = Context { ranks, ..Context::cpu(1) };
        if cx.ranks.rank() > 0 {
            federation.serve(&cx).unwrap();
            return Vec::new();
        }
        let server = federation.start(net.init(Key::from_seed(5)), &cx).unwrap();
        let mut server = federation.run(server, &cx, &mut |_| Ok(())).unwrap();
        ranks::gather(&mut server.kept, &cx).unwrap();
        let mut digests = vec![server.model.digest()];
        digests.extend(server.kept.values().flat_map(|kept| kept.named.values().map(|p| p.digest())));
        ranks::end(&cx).unwrap();
        digests
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = seats.into_iter().map(|ranks| scope.spawn(|| on(ranks))).collect();
        all.into_iter().map(|rank| rank.join().unwrap()).next().unwrap()
    })
}

#[test]
fn methods_with_objectives_witnesses_and_kept_state_train_the_same_on_two_ranks() {
    for kind in ["fedavg", "scaffold", "moon", "fedlc", "balancefl"] {
        let one = trained(kind, vec![Ranks::default()]);
        assert_eq!(trained(kind, together(2)), one, "{kind}");
    }
}
