//! A config's `[table]`, from its sweep's or its arms' runs.

use std::collections::BTreeMap;
use std::path::Path;

use super::arms;
use crate::config::resolve::flat;
use crate::config::sweep::{Planned, SelectBy};
use crate::config::{Config, TableConfig};
use crate::error::{Error, Result};
use crate::report::contrast::Question;
use crate::report::group::shown;
use crate::report::pivot::{Asked, Entry, Pivot};
use crate::report::published::Published;
use crate::shipped;
use crate::sweep::{State, Sweep, select};

/// Numbers from papers and from who ran their code.
const PUBLISHED: &str = "data/published.toml";

/// The runs of a config that has a sweep or arms. Arms without a sweep have the seeds that lie on disk.
pub fn sweep_of(config: &Config) -> Result<Sweep> {
    if config.sweeps() || config.arms.is_empty() {
        return Sweep::open(config);
    }
    let mut config = config.clone();
    config.sweep.seeds = arms::all_seeds(&config)?;
    Sweep::open(&config)
}

/// The table of a config; none where it has no `[table]`.
pub fn of(config: &Config, sweep: &Sweep) -> Result<Option<Pivot>> {
    let Some(table) = &config.table else { return Ok(None) };
    let entries = entries(sweep, table)?;
    Pivot::of(asked(config, table)?, &entries).map(Some)
}

fn asked(config: &Config, table: &TableConfig) -> Result<Asked> {
    let question = |c: &crate::config::Contrast| Question {
        name: c.name.clone(),
        of: c.of.clone(),
        over: c.over.clone(),
        if_above: c.if_above.clone(),
        if_below: c.if_below.clone(),
    };
    let published = match table.published {
        true => Some(Published::parse(&shipped::read_text(Path::new(PUBLISHED))?, PUBLISHED)?),
        false => None,
    };
    Ok(Asked {
        title: table.title.clone(),
        rows: table.rows.clone(),
        columns: table.columns.clone(),
        numbers: table.numbers.clone(),
        stage: table.stage.clone(),
        groups: table.groups.iter().map(|g| (g.title.clone(), g.rows.clone())).collect(),
        questions: config.contrasts.iter().map(question).collect(),
        published,
    })
}

/// Every planned run; where a knob is chosen by validation, one for each cell and seed.
fn entries(sweep: &Sweep, table: &TableConfig) -> Result<Vec<Entry>> {
    let chosen = match sweep.config.select_by {
        SelectBy::Nothing => None,
        SelectBy::Validation => Some(select::choose(sweep)?.0),
    };
    let mut all: Vec<Entry> = Vec::new();
    for run in &sweep.plan.runs {
        let (dir, state) = match sweep.state(run)? {
            State::Done(dir) => (Some(dir), "done".to_string()),
            State::Running => (None, "running".into()),
            State::Stopped => (None, "stopped".into()),
            State::Failed(why) => (None, format!("failed: {why}")),
            State::Waiting => (None, "not run".into()),
        };
        let mut entry = Entry { at: coordinates(run, table)?, seeds: seeds(run), dir, state };
        if let Some(chosen) = &chosen {
            if all.iter().any(|e| e.at["cell"] == run.cell && e.seeds == entry.seeds) {
                continue;
            }
            let own = chosen.iter().find(|c| c.cell == run.cell && c.seeds == entry.seeds);
            entry.dir = own.map(|c| c.dir.clone());
            entry.state = "its knob is not chosen yet".into();
        }
        all.push(entry);
    }
    Ok(all)
}

fn seeds(run: &Planned) -> (u64, Option<u64>) {
    (run.config.run.seed, run.config.run.split_seed)
}

/// What tells a run apart, and what published numbers go by.
fn coordinates(run: &Planned, table: &TableConfig) -> Result<BTreeMap<String, String>> {
    let values = flat(&run.config.to_table()?);
    let text = |key: &str| values.get(key).map_or_else(String::new, shown);
    let mut at = BTreeMap::from([
        ("cell".to_string(), run.cell.clone()),
        ("arm".to_string(), run.arm.clone()),
        ("method".to_string(), text("algorithm.kind")),
    ]);
    let published = ["data.kind", "longtail.imbalance"].map(String::from);
    for key in table.rows.iter().chain(&table.columns).chain(&published).filter(|k| k.contains('.')) {
        at.insert(key.clone(), values.get(key).map_or_else(|| "–".into(), shown));
    }
    Ok(at)
}

/// What to say of a config that has neither.
pub fn nothing(file: &Path) -> Error {
    Error::input(format!("{}: no [sweep] and no arms: there is no table of it", file.display()))
        .hint("name its run's directory, such as runs/demo")
}
