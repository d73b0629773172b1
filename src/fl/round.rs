//! The round loop: it owns the model, and exists once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::brief::{Brief, Job};
use super::failure::{Failure, Failures, refuse_not_finite};
use super::intake::Intake;
use super::ranks;
use super::trainer::Returned;
use super::way::{Figure, Way};
use super::{Algorithm, ClientId, Collected, Exchange, FederatedConfig, Named, Needs, Now, Supplies, Trainer, Who};
use crate::error::{Error, Place, Result};
use crate::exec::{Context, Event};
use crate::key::{Key, Purpose};
use crate::nn::{Classifier, Params};

/// What a client kept, and since when.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The round that changed it last.
    pub round: usize,
    /// The vectors; none where they lie on another rank.
    pub named: Arc<Named>,
    /// The [rank](super::ranks) where they lie.
    pub rank: usize,
}

impl Kept {
    /// What a client keeps since a round, here.
    pub fn new(round: usize, named: Named) -> Self {
        Kept { round, named: Arc::new(named), rank: 0 }
    }

    /// What lies on another rank.
    pub(super) fn elsewhere(round: usize, rank: usize) -> Self {
        Kept { round, named: Arc::default(), rank }
    }
}

/// Everything the server holds between two rounds; what a checkpoint holds.
#[derive(Clone, Debug)]
pub struct Server {
    /// Rounds done.
    pub round: usize,
    /// The global model.
    pub model: Params,
    /// The algorithm's state.
    pub state: Named,
    /// What the way of updates carries from round to round.
    pub way: Named,
    /// What clients kept, by client.
    pub kept: BTreeMap<ClientId, Kept>,
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
    /// Who of them failed and was left out.
    pub failed: &'a [Failure],
    /// What the round cost.
    pub tally: Tally,
    /// What the way of updates tells.
    pub way: &'a [Figure],
    /// Whether no round follows.
    pub last: bool,
}

/// What a round cost, added up over its exchanges.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Mean training loss weighted by samples: numerator and denominator.
    loss: (f64, f64),
    /// Bytes sent to clients.
    pub bytes_down: u64,
    /// Bytes sent by clients.
    pub bytes_up: u64,
    /// Multiply-adds of all clients.
    pub multiply_adds: u64,
    /// Multiply-adds of the server's own jobs.
    pub server_multiply_adds: u64,
}

impl Tally {
    /// Mean training loss over the cohort's samples; NaN where nobody trained.
    pub fn loss(&self) -> f64 {
        if self.loss.1 > 0.0 { self.loss.0 / self.loss.1 } else { f64::NAN }
    }

    fn add(&mut self, got: &Collected, server: bool) {
        if server {
            self.server_multiply_adds += got.multiply_adds;
            return;
        }
        self.loss = (self.loss.0 + got.loss.0, self.loss.1 + got.loss.1);
        self.bytes_down += got.bytes_down;
        self.bytes_up += got.bytes_up;
        self.multiply_adds += got.multiply_adds;
    }
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
    pub fn start(&self, model: Params, cx: &Context) -> Result<Server> {
        if model.layout() != self.trainer.layout() {
            return Err(Error::defect("federation: the start model is not the trainer's network"));
        }
        self.config.check(self.clients, self.algorithm)?;
        let classifier = self.trainer.classifier();
        provided(self.algorithm.needs(), self.trainer.supplies(), classifier.as_ref())?;
        let state = self.algorithm.init(&model, &self.now(0, classifier.as_ref(), &[], cx))?;
        self.accepted(&model, &state, classifier.as_ref(), cx)?;
        let way = self.way(0, Named::new());
        way.accepts(model.layout(), &self.algorithm.exchanges(&state, &self.now(1, classifier.as_ref(), &[], cx)))?;
        Ok(Server { round: 0, model, state, way: way.init()?, kept: BTreeMap::new() })
    }

    /// Refuses a method whose first brief the trainer cannot do.
    fn accepted(&self, model: &Params, state: &Named, classifier: Option<&Classifier>, cx: &Context) -> Result<()> {
        let now = self.now(1, classifier, &[], cx);
        let first = self.algorithm.exchanges(state, &now).into_iter().next();
        let Some(exchange) = first.filter(|_| self.config.rounds > 0) else { return Ok(()) };
        self.trainer.accepts(&self.algorithm.brief(model, state, &exchange, &now, 0)?)
    }

    /// Runs the rounds that `server` has not done. A failed or stopped round leaves the previous one whole.
    pub fn run(
        &self,
        mut server: Server,
        cx: &Context,
        finished: &mut dyn FnMut(Finished<'_>) -> Result<()>,
    ) -> Result<Server> {
        while server.round < self.config.rounds {
            if let Some(why) = self.way(server.round, server.way.clone()).spent()? {
                cx.events.on(Event::Note(&format!("the rounds end after {}: {why}", server.round)));
                break;
            }
            server = self.round(server, cx, finished)?;
        }
        Ok(server)
    }

    /// The way of updates in a round.
    pub(super) fn way(&self, round: usize, state: Named) -> Way<'_> {
        Way::new(self.config, self.clients, self.key, round, state)
    }

