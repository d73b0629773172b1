//! Scores of choices: accuracy, area under the ROC curve, macro-F1.

use serde::Serialize;

use super::grammar::Read;

/// One judged choice.
#[derive(Clone, Debug)]
pub struct Answered {
    /// What was read of the answer.
    pub read: Read,
    /// The right option.
    pub label: usize,
    /// The probability of each option at the answer's first token, where it was asked; in the options' order.
    pub probabilities: Option<Vec<f64>>,
}

/// Scores in `[0, 1]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ChoiceScores {
    /// Answers.
    pub answers: usize,
    /// Answers that the parser could not read; wrong in every score below.
    pub unparsed: usize,
    /// Share of right options.
    pub accuracy: f64,
    /// Mean F1 over the labels that are right or chosen somewhere.
    pub macro_f1: f64,
    /// Of two options: area under the curve of the chosen option's number, as FedMLLM has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auc: Option<f64>,
    /// Of two options: area under the curve of the second one's probability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auc_probability: Option<f64>,
}

impl ChoiceScores {
    /// Of answers to questions with so many options.
    pub fn of(chosen: &[Answered], options: usize) -> ChoiceScores {
        let right = chosen.iter().filter(|c| c.read.option == Some(c.label)).count();
        let pairs: Vec<(usize, Option<usize>)> = chosen.iter().map(|c| (c.label, c.read.option)).collect();
        let (mut auc, mut auc_probability) = (None, None);
        if options == 2 {
            // What cannot be compared counts as the other option.
            let hard = |c: &Answered| (c.read.option.unwrap_or(1 - c.label.min(1)) as f64, c.label == 1);
            auc = area(&chosen.iter().map(hard).collect::<Vec<_>>());
            let soft = |c: &Answered| Some((*c.probabilities.as_ref()?.get(1)?, c.label == 1));
            auc_probability = chosen.iter().map(soft).collect::<Option<Vec<_>>>().and_then(|pairs| area(&pairs));
        }
        ChoiceScores {
            answers: chosen.len(),
            unparsed: chosen.iter().filter(|c| !c.read.parsed).count(),
            accuracy: right as f64 / chosen.len().max(1) as f64,
            macro_f1: macro_f1(&pairs),
            auc,
            auc_probability,
        }
    }
}

/// The area under the ROC curve of `(score, positive)`: the share of pairs of a positive and a negative in which the
/// positive scores higher, equal scores half. None where one of the two is missing, or a score is no number.
pub fn area(pairs: &[(f64, bool)]) -> Option<f64> {
    let mut sorted = pairs.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let positives = pairs.iter().filter(|p| p.1).count();
    let negatives = pairs.len() - positives;
    if positives == 0 || negatives == 0 || pairs.iter().any(|p| p.0.is_nan()) {
        return None;
    }
    let (mut below, mut won) = (0usize, 0.0f64);
    for tied in sorted.chunk_by(|a, b| a.0 == b.0) {
        let up = tied.iter().filter(|p| p.1).count();
        let down = tied.len() - up;
        won += up as f64 * (below as f64 + down as f64 / 2.0);
        below += down;
    }
    Some(won / (positives as f64 * negatives as f64))
}

