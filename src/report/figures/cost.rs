//! Accuracy against what it cost: bytes, multiply-adds, seconds; and over the clients.

use std::collections::BTreeMap;

use super::super::group::{Report, Row};
use super::super::numbers::Spread;
use super::super::runs::Run;
use super::super::views::clients;
use super::data::{Chart, Mark, Point, Series, rounds, seeds, spread_note, titled};
use crate::error::Result;
use crate::run::Records;

/// What is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cost {
    Bytes,
    /// What clients send alone.
    Upload,
    MultiplyAdds,
    Seconds,
}

/// A name, and how much of the base it is.
type Unit = (&'static str, f64);

impl Cost {
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Cost::Bytes => ("bytes", "sent and received by all clients together"),
            Cost::Upload => ("upload", "sent by all clients together"),
            Cost::MultiplyAdds => ("work", "multiply-adds of all clients together"),
            Cost::Seconds => ("seconds", "of this machine's time, rounds and their evaluation"),
        }
    }

    fn units(self) -> &'static [Unit] {
        match self {
            Cost::Bytes | Cost::Upload => &[("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)],
            Cost::MultiplyAdds => &[("M", 1e6), ("G", 1e9), ("T", 1e12), ("P", 1e15), ("E", 1e18)],
            Cost::Seconds => &[("s", 1.0), ("min", 60.0), ("h", 3600.0)],
        }
    }

    /// What a run has spent after each of these rounds; `None` where it does not record it.
    fn spent(self, run: &Run, rounds: &[f64]) -> Result<Option<Vec<f64>>> {
        let burden = &run.eval["facts"]["burden"];
        let cohort = run.keys.get("federated.cohort").and_then(toml::Value::as_integer).unwrap_or(0) as f64;
        let sum = |keys: &[&str]| keys.iter().map(|k| burden[*k].as_f64()).sum::<Option<f64>>();
        let a_round = match self {
            Cost::Bytes => sum(&["bytes_down", "bytes_up"]),
            Cost::Upload => sum(&["bytes_up"]),
            Cost::MultiplyAdds => sum(&["multiply_adds"]),
            Cost::Seconds => return seconds(run, rounds),
        };
        let a_round = a_round.map(|c| c * cohort).filter(|c| *c > 0.0);
        Ok(a_round.map(|c| rounds.iter().map(|r| r * c).collect()))
    }
}

/// Seconds until the end of each of these rounds; `None` where a round's are not recorded.
fn seconds(run: &Run, rounds: &[f64]) -> Result<Option<Vec<f64>>> {
    let file = run.dir.join("times.jsonl");
    if !file.exists() {
        return Ok(None);
    }
    let (mut sum, mut until) = (0.0, BTreeMap::new());
    for record in Records::read(&file)?.iter().filter(|r| r["stage"] == "finetune") {
        if let (Some(round), Some(took)) = (record["round"].as_u64(), record["seconds"].as_f64()) {
            sum += took;
            until.insert(round, sum);
        }
    }
    Ok(rounds.iter().map(|r| until.get(&(*r as u64)).copied()).collect())
}

/// Accuracy against bytes, multiply-adds and seconds: the lines of accuracy against rounds, each round at its cost (the mean
/// over seeds). Lines whose runs do not record a cost are named.
pub fn costs(report: &Report) -> Result<Vec<(&'static str, Chart)>> {
    each(report, &[Cost::Bytes, Cost::MultiplyAdds, Cost::Seconds])
}

/// The same against one cost by its name, `upload` among them: none of another name.
pub fn cost(report: &Report, name: &str) -> Result<Option<Chart>> {
    let all = [Cost::Bytes, Cost::Upload, Cost::MultiplyAdds, Cost::Seconds];
    let Some(cost) = all.into_iter().find(|c| c.words().0 == name) else { return Ok(None) };
    Ok(each(report, &[cost])?.pop().map(|(_, chart)| chart))
}

