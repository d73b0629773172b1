//! All sections composed; files and overrides laid on the defaults, read strictly and checked once.
//!
//! [`tree`] holds the keys, read off the structs' own docs; [`source`] a text with the place of every key; [`check`]
//! finds mistakes, [`lay`] puts one table on another, [`resolve`] does all of it and remembers who said what.

mod before;
pub mod check;
pub mod foreign;
mod inputs;
pub mod lay;
pub mod resolve;
mod sense;
pub mod source;
pub mod sweep;
pub mod table;
pub mod tree;

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::multimodal::scenario::ScenarioConfig;
use crate::data::{
    Augment, DataConfig, LongTailConfig, PartitionConfig, PoolConfig, ServerSetConfig, Shots, UnlabelledConfig,
    ValidationConfig,
};
use crate::error::{Error, Place, Result};
use crate::fl::align::AlignConfig;
use crate::fl::{AlgorithmConfig, FederatedConfig};
use crate::key::Key;
use crate::mllm::judge::JudgeConfig;
use crate::model::ModelConfig;
use crate::nn::Backend;
use crate::run::SCHEMA;
use crate::stage::caption::CaptionConfig;
use crate::stage::embed::ClipConfig;
use crate::stage::finetune::FinetuneConfig;
use crate::stage::pretrain::PretrainConfig;
use crate::stage::teach::TeacherConfig;
use crate::task::TaskConfig;
pub use inputs::Input;
pub use resolve::Resolved;
pub use sweep::SweepConfig;
pub use table::TableConfig;

/// The `run` section: where, with what, from which seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// The run's directory, with arms the experiment's; empty means `runs/<config file>/seed-<seed>`, with arms
    /// `runs/<config file>`.
    pub dir: String,
    /// The root of all randomness.
    pub seed: u64,
    /// Draws the split, its long tail, the server's and validation sets and the procedural world; without it `seed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_seed: Option<u64>,
    /// Worker threads; 0 takes every core. Results do not depend on it.
    pub threads: usize,
    /// Where candle computes: `cpu`, `auto`, `cuda`, `cuda:1`.
    pub device: String,
    /// Which interpreter runs compact networks.
    pub engine: Backend,
    /// Where features of frozen models are kept between runs.
    pub cache: String,
    /// Whether finished stages are kept there too, for other runs of the same program that need the very same stage.
    pub share: bool,
    /// Share of a source's images or records that may be unreadable or belong to nothing; more is an error.
    pub tolerate: f64,
    /// Whether the records are written as TensorBoard's event file too.
    pub tensorboard: bool,
}

impl Default for RunConfig {
    fn default() -> Self {
        RunConfig {
            dir: String::new(),
            seed: 7,
            split_seed: None,
            threads: 0,
            device: "cpu".into(),
            engine: Backend::default(),
            cache: "runs/cache".into(),
            share: false,
            tolerate: 0.01,
            tensorboard: false,
        }
    }
}

impl RunConfig {
    /// What the split and the procedural world are drawn from.
    pub fn split_key(&self) -> Key {
        Key::from_seed(self.split_seed.unwrap_or(self.seed))
    }
}

/// The `evaluate` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateConfig {
    /// Which classes are many, medium, few: `strict`, `oltr`, or `rank:a/b/c`.
    pub shots: Shots,
    /// Whether the test logits of the final model are written to `logits.safetensors`.
    pub logits: bool,
    /// Whether duplicates between pool, server set, validation set, clients and test are searched for.
    pub overlaps: bool,
    /// Whether the teacher alone is judged on test (it must see every test image).
    pub teacher: bool,
    /// Whether a linear probe of CLIP, fitted to the server set, is judged on test.
    pub probe: bool,
    /// Other teachers that are judged alone, each a `teacher` section.
    pub teachers: Vec<TeacherConfig>,
}

impl Default for EvaluateConfig {
    fn default() -> Self {
        EvaluateConfig {
            shots: Shots::default(),
            logits: false,
            overlaps: true,
            teacher: false,
            probe: false,
            teachers: Vec::new(),
        }
    }
}

