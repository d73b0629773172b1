//! Runs → rows: one configuration over its seeds, one stage.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::numbers::Spread;
use super::runs::{Found, Run, Stage};
use crate::error::Result;

/// All rows of some runs, and what distinguishes them.
#[derive(Debug)]
pub struct Report {
    /// What was found.
    pub found: Found,
    /// Rows: configurations in the order they were found, each with its stages in their order.
    pub rows: Vec<Row>,
    /// Keys of the config, the algorithm's kind aside, whose values differ between the rows that they reach.
    pub differing: Vec<String>,
    /// Of each of them the commonest value among those rows; the first row's among equals.
    pub common: BTreeMap<String, String>,
    /// What a reader of any table must know, a sentence each.
    pub notes: Vec<String>,
}

/// A stage of one configuration, over one or several seeds.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Names of all runs it stands for.
    pub name: String,
    /// The stage's key in `eval.json`.
    pub stage: String,
    /// Indices into [`Found::runs`], one a seed, in the seeds' order.
    pub runs: Vec<usize>,
    /// Runs of other configurations that share this very stage: its inputs, its model, its numbers.
    pub shared: Vec<usize>,
}

/// What a set of runs was judged on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestSets {
    /// All on the same images.
    Fixed,
    /// No two seeds on the same images.
    Own,
    /// Some share theirs, some do not.
    Mixed,
    /// A run does not say.
    Unknown,
}

impl Report {
    /// Reads the runs below these paths and groups them.
    pub fn read(paths: &[PathBuf]) -> Result<Report> {
        Ok(Report::of(Found::below(paths)?))
    }

    /// The same with runs that are under way, as far as they are; none is no error.
    pub fn running(paths: &[PathBuf]) -> Result<Report> {
        Ok(Report::of(Found::running(paths)?))
    }

    /// Groups runs.
    pub fn of(found: Found) -> Report {
        let groups = groups(&found.runs);
        let mut rows: Vec<Row> = groups.iter().flat_map(|g| stages(&found.runs, g)).collect();
        fold(&found.runs, &mut rows);
        let mut report = Report { found, rows, differing: Vec::new(), common: BTreeMap::new(), notes: Vec::new() };
        report.differing = report.differing_keys();
        report.common = report.differing.iter().map(|k| (k.clone(), report.commonest(k))).collect();
        report.name_rows();
        report.notes = report.notes_of(&groups);
        report
    }

    /// The run behind an index of a row.
    pub fn run(&self, index: usize) -> &Run {
        &self.found.runs[index]
    }

    /// A row's stage in each of its runs, by seed.
    pub fn stages<'r>(&'r self, row: &'r Row) -> impl Iterator<Item = &'r Stage> {
        row.runs.iter().filter_map(|&i| self.run(i).stage(&row.stage))
    }

    /// A row's seeds, ascending.
    pub fn seeds(&self, row: &Row) -> Vec<u64> {
        row.runs.iter().map(|&i| self.run(i).seed).collect()
    }

    /// A figure of a row over its seeds; seeds that lack it are left out.
    pub fn figure(&self, row: &Row, name: &str) -> Spread {
        Spread::of(self.stages(row).filter_map(|s| s.figure(name)))
    }

    /// How a row's stage is called.
    pub fn label(&self, row: &Row) -> String {
        let mut labels: Vec<&str> = self.stages(row).map(|s| s.label.as_str()).collect();
        labels.dedup();
        labels.join(" / ")
    }

    /// Whether a teacher of the row saw the benchmark's own labels.
    pub fn oracle(&self, row: &Row) -> bool {
        self.stages(row).any(|s| s.oracle)
    }

    /// What the row's runs had that a plain baseline lacks.
    pub fn extras(&self, row: &Row) -> Vec<String> {
        let mut extras: Vec<String> = Vec::new();
        for extra in self.stages(row).flat_map(|s| &s.extras) {
            if !extras.contains(extra) {
                extras.push(extra.clone());
            }
        }
        extras
    }

    /// Recorded rounds behind a row's mean of the last rounds: the least and the most of its seeds.
    pub fn last_rounds(&self, row: &Row) -> Option<(u64, u64)> {
        let with = self.stages(row).filter(|s| s.figure("last10").is_some());
        let rounds: Vec<u64> = with.filter_map(|s| s.rounds).collect();
        Some((*rounds.iter().min()?, *rounds.iter().max()?))
    }