fn each(report: &Report, costs: &[Cost]) -> Result<Vec<(&'static str, Chart)>> {
    let Some(rounds) = rounds(report)? else { return Ok(Vec::new()) };
    let mut charts = Vec::new();
    for &cost in costs {
        let (mut series, mut without) = (Vec::new(), Vec::new());
        for line in &rounds.series {
            match moved(report, line, cost)? {
                Some(line) => series.push(line),
                None => without.push(line.name.clone()),
            }
        }
        if series.is_empty() {
            continue;
        }
        let (name, what) = cost.words();
        let most = series.iter().flat_map(|s| &s.points).map(|p| p.x).fold(0.0, f64::max);
        let (unit, base) = cost.units().iter().rev().find(|u| most >= u.1).copied().unwrap_or(cost.units()[0]);
        series.iter_mut().flat_map(|s| &mut s.points).for_each(|p| p.x /= base);
        let mut notes = vec![spread_note(&series, "Bands")];
        notes.extend((!without.is_empty()).then(|| format!("Not recorded, or nothing: {}.", without.join("; "))));
        let title =
            titled(report, &format!("Accuracy against {}", if name == "work" { "computing" } else { name }), &series);
        charts.push((name, Chart { title, x: format!("{unit} {what}"), log: false, mark: Mark::Bands, series, notes }));
    }
    Ok(charts)
}

fn moved(report: &Report, line: &Series, cost: Cost) -> Result<Option<Series>> {
    let rounds: Vec<f64> = line.points.iter().map(|p| p.x).collect();
    let seeds = line.points.first().map_or(0, |p| p.of.values.len());
    let mut all = Vec::new();
    for &i in line.runs.iter().take(seeds) {
        match cost.spent(report.run(i), &rounds)? {
            Some(spent) => all.push(spent),
            None => return Ok(None),
        }
    }
    let mean = |at: usize| all.iter().map(|s| s[at]).sum::<f64>() / all.len().max(1) as f64;
    let point = |(at, p): (usize, &Point)| Point { x: mean(at), of: p.of.clone() };
    Ok(Some(Series { points: line.points.iter().enumerate().map(point).collect(), ..line.clone() }))
}

/// The global model's accuracy on each client's label distribution, clients from the worst to the best.
pub fn fairness(report: &Report) -> Result<Option<Chart>> {
    let mut lines = Vec::new();
    for row in &report.rows {
        let mut seeded: Vec<Vec<f64>> = Vec::new();
        for &i in &row.runs {
            if let Some((_, all)) = clients(report.run(i))?.filter(|(stage, _)| stage.name == row.stage) {
                let held = all.iter().filter(|c| c.images > 0);
                let mut sorted: Vec<f64> = held.filter_map(|c| c.global).map(|a| 100.0 * a).collect();
                sorted.sort_by(f64::total_cmp);
                seeded.push(sorted);
            }
        }
        lines.extend(ranked(report, row, &seeded));
    }
    let title = titled(report, "Accuracy of each client, from the worst to the best", &lines);
    let notes = vec![
        spread_note(&lines, "Whiskers"),
        "The global model's accuracy of each class, weighted by the client's images of it.".into(),
    ];
    let x = "client, by its accuracy".to_string();
    Ok((!lines.is_empty()).then_some(Chart { title, x, log: false, mark: Mark::Whiskers, series: lines, notes }))
}

/// The line of a row: as many places as every seed has clients.
fn ranked(report: &Report, row: &Row, seeded: &[Vec<f64>]) -> Option<Series> {
    let places = seeded.iter().map(Vec::len).min().filter(|n| *n > 0)?;
    let point = |at: usize| Point { x: (at + 1) as f64, of: Spread::of(seeded.iter().map(|s| s[at])) };
    Some(Series {
        name: format!("{}, {}", report.heading(row), seeds(report, &row.runs)),
        stage: row.stage.clone(),
        runs: row.runs.clone(),
        points: (0..places).map(point).collect(),
    })
}
