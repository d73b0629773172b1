//! Figures of a classifier on a labelled set.

use serde_json::{Map, Value, json};

use crate::data::shots::Groups;

/// Accuracies are shares in `[0, 1]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Share of all images classified correctly.
    pub overall: f64,
    /// Mean class accuracy of the classes with many training images; `None` where there is no such class.
    pub many: Option<f64>,
    /// Of those in between.
    pub medium: Option<f64>,
    /// Of those with few.
    pub few: Option<f64>,
    /// Accuracy of the worst class that has images; `None` without any image.
    pub worst_class: Option<f64>,
    /// Accuracy of each class, `(classes,)`; `None` for a class without images, which no mean counts.
    pub per_class: Vec<Option<f64>>,
    /// Images of true class `i` classified as `j`, `(classes, classes)`.
    pub confusion: Vec<Vec<u64>>,
    /// Mean cross-entropy of the softmax of the scores.
    pub loss: f64,
}

impl Evaluation {
    /// From scores `(n, classes)` and labels `(n,)`. Ties go to the lower class.
    pub fn of(scores: &[f32], labels: &[u32], classes: usize, groups: &Groups) -> Self {
        let mut confusion = vec![vec![0u64; classes]; classes];
        let mut loss = 0.0;
        for (row, &label) in scores.chunks(classes).zip(labels) {
            let top = row.iter().enumerate().fold(0, |best, (i, &v)| if v > row[best] { i } else { best });
            confusion[label as usize][top] += 1;
            let highest = f64::from(row[top]);
            let sum: f64 = row.iter().map(|&v| (f64::from(v) - highest).exp()).sum();
            loss += highest + sum.ln() - f64::from(row[label as usize]);
        }
        let n = labels.len().max(1) as f64;
        let hits: u64 = (0..classes).map(|c| confusion[c][c]).sum();
        let share = |c: usize| {
            let all = confusion[c].iter().sum::<u64>();
            (all > 0).then(|| confusion[c][c] as f64 / all as f64)
        };
        let per_class: Vec<Option<f64>> = (0..classes).map(share).collect();
        let mean = |group: &[usize]| {
            let there: Vec<f64> = group.iter().filter_map(|&c| per_class[c]).collect();
            (!there.is_empty()).then(|| there.iter().sum::<f64>() / there.len() as f64)
        };
        Evaluation {
            overall: hits as f64 / n,
            many: mean(&groups.many),
            medium: mean(&groups.medium),
            few: mean(&groups.few),
            worst_class: per_class.iter().flatten().copied().reduce(f64::min),
            per_class,
            confusion,
            loss: loss / n,
        }
    }

    /// The figures of a record line.
    pub fn figures(&self) -> Vec<(&'static str, f64)> {
        let groups =
            [("worst_class", self.worst_class), ("many", self.many), ("medium", self.medium), ("few", self.few)];
        let mut figures = vec![("accuracy", self.overall), ("loss", self.loss)];
        figures.extend(groups.into_iter().filter_map(|(name, value)| Some((name, value?))));
        figures
    }

    /// As `eval.json` holds it; an empty group, and a class without images, is null.
    pub fn to_json(&self) -> Map<String, Value> {
        let value = json!({
            "overall": self.overall, "many": self.many, "medium": self.medium, "few": self.few,
            "worst_class": self.worst_class, "per_class": self.per_class, "confusion": self.confusion,
            "loss": self.loss,
        });
        match value {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

/// What a judge says of a model in a round: the figures of a record line, and the one that selects.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// Names and values; `accuracy` among them.
    pub figures: Vec<(&'static str, f64)>,
    /// What the best round is chosen by, and the person's bar shows: higher is better.
    pub headline: f64,
}

impl From<Evaluation> for Judged {
    fn from(evaluation: Evaluation) -> Self {
        Judged { figures: evaluation.figures(), headline: evaluation.overall }
    }
}

/// Mean and standard deviation (n − 1) of some values; zero deviation for one value.
pub fn mean_and_deviation(values: &[f64]) -> Option<(f64, f64)> {
    let n = values.len() as f64;
    if values.is_empty() {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    Some((mean, (squares / (n - 1.0).max(1.0)).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_four_images_by_hand() {
        let groups = Groups { many: vec![0], medium: vec![1, 2], few: vec![] };
        let scores = [2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0];
        let e = Evaluation::of(&scores, &[0, 0, 1, 2], 3, &groups);
        assert_eq!((e.overall, e.many, e.medium, e.few), (0.75, Some(0.5), Some(1.0), None));
        assert_eq!(e.confusion, vec![vec![1, 1, 0], vec![0, 1, 0], vec![0, 0, 1]]);
        let (right, wrong) = (((2f64).exp() + 2.0).ln() - 2.0, ((2f64).exp() + 2.0).ln());
        assert!((e.loss - (3.0 * right + wrong) / 4.0).abs() < 1e-6);
        assert_eq!(e.worst_class, Some(0.5));
    }

    #[test]
    fn a_class_without_images_is_no_zero() {
        let groups = Groups { many: vec![0], medium: vec![2], few: vec![1, 3] };
        let scores = [2.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0];
        let e = Evaluation::of(&scores, &[0, 1, 1], 4, &groups);
        assert_eq!(e.per_class, [Some(1.0), Some(0.5), None, None]);
        assert_eq!((e.many, e.medium, e.few, e.worst_class), (Some(1.0), None, Some(0.5), Some(0.5)));
        assert_eq!((&e.to_json()["per_class"][2], &e.to_json()["medium"]), (&Value::Null, &Value::Null));
        assert!(e.figures().iter().all(|(name, _)| *name != "medium"));
    }

    #[test]
    fn deviation_of_two_values() {
        assert_eq!(mean_and_deviation(&[1.0, 3.0]), Some((2.0, 2f64.sqrt())));
        assert_eq!(mean_and_deviation(&[]), None);
    }
}
