//! What holds for every method of the registry, with its defaults but for sizes: bytes and work as it says, the same
//! bytes for any threads, exact resumption.

use std::path::Path;
use std::sync::{Arc, Mutex};

use fedllava::error::Class;
use fedllava::exec::{Cancel, Context, Event, Events};
use fedllava::fl::feed::Source;
use fedllava::fl::round::{Federation, Server, Tally};
use fedllava::fl::trainer::{CompactTrainer, Supplies};
use fedllava::fl::{AlgorithmConfig, Column, FederatedConfig, Sizes, cohort};
use fedllava::key::{Key, Purpose};
use fedllava::nn::{Backend, Load, Params};
use fedllava::run::RunDir;
use fedllava::stage::finetune::{Begin, Finetune, Finetuned};
use fedllava::stage::metrics::Evaluation;

use crate::methods_small::small;
use crate::toy::{CLASSES, Toy, deal, federated, net};

const SIZES: [usize; 5] = [8, 12, 5, 9, 6];

/// A toy federation with everything that a method may ask for.
struct World {
    toy: Toy,
    clients: Vec<Vec<u32>>,
    server: Vec<u32>,
    pool: Vec<u32>,
    config: FederatedConfig,
    backend: Backend,
}

impl World {
    fn new(rounds: usize, cohort: usize) -> Self {
        let held: usize = SIZES.iter().sum();
        let toy = Toy::new(held + 18);
        let ids = |from: usize, n: usize| (from as u32..(from + n) as u32).collect();
        let (server, pool) = (ids(held, 6), ids(held + 6, 12));
        let config = FederatedConfig { checkpoint_every: 2, ..federated(rounds, cohort) };
        World { toy, clients: deal(&SIZES), server, pool, config, backend: Backend::Cpu }
    }

    fn supplies(&self) -> Supplies<'_> {
        let mut rng = Key::from_seed(4).fold(Purpose::Test, 1).rng();
        let mut wave = |n: usize| (0..n).map(|_| rng.normal() as f32).collect::<Vec<f32>>();
        let held: Vec<u32> = self.clients.concat();
        let logits = wave(held.len() * CLASSES);
        let width = net().classifier().unwrap().features;
        let mut texts = wave(CLASSES * width);
        for row in texts.chunks_mut(width) {
            let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            row.iter_mut().for_each(|v| *v /= length);
        }
        let source = |ids| Some(Source { samples: &self.toy, ids });
        Supplies {
            server: source(&self.server),
            unlabelled: source(&self.pool),
            columns: [(Supplies::TEACHER.into(), Column::new(CLASSES, &held, logits).unwrap())].into(),
            texts: Some(Params::tensor("texts", &[CLASSES, width], texts).unwrap()),
        }
    }

    fn with<T>(&self, algorithm: &AlgorithmConfig, f: impl FnOnce(Federation<'_>) -> T) -> T {
        let trainer = CompactTrainer::new(net(), self.backend, &self.toy, &self.clients).with(self.supplies());
        let draw = |round| Ok(cohort::by_key(Key::from_seed(3), round, SIZES.len(), self.config.cohort));
        f(Federation {
            algorithm: algorithm.algorithm(),
            trainer: &trainer,
            config: &self.config,
            clients: SIZES.len(),
            cohort: &draw,
            align: None,
            feedback: false,
            key: Key::from_seed(11),
        })
    }

    fn run(&self, algorithm: &AlgorithmConfig, threads: usize) -> (Server, Vec<Tally>, Params) {
        let cx = Context::cpu(threads);
        self.with(algorithm, |federation| {
            let (mut tallies, mut deployed) = (Vec::new(), None);
            let start = federation.start(net().init(Key::from_seed(5)), &cx).unwrap();
            let server = federation.run(start, &cx, &mut |finished| {
                tallies.push(finished.tally);
                deployed = Some(finished.deployed.clone());
                Ok(())
            });
            (server.unwrap(), tallies, deployed.unwrap())
        })
    }

    /// The finetune stage in a directory.
    fn stage(&self, algorithm: &AlgorithmConfig, dir: &Path, cx: &Context) -> fedllava::error::Result<Finetuned> {
        let dir = RunDir::open(dir, &toml::Table::new()).unwrap();
        let groups = fedllava::data::Groups { many: vec![0], medium: vec![], few: vec![] };
        let evaluate = |_: &Params| Ok(Evaluation::of(&[0.0; CLASSES], &[0], CLASSES, &groups).into());
        self.with(algorithm, |federation| {
            let net = net();
            let start = net.init(Key::from_seed(5));
            Finetune {
                dir: &dir,
                federation,
                layout: &net.layout,
                evaluate: &evaluate,
                validate: None,
                summon: &|| Ok(()),
            }
            .run(Some(Begin { model: start, carried: None }), cx)
        })
    }
}

/// Everything that a finished run leaves, as one digest a name.
fn digests(server: &Server, deployed: &Params) -> Vec<String> {
    let mut all = vec![server.model.digest(), deployed.digest()];
    all.extend(server.state.iter().map(|(name, p)| format!("{name} {}", p.digest())));
    for (client, kept) in &server.kept {
        all.extend(kept.named.iter().map(|(name, p)| format!("{client}/{name} {} {}", kept.round, p.digest())));
    }
    all
}

