//! Images and labels: benchmarks, the long tail, who holds what, batches, open pools, captions, cached features.
//!
//! | file | what |
//! |---|---|
//! | [`dataset`], [`pictures`] | a benchmark: labels, and images in memory or in files |
//! | [`shared`] | one that lies once in a machine's memory, for several processes |
//! | [`cifar`], [`hf_parquet`], [`pickle`], [`folder`] | where benchmarks are read from |
//! | [`list`], [`source`] | published lists, and where their images lie |
//! | [`decode`], [`jpeg`] | image files to pixels; of a JPEG only a part |
//! | [`encoded`], [`stream`], [`crop`] | pictures of many sizes, decoded when they are needed, cut to squares |
//! | [`census`], `gzip` | what each reader saw and passed over; texts that may be gzipped |
//! | [`longtail`], [`partition`], [`creff`], [`numpy_rng`], [`python_rng`] | which images stay, and at whom |
//! | [`reserve`] | the server's and the validation set |
//! | [`split`], [`split_file`], [`pfllib`] | who holds what, its digests, its file, other tools' files |
//! | [`shots`] | many, medium and few |
//! | [`loader`] | augmented batches |
//! | [`dsa`], [`autoaugment`] | stronger augmentations: of a batch, of one image's bytes |
//! | [`pool`], [`webdataset`], [`captions`] | open images for pretraining and what is said about them |
//! | [`multimodal`] | pictures with texts and questions, and who lacks which |
//! | [`unlabelled`] | images without labels that servers distil on |
//! | [`features`], [`npy`] | cached features of frozen models |
//! | [`world`] | the procedural world of the demo |
//! | [`overlap`] | duplicates between sets, class coverage of a pool |

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Place, Result};
use crate::exec::Context;
use crate::key::{Key, Purpose};
use crate::shipped;

pub mod autoaugment;
pub mod captions;
pub mod census;
pub mod cifar;
mod cifar_names;
pub mod creff;
pub mod crop;
pub mod dataset;
pub mod decode;
pub mod dsa;
pub mod encoded;
pub mod features;
pub mod folder;
mod gzip;
pub mod hf_parquet;
pub mod jpeg;
pub mod list;
pub mod loader;
pub mod longtail;
pub mod multimodal;
pub mod npy;
pub mod numpy_rng;
pub mod overlap;
pub mod partition;
pub mod pfllib;
pub mod pickle;
pub mod pictures;
pub mod pool;
pub mod python_rng;
pub mod reserve;
pub mod shared;
pub mod shots;
pub mod source;
pub mod split;
pub mod split_file;
pub mod stream;
pub mod unlabelled;
pub mod webdataset;
pub mod world;

pub use census::{Census, Ledger, Why};
pub use cifar::{Cifar10Config, Cifar100Config};
pub use dataset::{Benchmark, Dataset, Images, Order};
pub use encoded::Encoded;
pub use features::Features;
pub use folder::FolderConfig;
pub use list::ListConfig;
pub use loader::{Augment, Loader, Per};
pub use longtail::{LongTailConfig, LongTailKind};
pub use partition::PartitionConfig;
pub use pictures::{Pictures, Streamed};
pub use pool::{Pool, PoolConfig};
pub use reserve::{Origin, ServerSetConfig, ValidationConfig};
pub use shots::{Groups, Shots};
pub use split::Split;
pub use unlabelled::UnlabelledConfig;

