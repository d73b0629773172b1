//! A run on several ranks: rank 0 runs it, the others open the same inputs and serve its federated rounds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::experiment::instruction_set;
use super::made_of::Inputs;
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
    /// Digests of what rank 0 has read and the others read too: name → digest.
    inputs: BTreeMap<String, String>,
    /// Whether this machine's benchmark follows.
    shared: bool,
}

/// What a rank answers once it has the benchmark.
#[derive(Serialize, Deserialize)]
struct Answer {
    instruction_set: String,
    /// Why it could not see the benchmark in its machine's memory and has read one of its own.
    apart: Option<String>,
}

/// Has the other ranks open this run and serve it; rank 0 has read and checked all of it by now. Ranks of its machine
/// see the benchmark that lies in its memory; whatever a rank reads is held against `inputs`.
pub(super) fn summon(config: &Config, library: Option<&Library>, inputs: Inputs, cx: &Context) -> Result<()> {
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
        let inputs = inputs.iter().map(|(name, made)| (name.clone(), made.digest.clone())).collect();
        ranks.send(rank, &json(&Summons { config: text.clone(), inputs, shared })?)?;
        if let Some(notice) = notice.as_ref().filter(|_| shared) {
            ranks.send(rank, notice.as_bytes())?;
        }
    }
    let own = instruction_set();
    for rank in 1..ranks.size() {
        let Answer { instruction_set: there, apart } = read(&ranks.receive(rank, &cx.cancel)?)?;
        if there != own {
            cx.events.on(Event::Warning(&format!(
                "rank {rank} computes with {there}, rank 0 with {own}: the model is not that of one process to the bit"
            )));
        }
        if let Some(why) = apart {
            cx.events.on(Event::Warning(&format!(
                "rank {rank} cannot see the images in its machine's memory and keeps its own: {why}"
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
    inputs: BTreeMap<String, String>,
    shared: bool,
}

impl Served {
    /// Waits for the next run; none when rank 0 has nothing more.
    pub fn next(cx: &Context) -> Result<Option<Served>> {
        let bytes = cx.ranks.receive(0, &cx.cancel)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let Summons { config, inputs, shared } = read(&bytes)?;
        let table: toml::Table = toml::from_str(&config).map_err(|e| Error::defect(format!("ranks: config: {e}")))?;
        Ok(Some(Served { config: Config::from_table(table)?, inputs, shared }))
    }

    /// Opens the run and serves its rounds until they are over.
    pub fn serve(self, cx: &Context) -> Result<()> {
        let config = &self.config;
        if let Some(task) = config.task.mllm() {
            self.answer(None, cx)?;
            return mllm::serve(config, task, &|own| same(&self.inputs, own), cx);
        }
        let (library, apart) = self.library(cx)?;
        self.answer(apart, cx)?;
        let experiment = Experiment::open_with(config.clone(), &library, cx)?;
        same(&self.inputs, experiment.sets())?;
        experiment.federated(None, None, cx, |federation| federation.serve(cx))
    }

    fn answer(&self, apart: Option<String>, cx: &Context) -> Result<()> {
        cx.ranks.send(0, &json(&Answer { instruction_set: instruction_set(), apart })?)
    }

    /// The benchmark as the first rank of this machine has it, which reads it and tells the others; and, where that one's
    /// could not be seen, why.
    fn library(&self, cx: &Context) -> Result<(Library, Option<String>)> {
        let (ranks, config, near) = (&cx.ranks, &self.config, cx.ranks.neighbours());
        let first = near.first().copied().unwrap_or(0);
        if first == ranks.rank() {
            let library = Library::default();
            library.benchmark(config, config.run.split_key(), cx)?;
            let notice = library.notice().unwrap_or_default();
            near.iter().skip(1).try_for_each(|&rank| ranks.send(rank, notice.as_bytes()))?;
            return Ok((library, None));
        }
        let told = if first > 0 || self.shared { ranks.receive(first, &cx.cancel)? } else { Vec::new() };
        if told.is_empty() {
            return Ok((Library::default(), None));
        }
        // A rank in a container of its own may not reach the other's files.
        match read::<Notice>(&told).and_then(Notice::open) {
            Ok(benchmark) => Ok((Library::of(config, benchmark), None)),
            Err(e) => Ok((Library::default(), Some(e.message().to_string()))),
        }
    }
}

/// Refuses inputs that are not rank 0's: two machines may have two copies.
fn same(told: &BTreeMap<String, String>, own: Inputs) -> Result<()> {
    let other = own.iter().find_map(|(name, made)| Some((name, made, told.get(name).filter(|d| **d != made.digest)?)));
    other.map_or(Ok(()), |(name, made, theirs)| {
        Err(Error::data(format!("{name}: the digest here is {}, that of rank 0 {theirs}", made.digest))
            .hint("give every machine the same files"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsx::Made;

    #[test]
    fn other_inputs_than_rank_0_has_are_refused_by_name() {
        let own = |digest: &str| Inputs::from([("server_set".into(), Made { digest: digest.into(), covers: "all" })]);
        let told = BTreeMap::from([("server_set".to_string(), "ab".to_string())]);
        assert!(same(&told, own("ab")).is_ok() && same(&BTreeMap::new(), own("ab")).is_ok());
        let e = same(&told, own("cd")).unwrap_err().to_string();
        assert!(e.contains("server_set") && e.contains("here is cd") && e.contains("rank 0 ab"), "{e}");
    }
}
