//! Stage 2: federated rounds from a start model, with records and checkpoints.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::metrics::Judged;
use super::selection::Selection;
use super::travel::Travel;
use crate::error::{Error, Result};
use crate::exec::{Context, Event};
pub use crate::fl::config::LAST;
use crate::fl::round::{Federation, Finished, Kept, Server};
use crate::fl::way::noise::EPSILON;
use crate::fl::{ClientId, Named, ranks};
use crate::nn::{Layout, Params};
use crate::run::checkpoint::{self, Files};
use crate::run::clients::{Clients, Index};
use crate::run::{Records, RunDir, Times, csv};

/// What a fresh classifier on a pretrained body starts as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HeadInit {
    /// As any fresh layer.
    #[default]
    Random,
    /// A linear probe on the body's features of the server set ([`super::probe::head`]), with pretraining or without:
    /// a random head's first gradients would distort the body (Kumar et al., ICLR 2022, "LP-FT").
    Probe,
    /// The class texts seen through pretraining's projection, on its scale: the zero-shot classifier.
    Text,
}

/// The `finetune` section: where the federated stage starts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FinetuneConfig {
    /// How the classifier starts; `text` needs pretraining, and without one is `random`.
    pub head_init: HeadInit,
    /// What to start from instead: a model's file, or another run's round, `RUN@120` (`RUN` alone: its last), with the
    /// server's state where the algorithm is the same. Tensors it lacks start fresh.
    pub from: String,
    /// τ of the classifier's normalisation when a model is judged, in `[0, 1]`; 0 leaves it
    /// ([`tau_norm`](crate::fl::tau_norm)). Exported models are as trained.
    pub tau_norm: f32,
}

impl FinetuneConfig {
    /// Refuses values out of range.
    pub fn check(&self) -> Result<()> {
        match (0.0..=1.0).contains(&self.tau_norm) {
            true => Ok(()),
            false => Err(Error::input(format!("finetune.tau_norm = {}: choose 0 to 1", self.tau_norm))),
        }
    }
}

/// Where the rounds begin.
pub struct Begin {
    /// The global model.
    pub model: Params,
    /// What another run's server and clients had, where it goes on.
    pub carried: Option<Carried>,
}

/// The state of another run of the same algorithm.
pub struct Carried {
    /// The algorithm's on the server.
    pub state: Named,
    /// What clients kept.
    pub kept: BTreeMap<ClientId, Named>,
}

/// A model's figures on some set.
pub type Evaluate<'a> = &'a dyn Fn(&Params) -> Result<Judged>;

/// What the stage needs besides the federation itself.
pub struct Finetune<'a> {
    /// Where it writes.
    pub dir: &'a RunDir,
    /// The loop.
    pub federation: Federation<'a>,
    /// What the models look like, for reading a finished one back.
    pub layout: &'a Arc<Layout>,
    /// Figures of a model on test.
    pub evaluate: Evaluate<'a>,
    /// Figures of a model on the validation set, where the run has one.
    pub validate: Option<Evaluate<'a>>,
    /// Has the other ranks open the same run and serve it, where there are any.
    pub summon: &'a dyn Fn() -> Result<()>,
}

/// The exported models: of the last round, or of the best by validation.
pub struct Finetuned {
    /// Before alignment.
    pub model: Params,
    /// After a round's alignment, where it runs every round.
    pub aligned: Option<Params>,
    /// After the last round; none where a finished stage was read back and no checkpoint is left.
    pub last: Option<Last>,
    /// What clients kept; empty where a finished stage was read back and no checkpoint is left.
    pub kept: BTreeMap<ClientId, Kept>,
}

/// The server's models after the last round.
pub struct Last {
    /// Its own.
    pub model: Params,
    /// What it deploys, which may differ.
    pub deployed: Params,
}

