//! Accuracy over the values of one key: what the figure shows, as numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::super::group::{Report, shown};
use super::super::keys::{Keys, NOISE, list_of};
use super::super::numbers::Spread;
use super::super::runs::{Run, Stage};
use super::data::{Chart, Mark, Point, Series, seeds, spread_note, titled};
use crate::error::{Error, Result, closest};

/// A figure of the runs that is as good as a key: what privacy they had spent in the end.
const EPSILON: &str = "epsilon";

/// A line in the making: a stage of one configuration that varies in the key and the seed alone.
struct Family<'r> {
    /// The config but for the key.
    rest: Keys,
    stage: &'r Stage,
    /// Which of several runs of one config and seed it has.
    copy: usize,
    /// Place → its values.
    points: BTreeMap<u64, Vec<Value>>,
}

struct Value {
    seed: u64,
    run: usize,
    percent: f64,
}

/// Final accuracy over the values of one key, or over `epsilon`: a line for each stage of each configuration that differs
/// in this key (in noise) and the seed alone. `key` may name others behind commas that move along with it.
pub fn curve(report: &Report, key: &str, log: bool) -> Result<Chart> {
    let mut keys = key.split(',').map(str::trim);
    let (key, along) = (keys.next().unwrap_or_default(), keys.collect::<Vec<_>>());
    let (mut families, mut without): (Vec<Family<'_>>, Vec<PathBuf>) = (Vec::new(), Vec::new());
    for (i, run) in report.found.runs.iter().enumerate() {
        let Some(x) = place(run, key) else {
            without.push(run.dir.clone());
            continue;
        };
        for stage in &run.stages {
            let Some(accuracy) = stage.figure("overall") else { continue };
            let value = Value { seed: run.seed, run: i, percent: 100.0 * accuracy };
            let mut rest = run.keys.clone();
            rest.remove(if key == EPSILON { NOISE } else { key });
            rest.retain(|k, _| !along.contains(&k.as_str()));
            add(&mut families, rest, stage, x, value);
        }
    }
    let values: BTreeSet<u64> = families.iter().flat_map(|f| f.points.keys().copied()).collect();
    if values.len() < 2 {
        return Err(unknown(report, key, values.len()));
    }
    let moves = along.iter().map(|with| moving(report, key, with)).collect::<Result<Vec<_>>>()?;
    let series: Vec<Series> = families.iter().map(|f| f.line(report, &families)).collect();
    let mut notes = vec![spread_note(&series, "Whiskers")];
    notes.extend(moves);
    let names: Vec<String> = without.iter().map(|p| p.display().to_string()).collect();
    notes.extend((!names.is_empty()).then(|| format!("Without a number for {key}, not drawn: {}.", names.join(", "))));
    // Seeds are no quantity: nothing joins them.
    let mark = if key == "run.seed" { Mark::Stems } else { Mark::Whiskers };
    let title = titled(report, &format!("Accuracy against {key}"), &series);
    Ok(Chart { title, x: key.into(), log, mark, series, notes })
}

/// The number that a run's config has under a key.
fn place(run: &Run, key: &str) -> Option<f64> {
    if key == "run.seed" {
        return Some(run.seed as f64);
    }
    if key == EPSILON {
        return run.eval["facts"][EPSILON].as_f64();
    }
    let value = run.keys.get(key)?;
    value.as_float().or_else(|| value.as_integer().map(|i| i as f64))
}

/// Says what `with` is at each value of `key`; refuses where it has two at one, which are no one point.
fn moving(report: &Report, key: &str, with: &str) -> Result<String> {
    let mut all: BTreeMap<u64, (f64, BTreeSet<String>)> = BTreeMap::new();
    for run in &report.found.runs {
        let Some(x) = place(run, key) else { continue };
        let own = run.keys.get(with).map_or_else(|| "–".into(), shown);
        all.entry(x.to_bits()).or_insert_with(|| (x, BTreeSet::new())).1.insert(own);
    }
    let mut values: Vec<(f64, BTreeSet<String>)> = all.into_values().collect();
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    if !report.found.runs.iter().any(|run| run.keys.contains_key(with)) {
        return Err(unknown(report, with, 0));
    }
    let list = |own: &BTreeSet<String>| own.iter().cloned().collect::<Vec<_>>().join(", ");
    if let Some((x, own)) = values.iter().find(|(_, own)| own.len() > 1) {
        let told = format!("--curve: {with} does not move with {key}: at {x} it is {}", list(own));
        return Err(Error::input(told).hint("without it each of its values has lines of its own"));
    }
    let pair = |(x, own): &(f64, BTreeSet<String>)| format!("{} at {x}", list(own));
    Ok(format!("{with} moves along: {}.", values.iter().map(pair).collect::<Vec<_>>().join(", ")))
}

fn add<'r>(families: &mut Vec<Family<'r>>, rest: Keys, stage: &'r Stage, x: f64, value: Value) {
    let mut copies = 0;
    for family in families.iter_mut().filter(|f| f.stage.name == stage.name && f.rest == rest) {
        copies += 1;
        let place = family.points.entry(x.to_bits()).or_default();
        // The same config and seed again is a copy: a line of its own.
        if place.iter().all(|v| v.seed != value.seed) {
            place.push(value);
            return;
        }
    }
    families.push(Family { rest, stage, copy: copies, points: BTreeMap::from([(x.to_bits(), vec![value])]) });
}

impl Family<'_> {
    /// Named by the stage and what tells it from the others.
    fn line(&self, report: &Report, all: &[Family<'_>]) -> Series {
        let values = || self.points.values().flatten();
        let runs: Vec<usize> = values().map(|v| v.run).collect();
        let mut parts = vec![self.stage.label.clone()];
        let keys: BTreeSet<&String> = all.iter().flat_map(|f| f.rest.keys()).collect();
        for key in keys.into_iter().filter(|k| self.stage.reads(k)) {
            let own = self.rest.get(key);
            let said = own.is_none() && list_of(key).is_some();
            if !said && all.iter().any(|f| f.rest.get(key) != own) {
                parts.push(format!("{key} = {}", own.map_or_else(|| "–".into(), shown)));
            }
        }
        parts.extend((self.copy > 0).then(|| format!("copy {}", self.copy + 1)));
        let name = format!("{}, {}", parts.join(" · "), seeds(report, &runs));
        let point = |(x, values): (&u64, &Vec<Value>)| Point {
            x: f64::from_bits(*x),
            of: Spread::of(values.iter().map(|v| v.percent)),
        };
        let mut points: Vec<Point> = self.points.iter().map(point).collect();
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        Series { name, stage: self.stage.name.clone(), runs, points }
    }
}

fn unknown(report: &Report, key: &str, values: usize) -> Error {
    let keys: BTreeSet<&str> = report.found.runs.iter().flat_map(|r| r.keys.keys().map(String::as_str)).collect();
    let differ = if report.differing.is_empty() { "none".into() } else { report.differing.join(", ") };
    let error =
        Error::input(format!("--curve {key}: it needs two values, these runs have {values}; what differs: {differ}"));
    match closest(key, keys.iter().copied()).filter(|_| !keys.contains(key)) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error,
    }
}
