//! `compare A B`: one run, arm or folder of seeds over another, paired by seed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::contrast::in_words;
use super::format::{Sheet, View};
use super::group::{shown, test_sets};
use super::numbers::{Spread, ranges};
pub use super::side::Side;
use super::summary::{JSON_SCHEMA, of_rounds};
use super::table::{Column, Room, Table};
use crate::error::{Error, Result, closest};

/// Figures in the order of the lines before the sentence.
const LINES: [(&str, &str); 6] = [
    ("overall", "accuracy"),
    ("many", "many"),
    ("medium", "medium"),
    ("few", "few"),
    ("worst_class", "worst class"),
    ("last10", "last rounds"),
];

/// A figure of two sides over the seeds that both have it in, in points (a loss as it is).
#[derive(Clone, Debug)]
pub struct Paired {
    /// The seeds.
    pub seeds: Vec<u64>,
    /// The first side's.
    pub of: Spread,
    /// The second side's.
    pub over: Spread,
    /// First minus second, by seed.
    pub difference: Spread,
}

/// Whether a figure is a share, and is told in points.
pub(super) fn scale(figure: &str) -> f64 {
    if figure.contains("loss") { 1.0 } else { 100.0 }
}

/// Pairs a figure of two sides by seed.
pub fn paired(of: &Side, over: &Side, figure: &str) -> Paired {
    let mut p = Paired { seeds: vec![], of: Spread::default(), over: Spread::default(), difference: Spread::default() };
    for seed in of.seeds() {
        let (Some(a), Some(b)) = (of.figure(seed, figure), over.figure(seed, figure)) else { continue };
        let (a, b) = (scale(figure) * a, scale(figure) * b);
        p.seeds.push(seed);
        p.of.values.push(a);
        p.over.values.push(b);
        p.difference.values.push(a - b);
    }
    p
}

/// The first side over each of the others, by `figure` (a name in `eval.json`), else by the mean over the last ten
/// rounds where both have ten, else by the final accuracy. The last line is one sentence.
///
/// The JSON: `{ "schema": 1, "comparisons": [ { "of", "over", "stage_of", "stage_over", "figure", "seeds", "unpaired_seeds",
/// "differs": { key: [of's, over's value] }, "figures": { name: { "of": [a seed each], "over": […], "differences": […],
/// "mean", "deviation", "interval" } in points }, "noise": bool, "notes": […], "sentence" } ] }`.
pub fn compare(sides: &[Side], figure: Option<&str>, room: Room) -> Result<View> {
    let Some((first, others)) = sides.split_first().filter(|(_, others)| !others.is_empty()) else {
        return Err(Error::input("compare: name two runs, arms or folders of seeds"));
    };
    let mut view = View::default();
    let mut rows = Vec::new();
    view.sheet.head = SHEET.map(String::from).to_vec();
    for other in others {
        let one = Comparison::of(first, other, figure)?;
        view.tables.push(one.table(room));
        view.closing.push(one.sentence());
        one.add_to(&mut view.sheet);
        rows.push(one.json());
    }
    view.json = json!({ "schema": JSON_SCHEMA, "comparisons": rows });
    Ok(view)
}

const SHEET: [&str; 10] = [
    "of",
    "over",
    "figure",
    "seeds",
    "mean_of",
    "mean_over",
    "difference",
    "deviation",
    "interval_low",
    "interval_high",
];

struct Comparison<'s> {
    of: &'s Side,
    over: &'s Side,
    figure: String,
    names: [String; 2],
    chosen: Paired,
    notes: Vec<String>,
}

impl<'s> Comparison<'s> {
    fn of(of: &'s Side, over: &'s Side, figure: Option<&str>) -> Result<Self> {
        let ten = [of, over].iter().all(|s| s.last_rounds().is_some_and(|n| n >= 10));
        let figure = figure.unwrap_or(if ten { "last10" } else { "overall" }).to_string();
        let chosen = paired(of, over, &figure);
        if chosen.seeds.is_empty() {
            return Err(nothing_to_pair(of, over, &figure));
        }
        let mut one = Comparison { of, over, figure, names: names(of, over), chosen, notes: Vec::new() };
        one.notes = one.notes_of();
        Ok(one)
    }

