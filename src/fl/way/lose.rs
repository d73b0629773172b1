//! Clients that never answer, and stragglers: a client's time is its work over its speed and its bytes over its line,
//! and who is not there by the deadline is not waited for. Either is left out of the round as if it had not been drawn,
//! and keeps what it kept; the others' bytes are what they are without it.
//!
//! Speeds differ by client and stay: `speed · exp(spread · N(0, 1))`, one draw a client, for its line too.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Acts, Link, Parcel, Station, refuse_unless};
use crate::error::Result;
use crate::fl::ClientId;
use crate::fl::brief::Job;
use crate::key::{Key, Purpose};

/// The knobs of `drop`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Lose {
    /// Chance that a client never answers in a round, in `[0, 1)`.
    pub share: f64,
    /// Seconds after which nobody is waited for; 0 waits.
    pub deadline: f64,
    /// Multiply-adds a second of the median client.
    pub speed: f64,
    /// Bytes a second of the median client's line, both ways.
    pub bandwidth: f64,
    /// How much clients differ: the standard deviation of the logarithm of a client's pace.
    pub spread: f64,
}

impl Default for Lose {
    fn default() -> Self {
        Lose { share: 0.0, deadline: 0.0, speed: 1e10, bandwidth: 1e6, spread: 0.5 }
    }
}

impl Lose {
    /// Whether a client never answers in the round of this key.
    pub fn silent(&self, client: ClientId, round: Key) -> bool {
        self.share > 0.0 && round.fold(Purpose::Client, u64::from(client)).rng().f64() < self.share
    }

    /// Seconds that a client takes; `own` is the client's key, the same in every round.
    fn seconds(&self, multiply_adds: u64, bytes: u64, own: Key) -> f64 {
        let pace = (self.spread * own.rng().normal()).exp();
        (multiply_adds as f64 / self.speed + bytes as f64 / self.bandwidth) / pace
    }
}

impl Link for Lose {
    fn acts(&self) -> Acts {
        Acts::Client
    }

    fn idle(&self) -> bool {
        self.share == 0.0 && self.deadline == 0.0
    }

    fn check(&self) -> Result<()> {
        let Lose { share, deadline, speed, bandwidth, spread } = *self;
        refuse_unless((0.0..1.0).contains(&share), "drop", "share", share, "a share below 1")?;
        let from_zero = [("deadline", deadline), ("spread", spread)];
        for (key, value) in from_zero {
            refuse_unless(value.is_finite() && value >= 0.0, "drop", key, value, "choose 0 or more")?;
        }
        for (key, value) in [("speed", speed), ("bandwidth", bandwidth)] {
            refuse_unless(value.is_finite() && value > 0.0, "drop", key, value, "choose a number above 0")?;
        }
        Ok(())
    }

    fn leave(&self, parcel: &mut Parcel, job: &Job, at: &Station<'_>) -> Result<()> {
        let bytes = parcel.reply.bytes_up() + job.brief.bytes_down(&job.model);
        let own = at.way.own(at.place, job.client);
        let late = self.deadline > 0.0 && self.seconds(parcel.reply.multiply_adds, bytes, own) > self.deadline;
        parcel.reply.wire.late |= late;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_time_is_its_work_and_its_bytes_at_its_own_pace() {
        let lose = Lose { speed: 100.0, bandwidth: 10.0, spread: 0.0, ..Lose::default() };
        assert_eq!(lose.seconds(250, 20, Key::from_seed(1)), 4.5);
        let lose = Lose { spread: 0.7, ..lose };
        let mut logs: Vec<f64> =
            (0..4001).map(|c| (lose.seconds(250, 20, Key::from_seed(1).fold(Purpose::Client, c)) / 4.5).ln()).collect();
        logs.sort_by(f64::total_cmp);
        let deviation = (logs.iter().map(|l| l * l).sum::<f64>() / 4001.0).sqrt();
        assert!(logs[2000].abs() < 0.05 && (deviation - 0.7).abs() < 0.03, "{} {deviation}", logs[2000]);
    }

    #[test]
    fn as_many_never_answer_as_the_share_says() {
        let lose = Lose { share: 0.3, ..Lose::default() };
        let silent = (0..10_000).filter(|&c| lose.silent(c, Key::from_seed(2))).count();
        assert!((2_850..3_150).contains(&silent), "{silent}");
    }
}
