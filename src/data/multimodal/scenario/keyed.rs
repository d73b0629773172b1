//! Our draws: from the key path, each sample's by its id.

use super::{Deal, Held, Lack, Outline, by_label, no_samples, pools};
use crate::data::creff::chunks;
use crate::data::multimodal::Modalities;
use crate::data::partition::{DirichletConfig, PartitionConfig};
use crate::error::{Error, Result};
use crate::fsx;
use crate::key::{Key, Purpose};

/// What is drawn below the key of partitions; 0 is the deal itself.
enum Of {
    Masks = 1,
    Clients = 2,
    Order = 3,
}

fn key(deal: &Deal, run: Key) -> Key {
    deal.seed.map_or(run, |seed| Key::from_seed(u64::from(seed)))
}

fn below(root: Key, of: Of) -> Key {
    root.fold(Purpose::Partition, of as u64)
}

/// The key of one sample: of its id, wherever it lies.
fn of_sample(masks: Key, id: &str) -> Key {
    let digest = fsx::proof(&[id.as_bytes()]);
    let word = digest.iter().take(8).fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    masks.fold(Purpose::Item, word)
}

/// Choices: dealt by label, then masked.
pub fn labelled(deal: &Deal, lack: Lack, rows: &[Outline], run: Key) -> Result<Vec<Vec<Held>>> {
    let root = key(deal, run);
    let mut groups = by_label(rows);
    let order = below(root, Of::Order);
    for (label, group) in groups.iter_mut().enumerate() {
        order.fold(Purpose::Shuffle, label as u64).rng().shuffle(group);
    }
    let dirichlet =
        DirichletConfig { clients: deal.clients, alpha: deal.alpha, min_size: 1, attempts: 1000, seed: None };
    let advice = "raise scenario.alpha, or lower scenario.clients";
    let clients = PartitionConfig::Dirichlet(dirichlet).deal(&groups, root);
    let clients = clients.map_err(|e| Error::input(e.message()).context("scenario").hint(advice))?;
    let masks = below(root, Of::Masks);
    let roles = roles(deal.clients, lack, root);
    let held = |(client, list): (usize, Vec<u32>)| {
        let one = |sample: u32| {
            let row = &rows[sample as usize];
            let drawn = match lack {
                Lack::Missing { beta } => each(beta, of_sample(masks, row.id)),
                _ => only(roles[client], of_sample(masks, row.id)),
            };
            Held { sample, holds: drawn.and(row.has) }
        };
        list.into_iter().map(one).collect()
    };
    Ok(clients.into_iter().enumerate().map(held).collect())
}

/// Open questions: dealt in equal shares of those with a picture and those without.
pub fn shared(deal: &Deal, lack: Lack, rows: &[Outline], run: Key) -> Result<Vec<Vec<Held>>> {
    let root = key(deal, run);
    let (masks, order) = (below(root, Of::Masks), below(root, Of::Order));
    if let Lack::Nothing | Lack::Missing { .. } = lack {
        let mut all: Vec<u32> = (0..rows.len() as u32).collect();
        order.rng().shuffle(&mut all);
        let held = |sample: &u32| {
            let row = &rows[*sample as usize];
            let drawn = match lack {
                // A question without a picture keeps its words.
                Lack::Missing { beta } if row.has.image => each(beta, of_sample(masks, row.id)),
                _ => Modalities::BOTH,
            };
            Held { sample: *sample, holds: drawn.and(row.has) }
        };
        return Ok(chunks(&all, deal.clients).iter().map(|list| list.iter().map(held).collect()).collect());
    }
    let mut roles = roles(deal.clients, lack, root);
    for (client, role) in roles.iter_mut().enumerate() {
        // With neither, a client is one of the two as a whole: it has no sample that could be either.
        *role = only(*role, masks.fold(Purpose::Client, client as u64));
    }
    let [mut pictures, mut texts] = pools(rows);
    order.fold(Purpose::Shuffle, 0).rng().shuffle(&mut pictures);
    order.fold(Purpose::Shuffle, 1).rng().shuffle(&mut texts);
    let mut clients = vec![Vec::new(); deal.clients];
    share(&pictures, "with", &roles, |role| role.image, &mut clients)?;
    share(&texts, "without", &roles, |role| role.text, &mut clients)?;
    for (client, list) in clients.iter_mut().enumerate() {
        order.fold(Purpose::Client, client as u64).rng().shuffle(list);
    }
    let held =
        |list: Vec<u32>| list.into_iter().map(|sample| Held { sample, holds: rows[sample as usize].has }).collect();
    Ok(clients.into_iter().map(held).collect())
}

/// Adds equal shares of a pool to the clients whose role takes them; `what` is the pool's for an error.
fn share(
    pool: &[u32],
    what: &str,
    roles: &[Modalities],
    takes: impl Fn(&Modalities) -> bool,
    clients: &mut [Vec<u32>],
) -> Result<()> {
    let owners: Vec<usize> = (0..roles.len()).filter(|&client| takes(&roles[client])).collect();
    if owners.len() > pool.len() {
        return Err(no_samples(what, owners.len()));
    }
    if !owners.is_empty() {
        let shares = chunks(pool, owners.len());
        owners.into_iter().zip(shares).for_each(|(client, share)| clients[client].extend(share));
    }
    Ok(())
}

/// What each client holds; a hybrid one may hold neither.
fn roles(clients: usize, lack: Lack, root: Key) -> Vec<Modalities> {
    let key = below(root, Of::Clients);
    match lack {
        Lack::Nothing | Lack::Missing { .. } => vec![Modalities::BOTH; clients],
        Lack::Cross { images } => {
            let mut roles = vec![Modalities::TEXT; clients];
            key.rng().choose(clients, images).into_iter().for_each(|client| roles[client] = Modalities::IMAGE);
            roles
        }
        Lack::Hybrid { keep } => {
            (0..clients).map(|client| each(1.0 - keep, key.fold(Purpose::Client, client as u64))).collect()
        }
    }
}

/// Each modality lost with probability `beta`, by itself.
fn each(beta: f64, key: Key) -> Modalities {
    let mut rng = key.rng();
    let mut stays = || rng.f64() >= beta;
    Modalities { image: stays(), text: stays() }
}

/// A role as it is; where it is neither, one of the two.
fn only(role: Modalities, key: Key) -> Modalities {
    match role {
        Modalities::NEITHER if key.rng().below(2) == 0 => Modalities::IMAGE,
        Modalities::NEITHER => Modalities::TEXT,
        _ => role,
    }
}
