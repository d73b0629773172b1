//! The server's images without labels, which FedDF, FedBE and FEDIC distil on: another data set's or an open pool's.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DataConfig, PoolConfig};
use crate::error::{Error, Result};
use crate::key::{Key, Purpose};

/// The `unlabelled` section. Its images' labels, where they have any, are never read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UnlabelledConfig {
    /// Another data set's training images, as a `data` section names it; its images must have the benchmark's size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<DataConfig>,
    /// An open pool, as a `pool` section names it, shrunk to the benchmark's size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolConfig>,
    /// How many images, drawn by key; 0 takes all.
    pub images: usize,
}

impl Default for UnlabelledConfig {
    fn default() -> Self {
        UnlabelledConfig { data: None, pool: None, images: 5000 }
    }
}

impl UnlabelledConfig {
    /// Whether it names images.
    pub fn named(&self) -> bool {
        self.data.is_some() || self.pool.is_some()
    }

    /// Refuses two origins.
    pub fn check(&self) -> Result<()> {
        match (&self.data, &self.pool) {
            (Some(_), Some(_)) => Err(Error::input("unlabelled: data and pool are both named; choose one")),
            _ => Ok(()),
        }
    }

    /// Which of `n` images, ascending.
    pub fn choose(&self, n: usize, key: Key) -> Vec<u32> {
        if self.images == 0 || self.images >= n {
            return (0..n as u32).collect();
        }
        let mut rng = key.fold(Purpose::Unlabelled, 0).rng();
        let mut chosen: Vec<u32> = rng.choose(n, self.images).into_iter().map(|i| i as u32).collect();
        chosen.sort_unstable();
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_images_are_drawn_by_key_and_all_when_there_are_fewer() {
        let config = UnlabelledConfig { images: 5, ..UnlabelledConfig::default() };
        let (a, b) = (config.choose(100, Key::from_seed(1)), config.choose(100, Key::from_seed(2)));
        assert!(a.len() == 5 && a != b && a.is_sorted());
        assert_eq!(config.choose(3, Key::from_seed(1)), [0, 1, 2]);
    }
}