    fn notes_of(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let differs: Vec<String> =
            differs(self.of, self.over).iter().map(|(k, [a, b])| format!("{k} {a} | {b}")).collect();
        if !differs.is_empty() {
            notes.push(format!("Their configs differ in: {}.", differs.join(", ")));
        }
        let unpaired = self.unpaired();
        if !unpaired.is_empty() {
            notes.push(format!("Seeds that one side alone has, left out: {}.", ranges(&unpaired)));
        }
        let runs = |s: &'s Side| s.runs.iter().filter(|r| self.chosen.seeds.contains(&r.seed)).collect::<Vec<_>>();
        let (a, b) = (runs(self.of), runs(self.over));
        if a.iter().zip(&b).any(|(a, b)| a.test != b.test) {
            notes.push("The two sides are judged on different test images: differences hold that too.".into());
        }
        if self.chosen.seeds.len() > 1 {
            notes.push(format!("About the interval: {}.", in_words(test_sets(&[a, b].concat()))));
        }
        notes
    }

    fn unpaired(&self) -> Vec<u64> {
        let all: BTreeSet<u64> = self.of.seeds().into_iter().chain(self.over.seeds()).collect();
        all.into_iter().filter(|s| !self.chosen.seeds.contains(s)).collect()
    }

    fn table(&self, room: Room) -> Table {
        let [a, b] = &self.names;
        let columns = vec![
            Column::words("figure, %"),
            Column::numbers("A"),
            Column::numbers("B"),
            Column::numbers("A−B"),
            Column::numbers("95 % interval"),
        ];
        let title = format!("A: {a} · B: {b}");
        let mut table = Table { title, columns, notes: self.notes.clone(), ..Table::default() };
        for (name, head) in self.lines() {
            let p = paired(self.of, self.over, name);
            if p.seeds.is_empty() {
                continue;
            }
            let head = if name == "last10" { self.last_head() } else { head.to_string() };
            let told = |s: &Spread| match (s.mean(), s.deviation()) {
                (Some(m), Some(d)) => format!("{m:.1} ± {d:.1}"),
                (Some(m), None) => format!("{m:.1}"),
                _ => "–".into(),
            };
            let difference = p.difference.mean().map_or("–".into(), |m| format!("{m:+.1}"));
            let interval = p.difference.interval().map_or("–".into(), |(l, h)| format!("{l:+.1} to {h:+.1}"));
            table.rows.push(vec![head, told(&p.of), told(&p.over), difference, interval]);
        }
        table.fitted(room)
    }

    /// Figures and their heads: a classifier's, and what either side's own entry wants shown.
    fn lines(&self) -> Vec<(&str, &str)> {
        let mut lines = LINES.to_vec();
        let stages = [self.of, self.over].into_iter().filter_map(|s| s.first().stage(&s.stage));
        for (name, head) in stages.flat_map(|s| &s.columns) {
            if lines.iter().all(|(known, _)| *known != name.as_str()) {
                lines.push((name.as_str(), head.as_str()));
            }
        }
        lines
    }

    fn last_head(&self) -> String {
        let both = [self.of.last_rounds(), self.over.last_rounds()];
        match both {
            [Some(a), Some(b)] if a == b => format!("last {}", of_rounds(a)),
            [Some(a), Some(b)] => format!("last rounds ({a} and {b})"),
            _ => "last rounds".into(),
        }
    }

    fn what(&self) -> String {
        match self.figure.as_str() {
            "last10" => format!("points of accuracy ({})", self.last_head()),
            "overall" => "points of accuracy (final model)".into(),
            other if scale(other) == 1.0 => format!("of {other} (less is better)"),
            other => format!("points of {other}"),
        }
    }

    fn noise(&self) -> bool {
        self.chosen.difference.interval().is_none_or(|(low, high)| low <= 0.0 && high >= 0.0)
    }

