//! What holds however many ranks there are, with threads as ranks and a stub that trains nothing.

use std::sync::Arc;

use serde::Deserialize;

use super::*;
use crate::error::Place;
use crate::exec::Ranks;
use crate::exec::ranks::together;
use crate::fl::brief::{Job, MODEL};
use crate::fl::cohort::by_key;
use crate::fl::failure::OnFailure;
use crate::fl::fit::diverged;
use crate::fl::round::Federation;
use crate::fl::trainer::Returned;
use crate::fl::way::LinkConfig;
use crate::fl::{AlgorithmConfig, Named, Outcome, Supplies, Trainer};
use crate::key::Key;
use crate::nn::{Layout, Params, Role};

const CLIENTS: usize = 70;
/// Four leaves, the last of two clients.
const COHORT: usize = 50;

/// Moves every number by a draw of its own, and by what the client keeps; some clients fail.
struct Stub {
    layout: Arc<Layout>,
    supplies: Supplies<'static>,
    fails: fn(&Job) -> bool,
}

impl Trainer for Stub {
    fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    fn supplies(&self) -> &Supplies<'_> {
        &self.supplies
    }

    fn run(
        &self,
        jobs: &[Job],
        cx: &Context,
        reply: &(dyn Fn(&Job, Outcome) -> Result<Returned> + Sync),
        fold: &mut (dyn FnMut(usize, Result<Returned>) -> Result<()> + Send),
    ) -> Result<()> {
        for (i, job) in jobs.iter().enumerate() {
            cx.cancel.check()?;
            let (mut params, mut rng) = (job.model.clone(), job.key.rng());
            params.data_mut().iter_mut().for_each(|w| *w += 0.1 * rng.normal() as f32);
            for kept in job.kept.iter().flat_map(|kept| kept.values()).filter(|kept| kept.layout() == &self.layout) {
                params.data_mut().iter_mut().zip(kept.data()).for_each(|(w, k)| *w += 0.3 * k);
            }
            let (found, samples) = (Named::from([(MODEL.into(), params.clone())]), 3 + job.client as usize % 7);
            let (loss, multiply_adds) = (Some(rng.f64()), 1000 * samples as u64);
            let outcome = Outcome { params, found, samples, counts: vec![2, 1], steps: 2, loss, multiply_adds };
            let done = if (self.fails)(job) { Err(diverged("the loss is NaN")) } else { reply(job, outcome) };
            fold(i, done.at(|| job.place()))?;
        }
        Ok(())
    }
}

#[derive(Clone)]
struct Case {
    kind: &'static str,
    way: &'static str,
    on_failure: OnFailure,
    fails: fn(&Job) -> bool,
}

impl Default for Case {
    fn default() -> Self {
        Case { kind: "kind = 'fedavg'", way: "", on_failure: OnFailure::Stop, fails: |_| false }
    }
}

/// All that a run leaves, as text to the bit.
type Left = Vec<String>;

impl Case {
    fn on(&self, seats: Vec<Ranks>) -> Result<Left> {
        #[derive(Deserialize)]
        struct Text {
            way: Vec<LinkConfig>,
        }
        let mut layout = Layout::default();
        layout.push("w", &[37], Role::Weight)?;
        let stub = Stub { layout: Arc::new(layout), supplies: Supplies::default(), fails: self.fails };
        let algorithm: AlgorithmConfig = toml::from_str(self.kind).unwrap();
        let way = toml::from_str::<Text>(&format!("way = [{}]", self.way)).unwrap().way;
        let (rounds, cohort, on_failure) = (4, COHORT, self.on_failure);
        let config = FederatedConfig { rounds, cohort, way, on_failure, ..FederatedConfig::default() };
        let federation = Federation {
            algorithm: algorithm.algorithm(),
            trainer: &stub,
            config: &config,
            clients: CLIENTS,
            cohort: &|round| Ok(by_key(Key::from_seed(2), round, CLIENTS, COHORT)),
            align: None,
            feedback: false,
            key: Key::from_seed(1),
        };
        let context = |ranks: Ranks| Context { ranks, ..Context::cpu(1) };
        let mut seats = seats.into_iter().map(context);
        let leader = seats.next().unwrap();
        std::thread::scope(|scope| {
            let others: Vec<_> = seats
                .map(|cx| {
                    let federation = &federation;
                    scope.spawn(move || {
                        let served = federation.serve(&cx);
                        cx.ranks.close(served.as_ref().err());
                    })
                })
                .collect();
            let left = led(&federation, Params::zeros(stub.layout.clone()), &leader);
            leader.ranks.close(left.as_ref().err());
            others.into_iter().for_each(|other| other.join().unwrap());
            left
        })
    }
}

fn led(federation: &Federation<'_>, start: Params, cx: &Context) -> Result<Left> {
    let mut left = Left::new();
    let server = federation.start(start, cx)?;
    let server = federation.run(server, cx, &mut |f| {
        let t = &f.tally;
        let tally = (t.loss().to_bits(), t.bytes_down, t.bytes_up, t.multiply_adds);
        left.push(format!("{} {tally:?} {:?} {:?}", f.server.round, f.failed, f.way));
        Ok(())
    })?;
    for (name, params) in server.state.iter().chain(&server.way) {
        left.push(format!("{name} {}", params.digest()));
    }
    let mut kept = server.kept.clone();
    gather(&mut kept, cx)?;
    for (client, kept) in &kept {
        let digests: Vec<String> = kept.named.iter().map(|(name, p)| format!("{name} {}", p.digest())).collect();
        left.push(format!("client {client} since {}: {digests:?}", kept.round));
    }
    end(cx)?;
    left.push(server.model.digest());
    Ok(left)
}

