//! What clients would use themselves, where a method leaves them something of their own.

use serde_json::{Map, Value, json};

use super::Experiment;
use crate::error::Result;
use crate::exec::{Context, Event};
use crate::fl::round::Federation;
use crate::run::{RunDir, directory};
use crate::stage::finetune::Finetuned;
use crate::stage::metrics::mean_and_deviation;

/// The file of a run's personal figures.
const FILE: &str = "personal.json";
/// Clients that are judged; of more, these many are drawn by key and the number is said.
const MOST: usize = 100;

impl Experiment {
    /// Judges every client's own model on the whole test set, if the method has such models. Two accuracies a client: over
    /// all classes alike, and with each class's accuracy weighted by its share of the client's own images (a stand-in
    /// for a local test set, which these benchmarks lack; our choice).
    pub(super) fn judge_personal(
        &self,
        dir: &RunDir,
        federation: &Federation<'_>,
        tuned: &Finetuned,
        cx: &Context,
    ) -> Result<()> {
        // Of another model, or damaged: judged again.
        let known = dir.file(FILE).exists().then(|| directory::read_json(&dir.file(FILE)));
        if known.is_some_and(|facts| facts.is_ok_and(|f| f["model"] == tuned.model.digest())) {
            return Ok(());
        }
        let Some(last) = &tuned.last else {
            if federation.algorithm.needs().kept {
                cx.events.on(Event::Warning(
                    "what clients keep is gone with the checkpoints: their own models are not judged",
                ));
            }
            return Ok(());
        };
        if tuned.kept.is_empty() {
            return Ok(());
        }
        let classifier = federation.trainer.classifier();
        let now = federation.now(self.config.federated.rounds, classifier.as_ref(), &[], cx);
        let all: Vec<u32> = tuned.kept.keys().copied().collect();
        let mut judged: Vec<u32> = match all.len() > MOST {
            true => self.key.rng().choose(all.len(), MOST).into_iter().map(|i| all[i]).collect(),
            false => all.clone(),
        };
        judged.sort_unstable();
        let mut rows = Vec::new();
        for client in judged {
            let kept = &tuned.kept[&client].named;
            let Some(model) = federation.algorithm.personal(&last.model, &last.deployed, kept, &now)? else {
                return Ok(());
            };
            let figures = self.judge().classifier(&self.net, &model, cx)?;
            let counts = self.split.count(&self.split.clients[client as usize]);
            // Classes that test lacks count nowhere.
            let there = || counts.iter().zip(&figures.per_class).filter_map(|(&n, a)| Some((f64::from(n), (*a)?)));
            let held = there().map(|(n, _)| n).sum::<f64>();
            let own = (held > 0.0).then(|| there().map(|(n, a)| n * a).sum::<f64>() / held);
            rows.push(json!({ "client": client, "overall": figures.overall, "own": own }));
        }
        let text = format!("personal models: {} of {} clients that trained are judged", rows.len(), all.len());
        cx.events.on(Event::Note(&text));
        let of = |key: &str| mean_and_deviation(&rows.iter().filter_map(|r| r[key].as_f64()).collect::<Vec<_>>());
        let pair = |v: Option<(f64, f64)>| json!({ "mean": v.map(|v| v.0), "deviation": v.map(|v| v.1) });
        let facts = json!({ "model": tuned.model.digest(), "clients": all.len(), "judged": rows.len(), "overall": pair(of("overall")),
            "own": pair(of("own")), "each": rows });
        dir.write_json(FILE, &facts)
    }

    /// The figures for `eval.json`: none where no client has a model of its own.
    pub(super) fn personal_entry(&self, dir: &RunDir) -> Result<Map<String, Value>> {
        let path = dir.file(FILE);
        if !path.exists() {
            return Ok(Map::new());
        }
        let facts = directory::read_json(&path)?;
        let figures = json!({ "personal": facts["overall"], "personal_own": facts["own"],
            "personal_clients": facts["judged"] });
        Ok(figures.as_object().cloned().unwrap_or_default())
    }
}
