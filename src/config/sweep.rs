//! The `sweep` section: one config, many runs.
//!
//! Runs are the product of arms, methods, zipped and crossed axes, knobs and seeds. A *cell* is all of it but the seeds:
//! what one number of a table stands for, mean and deviation over its seeds.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::resolve::flat;
use super::tree::{joined, leaves, sections};
use super::{Arm, Config, lay};
use crate::error::{Error, Place, Result, closest};
use crate::fl::AlgorithmConfig;

/// By what a knob is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SelectBy {
    /// Nothing is chosen: knobs are axes like others.
    #[default]
    Nothing,
    /// The accuracy of the exported model on the validation set, for each cell and seed. Test is read of the chosen run
    /// only.
    Validation,
}

/// The `sweep` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SweepConfig {
    /// Values of `run.seed`; none takes the config's own.
    pub seeds: Vec<u64>,
    /// Values of `run.split_seed`, each with every seed; none leaves it.
    pub split_seeds: Vec<u64>,
    /// Values of `algorithm.kind`, each with its defaults; none leaves the algorithm.
    pub methods: Vec<String>,
    /// Keys and lists of values: every combination.
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    #[serde(skip_serializing_if = "Table::is_empty")]
    pub cross: Table,
    /// Keys and lists of equal length: values at the same place go together.
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    #[serde(skip_serializing_if = "Table::is_empty")]
    pub zip: Table,
    /// Keys and lists of values that `select_by` chooses among, for each cell and seed; those that the method has.
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    #[serde(skip_serializing_if = "Table::is_empty")]
    pub knobs: Table,
    /// By what knobs are chosen.
    pub select_by: SelectBy,
    /// Runs that have all of these values are left out.
    #[schemars(with = "Vec<serde_json::Map<String, serde_json::Value>>")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skip: Vec<Table>,
    /// A folder of finished runs' records (`sweep --record`): a run that it holds under the same config is done.
    pub records: String,
}

/// One run of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// The cell's name: arm, method, axis values.
    pub cell: String,
    /// Its arm; empty without arms.
    pub arm: String,
    /// The knobs' values, as `mu=0.1`; empty without knobs.
    pub knob: String,
    /// Its whole config; `run.dir` is `<root>/<cell>[/<knob>]/seed-<seed>`.
    pub config: Config,
}

/// All runs of a config with a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In order: cell by cell, seed by seed.
    pub runs: Vec<Planned>,
    /// Runs that a rule of `sweep.skip` left out.
    pub skipped: usize,
}

/// Changes with a name.
struct Change {
    name: String,
    /// The arm among them; empty without arms.
    arm: String,
    set: Table,
}

impl Config {
    /// The runs of `[sweep]`, and of the arms in it.
    pub fn plan(&self) -> Result<Plan> {
        let sweep = &self.sweep;
        sweep.check(self)?;
        let below = self.below_arms()?;
        let (mut runs, mut skipped, mut used) = (Vec::new(), 0, vec![false; sweep.skip.len()]);
        for cell in product(&[
            self.arm_changes(),
            sweep.method_changes(),
            sweep.zipped()?,
            crossed(&sweep.cross, "sweep.cross")?,
        ]) {
            for knob in self.knobs(&below, &cell)? {
                for config in self.seeded(&below, &cell, &knob)? {
                    let values = if sweep.skip.is_empty() { BTreeMap::new() } else { flat(&config.to_table()?) };
                    let rules: Vec<usize> =
                        (0..sweep.skip.len()).filter(|&i| matches(&sweep.skip[i], &values)).collect();
                    rules.iter().for_each(|&i| used[i] = true);
                    match rules.is_empty() {
                        true => runs.push(Planned {
                            cell: cell.name.clone(),
                            arm: cell.arm.clone(),
                            knob: knob.name.clone(),
                            config,
                        }),
                        false => skipped += 1,
                    }
                }
            }
        }
        if let Some(i) = used.iter().position(|used| !used) {
            return Err(Error::input(format!(
                "sweep.skip[{i}] = {} leaves out no run",
                Value::Table(sweep.skip[i].clone())
            ))
            .hint("its keys are compared with the resolved configs: `fedllava config show` prints one"));
        }
        distinct(&runs)?;
        Ok(Plan { runs, skipped })
    }

    /// Whether the config has a sweep.
    pub fn sweeps(&self) -> bool {
        self.sweep != SweepConfig::default()
    }

    fn arm_changes(&self) -> Vec<Change> {
        let change = |arm: &Arm| Change { name: arm.name.clone(), arm: arm.name.clone(), set: arm.set.clone() };
        or_nothing(self.arms.iter().map(change).collect())
    }

