//! How much of a gain is the server's labels, the pool, the teacher, the federation: what is lost when one is left out.
//!
//! A share is the whole method minus the arm that lacks this part and nothing else, paired by seed. Shares need not add up to
//! the whole gain: parts may need each other, or stand in for each other.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::contrast::in_words;
use super::format::{Sheet, View};
use super::group::{Report, Row, test_sets};
use super::keys::Keys;
use super::numbers::{Spread, ranges};
use super::runs::Run;
use super::summary::JSON_SCHEMA;
use super::table::{Column, Room, Table};
use crate::error::{Error, Result};

/// A part of the method, and how an arm leaves it out.
struct Part {
    name: &'static str,
    /// The key and value that the arm must have.
    without: (&'static str, toml::Value),
    /// What else it may differ in, where leaving the part out forces it.
    free: &'static [&'static str],
    /// What makes the arm.
    set: &'static str,
}

fn parts() -> [Part; 4] {
    let off = || toml::Value::Boolean(false);
    [
        Part {
            name: "pool (stage 1)",
            without: ("pretrain.enabled", off()),
            free: &["finetune.head_init"],
            set: "--set pretrain.enabled=false",
        },
        Part {
            name: "teacher",
            without: ("align.beta", toml::Value::Float(0.0)),
            free: &["teacher", "align.weight"],
            set: "--set align.beta=0",
        },
        Part {
            name: "server's labels",
            without: ("align.cross_entropy", off()),
            free: &["align.weight"],
            set: "--set align.cross_entropy=false --set align.weight.kind=constant",
        },
        Part {
            name: "federation (stage 2)",
            without: ("federated.rounds", toml::Value::Integer(0)),
            free: &["align.when"],
            set: "--set federated.rounds=0",
        },
    ]
}

/// The stage that is looked at.
const STAGE: &str = "align";
/// Plain federated learning: no pool, and before any alignment.
const PLAIN: &str = "finetune";

/// A share: what the whole has over the arm without a part.
struct Share {
    name: String,
    /// The arm's name; none where no run is such an arm, and what would make it.
    arm: std::result::Result<String, String>,
    seeds: Vec<u64>,
    points: Spread,
}

/// The shares of the method that these runs hold: the configuration that has all parts, `of` by its name where several do.
pub fn attribute(report: &Report, of: Option<&str>, figure: &str, room: Room) -> Result<View> {
    let whole = whole(report, of)?;
    let mut shares = Vec::new();
    let scratch = arm(report, whole, &parts()[0], PLAIN);
    let wanted = format!("{} --set pretrain.enabled=false", again(report, whole));
    shares.push(share(report, whole, "all parts, over plain federated learning", scratch, figure, wanted));
    for part in parts() {
        let found = arm(report, whole, &part, STAGE);
        let wanted = format!("{} {}", again(report, whole), part.set);
        shares.push(share(report, whole, part.name, found, figure, wanted));
    }
    Ok(view(report, whole, &shares, figure, room))
}

/// The row that has a pool, a teacher, the server's labels and rounds.
fn whole<'r>(report: &'r Report, of: Option<&str>) -> Result<&'r Row> {
    let has = |row: &&Row| {
        let keys = &report.run(row.runs[0]).keys;
        row.stage == STAGE && parts().iter().all(|p| keys.get(p.without.0).is_none_or(|v| *v != p.without.1))
    };
    let all: Vec<&Row> = report.rows.iter().filter(has).collect();
    let names: Vec<&str> = all.iter().map(|r| r.name.as_str()).collect();
    let hint = "fedllava demo --controls makes one with all its arms";
    match (of, &all[..]) {
        (_, []) => Err(Error::input("no run here has a pool, a teacher, the server's labels and rounds").hint(hint)),
        (None, [one]) => Ok(one),
        (None, several) => {
            // Of arms the one that most others differ from in least: the fewest keys off the common values.
            let off =
                |row: &&Row| report.common.iter().filter(|(k, v)| report.value(row, k).as_ref() != Some(v)).count();
            let least = several.iter().map(&off).min();
            let best: Vec<&&Row> = several.iter().filter(|r| Some(off(r)) == least).collect();
            match best[..] {
                [one] => Ok(one),
                _ => Err(Error::input(format!("several runs have all parts: {}", names.join(", ")))
                    .hint(format!("choose one with --of, such as --of {}", names[0]))),
            }
        }
        (Some(name), _) => all.iter().find(|r| r.name == name).copied().ok_or_else(|| {
            Error::input(format!("--of {name}: no run with all parts is called so; there are: {}", names.join(", ")))
        }),
    }
}

/// The row of a stage that lacks a part and differs in nothing else that reaches it.
fn arm<'r>(report: &'r Report, whole: &Row, part: &Part, stage: &str) -> Option<&'r Row> {
    let own = &report.run(whole.runs[0]).keys;
    report.rows.iter().find(|row| {
        let keys = &report.run(row.runs[0]).keys;
        let lacks = keys.get(part.without.0).is_some_and(|v| same(v, &part.without.1));
        let free = |key: &str| {
            let within = |p: &str| key == p || key.strip_prefix(p).is_some_and(|r| r.starts_with('.'));
            key == part.without.0 || part.free.iter().any(|p| within(p)) || within("evaluate")
        };
        row.stage == stage && lacks && differing(own, keys).all(|k| free(k) || !report.reads(row, k))
    })
}

