//! Accuracy of each class, and of each client.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::format::{Sheet, View};
use super::group::{Report, Row};
use super::numbers::Spread;
use super::runs::{Run, Stage};
use super::summary::JSON_SCHEMA;
use super::table::{Column, Room, Table};
use crate::error::{Error, Result};
use crate::run::directory::read_json;

/// Columns of accuracies beside each other where there is no width to keep to.
const ABREAST: usize = 8;

/// A class over a row's seeds.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// Its name.
    pub name: String,
    /// Its training images on all clients.
    pub images: Spread,
    /// `many`, `medium` or `few` in each seed; empty where a run does not say.
    pub groups: Vec<String>,
    /// Its accuracy, a share.
    pub accuracy: Spread,
}

impl Report {
    /// The classes of a row, in their order; empty where its entries have no accuracy by class.
    pub fn classes(&self, row: &Row) -> Vec<Class> {
        let mut classes: Vec<Class> = Vec::new();
        for (&i, stage) in row.runs.iter().zip(self.stages(row)) {
            let facts = &self.run(i).eval["facts"];
            for (c, accuracy) in stage.figures["per_class"].as_array().into_iter().flatten().enumerate() {
                if classes.len() == c {
                    let name = facts["classes"][c].as_str().map_or_else(|| c.to_string(), String::from);
                    let (images, accuracy) = (Spread::default(), Spread::default());
                    classes.push(Class { name, images, groups: Vec::new(), accuracy });
                }
                let class = &mut classes[c];
                class.accuracy.values.extend(accuracy.as_f64());
                class.images.values.extend(facts["class_counts"][c].as_f64());
                if let Some(group) = facts["groups"][c].as_str().filter(|g| !class.groups.iter().any(|o| o == g)) {
                    class.groups.push(group.into());
                }
            }
        }
        classes
    }

