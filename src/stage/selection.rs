//! The model that a stage exports: the last round's, or the best round's by validation.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::fl::Named;
use crate::fl::config::Export;
use crate::nn::Params;
use crate::run::Records;

/// The best models so far, by stage.
pub struct Selection {
    export: Export,
    best: BTreeMap<String, Best>,
}

struct Best {
    round: usize,
    accuracy: f64,
    model: Params,
}

impl Selection {
    /// As it was at a checkpoint: the models are the checkpoint's, their rounds and accuracies are in the records.
    pub fn resume(export: Export, models: Named, records: &Path) -> Result<Selection> {
        let mut best = BTreeMap::new();
        let records = if models.is_empty() { Vec::new() } else { Records::read(records)? };
        for (stage, model) in models {
            let (round, accuracy) = best_round(&records, &stage).ok_or_else(|| {
                Error::data(format!(
                    "metrics.jsonl has no validation accuracy of {stage}, the checkpoint has its best model"
                ))
                .hint("delete the folder checkpoints to begin the stage anew")
            })?;
            best.insert(stage, Best { round, accuracy, model });
        }
        Ok(Selection { export, best })
    }

    /// Hears of a judged round's accuracy on the validation set, in `[0, 1]`.
    pub fn offer(&mut self, stage: &str, round: usize, accuracy: f64, model: &Params) {
        let better = self.best.get(stage).is_none_or(|best| accuracy > best.accuracy);
        if self.export == Export::Best && better {
            self.best.insert(stage.to_string(), Best { round, accuracy, model: model.clone() });
        }
    }

    /// The exported model and its round: `last` where nothing better is known.
    pub fn choose(&self, stage: &str, last: Params, round: usize) -> (Params, usize) {
        self.best.get(stage).map_or((last, round), |best| (best.model.clone(), best.round))
    }

    /// The best models, by stage.
    pub fn models(&self) -> Named {
        self.best.iter().map(|(stage, best)| (stage.clone(), best.model.clone())).collect()
    }
}

/// The earliest round with the highest validation accuracy.
fn best_round(records: &[Value], stage: &str) -> Option<(usize, f64)> {
    let judged = records.iter().filter(|r| r["stage"] == stage && r["split"] == "validation");
    let figures = judged.filter_map(|r| Some((r["round"].as_u64()? as usize, r["accuracy"].as_f64()?)));
    figures.fold(None, |best, (round, accuracy)| match best {
        Some((_, highest)) if accuracy <= highest => best,
        _ => Some((round, accuracy)),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::nn::{Layout, Role};

    fn model(value: f32) -> Params {
        let mut layout = Layout::default();
        layout.push("w", &[1], Role::Weight).unwrap();
        Params::new(Arc::new(layout), vec![value]).unwrap()
    }

    #[test]
    fn the_earliest_of_the_best_rounds_is_exported_and_a_resumed_selection_knows_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut records = Records::open(&path).unwrap();
        let mut selection = Selection::resume(Export::Best, Named::new(), &path).unwrap();
        for (round, accuracy) in [(1, 0.2), (2, 0.5), (3, 0.5), (4, 0.4)] {
            records.add("finetune", round, "validation", &[("accuracy", accuracy)]).unwrap();
            // Test accuracies must not matter.
            records.add("finetune", round, "test", &[("accuracy", 1.0 - accuracy)]).unwrap();
            selection.offer("finetune", round, accuracy, &model(round as f32));
        }
        let (best, round) = selection.choose("finetune", model(4.0), 4);
        assert_eq!((best.data()[0], round), (2.0, 2));
        let mut resumed = Selection::resume(Export::Best, selection.models(), &path).unwrap();
        resumed.offer("finetune", 5, 0.5, &model(5.0));
        assert_eq!(resumed.choose("finetune", model(5.0), 5).1, 2);
        resumed.offer("finetune", 6, 0.6, &model(6.0));
        assert_eq!(resumed.choose("finetune", model(6.0), 6).1, 6);
    }

    #[test]
    fn by_default_the_last_round_is_exported() {
        let mut selection = Selection::resume(Export::Last, Named::new(), Path::new("absent")).unwrap();
        selection.offer("finetune", 1, 0.9, &model(1.0));
        assert_eq!(selection.choose("finetune", model(2.0), 2).1, 2);
        assert!(selection.models().is_empty());
    }

    #[test]
    fn a_checkpoint_whose_records_are_gone_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        drop(Records::open(&path).unwrap());
        let models = Named::from([("finetune".to_string(), model(1.0))]);
        assert!(Selection::resume(Export::Best, models, &path).is_err());
    }
}
