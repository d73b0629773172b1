//! An ensemble distilled into one model on the server's images without labels: what FedDF and FedBE share.
//!
//! Two exchanges: the cohort trains and its replies are kept one by one; then the server, as a client of its own, asks
//! every teacher once about every image, and trains the student to say what they say together.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fl::align::BatchNorm;
use crate::fl::brief::MODEL;
use crate::fl::reply::applied;
use crate::fl::{
    Bn, Brief, Collect, Collected, Exchange, Feed, Here, Job, Loss, Measure, Named, Now, Objective, Order, Outcome,
    Part, Reply, Rows, Slot, Statistic, Step, Sums, Tap, Train, Who,
};
use crate::nn::{Params, View, loss};

/// The exchanges of a round.
pub(super) const EXCHANGES: [Exchange; 2] = [
    Exchange { name: "train", who: Who::Cohort, collect: Collect::Each },
    Exchange { name: "distil", who: Who::Server { jobs: 1 }, collect: Collect::Each },
];

/// Images of a look at the teachers.
const LOOK: usize = 128;

/// The places of the student and of the ensemble's table in a brief.
const STUDENT: usize = 0;
const ROWS: usize = 1;
const TABLE: usize = 2;
const TEACHERS: usize = 3;

/// What of the teachers is averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Average {
    /// Their logits; the softmax of the mean teaches.
    Logits,
    /// Their softmax. The mean of the KL terms of the single teachers has the same gradient.
    Probabilities,
}

/// The models of the cohort, as they came back, and their weights in FedAvg's mean.
pub(super) fn clients(model: &Params, now: &Now<'_>) -> Result<Vec<(f64, Params)>> {
    let client = |(_, reply): &(u32, Reply)| {
        let part = reply.part(MODEL)?;
        Ok((part.weight, applied(part.data.clone(), model)))
    };
    trained(now)?.each.iter().map(client).collect()
}

/// FedAvg's model of the round, to the byte.
pub(super) fn fedavg(model: &Params, now: &Now<'_>) -> Result<Params> {
    trained(now)?.summed()?.moved(model, MODEL, 1.0)
}

fn trained<'n>(now: &Now<'n>) -> Result<&'n Collected> {
    now.got.first().ok_or_else(|| Error::defect("distillation: nobody trained before"))
}

/// The server's work: `teachers` asked, then `student` trained as `train` says; its feed, batch norm and loss are
/// filled in here.
pub(super) fn brief(
    student: Params,
    teachers: Vec<Params>,
    ensemble: Ensemble,
    train: Train<'static>,
    batch_size: usize,
    bn: BatchNorm,
) -> Brief {
    let feed = Feed { rows: Rows::Unlabelled, view: View::Plain, batch_size, ..Feed::default() };
    let ask = Measure {
        at: (TEACHERS..TEACHERS + teachers.len()).collect(),
        feed: Feed { order: Order::Stored, batch_size: LOOK, ..feed.clone() },
        bn: Bn::Running,
        repeats: 1,
        what: Arc::new(ensemble),
    };
    let train = Train {
        from: STUDENT,
        feeds: vec![feed],
        bn: if bn == BatchNorm::Frozen { Bn::Running } else { Bn::Batch },
        loss: Loss::Open(vec![Arc::new(Taught)]),
        ..train
    };
    let found = |name: &'static str| Slot::Found(name.into());
    let mut slots = vec![Slot::Sent("student".into(), student), found("ensemble/rows"), found("ensemble/logits")];
    slots.extend(teachers.into_iter().enumerate().map(|(k, t)| Slot::Sent(format!("teacher/{k}").into(), t)));
    Brief { slots, steps: vec![Step::Measure(ask), Step::Train(train)] }
}

/// What the server keeps of its own work, and what a client sends.
pub(super) fn reply(job: &Job, outcome: Outcome) -> (Reply, Option<Named>) {
    if !job.server {
        let weight = outcome.samples as f64;
        return (Reply::model(job, outcome, weight), None);
    }
    let student = Part::value(MODEL, outcome.params.clone());
    (Reply::of(&outcome, vec![student]), None)
}

