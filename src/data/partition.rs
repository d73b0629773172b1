//! Who holds which image: the `partition` section.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::creff;
use crate::error::{Error, Result};
use crate::key::{Key, Purpose};

/// How the kept images are dealt to clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum PartitionConfig {
    /// CReFF's and CLIP2FL's, to the image: see [`creff`].
    Creff(CreffConfig),
    /// Each class is dealt by a Dirichlet draw over the clients (Hsu et al. 2019; Yurochkin et al. 2019).
    Dirichlet(DirichletConfig),
    /// Sorted by class and cut into shards; each client gets some (McMahan et al. 2017).
    Shards(ShardsConfig),
    /// Shuffled and cut into equal parts.
    Iid(IidConfig),
    /// A split that `split export`, or other code, wrote: see [`split_file`](super::split_file).
    File(FileConfig),
}

impl Default for PartitionConfig {
    fn default() -> Self {
        PartitionConfig::Creff(CreffConfig::default())
    }
}

/// `partition.kind = "creff"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CreffConfig {
    /// Clients, at least 1. (The reference needs at least 10; fewer make one slice of so many workers.)
    pub clients: usize,
    /// Concentration, > 0: small is uneven.
    pub alpha: f64,
    /// Seed of numpy's generators.
    pub seed: u32,
    /// Draws of a slice before giving up.
    pub attempts: usize,
}

impl Default for CreffConfig {
    fn default() -> Self {
        CreffConfig { clients: 20, alpha: 0.5, seed: 7, attempts: 2000 }
    }
}

/// `partition.kind = "dirichlet"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DirichletConfig {
    /// Clients, at least 1.
    pub clients: usize,
    /// Concentration, > 0: small is uneven.
    pub alpha: f64,
    /// Images that every client must hold.
    pub min_size: usize,
    /// Draws before giving up.
    pub attempts: usize,
    /// A seed of its own; without it the run's.
    pub seed: Option<u64>,
}

impl Default for DirichletConfig {
    fn default() -> Self {
        DirichletConfig { clients: 20, alpha: 0.5, min_size: 10, attempts: 1000, seed: None }
    }
}

/// `partition.kind = "shards"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ShardsConfig {
    /// Clients, at least 1.
    pub clients: usize,
    /// Shards that each client gets.
    pub per_client: usize,
    /// A seed of its own; without it the run's.
    pub seed: Option<u64>,
}

impl Default for ShardsConfig {
    fn default() -> Self {
        ShardsConfig { clients: 20, per_client: 2, seed: None }
    }
}

/// `partition.kind = "iid"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IidConfig {
    /// Clients, at least 1.
    pub clients: usize,
    /// A seed of its own; without it the run's.
    pub seed: Option<u64>,
}

impl Default for IidConfig {
    fn default() -> Self {
        IidConfig { clients: 20, seed: None }
    }
}

/// `partition.kind = "file"`: long tail, server set and validation set come from the file too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FileConfig {
    /// The split's JSON file.
    pub path: String,
    /// Clients it holds.
    pub clients: usize,
}

impl Default for FileConfig {
    fn default() -> Self {
        FileConfig { path: String::new(), clients: 20 }
    }
}

impl PartitionConfig {
    /// Seed of the reference generator that draws cohorts: the partition's own where it has one, else CReFF's 7.
    pub fn reference_seed(&self) -> u32 {
        match self {
            PartitionConfig::Creff(c) => c.seed,
            _ => CreffConfig::default().seed,
        }
    }

    /// Number of clients.
    pub fn clients(&self) -> usize {
        match self {
            PartitionConfig::Creff(c) => c.clients,
            PartitionConfig::Dirichlet(c) => c.clients,
            PartitionConfig::Shards(c) => c.clients,
            PartitionConfig::Iid(c) => c.clients,
            PartitionConfig::File(c) => c.clients,
        }
    }

