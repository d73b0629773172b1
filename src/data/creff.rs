//! The partition and the client sampling of CReFF and CLIP2FL, replayed with numpy's generator.
//!
//! After Shang et al., *Federated Learning on Heterogeneous and Long-Tailed Data via Classifier Re-Training with
//! Federated Features* (IJCAI 2022), whose code fixes the splits of this field:
//!
//! 1. `(image, class)` pairs, class by class in the long tail's order, are shuffled.
//! 2. They are cut into slices of ten *workers* each. In a slice of S pairs, each class is dealt by a Dirichlet draw
//!    in which workers that already hold S/10 pairs get nothing; if the smallest worker ends with less than half of
//!    its share, the slice is drawn again from where the generator stands.
//! 3. All worker lists, one after the other, are cut into equal chunks. **These chunks, not the workers, are the
//!    clients**: so all have the same size, and some hold a single class.

use super::numpy_rng::{RandomState, sum};
use crate::error::{Error, Result};

/// Workers of a slice.
const AUXILIARY: usize = 10;

/// Deals `kept` (image indices of each class, in draw order) to `clients`. `attempts` bounds the draws of a slice.
pub fn partition(kept: &[Vec<u32>], clients: usize, alpha: f64, seed: u32, attempts: usize) -> Result<Vec<Vec<u32>>> {
    let mut rng = RandomState::new(seed);
    let mut pairs: Vec<(u32, usize)> =
        kept.iter().enumerate().flat_map(|(class, list)| list.iter().map(move |&i| (i, class))).collect();
    rng.shuffle(&mut pairs);
    let (total, slices) = (pairs.len(), clients.div_ceil(AUXILIARY));
    let each = (AUXILIARY as f64 / clients as f64 * total as f64) as usize;
    let mut flat = Vec::with_capacity(total);
    let (mut start, mut left) = (0, clients);
    for slice in 0..slices {
        let end = if slice + 1 == slices { total } else { start + each };
        let workers = left.min(AUXILIARY);
        deal(&pairs[start..end], kept.len(), workers, alpha, attempts, &mut rng, &mut flat)?;
        (start, left) = (end, left - workers);
    }
    Ok(chunks(&flat, clients))
}

/// The clients of each round: `size` of `clients` without replacement from `RandomState(seed)`, drawn round by round and
/// kept, as each draw permutes all clients. (The reference: seed 7, 8 of 20.)
pub struct Cohorts {
    rng: RandomState,
    clients: usize,
    size: usize,
    drawn: Vec<Vec<u32>>,
}

impl Cohorts {
    /// Before the first draw.
    pub fn new(seed: u32, clients: usize, size: usize) -> Self {
        Cohorts { rng: RandomState::new(seed), clients, size, drawn: Vec::new() }
    }

    /// The cohort of a round, from 1; a resumed run draws the earlier ones again.
    pub fn of(&mut self, round: usize) -> Vec<u32> {
        while self.drawn.len() < round {
            let cohort = self.rng.choice(self.clients, self.size);
            self.drawn.push(cohort.into_iter().map(|c| c as u32).collect());
        }
        self.drawn[round.max(1) - 1].clone()
    }
}

/// Deals one slice and appends its workers' lists to `flat`.
fn deal(
    pairs: &[(u32, usize)],
    classes: usize,
    workers: usize,
    alpha: f64,
    attempts: usize,
    rng: &mut RandomState,
    flat: &mut Vec<u32>,
) -> Result<()> {
    let mut by_class = vec![Vec::new(); classes];
    for &(image, class) in pairs {
        by_class[class].push(image);
    }
    let least = (0.5 * pairs.len() as f64 / workers as f64) as usize;
    for _ in 0..attempts {
        let ends = draw(&by_class, pairs.len(), workers, alpha, rng);
        let size = |w: usize| ends.iter().map(|e| e[w + 1] - e[w]).sum::<usize>();
        if (0..workers).all(|w| size(w) >= least) {
            for w in 0..workers {
                for (list, e) in by_class.iter().zip(&ends) {
                    flat.extend_from_slice(&list[e[w]..e[w + 1]]);
                }
            }
            return Ok(());
        }
    }
    Err(Error::input(format!(
        "partition creff: {attempts} draws gave no split of {} images to {workers} workers with at least {least} each at alpha {alpha}",
        pairs.len()
    ))
    .hint("raise partition.alpha, or take partition.kind = \"dirichlet\" with a smaller partition.min_size"))
}