/// The model after an exchange: the student once there is one; before, what was sent, since replies are steps from it.
pub(super) fn server(model: &Params, exchange: &Exchange, got: &Collected) -> Result<Params> {
    if exchange.name != EXCHANGES[1].name {
        return Ok(model.clone());
    }
    let (_, reply) = got.each.first().ok_or_else(|| Error::defect("distillation: the server did no work"))?;
    Ok(reply.part(MODEL)?.data.clone())
}

/// What `of` teachers say of every image: finds `ensemble/logits`, `(images, classes)`, whose softmax teaches, and
/// `ensemble/rows`, `(largest number + 1,)`, the row of each image by its number, −1 for none.
pub(super) struct Ensemble {
    /// What is averaged.
    pub average: Average,
    /// Teachers.
    pub of: usize,
    /// The teaching distribution is `q^(1/T)`, normalised.
    pub temperature: f64,
}

impl Statistic for Ensemble {
    fn add(&self, at: &Here<'_>, sums: &mut Sums) -> Result<()> {
        if at.network == 0 {
            sums.entry("ids".into()).or_default().extend(at.ids.iter().map(|&id| f64::from(id)));
        }
        let table = sums.entry("table".into()).or_default();
        if at.network == 0 {
            table.resize(table.len() + at.logits.len(), 0.0);
        }
        let from = table.len() - at.logits.len();
        for (sum, z) in table[from..].chunks_mut(at.classes).zip(at.logits.chunks(at.classes)) {
            let lse = loss::log_sum_exp(z);
            for (s, &z) in sum.iter_mut().zip(z) {
                *s += match self.average {
                    Average::Logits => f64::from(z),
                    Average::Probabilities => (f64::from(z) - lse).exp(),
                };
            }
        }
        Ok(())
    }

    fn close(&self, sums: Sums) -> Result<Named> {
        let (Some(ids), Some(table)) = (sums.get("ids"), sums.get("table")) else { return Ok(Named::new()) };
        let logit = |sum: &f64| {
            let mean = sum / self.of as f64;
            let logit = if self.average == Average::Logits { mean } else { mean.max(f64::MIN_POSITIVE).ln() };
            (logit / self.temperature) as f32
        };
        let table: Vec<f32> = table.iter().map(logit).collect();
        let last = ids.iter().fold(0.0, |m: f64, &id| m.max(id));
        let mut rows = vec![-1.0; last as usize + 1];
        ids.iter().enumerate().for_each(|(row, &id)| rows[id as usize] = row as f32);
        let shape = [ids.len(), table.len() / ids.len().max(1)];
        let rows = Params::tensor("ensemble/rows", &[rows.len()], rows)?;
        let table = Params::tensor("ensemble/logits", &shape, table)?;
        Ok(Named::from([("ensemble/rows".to_string(), rows), ("ensemble/logits".to_string(), table)]))
    }
}

/// `mean_i KL(q_i ‖ softmax(z_i))`, q the ensemble's distribution of image i.
struct Taught;

impl Objective for Taught {
    fn taps(&self) -> &[Tap] {
        &[Tap::Logits]
    }

