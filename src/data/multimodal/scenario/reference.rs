//! FedMLLM's published draws, replayed: numpy's legacy generator and Python's, each seeded anew by each script.
//!
//! 1. **Partition** (choices; seed 42): a Dirichlet row a label, in the order in which labels first appear, over samples in
//!    file order; pieces `int(p n)`, those below one filled from the first client with more than one (of every label, or of
//!    the first alone: [`Recipe`]); the last client gets what is left; each client's samples are shuffled.
//! 2. **Missing**: one stream over all clients' samples (clients in order: the scripts list a folder in the order of the
//!    disk), the text's draw before the image's; kept where the draw is below 1 − β.
//! 3. **Cross**: `random.sample(range(clients), images)`.
//! 4. **Hybrid**: `np.random.binomial(1, keep, (clients, 2))`, image and text; clients with neither keep one modality of each
//!    sample, by a draw below ½ the image.
//! 5. **Open questions** (seed 41): image clients share the samples with pictures in the order of their draw, text clients
//!    the others in theirs; each pool is shuffled and cut into equal pieces, the rest to the last. The script of hybrid
//!    clients does not seed numpy; here it has the same seed.

use super::{Deal, Held, Lack, Outline, by_label, no_samples, pools};
use crate::data::multimodal::{Modalities, Recipe};
use crate::data::numpy_rng::RandomState;
use crate::data::python_rng::PythonRandom;
use crate::error::{Error, Result};

fn seed(deal: &Deal, recipe: &Recipe) -> u32 {
    deal.seed.unwrap_or(recipe.seed)
}

/// Choices.
pub(super) fn labelled(deal: &Deal, lack: Lack, rows: &[Outline], recipe: &Recipe) -> Result<Vec<Vec<Held>>> {
    let seed = seed(deal, recipe);
    let clients = partition(&by_label(rows), deal.clients, deal.alpha, seed, recipe.fills_first_label_only)?;
    let roles = roles(deal.clients, lack, seed);
    let mut rng = PythonRandom::new(u64::from(seed));
    let mut drawn = |client: usize| match (lack, roles[client]) {
        (Lack::Missing { beta }, _) => {
            let text = rng.random() < 1.0 - beta;
            Modalities { image: rng.random() < 1.0 - beta, text }
        }
        (_, Modalities::NEITHER) if rng.random() < 0.5 => Modalities::IMAGE,
        (_, Modalities::NEITHER) => Modalities::TEXT,
        (_, role) => role,
    };
    let mut held = Vec::new();
    for (client, list) in clients.into_iter().enumerate() {
        let one = |sample: u32| Held { sample, holds: drawn(client).and(rows[sample as usize].has) };
        held.push(list.into_iter().map(one).collect());
    }
    Ok(held)
}

/// Deals labels' samples to clients and shuffles each client's: step 1 of this module's head.
pub fn partition(
    labels: &[Vec<u32>],
    clients: usize,
    alpha: f64,
    seed: u32,
    fills_first_label_only: bool,
) -> Result<Vec<Vec<u32>>> {
    let mut rng = RandomState::new(seed);
    let shares: Vec<Vec<f64>> = labels.iter().map(|_| rng.dirichlet(alpha, clients)).collect();
    let mut held = vec![Vec::new(); clients];
    for (label, (list, share)) in labels.iter().zip(&shares).enumerate() {
        let mut sizes: Vec<usize> = share.iter().map(|p| (p * list.len() as f64) as usize).collect();
        if label == 0 || !fills_first_label_only {
            fill(&mut sizes, label)?;
        }
        let before: usize = sizes[..clients - 1].iter().sum();
        let over = || Error::defect(format!("scenario reference: {before} of {} samples", list.len()));
        sizes[clients - 1] = list.len().checked_sub(before).ok_or_else(over)?;
        let mut rest = list.as_slice();
        for (client, size) in sizes.into_iter().enumerate() {
            let (piece, tail) = rest.split_at(size);
            held[client].extend_from_slice(piece);
            rest = tail;
        }
    }
    let mut rng = PythonRandom::new(u64::from(seed));
    held.iter_mut().for_each(|list| rng.shuffle(list));
    Ok(held)
}

