//! One self-contained page of some runs: tables that sort, figures, every run with its config, and how to do it again.
//!
//! `page.html` is checked when the program is compiled; nothing on the page comes from the network.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use askama::Template;

use super::figures;
use super::format::View;
use super::group::Report;
use super::numbers::ranges;
use super::runs::Run;
use super::summary::figure_names_of;
use super::table::Table;
use crate::error::{Error, Result};
use crate::fsx;
use crate::run::directory::read_json;

#[derive(Template)]
#[template(path = "page.html", config = "src/report/page/askama.toml")]
struct Page {
    title: String,
    version: &'static str,
    runs_in_words: String,
    live: bool,
    tables: Vec<Shown>,
    closing: Vec<String>,
    figures: Vec<Figure>,
    missing_figures: Vec<String>,
    groups: Vec<Group>,
    json: String,
}

/// A table.
struct Shown {
    title: String,
    label: String,
    heads: Vec<Head>,
    rows: Vec<Line>,
    notes: Vec<String>,
}

struct Head {
    text: String,
    number: bool,
}

struct Line {
    cells: Vec<Cell>,
}

struct Cell {
    text: String,
    number: bool,
    /// What it is sorted by.
    value: Option<f64>,
    leads: Vec<Lead>,
    /// The directories of its runs, for the pointer.
    runs: String,
}

/// Where a number leads.
struct Lead {
    anchor: String,
    number: usize,
}

struct Figure {
    name: &'static str,
    short: &'static str,
    head: &'static str,
    svg: String,
}

/// Runs of one configuration.
struct Group {
    anchor: String,
    name: String,
    seeds: String,
    config: String,
    runs: Vec<Shard>,
}

/// One of them.
struct Shard {
    seed: u64,
    dir: String,
    state: String,
    again: String,
    numbers: Vec<(String, String, f64)>,
    manifest: String,
}

/// The figures of a page: name, word in the list of sections, head.
const FIGURES: [(&str, &str, &str); 8] = [
    ("rounds", "Rounds", "Accuracy against rounds"),
    ("confusion", "Confusion", "Confusion, before and after alignment"),
    ("frequency", "Frequency", "Accuracy against class frequency"),
    ("holders", "Who holds what", "Who holds what"),
    ("bytes", "Bytes", "Accuracy against bytes"),
    ("work", "Computing", "Accuracy against computing"),
    ("seconds", "Seconds", "Accuracy against seconds"),
    ("clients", "Clients", "Fairness: accuracy of each client"),
];

/// The page of a report's runs, with the tables of `view`; `live` for runs that still train.
pub fn html(title: &str, view: &View, report: &Report, live: bool) -> Result<String> {
    let groups = groups(report)?;
    let (figures, missing_figures) = drawn(report)?;
    let anchors: BTreeMap<PathBuf, usize> = members(report)
        .into_iter()
        .enumerate()
        .flat_map(|(g, runs)| runs.into_iter().map(move |i| (i, g)).collect::<Vec<_>>())
        .map(|(i, g)| (report.run(i).dir.clone(), g))
        .collect();
    let n = report.found.runs.len();
    let mut closing = view.closing.clone();
    closing.extend(report.found.talk().into_iter().map(|line| format!("{}.", capital(&line))));
    let page = Page {
        title: title.into(),
        version: env!("CARGO_PKG_VERSION"),
        runs_in_words: format!("{n} {} of {} configurations", if n == 1 { "run" } else { "runs" }, groups.len()),
        live,
        tables: view.tables.iter().map(|t| shown(t, &anchors)).collect(),
        closing,
        figures,
        missing_figures,
        groups,
        json: view.json.to_string().replace('<', "\\u003c"),
    };
    page.render().map_err(|e| Error::defect(format!("page: {e}")))
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |c| c.to_uppercase().collect::<String>() + letters.as_str())
}

fn shown(table: &Table, anchors: &BTreeMap<PathBuf, usize>) -> Shown {
    let heads = table.columns.iter().map(|c| Head { text: c.head.clone(), number: c.number }).collect();
    let empty: Vec<Vec<PathBuf>> = Vec::new();
    let line = |(i, cells): (usize, &Vec<String>)| {
        let leads = table.leads.get(i).unwrap_or(&empty);
        let cell = |(c, text): (usize, &String)| {
            let runs = leads.get(c).map_or(&[][..], |l| l);
            let places: BTreeSet<usize> = runs.iter().filter_map(|dir| anchors.get(dir).copied()).collect();
            let number = table.columns[c].number;
            Cell {
                text: text.clone(),
                number,
                value: number.then(|| leading_number(text)).flatten(),
                leads: places.iter().map(|g| Lead { anchor: anchor(*g), number: g + 1 }).collect(),
                runs: runs.iter().map(|r| r.display().to_string()).collect::<Vec<_>>().join(", "),
            }
        };
        Line { cells: cells.iter().enumerate().map(cell).collect() }
    };
    Shown {
        title: table.title.clone(),
        label: if table.title.is_empty() { "Table".into() } else { table.title.clone() },
        heads,
        rows: table.rows.iter().enumerate().map(line).collect(),
        notes: table.notes.clone(),
    }
}

