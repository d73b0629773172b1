//! A federation on several ranks: each owns whole leaves of the cohort, trains their clients, and sends one sum a leaf.
//!
//! Rank 0 runs the [round loop](super::round) as it does alone. In an exchange of clients it tells the others what the
//! server has ([`order`]), trains its own leaves, and adds the sums of the others' in the order of the cohort: so **the
//! model has the bytes that one process gives it, whatever the number of ranks**. (As between resumed runs, if all
//! compute on one instruction set.) The server's step, its own jobs, alignment, judging and all that is written are rank
//! 0's alone. The others [serve](super::round::Federation::serve).
//!
//! | what | where |
//! |---|---|
//! | model, the method's and the way's state | rank 0; sent to all at the start of an exchange |
//! | a leaf's sums, 8 bytes a number of each part | its owner, until rank 0 has those before it |
//! | replies that are looked at one by one ([`Collect::Each`](super::Collect), `robust`) | rank 0, as alone |
//! | what a client keeps | the rank that trained it last; it goes to the next one directly, to rank 0 when a checkpoint is due |
//!
//! Links of the way act where [`Acts`](super::way::Acts) says: at the client on the rank that trained it, on the whole on
//! rank 0; what a mask hides adds up leaf by leaf. Nothing is refused for being spread.
//!
//! Cohorts of whole leaves a rank ([`LEAF`] clients) spread evenly; a cohort of one leaf trains on rank 0 alone. What a
//! mask adds up are integers; all else is added in the order of the cohort, so who fails leaves a hole in its leaf.
//!
//! # How to start it
//!
//! ```text
//! cargo build --release --features mpi       # OpenMPI or MPICH with its headers, and libclang
//! mpirun -n 4 fedllava run CONFIG            # as root: --allow-run-as-root; fewer cores than ranks: --oversubscribe
//!
//! #SBATCH --nodes=4 --ntasks-per-node=2 --cpus-per-task=16 --signal=USR1@120
//! srun --mpi=pmix fedllava run CONFIG --threads "$SLURM_CPUS_PER_TASK"
//! ```
//!
//! Ranks other than 0 get the config from rank 0, and read the data themselves: once a machine, where the benchmark's
//! pixels lie in memory ([`data::shared`](crate::data::shared)); pictures that stay in files are shared by the system's cache;
//! supplies of a method (a server set apart, unlabelled images, a teacher's logits) and a multimodal model's weights are
//! each rank's own. `run.threads = 0` takes the cores that the launcher gives a rank.
//!
//! # How it ends
//!
//! With rank 0's exit code, as alone. A rank that fails or panics tells rank 0, which says `rank 2: …` and ends all with
//! the exit code of that error. A rank that is killed is the launcher's to notice: `mpirun` says which, ends all, and exits
//! with 128 + the signal (137 after `kill -9`; MPICH's with 9). SIGINT, SIGTERM and SIGUSR1 to `mpirun` or to any rank
//! stop all at the next step, exit code 75; OpenMPI's `mpirun` itself exits with 1 after the first two, and leaves a second
//! for it (`--mca odls_base_sigkill_timeout 30` leaves more). After each the same command goes on, on any number of ranks.

mod order;
mod pack;
mod packed;
mod serve;

use std::collections::BTreeMap;
use std::ops::Range;

use super::failure::{Failure, Failures};
use super::round::{Kept, Server};
use super::way::Way;
use super::{ClientId, Collected, Exchange, FederatedConfig, LEAF, Who};
use crate::error::{Class, Error, Result};
use crate::exec::Context;
use order::{Close, Order, Work};
use pack::{Packet, fields, pack, pack_all, unpack};
use serve::Tail;

/// The places in a cohort of `n` that a rank trains: whole leaves, neighbours, dealt evenly.
pub fn share(n: usize, rank: usize, size: usize) -> Range<usize> {
    let (leaves, size) = (n.div_ceil(LEAF), size.max(1));
    let from = |rank: usize| ((rank * leaves).div_ceil(size) * LEAF).min(n);
    from(rank)..from(rank + 1)
}

/// What a client keeps goes from one rank to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    client: ClientId,
    from: usize,
    to: usize,
}
fields!(Move: client, from, to);

/// What has to go where before `who` trains, in the cohort's order.
fn moves(kept: &BTreeMap<ClientId, Kept>, who: &[ClientId], size: usize) -> Vec<Move> {
    let mut all = Vec::new();
    for to in 0..size {
        for &client in &who[share(who.len(), to, size)] {
            let from = kept.get(&client).map(|kept| kept.rank).filter(|from| *from != to);
            all.extend(from.map(|from| Move { client, from, to }));
        }
    }
    all
}

/// What goes with a client: what it keeps, and what it kept before the round, where that has changed.
type Luggage = (Option<Kept>, Option<Option<Kept>>);

/// Does the moves, on every rank in the same order; rank 0 knows where all is.
fn carry(moves: &[Move], kept: &mut BTreeMap<ClientId, Kept>, failures: &mut Failures, cx: &Context) -> Result<()> {
    let own = cx.ranks.rank();
    for Move { client, from, to } in moves {
        if own == *from {
            let luggage: Luggage = (kept.remove(client), failures.before.remove(client));
            cx.ranks.send(*to, &pack(&luggage))?;
            note(*client, *to, luggage, own, kept, failures);
        } else if own == *to {
            let luggage: Luggage = unpack(&cx.ranks.receive(*from, &cx.cancel)?)?;
            note(*client, *to, luggage, own, kept, failures);
        } else if own == 0 {
            let luggage = (kept.remove(client), failures.before.remove(client));
            note(*client, *to, luggage, own, kept, failures);
        }
    }
    Ok(())
}

