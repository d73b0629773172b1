//! What `report` shows: a row a stage of a configuration.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::contrast::Contrasts;
use super::format::{Sheet, View};
use super::group::{Report, Row};
use super::keys;
use super::numbers::ranges;
use super::runs::Stage;
use super::table::{Column, Room, Table};

/// Version of the JSON that `report`, `compare` and the stages' commands print.
pub const JSON_SCHEMA: u32 = 1;

/// Most keys that get a column each; more are told as settings.
const KEY_COLUMNS: usize = 4;

/// A figure of a table: its name in `eval.json`, its head, and the rank in which it leaves.
type Figure<'f> = (&'f str, &'f str, u8);

/// Before what a run's own entry wants shown.
const FIRST: [Figure; 1] = [("overall", "accuracy", 0)];
/// What is shown of runs that ask for nothing: groups of classes.
const CLASSES: [Figure; 4] =
    [("many", "many", 3), ("medium", "medium", 4), ("few", "few", 2), ("worst_class", "worst class", 11)];
/// Behind it.
const LAST: [Figure; 4] = [
    ("last10", "", 1),
    ("validation/overall", "validation", 9),
    ("personal/mean", "own models", 6),
    ("personal_own/mean", "own models, own classes", 5),
];

/// How numbers and keys are told, from roomy to narrow.
#[derive(Clone, Copy, PartialEq)]
struct Style {
    decimals: usize,
    /// Whether groups of classes have their deviation too.
    all_deviations: bool,
    keys: KeysAs,
}

/// How the keys that tell rows apart are told.
#[derive(Clone, Copy, PartialEq)]
enum KeysAs {
    Columns,
    OneColumn,
    /// With the algorithm, behind the run's name.
    Name,
}

/// A table that gets its columns one by one.
struct Sketch<'r> {
    report: &'r Report,
    rows: &'r [&'r Row],
    table: Table,
}

impl Sketch<'_> {
    fn add(&mut self, column: Column, cell: &dyn Fn(&Row) -> String) {
        for ((cells, leads), row) in self.table.rows.iter_mut().zip(&mut self.table.leads).zip(self.rows) {
            cells.push(cell(row));
            let runs = row.runs.iter().filter(|_| column.number);
            leads.push(runs.map(|&i| self.report.run(i).dir.clone()).collect());
        }
        self.table.columns.push(column);
    }
}

impl Report {
    /// The rows as tables in this room, oracles apart; as JSON; as a sheet.
    ///
    /// The JSON, of one run as of many (accuracies are shares in `[0, 1]`):
    ///
    /// ```text
    /// { "schema": 1,
    ///   "rows": [ { "run": names of all runs that the row stands for,
    ///               "directories": [their folders], "stage": key in eval.json, "label": as tables call it,
    ///               "oracle": bool, "extras": [what a plain baseline lacks], "algorithm": kind or "",
    ///               "differs": { config key: value as text, null where it is not there or does not reach the row },
    ///               "seeds": [...], "missing_seeds": [seeds that other rows have],
    ///               "image_steps": mean, "last_rounds": [least, most] rounds behind last10, or null,
    ///               "figures": { name in eval.json: { "mean", "deviation" or null, "values": [a seed each] } } } ],
    ///   "contrasts": [ { "name", "of", "over", "below": folder, "seeds", "differences": points, "mean",
    ///                    "interval": [low, high] or null } ],
    ///   "notes": [sentences], "unfinished": [ { "directory", "state" } ] }
    /// ```
    pub fn summary(&self, contrasts: &Contrasts, room: Room) -> View {
        let (oracles, honest): (Vec<&Row>, Vec<&Row>) = self.rows.iter().partition(|r| self.oracle(r));
        let mut tables = Vec::new();
        if !honest.is_empty() {
            tables.push(self.table(&honest, room));
        }
        if !oracles.is_empty() {
            let title = "Oracle rows: a teacher was trained on the benchmark's own labels.";
            tables.push(Table { title: title.into(), ..self.table(&oracles, room) });
        }
        tables.extend(contrasts.tables(room));
        let mut closing = self.notes.clone();
        closing.extend(contrasts.sentences());
        View { tables, closing, json: self.json(contrasts), sheet: self.sheet() }
    }

    fn table(&self, rows: &[&Row], room: Room) -> Table {
        let keys = if self.differing.len() <= KEY_COLUMNS { KeysAs::Columns } else { KeysAs::OneColumn };
        let roomy = Style { decimals: 2, all_deviations: true, keys };
        let Some(width) = room.width.filter(|_| !room.wide) else {
            let style = if room.wide { Style { keys: KeysAs::Columns, ..roomy } } else { roomy };
            return self.styled(rows, style).fitted(room);
        };
        let short = Style { decimals: 1, all_deviations: false, ..roomy };
        let unbound = Room { width: None, ..room };
        for style in [roomy, short] {
            let table = self.styled(rows, style).fitted(unbound);
            if table.width() <= width {
                return table;
            }
        }
        self.styled(rows, Style { keys: KeysAs::Name, ..short }).fitted(room)
    }

