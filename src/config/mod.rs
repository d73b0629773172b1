//! All sections composed; a file, overrides on top, read strictly and checked once.

pub mod foreign;
pub mod overrides;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::{
    Augment, DataConfig, LongTailConfig, PartitionConfig, PoolConfig, ServerSetConfig, Shots, UnlabelledConfig,
    ValidationConfig,
};
use crate::error::{Error, Place, Result, closest};
use crate::fl::align::AlignConfig;
use crate::fl::alone::Alone;
use crate::fl::{AlgorithmConfig, FederatedConfig, Mode};
use crate::fsx;
use crate::model::ModelConfig;
use crate::nn::Backend;
use crate::run::SCHEMA;
use crate::stage::caption::CaptionConfig;
use crate::stage::embed::ClipConfig;
use crate::stage::finetune::{FinetuneConfig, HeadInit};
use crate::stage::pretrain::{Pretext, PretrainConfig};
use crate::stage::teach::TeacherConfig;

/// The `run` section: where, with what, from which seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// The run's directory; empty means `runs/<name of the config file>`.
    pub dir: String,
    /// The root of all randomness.
    pub seed: u64,
    /// Worker threads; 0 takes every core. Results do not depend on it.
    pub threads: usize,
    /// Where candle computes: `cpu`, `cuda`, `cuda:1`, `metal`.
    pub device: String,
    /// Which interpreter runs compact networks.
    pub engine: Backend,
    /// Where features of frozen models are kept between runs.
    pub cache: String,
    /// Whether finished stages are kept there too, for other runs of the same program that need the very same stage.
    pub share: bool,
    /// Share of a source's images or records that may be unreadable or belong to nothing; more is an error.
    pub tolerate: f64,
}

impl Default for RunConfig {
    fn default() -> Self {
        RunConfig {
            dir: String::new(),
            seed: 7,
            threads: 0,
            device: "cpu".into(),
            engine: Backend::default(),
            cache: "runs/cache".into(),
            share: false,
            tolerate: 0.01,
        }
    }
}

/// The `evaluate` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Arm {
    /// The directory below the run's, and the row's name.
    pub name: String,
    /// The keys it changes, in sections.
    pub set: toml::Table,
}

/// A difference that a table of several seeds shows, seed by seed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Contrast {
    /// The question it answers.
    pub name: String,
    /// `arm/stage` whose accuracy is looked at.
    pub of: String,
    /// `arm/stage` that is subtracted.
    pub over: String,
}

/// A whole experiment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// File version.
    pub schema: Schema,
    /// Where, with what, from which seed.
    pub run: RunConfig,
    /// The benchmark.
    pub data: DataConfig,
    /// Its long tail.
    pub longtail: LongTailConfig,
    /// Who holds what.
    pub partition: PartitionConfig,
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
    /// Variants, run one after another.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub arms: Vec<Arm>,
    /// Differences between arms that `demo` reports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub contrasts: Vec<Contrast>,
}

/// The version of a config; a newer one is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Schema(pub u32);

impl Default for Schema {
    fn default() -> Self {
        Schema(SCHEMA)
    }
}