#[test]
fn every_method_gives_the_same_bytes_for_any_number_of_threads() {
    let world = World::new(3, 3);
    for (kind, algorithm) in small() {
        let run = |threads| {
            let (server, _, deployed) = world.run(&algorithm, threads);
            digests(&server, &deployed)
        };
        let one = run(1);
        assert_eq!(one, run(2), "{kind}, two threads");
        assert_eq!(one, run(3), "{kind}, three threads");
    }
}

/// With everybody in every round, the last round's bytes and multiply-adds are the sums of what the method says.
#[test]
fn every_method_sends_and_computes_what_it_says() {
    let world = World::new(2, SIZES.len());
    let net = net();
    let head = net.classifier().unwrap();
    for (kind, algorithm) in small() {
        let (_, tallies, _) = world.run(&algorithm, 2);
        let (mut down, mut up, mut work) = (0, 0, 0);
        for held in &world.clients {
            let classes: std::collections::BTreeSet<u32> = held.iter().map(|&i| world.toy.labels[i as usize]).collect();
            let sizes = Sizes {
                model: net.layout.len() as u64,
                head: head.ranges().iter().map(|r| r.len() as u64).sum(),
                classes: CLASSES as u64,
                features: head.features as u64,
                samples: held.len() as u64,
                held: classes.len() as u64,
                epochs: world.config.local_epochs as u64,
                forward: net.multiply_adds(),
                texts: (CLASSES * head.features) as u64,
            };
            let cost = algorithm.algorithm().cost(&sizes);
            (down, up) = (down + cost.down, up + cost.up);
            work += 3 * sizes.samples * sizes.epochs * sizes.forward + cost.extra;
        }
        let last = tallies.last().unwrap();
        assert_eq!((last.bytes_down, last.bytes_up), (4 * down, 4 * up), "{kind}: bytes down and up");
        assert_eq!(last.multiply_adds, work, "{kind}: multiply-adds");
    }
}

/// Asks for a stop once so many rounds are done.
struct StopAfter(u64, Cancel, Mutex<u64>);

impl Events for StopAfter {
    fn on(&self, event: Event<'_>) {
        if let Event::Advance { done, .. } = event {
            *self.2.lock().unwrap() = done;
            if done >= self.0 {
                self.1.stop();
            }
        }
    }
}

/// Stopped after round 3, one round past a checkpoint, a run goes on from round 2 and ends with the same bytes.
#[test]
fn every_method_resumes_exactly() {
    let world = World::new(4, 3);
    for (kind, algorithm) in small() {
        let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let want = world.stage(&algorithm, whole.path(), &Context::cpu(1)).unwrap();
        let mut cx = Context::cpu(1);
        let stop = Arc::new(StopAfter(3, cx.cancel.clone(), Mutex::new(0)));
        cx.events = stop.clone();
        let e = world.stage(&algorithm, broken.path(), &cx).err().unwrap_or_else(|| panic!("{kind}: not stopped"));
        assert_eq!((e.class(), *stop.2.lock().unwrap()), (Class::Stopped, 3), "{kind}");
        let got = world.stage(&algorithm, broken.path(), &Context::cpu(1)).unwrap();
        assert_eq!(got.model.digest(), want.model.digest(), "{kind}");
        let kept = |t: &Finetuned| {
            let of = |(c, k): (&u32, &fedllava::fl::round::Kept)| {
                let named: Vec<String> = k.named.iter().map(|(n, p)| format!("{n} {}", p.digest())).collect();
                (*c, k.round, named)
            };
            t.kept.iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(kept(&got), kept(&want), "{kind}: what clients kept");
        let lines = |dir: &Path| std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
        assert_eq!(lines(broken.path()), lines(whole.path()), "{kind}: records");
    }
}

/// Clients side by side in every launch, on the card that stands in for a GPU. Rounding
/// gathers over the steps: the bound is on the length of what the round moved.
#[test]
#[allow(clippy::print_stderr, reason = "the differences are worth reading")]
fn every_methods_round_on_a_card_is_the_cpu_engines() {
    if super::cuda_engine::card(1).is_none() {
        return;
    }
    let [cpu, card] = [Backend::Cpu, Backend::Emulated].map(|backend| World { backend, ..World::new(1, 4) });
    let sgd = card.config.optimiser.clone();
    let load = Load { optimiser: &sgd, pulls: 1, rows: 4 };
    assert_eq!(Backend::Emulated.lanes(&net(), &Context::cpu(1), load, 4).unwrap(), 4, "side by side");
    let start = net().init(Key::from_seed(5));
    let norm = |of: &mut dyn Iterator<Item = f32>| of.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    for (kind, algorithm) in small() {
        let ((want, told, _), (got, tallies, _)) = (cpu.run(&algorithm, 1), card.run(&algorithm, 2));
        assert_eq!(
            (tallies[0].bytes_up, tallies[0].multiply_adds),
            (told[0].bytes_up, told[0].multiply_adds),
            "{kind}"
        );
        let moved = norm(&mut want.model.data().iter().zip(start.data()).map(|(a, b)| a - b));
        let apart = norm(&mut want.model.data().iter().zip(got.model.data()).map(|(a, b)| a - b));
        eprintln!("{kind}: {:.1e}", apart / moved);
        assert!(moved > 0.0 && apart < 1e-4 * moved, "{kind}: {apart} apart, {moved} moved");
        assert_eq!(want.kept.keys().collect::<Vec<_>>(), got.kept.keys().collect::<Vec<_>>(), "{kind}");
    }
}
