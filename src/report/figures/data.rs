//! What figures show, as numbers: made from the rows, drawn elsewhere.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::group::{Report, Row};
use super::super::numbers::{Spread, ranges};
use super::super::runs::judged;
use crate::error::Result;

/// A value over seeds at a place of the horizontal axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The place.
    pub x: f64,
    /// Percent, a value a seed.
    pub of: Spread,
}

/// A line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What distinguishes it, and over how many seeds it is.
    pub name: String,
    /// The stage's key in `eval.json`.
    pub stage: String,
    /// The runs behind it, indices of the report's.
    pub runs: Vec<usize>,
    /// By place, ascending.
    pub points: Vec<Point>,
}

/// How a chart's points are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Joined, with bands of deviation.
    Bands,
    /// Joined, with whiskers of deviation.
    Whiskers,
    /// Each on a stem, beside those of other series.
    Stems,
}

/// Accuracies over a horizontal axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// With the runs' names.
    pub title: String,
    /// Name and unit of the horizontal axis.
    pub x: String,
    /// Whether steps of equal ratio are equally long.
    pub log: bool,
    /// How points are told.
    pub mark: Mark,
    /// The lines.
    pub series: Vec<Series>,
    /// Below it, a sentence each.
    pub notes: Vec<String>,
}

/// Shares of predictions: rows are true classes.
#[derive(Clone, Debug, PartialEq)]
pub struct Square {
    /// The row's name and its seeds.
    pub name: String,
    /// The runs behind it.
    pub runs: Vec<usize>,
    /// `(classes, classes)`, in `[0, 1]`, of the images of all seeds.
    pub shares: Vec<Vec<f64>>,
}

/// Who holds how many images of each class.
#[derive(Clone, Debug, PartialEq)]
pub struct Holding {
    /// The runs that have this split.
    pub name: String,
    /// Their indices.
    pub runs: Vec<usize>,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Images of each class, a holder each: clients, then the server.
    pub holders: Vec<Vec<u64>>,
}

/// Most places of classes on an axis; of more, neighbours are put together.
pub const PLACES: usize = 30;

/// `3 seeds (7 to 9)`, or the only one.
pub fn seeds(report: &Report, runs: &[usize]) -> String {
    let mut seeds: Vec<u64> = runs.iter().map(|&i| report.run(i).seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    match &seeds[..] {
        [one] => format!("seed {one} alone"),
        all => format!("{} seeds ({})", all.len(), ranges(all)),
    }
}

fn series(report: &Report, row: &Row, points: Vec<Point>) -> Series {
    let name = format!("{}, {}", report.heading(row), seeds(report, &row.runs));
    Series { name, stage: row.stage.clone(), runs: row.runs.iter().chain(&row.shared).copied().collect(), points }
}

/// Names of runs, each once.
fn run_names<'r>(report: &'r Report, runs: impl IntoIterator<Item = &'r usize>) -> String {
    let mut names: Vec<&str> = Vec::new();
    for &i in runs {
        if !names.contains(&report.run(i).name.as_str()) {
            names.push(&report.run(i).name);
        }
    }
    names.join(", ")
}

/// A title with the names of all runs that are drawn.
pub fn titled(report: &Report, what: &str, series: &[Series]) -> String {
    format!("{what}: {}", run_names(report, series.iter().flat_map(|s| &s.runs)))
}

/// Accuracy against rounds, where runs recorded some; rounds that all seeds of a row have.
pub fn rounds(report: &Report) -> Result<Option<Chart>> {
    let (mut lines, mut cut) = (Vec::new(), Vec::new());
    for row in &report.rows {
        let mut by_round: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for &i in &row.runs {
            for record in report.run(i).records()?.iter().filter(|r| judged(r, &row.stage)) {
                let (round, accuracy) = (record["round"].as_u64(), record["accuracy"].as_f64());
                if let (Some(round), Some(accuracy)) = (round, accuracy) {
                    by_round.entry(round).or_default().push(100.0 * accuracy);
                }
            }
        }
        let all = by_round.len();
        by_round.retain(|_, values| values.len() == row.runs.len());
        if by_round.len() < all {
            cut.push(format!("{} ({} of {all})", report.heading(row), by_round.len()));
        }
        let point = |(round, values): (u64, Vec<f64>)| Point { x: round as f64, of: Spread::of(values) };
        if !by_round.is_empty() {
            lines.push(series(report, row, by_round.into_iter().map(point).collect()));
        }
    }
    let title = titled(report, "Accuracy against rounds", &lines);
    let mut notes = vec![spread_note(&lines, "Bands")];
    notes.extend((!cut.is_empty()).then(|| format!("Only rounds that all seeds recorded: {}.", cut.join(", "))));
    let chart = Chart { title, x: "round".into(), log: false, mark: Mark::Bands, series: lines, notes };
    Ok((!chart.series.is_empty()).then_some(chart))
}