    fn styled(&self, rows: &[&Row], style: Style) -> Table {
        let empty =
            Table { rows: vec![Vec::new(); rows.len()], leads: vec![Vec::new(); rows.len()], ..Table::default() };
        let mut sketch = Sketch { report: self, rows, table: empty };
        self.add_names(&mut sketch, style);
        self.add_figures(&mut sketch, style);
        sketch.add(Column::numbers("image-steps").rank(8).quiet(), &|row| steps(self.image_steps(row)));
        let seeds = |row: &Row| format!("{} ({})", row.runs.len(), ranges(&self.seeds(row)));
        sketch.add(Column::numbers("seeds").rank(7).quiet(), &seeds);
        sketch.add(Column::words("extras").rank(10).quiet(), &|row| self.extras(row).join(", "));
        sketch.table
    }

    /// What tells the rows apart.
    fn add_names(&self, sketch: &mut Sketch<'_>, style: Style) {
        let named = style.keys == KeysAs::Name;
        let kinds = sketch.rows.iter().map(|r| self.algorithm(r)).filter(|a| !a.is_empty());
        let methods = named && kinds.collect::<BTreeSet<&str>>().len() > 1;
        sketch.add(Column::words("run"), &|row| {
            let method = if methods && self.algorithm(row) != row.name { self.algorithm(row) } else { "" };
            let settings = if named { self.settings(row) } else { String::new() };
            let parts = [row.name.as_str(), method, &settings];
            parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(" · ")
        });
        sketch.add(Column::words("stage").quiet(), &|row| self.label(row));
        if !methods {
            sketch.add(Column::words("algorithm").quiet(), &|row| self.algorithm(row).to_string());
        }
        match style.keys {
            KeysAs::Columns => {
                for key in &self.differing {
                    sketch.add(Column::words(key).quiet(), &|row| self.value(row, key).unwrap_or_default());
                }
            }
            KeysAs::OneColumn => sketch.add(Column::words("settings").quiet(), &|row| self.settings(row)),
            KeysAs::Name => {}
        }
        if style.keys != KeysAs::Columns {
            sketch.table.notes.extend(self.settings_note());
        }
    }

    fn add_figures(&self, sketch: &mut Sketch<'_>, style: Style) {
        let last = self.last_head(sketch.rows);
        for (name, head, rank) in self.shown_figures(sketch.rows) {
            // What few runs have is a column only where one does.
            if name.contains('/') && sketch.rows.iter().all(|r| self.figure(r, name).values.is_empty()) {
                continue;
            }
            let head = if name == "last10" { last.clone() } else { head.to_string() };
            let deviation = style.all_deviations || matches!(name, "overall" | "last10");
            let column = Column::numbers(head).rank(rank);
            let column = if name == "overall" { column } else { column.quiet() };
            let counted = name == "last10" && last.ends_with(')');
            sketch.add(column, &|row| {
                let rounds = if counted { self.rounds_beside(row) } else { String::new() };
                self.figure(row, name).percent(style.decimals, deviation) + &rounds
            });
        }
    }

