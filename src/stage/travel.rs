//! What a round's messages between ranks take.

use crate::exec::ranks::Spent;
use crate::exec::{Context, Event, human};

/// What messages between ranks took, as rank 0 sees it.
#[derive(Default)]
pub(super) struct Travel {
    rounds: usize,
    /// Seconds of the rounds, of them those of messages and those of waiting for other ranks.
    seconds: [f64; 3],
    bytes: u64,
}

impl Travel {
    /// The figures of the round that ended, for `times.jsonl`; none where this process is alone.
    pub fn of_round(&mut self, seconds: f64, cx: &Context) -> Vec<(&'static str, f64)> {
        if cx.ranks.size() == 1 {
            return Vec::new();
        }
        let Spent { waiting, moving, bytes } = cx.ranks.spent();
        self.rounds += 1;
        self.bytes += bytes;
        self.seconds.iter_mut().zip([seconds, moving, waiting]).for_each(|(all, of)| *all += of);
        vec![("ranks_moving", moving), ("ranks_waiting", waiting), ("ranks_bytes", bytes as f64)]
    }

    /// Says what a round of them took.
    pub fn say(&self, cx: &Context) {
        let (ranks, rounds) = (cx.ranks.size(), self.rounds as f64);
        if self.rounds > 0 {
            let [seconds, moving, waiting] = self.seconds.map(|s| s / rounds);
            let (percent, bytes) = (100.0 / seconds.max(1e-9), human((self.bytes as f64 / rounds) as u64));
            cx.events.on(Event::Note(&format!(
                "{ranks} ranks: a round of {seconds:.3} s had {bytes} of messages in {:.1} ms ({:.1} %) and waited {:.1} ms ({:.1} %) for other ranks",
                1e3 * moving,
                percent * moving,
                1e3 * waiting,
                percent * waiting
            )));
        }
    }
}
