//! Clients that fail: whether a round goes on without them (`federated.on_failure`), and how many may
//! (`federated.max_failures`).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::brief::Job;
use super::fit::{diverged, first_not_finite};
use super::round::Kept;
use super::trainer::Returned;
use super::{ClientId, FederatedConfig};
use crate::error::{Class, Error, Result};
use crate::nn::Params;

/// What becomes of a round in which a client's training diverges or panics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The run stops and names the client, the round and the step.
    #[default]
    Stop,
    /// The client is left out of the round: it sends nothing, keeps what it kept, and the others' weights are the whole.
    Skip,
}

/// A client that was left out of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Who.
    pub client: ClientId,
    /// Where and why.
    pub why: String,
}

/// The failures of one round.
#[derive(Default)]
pub(super) struct Failures {
    pub all: Vec<Failure>,
    /// The class of each one's error.
    classes: Vec<Class>,
    /// Who was lost on the way instead: nobody's failure.
    pub lost: Vec<ClientId>,
    /// Whether the round comes to nothing.
    pub void: bool,
    /// What clients kept before this round changed it.
    pub before: BTreeMap<ClientId, Option<Kept>>,
}

impl Failures {
    /// Whether this client failed in an earlier exchange of the round.
    pub fn out(&self, client: ClientId) -> bool {
        self.all.iter().any(|f| f.client == client) || self.lost.contains(&client)
    }

    /// Leaves out a client that never answered, or too late.
    pub fn lose(&mut self, client: ClientId) {
        self.lost.push(client);
    }

    /// The failures for another rank: who, why, and the exit code of the error's class.
    pub fn told(&self) -> Vec<(ClientId, (String, u8))> {
        let told = |(f, class): (&Failure, &Class)| (f.client, (f.why.clone(), class.exit_code()));
        self.all.iter().zip(&self.classes).map(told).collect()
    }

    /// Who is out of the round by now: failed, or lost on the way.
    pub fn gone(&self) -> Vec<ClientId> {
        self.all.iter().map(|f| f.client).chain(self.lost.iter().copied()).collect()
    }

    /// Loses everybody who was asked: the round comes to nothing, and all keep what they kept before.
    pub fn lose_all(&mut self) {
        self.void = true;
        self.lost.extend(self.before.keys());
    }

    /// Leaves a client out, where the config allows it; `parties` are the clients of the exchange, earlier failures
    /// included.
    pub fn leave_out(&mut self, job: &Job, e: Error, parties: usize, config: &FederatedConfig) -> Result<()> {
        if job.server || !e.is_isolated() {
            return Err(e);
        }
        if config.on_failure == OnFailure::Stop {
            return Err(advised(e));
        }
        self.admit(Failure { client: job.client, why: e.plain() }, e.class(), job.round, parties, config)
    }

    /// Enters a failure, unless it is one more than the config allows of the exchange's `parties`.
    pub fn admit(
        &mut self,
        failure: Failure,
        class: Class,
        round: usize,
        parties: usize,
        config: &FederatedConfig,
    ) -> Result<()> {
        self.all.push(failure);
        self.classes.push(class);
        if self.all.len() as f64 <= config.max_failures * parties as f64 && self.all.len() < parties {
            return Ok(());
        }
        let (n, share) = (self.all.len(), config.max_failures);
        let text = format!("{n} of {parties} clients failed, more than federated.max_failures = {share} allows");
        let whole = if n == parties { format!("all {n} clients of the exchange failed") } else { text };
        let first = self.all.first().map_or("", |f| f.why.as_str());
        Err(advised(Error::new(class, format!("round {round}: {whole}; the first: {first}"))))
    }

    /// Takes over what clients kept in an exchange.
    pub fn keep(&mut self, kept: &mut BTreeMap<ClientId, Kept>, new: BTreeMap<ClientId, Kept>) {
        for (client, keep) in new {
            let old = kept.insert(client, keep);
            self.before.entry(client).or_insert(old);
        }
    }

