//! The round loop: it owns the model, and exists once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::brief::{Brief, Job};
use super::{Algorithm, ClientId, Collected, Exchange, FederatedConfig, Local, Named, Trainer, Who};
use crate::error::{Error, Place, Result};
use crate::exec::Context;
use crate::key::{Key, Purpose};
use crate::nn::Params;

/// Everything the server holds between two rounds; what a checkpoint holds.
#[derive(Clone, Debug)]
pub struct Server {
    /// Rounds done.
    pub round: usize,
    /// The global model.
    pub model: Params,
    /// The algorithm's state.
    pub state: Named,
    /// What clients kept, by client.
    pub kept: BTreeMap<ClientId, Arc<Named>>,
}

/// A change of the global model on the server after the algorithm's own step: alignment.
pub trait ServerStep: Sync {
    /// The changed model.
    fn apply(&self, model: &Params, round: usize, cx: &Context) -> Result<Params>;
}

/// What a finished round tells.
pub struct Finished<'a> {
    /// The server after the round.
    pub server: &'a Server,
    /// The model to evaluate, before alignment where alignment follows.
    pub deployed: &'a Params,
    /// The aligned model, where alignment ran.
    pub aligned: Option<&'a Params>,
    /// Who took part.
    pub cohort: &'a [ClientId],
    /// Mean training loss over the cohort's samples.
    pub loss: f64,
    /// Bytes sent to clients.
    pub bytes_down: u64,
    /// Bytes sent by clients.
    pub bytes_up: u64,
}

/// A federation ready to run.
pub struct Federation<'a> {
    /// What to do.
    pub algorithm: &'a dyn Algorithm,
    /// Who does it.
    pub trainer: &'a dyn Trainer,
    /// The `federated` section.
    pub config: &'a FederatedConfig,
    /// Clients in the federation.
    pub clients: usize,
    /// Cohort of a round, from 1.
    pub cohort: &'a (dyn Fn(usize) -> Result<Vec<ClientId>> + Sync),
    /// Alignment in every round.
    pub align: Option<&'a dyn ServerStep>,
    /// Whether the next round starts from the aligned model.
    pub feedback: bool,
    /// Randomness of the federation.
    pub key: Key,
}

impl Federation<'_> {
    /// The server before the first round.
    pub fn start(&self, model: Params) -> Result<Server> {
        if model.layout() != self.trainer.layout() {
            return Err(Error::defect("federation: the start model is not the trainer's network"));
        }
        self.config.check(self.clients, self.algorithm)?;
        let state = self.algorithm.init(&model)?;
        Ok(Server { round: 0, model, state, kept: BTreeMap::new() })
    }

    /// Runs the rounds that `server` has not done. A failed or stopped round leaves the previous one whole.
    pub fn run(
        &self,
        mut server: Server,
        cx: &Context,
        finished: &mut dyn FnMut(Finished<'_>) -> Result<()>,
    ) -> Result<Server> {
        while server.round < self.config.rounds {
            server = self.round(server, cx, finished)?;
        }
        Ok(server)
    }

    fn round(
        &self,
        server: Server,
        cx: &Context,
        finished: &mut dyn FnMut(Finished<'_>) -> Result<()>,
    ) -> Result<Server> {
        let round = server.round + 1;
        // 1. Who takes part.
        let cohort = (self.cohort)(round)?;
        let local = Local { config: self.config, round, clients: self.clients };
        let mut next = Server { round, ..server };
        let (mut loss, mut bytes) = ((0.0, 0.0), (0, 0));
        for exchange in self.algorithm.exchanges(round) {
            // 2. Briefs, 3. local work, 4. adding up.
            let everyone: Vec<ClientId>;
            let who = match exchange.who {
                Who::Cohort => cohort.as_slice(),
                Who::All => {
                    everyone = (0..self.clients as ClientId).collect();
                    &everyone
                }
            };
            let jobs = self.jobs(&next, &exchange, &local, who)?;
            bytes.0 += jobs.iter().map(|job| job.brief.bytes_down(&job.model)).sum::<u64>();
            let (got, kept) = self.exchange(&jobs, &exchange, cx)?;
            // 5. The server's step.
            let step = self.algorithm.server(&next.model, &next.state, &exchange, &got, &local);
            (next.model, next.state) = step.at(|| format!("round {round}, server, exchange {}", exchange.name))?;
            next.kept.extend(kept);
            loss = (loss.0 + got.loss.0, loss.1 + got.loss.1);
            bytes.1 += got.bytes_up;
        }
        // 6. Alignment.
        let deployed = self.algorithm.deploy(&next.model, &next.state).into_owned();
        let aligned = self.align.map(|step| step.apply(&deployed, round, cx)).transpose();
        let aligned = aligned.at(|| format!("round {round}, alignment"))?;
        if let (true, Some(aligned)) = (self.feedback, &aligned) {
            next.model = aligned.clone();
        }
        // 7. Evaluate, record, checkpoint.
        finished(Finished {
            server: &next,
            deployed: &deployed,
            aligned: aligned.as_ref(),
            cohort: &cohort,
            loss: loss.0 / f64::max(loss.1, 1.0),
            bytes_down: bytes.0,
            bytes_up: bytes.1,
        })?;
        Ok(next)
    }

    fn jobs(&self, server: &Server, exchange: &Exchange, local: &Local<'_>, who: &[ClientId]) -> Result<Vec<Job>> {
        let round_key = self.key.fold(Purpose::Round, server.round as u64);
        let job = |&client: &ClientId| -> Result<Job> {
            let brief: Brief = self.algorithm.brief(&server.model, &server.state, exchange, local, client)?;
            Ok(Job {
                client,
                round: server.round,
                brief,
                model: server.model.clone(),
                kept: server.kept.get(&client).cloned(),
                key: round_key.fold(Purpose::Client, u64::from(client)),
            })
        };
        who.iter().map(job).collect()
    }

    #[allow(clippy::type_complexity, reason = "the two results of an exchange")]
    fn exchange(
        &self,
        jobs: &[Job],
        exchange: &Exchange,
        cx: &Context,
    ) -> Result<(Collected, BTreeMap<ClientId, Arc<Named>>)> {
        let (mut got, mut kept) = (Collected::default(), BTreeMap::new());
        let reply = |job: &Job, outcome| self.algorithm.reply(job, outcome);
        self.trainer.run(jobs, cx, &reply, &mut |i, (reply, keep)| {
            if let Some(keep) = keep {
                kept.insert(jobs[i].client, Arc::new(keep));
            }
            got.fold(jobs[i].client, reply, exchange.collect)
        })?;
        got.close();
        Ok((got, kept))
    }
}