    /// The federated method that trained the row's model; empty where none reaches it.
    pub fn algorithm(&self, row: &Row) -> &str {
        if self.reads(row, "algorithm.kind") { self.run(row.runs[0]).algorithm() } else { "" }
    }

    /// A config's value in a row as text: `None` where the key does not reach the row, a dash where its config lacks it.
    pub fn value(&self, row: &Row, key: &str) -> Option<String> {
        self.reads(row, key).then(|| self.run(row.runs[0]).keys.get(key).map_or_else(|| "–".into(), shown))
    }

    /// Whether a key reaches a row's numbers.
    pub fn reads(&self, row: &Row, key: &str) -> bool {
        self.stages(row).any(|s| s.reads(key))
    }

    /// Seeds that other rows have and this one lacks.
    pub fn missing(&self, row: &Row) -> Vec<u64> {
        let all: BTreeSet<u64> = self.rows.iter().flat_map(|r| self.seeds(r)).collect();
        let own = self.seeds(row);
        all.into_iter().filter(|s| !own.contains(s)).collect()
    }
}

/// Whether runs were judged on one set, or each seed on its own.
pub fn test_sets(runs: &[&Run]) -> TestSets {
    let by_seed: BTreeSet<(u64, &str)> = runs.iter().map(|r| (r.seed, r.test.as_str())).collect();
    let sets: BTreeSet<&str> = by_seed.iter().map(|t| t.1).collect();
    let seeds: BTreeSet<u64> = by_seed.iter().map(|t| t.0).collect();
    match (sets.contains(""), sets.len()) {
        (true, _) => TestSets::Unknown,
        (_, 1) => TestSets::Fixed,
        (_, n) if n == seeds.len() && by_seed.len() == n => TestSets::Own,
        _ => TestSets::Mixed,
    }
}

/// A config's value as a table shows it.
pub fn shown(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        // A number of four bytes, as it was written.
        toml::Value::Float(v) if f64::from(*v as f32) == *v => format!("{:?}", *v as f32),
        other => other.to_string(),
    }
}

/// Runs of one config together, no seed twice: of several with one seed those of one name stay together.
fn groups(runs: &[Run]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        let free = |g: &Vec<usize>| runs[g[0]].keys == run.keys && g.iter().all(|&o| runs[o].seed != run.seed);
        let named = groups.iter().position(|g| runs[g[0]].name == run.name && free(g));
        let at = named.or_else(|| groups.iter().position(free));
        match at {
            Some(at) => groups[at].push(i),
            None => groups.push(vec![i]),
        }
    }
    groups.iter_mut().for_each(|g| g.sort_by_key(|&i| runs[i].seed));
    groups
}

/// The rows of one configuration, in its stages' order.
fn stages(runs: &[Run], group: &[usize]) -> Vec<Row> {
    let mut order: BTreeMap<&str, i64> = BTreeMap::new();
    for stage in group.iter().flat_map(|&i| &runs[i].stages) {
        let place = order.entry(&stage.name).or_insert(stage.order);
        *place = stage.order.min(*place);
    }
    let mut names: Vec<(i64, &str)> = order.into_iter().map(|(name, place)| (place, name)).collect();
    names.sort_unstable();
    let row = |(_, name): (i64, &str)| {
        let with = group.iter().copied().filter(|&i| runs[i].stage(name).is_some()).collect();
        Row { name: String::new(), stage: name.into(), runs: with, shared: Vec::new() }
    };
    names.into_iter().map(row).collect()
}

/// Puts rows together whose stage is one and the same: same seeds, and by seed the same model from the same inputs.
fn fold(runs: &[Run], rows: &mut Vec<Row>) {
    let mut kept: Vec<Row> = Vec::new();
    for row in rows.drain(..) {
        match kept.iter_mut().find(|k| same_stage(runs, k, &row)) {
            Some(first) => first.shared.extend(row.runs),
            None => kept.push(row),
        }
    }
    *rows = kept;
}