    fn add(&self, at: &mut Here<'_>) -> Result<f64> {
        let (rows, table) = (at.slot(ROWS)?.data(), at.slot(TABLE)?.data());
        let mut teacher = Vec::with_capacity(at.logits.len());
        for &id in at.ids {
            let row = rows.get(id as usize).filter(|r| **r >= 0.0).map(|r| *r as usize * at.classes);
            let row = row.and_then(|from| table.get(from..from + at.classes));
            teacher.extend_from_slice(
                row.ok_or_else(|| Error::defect(format!("distillation: nobody was asked about image {id}")))?,
            );
        }
        loss::kl_of_logits(at.logits, &teacher, at.classes, at.d_logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fl::objective::check::Made;

    /// Asks `of` networks with these logits, `(networks, images, 3)`, in batches of two about images 7, 2, 4.
    fn asked(average: Average, temperature: f64, logits: &[[f32; 9]]) -> Named {
        let ensemble = Ensemble { average, of: logits.len(), temperature };
        let (ids, mut sums) = ([7, 2, 4], Sums::new());
        for batch in [0..2, 2..3] {
            for (network, all) in logits.iter().enumerate() {
                let mut made = Made::new(&vec![0; batch.len()], 3, 1);
                (made.ids, made.network) = (ids[batch.clone()].to_vec(), network);
                made.logits = all[3 * batch.start..3 * batch.end].to_vec();
                made.look(&ensemble, &mut sums);
            }
        }
        ensemble.close(sums).unwrap()
    }

    const A: [f32; 9] = [0.3, -1.0, 2.0, 0.0, 0.5, 1.0, -2.0, 1.5, 0.1];
    const B: [f32; 9] = [1.3, 0.0, -2.0, 1.0, 1.5, 0.0, -1.0, 0.5, 0.7];

    fn softmax(z: &[f32]) -> Vec<f64> {
        let sum: f64 = z.iter().map(|&z| f64::from(z).exp()).sum();
        z.iter().map(|&z| f64::from(z).exp() / sum).collect()
    }

    #[test]
    fn the_table_holds_mean_logits_or_the_logarithm_of_mean_probabilities_by_image() {
        let found = asked(Average::Logits, 1.0, &[A, B]);
        let (rows, table) = (found["ensemble/rows"].data(), found["ensemble/logits"].data());
        assert_eq!(rows, &[-1.0, -1.0, 1.0, -1.0, 2.0, -1.0, -1.0, 0.0]);
        assert!(table.iter().zip(A.iter().zip(B)).all(|(t, (a, b))| (t - (a + b) / 2.0).abs() < 1e-6));
        let found = asked(Average::Probabilities, 1.0, &[A, B]);
        for (i, row) in found["ensemble/logits"].data().chunks(3).enumerate() {
            let (a, b) = (softmax(&A[3 * i..3 * i + 3]), softmax(&B[3 * i..3 * i + 3]));
            let off = |c: usize| (softmax(row)[c] - (a[c] + b[c]) / 2.0).abs();
            assert!((0..3).all(|c| off(c) < 1e-6), "{row:?}");
        }
    }

    #[test]
    fn half_a_temperature_squares_the_teaching_distribution() {
        let (plain, sharp) = (asked(Average::Probabilities, 1.0, &[A, B]), asked(Average::Probabilities, 0.5, &[A, B]));
        let rows = |found: &Named| found["ensemble/logits"].data()[..3].to_vec();
        let (p, q) = (softmax(&rows(&plain)), softmax(&rows(&sharp)));
        let sum: f64 = p.iter().map(|p| p * p).sum();
        assert!(p.iter().zip(&q).all(|(p, q)| (p * p / sum - q).abs() < 1e-6), "{p:?} {q:?}");
    }

    #[test]
    fn equal_teachers_mean_themselves_to_the_bit() {
        assert_eq!(asked(Average::Logits, 1.0, &[A, A, A])["ensemble/logits"].data(), A);
    }

    #[test]
    fn the_objective_is_kl_to_the_row_of_each_image_and_matches_differences() {
        let mut made = Made::new(&[0, 1, 2], 3, 2);
        let empty = || Params::tensor("student", &[0], Vec::new()).unwrap();
        let rows = Params::tensor("rows", &[3], vec![2.0, 0.0, 1.0]).unwrap();
        made.slots = vec![empty(), rows, Params::tensor("table", &[3, 3], A.to_vec()).unwrap()];
        made.differs_by(&Taught, 1e-4, &[1, 2, 3]);
        let own: Vec<f32> = [6, 0, 3].into_iter().flat_map(|at| A[at..at + 3].to_vec()).collect();
        made.logits = own;
        assert_eq!(made.run(&Taught).0, 0.0);
    }
}