/// A variant of the run: its own directory, some keys changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Arm {
    /// The directory below the run's, and the row's name.
    pub name: String,
    /// The keys it changes, in sections.
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    pub set: toml::Table,
}

/// A difference that a table of several seeds shows, seed by seed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Contrast {
    /// The question it answers.
    pub name: String,
    /// `arm/stage` whose accuracy is looked at; of a table a row's name.
    pub of: String,
    /// `arm/stage`, or the row, that is subtracted.
    pub over: String,
    /// A sentence that reports say where the difference is above 0 and not noise; empty for none.
    pub if_above: String,
    /// The same for a difference below 0.
    pub if_below: String,
}

/// A whole experiment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// File version.
    pub schema: Schema,
    /// Where, with what, from which seed.
    pub run: RunConfig,
    /// What the federation trains.
    #[serde(skip_serializing_if = "is_usual")]
    pub task: TaskConfig,
    /// The benchmark.
    pub data: DataConfig,
    /// Its long tail.
    pub longtail: LongTailConfig,
    /// Who holds what.
    pub partition: PartitionConfig,
    /// Which client holds which modality of which sample, for `task.kind = "mllm"`.
    #[serde(skip_serializing_if = "is_usual")]
    pub scenario: ScenarioConfig,
    /// The server's balanced set.
    pub server_set: ServerSetConfig,
    /// The validation set.
    pub validation: ValidationConfig,
    /// The server's images without labels.
    pub unlabelled: UnlabelledConfig,
    /// Normalisation and augmentation.
    pub augment: Augment,
    /// The compact network.
    pub model: ModelConfig,
    /// The frozen CLIP.
    pub clip: ClipConfig,
    /// The open pool.
    pub pool: PoolConfig,
    /// How `fedllava caption` describes it.
    pub caption: CaptionConfig,
    /// Stage 1.
    pub pretrain: PretrainConfig,
    /// Rounds, cohorts, local work.
    pub federated: FederatedConfig,
    /// The federated algorithm.
    pub algorithm: AlgorithmConfig,
    /// Where the federated stage starts.
    pub finetune: FinetuneConfig,
    /// Stage 3.
    pub align: AlignConfig,
    /// Who teaches in stage 3.
    pub teacher: TeacherConfig,
    /// What is measured.
    pub evaluate: EvaluateConfig,
    /// How a multimodal LLM's answers are read, and who judges open ones.
    #[serde(skip_serializing_if = "is_usual")]
    pub judge: JudgeConfig,
    /// Variants, run one after another.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub arms: Vec<Arm>,
    /// Many runs of this config: `fedllava sweep`.
    #[serde(skip_serializing_if = "is_usual")]
    pub sweep: SweepConfig,
    /// How its runs become a table: `fedllava report CONFIG`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<TableConfig>,
    /// Differences between arms that `demo` reports; of a table, between its rows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub contrasts: Vec<Contrast>,
}

/// The version of a config; a newer one is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Schema(pub u32);

impl Default for Schema {
    fn default() -> Self {
        Schema(SCHEMA)
    }
}

/// Whether a section says nothing.
fn is_usual<T: Default + PartialEq>(section: &T) -> bool {
    *section == T::default()
}

