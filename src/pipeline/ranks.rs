//! A run on several ranks: rank 0 runs it, the others open the same inputs and serve its federated rounds.

use serde::{Deserialize, Serialize};

use super::experiment::instruction_set;
use super::{Experiment, Library, mllm};
use crate::config::Config;
use crate::data::shared::Notice;
use crate::error::{Error, Result};
use crate::exec::{Context, Event};
use crate::fl::LEAF;

/// What rank 0 says of the run that the others open.
#[derive(Serialize, Deserialize)]
struct Summons {
    /// The resolved config.
    config: String,
    /// Digest of the training images that rank 0 has; none where a task has none of a benchmark.
    images: Option<String>,
    /// Whether this machine's benchmark follows.
    shared: bool,
}

/// Has the other ranks open this run and serve it; rank 0 has read and checked all of it by now. Ranks of its machine
/// see the benchmark that lies in its memory; the others' is held against `images`, the digest of the training images.
pub(super) fn summon(config: &Config, library: Option<&Library>, images: Option<&str>, cx: &Context) -> Result<()> {
    let ranks = &cx.ranks;
    if ranks.size() == 1 {
        return Ok(());
    }
    let leaves = config.federated.cohort.div_ceil(LEAF);
    if leaves < ranks.size() {
        cx.events.on(Event::Warning(&format!(
            "{} ranks, and a cohort of {} is {leaves} leaves of {LEAF} clients: {} ranks wait",
            ranks.size(),
            config.federated.cohort,
            ranks.size() - leaves
        )));
    }
    let text = toml::to_string(&config.to_table()?).map_err(|e| Error::defect(format!("config: {e}")))?;
    let (notice, near) = (library.and_then(Library::notice), ranks.neighbours());
    for rank in 1..ranks.size() {
        let shared = notice.is_some() && near.contains(&rank);
        let images = images.map(str::to_string);
        ranks.send(rank, &json(&Summons { config: text.clone(), images, shared })?)?;
        if let Some(notice) = notice.as_ref().filter(|_| shared) {
            ranks.send(rank, notice.as_bytes())?;
        }
    }
    let own = instruction_set();
    for rank in 1..ranks.size() {
        let there = String::from_utf8_lossy(&ranks.receive(rank, &cx.cancel)?).into_owned();
        if there != own {
            cx.events.on(Event::Warning(&format!(
                "rank {rank} computes with {there}, rank 0 with {own}: the model is not that of one process to the bit"
            )));
        }
    }
    Ok(())
}

fn json(what: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(what).map_err(|e| Error::defect(format!("ranks: {e}")))
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::defect(format!("ranks: {e}")))
}

/// A run that this rank was asked to serve.
pub struct Served {
    /// Its configuration.
    pub config: Config,
    images: Option<String>,
    shared: bool,
}

impl Served {
    /// Waits for the next run; none when rank 0 has nothing more.
    pub fn next(cx: &Context) -> Result<Option<Served>> {
        let bytes = cx.ranks.receive(0, &cx.cancel)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let Summons { config, images, shared } = read(&bytes)?;
        cx.ranks.send(0, instruction_set().as_bytes())?;
        let table: toml::Table = toml::from_str(&config).map_err(|e| Error::defect(format!("ranks: config: {e}")))?;
        Ok(Some(Served { config: Config::from_table(table)?, images, shared }))
    }

    /// Opens the run and serves its rounds until they are over.
    pub fn serve(self, cx: &Context) -> Result<()> {
        let config = &self.config;
        if let Some(task) = config.task.mllm() {
            return mllm::serve(config, task, cx);
        }
        let experiment = Experiment::open_with(config.clone(), &self.library(cx)?, cx)?;
        same_images(self.images.as_deref(), &experiment.benchmark.train.digest)?;
        experiment.federated(None, None, cx, |federation| federation.serve(cx))
    }

    /// The benchmark as the first rank of this machine has it; that one reads it and tells the others.
    fn library(&self, cx: &Context) -> Result<Library> {
        let (ranks, config, near) = (&cx.ranks, &self.config, cx.ranks.neighbours());
        let first = near.first().copied().unwrap_or(0);
        if first == ranks.rank() {
            let library = Library::default();
            library.benchmark(config, config.run.split_key(), cx)?;
            let notice = library.notice().unwrap_or_default();
            near.iter().skip(1).try_for_each(|&rank| ranks.send(rank, notice.as_bytes()))?;
            return Ok(library);
        }
        let told = if first > 0 || self.shared { ranks.receive(first, &cx.cancel)? } else { Vec::new() };
        if told.is_empty() {
            return Ok(Library::default());
        }
        // A rank in a container of its own may not reach the other's files, and reads for itself; `serve` compares.
        let seen = read::<Notice>(&told).and_then(Notice::open);
        Ok(seen.map_or_else(|_| Library::default(), |benchmark| Library::of(config, benchmark)))
    }
}

/// Refuses training images that are not rank 0's: two machines may have two copies.
fn same_images(told: Option<&str>, own: &str) -> Result<()> {
    match told {
        Some(told) if told != own => {
            Err(Error::data(format!("the training images here have the digest {own}, those of rank 0 {told}"))
                .hint("give every machine the same files"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_images_than_rank_0_has_are_refused() {
        assert!(same_images(Some("ab"), "ab").is_ok() && same_images(None, "ab").is_ok());
        let e = same_images(Some("ab"), "cd").unwrap_err().to_string();
        assert!(e.contains("digest cd") && e.contains("rank 0 ab"), "{e}");
    }
}