/// The number that a text begins with: `+1.2` of `+1.2 to 3`.
fn leading_number(text: &str) -> Option<f64> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || "+-.".contains(c))).unwrap_or(text.len());
    text[..end].parse().ok()
}

fn anchor(group: usize) -> String {
    format!("runs-{}", group + 1)
}

/// What could be drawn, in the page's order; and the names of what could not.
fn drawn(report: &Report) -> Result<(Vec<Figure>, Vec<String>)> {
    let mut found: BTreeMap<&str, String> = figures::available(report)?.into_iter().collect();
    found.extend(figures::burdens(report)?);
    let (mut all, mut missing) = (Vec::new(), Vec::new());
    for (name, short, head) in FIGURES {
        match found.remove(name) {
            Some(svg) => all.push(Figure { name, short, head, svg: named(&svg, head) }),
            None => missing.push(short.to_lowercase()),
        }
    }
    let note = (!missing.is_empty()).then(|| format!("Not drawn, for no run records it: {}.", missing.join(", ")));
    Ok((all, note.into_iter().collect()))
}

/// A figure with a name for who does not see it.
fn named(svg: &str, head: &str) -> String {
    svg.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{head}\" "), 1)
}

/// Indices of the runs of each configuration, in the order they were found.
fn members(report: &Report) -> Vec<Vec<usize>> {
    let mut all: Vec<Vec<usize>> = Vec::new();
    for (i, run) in report.found.runs.iter().enumerate() {
        let same = |g: &&mut Vec<usize>| report.run(g[0]).keys == run.keys && report.run(g[0]).name == run.name;
        match all.iter_mut().find(same) {
            Some(group) => group.push(i),
            None => all.push(vec![i]),
        }
    }
    all
}

fn groups(report: &Report) -> Result<Vec<Group>> {
    let group = |(g, runs): (usize, Vec<usize>)| {
        let first = report.run(runs[0]);
        let mut seeds: Vec<u64> = runs.iter().map(|&i| report.run(i).seed).collect();
        seeds.sort_unstable();
        let word = if seeds.len() == 1 { "seed" } else { "seeds" };
        let alike = |f: &Run| f.name == first.name;
        let several = members(report).iter().filter(|m| alike(report.run(m[0]))).count() > 1;
        let place = first.dir.parent().unwrap_or(Path::new("")).display().to_string();
        Ok(Group {
            anchor: anchor(g),
            name: if several { place } else { first.name.clone() },
            seeds: format!("{word} {}", ranges(&seeds)),
            config: text_of(&first.dir.join("config.toml"))?,
            runs: runs.iter().map(|&i| shard(report.run(i))).collect::<Result<_>>()?,
        })
    };
    members(report).into_iter().enumerate().map(group).collect()
}

fn shard(run: &Run) -> Result<Shard> {
    let file = run.dir.join("manifest.json");
    let state =
        if file.exists() { read_json(&file)?["state"].as_str().unwrap_or("").to_string() } else { String::new() };
    let dir = run.dir.display().to_string();
    let numbers = run.stages.iter().flat_map(|stage| {
        let names = figure_names_of([stage]).into_iter();
        names.filter_map(|name| Some((stage.label.clone(), name.clone(), stage.figure(&name)?)))
    });
    Ok(Shard {
        seed: run.seed,
        state,
        again: format!("fedllava run {dir}/config.toml --set run.dir=runs/again/{}/seed-{}", run.name, run.seed),
        numbers: numbers.collect(),
        manifest: text_of(&file)?,
        dir,
    })
}

/// A file's text; a word where there is none.
fn text_of(file: &Path) -> Result<String> {
    if file.exists() { fsx::read_text(file) } else { Ok("not there".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_sort_by_the_number_that_they_begin_with() {
        let of = ["25.70 ± 1.03 (2 of 3)", "+1.2 to +3.4", "–", "-0.5", "12.9k"].map(leading_number);
        assert_eq!(of, [Some(25.7), Some(1.2), None, Some(-0.5), Some(12.9)]);
    }
}