impl Config {
    /// Reads a file and lays `--set` overrides on top.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Config> {
        Ok(Resolved::read(path, overrides)?.config)
    }

    /// Reads a table strictly, on the defaults: an unknown key or name lists what is valid.
    pub fn from_table(table: toml::Table) -> Result<Config> {
        let config = parse(resolve::on_defaults(&table)?).map_err(|(_, e)| e)?;
        config.check()?;
        Ok(config)
    }

    /// The resolved form, every default written out.
    pub fn to_table(&self) -> Result<toml::Table> {
        let mut table = toml::Table::try_from(self).map_err(|e| Error::defect(format!("config: {e}")))?;
        tree::tidy(tree::sections(), &mut table);
        Ok(table)
    }

    /// Chooses the directory where the config names none: `runs/<file>`, with the seed where there are no arms.
    fn place(&mut self, file: &Path) {
        if self.run.dir.is_empty() {
            let stem = file.file_stem().map_or_else(|| "run".into(), |s| s.to_string_lossy().into_owned());
            let seed =
                if self.arms.is_empty() && !self.sweeps() { format!("/seed-{}", self.run.seed) } else { String::new() };
            self.run.dir = format!("runs/{stem}{seed}");
        }
    }

    /// The configurations of the arms, or this one alone; each with its row's name. An arm's directory is
    /// `<run.dir>/<arm>/seed-<seed>`.
    pub fn expand(&self) -> Result<Vec<(String, Config)>> {
        if self.arms.is_empty() {
            return Ok(vec![(String::new(), self.clone())]);
        }
        self.arms
            .iter()
            .map(|arm| {
                let mut config = self.arm(arm).at(|| format!("arm {}", arm.name))?;
                config.run.dir = format!("{}/{}/seed-{}", self.run.dir, arm.name, config.run.seed);
                Ok((arm.name.clone(), config))
            })
            .collect()
    }

    /// Clients of the federation.
    pub fn clients(&self) -> usize {
        match self.task.mllm() {
            Some(_) => self.scenario.clients(),
            None => self.partition.clients(),
        }
    }

    /// What arms lie on: this config without them.
    fn below_arms(&self) -> Result<toml::Table> {
        let mut table = self.to_table()?;
        table.remove("arms");
        table.remove("contrasts");
        table.remove("sweep");
        table.remove("table");
        Ok(table)
    }

    fn arm(&self, arm: &Arm) -> Result<Config> {
        let mut table = self.below_arms()?;
        lay::lay(tree::sections(), &mut table, &arm.set);
        Self::from_table(table)
    }
}

/// A resolved table as a config; an error with the key that it is about.
fn parse(table: toml::Table) -> std::result::Result<Config, (String, Error)> {
    serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|e| {
        let path = e.path().to_string();
        let message = e.into_inner().to_string();
        let message = message.lines().next().unwrap_or_default().trim().trim_end_matches('.').to_string();
        let error = Error::input(format!("{path}: {message}"));
        (path, error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config> {
        Config::from_table(toml::from_str(text).unwrap())
    }

    fn message(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn the_resolved_form_reads_back_to_itself() {
        let config = read("").unwrap();
        let table = config.to_table().unwrap();
        assert_eq!(table["federated"]["optimiser"]["lr"].to_string(), "0.1", "with the digits that were written");
        assert_eq!(Config::from_table(table).unwrap(), config);
    }

    #[test]
    fn names_from_other_tools_are_known() {
        assert!(message("[federated]\nfraction-train = 0.4").contains("federated.cohort"));
        assert!(message("[federated]\nnum_online_clients = 8").contains("federated.cohort"));
    }

    #[test]
    fn a_newer_schema_is_refused() {
        assert!(message("schema = 9").contains("schema = 9"));
    }

    #[test]
    fn a_file_lies_on_its_base_and_a_circle_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("a.toml", "[run]\nseed = 1\nthreads = 3\n[[arms]]\nname = \"x\"");
        write("b.toml", "base = \"a.toml\"\n[run]\nseed = 2\n[[arms]]\nname = \"y\"");
        let config = Config::read(&dir.path().join("b.toml"), &[]).unwrap();
        assert_eq!((config.run.seed, config.run.threads, config.run.dir.as_str()), (2, 3, "runs/b"));
        assert_eq!((config.arms.len(), config.arms[0].name.as_str()), (1, "y"));
        write("c.toml", "base = \"c.toml\"");
        assert!(Config::read(&dir.path().join("c.toml"), &[]).is_err());
    }

    #[test]
    fn arms_change_their_keys_only() {
        let config = read("[[arms]]\nname = \"a\"\n[[arms]]\nname = \"b\"\nset = { run.seed = 3 }").unwrap();
        let arms = config.expand().unwrap();
        assert_eq!((arms[0].1.run.seed, arms[1].1.run.seed), (7, 3));
        assert_eq!(arms[0].1.federated, arms[1].1.federated);
    }
}