    /// Accuracy of each class with its training images and its group, a column a row of the summary.
    ///
    /// The JSON: `{ "schema": 1, "rows": [ { "run", "stage", "label", "seeds", "classes": [ { "class", "images": mean,
    /// "groups": […], "mean", "deviation", "values" } ] } ], "notes" }`.
    pub fn per_class(&self, room: Room) -> Result<View> {
        let rows: Vec<(&Row, Vec<Class>)> = self.rows.iter().map(|r| (r, self.classes(r))).collect();
        let (told, silent): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(_, c)| !c.is_empty());
        if told.is_empty() {
            return Err(Error::data("no run records accuracies by class"));
        }
        let mut view = View { closing: self.notes.clone(), sheet: class_sheet(), ..View::default() };
        view.closing
            .extend(silent.iter().map(|(r, _)| format!("No accuracy by class: {} ({}).", r.name, self.label(r))));
        let mut json = Vec::new();
        for (row, classes) in &told {
            let label = self.label(row);
            let class = |c: &Class| {
                json!({ "class": c.name, "images": c.images.mean(), "groups": c.groups,
                "mean": c.accuracy.mean(), "deviation": c.accuracy.deviation(), "values": c.accuracy.values })
            };
            json.push(json!({ "run": row.name, "stage": row.stage, "label": label, "seeds": self.seeds(row),
                "classes": classes.iter().map(class).collect::<Value>() }));
            view.sheet.rows.extend(classes.iter().map(|c| {
                let number = |v: Option<f64>| v.map(|v| v.to_string()).unwrap_or_default();
                let (images, group) = (number(c.images.mean()), c.groups.join(" "));
                let of = [number(c.accuracy.mean()), number(c.accuracy.deviation())];
                [vec![row.name.clone(), row.stage.clone(), c.name.clone(), images, group], of.to_vec()].concat()
            }));
        }
        let mut rest = &told[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(abreast(rest, room, self));
            view.tables.push(self.class_table(now, room));
            rest = later;
        }
        view.json = json!({ "schema": JSON_SCHEMA, "rows": json, "notes": view.closing });
        Ok(view)
    }

    fn class_table(&self, rows: &[(&Row, Vec<Class>)], room: Room) -> Table {
        let first = &rows[0].1;
        let mut columns = vec![Column::words("class"), Column::numbers("images"), Column::words("group").quiet()];
        columns.extend(rows.iter().map(|(r, _)| Column::numbers(self.heading(r))));
        let one = |c: usize| {
            let class = &first[c];
            let images = |s: &Spread| {
                s.mean().map_or("–".into(), |m| if m.fract() == 0.0 { format!("{m}") } else { format!("{m:.1}") })
            };
            let same = rows.iter().all(|(_, all)| all.get(c).is_some_and(|o| o.images.mean() == class.images.mean()));
            let mut cells = vec![class.name.clone(), if same { images(&class.images) } else { "differ".into() }];
            cells.push(class.groups.join(" / "));
            cells.extend(rows.iter().map(|(_, all)| all.get(c).map_or("–".into(), |c| c.accuracy.percent(1, true))));
            cells
        };
        Table { columns, rows: (0..first.len()).map(one).collect(), ..Table::default() }.fitted(room)
    }

    /// A row's name, stage and settings in one text.
    pub fn heading(&self, row: &Row) -> String {
        let mut parts = vec![row.name.clone()];
        let alone = self.rows.iter().filter(|r| r.name == row.name && r.stage == row.stage).count() == 1;
        if self.rows.iter().any(|r| r.stage != row.stage) {
            parts.push(self.label(row));
        }
        if !alone {
            let algorithm = self.algorithm(row);
            parts.extend((!algorithm.is_empty()).then(|| algorithm.to_string()));
            parts.extend(self.differing.iter().filter_map(|k| self.value(row, k).map(|v| format!("{k} = {v}"))));
        }
        parts.join(" · ")
    }

    /// Each client's images, classes and accuracy, a table a run.
    ///
    /// The JSON: `{ "schema": 1, "rows": [ { "run", "directory", "seed", "stage", "label", "clients": [ { "client", "images",
    /// "classes": held, "global": share or null, "own": share or null } ] } ], "notes" }`.
    pub fn per_client(&self, room: Room) -> Result<View> {
        let mut view = View { sheet: client_sheet(), ..View::default() };
        let (mut json, mut silent) = (Vec::new(), Vec::new());
        for run in &self.found.runs {
            let Some((stage, clients)) = clients(run)? else {
                silent.push(run.dir.display().to_string());
                continue;
            };
            let client = |c: &Client| json!({ "client": c.id, "images": c.images, "classes": c.classes, "global": c.global, "own": c.own });
            json.push(json!({ "run": run.name, "directory": run.dir, "seed": run.seed, "stage": stage.name,
                "label": stage.label, "clients": clients.iter().map(client).collect::<Value>() }));
            view.sheet.rows.extend(clients.iter().map(|c| {
                let [global, own] = [c.global, c.own].map(|v| v.map(|v| v.to_string()).unwrap_or_default());
                let place = [run.name.clone(), run.dir.display().to_string(), run.seed.to_string(), stage.name.clone()];
                let of = [c.id.to_string(), c.images.to_string(), c.classes.to_string(), global, own];
                [place.to_vec(), of.to_vec()].concat()
            }));
            view.tables.push(client_table(run, stage, &clients, room));
        }
        if view.tables.is_empty() {
            return Err(Error::data("no run records who holds what and accuracies by class"));
        }
        view.closing.push(CLIENTS.into());
        view.closing.extend((!silent.is_empty()).then(|| format!("Without such records: {}.", silent.join(", "))));
        view.json = json!({ "schema": JSON_SCHEMA, "rows": json, "notes": view.closing });
        Ok(view)
    }
}

const CLIENTS: &str = "These benchmarks have no local test sets. The global model's accuracy on a client's label \
                       distribution is its accuracy of each class, weighted by the client's images of it; \"own model\" \
                       is the same of the model that the client keeps, where the method leaves it one.";

/// As many rows as fit beside each other.
fn abreast(rows: &[(&Row, Vec<Class>)], room: Room, report: &Report) -> usize {
    let classes = |n: usize| rows[..n].iter().all(|(_, c)| c.len() == rows[0].1.len());
    let fits = |n: usize| match room.width.filter(|_| !room.wide) {
        Some(width) => report.class_table(&rows[..n], Room::default()).least() <= width,
        None => n <= ABREAST,
    };
    (1..=rows.len()).take_while(|&n| n == 1 || (classes(n) && fits(n))).count().max(1)
}