/// What bands or whiskers mean, and where there are none.
pub fn spread_note(lines: &[Series], what: &str) -> String {
    let several = |s: &&Series| s.points.iter().any(|p| p.of.values.len() > 1);
    match lines.iter().filter(several).count() {
        0 => "One seed each: no deviation is known.".into(),
        n if n == lines.len() => format!("{what}: standard deviation over seeds."),
        _ => format!("{what}: standard deviation over seeds; series of one seed have none."),
    }
}

/// Accuracy of each class against its training images; many classes in groups of neighbours.
pub fn frequency(report: &Report) -> Option<Chart> {
    let (mut lines, mut grouped) = (Vec::new(), None);
    for row in &report.rows {
        let mut points: Vec<Point> = Vec::new();
        for class in report.classes(row) {
            if let Some(x) = class.images.mean() {
                points.push(Point { x, of: Spread::of(class.accuracy.values.iter().map(|v| 100.0 * v)) });
            }
        }
        points.sort_by(|a, b| b.x.total_cmp(&a.x));
        if points.len() > PLACES {
            let each = points.len().div_ceil(PLACES / 2);
            grouped = Some(each);
            points = points.chunks(each).map(mean_point).collect();
        }
        points.reverse();
        if !points.is_empty() {
            lines.push(series(report, row, points));
        }
    }
    let title = titled(report, "Accuracy of each class against its frequency", &lines);
    let mut notes = vec![spread_note(&lines, "Whiskers")];
    notes.extend(grouped.map(|n| format!("Each point is the mean of {n} classes of neighbouring frequency.")));
    let x = "training images of the class, on all clients".to_string();
    (!lines.is_empty()).then_some(Chart { title, x, log: true, mark: Mark::Stems, series: lines, notes })
}

/// Classes put together: their mean place, and by seed their mean accuracy.
fn mean_point(points: &[Point]) -> Point {
    let n = points.len() as f64;
    let seeds = points.iter().map(|p| p.of.values.len()).min().unwrap_or(0);
    let mean = |s: usize| points.iter().map(|p| p.of.values[s]).sum::<f64>() / n;
    Point { x: points.iter().map(|p| p.x).sum::<f64>() / n, of: Spread::of((0..seeds).map(mean)) }
}

/// The confusion of every row that records one.
pub fn squares(report: &Report) -> Vec<Square> {
    let square = |row: &Row| {
        let mut shares: Vec<Vec<f64>> = Vec::new();
        for line in report.stages(row).flat_map(|s| lines(&s.figures["confusion"])) {
            let (i, counts) = line;
            if shares.len() <= i {
                shares.push(vec![0.0; counts.len()]);
            }
            shares[i].iter_mut().zip(counts).for_each(|(sum, n)| *sum += n as f64);
        }
        for line in &mut shares {
            let total = line.iter().sum::<f64>().max(1.0);
            line.iter_mut().for_each(|v| *v /= total);
        }
        let name = format!("{}, {}", report.heading(row), seeds(report, &row.runs));
        let runs = row.runs.iter().chain(&row.shared).copied().collect();
        Square { name, runs, shares }
    };
    report.rows.iter().map(square).filter(|s| !s.shares.is_empty()).collect()
}

fn lines(matrix: &Value) -> impl Iterator<Item = (usize, Vec<u64>)> {
    let numbers = |v: &Value| v.as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    matrix.as_array().into_iter().flatten().map(numbers).enumerate()
}

/// The classes' names of the first run that has some.
pub fn classes(report: &Report) -> Vec<String> {
    let names = |i: usize| strings(&report.run(i).eval["facts"]["classes"]);
    (0..report.found.runs.len()).map(names).find(|n| !n.is_empty()).unwrap_or_default()
}

fn strings(v: &Value) -> Vec<String> {
    v.as_array().into_iter().flatten().filter_map(|s| s.as_str().map(String::from)).collect()
}

/// Every split of the runs, each once.
pub fn holdings(report: &Report) -> Vec<Holding> {
    let mut all: Vec<Holding> = Vec::new();
    for (i, run) in report.found.runs.iter().enumerate() {
        let facts = &run.eval["facts"];
        let mut holders: Vec<Vec<u64>> = lines(&facts["held"]["clients"]).map(|(_, counts)| counts).collect();
        if holders.is_empty() {
            continue;
        }
        let server = facts["held"]["server"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        holders.push(server);
        let classes = strings(&facts["classes"]);
        match all.iter_mut().find(|h| h.holders == holders && h.classes == classes) {
            Some(same) => same.runs.push(i),
            None => all.push(Holding { name: String::new(), runs: vec![i], classes, holders }),
        }
    }
    for h in &mut all {
        h.name = format!("{}, {}", run_names(report, &h.runs), seeds(report, &h.runs).trim_end_matches(" alone"));
    }
    all
}