    /// The figures of a table's columns: what the rows' own entries want shown, and what all rows have.
    fn shown_figures<'r>(&'r self, rows: &'r [&'r Row]) -> Vec<Figure<'r>> {
        let stages = || rows.iter().flat_map(|r| self.stages(r));
        let mut own: Vec<Figure> = Vec::new();
        for (name, head) in stages().flat_map(|s| &s.columns) {
            if own.iter().all(|(known, ..)| *known != name.as_str()) {
                own.push((name.as_str(), head.as_str(), 2 + own.len() as u8));
            }
        }
        let classes = CLASSES.iter().filter(|_| own.is_empty() || stages().any(|s| s.columns.is_empty()));
        FIRST.iter().chain(classes).copied().chain(own.iter().copied()).chain(LAST).collect()
    }

    /// The head of the mean over the last rounds: of as many as there are.
    fn last_head(&self, rows: &[&Row]) -> String {
        let counts: BTreeSet<(u64, u64)> = rows.iter().filter_map(|r| self.last_rounds(r)).collect();
        let unknown = rows.iter().any(|r| !self.figure(r, "last10").values.is_empty() && self.last_rounds(r).is_none());
        match (counts.len(), counts.first(), unknown) {
            (0, _, false) => "last rounds".into(),
            (1, Some((a, b)), false) if a == b => format!("last {}", of_rounds(*a)),
            _ => "last rounds (how many)".into(),
        }
    }

    /// Beside a mean over the last rounds whose number the head cannot say.
    fn rounds_beside(&self, row: &Row) -> String {
        match self.last_rounds(row) {
            _ if self.figure(row, "last10").values.is_empty() => String::new(),
            Some((a, b)) if a == b => format!(" ({a})"),
            Some((a, b)) => format!(" ({a} to {b})"),
            None => " (?)".into(),
        }
    }

    /// Mean over seeds of the images trained on up to a row's stage.
    fn image_steps(&self, row: &Row) -> f64 {
        self.stages(row).map(|s| s.image_steps as f64).sum::<f64>() / row.runs.len().max(1) as f64
    }

    fn settings(&self, row: &Row) -> String {
        let own = |key: &String| {
            let value = self.value(row, key).filter(|v| self.common.get(key) != Some(v))?;
            let said = value == "–" && keys::list_of(key).is_some();
            (!said).then(|| if value == "–" { format!("no {key}") } else { format!("{key} = {value}") })
        };
        self.differing.iter().filter_map(own).collect::<Vec<_>>().join(", ")
    }

    fn settings_note(&self) -> Option<String> {
        let there = self.common.iter().filter(|(_, v)| *v != "–");
        let all: Vec<String> = there.map(|(k, v)| format!("{k} = {v}")).collect();
        (!all.is_empty()).then(|| format!("Settings that rows do not name, where they count: {}.", all.join(", ")))
    }

    /// A value that is there.
    fn present(&self, row: &Row, key: &str) -> Option<String> {
        self.value(row, key).filter(|v| v != "–")
    }

    fn json(&self, contrasts: &Contrasts) -> Value {
        let row = |row: &Row| {
            let directories: Vec<String> =
                row.runs.iter().chain(&row.shared).map(|&i| self.run(i).dir.display().to_string()).collect();
            let differs: Map<String, Value> =
                self.differing.iter().map(|k| (k.clone(), json!(self.present(row, k)))).collect();
            let figures: Map<String, Value> = self
                .figure_names(row)
                .into_iter()
                .map(|name| {
                    let of = self.figure(row, &name);
                    let value = json!({ "mean": of.mean(), "deviation": of.deviation(), "values": of.values });
                    (name, value)
                })
                .collect();
            json!({ "run": row.name, "directories": directories, "stage": row.stage, "label": self.label(row),
                "oracle": self.oracle(row), "extras": self.extras(row), "algorithm": self.algorithm(row),
                "differs": differs, "seeds": self.seeds(row), "missing_seeds": self.missing(row),
                "image_steps": self.image_steps(row), "figures": figures,
                "last_rounds": self.last_rounds(row).map(|(a, b)| [a, b]) })
        };
        let unfinished = |(dir, state): &(std::path::PathBuf, String)| json!({ "directory": dir, "state": state });
        json!({ "schema": JSON_SCHEMA, "rows": self.rows.iter().map(row).collect::<Value>(),
            "contrasts": contrasts.json(), "notes": self.notes,
            "unfinished": self.found.unfinished.iter().map(unfinished).collect::<Value>() })
    }

    /// Names of all numbers in a row's entries, nested ones with `/` between.
    pub fn figure_names(&self, row: &Row) -> BTreeSet<String> {
        figure_names_of(self.stages(row))
    }

    fn sheet(&self) -> Sheet {
        let figures: BTreeSet<String> = self.rows.iter().flat_map(|r| self.figure_names(r)).collect();
        let mut head: Vec<String> =
            ["run", "stage", "label", "oracle", "algorithm"].iter().map(|s| (*s).to_string()).collect();
        head.extend(self.differing.iter().cloned());
        head.extend(["seeds", "missing_seeds", "image_steps", "extras", "last_rounds"].map(String::from));
        head.extend(figures.iter().flat_map(|f| [f.clone(), format!("{f}_sd")]));
        let number = |v: Option<f64>| v.map(|v| v.to_string()).unwrap_or_default();
        let list = |seeds: Vec<u64>| seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
        let row = |row: &Row| {
            let mut cells = vec![row.name.clone(), row.stage.clone(), self.label(row), self.oracle(row).to_string()];
            cells.push(self.algorithm(row).into());
            cells.extend(self.differing.iter().map(|k| self.present(row, k).unwrap_or_default()));
            cells.extend([list(self.seeds(row)), list(self.missing(row)), self.image_steps(row).to_string()]);
            let rounds = self.last_rounds(row).map(|(a, b)| if a == b { a.to_string() } else { format!("{a} to {b}") });
            cells.extend([self.extras(row).join(", "), rounds.unwrap_or_default()]);
            cells.extend(figures.iter().flat_map(|f| {
                let of = self.figure(row, f);
                [number(of.mean()), number(of.deviation())]
            }));
            cells
        };
        Sheet { head, rows: self.rows.iter().map(row).collect() }
    }
}

/// Names of all numbers in the entries of some stages.
pub fn figure_names_of<'s>(stages: impl IntoIterator<Item = &'s Stage>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for stage in stages {
        numbers("", &stage.figures, &mut names);
    }
    // Not figures: a place, a count, what stands in a column of its own.
    names.retain(|n| !["order", "image_steps", "last10_rounds"].contains(&n.as_str()));
    names
}

fn numbers(prefix: &str, value: &Value, out: &mut BTreeSet<String>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        match value {
            Value::Number(_) => {
                out.insert(path);
            }
            _ => numbers(&path, value, out),
        }
    }
}

fn steps(mean: f64) -> String {
    if mean == 0.0 { "–".into() } else { format!("{:.1}k", mean / 1000.0) }
}

/// `1 round`, `3 rounds`.
pub fn of_rounds(n: u64) -> String {
    if n == 1 { "1 round".into() } else { format!("{n} rounds") }
}
