//! Runs → rows × columns × numbers: the table that an experiment's `[table]` asks for.
//!
//! | file | what |
//! |---|---|
//! | `mod` | planned runs → cells, each with its values and what is missing |
//! | `value` | which number of a run |
//! | `view` | cells → tables, JSON, a sheet |
//! | `questions` | differences between rows, paired by seed |

mod questions;
mod value;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::contrast::Question;
use super::group::TestSets;
use super::numbers::Spread;
use super::published::{Known, Place, Published};
use super::runs::{Found, Run, Stage};
use crate::error::Result;

/// `run.seed`, and `run.split_seed` where the sweep sets one: what differences are paired by.
pub type Seeds = (u64, Option<u64>);

/// A planned run.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What tells it apart: `cell`, `arm`, `method` and keys of its config, as text.
    pub at: BTreeMap<String, String>,
    /// Its seeds.
    pub seeds: Seeds,
    /// Where its figures lie, if it is finished.
    pub dir: Option<PathBuf>,
    /// How far it is, where it is not: `waiting`.
    pub state: String,
}

/// What a table is asked to show.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Above it.
    pub title: String,
    /// What makes a row.
    pub rows: Vec<String>,
    /// What makes a column.
    pub columns: Vec<String>,
    /// What stands in a cell.
    pub numbers: Vec<String>,
    /// A stage's key in `eval.json`; empty for the last with a model.
    pub stage: String,
    /// Heads, and the names of rows below them.
    pub groups: Vec<(String, Vec<String>)>,
    /// Differences between rows.
    pub questions: Vec<Question>,
    /// Numbers to stand beside ours.
    pub published: Option<Published>,
}

/// A table's numbers.
#[derive(Debug)]
pub struct Pivot {
    /// What was asked.
    pub asked: Asked,
    /// The rows, in the plan's order.
    pub rows: Vec<Line>,
    /// The columns, in the plan's order: what tells each apart; one empty one where nothing does.
    pub columns: Vec<Vec<String>>,
    /// Row, column and number → cell. One without planned runs is absent.
    pub cells: BTreeMap<(usize, usize, usize), Cell>,
    /// Sentences on what the numbers are.
    pub notes: Vec<String>,
    /// The finished runs.
    pub runs: Vec<Run>,
}

/// A row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Line {
    /// What tells it apart.
    pub parts: Vec<String>,
    /// Whether a teacher saw the benchmark's own labels.
    pub oracle: bool,
    /// What its runs had that a plain baseline lacks.
    pub extras: Vec<String>,
}

impl Line {
    /// The parts joined by `/`.
    pub fn name(&self) -> String {
        let parts: Vec<&str> = self.parts.iter().map(String::as_str).filter(|p| !p.is_empty()).collect();
        if parts.is_empty() { "all runs".into() } else { parts.join("/") }
    }
}

/// One number over its seeds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    /// Seeds, run (an index of [`Pivot::runs`]) and value, in the plan's order; shares as they are in `eval.json`.
    pub values: Vec<(Seeds, usize, f64)>,
    /// Runs that were planned.
    pub planned: usize,
    /// Those without the number, and why.
    pub missing: Vec<(Seeds, String)>,
    /// Published numbers of the same.
    pub published: Vec<Known>,
}

impl Cell {
    /// Its values over seeds.
    pub fn spread(&self) -> Spread {
        Spread::of(self.values.iter().map(|(.., v)| *v))
    }
}

impl Pivot {
    /// Reads the finished runs and puts every planned one in its cell.
    pub fn of(asked: Asked, entries: &[Entry]) -> Result<Pivot> {
        let mut pivot = Pivot {
            asked,
            rows: Vec::new(),
            columns: Vec::new(),
            cells: BTreeMap::new(),
            notes: Vec::new(),
            runs: Vec::new(),
        };
        let by_stage = pivot.asked.rows.iter().chain(&pivot.asked.columns).any(|c| c == "stage");
        let mut unplaced = Vec::new();
        for entry in entries {
            match &entry.dir {
                Some(dir) => {
                    pivot.runs.push(Run::read(dir)?);
                    let at = pivot.runs.len() - 1;
                    pivot.finished(entry, at, by_stage);
                }
                // Which stages it will have is not known.
                None if by_stage => unplaced.push(entry),
                None => pivot.missing(entry),
            }
        }
        pivot.value_names_are_known()?;
        if !by_stage {
            pivot.join_published(entries);
        }
        pivot.notes = pivot.notes_of(&unplaced);
        Ok(pivot)
    }