    /// Every combination of the knobs that the cell has: another method's are none of its.
    fn knobs(&self, below: &Table, cell: &Change) -> Result<Vec<Change>> {
        if self.sweep.knobs.is_empty() {
            return Ok(vec![nothing()]);
        }
        let mut table = below.clone();
        lay::lay(sections(), &mut table, &cell.set);
        let known = flat(&table);
        let all = axes(&self.sweep.knobs, "sweep.knobs")?;
        if let Some((key, _)) = all.iter().find(|(key, _)| !leaves().iter().any(|leaf| leaf.path == *key)) {
            return Err(Error::input(format!("sweep.knobs: no method has a key {key}"))
                .hint("`fedllava config list` prints all keys"));
        }
        Ok(combined(&all.into_iter().filter(|(key, _)| known.contains_key(key)).collect::<Vec<_>>()))
    }

    /// The cell's runs with these knobs, one for each pair of seeds.
    fn seeded(&self, below: &Table, cell: &Change, knob: &Change) -> Result<Vec<Config>> {
        let place = || format!("sweep, {}", if cell.name.is_empty() { "its only cell" } else { &cell.name });
        let mut table = below.clone();
        lay::lay(sections(), &mut table, &cell.set);
        lay::lay(sections(), &mut table, &knob.set);
        let config = Self::from_table(table).at(place)?;
        let folder: Vec<&str> =
            [&self.run.dir, &cell.name, &knob.name].into_iter().map(String::as_str).filter(|n| !n.is_empty()).collect();
        let folder = folder.join("/");
        let seeds = if self.sweep.seeds.is_empty() { vec![config.run.seed] } else { self.sweep.seeds.clone() };
        let split_seeds: Vec<Option<u64>> = match self.sweep.split_seeds.is_empty() {
            true => vec![config.run.split_seed],
            false => self.sweep.split_seeds.iter().copied().map(Some).collect(),
        };
        let mut all = Vec::new();
        for &split in &split_seeds {
            for &seed in &seeds {
                let mut config = config.clone();
                (config.run.seed, config.run.split_seed) = (seed, split);
                let split = split.filter(|_| split_seeds.len() > 1).map_or_else(String::new, |s| format!("split-{s}/"));
                config.run.dir = format!("{folder}/{split}seed-{seed}");
                all.push(config);
            }
        }
        Ok(all)
    }
}

impl SweepConfig {
    fn check(&self, config: &Config) -> Result<()> {
        let known: Vec<&str> = AlgorithmConfig::all().iter().map(|(name, _)| *name).collect();
        for name in &self.methods {
            if !known.contains(&name.as_str()) {
                let e = Error::input(format!("sweep.methods: unknown name `{name}`; valid: {}", known.join(", ")));
                return Err(match closest(name, known.iter().copied()) {
                    Some(near) => e.hint(format!("did you mean `{near}`?")),
                    None => e,
                });
            }
        }
        for (key, list) in [("seeds", &self.seeds), ("split_seeds", &self.split_seeds)] {
            if list.iter().collect::<BTreeSet<_>>().len() < list.len() {
                return Err(Error::input(format!("sweep.{key} names a seed twice")));
            }
        }
        match (self.select_by, self.knobs.is_empty()) {
            (SelectBy::Validation, true) => {
                Err(Error::input("sweep.select_by = \"validation\": there is nothing to choose")
                    .hint("name keys and their values in sweep.knobs"))
            }
            (SelectBy::Nothing, false) => Err(Error::input("sweep.knobs: nothing chooses among their values")
                .hint("set sweep.select_by = \"validation\", or move them to sweep.cross")),
            (SelectBy::Validation, false) if config.validation.per_class == 0 => {
                Err(Error::input("sweep.select_by = \"validation\": there is no validation set")
                    .hint("set validation.per_class"))
            }
            _ => Ok(()),
        }
    }

    fn method_changes(&self) -> Vec<Change> {
        let change = |kind: &String| {
            let section = Table::from_iter([("kind".to_string(), Value::String(kind.clone()))]);
            let set = Table::from_iter([("algorithm".to_string(), Value::Table(section))]);
            Change { name: kind.clone(), arm: String::new(), set }
        };
        or_nothing(self.methods.iter().map(change).collect())
    }

    fn zipped(&self) -> Result<Vec<Change>> {
        let axes = axes(&self.zip, "sweep.zip")?;
        let Some((first, length)) = axes.first().map(|(key, values)| (key.clone(), values.len())) else {
            return Ok(or_nothing(Vec::new()));
        };
        if let Some((key, values)) = axes.iter().find(|(_, values)| values.len() != length) {
            let message = format!("sweep.zip: {first} has {length} values, {key} has {}", values.len());
            return Err(Error::input(message).hint("values at the same place go together; sweep.cross combines all"));
        }
        let row = |i: usize| axes.iter().fold(nothing(), |change, (key, values)| with(&change, key, &values[i]));
        Ok((0..length).map(row).collect())
    }
}