impl Finetune<'_> {
    /// Runs the rounds that are missing, from `start` where there is no checkpoint; a finished stage is read back.
    pub fn run(&self, start: Option<Begin>, cx: &Context) -> Result<Finetuned> {
        if let Some(tuned) = self.read_back(cx)? {
            return Ok(tuned);
        }
        let mut records = Records::open(&self.dir.file("metrics.jsonl"))?;
        let folder = self.dir.file("checkpoints");
        let clients = Clients::new(self.dir.path());
        let (server, mut last, mut index, best) = match checkpoint::latest_with(&folder, &clients, &*cx.events)? {
            Some((round, mut files, index)) => {
                let best = files.remove(BEST).unwrap_or_default();
                let (mut server, last) = restore(round, files)?;
                server.kept = read_kept(&clients, &index)?;
                (server, Some(last), index, best)
            }
            None => (self.begin(start, cx)?, None, Index::new(), Named::new()),
        };
        // A process killed in the midst of it left more than is kept.
        checkpoint::prune(&folder, &clients, self.federation.config.keep_checkpoints)?;
        records.require("finetune", server.round)?;
        records.cut("finetune", server.round + 1)?;
        records.cut("align", server.round + 1)?;
        let mut selection = Selection::resume(self.federation.config.export, best, &self.dir.file("metrics.jsonl"))?;
        let mut times = Times::open(self.dir.path(), "finetune", server.round + 1)?;
        (self.summon)()?;
        let (mut began, mut travel) = (Instant::now(), Travel::default());
        let rounds = self.federation.config.rounds as u64;
        cx.events.on(Event::Begin { name: "finetune", unit: "round", done: server.round as u64, total: rounds });
        let model = server.model.clone();
        let mut server = self.federation.run(server, cx, &mut |finished| {
            let trained = began.elapsed().as_secs_f64();
            self.record(&finished, &mut records, &mut selection, cx)?;
            let (round, config) = (finished.server.round, self.federation.config);
            let judged = began.elapsed().as_secs_f64() - trained;
            let mut figures = vec![("seconds", trained), ("evaluation", judged)];
            figures.extend(travel.of_round(trained, cx));
            times.add("finetune", round, &figures)?;
            last = Some((finished.deployed.clone(), finished.aligned.cloned()));
            if round % config.checkpoint_every == 0 || finished.last {
                records.seal()?;
                write_kept(&clients, &finished.server.kept, &mut index, cx)?;
                let kept = (&clients, index.clone());
                checkpoint::save_with(&folder, round, &files(&finished, &selection), kept, config.keep_checkpoints)?;
                csv::write(self.dir.path())?;
            }
            began = Instant::now();
            Ok(())
        })?;
        records.seal()?;
        ranks::gather(&mut server.kept, cx)?;
        ranks::end(cx)?;
        cx.events.on(Event::End);
        travel.say(cx);
        let last = match last {
            Some(models) => models,
            None => self.without_rounds(model, server.round, cx)?,
        };
        self.export(server, last, &selection)
    }

    /// The server before the first round; a carried state that is not the algorithm's in this network stays behind.
    fn begin(&self, start: Option<Begin>, cx: &Context) -> Result<Server> {
        let gone = || Error::data(format!("{}: its checkpoints are gone", self.dir.path().display()));
        let start = start.ok_or_else(gone)?;
        let mut server = self.federation.start(start.model, cx)?;
        let Some(Carried { state, kept }) = start.carried else { return Ok(server) };
        let fits = |(name, own): (&String, &Params)| state.get(name).is_some_and(|s| s.layout() == own.layout());
        if state.len() != server.state.len() || !server.state.iter().all(fits) {
            cx.events
                .on(Event::Warning("finetune.from: the server's state there is of another network: it begins anew"));
            return Ok(server);
        }
        server.state = state;
        server.kept = kept.into_iter().map(|(c, named)| (c, Kept::new(0, named))).collect();
        Ok(server)
    }

    /// A finished stage's models; none where it is not finished.
    fn read_back(&self, cx: &Context) -> Result<Option<Finetuned>> {
        let layout = self.layout;
        let Some((model, _)) = self.dir.finished("finetune", layout)? else { return Ok(None) };
        let aligned = match self.federation.align {
            Some(_) => self.dir.finished("align", layout)?.map(|(params, _)| params),
            None => None,
        };
        if self.federation.align.is_some() && aligned.is_none() {
            return Ok(None);
        }
        let clients = Clients::new(self.dir.path());
        let (last, kept) = match checkpoint::latest_with(&self.dir.file("checkpoints"), &clients, &*cx.events)? {
            Some((round, files, index)) => {
                let (server, (deployed, _)) = restore(round, files)?;
                (Some(Last { model: server.model, deployed }), read_kept(&clients, &index)?)
            }
            None => (None, BTreeMap::new()),
        };
        Ok(Some(Finetuned { model, aligned, last, kept }))
    }

    /// Writes the stage's models: those of the last round, or of the best.
    fn export(&self, server: Server, last: Models, selection: &Selection) -> Result<Finetuned> {
        let (rounds, (deployed, aligned)) = (server.round, last);
        let (model, round) = selection.choose("finetune", deployed.clone(), rounds);
        self.dir.finish("finetune", &model, json!({ "rounds": rounds, "exported": round }))?;
        let aligned = aligned.map(|last| selection.choose("align", last, rounds));
        if let Some((aligned, round)) = &aligned {
            let facts = json!({ "rounds": rounds, "exported": round, "when": "every-round" });
            self.dir.finish("align", aligned, facts)?;
        }
        let (aligned, last) = (aligned.map(|(model, _)| model), Last { model: server.model, deployed });
        Ok(Finetuned { model, aligned, last: Some(last), kept: server.kept })
    }

    /// Zero rounds: the start model is the result, aligned once where alignment is on ("server only").
    fn without_rounds(&self, model: Params, round: usize, cx: &Context) -> Result<Models> {
        let aligned = self.federation.align.map(|step| step.apply(&model, round, cx)).transpose()?;
        Ok((model, aligned))
    }

    fn record(
        &self,
        finished: &Finished<'_>,
        records: &mut Records,
        selection: &mut Selection,
        cx: &Context,
    ) -> Result<()> {
        let (round, config) = (finished.server.round, self.federation.config);
        let tally = &finished.tally;
        let mut train = vec![
            ("loss", tally.loss()),
            ("bytes_down", tally.bytes_down as f64),
            ("bytes_up", tally.bytes_up as f64),
            ("multiply_adds", tally.multiply_adds as f64),
            ("server_multiply_adds", tally.server_multiply_adds as f64),
        ];
        train.extend_from_slice(finished.way);
        records.add("finetune", round, "train", &train)?;
        for failure in finished.failed {
            let record = json!({ "stage": "finetune", "round": round, "split": FAILED, "client": failure.client,
                "why": failure.why });
            records.append(&record)?;
        }
        let mut shown = vec![("loss", tally.loss())];
        shown.extend(finished.way.iter().filter(|f| f.0 == EPSILON));
        let models = [("finetune", "accuracy", Some(finished.deployed)), ("align", "aligned", finished.aligned)];
        for (stage, name, model) in models {
            let Some(model) = model.filter(|_| config.judged(round) || finished.last) else { continue };
            let figures = (self.evaluate)(model)?;
            records.add(stage, round, "test", &figures.figures)?;
            shown.push((name, figures.headline));
            if let Some(validate) = self.validate {
                let figures = validate(model)?;
                records.add(stage, round, "validation", &figures.figures)?;
                selection.offer(stage, round, figures.headline, model);
            }
        }
        cx.events.on(Event::Advance { done: round as u64, figures: &shown });
        Ok(())
    }
}