    /// What the algorithm knows in a round, from 1.
    pub fn now<'n>(
        &'n self,
        round: usize,
        classifier: Option<&'n Classifier>,
        got: &'n [Collected],
        cx: &'n Context,
    ) -> Now<'n> {
        let key = self.key.fold(Purpose::Round, round as u64).fold(Purpose::Server, 0);
        let (judged, supplies) = (self.config.judged(round), self.trainer.supplies());
        Now { config: self.config, round, clients: self.clients, judged, classifier, supplies, key, got, cx }
    }

    fn round(
        &self,
        server: Server,
        cx: &Context,
        finished: &mut dyn FnMut(Finished<'_>) -> Result<()>,
    ) -> Result<Server> {
        let (round, classifier) = (server.round + 1, self.trainer.classifier());
        // 1. Who takes part.
        let cohort = (self.cohort)(round)?;
        let mut next = Server { round, ..server };
        let mut way = self.way(round, std::mem::take(&mut next.way));
        let (mut tally, mut failures) = (Tally::default(), Failures::default());
        let exchanges = self.algorithm.exchanges(&next.state, &self.now(round, classifier.as_ref(), &[], cx));
        // For the person's bar every exchange and the alignment are equal parts of a round.
        let part = 1.0 / (exchanges.len() + usize::from(self.align.is_some())) as f64;
        // 2. to 5., once an exchange.
        let all = self.exchanges(&mut next, &exchanges, &cohort, &mut way, &mut failures, &mut tally, (part, cx))?;
        let figures = way.figures(failures.lost.len())?;
        ranks::close(&failures, cx)?;
        let failed = failures.close(&mut next.kept);
        failed.iter().for_each(|f| cx.events.on(Event::Warning(&format!("left out: {}", f.why))));
        let last = round == self.config.rounds || way.spent()?.is_some();
        next.way = way.state;
        // 6. What is judged, and alignment: of the model where it returns, else of what is judged.
        let now = self.now(round, classifier.as_ref(), &all, cx);
        let deploy = |model: &Params, state: &Named| -> Result<Params> {
            let deployed = self.algorithm.deploy(model, state, &now);
            Ok(deployed.at(|| format!("round {round}, deployment"))?.into_owned())
        };
        let deployed = deploy(&next.model, &next.state)?;
        let place = || format!("round {round}, alignment");
        let aligned = match (self.align, self.feedback) {
            (None, _) => None,
            (Some(step), false) => Some(step.apply(&deployed, round, &cx.part(part)).at(place)?),
            (Some(step), true) => {
                next.model = step.apply(&next.model, round, &cx.part(part)).at(place)?;
                Some(deploy(&next.model, &next.state)?)
            }
        };
        // 7. Evaluate, record, checkpoint.
        let (server, deployed, aligned) = (&next, &deployed, aligned.as_ref());
        let (cohort, failed, way) = (&cohort[..], &failed[..], &figures[..]);
        finished(Finished { server, deployed, aligned, cohort, failed, tally, way, last })?;
        Ok(next)
    }

    /// Does a round's exchanges; the model, the state and what clients keep move on. Where an exchange comes to nothing on
    /// its way, the round leaves them as they were.
    #[allow(clippy::too_many_arguments, reason = "what a round has on its desk")]
    fn exchanges(
        &self,
        next: &mut Server,
        exchanges: &[Exchange],
        cohort: &[ClientId],
        way: &mut Way<'_>,
        failures: &mut Failures,
        tally: &mut Tally,
        (part, cx): (f64, &Context),
    ) -> Result<Vec<Collected>> {
        let (round, classifier, before) =
            (next.round, self.trainer.classifier(), (next.model.clone(), next.state.clone()));
        let mut all = Vec::new();
        for (number, exchange) in exchanges.iter().enumerate() {
            let now = self.now(round, classifier.as_ref(), &all, cx);
            // 2. Briefs, 3. local work, 4. the way, adding up.
            let mut who = self.parties(exchange.who, cohort);
            if !matches!(exchange.who, Who::Server { .. }) {
                who.retain(|&client| !failures.out(client));
            }
            let asked = who.clone();
            way.begin(exchange, number, &mut who).into_iter().for_each(|client| failures.lose(client));
            let spread = ranks::Spread::new(exchange, &who, failures, cx);
            spread.begin(next, number, asked, &all, way, failures)?;
            let jobs = self.jobs(next, exchange, number, &now, spread.own(), way)?;
            let cx = &cx.part(part / jobs.len().max(1) as f64);
            let (mut got, mut kept) = self.exchange(&jobs, spread.parties, exchange, way, failures, cx)?;
            spread.gather(round, &mut got, &mut kept, failures, self.config)?;
            tally.add(&got, matches!(exchange.who, Who::Server { .. }));
            if let Some(why) = way.arrive(&mut got)? {
                cx.events.on(Event::Warning(&format!("round {round} comes to nothing: {why}")));
                failures.lose_all();
                (next.model, next.state) = before;
                break;
            }
            // 5. The server's step.
            let step = self.algorithm.server(&next.model, &next.state, exchange, &got, &now);
            (next.model, next.state) = step.at(|| format!("round {round}, server, exchange {}", exchange.name))?;
            failures.keep(&mut next.kept, kept);
            all.push(got);
        }
        Ok(all)
    }

    /// Who works in an exchange: clients, or the server's jobs by number.
    fn parties(&self, who: Who, cohort: &[ClientId]) -> Vec<ClientId> {
        match who {
            Who::Cohort => cohort.to_vec(),
            Who::All => (0..self.clients as ClientId).collect(),
            Who::Server { jobs } => (0..jobs as ClientId).collect(),
        }
    }

    /// The jobs of these clients, or of the server's by number.
    pub(super) fn jobs(
        &self,
        server: &Server,
        exchange: &Exchange,
        number: usize,
        now: &Now<'_>,
        who: &[ClientId],
        way: &Way<'_>,
    ) -> Result<Vec<Job>> {
        let mut key = self.key.fold(Purpose::Round, server.round as u64);
        if number > 0 {
            key = key.fold(Purpose::Exchange, number as u64);
        }
        let own = matches!(exchange.who, Who::Server { .. });
        let job = |&client: &ClientId| -> Result<Job> {
            let brief: Brief = self.algorithm.brief(&server.model, &server.state, exchange, now, client)?;
            Ok(Job {
                client,
                server: own,
                round: server.round,
                exchange: exchange.name,
                brief,
                model: server.model.clone(),
                kept: server.kept.get(&client).filter(|_| !own).map(|k| k.named.clone()),
                flipped: !own && way.flips(client),
                key: key.fold(if own { Purpose::Server } else { Purpose::Client }, u64::from(client)),
            })
        };
        who.iter().map(job).collect()
    }

    /// Does jobs on this rank, and adds up what they give.
    fn exchange(
        &self,
        jobs: &[Job],
        parties: usize,
        exchange: &Exchange,
        way: &Way<'_>,
        failures: &mut Failures,
        cx: &Context,
    ) -> Result<(Collected, BTreeMap<ClientId, Kept>)> {
        let mut intake = Intake::new(jobs, parties, exchange, way, self.config);
        self.work(jobs, way, cx, &mut |i, returned| intake.take(i, returned, failures).map(drop))?;
        let mut got = intake.leaf.got;
        got.bytes_down = jobs.iter().map(|job| job.brief.bytes_down(&job.model)).sum();
        Ok((got, intake.kept))
    }

    /// Does jobs; `take` receives in their order what each sends and keeps, or why it failed by itself.
    pub(super) fn work(
        &self,
        jobs: &[Job],
        way: &Way<'_>,
        cx: &Context,
        take: &mut (dyn FnMut(usize, Result<Returned>) -> Result<()> + Send),
    ) -> Result<()> {
        let reply = |job: &Job, outcome| {
            let returned = self.algorithm.reply(job, outcome)?;
            refuse_not_finite(&returned)?;
            way.leave(job, returned)
        };
        if jobs.is_empty() {
            return Ok(());
        }
        let done = self.trainer.run(jobs, cx, &reply, &mut |i, returned| match cx.ranks.heard() {
            Some(e) => Err(e),
            None => take(i, returned),
        });
        // What another rank has said is why this one stops.
        done.map_err(|e| cx.ranks.heard().unwrap_or(e))
    }
}

/// Refuses an algorithm that needs what the run does not have, with what to set.
fn provided(needs: Needs, supplies: &Supplies<'_>, classifier: Option<&Classifier>) -> Result<()> {
    let teacher = supplies.columns.contains_key(Supplies::TEACHER);
    let lacking = [
        (needs.server_set && supplies.server.is_none(), "a labelled set of the server", "set server_set.per_class"),
        (
            needs.unlabelled && supplies.unlabelled.is_none(),
            "the server's images without labels",
            "name some in the section unlabelled",
        ),
        (needs.teacher && !teacher, "a teacher's logits of the clients' images", "name one in the section teacher"),
        (
            needs.texts && supplies.texts.is_none(),
            "text features of the class names",
            "name a CLIP in the section clip",
        ),
        (
            needs.classifier && classifier.is_none(),
            "a network that ends in a linear classifier",
            "choose another model",
        ),
    ];
    match lacking.iter().find(|(lacks, ..)| *lacks) {
        Some((_, what, hint)) => {
            Err(Error::input(format!("algorithm.kind: this method needs {what}, and the run has none")).hint(*hint))
        }
        None => Ok(()),
    }
}