/// The `data` section: which benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum DataConfig {
    /// CIFAR-10 from a folder: Parquet, Python pickles or the binary version.
    Cifar10(Cifar10Config),
    /// CIFAR-100 with its fine labels, or its superclasses, likewise.
    Cifar100(Cifar100Config),
    /// `train/<class>/…` and `test/<class>/…`.
    Folder(FolderConfig),
    /// Published lists of images with labels (iNaturalist's, or one's own), the images below a folder, decoded when they
    /// are needed.
    List(ListConfig),
    /// ImageNet-LT by its published lists, whose counts are checked.
    ImagenetLt(ListConfig),
    /// Places-LT, likewise.
    PlacesLt(ListConfig),
    /// The procedural world, drawn from the run's seed.
    World(world::WorldConfig),
    /// Hateful-Memes, for `task.kind = "mllm"`, as all that follow.
    HatefulMemes(multimodal::hateful_memes::HatefulMemesConfig),
    /// CrisisMMD 2.0, its humanitarian task.
    Crisismmd(multimodal::crisismmd::CrisisMmdConfig),
    /// VQA-RAD, split by question as published.
    VqaRad(multimodal::vqa_rad::VqaRadConfig),
    /// SLAKE 1.0; without its `train.json` for tests alone.
    Slake(multimodal::slake::SlakeConfig),
    /// Questions and answers without pictures, in MedAlpaca's form; for training alone.
    MedicalFlashcards(multimodal::flashcards::FlashcardsConfig),
    /// FedMLLM's medical task: VQA-RAD for image clients, flashcards for text clients, tests on VQA-RAD and SLAKE.
    Medical(multimodal::MedicalConfig),
    /// One's own questions: a record a line, or LLaVA's conversations.
    Jsonl(multimodal::jsonl::JsonlConfig),
    /// A procedural set whose questions need picture and text.
    Questions(multimodal::world::QuestionsConfig),
}

/// The sizes of a benchmark that are known without reading it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Known {
    /// Training images before any long tail.
    pub train: usize,
    /// Test images.
    pub test: usize,
    /// Classes.
    pub classes: usize,
    /// `(C, H, W)`.
    pub shape: [usize; 3],
}

impl DataConfig {
    /// Refuses values that no data could make right; `section` is what the keys stand under.
    pub fn check(&self, section: &str) -> Result<()> {
        match self {
            DataConfig::World(c) => c.resolve().map(|_| ()).at(|| section.to_string()),
            _ if self.multimodal().is_some() => self.multimodal().map_or(Ok(()), |c| c.check(section)),
            _ => self.lists().map_or(Ok(()), |(lists, _)| lists.check(section)),
        }
    }

    /// The benchmark's sizes; those of a folder and of lists are known only when they are read.
    pub fn known(&self) -> Option<Known> {
        let cifar = |classes| Some(Known { train: 50_000, test: 10_000, classes, shape: [3, 32, 32] });
        match self {
            DataConfig::Cifar10(_) => cifar(10),
            DataConfig::Cifar100(c) => cifar(c.labels.classes()),
            DataConfig::World(w) => {
                let (n, shape) = (w.classes.len(), [3, world::SIDE, world::SIDE]);
                Some(Known { train: w.train_per_class * n, test: w.test_per_class * n, classes: n, shape })
            }
            DataConfig::ImagenetLt(_) | DataConfig::PlacesLt(_) => {
                let (config, official) = self.lists()?;
                let ([train, _, test], classes) = (official?.images(), official?.classes);
                Some(Known { train, test, classes, shape: [3, config.crop.side, config.crop.side] })
            }
            _ => None,
        }
    }

    /// The set of questions, where it is one.
    pub fn multimodal(&self) -> Option<multimodal::MultimodalConfig> {
        use multimodal::MultimodalConfig as To;
        Some(match self.clone() {
            DataConfig::HatefulMemes(c) => To::HatefulMemes(c),
            DataConfig::Crisismmd(c) => To::Crisismmd(c),
            DataConfig::VqaRad(c) => To::VqaRad(c),
            DataConfig::Slake(c) => To::Slake(c),
            DataConfig::MedicalFlashcards(c) => To::MedicalFlashcards(c),
            DataConfig::Medical(c) => To::Medical(c),
            DataConfig::Jsonl(c) => To::Jsonl(c),
            DataConfig::Questions(c) => To::World(c),
            _ => return None,
        })
    }

