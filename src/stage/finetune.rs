//! Stage 2: federated rounds from a start model, with records and checkpoints.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::metrics::Evaluation;
use crate::error::{Error, Result};
use crate::exec::{Context, Event};
pub use crate::fl::config::LAST;
use crate::fl::round::{Federation, Finished, Kept, Server};
use crate::fl::{ClientId, Named};
use crate::nn::{Net, Params};
use crate::run::checkpoint::{self, Files};
use crate::run::clients::{Clients, Index};
use crate::run::{Records, RunDir};

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
    /// A safetensors file to start from instead; tensors it lacks start fresh.
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

/// What the stage needs besides the federation itself.
pub struct Finetune<'a> {
    /// Where it writes.
    pub dir: &'a RunDir,
    /// The loop.
    pub federation: Federation<'a>,
    /// The network, for reading a finished model back.
    pub net: &'a Arc<Net>,
    /// Figures of a model on test.
    pub evaluate: &'a dyn Fn(&Params) -> Result<Evaluation>,
}

/// The models after the last round.
pub struct Finetuned {
    /// Before alignment.
    pub model: Params,
    /// After the last round's alignment, where it runs every round.
    pub aligned: Option<Params>,
    /// The server's own model, from which the deployed one may differ; none where a finished stage was read back and no
    /// checkpoint is left.
    pub global: Option<Params>,
    /// What clients kept; empty where a finished stage was read back and no checkpoint is left.
    pub kept: BTreeMap<ClientId, Kept>,
}

impl Finetune<'_> {
    /// Runs the rounds that are missing; a finished stage is read back.
    pub fn run(&self, start: Params, cx: &Context) -> Result<Finetuned> {
        let layout = &self.net.layout;
        if let Some((model, _)) = self.dir.finished("finetune", layout)? {
            let aligned = match self.federation.align {
                Some(_) => self.dir.finished("align", layout)?.map(|(params, _)| params),
                None => None,
            };
            if self.federation.align.is_none() || aligned.is_some() {
                let clients = Clients::new(self.dir.path());
                let (global, kept) = match checkpoint::latest_with(&self.dir.file("checkpoints"))? {
                    Some((round, files, index)) => (Some(restore(round, files)?.0.model), read_kept(&clients, &index)?),
                    None => (None, BTreeMap::new()),
                };
                return Ok(Finetuned { model, aligned, global, kept });
            }
        }
        let mut records = Records::open(&self.dir.file("metrics.jsonl"))?;
        let folder = self.dir.file("checkpoints");
        let clients = Clients::new(self.dir.path());
        let (server, mut last, mut index) = match checkpoint::latest_with(&folder)? {
            Some((round, files, index)) => {
                let (mut server, last) = restore(round, files)?;
                server.kept = read_kept(&clients, &index)?;
                (server, last, index)
            }
            None => (self.federation.start(start, cx)?, None, Index::new()),
        };
        records.cut("finetune", server.round + 1)?;
        records.cut("align", server.round + 1)?;
        let mut times = Records::open(&self.dir.file("times.jsonl"))?;
        times.cut("finetune", server.round + 1)?;
        let mut began = Instant::now();
        let rounds = self.federation.config.rounds as u64;
        cx.events.on(Event::Begin { name: "finetune", unit: "round", done: server.round as u64, total: rounds });
        let model = server.model.clone();
        let server = self.federation.run(server, cx, &mut |finished| {
            let trained = began.elapsed().as_secs_f64();
            self.record(&finished, &mut records, cx)?;
            let (round, config) = (finished.server.round, self.federation.config);
            let judged = began.elapsed().as_secs_f64() - trained;
            times.add("finetune", round, "time", &[("seconds", trained), ("evaluation", judged)])?;
            last = Some((finished.deployed.clone(), finished.aligned.cloned()));
            if round % config.checkpoint_every == 0 || round == config.rounds {
                write_kept(&clients, &finished.server.kept, &mut index)?;
                let kept = (&clients, index.clone());
                checkpoint::save_with(&folder, round, &files(&finished), kept, config.keep_checkpoints)?;
            }
            began = Instant::now();
            Ok(())
        })?;
        cx.events.on(Event::End);
        let (model, aligned) = match last {
            Some(models) => models,
            None => self.without_rounds(model, server.round, cx)?,
        };
        self.dir.finish("finetune", &model, json!({ "rounds": server.round }))?;
        if let Some(aligned) = &aligned {
            self.dir.finish("align", aligned, json!({ "rounds": server.round, "when": "every-round" }))?;
        }
        Ok(Finetuned { model, aligned, global: Some(server.model), kept: server.kept })
    }

    /// Zero rounds: the start model is the result, aligned once where alignment is on ("server only").
    fn without_rounds(&self, model: Params, round: usize, cx: &Context) -> Result<(Params, Option<Params>)> {
        let aligned = self.federation.align.map(|step| step.apply(&model, round, cx)).transpose()?;
        Ok((model, aligned))
    }

    fn record(&self, finished: &Finished<'_>, records: &mut Records, cx: &Context) -> Result<()> {
        let (round, config) = (finished.server.round, self.federation.config);
        let tally = &finished.tally;
        let train = [
            ("loss", tally.loss()),
            ("bytes_down", tally.bytes_down as f64),
            ("bytes_up", tally.bytes_up as f64),
            ("multiply_adds", tally.multiply_adds as f64),
            ("server_multiply_adds", tally.server_multiply_adds as f64),
        ];
        records.add("finetune", round, "train", &train)?;
        let mut shown = vec![("loss", tally.loss())];
        if config.judged(round) {
            let before = (self.evaluate)(finished.deployed)?;
            records.add("finetune", round, "test", &before.figures())?;
            shown.push(("accuracy", before.overall));
            if let Some(aligned) = finished.aligned {
                let after = (self.evaluate)(aligned)?;
                records.add("align", round, "test", &after.figures())?;
                shown.push(("aligned", after.overall));
            }
        }
        cx.events.on(Event::Advance { done: round as u64, figures: &shown });
        Ok(())
    }
}