impl Config {
    /// Reads a file and lays `--set` overrides on top.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Config> {
        let mut table = read_table(path, 0)?;
        for item in overrides {
            overrides::apply(&mut table, item)?;
        }
        let mut config = Self::from_table(table).at(|| path.display().to_string())?;
        if config.run.dir.is_empty() {
            let stem = path.file_stem().map_or_else(|| "run".into(), |s| s.to_string_lossy().into_owned());
            config.run.dir = format!("runs/{stem}");
        }
        Ok(config)
    }

    /// Reads a table strictly: an unknown key or name lists what is valid.
    pub fn from_table(table: toml::Table) -> Result<Config> {
        let config: Config = serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|e| {
            let path = e.path().to_string();
            explain(if path == "." { "" } else { &path }, &e.into_inner().to_string())
        })?;
        config.check()?;
        Ok(config)
    }

    /// The resolved form, every default written out.
    pub fn to_table(&self) -> Result<toml::Table> {
        toml::Table::try_from(self).map_err(|e| Error::defect(format!("config: {e}")))
    }

    /// The configurations of the arms, or this one alone; each with its row's name.
    pub fn expand(&self) -> Result<Vec<(String, Config)>> {
        if self.arms.is_empty() {
            return Ok(vec![(String::new(), self.clone())]);
        }
        let mut base = self.to_table()?;
        base.remove("arms");
        base.remove("contrasts");
        self.arms
            .iter()
            .map(|arm| {
                let mut table = base.clone();
                overrides::merge(&mut table, &arm.set);
                let mut config = Self::from_table(table).at(|| format!("arm {}", arm.name))?;
                config.run.dir = format!("{}/{}", self.run.dir, arm.name);
                Ok((arm.name.clone(), config))
            })
            .collect()
    }

    fn check(&self) -> Result<()> {
        if self.schema.0 > SCHEMA {
            return Err(Error::input(format!("schema = {}: this program knows {SCHEMA}", self.schema.0))
                .hint("use a newer fedllava"));
        }
        let mut names: Vec<&str> = self.arms.iter().map(|a| a.name.as_str()).collect();
        names.sort_unstable();
        if names.iter().any(|n| n.is_empty() || n.contains(['/', '\\', '.'])) || names.windows(2).any(|w| w[0] == w[1])
        {
            return Err(Error::input("arms: each needs a name of its own, without '/' and '.'"));
        }
        if self.pretrain.enabled {
            self.pretrain.check()?;
            if self.pretrain.objective == Pretext::Llm && self.finetune.head_init == HeadInit::Text {
                return Err(Error::input("finetune.head_init = \"text\" needs pretrain.objective = \"contrast\"")
                    .hint(
                        "the language model's objective trains no projection to the class texts; \"probe\" and \"random\" need none",
                    ));
            }
        }
        self.finetune.check()?;
        self.unlabelled.check()?;
        if self.finetune.head_init == HeadInit::Probe && !self.finetune.from.is_empty() {
            return Err(Error::input(
                "finetune.from starts the classifier too: head_init = \"probe\" would replace it",
            ));
        }
        if self.align.enabled {
            self.align.check()?;
        }
        if self.federated.mode == Mode::Local {
            Alone(self.algorithm.algorithm()).check()?;
        }
        self.federated.check(self.partition.clients(), self.algorithm.algorithm())
    }
}

/// Most files that may lie on one another.
const BASES: usize = 4;

/// A file's table; `base = "other.toml"` (beside this file) lays it on another one.
fn read_table(path: &Path, depth: usize) -> Result<toml::Table> {
    let text = fsx::read_text(path)?;
    let mut table: toml::Table =
        toml::from_str(&text).map_err(|e| Error::input(format!("{}: {}", path.display(), e.to_string().trim())))?;
    let Some(base) = table.remove("base") else { return Ok(table) };
    let (Some(base), true) = (base.as_str(), depth < BASES) else {
        return Err(Error::input(format!("{}: base = {base}", path.display()))
            .hint(format!("name one file beside it, at most {BASES} deep")));
    };
    let mut below = read_table(&path.with_file_name(base), depth + 1).at(|| path.display().to_string())?;
    overrides::merge(&mut below, &table);
    Ok(below)
}

/// Turns serde's message into one with the key, the valid names and the likely one.
fn explain(path: &str, message: &str) -> Error {
    // Later lines repeat where it is.
    let message = message.lines().next().unwrap_or_default().trim().trim_end_matches('.');
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    let (Some((name, valid)), true) = (quoted.split_first(), unknown) else {
        let place = if path.is_empty() { String::new() } else { format!("{path}: ") };
        return Error::input(format!("{place}{message}"));
    };
    let (what, section) = match message.starts_with("unknown field") {
        true => ("key", path.strip_suffix(name).unwrap_or(path).trim_end_matches('.')),
        false => ("name", path),
    };
    let place = if section.is_empty() { String::new() } else { format!(" in {section}") };
    let error = Error::input(format!("unknown {what} `{name}`{place}; valid: {}", valid.join(", ")));
    match (closest(name, valid.iter().copied()), foreign::translate(name)) {
        (Some(near), _) => error.hint(format!("did you mean `{near}`?")),
        (None, Some(ours)) => error.hint(ours),
        (None, None) => error,
    }
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
        assert_eq!(Config::from_table(config.to_table().unwrap()).unwrap(), config);
    }

    #[test]
    fn a_typo_in_a_key_lists_the_valid_ones_and_the_likely_one() {
        let text = message("[federated]\nround = 3");
        assert!(text.contains("unknown key `round` in federated") && text.contains("local_epochs"), "{text}");
        assert!(text.contains("did you mean `rounds`?") && !text.contains("checkpoints, federated"), "{text}");
        assert!(message("[federatd]").contains("did you mean `federated`?"));
    }

    #[test]
    fn a_typo_in_a_kind_lists_the_valid_names() {
        let text = message("[algorithm]\nkind = \"fedprx\"");
        assert!(AlgorithmConfig::all().iter().all(|(kind, _)| text.contains(kind)), "{text}");
        assert!(text.contains("did you mean `fedprox`?"), "{text}");
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