/// Mean F1 over the labels that are right or chosen somewhere, of `(right, chosen)`; what is unread is no label's.
pub fn macro_f1(pairs: &[(usize, Option<usize>)]) -> f64 {
    let labels: std::collections::BTreeSet<usize> = pairs.iter().flat_map(|(y, p)| [Some(*y), *p]).flatten().collect();
    let f1 = |label: usize| {
        let hit = pairs.iter().filter(|(y, p)| *y == label && *p == Some(label)).count();
        let either =
            pairs.iter().filter(|(y, _)| *y == label).count() + pairs.iter().filter(|(_, p)| *p == Some(label)).count();
        2.0 * hit as f64 / either as f64
    };
    labels.iter().map(|&label| f1(label)).sum::<f64>() / labels.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Golden {
        labels: Vec<usize>,
        chosen: Vec<usize>,
        scores: Vec<f64>,
        auc: f64,
        auc_hard: f64,
        macro_f1: f64,
    }

    fn read(option: Option<usize>) -> Read {
        Read { option, parsed: option.is_some() }
    }

    /// `tests/golden/fedmllm/scores.json`, written by the script beside it with scikit-learn.
    #[test]
    fn areas_and_f1_are_scikit_learns_ties_and_absent_labels_included() {
        let cases: Vec<Golden> =
            serde_json::from_str(include_str!("../../../tests/golden/fedmllm/scores.json")).unwrap();
        assert!(cases.len() >= 4);
        for case in cases {
            let pairs = |of: &dyn Fn(usize) -> f64| -> Vec<(f64, bool)> {
                case.labels.iter().enumerate().map(|(i, y)| (of(i), *y == 1)).collect()
            };
            assert!((area(&pairs(&|i| case.scores[i])).unwrap() - case.auc).abs() < 1e-12);
            assert!((area(&pairs(&|i| case.chosen[i] as f64)).unwrap() - case.auc_hard).abs() < 1e-12);
            let both: Vec<_> = case.labels.iter().zip(&case.chosen).map(|(y, p)| (*y, Some(*p))).collect();
            assert!((macro_f1(&both) - case.macro_f1).abs() < 1e-12);
        }
    }

    #[test]
    fn on_hard_answers_the_area_is_balanced_accuracy_and_one_class_alone_has_none() {
        // 3 of 4 positives, 1 of 2 negatives right.
        let pairs: Vec<(f64, bool)> =
            [(1, 1), (1, 1), (1, 1), (0, 1), (0, 0), (1, 0)].map(|(p, y)| (f64::from(p), y == 1)).to_vec();
        assert!((area(&pairs).unwrap() - (0.75 + 0.5) / 2.0).abs() < 1e-12);
        assert_eq!(area(&[(0.1, true), (0.2, true)]), None);
        assert_eq!(area(&[(f64::NAN, true), (0.2, false)]), None);
    }

    #[test]
    fn an_unparsed_answer_is_wrong_in_every_score_and_counted() {
        let one = |option, label| Answered { read: read(option), label, probabilities: Some(vec![0.4, 0.6]) };
        let right = [one(Some(0), 0), one(Some(1), 1), one(Some(0), 0), one(Some(1), 1)];
        let scores = ChoiceScores::of(&right, 2);
        assert_eq!((scores.accuracy, scores.macro_f1, scores.auc, scores.unparsed), (1.0, 1.0, Some(1.0), 0));
        assert_eq!(scores.auc_probability, Some(0.5));
        let mut one_off = right.to_vec();
        one_off[1] = one(None, 1);
        let scores = ChoiceScores::of(&one_off, 2);
        assert_eq!((scores.accuracy, scores.auc, scores.unparsed), (0.75, Some(0.75), 1));
        // Label 0: 2·2/(2+2); label 1: 2·1/(2+1); nothing else has a share in the mean.
        assert!((scores.macro_f1 - (1.0 + 2.0 / 3.0) / 2.0).abs() < 1e-12);
        assert_eq!(ChoiceScores::of(&right, 3).auc, None);
    }

    #[test]
    fn the_references_failures_score_above_the_second_option() {
        // A failed answer to a harmless meme ranks above every hateful one.
        let failed = Read { option: Some(2), parsed: false };
        let one = |read, label| Answered { read, label, probabilities: None };
        let chosen = [one(read(Some(1)), 1), one(read(Some(0)), 0), one(failed, 0)];
        assert_eq!(ChoiceScores::of(&chosen, 2).auc, Some(0.5));
        let good = [one(read(Some(0)), 0), one(failed, 1)];
        assert_eq!(ChoiceScores::of(&good, 2).auc, Some(1.0));
    }
}