    fn finished(&mut self, entry: &Entry, at: usize, by_stage: bool) {
        let run = self.runs[at].clone();
        let stages: Vec<&Stage> = match (by_stage, self.asked.stage.as_str()) {
            (true, _) => run.stages.iter().collect(),
            (_, "") => {
                run.stages.iter().rev().find(|s| !s.digest().is_empty()).or(run.stages.last()).into_iter().collect()
            }
            (_, name) => run.stage(name).into_iter().collect(),
        };
        if stages.is_empty() {
            let names: Vec<&str> = run.stages.iter().map(|s| s.name.as_str()).collect();
            let why = format!("no stage {}, it has {}", self.asked.stage, names.join(", "));
            let place = self.place(entry, "");
            self.lacks(place, entry.seeds, &why);
        }
        for stage in stages {
            let (row, column) = self.place(entry, &stage.name);
            let line = &mut self.rows[row];
            line.oracle |= stage.oracle;
            stage.extras.iter().for_each(|e| {
                if !line.extras.contains(e) {
                    line.extras.push(e.clone())
                }
            });
            for n in 0..self.asked.numbers.len() {
                let cell = self.cells.entry((row, column, n)).or_default();
                cell.planned += 1;
                match value::of(&run, stage, &self.asked.numbers[n]) {
                    Ok(v) => cell.values.push((entry.seeds, at, v)),
                    Err(why) => cell.missing.push((entry.seeds, why)),
                }
            }
        }
    }

    fn missing(&mut self, entry: &Entry) {
        let place = self.place(entry, "");
        self.lacks(place, entry.seeds, &entry.state);
    }

    fn lacks(&mut self, (row, column): (usize, usize), seeds: Seeds, why: &str) {
        for n in 0..self.asked.numbers.len() {
            let cell = self.cells.entry((row, column, n)).or_default();
            cell.planned += 1;
            cell.missing.push((seeds, why.into()));
        }
    }

    /// The row and the column of a run's stage.
    fn place(&mut self, entry: &Entry, stage: &str) -> (usize, usize) {
        let part = |name: &String| match name.as_str() {
            "stage" => stage.to_string(),
            _ => entry.at.get(name).cloned().unwrap_or_else(|| "–".into()),
        };
        let row: Vec<String> = self.asked.rows.iter().map(part).collect();
        let column: Vec<String> = self.asked.columns.iter().map(part).collect();
        let r = self.rows.iter().position(|l| l.parts == row).unwrap_or_else(|| {
            self.rows.push(Line { parts: row, ..Line::default() });
            self.rows.len() - 1
        });
        let c = self.columns.iter().position(|c| *c == column).unwrap_or_else(|| {
            self.columns.push(column);
            self.columns.len() - 1
        });
        (r, c)
    }

    /// Published numbers beside the cells of their benchmark, imbalance and method; never beside an oracle's.
    fn join_published(&mut self, entries: &[Entry]) {
        let Some(published) = self.asked.published.clone() else { return };
        for entry in entries {
            let (row, column) = self.place(entry, "");
            for n in 0..self.asked.numbers.len() {
                let known = published.of(&place_of(entry, &self.asked.numbers[n]));
                if let (Some(cell), false) = (self.cells.get_mut(&(row, column, n)), self.rows[row].oracle) {
                    cell.published = known.into_iter().cloned().collect();
                }
            }
        }
    }

    /// A row by its name.
    pub fn row(&self, name: &str) -> Option<usize> {
        self.rows.iter().position(|line| line.name() == name)
    }

    /// What runs were judged on.
    fn test_sets(&self, runs: &BTreeSet<usize>) -> TestSets {
        super::group::test_sets(&runs.iter().map(|&i| &self.runs[i]).collect::<Vec<_>>())
    }

    /// Reads the runs of all cells as one report, for figures.
    pub fn found(&self) -> Result<Found> {
        Found::below(&self.runs.iter().map(|r| r.dir.clone()).collect::<Vec<_>>())
    }
}

/// What a number of a run is of, in the words of published ones.
fn place_of<'a>(entry: &'a Entry, number: &'a str) -> Place<'a> {
    let at = |key: &str| entry.at.get(key).map_or("", String::as_str);
    let method = if at("arm").is_empty() { at("method") } else { at("arm") };
    Place { benchmark: at("data.kind"), imbalance: at("longtail.imbalance"), method, number }
}