/// Methods that send more than a model, keep state, ask everybody; chains of every link.
fn cases() -> Vec<Case> {
    let kind = |kind| Case { kind, ..Case::default() };
    let way = |way| Case { way, ..Case::default() };
    let some = |job: &Job| job.round > 1 && (job.client + job.round as u32).is_multiple_of(6);
    vec![
        kind("kind = 'fedavg'"),
        kind("kind = 'scaffold'"),
        kind("kind = 'feddyn'\nalpha_scale = 'size'"),
        kind("kind = 'fednova'"),
        kind("kind = 'fedyogi'"),
        way("{ kind = 'clip', norm = 0.5, quantile = 0.6, count_noise = 1.0 }, { kind = 'noise', multiplier = 0.6 }"),
        way("{ kind = 'clip' }, { kind = 'noise', by = 'client', multiplier = 2.0 }"),
        way("{ kind = 'compress', share = 0.2 }, { kind = 'drop', share = 0.2, deadline = 0.0002 }"),
        way("{ kind = 'drop', share = 0.3 }, { kind = 'clip' }, { kind = 'mask' }"),
        way(
            "{ kind = 'attack', how = 'gaussian', attackers = 3 }, { kind = 'robust', rule = 'multi-krum', attackers = 3 }",
        ),
        Case { on_failure: OnFailure::Skip, fails: some, ..kind("kind = 'scaffold'") },
        Case { on_failure: OnFailure::Skip, fails: some, ..way("{ kind = 'compress', share = 0.1 }") },
        // Fewer than the threshold answer: rounds that come to nothing.
        Case {
            kind: "kind = 'scaffold'",
            ..way("{ kind = 'drop', share = 0.4 }, { kind = 'clip' }, { kind = 'mask', threshold = 0.65 }")
        },
    ]
}

#[test]
fn any_number_of_ranks_leaves_the_bytes_of_one_process() {
    let mut different = std::collections::BTreeSet::new();
    for case in cases() {
        let one = case.on(vec![Ranks::default()]).unwrap();
        different.insert(one.clone());
        for size in [2, 3, 4, 6] {
            assert_eq!(case.on(together(size)).unwrap(), one, "{} {} on {size}", case.kind, case.way);
        }
    }
    assert_eq!(different.len(), cases().len(), "every case does something of its own");
}

#[test]
fn shares_are_whole_leaves_in_order_and_even() {
    for n in [0, 1, 16, 17, 50, 160] {
        for size in 1..8 {
            let all: Vec<usize> = (0..size).flat_map(|rank| share(n, rank, size)).collect();
            assert_eq!(all, (0..n).collect::<Vec<_>>());
            let leaves: Vec<usize> = (0..size).map(|rank| share(n, rank, size).len().div_ceil(LEAF)).collect();
            assert!(leaves.iter().max().unwrap() - leaves.iter().min().unwrap() <= 1, "{n} on {size}: {leaves:?}");
            assert!(
                (0..size)
                    .all(|rank| share(n, rank, size).start.is_multiple_of(LEAF) || share(n, rank, size).is_empty())
            );
        }
    }
    assert_eq!((share(10, 0, 4), share(10, 3, 4).len()), (0..10, 0), "one leaf is rank 0's");
}

#[test]
fn a_client_that_fails_on_another_rank_ends_all_with_its_name() {
    // The last leaf is the last rank's.
    let case = Case { fails: |job| job.round == 2, ..Case::default() };
    let e = case.on(together(3)).unwrap_err().to_string();
    assert!(e.contains("round 2, client "), "{e}");
    let last = by_key(Key::from_seed(2), 2, CLIENTS, COHORT)[COHORT - 1];
    assert_eq!(last, LAST, "the client below");
    let case = Case { fails: |job| job.round == 2 && job.client == LAST, ..Case::default() };
    let e = case.on(together(3)).unwrap_err();
    assert!(e.plain().starts_with(&format!("rank 2: round 2, client {LAST}: training diverged")), "{e}");
    assert!(e.to_string().contains("hint: ") && e.class() == Class::Input, "{e}");
}

/// Who comes last in round 2.
const LAST: ClientId = 10;

#[test]
fn so_many_failures_as_the_config_allows_are_counted_over_all_ranks() {
    let fails = |job: &Job| job.round == 2 && job.client.is_multiple_of(2);
    let case = Case { on_failure: OnFailure::Skip, fails, ..Case::default() };
    let alone = case.on(vec![Ranks::default()]).map(|left| left.len()).map_err(|e| e.class());
    for size in [2, 4] {
        assert_eq!(case.on(together(size)).map(|left| left.len()).map_err(|e| e.class()), alone);
    }
    let all = Case { fails: |job| job.round == 2 && job.client % 3 < 2, ..case };
    let e = all.on(together(4)).unwrap_err().to_string();
    assert!(e.contains("of 50 clients failed, more than federated.max_failures = 0.5 allows"), "{e}");
}

#[test]
fn a_request_to_stop_on_any_rank_ends_all() {
    let seats = together(3);
    let stopping = Context { ranks: seats[2].clone(), ..Context::cpu(1) };
    stopping.cancel.stop();
    let e = stopping.ranks.receive(0, &stopping.cancel).unwrap_err();
    stopping.ranks.alarm(&e);
    let heard = seats[0].heard().unwrap();
    assert_eq!((heard.class(), heard.to_string()), (Class::Stopped, "rank 2: stopped on request".to_string()));
}
