//! What a run will need in memory, said before it starts.

use crate::error::{Error, Result};
pub use crate::exec::{available_memory, human};

/// A sum of named needs, in bytes.
#[derive(Clone, Debug, Default)]
pub struct Estimate(Vec<(String, u64)>);

impl Estimate {
    /// Adds a need.
    pub fn add(&mut self, what: impl Into<String>, bytes: u64) -> &mut Self {
        self.0.push((what.into(), bytes));
        self
    }

    /// All needs together, in bytes.
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, (_, b)| sum.saturating_add(*b))
    }

    /// `a 1.2 GiB + b 30 MiB = 1.2 GiB`.
    pub fn sum_in_words(&self) -> String {
        let parts: Vec<String> = self.0.iter().map(|(what, bytes)| format!("{what} {}", human(*bytes))).collect();
        format!("{} = {}", parts.join(" + "), human(self.total()))
    }

    /// Refuses what cannot fit into `available` bytes, with the sum shown.
    pub fn check(&self, available: Option<u64>) -> Result<()> {
        match available {
            Some(available) if self.total() > available => Err(Error::environment(format!(
                "this run needs about {}, and {} of memory is available",
                self.sum_in_words(),
                human(available)
            ))
            .hint("use fewer threads, a smaller model or batch, or an algorithm whose clients keep no state")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_the_sum() {
        let mut estimate = Estimate::default();
        estimate.add("replies", 3 << 30).add("images", 1 << 20);
        let e = estimate.check(Some(1 << 30)).unwrap_err().to_string();
        assert!(e.contains("replies 3.0 GiB + images 1.0 MiB = 3.0 GiB") && e.contains("1.0 GiB of memory"), "{e}");
        assert!(estimate.check(Some(4 << 30)).is_ok());
    }
}