fn files(finished: &Finished<'_>) -> Files {
    let server = finished.server;
    let mut model =
        Named::from([("model".to_string(), server.model.clone()), ("deployed".to_string(), finished.deployed.clone())]);
    if let Some(aligned) = finished.aligned {
        model.insert("aligned".to_string(), aligned.clone());
    }
    Files::from([("model".to_string(), model), ("server".to_string(), server.state.clone())])
}

/// Writes what clients kept since the files in `index`.
fn write_kept(clients: &Clients, kept: &BTreeMap<ClientId, Kept>, index: &mut Index) -> Result<()> {
    for (&client, Kept { round, named }) in kept {
        if index.get(&client).is_none_or(|entry| entry.round != *round) {
            index.insert(client, clients.write(client, *round, named)?);
        }
    }
    Ok(())
}

fn read_kept(clients: &Clients, index: &Index) -> Result<BTreeMap<ClientId, Kept>> {
    let read = |(&client, entry): (&ClientId, &crate::run::clients::Entry)| {
        Ok((client, Kept { round: entry.round, named: Arc::new(clients.read(client, entry)?) }))
    };
    index.iter().map(read).collect()
}

type Restored = (Server, Option<(Params, Option<Params>)>);

fn restore(round: usize, mut files: Files) -> Result<Restored> {
    let broken = |what: &str| Error::data(format!("checkpoint of round {round}: no {what}"));
    let mut take = |stem: &str| files.remove(stem).ok_or_else(|| broken(stem));
    let (mut models, state) = (take("model")?, take("server")?);
    if files.get("clients").is_some_and(|kept| !kept.is_empty()) {
        return Err(Error::data(format!("checkpoint of round {round} keeps all clients in one file"))
            .hint("an earlier version of fedllava wrote it: finish the run with that one, or begin it anew"));
    }
    let model = models.remove("model").ok_or_else(|| broken("model"))?;
    let deployed = models.remove("deployed").ok_or_else(|| broken("deployed model"))?;
    let server = Server { round, model, state, kept: BTreeMap::new() };
    Ok((server, Some((deployed, models.remove("aligned")))))
}