    /// The key of this partition's draws: of its own seed if it has one, else the run's.
    pub fn key(&self, run: Key) -> Key {
        let seed = match self {
            PartitionConfig::Creff(c) => Some(u64::from(c.seed)),
            PartitionConfig::Dirichlet(c) => c.seed,
            PartitionConfig::Shards(c) => c.seed,
            PartitionConfig::Iid(c) => c.seed,
            PartitionConfig::File(_) => None,
        };
        seed.map_or(run, Key::from_seed)
    }

    /// The error of a client that drew nothing, the first of so many.
    pub(super) fn empty(&self, client: usize, count: usize) -> Error {
        let clients = self.clients();
        let error = |why: &str| {
            Error::input(format!(
                "partition: client {client} drew no image, {count} of {clients} clients did not; {why}"
            ))
        };
        match self {
            PartitionConfig::Dirichlet(c) => error(&format!("min_size = {} allows that", c.min_size))
                .hint("set partition.min_size to 1 or more, raise partition.alpha, or lower partition.clients"),
            _ => error("there are too few images").hint("lower partition.clients"),
        }
    }

    /// Refuses values that no images could make right.
    pub fn check(&self) -> Result<()> {
        let (alpha, attempts) = match self {
            PartitionConfig::Creff(c) => (c.alpha, c.attempts),
            PartitionConfig::Dirichlet(c) => (c.alpha, c.attempts),
            PartitionConfig::Shards(c) if c.per_client == 0 => {
                return Err(Error::input("partition.per_client = 0: the smallest is 1"));
            }
            _ => return Ok(()),
        };
        match (alpha.is_finite() && alpha > 0.0, attempts) {
            (false, _) => Err(Error::input(format!("partition.alpha = {alpha} is not a positive number"))),
            (_, 0) => Err(Error::input("partition.attempts = 0: nothing would be drawn")),
            _ => Ok(()),
        }
    }

    /// Refuses more clients than images.
    pub fn fits(&self, images: usize) -> Result<()> {
        let clients = self.clients();
        match clients == 0 || clients > images {
            true => Err(Error::input(format!("partition.clients = {clients} with {images} images"))
                .hint("every client needs at least one image")),
            false => Ok(()),
        }
    }

    /// Deals `kept` (image indices of each class, in draw order) to the clients; every image to exactly one.
    pub fn deal(&self, kept: &[Vec<u32>], run: Key) -> Result<Vec<Vec<u32>>> {
        self.fits(kept.iter().map(Vec::len).sum())?;
        self.check()?;
        let key = self.key(run).fold(Purpose::Partition, 0);
        match self {
            PartitionConfig::Creff(c) => creff::partition(kept, c.clients, c.alpha, c.seed, c.attempts),
            PartitionConfig::Dirichlet(c) => dirichlet(kept, c, key),
            PartitionConfig::Shards(c) => shards(kept, c, key),
            PartitionConfig::Iid(c) => {
                let mut all = kept.concat();
                key.rng().shuffle(&mut all);
                Ok(creff::chunks(&all, c.clients))
            }
            PartitionConfig::File(c) => Err(Error::defect(format!("{}: a split from a file is not dealt", c.path))),
        }
    }
}

/// Draws until every client holds `min_size` images, at most `attempts` times.
fn dirichlet(kept: &[Vec<u32>], config: &DirichletConfig, key: Key) -> Result<Vec<Vec<u32>>> {
    let DirichletConfig { clients, alpha, min_size, attempts, .. } = *config;
    let total: usize = kept.iter().map(Vec::len).sum();
    if clients.saturating_mul(min_size) > total {
        return Err(Error::input(format!(
            "partition dirichlet: {clients} clients with at least {min_size} images need {}, there are {total}",
            clients.saturating_mul(min_size)
        ))
        .hint("lower partition.clients or partition.min_size"));
    }
    let mut best = 0;
    for attempt in 0..attempts {
        let borders = dirichlet_borders(kept, clients, alpha, key.fold(Purpose::Item, attempt as u64));
        let size = |k: usize| borders.iter().map(|b| b[k + 1] - b[k]).sum::<usize>();
        let smallest = (0..clients).map(size).min().unwrap_or(0);
        if smallest >= min_size {
            let of = |k: usize| kept.iter().zip(&borders).flat_map(move |(l, b)| l[b[k]..b[k + 1]].iter().copied());
            return Ok((0..clients).map(|k| of(k).collect()).collect());
        }
        best = best.max(smallest);
    }
    Err(Error::input(format!(
        "partition dirichlet: in {attempts} draws at alpha {alpha} the smallest of {clients} clients held {best} images at best, not {min_size}"
    ))
    .hint("raise partition.alpha, or lower partition.min_size or partition.clients"))
}