/// Enters where a client's things are now; other ranks than 0 know only of their own.
fn note(
    client: ClientId,
    to: usize,
    luggage: Luggage,
    own: usize,
    kept: &mut BTreeMap<ClientId, Kept>,
    failures: &mut Failures,
) {
    let at = |it: Kept| if own == to { Kept { rank: to, ..it } } else { Kept::elsewhere(it.round, to) };
    if own == 0 || own == to {
        kept.extend(luggage.0.map(|it| (client, at(it))));
        failures.before.extend(luggage.1.map(|before| (client, before.map(at))));
    }
}

/// An exchange as rank 0 sees it: which part of it is its own.
pub(super) struct Spread<'a> {
    exchange: &'a Exchange,
    who: &'a [ClientId],
    /// The ranks that share it; one alone does the server's own jobs.
    size: usize,
    /// Its clients on all ranks, those that failed earlier in the round included.
    pub parties: usize,
    cx: &'a Context,
}

impl<'a> Spread<'a> {
    /// An exchange with these clients.
    pub fn new(exchange: &'a Exchange, who: &'a [ClientId], failures: &Failures, cx: &'a Context) -> Self {
        let size = if matches!(exchange.who, Who::Server { .. }) { 1 } else { cx.ranks.size() };
        Spread { exchange, who, size, parties: who.len() + failures.all.len(), cx }
    }

    /// Tells the other ranks what to do, and brings what clients keep to where they train.
    pub fn begin(
        &self,
        server: &mut Server,
        number: usize,
        asked: Vec<ClientId>,
        got: &[Collected],
        way: &Way<'_>,
        failures: &mut Failures,
    ) -> Result<()> {
        if self.size == 1 {
            return Ok(());
        }
        let work = Work {
            round: server.round,
            number,
            exchange: *self.exchange,
            asked,
            failed: failures.all.len(),
            model: server.model.clone(),
            state: server.state.clone(),
            way: way.state.clone(),
            got: Packet(pack_all(got)),
            moves: moves(&server.kept, self.who, self.size),
        };
        let moves = work.moves.clone();
        tell(&Order::Work(Box::new(work)), self.cx)?;
        carry(&moves, &mut server.kept, failures, self.cx)
    }

    /// The clients, or the server's jobs, of rank 0.
    pub fn own(&self) -> &'a [ClientId] {
        &self.who[share(self.who.len(), 0, self.size)]
    }

    /// Joins what the other ranks' leaves gave, in the cohort's order.
    pub fn gather(
        &self,
        round: usize,
        got: &mut Collected,
        kept: &mut BTreeMap<ClientId, Kept>,
        failures: &mut Failures,
        config: &FederatedConfig,
    ) -> Result<()> {
        for rank in 1..self.size {
            let take = || self.cx.ranks.receive(rank, &self.cx.cancel);
            for _ in 0..share(self.who.len(), rank, self.size).len().div_ceil(LEAF) {
                got.join(unpack(&take()?)?)?;
            }
            let tail: Tail = unpack(&take()?)?;
            for (client, (why, code)) in tail.failed {
                failures.admit(Failure { client, why }, Class::of_exit_code(code), round, self.parties, config)?;
            }
            tail.lost.into_iter().for_each(|client| failures.lose(client));
            kept.extend(tail.kept.into_iter().map(|client| (client, Kept::elsewhere(round, rank))));
            got.bytes_down += tail.bytes_down;
        }
        Ok(())
    }
}

/// Rank 0 tells the others something.
fn tell(order: &Order, cx: &Context) -> Result<()> {
    if cx.ranks.size() == 1 { Ok(()) } else { cx.ranks.tell(&pack(order)) }
}

/// Tells the other ranks how a round ended.
pub(super) fn close(failures: &Failures, cx: &Context) -> Result<()> {
    tell(&Order::Close(Close { void: failures.void, out: failures.gone() }), cx)
}

/// Brings what these clients keep, sorted, to rank 0 and to `take`, one after another.
pub fn fetch(
    kept: &BTreeMap<ClientId, Kept>,
    clients: Vec<ClientId>,
    cx: &Context,
    take: &mut dyn FnMut(ClientId, Kept) -> Result<()>,
) -> Result<()> {
    let places = clients.iter().filter_map(|client| Some((*client, kept.get(client)?))).collect::<Vec<_>>();
    if places.iter().any(|(_, kept)| kept.rank > 0) {
        tell(&Order::Fetch(clients), cx)?;
    }
    for (client, kept) in places {
        let there = match kept.rank {
            0 => kept.clone(),
            rank => unpack(&cx.ranks.receive(rank, &cx.cancel)?)?,
        };
        if there.round != kept.round {
            let (at, known) = (there.round, kept.round);
            return Err(Error::defect(format!("ranks: client {client} keeps since round {at}, not {known}")));
        }
        take(client, Kept { rank: 0, ..there })?;
    }
    Ok(())
}

/// Brings all that clients keep to rank 0.
pub fn gather(kept: &mut BTreeMap<ClientId, Kept>, cx: &Context) -> Result<()> {
    let mut here = BTreeMap::new();
    fetch(kept, kept.keys().copied().collect(), cx, &mut |client, kept| {
        here.insert(client, kept);
        Ok(())
    })?;
    *kept = here;
    Ok(())
}

/// The federated rounds are over: the other ranks' [`serve`](super::round::Federation::serve) returns.
pub fn end(cx: &Context) -> Result<()> {
    tell(&Order::End, cx)
}

#[cfg(test)]
mod tests;