    fn sentence(&self) -> String {
        let d = &self.chosen.difference;
        let mean = d.mean().unwrap_or(0.0);
        let ([a, b], sign) =
            if mean < 0.0 { ([&self.names[1], &self.names[0]], -1.0) } else { ([&self.names[0], &self.names[1]], 1.0) };
        let digits = if scale(&self.figure) == 1.0 { 3 } else { 1 };
        let deviation = d.deviation().map(|d| format!(" ± {d:.digits$}")).unwrap_or_default();
        let (n, by) = (d.values.len(), sign * mean);
        let start = format!("{a} over {b} by {by:.digits$}{deviation} {}", self.what());
        match d.interval() {
            None => format!("{start}, 1 seed: no interval, so this may be noise."),
            Some((low, high)) => {
                let (low, high) = if sign < 0.0 { (-high, -low) } else { (low, high) };
                let noise = if self.noise() { ": it holds 0, so this may be noise" } else { "" };
                format!("{start}, {n} seeds, 95 % interval {low:.digits$} to {high:.digits$}{noise}.")
            }
        }
    }

    fn figures(&self) -> Vec<(String, Paired)> {
        let mut names: Vec<&str> = self.lines().iter().map(|l| l.0).collect();
        if !names.contains(&self.figure.as_str()) {
            names.push(&self.figure);
        }
        let pairs = names.into_iter().map(|n| (n.to_string(), paired(self.of, self.over, n)));
        pairs.filter(|(_, p)| !p.seeds.is_empty()).collect()
    }

    fn json(&self) -> Value {
        let figure = |(name, p): (String, Paired)| {
            let value = json!({ "of": p.of.values, "over": p.over.values, "differences": p.difference.values,
                "mean": p.difference.mean(), "deviation": p.difference.deviation(),
                "interval": p.difference.interval().map(|(l, h)| [l, h]) });
            (name, value)
        };
        let figures: serde_json::Map<String, Value> = self.figures().into_iter().map(figure).collect();
        json!({ "of": self.names[0], "over": self.names[1], "stage_of": self.of.stage, "stage_over": self.over.stage,
            "figure": self.figure, "seeds": self.chosen.seeds, "unpaired_seeds": self.unpaired(),
            "differs": differs(self.of, self.over), "figures": figures, "noise": self.noise(), "notes": self.notes,
            "sentence": self.sentence() })
    }

    fn add_to(&self, sheet: &mut Sheet) {
        let number = |v: Option<f64>| v.map(|v| v.to_string()).unwrap_or_default();
        for (name, p) in self.figures() {
            let (low, high) = p.difference.interval().unzip();
            let seeds: Vec<String> = p.seeds.iter().map(u64::to_string).collect();
            let mut row = vec![self.names[0].clone(), self.names[1].clone(), name, seeds.join(" ")];
            let d = &p.difference;
            row.extend([p.of.mean(), p.over.mean(), d.mean(), d.deviation(), low, high].map(number));
            sheet.rows.push(row);
        }
    }
}

/// Names that tell the sides apart: the stages where those differ, the directories where names are alike.
fn names(of: &Side, over: &Side) -> [String; 2] {
    let stages = of.stage != over.stage;
    let name = |s: &Side| if stages { format!("{} ({})", s.name, s.label()) } else { s.name.clone() };
    let mut names = [name(of), name(over)];
    if names[0] == names[1] {
        names = [of, over].map(|s| s.first().dir.display().to_string());
    }
    names
}

/// Keys of the configs whose values differ.
fn differs(of: &Side, over: &Side) -> BTreeMap<String, [String; 2]> {
    let (a, b) = (&of.first().keys, &over.first().keys);
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let text = |v: Option<&toml::Value>| v.map_or_else(|| "–".to_string(), shown);
    keys.into_iter().filter(|k| a.get(*k) != b.get(*k)).map(|k| (k.clone(), [text(a.get(k)), text(b.get(k))])).collect()
}