fn same_stage(runs: &[Run], a: &Row, b: &Row) -> bool {
    let one = |(&i, &j): (&usize, &usize)| {
        let (Some(x), Some(y)) = (runs[i].stage(&a.stage), runs[j].stage(&b.stage)) else { return false };
        let (Some(reads), true) = (&x.reads, !x.digest().is_empty()) else { return false };
        let read = |run: &Run, s: &Stage| {
            run.keys.iter().filter(|(k, _)| s.reads(k)).map(|(k, v)| (k.clone(), v.clone())).collect::<BTreeMap<_, _>>()
        };
        let inputs = y.reads.as_ref() == Some(reads) && read(&runs[i], x) == read(&runs[j], y);
        runs[i].seed == runs[j].seed && x == y && runs[i].test == runs[j].test && inputs
    };
    // One configuration twice is a copy, which stays a row.
    let other = runs[a.runs[0]].keys != runs[b.runs[0]].keys;
    other && a.stage == b.stage && a.runs.len() == b.runs.len() && a.runs.iter().zip(&b.runs).all(one)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    struct Desk(tempfile::TempDir);

    impl Desk {
        fn new() -> Self {
            Desk(tempfile::tempdir().unwrap())
        }

        fn write(&self, dir: &str, config: &str, stages: Value) {
            let dir = self.0.path().join(dir);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("config.toml"), config).unwrap();
            std::fs::write(dir.join("eval.json"), json!({ "stages": stages }).to_string()).unwrap();
        }

        fn report(&self) -> Report {
            Report::read(&[self.0.path().to_path_buf()]).unwrap()
        }
    }

    fn stage(overall: f64) -> Value {
        json!({ "finetune": { "overall": overall, "digest": "d", "order": 1, "label": "2 finetune" } })
    }

    #[test]
    fn seeds_of_one_config_become_one_row_and_another_config_never_joins_it() {
        let desk = Desk::new();
        let config = |seed: u64, mu: f64| {
            format!("[run]\nseed = {seed}\ndir = \"x{seed}\"\n[algorithm]\nkind = \"fedprox\"\nmu = {mu:?}")
        };
        desk.write("seed-1/scratch", &config(1, 0.0), stage(0.5));
        desk.write("seed-2/scratch", &config(2, 0.0), stage(0.6));
        desk.write("seed-3/scratch", &config(3, 0.1), stage(0.6));
        let report = desk.report();
        assert_eq!(report.rows.len(), 2, "one name, two configs");
        assert_eq!(
            (report.seeds(&report.rows[0]), report.differing.clone()),
            (vec![1, 2], vec!["algorithm.mu".into()])
        );
        assert_eq!(report.value(&report.rows[1], "algorithm.mu").unwrap(), "0.1");
        assert_eq!(report.figure(&report.rows[0], "overall").percent(2, true), "55.00 ± 7.07");
        assert!(report.notes.contains(&"Seed 3 missing: scratch (2 finetune).".to_string()), "{:?}", report.notes);
    }

    #[test]
    fn equal_numbers_of_another_method_stay_a_row_and_a_shared_stage_names_all_its_runs() {
        let desk = Desk::new();
        let config =
            |kind: &str, beta: u32| format!("[run]\nseed = 1\n[algorithm]\nkind = \"{kind}\"\n[align]\nbeta = {beta}");
        let mut said = stage(0.5);
        said["finetune"]["reads"] = json!(["algorithm"]);
        desk.write("a", &config("fedavg", 1), said.clone());
        desk.write("b", &config("fedprox", 1), said.clone());
        desk.write("c", &config("fedavg", 2), said.clone());
        let names: Vec<String> = desk.report().rows.iter().map(|r| r.name.clone()).collect();
        assert_eq!(names, ["a, c", "b"]);
        desk.write("c", &config("fedavg", 2), stage(0.5));
        assert_eq!(desk.report().rows.len(), 3, "a run that does not say what it reads shares nothing");
    }

    #[test]
    fn a_copy_of_a_run_stays_apart_and_is_named() {
        let desk = Desk::new();
        for dir in ["x/one", "y/one"] {
            desk.write(dir, "[run]\nseed = 1", stage(0.5));
        }
        let report = desk.report();
        assert_eq!(report.rows.len(), 2);
        assert!(report.rows[0].name.ends_with("x/one") && report.rows[1].name.ends_with("y/one"));
        assert!(report.notes.iter().any(|n| n.contains("twice, kept apart")), "{:?}", report.notes);
    }

    #[test]
    fn an_empty_folder_is_an_error_not_a_table() {
        let desk = Desk::new();
        assert!(Report::read(&[desk.0.path().to_path_buf()]).is_err());
        assert!(Report::read(&[Path::new("/nowhere/at/all").to_path_buf()]).is_err());
    }
}