/// A client of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Client {
    /// Its number, from 0.
    pub id: usize,
    /// Its training images.
    pub images: u64,
    /// Classes of which it has one.
    pub classes: usize,
    /// The global model's accuracy on its label distribution, a share, over the classes that test has; 0 for a client
    /// without images, `None` where test has none of its classes.
    pub global: Option<f64>,
    /// The same of the model that it keeps; `None` where it keeps none or was not judged.
    pub own: Option<f64>,
}

/// The clients of a run under its last stage that has accuracies by class; `None` where it does not record them.
pub fn clients(run: &Run) -> Result<Option<(&Stage, Vec<Client>)>> {
    let with = |s: &&Stage| !s.digest().is_empty() && s.figures["per_class"].is_array();
    let (Some(stage), Some(held)) =
        (run.stages.iter().rev().find(with), run.eval["facts"]["held"]["clients"].as_array())
    else {
        return Ok(None);
    };
    let file = run.dir.join("personal.json");
    let personal = if file.exists() { read_json(&file)? } else { Value::Null };
    let each = personal["each"].as_array().into_iter().flatten();
    let own: BTreeMap<u64, f64> = each.filter_map(|c| Some((c["client"].as_u64()?, c["own"].as_f64()?))).collect();
    let accuracy: Vec<Option<f64>> =
        stage.figures["per_class"].as_array().into_iter().flatten().map(Value::as_f64).collect();
    let client = |(id, counts): (usize, &Value)| {
        let counts: Vec<u64> = counts.as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        let images: u64 = counts.iter().sum();
        let judged = || counts.iter().zip(&accuracy).filter_map(|(&n, a)| Some((n as f64, (*a)?)));
        let (all, hits) = judged().fold((0.0, 0.0), |(all, hits), (n, a)| (all + n, hits + n * a));
        let classes = counts.iter().filter(|n| **n > 0).count();
        let global = (images == 0 || all > 0.0).then(|| hits / f64::max(all, 1.0));
        Client { id, images, classes, global, own: own.get(&(id as u64)).copied() }
    };
    Ok(Some((stage, held.iter().enumerate().map(client).collect())))
}

fn client_table(run: &Run, stage: &Stage, clients: &[Client], room: Room) -> Table {
    let mut columns = vec![Column::numbers("client"), Column::numbers("images"), Column::numbers("classes")];
    columns.push(Column::numbers("global model on its labels"));
    columns.push(Column::numbers("own model").quiet());
    let told = |v: Option<f64>| v.map_or("–".into(), |v| format!("{:.1}", 100.0 * v));
    let row =
        |c: &Client| vec![c.id.to_string(), c.images.to_string(), c.classes.to_string(), told(c.global), told(c.own)];
    let over = |name: &str, s: Spread| s.mean().map(|_| format!("{name} {}", s.percent(1, true)));
    let global = over("global", Spread::of(clients.iter().filter(|c| c.images > 0).filter_map(|c| c.global)));
    let own = over("own", Spread::of(clients.iter().filter_map(|c| c.own)));
    let mean: Vec<String> = [global, own].into_iter().flatten().collect();
    let title = format!("{} · seed {} · {} (%):", run.name, run.seed, stage.label);
    let notes = vec![format!("Mean ± deviation over clients: {}.", mean.join(" · "))];
    Table { title, columns, rows: clients.iter().map(row).collect(), notes, ..Table::default() }.fitted(room)
}

fn class_sheet() -> Sheet {
    let head =
        ["run", "stage", "class", "images", "group", "accuracy", "accuracy_deviation"].map(String::from).to_vec();
    Sheet { head, rows: Vec::new() }
}

fn client_sheet() -> Sheet {
    let head = ["run", "directory", "seed", "stage", "client", "images", "classes", "global", "own"];
    Sheet { head: head.map(String::from).to_vec(), rows: Vec::new() }
}