fn nothing_to_pair(of: &Side, over: &Side, figure: &str) -> Error {
    let known = |s: &Side| s.seeds().into_iter().any(|seed| s.figure(seed, figure).is_some());
    if let Some(side) = [of, over].into_iter().find(|s| !known(s)) {
        let figures = side.first().stage(&side.stage).map(|s| s.figures.clone()).unwrap_or_default();
        let numbers = figures.as_object().into_iter().flatten().filter(|(_, v)| v.is_number()).map(|(k, _)| k.as_str());
        let valid: Vec<&str> = numbers.filter(|k| !["order", "image_steps", "last10_rounds"].contains(k)).collect();
        let error = Error::input(format!(
            "{} ({}) has no figure `{figure}`; it has: {}",
            side.name,
            side.label(),
            valid.join(", ")
        ));
        return match closest(figure, valid.iter().copied()) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error,
        };
    }
    let seeds = |s: &Side| ranges(&s.seeds());
    Error::input(format!(
        "{} has seeds {}, {} has seeds {}: none in common",
        of.name,
        seeds(of),
        over.name,
        seeds(over)
    ))
    .hint("differences are paired by seed: run the same seeds on both sides")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn write(root: &Path, dir: &str, seed: u64, mu: f64, overall: f64) {
        let dir = root.join(dir);
        std::fs::create_dir_all(&dir).unwrap();
        let config = format!("[run]\nseed = {seed}\n[algorithm]\nkind = \"fedprox\"\nmu = {mu:?}\n");
        std::fs::write(dir.join("config.toml"), config).unwrap();
        let entry = json!({ "overall": overall, "few": overall / 2.0, "digest": "d" });
        let eval = json!({ "stages": { "finetune": entry }, "facts": { "test": "t" } });
        std::fs::write(dir.join("eval.json"), eval.to_string()).unwrap();
    }

    fn sentence(root: &Path, a: &str, b: &str) -> Result<String> {
        let side = |name: &str| Side::named(root.join(name).to_str().unwrap()).map(|s| s.0);
        Ok(compare(&[side(a)?, side(b)?], None, Room::default())?.closing.join("\n"))
    }

    #[test]
    fn arms_are_paired_by_seed_and_noise_is_called_noise() {
        let root = tempfile::tempdir().unwrap();
        for (seed, a, b, c) in [(1, 0.60, 0.50, 0.61), (2, 0.72, 0.60, 0.70), (3, 0.55, 0.47, 0.55)] {
            write(root.path(), &format!("seed-{seed}/a"), seed, 0.1, a);
            write(root.path(), &format!("seed-{seed}/b"), seed, 0.0, b);
            write(root.path(), &format!("c/seed-{seed}"), seed, 0.2, c);
        }
        write(root.path(), "seed-4/a", 4, 0.1, 0.9);
        let said = sentence(root.path(), "a", "b").unwrap();
        assert_eq!(
            said,
            "a over b by 10.0 ± 2.0 points of accuracy (final model), 3 seeds, 95 % interval 5.0 to 15.0."
        );
        assert!(sentence(root.path(), "b", "a").unwrap().starts_with("a over b by 10.0"), "named the right way round");
        assert!(sentence(root.path(), "a", "c").unwrap().contains("it holds 0, so this may be noise"));
        assert!(sentence(root.path(), "seed-1/a", "seed-1/b").unwrap().contains("1 seed: no interval"));
    }

    #[test]
    fn what_cannot_be_paired_is_refused_with_what_there_is() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "x/a/seed-1", 1, 0.1, 0.5);
        write(root.path(), "x/b/seed-2", 2, 0.0, 0.5);
        let message = |a: &str, b: &str| sentence(root.path(), a, b).unwrap_err().to_string();
        assert!(message("x/a", "x/b").contains("none in common"));
        assert!(message("x", "x/b").contains("several configurations: a, b"));
        assert!(message("x/aa", "x/b").contains("did you mean `a`?"));
        assert!(message("x/a:finetun", "x/b").contains("did you mean `finetune`?"));
    }
}
