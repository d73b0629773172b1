//! What ranks above 0 do.

use std::collections::BTreeMap;
use std::mem::take;

use super::order::{Close, Order, Work};
use super::pack::{fields, pack, unpack};
use super::{carry, share};
use crate::error::Result;
use crate::exec::Context;
use crate::fl::failure::Failures;
use crate::fl::intake::Intake;
use crate::fl::round::{Federation, Kept, Server};
use crate::fl::{ClientId, Collected};

/// What a rank says after the sums of its leaves.
pub(super) struct Tail {
    /// Clients that failed, in order, why, and the exit code of its class.
    pub failed: Vec<(ClientId, (String, u8))>,
    /// Clients that came too late.
    pub lost: Vec<ClientId>,
    /// Clients that keep something new.
    pub kept: Vec<ClientId>,
    /// Bytes sent to its clients.
    pub bytes_down: u64,
}
fields!(Tail: failed, lost, kept, bytes_down);

/// What a rank above 0 knows between two orders.
#[derive(Default)]
struct Aide {
    /// What clients keep that were here last.
    kept: BTreeMap<ClientId, Kept>,
    /// What the exchange at hand changed of it, until rank 0 has taken its step.
    new: BTreeMap<ClientId, Kept>,
    /// What was kept before the round.
    failures: Failures,
}

impl Aide {
    /// The last exchange came to something.
    fn settle(&mut self) {
        self.failures.keep(&mut self.kept, take(&mut self.new));
    }

    fn close(&mut self, Close { void, out }: Close) {
        let mut failures = take(&mut self.failures);
        match void {
            true => {
                self.new.clear();
                failures.lose_all();
            }
            false => failures.keep(&mut self.kept, take(&mut self.new)),
        }
        out.into_iter().for_each(|client| failures.lose(client));
        failures.close(&mut self.kept);
    }
}

impl Federation<'_> {
    /// What a rank above 0 does while rank 0 [runs](Self::run): trains its leaves of every exchange, keeps what their
    /// clients keep, and says what it is asked; until the [end](super::end). What fails here is the caller's to tell.
    pub fn serve(&self, cx: &Context) -> Result<()> {
        let mut aide = Aide::default();
        loop {
            match unpack(&cx.ranks.told(&cx.cancel)?)? {
                Order::Work(work) => self.assist(*work, &mut aide, cx)?,
                Order::Close(close) => aide.close(close),
                Order::Fetch(clients) => {
                    let mut here = clients.iter().filter_map(|client| aide.kept.get(client));
                    here.try_for_each(|kept| cx.ranks.send(0, &pack(kept)))?;
                }
                Order::End => return Ok(()),
            }
        }
    }

    /// This rank's leaves of an exchange: a sum each, then what else there is to say.
    fn assist(&self, work: Work, aide: &mut Aide, cx: &Context) -> Result<()> {
        aide.settle();
        carry(&work.moves, &mut aide.kept, &mut aide.failures, cx)?;
        let Work { round, number, exchange, asked, failed, model, state, way, got, .. } = work;
        let (mut way, mut who) = (self.way(round, way), asked);
        way.begin(&exchange, number, &mut who);
        let parties = who.len() + failed;
        let mine = &who[share(who.len(), cx.ranks.rank(), cx.ranks.size())];
        let classifier = self.trainer.classifier();
        let got: Vec<Collected> = unpack(&got.0)?;
        let now = self.now(round, classifier.as_ref(), &got, cx);
        let mut server = Server { round, model, state, way: Default::default(), kept: take(&mut aide.kept) };
        let jobs = self.jobs(&server, &exchange, number, &now, mine, &way);
        aide.kept = take(&mut server.kept);
        let (jobs, mut failures, mut leaves) = (jobs?, Failures::default(), Vec::new());
        let mut intake = Intake::new(&jobs, parties, &exchange, &way, self.config);
        self.work(&jobs, &way, cx, &mut |i, returned| {
            if intake.take(i, returned, &mut failures)? {
                leaves.push(pack(&take(&mut intake.leaf)));
            }
            Ok(())
        })?;
        leaves.iter().try_for_each(|leaf| cx.ranks.send(0, leaf))?;
        let rank = cx.ranks.rank();
        aide.new = intake.kept.into_iter().map(|(client, kept)| (client, Kept { rank, ..kept })).collect();
        let tail = Tail {
            failed: failures.told(),
            lost: failures.lost,
            kept: aide.new.keys().copied().collect(),
            bytes_down: jobs.iter().map(|job| job.brief.bytes_down(&job.model)).sum(),
        };
        cx.ranks.send(0, &pack(&tail))
    }
}