/// Borders of the clients' pieces within each class, `(classes, clients + 1)`.
fn dirichlet_borders(kept: &[Vec<u32>], clients: usize, alpha: f64, key: Key) -> Vec<Vec<usize>> {
    let of_class = |(class, list): (usize, &Vec<u32>)| {
        let p = key.fold(Purpose::Item, class as u64).rng().dirichlet(alpha, clients);
        let mut running = 0.0;
        let mut borders = vec![0];
        for q in &p[..clients - 1] {
            running += q;
            borders.push(((running * list.len() as f64) as usize).min(list.len()));
        }
        borders.push(list.len());
        borders
    };
    kept.iter().enumerate().map(of_class).collect()
}

fn shards(kept: &[Vec<u32>], config: &ShardsConfig, key: Key) -> Result<Vec<Vec<u32>>> {
    let (count, all) = (config.clients.saturating_mul(config.per_client), kept.concat());
    if count == 0 || count > all.len() {
        return Err(Error::input(format!(
            "partition shards: {} clients with {} shards each need {count} images, there are {}",
            config.clients,
            config.per_client,
            all.len()
        ))
        .hint("lower partition.clients or partition.per_client; per_client is at least 1"));
    }
    let pieces = creff::chunks(&all, count);
    let mut order: Vec<usize> = (0..count).collect();
    key.rng().shuffle(&mut order);
    let of = |mine: &[usize]| mine.iter().flat_map(|&s| pieces[s].iter().copied()).collect();
    Ok(order.chunks(config.per_client).map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Vec<Vec<u32>> {
        vec![(0..400).collect(), (400..500).collect(), (500..540).collect()]
    }

    fn key() -> Key {
        Key::from_seed(5)
    }

    fn all_kinds(clients: usize) -> Vec<PartitionConfig> {
        vec![
            PartitionConfig::Creff(CreffConfig { clients, ..Default::default() }),
            PartitionConfig::Dirichlet(DirichletConfig { clients, min_size: 1, ..Default::default() }),
            PartitionConfig::Shards(ShardsConfig { clients, ..Default::default() }),
            PartitionConfig::Iid(IidConfig { clients, ..Default::default() }),
        ]
    }

    #[test]
    fn every_kind_deals_every_image_to_exactly_one_client() {
        for config in [all_kinds(6), all_kinds(15)].concat() {
            let split = config.deal(&kept(), key()).unwrap();
            assert_eq!(split.len(), config.clients());
            let mut all = split.concat();
            all.sort_unstable();
            assert_eq!(all, (0..540).collect::<Vec<u32>>(), "{config:?}");
            assert_eq!(split, config.deal(&kept(), key()).unwrap());
        }
    }

    #[test]
    fn a_seed_of_its_own_makes_a_partition_independent_of_the_run() {
        let own = PartitionConfig::Iid(IidConfig { clients: 4, seed: Some(3) });
        assert_eq!(own.deal(&kept(), Key::from_seed(1)).unwrap(), own.deal(&kept(), Key::from_seed(2)).unwrap());
        let runs = PartitionConfig::Iid(IidConfig { clients: 4, seed: None });
        assert_ne!(runs.deal(&kept(), Key::from_seed(1)).unwrap(), runs.deal(&kept(), Key::from_seed(2)).unwrap());
    }

    #[test]
    fn a_smaller_alpha_is_more_uneven() {
        let spread = |alpha: f64| {
            let config = DirichletConfig { clients: 4, alpha, min_size: 0, ..Default::default() };
            let total: f64 = (0..200)
                .map(|s| {
                    let split = dirichlet(&[(0..1000).collect()], &config, Key::from_seed(s)).unwrap();
                    split.iter().map(|c| (c.len() as f64 / 1000.0).powi(2)).sum::<f64>()
                })
                .sum();
            total / 200.0
        };
        // E Σp² of a symmetric Dirichlet of dimension n is (α + 1)/(nα + 1).
        for alpha in [0.1, 1.0, 10.0] {
            let want = (alpha + 1.0) / (4.0 * alpha + 1.0);
            assert!((spread(alpha) - want).abs() < 0.05, "alpha {alpha}: {} and {want}", spread(alpha));
        }
    }

    /// As alpha goes to 0 a class goes whole to one client, to each equally often (the corners of the simplex).
    #[test]
    fn at_a_tiny_alpha_each_class_goes_to_one_client_drawn_evenly() {
        for alpha in [1e-3, 1e-6, 1e-12, f64::MIN_POSITIVE] {
            let config = DirichletConfig { clients: 4, alpha, min_size: 0, ..Default::default() };
            let mut won = [0usize; 4];
            for s in 0..400 {
                let split = dirichlet(&[(0..1000).collect()], &config, Key::from_seed(s)).unwrap();
                let (winner, most) = split.iter().map(Vec::len).enumerate().max_by_key(|(_, n)| *n).unwrap();
                won[winner] += 1;
                assert!(most == 1000 || alpha > 1e-5 && most > 500, "alpha {alpha}: {most} of 1000");
            }
            // 100 expected, with a deviation of 8.7.
            assert!(won.iter().all(|n| (60..140).contains(n)), "alpha {alpha}: {won:?}");
        }
    }

    #[test]
    fn what_cannot_be_met_is_refused_with_what_to_change() {
        let refuse = |config: PartitionConfig| config.deal(&kept(), key()).unwrap_err().to_string();
        let dirichlet = |c: DirichletConfig| refuse(PartitionConfig::Dirichlet(c));
        let too_many = dirichlet(DirichletConfig { clients: 100, ..Default::default() });
        assert!(too_many.contains("need 1000, there are 540"), "{too_many}");
        let uneven = dirichlet(DirichletConfig { alpha: 0.001, min_size: 20, attempts: 30, ..Default::default() });
        assert!(uneven.contains("30 draws") && uneven.contains("partition.min_size"), "{uneven}");
        assert!(dirichlet(DirichletConfig { alpha: 0.0, ..Default::default() }).contains("alpha"));
        assert!(refuse(PartitionConfig::Iid(IidConfig { clients: 0, seed: None })).contains("clients = 0"));
        assert!(
            refuse(PartitionConfig::Shards(ShardsConfig { per_client: 50, ..Default::default() })).contains("1000")
        );
    }

    #[test]
    fn a_section_is_read_with_whole_numbers_and_a_typo_is_refused() {
        let read = |text: &str| toml::from_str::<PartitionConfig>(text);
        let config = read("kind = \"dirichlet\"\nalpha = 1\nclients = 5").unwrap();
        let want = DirichletConfig { clients: 5, alpha: 1.0, ..Default::default() };
        assert_eq!(config, PartitionConfig::Dirichlet(want));
        assert!(read("kind = \"creff\"\nalhpa = 0.5").unwrap_err().to_string().contains("alhpa"));
        assert!(
            read("kind = \"creef\"").unwrap_err().to_string().contains("`creff`, `dirichlet`, `shards`, `iid`, `file`")
        );
    }

    #[test]
    fn two_shards_a_client_hold_at_most_four_classes() {
        let kept: Vec<Vec<u32>> = (0..10).map(|c| (c * 100..(c + 1) * 100).collect()).collect();
        let config = PartitionConfig::Shards(ShardsConfig { clients: 10, per_client: 2, seed: None });
        for client in config.deal(&kept, key()).unwrap() {
            let mut classes: Vec<u32> = client.iter().map(|i| i / 100).collect();
            classes.dedup();
            assert!(client.len() == 100 && classes.len() <= 4);
        }
    }
}