fn differing<'k>(a: &'k Keys, b: &'k Keys) -> impl Iterator<Item = &'k String> {
    a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))).filter(|k| a.get(*k) != b.get(*k))
}

/// Whole and broken numbers as numbers.
fn same(a: &toml::Value, b: &toml::Value) -> bool {
    let number = |v: &toml::Value| v.as_float().or_else(|| v.as_integer().map(|i| i as f64));
    a == b || number(a).is_some_and(|x| number(b) == Some(x))
}

/// The command that makes an arm.
fn again(report: &Report, whole: &Row) -> String {
    format!("fedllava run {}/config.toml --set run.dir=runs/NAME", report.run(whole.runs[0]).dir.display())
}

fn share(report: &Report, whole: &Row, name: &str, arm: Option<&Row>, figure: &str, wanted: String) -> Share {
    let mut share = Share { name: name.into(), arm: Err(wanted), seeds: Vec::new(), points: Spread::default() };
    let Some(arm) = arm else { return share };
    share.arm = Ok(format!("{} ({})", arm.name, report.label(arm)));
    let value = |run: &Run, row: &Row| run.stage(&row.stage).and_then(|s| s.figure(figure));
    for (run, other) in pairs(report, whole, arm) {
        if let (Some(a), Some(b)) = (value(run, whole), value(other, arm)) {
            share.seeds.push(run.seed);
            share.points.values.push(100.0 * (a - b));
        }
    }
    share
}

/// Runs of both rows with the same seed.
fn pairs<'r>(report: &'r Report, whole: &'r Row, arm: &'r Row) -> impl Iterator<Item = (&'r Run, &'r Run)> {
    whole.runs.iter().filter_map(move |&i| {
        let run = report.run(i);
        let other = arm.runs.iter().map(|&j| report.run(j)).find(|o| o.seed == run.seed)?;
        Some((run, other))
    })
}

fn view(report: &Report, whole: &Row, shares: &[Share], figure: &str, room: Room) -> View {
    let columns = vec![
        Column::words("part"),
        Column::numbers("points"),
        Column::numbers("95 % interval").quiet(),
        Column::numbers("seeds").rank(1).quiet(),
        Column::words("the arm without it").rank(2),
    ];
    let interval = |s: &Share| s.points.interval().map_or("–".into(), |(l, h)| format!("{l:+.1} to {h:+.1}"));
    let row = |s: &Share| {
        let points = s.points.mean().map_or("–".into(), |m| format!("{m:+.2}"));
        let arm = s.arm.clone().unwrap_or_else(|_| "missing".into());
        vec![s.name.clone(), points, interval(s), ranges(&s.seeds), arm]
    };
    let title = format!("Of {} ({}), by {figure}:", whole.name, report.label(whole));
    let mut table = Table { title, columns, rows: shares.iter().map(row).collect(), ..Table::default() };
    table.notes.push(
        "Points that are lost without a part, paired by seed. They need not add up to the whole: parts may need each \
         other, or stand in for each other."
            .into(),
    );
    let runs: Vec<&Run> = whole.runs.iter().map(|&i| report.run(i)).collect();
    if runs.len() > 1 {
        table.notes.push(format!("About the intervals: {}.", in_words(test_sets(&runs))));
    } else {
        table.notes.push("One seed: no interval.".into());
    }
    let missing = |s: &Share| match &s.arm {
        Err(command) => Some(format!("Missing: {}. To make it: {command}", s.name)),
        Ok(arm) if s.seeds.is_empty() => Some(format!("{}: no seed of {} has both, or no {figure}.", s.name, arm)),
        _ => None,
    };
    let closing = shares.iter().filter_map(missing).collect();
    let share = |s: &Share| {
        json!({ "part": s.name, "arm": s.arm.as_ref().ok(), "seeds": s.seeds, "differences": s.points.values,
            "mean": s.points.mean(), "interval": s.points.interval().map(|(l, h)| [l, h]), "to_make": s.arm.as_ref().err() })
    };
    let directories: Vec<&PathBuf> = runs.iter().map(|r| &r.dir).collect();
    let json = json!({ "schema": JSON_SCHEMA, "of": whole.name, "directories": directories, "figure": figure,
        "shares": shares.iter().map(share).collect::<Value>(), "notes": table.notes });
    let head = ["part", "mean", "seeds", "arm"].map(String::from).to_vec();
    let line = |s: &Share| {
        let mean = s.points.mean().map(|m| m.to_string()).unwrap_or_default();
        let seeds = s.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
        vec![s.name.clone(), mean, seeds, s.arm.clone().unwrap_or_default()]
    };
    let sheet = Sheet { head, rows: shares.iter().map(line).collect() };
    View { tables: vec![table.fitted(room)], closing, json, sheet }
}