fn nothing() -> Change {
    Change { name: String::new(), arm: String::new(), set: Table::new() }
}

fn or_nothing(changes: Vec<Change>) -> Vec<Change> {
    if changes.is_empty() { vec![nothing()] } else { changes }
}

/// Every combination of the axes of a section.
fn crossed(table: &Table, section: &str) -> Result<Vec<Change>> {
    Ok(combined(&axes(table, section)?))
}

fn combined(axes: &[(String, Vec<Value>)]) -> Vec<Change> {
    axes.iter().fold(vec![nothing()], |all, (key, values)| {
        all.iter().flat_map(|change| values.iter().map(|value| with(change, key, value)).collect::<Vec<_>>()).collect()
    })
}

/// `section.key` → values, by key; written with dots or as tables.
fn axes(table: &Table, section: &str) -> Result<Vec<(String, Vec<Value>)>> {
    let mut found = BTreeMap::new();
    gather("", table, section, &mut found)?;
    Ok(found.into_iter().collect())
}

fn gather(prefix: &str, table: &Table, section: &str, found: &mut BTreeMap<String, Vec<Value>>) -> Result<()> {
    for (key, value) in table {
        let path = joined(prefix, key);
        match value {
            Value::Table(inner) => gather(&path, inner, section, found)?,
            Value::Array(values) if !values.is_empty() => {
                found.insert(path, values.clone());
            }
            _ => {
                return Err(Error::input(format!("{section}: {path} = {value} is not a list of values"))
                    .hint(format!("write \"{path}\" = [{value}]")));
            }
        }
    }
    Ok(())
}

/// A change with one key more.
fn with(change: &Change, key: &str, value: &Value) -> Change {
    let last = key.rsplit('.').next().unwrap_or(key);
    let name = match last {
        "kind" => told(value),
        _ => format!("{last}={}", told(value)),
    };
    let name = if change.name.is_empty() { name } else { format!("{},{name}", change.name) };
    let mut set = change.set.clone();
    put(&mut set, key, value.clone());
    Change { name, arm: change.arm.clone(), set }
}

/// A value in a directory's name.
fn told(value: &Value) -> String {
    match value {
        Value::String(s) => plain(s),
        Value::Table(t) => {
            let part = |(key, value): (&String, &Value)| match key.as_str() {
                "kind" => told(value),
                _ => format!("{key}={}", told(value)),
            };
            t.iter().map(part).collect::<Vec<_>>().join("+")
        }
        Value::Array(a) => a.iter().map(told).collect::<Vec<_>>().join("+"),
        other => plain(&other.to_string()),
    }
}

fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_alphanumeric() || "._-+".contains(c) { c } else { '-' }).collect()
}