    /// The section of a benchmark that comes as lists, and the published one that it must be.
    pub fn lists(&self) -> Option<(&ListConfig, Option<&'static list::Official>)> {
        match self {
            DataConfig::List(c) => Some((c, None)),
            DataConfig::ImagenetLt(c) => Some((c, Some(&list::IMAGENET_LT))),
            DataConfig::PlacesLt(c) => Some((c, Some(&list::PLACES_LT))),
            _ => None,
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        DataConfig::Cifar10(Cifar10Config::default())
    }
}

/// Reads a benchmark. It does not warn about [`Order::Unknown`]: the caller knows whether the order matters.
/// `key` is the run's; only the procedural world draws from it.
pub fn load(config: &DataConfig, key: Key, cx: &Context) -> Result<Benchmark> {
    match config {
        DataConfig::Cifar10(c) => cifar::load10(c, cx),
        DataConfig::Cifar100(c) => cifar::load100(c, cx),
        DataConfig::Folder(c) => folder::load(c, cx),
        DataConfig::List(c) => list::load(c, None, cx),
        DataConfig::ImagenetLt(c) => list::load(c, Some(&list::IMAGENET_LT), cx),
        DataConfig::PlacesLt(c) => list::load(c, Some(&list::PLACES_LT), cx),
        DataConfig::World(c) => world::World::new(c.clone(), key.fold(Purpose::World, 0))?.load(),
        _ => Err(Error::input("data.kind names questions, and task.kind = \"classify\" needs images with labels")
            .hint("set task.kind=mllm")),
    }
}

/// Reads a split of a benchmark: a file of image indices, or PFLlib's folder of clients.
pub fn import_split(path: &Path, benchmark: &Benchmark) -> Result<(Split, Census)> {
    let train = &benchmark.train;
    if path.is_dir() {
        return pfllib::import(path, benchmark);
    }
    Split::import(path, &train.labels, train.classes.len())
}

/// A path as it is, or, where that does not exist and is relative, below `$FEDLLAVA_DATA`, or among what the binary
/// carries.
pub fn resolve(path: &str) -> Result<PathBuf> {
    resolve_below(path, std::env::var_os("FEDLLAVA_DATA").map(PathBuf::from).as_deref())
}

fn resolve_below(path: &str, root: Option<&Path>) -> Result<PathBuf> {
    let direct = PathBuf::from(path);
    if path.is_empty() {
        return Err(Error::input("the path of the data is empty").hint("set data.path"));
    }
    if direct.exists() {
        return Ok(direct);
    }
    let below = root.filter(|_| direct.is_relative()).map(|root| root.join(&direct));
    if let Some(below) = below.as_ref().filter(|b| b.exists()) {
        return Ok(below.clone());
    }
    if let Some(copy) = shipped::unpacked(&direct)? {
        return Ok(copy);
    }
    let error = |looked: String| Error::input(format!("{path} does not exist; looked for {looked}"));
    let failed = match below {
        Some(below) => error(format!("{path} here and for {}", below.display())),
        _ if direct.is_relative() => error(format!("{path} in the current folder"))
            .hint("FEDLLAVA_DATA may name the folder that holds the data sets"),
        _ => error(path.to_string()),
    };
    // "C:\temp" has a tab in it.
    Err(match path.contains(char::is_control) {
        true => failed.hint("between double quotes a backslash begins an escape; write paths between 'single quotes'"),
        false => failed,
    })
}

/// The folder of real data sets that `FEDLLAVA_DATA` names; without it a test says that it skips.
#[cfg(test)]
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
pub(crate) fn real_data() -> Option<PathBuf> {
    let root = std::env::var_os("FEDLLAVA_DATA").map(PathBuf::from);
    if root.is_none() {
        eprintln!("skipped: FEDLLAVA_DATA is not set");
    }
    root
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_path_is_also_looked_for_below_the_data_folder_and_the_error_says_so() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("a-data-set")).unwrap();
        assert_eq!(resolve_below("a-data-set", Some(root.path())).unwrap(), root.path().join("a-data-set"));
        assert!(resolve_below("a-data-set", None).unwrap_err().to_string().contains("FEDLLAVA_DATA"));
        let e = resolve_below("another", Some(root.path())).unwrap_err().to_string();
        assert!(e.contains("another here and for") && e.contains(&root.path().display().to_string()), "{e}");
    }

    #[test]
    fn kinds_are_named_in_the_section_and_a_typo_is_refused() {
        let read = |text: &str| toml::from_str::<DataConfig>(text);
        let config = read("kind = \"cifar100\"\npath = \"here\"").unwrap();
        assert_eq!(config, DataConfig::Cifar100(Cifar100Config { path: "here".into(), ..Default::default() }));
        assert!(read("kind = \"cifar10\"\npaht = \"here\"").unwrap_err().to_string().contains("paht"));
        let e = read("kind = \"cifar\"").unwrap_err().to_string();
        assert!(e.contains("cifar10") && e.contains("cifar100") && e.contains("folder"), "{e}");
    }
}