/// One attempt: the borders of the workers' pieces within each class, `(classes, workers + 1)`.
fn draw(by_class: &[Vec<u32>], total: usize, workers: usize, alpha: f64, rng: &mut RandomState) -> Vec<Vec<usize>> {
    let share = total as f64 / workers as f64;
    let mut held = vec![0usize; workers];
    let mut all = Vec::with_capacity(by_class.len());
    for list in by_class {
        let mut p = rng.dirichlet(alpha, workers);
        for (q, &h) in p.iter_mut().zip(&held) {
            *q *= f64::from(u8::from((h as f64) < share));
        }
        let norm = sum(&p);
        let mut borders = Vec::with_capacity(workers + 1);
        borders.push(0);
        let mut running = 0.0;
        for q in &p[..workers - 1] {
            running += q / norm;
            // A norm of zero gives NaN, which numpy cuts before the first element: the last worker takes all.
            borders.push(((running * list.len() as f64) as usize).min(list.len()));
        }
        borders.push(list.len());
        for (w, h) in held.iter_mut().enumerate() {
            *h += borders[w + 1] - borders[w];
        }
        all.push(borders);
    }
    all
}

/// Contiguous chunks of equal size; the first `len % n` get one more.
pub(super) fn chunks(flat: &[u32], n: usize) -> Vec<Vec<u32>> {
    let (base, more) = (flat.len() / n, flat.len() % n);
    let mut rest = flat;
    (0..n)
        .map(|k| {
            let (chunk, tail) = rest.split_at(base + usize::from(k < more));
            rest = tail;
            chunk.to_vec()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::longtail::{Draw, LongTailConfig};
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        classes: usize,
        each: usize,
        factor: f64,
        clients: usize,
        alpha: f64,
        seed: u32,
        split: Vec<Vec<u32>>,
    }

    /// `tests/golden/numpy/creff.json`, written by the script beside it: the same algorithm in numpy itself.
    #[test]
    fn a_synthetic_label_list_gives_numpys_very_images() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("../../tests/golden/numpy/creff.json")).unwrap();
        assert_eq!(cases.len(), 4);
        for case in cases {
            let total = case.classes * case.each;
            let labels: Vec<u32> = (0..total).map(|i| (i * 7919 % total / case.each) as u32).collect();
            let config = LongTailConfig { imbalance: case.factor, ..Default::default() };
            let tail = config.cut(&labels, case.classes, Draw::Numpy(case.seed)).unwrap();
            let split = partition(&tail.kept, case.clients, case.alpha, case.seed, 1000).unwrap();
            assert_eq!(split, case.split, "{} clients", case.clients);
        }
    }

    #[test]
    fn the_reference_draws_its_first_cohorts() {
        let mut cohorts = Cohorts::new(7, 20, 8);
        assert_eq!(cohorts.of(2), [18, 7, 15, 14, 17, 3, 1, 10]);
        assert_eq!(cohorts.of(1), [1, 17, 2, 5, 11, 0, 18, 6]);
    }

    #[test]
    fn an_impossible_partition_ends_and_says_what_to_change() {
        // Two classes, each dealt whole to one worker: the other eight stay empty.
        let kept = vec![(0..500).collect(), (500..1000).collect()];
        let e = partition(&kept, 20, 1e-4, 7, 50).unwrap_err();
        assert!(e.to_string().contains("50 draws") && e.to_string().contains("raise partition.alpha"), "{e}");
    }
}