fn put(table: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            table.insert(path.into(), value);
        }
        Some((first, rest)) => {
            let inner = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

/// Every choice of one change from each list, the first list outermost.
fn product(lists: &[Vec<Change>]) -> Vec<Change> {
    lists.iter().fold(vec![nothing()], |all, list| {
        let pair = |a: &Change, b: &Change| {
            let parts: Vec<&str> =
                [&a.name, &b.name].into_iter().map(String::as_str).filter(|n| !n.is_empty()).collect();
            let mut set = a.set.clone();
            merge(&mut set, &b.set);
            Change { name: parts.join(","), arm: format!("{}{}", a.arm, b.arm), set }
        };
        all.iter().flat_map(|a| list.iter().map(|b| pair(a, b)).collect::<Vec<_>>()).collect()
    })
}

fn merge(table: &mut Table, over: &Table) {
    for (key, value) in over {
        match (table.get_mut(key), value) {
            (Some(Value::Table(below)), Value::Table(over)) => merge(below, over),
            _ => {
                table.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Whether a run has all values of a rule; whole and broken numbers are compared as numbers.
fn matches(rule: &Table, values: &BTreeMap<String, Value>) -> bool {
    let number = |v: &Value| v.as_float().or_else(|| v.as_integer().map(|i| i as f64));
    let same = |a: &Value, b: &Value| a == b || number(a).is_some_and(|x| number(b) == Some(x));
    flat(rule).iter().all(|(key, value)| values.get(key).is_some_and(|v| same(v, value)))
}

/// Refuses two runs in one directory.
fn distinct(runs: &[Planned]) -> Result<()> {
    let mut seen = BTreeSet::new();
    match runs.iter().find(|run| !seen.insert(&run.config.run.dir)) {
        Some(run) => Err(Error::input(format!("sweep: two runs would lie in {}", run.config.run.dir))
            .hint("an axis names a value twice, or two keys of one name: give them by arms")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::from_table(toml::from_str(text).unwrap()).unwrap()
    }

    fn names(text: &str) -> Vec<String> {
        config(text).plan().unwrap().runs.iter().map(|r| r.config.run.dir.clone()).collect()
    }

    fn message(text: &str) -> String {
        Config::from_table(toml::from_str(text).unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn methods_axes_and_seeds_are_multiplied_and_every_run_has_its_values() {
        let text = "run.dir = \"r\"\n[sweep]\nseeds = [1, 2]\nmethods = [\"fedavg\", \"fedprox\"]\n\
                    cross = { longtail.imbalance = [10, 50.0] }";
        let plan = config(text).plan().unwrap();
        let dirs: Vec<&str> = plan.runs.iter().map(|r| r.config.run.dir.as_str()).collect();
        assert_eq!(
            dirs[..3],
            ["r/fedavg,imbalance=10/seed-1", "r/fedavg,imbalance=10/seed-2", "r/fedavg,imbalance=50.0/seed-1"]
        );
        assert_eq!(plan.runs.len(), 8);
        let last = &plan.runs[7].config;
        assert_eq!((last.run.seed, last.longtail.imbalance), (2, 50.0));
        assert_eq!(serde_json::to_value(&last.algorithm).unwrap()["kind"], "fedprox");
        assert!(!last.sweeps() && last.arms.is_empty(), "a run of a sweep is a run");
    }

    #[test]
    fn zipped_axes_go_together_and_unequal_lengths_are_refused() {
        let text = "[sweep]\nzip = { \"federated.rounds\" = [3, 5], \"federated.local_epochs\" = [2, 1] }";
        let runs = config(text).plan().unwrap().runs;
        let pairs: Vec<_> = runs.iter().map(|r| (r.config.federated.rounds, r.config.federated.local_epochs)).collect();
        assert_eq!(pairs, [(3, 2), (5, 1)]);
        let unequal = text.replace("[2, 1]", "[2]");
        assert!(message(&unequal).contains("has 1 values, federated.rounds has 2"), "{}", message(&unequal));
    }

    #[test]
    fn a_rule_leaves_runs_out_and_one_that_matches_nothing_is_refused() {
        let text = "[sweep]\nmethods = [\"fedavg\", \"fedprox\"]\ncross = { longtail.imbalance = [10, 50] }\n\
                    skip = [{ algorithm.kind = \"fedprox\", longtail.imbalance = 50 }]";
        let plan = config(text).plan().unwrap();
        assert_eq!((plan.runs.len(), plan.skipped), (3, 1));
        assert!(message(&text.replace("imbalance = 50 }]", "imbalance = 51 }]")).contains("leaves out no run"));
    }

    #[test]
    fn a_knob_makes_runs_of_the_methods_that_have_it_and_others_run_once() {
        let text = "[validation]\nper_class = 2\n[sweep]\nmethods = [\"fedavg\", \"fedprox\"]\nselect_by = \"validation\"\n\
                    knobs = { federated.lr_decay = [1.0, 0.9] }";
        assert_eq!(names(text).len(), 4);
        let text = text.replace("federated.lr_decay", "algorithm.mu");
        let knobs: Vec<_> = config(&text).plan().unwrap().runs.into_iter().map(|r| (r.cell, r.knob)).collect();
        let pair = |cell: &str, knob: &str| (cell.to_string(), knob.to_string());
        assert_eq!(knobs, [pair("fedavg", ""), pair("fedprox", "mu=1.0"), pair("fedprox", "mu=0.9")]);
        assert!(message(&text.replace("per_class = 2", "per_class = 0")).contains("validation.per_class"));
    }

    #[test]
    fn split_seeds_have_folders_of_their_own() {
        let dirs = names("run.dir = \"r\"\n[sweep]\nseeds = [1]\nsplit_seeds = [3, 4]");
        assert_eq!(dirs, ["r/split-3/seed-1", "r/split-4/seed-1"]);
    }

    #[test]
    fn mistakes_are_named() {
        assert!(message("[sweep]\nmethods = [\"fedporx\"]").contains("did you mean `fedprox`?"));
        assert!(message("[sweep]\nseeds = [1, 1]").contains("twice"));
        assert!(message("[sweep]\ncross = { federated.rounds = 3 }").contains("not a list"));
        assert!(message("[sweep]\ncross = { federated.round = [3] }").contains("did you mean `rounds`?"));
        assert!(message("[sweep]\ncross = { federated.rounds = [3, 3] }").contains("two runs"));
    }
}
