//! What the jobs of an exchange give on one rank, as they come in: sums by leaf, what clients keep, who failed.

use std::collections::BTreeMap;

use super::aggregate::LEAF;
use super::brief::Job;
use super::failure::Failures;
use super::leaf::Leaf;
use super::round::Kept;
use super::trainer::Returned;
use super::way::Way;
use super::{ClientId, Collect, Exchange, FederatedConfig};
use crate::error::Result;

/// Takes what jobs give, in their order.
pub(super) struct Intake<'a> {
    jobs: &'a [Job],
    parties: usize,
    collect: Collect,
    config: &'a FederatedConfig,
    /// The leaf at hand; all of them, where nobody takes them out.
    pub leaf: Leaf,
    /// What clients keep from now on.
    pub kept: BTreeMap<ClientId, Kept>,
}

impl<'a> Intake<'a> {
    /// For these jobs of an exchange, the first of which begins a leaf; `parties` are its clients on all ranks, earlier
    /// failures included.
    pub fn new(
        jobs: &'a [Job],
        parties: usize,
        exchange: &Exchange,
        way: &Way<'_>,
        config: &'a FederatedConfig,
    ) -> Self {
        let collect = if way.compares() { Collect::Each } else { exchange.collect };
        Intake { jobs, parties, collect, config, leaf: Leaf::default(), kept: BTreeMap::new() }
    }

    /// Takes what job `i` gave; whether it is the last of a leaf. Who fails or comes too late leaves its place there empty.
    pub fn take(&mut self, i: usize, returned: Result<Returned>, failures: &mut Failures) -> Result<bool> {
        let job = &self.jobs[i];
        match returned {
            Ok((reply, _)) if reply.wire.late => failures.lose(job.client),
            Ok((reply, keep)) => {
                self.kept.extend(keep.map(|keep| (job.client, Kept::new(job.round, keep))));
                self.leaf.fold(job.client, reply, self.collect)?;
            }
            Err(e) => failures.leave_out(job, e, self.parties, self.config)?,
        }
        let ends = (i + 1).is_multiple_of(LEAF) || i + 1 == self.jobs.len();
        if ends {
            self.leaf.got.close();
        }
        Ok(ends)
    }
}