    /// Ends the round: who failed in it keeps what it kept before.
    pub fn close(mut self, kept: &mut BTreeMap<ClientId, Kept>) -> Vec<Failure> {
        for client in self.all.iter().map(|f| f.client).chain(self.lost) {
            match self.before.remove(&client) {
                Some(Some(old)) => _ = kept.insert(client, old),
                Some(None) => _ = kept.remove(&client),
                None => {}
            }
        }
        self.all
    }
}

/// What helps against failing clients.
fn advised(e: Error) -> Error {
    let skip = "leave such clients out with federated.on_failure = \"skip\"";
    match e.class() {
        Class::Defect => e.hint(format!("to go on without it, {skip}")),
        _ => e.hint(format!(
            "lower the rate of federated.optimiser, hold steps with federated.clip_gradient = 1.0, or {skip}"
        )),
    }
}

/// Refuses a reply, or a state to keep, that is not finite: it would reach everybody.
pub(super) fn refuse_not_finite((reply, keep): &Returned) -> Result<()> {
    let parts = reply.parts.iter().map(|part| (part.name.as_ref(), &part.data));
    let kept = keep.iter().flatten().map(|(name, data)| (name.as_str(), data));
    let broken = |(name, data): (&str, &Params)| Some((name.to_string(), data.data()[first_not_finite(data.data())?]));
    match parts.chain(kept).find_map(broken) {
        Some((name, value)) => Err(diverged(&format!("{name} of the reply is {value}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::error::Place;
    use crate::exec::Context;
    use crate::fl::brief::MODEL;
    use crate::fl::round::{Federation, Server};
    use crate::fl::{AlgorithmConfig, Named, Outcome, Supplies, Trainer};
    use crate::key::Key;
    use crate::nn::{Layout, Role};

    /// Client `k` moves every weight by `k + 1` and holds `k + 1` samples; those in `fail` fail in round 2.
    struct Stub {
        layout: Arc<Layout>,
        supplies: Supplies<'static>,
        fail: Vec<ClientId>,
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
            _: &Context,
            reply: &(dyn Fn(&Job, Outcome) -> Result<Returned> + Sync),
            fold: &mut (dyn FnMut(usize, Result<Returned>) -> Result<()> + Send),
        ) -> Result<()> {
            for (i, job) in jobs.iter().enumerate() {
                let by = (job.client + 1) as f32;
                let mut params = job.model.clone();
                params.data_mut().iter_mut().for_each(|w| *w += by);
                let (found, counts, multiply_adds) = (Named::from([(MODEL.into(), params.clone())]), vec![], 0);
                let samples = job.client as usize + 1;
                let outcome = Outcome { params, found, samples, counts, steps: 1, loss: Some(1.0), multiply_adds };
                let failed = job.round == 2 && self.fail.contains(&job.client);
                let done = if failed { Err(diverged("the loss is NaN")) } else { reply(job, outcome) };
                fold(i, done.at(|| job.place()))?;
            }
            Ok(())
        }
    }

    /// The server after three rounds with all of four clients, and the failures of round 2.
    fn run(kind: &str, fail: &[ClientId], config: FederatedConfig) -> Result<(Server, Vec<Failure>)> {
        let mut layout = Layout::default();
        layout.push("w", &[2], Role::Weight).unwrap();
        let stub = Stub { layout: Arc::new(layout), supplies: Supplies::default(), fail: fail.to_vec() };
        let algorithm: AlgorithmConfig = toml::from_str(&format!("kind = {kind:?}")).unwrap();
        let config = FederatedConfig { rounds: 3, cohort: 4, ..config };
        let federation = Federation {
            algorithm: algorithm.algorithm(),
            trainer: &stub,
            config: &config,
            clients: 4,
            cohort: &|_| Ok(vec![0, 1, 2, 3]),
            align: None,
            feedback: false,
            key: Key::from_seed(1),
        };
        let (cx, mut failed) = (Context::cpu(1), Vec::new());
        let server = federation.start(Params::zeros(stub.layout.clone()), &cx)?;
        let server = federation.run(server, &cx, &mut |finished| {
            failed.extend_from_slice(finished.failed);
            Ok(())
        })?;
        Ok((server, failed))
    }

    fn skip() -> FederatedConfig {
        FederatedConfig { on_failure: OnFailure::Skip, ..FederatedConfig::default() }
    }

    #[test]
    fn the_weights_of_the_rest_are_the_whole() {
        // All: (1·1 + 2·2 + 3·3 + 4·4) / 10 = 3; without clients 1 and 3: (1 + 9) / 4 = 2.5.
        let (server, failed) = run("fedavg", &[1, 3], skip()).unwrap();
        assert_eq!(server.model.data(), [3.0 + 2.5 + 3.0; 2]);
        assert_eq!(failed.iter().map(|f| f.client).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(failed[0].why, "round 2, client 1: training diverged: the loss is NaN");
        let (whole, none) = run("fedavg", &[], skip()).unwrap();
        assert!(whole.model.data() == [9.0; 2] && none.is_empty());
    }

    #[test]
    fn what_a_failed_client_keeps_stays_as_it_was() {
        let (server, _) = run("scaffold", &[1], skip()).unwrap();
        let rounds: Vec<usize> = server.kept.values().map(|k| k.round).collect();
        assert_eq!(rounds, [3, 3, 3, 3]);
        let two = FederatedConfig { rounds: 2, ..skip() };
        let mut layout = Layout::default();
        layout.push("w", &[2], Role::Weight).unwrap();
        let kept = |round| Kept::new(round, Named::new());
        let mut failures = Failures::default();
        let mut all = BTreeMap::from([(1, kept(1)), (2, kept(1))]);
        failures.keep(&mut all, BTreeMap::from([(1, kept(2)), (2, kept(2)), (3, kept(2))]));
        let job = |client| Job {
            client,
            server: false,
            round: 2,
            exchange: "train",
            brief: crate::fl::Brief::default(),
            model: Params::zeros(Arc::new(layout.clone())),
            kept: None,
            flipped: false,
            key: Key::from_seed(0),
        };
        for client in [1, 3] {
            failures.leave_out(&job(client), diverged("NaN"), 4, &two).unwrap();
        }
        failures.close(&mut all);
        assert_eq!(all.iter().map(|(c, k)| (*c, k.round)).collect::<Vec<_>>(), [(1, 1), (2, 2)]);
    }

    #[test]
    fn the_default_stops_and_says_which_keys_help_and_a_cap_ends_the_round() {
        let e = run("fedavg", &[2], FederatedConfig::default()).err().unwrap().to_string();
        assert!(e.starts_with("round 2, client 2: training diverged") && e.contains("federated.clip_gradient"), "{e}");
        assert!(e.contains("federated.on_failure = \"skip\""), "{e}");
        let e = run("fedavg", &[0, 1, 2], skip()).err().unwrap().to_string();
        assert!(e.contains("3 of 4 clients failed, more than federated.max_failures = 0.5 allows"), "{e}");
        let all = FederatedConfig { max_failures: 1.0, ..skip() };
        assert!(run("fedavg", &[0, 1, 2], all.clone()).is_ok());
        let e = run("fedavg", &[0, 1, 2, 3], all).err().unwrap().to_string();
        assert!(e.contains("all 4 clients of the exchange failed"), "{e}");
    }

    #[test]
    fn nonsense_is_refused_before_the_start() {
        for (key, config) in [
            ("clip_gradient", FederatedConfig { clip_gradient: f32::NAN, ..FederatedConfig::default() }),
            ("clip_gradient", FederatedConfig { clip_gradient: -1.0, ..FederatedConfig::default() }),
            ("max_failures", FederatedConfig { max_failures: 1.5, ..FederatedConfig::default() }),
        ] {
            let e = run("fedavg", &[], config).err().unwrap().to_string();
            assert!(e.contains(key), "{e}");
        }
        let e = run("scaffold", &[], FederatedConfig { clip_gradient: 1.0, ..skip() }).err().unwrap().to_string();
        assert!(e.contains("reads the gradient off plain SGD steps"), "{e}");
    }
}
