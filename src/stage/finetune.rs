//! Stage 2: federated rounds from a start model, with records and checkpoints.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::metrics::Evaluation;
use crate::error::{Error, Result};
use crate::exec::{Context, Event};
use crate::fl::round::{Federation, Finished, Server};
use crate::fl::{ClientId, Named};
use crate::nn::{Net, Params};
use crate::run::checkpoint::{self, Files};
use crate::run::{Records, RunDir};

/// The last rounds whose mean is the headline number.
pub const LAST: usize = 10;

/// What a fresh classifier on a pretrained body starts as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FinetuneConfig {
    /// How the classifier starts; `text` needs pretraining, and without one is `random`.
    pub head_init: HeadInit,
    /// A safetensors file to start from instead; tensors it lacks start fresh.
    pub from: String,
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
                return Ok(Finetuned { model, aligned });
            }
        }
        let mut records = Records::open(&self.dir.file("metrics.jsonl"))?;
        let folder = self.dir.file("checkpoints");
        let (server, mut last) = match checkpoint::latest(&folder)? {
            Some((round, files)) => restore(round, files)?,
            None => (self.federation.start(start)?, None),
        };
        records.cut("finetune", server.round + 1)?;
        records.cut("align", server.round + 1)?;
        let rounds = self.federation.config.rounds as u64;
        cx.events.on(Event::Begin { name: "finetune", unit: "round", done: server.round as u64, total: rounds });
        let model = server.model.clone();
        let server = self.federation.run(server, cx, &mut |finished| {
            self.record(&finished, &mut records, cx)?;
            let (round, config) = (finished.server.round, self.federation.config);
            last = Some((finished.deployed.clone(), finished.aligned.cloned()));
            if round % config.checkpoint_every == 0 || round == config.rounds {
                checkpoint::save(&folder, round, &files(&finished), config.keep_checkpoints)?;
            }
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
        Ok(Finetuned { model, aligned })
    }

    /// Zero rounds: the start model is the result, aligned once where alignment is on ("server only").
    fn without_rounds(&self, model: Params, round: usize, cx: &Context) -> Result<(Params, Option<Params>)> {
        let aligned = self.federation.align.map(|step| step.apply(&model, round, cx)).transpose()?;
        Ok((model, aligned))
    }

    fn record(&self, finished: &Finished<'_>, records: &mut Records, cx: &Context) -> Result<()> {
        let (round, config) = (finished.server.round, self.federation.config);
        let train = [
            ("loss", finished.loss),
            ("bytes_down", finished.bytes_down as f64),
            ("bytes_up", finished.bytes_up as f64),
        ];
        records.add("finetune", round, "train", &train)?;
        let mut shown = vec![("loss", finished.loss)];
        if round % config.eval_every == 0 || round + LAST > config.rounds {
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
    let mut files = Files::from([("model".to_string(), model), ("server".to_string(), server.state.clone())]);
    let mut clients = Named::new();
    for (client, kept) in &server.kept {
        for (name, params) in kept.iter() {
            clients.insert(format!("{client:08}/{name}"), params.clone());
        }
    }
    files.insert("clients".to_string(), clients);
    files
}

type Restored = (Server, Option<(Params, Option<Params>)>);

fn restore(round: usize, mut files: Files) -> Result<Restored> {
    let broken = |what: &str| Error::data(format!("checkpoint of round {round}: no {what}"));
    let mut take = |stem: &str| files.remove(stem).ok_or_else(|| broken(stem));
    let (mut models, state, clients) = (take("model")?, take("server")?, take("clients")?);
    let mut kept: BTreeMap<ClientId, Named> = BTreeMap::new();
    for (name, params) in clients {
        let (client, name) = name.split_once('/').ok_or_else(|| broken("client number"))?;
        let client: ClientId = client.parse().map_err(|_| broken("client number"))?;
        kept.entry(client).or_default().insert(name.to_string(), params);
    }
    let model = models.remove("model").ok_or_else(|| broken("model"))?;
    let deployed = models.remove("deployed").ok_or_else(|| broken("deployed model"))?;
    let kept = kept.into_iter().map(|(client, named)| (client, Arc::new(named))).collect();
    Ok((Server { round, model, state, kept }, Some((deployed, models.remove("aligned")))))
}