/// Moves ones to the pieces of nothing, each from the first piece that has more than one.
fn fill(sizes: &mut [usize], label: usize) -> Result<()> {
    for client in 0..sizes.len() {
        if sizes[client] == 0 {
            let donor = sizes.iter().position(|&size| size > 1).ok_or_else(|| {
                Error::input(format!(
                    "scenario reference: label {label} has too few samples for {} clients",
                    sizes.len()
                ))
                .hint("scenario.draw = \"keyed\" lets a client be without a label")
            })?;
            sizes[donor] -= 1;
            sizes[client] += 1;
        }
    }
    Ok(())
}

/// What each client holds; a hybrid one may hold neither.
fn roles(clients: usize, lack: Lack, seed: u32) -> Vec<Modalities> {
    match lack {
        Lack::Nothing | Lack::Missing { .. } => vec![Modalities::BOTH; clients],
        Lack::Cross { images } => {
            let mut roles = vec![Modalities::TEXT; clients];
            for client in PythonRandom::new(u64::from(seed)).sample(clients, images) {
                roles[client] = Modalities::IMAGE;
            }
            roles
        }
        Lack::Hybrid { keep } => {
            let mut rng = RandomState::new(seed);
            let mut stays = || rng.bernoulli(keep);
            (0..clients).map(|_| Modalities { image: stays(), text: stays() }).collect()
        }
    }
}

/// Open questions: step 5 of this module's head.
pub(super) fn shared(deal: &Deal, lack: Lack, rows: &[Outline], recipe: &Recipe) -> Result<Vec<Vec<Held>>> {
    let (seed, clients) = (seed(deal, recipe), deal.clients);
    let mut rng = PythonRandom::new(u64::from(seed));
    let [pictures, texts] = pools(rows);
    let lists = match lack {
        Lack::Cross { images } => {
            let chosen = rng.sample(clients, images);
            let others: Vec<usize> = (0..clients).filter(|client| !chosen.contains(client)).collect();
            let mut lists = vec![Vec::new(); clients];
            for (pool, owners, what) in [(pictures, chosen, "with"), (texts, others, "without")] {
                let pieces = pieces(pool, owners.len(), what, &mut rng)?;
                owners.into_iter().zip(pieces).for_each(|(client, piece)| lists[client] = piece);
            }
            lists
        }
        Lack::Hybrid { .. } => {
            let mut roles = roles(clients, lack, seed);
            for role in roles.iter_mut().filter(|r| **r == Modalities::NEITHER) {
                *role = if rng.random() < 0.5 { Modalities::IMAGE } else { Modalities::TEXT };
            }
            let count = |of: fn(&Modalities) -> bool| roles.iter().filter(|r| of(r)).count();
            let (images, words) = (count(|r| r.image), count(|r| r.text));
            let mut pictures = pieces(pictures, images, "with", &mut rng)?.into_iter();
            let mut texts = pieces(texts, words, "without", &mut rng)?.into_iter();
            let mut own = |role: &Modalities| {
                let mut list = if role.image { pictures.next().unwrap_or_default() } else { Vec::new() };
                list.extend(if role.text { texts.next().unwrap_or_default() } else { Vec::new() });
                if *role == Modalities::BOTH {
                    rng.shuffle(&mut list);
                }
                list
            };
            roles.iter().map(&mut own).collect()
        }
        Lack::Nothing | Lack::Missing { .. } => {
            return Err(Error::input(
                "scenario.draw = \"reference\": open questions are published for cross and hybrid alone",
            )
            .hint("scenario.draw = \"keyed\" has all four"));
        }
    };
    let held =
        |list: Vec<u32>| list.into_iter().map(|sample| Held { sample, holds: rows[sample as usize].has }).collect();
    Ok(lists.into_iter().map(held).collect())
}

/// A pool, shuffled and cut into `count` equal pieces, the rest to the last.
fn pieces(mut pool: Vec<u32>, count: usize, what: &str, rng: &mut PythonRandom) -> Result<Vec<Vec<u32>>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if count > pool.len() {
        return Err(no_samples(what, count));
    }
    rng.shuffle(&mut pool);
    let size = pool.len() / count;
    let end = |piece: usize| if piece + 1 == count { pool.len() } else { (piece + 1) * size };
    Ok((0..count).map(|piece| pool[piece * size..end(piece)].to_vec()).collect())
}