/// The split of the records of clients that were left out of a round.
pub const FAILED: &str = "failed";

/// The checkpoint's file of the best models so far.
const BEST: &str = "best";

/// The checkpoint's file of what the way of updates carries from round to round.
const WAY: &str = "way";

fn files(finished: &Finished<'_>, selection: &Selection) -> Files {
    let server = finished.server;
    let mut model =
        Named::from([("model".to_string(), server.model.clone()), ("deployed".to_string(), finished.deployed.clone())]);
    if let Some(aligned) = finished.aligned {
        model.insert("aligned".to_string(), aligned.clone());
    }
    let mut files = Files::from([("model".to_string(), model), ("server".to_string(), server.state.clone())]);
    if !server.way.is_empty() {
        files.insert(WAY.to_string(), server.way.clone());
    }
    let best = selection.models();
    if !best.is_empty() {
        files.insert(BEST.to_string(), best);
    }
    files
}

/// Writes what clients kept since the files in `index`.
fn write_kept(clients: &Clients, kept: &BTreeMap<ClientId, Kept>, index: &mut Index, cx: &Context) -> Result<()> {
    let changed = |(client, kept): &(&ClientId, &Kept)| index.get(client).is_none_or(|e| e.round != kept.round);
    let which = kept.iter().filter(changed).map(|(client, _)| *client).collect();
    ranks::fetch(kept, which, cx, &mut |client, Kept { round, named, .. }| {
        index.insert(client, clients.write(client, round, &named)?);
        Ok(())
    })
}

fn read_kept(clients: &Clients, index: &Index) -> Result<BTreeMap<ClientId, Kept>> {
    let read = |(&client, entry): (&ClientId, &crate::run::clients::Entry)| {
        Ok((client, Kept::new(entry.round, clients.read(client, entry)?)))
    };
    index.iter().map(read).collect()
}

/// A round's deployed model, and what alignment made of it.
type Models = (Params, Option<Params>);

fn restore(round: usize, mut files: Files) -> Result<(Server, Models)> {
    let broken = |what: &str| Error::data(format!("checkpoint of round {round}: no {what}"));
    let mut take = |stem: &str| files.remove(stem).ok_or_else(|| broken(stem));
    let (mut models, state) = (take("model")?, take("server")?);
    if files.get("clients").is_some_and(|kept| !kept.is_empty()) {
        return Err(Error::data(format!("checkpoint of round {round} keeps all clients in one file"))
            .hint("an earlier version of fedllava wrote it: finish the run with that one, or begin it anew"));
    }
    let model = models.remove("model").ok_or_else(|| broken("model"))?;
    let deployed = models.remove("deployed").ok_or_else(|| broken("deployed model"))?;
    let way = files.remove(WAY).unwrap_or_default();
    let server = Server { round, model, state, way, kept: BTreeMap::new() };
    Ok((server, (deployed, models.remove("aligned"))))
}
