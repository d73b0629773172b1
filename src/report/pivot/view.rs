//! Cells → tables in a room, JSON, a sheet.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::compare::scale;
use super::super::format::{Sheet, View};
use super::super::numbers::ranges;
use super::super::summary::JSON_SCHEMA;
use super::super::table::{Column, Room, Table};
use super::{Cell, Entry, Pivot, Seeds, value};

impl Pivot {
    /// The tables in this room, a group each, oracles apart; differences; JSON; a sheet with a line a cell.
    ///
    /// ```text
    /// { "schema": 1, "title", "rows": [coordinates], "columns": [coordinates],
    ///   "cells": [ { "row": [...], "column": [...], "number", "seeds", "values": [shares], "mean", "deviation", "planned",
    ///                "missing": [ { "seed", "why" } ], "directories", "oracle", "extras",
    ///                "published": [ { "percent", "kind", "source", "differs", "difference": points } ] } ],
    ///   "contrasts": [...], "notes": [...] }
    /// ```
    pub fn view(&self, room: Room) -> View {
        let mut view = View { sheet: self.sheet(), json: self.json(), ..View::default() };
        for (title, rows) in self.blocks() {
            view.tables.push(Table { title, ..self.block(&rows, room) });
        }
        let (differences, sentences) = self.difference_table(room);
        view.tables.extend(differences);
        view.closing = self.notes.clone();
        view.closing.extend(sentences);
        if let Some(first) = view.tables.first_mut().filter(|_| !self.asked.title.is_empty()) {
            let below = if first.title.is_empty() { String::new() } else { format!(" · {}", first.title) };
            first.title = format!("{}{below}", self.asked.title);
        }
        view
    }

    /// Heads and the rows below them: those of no group first, oracles last and apart.
    fn blocks(&self) -> Vec<(String, Vec<usize>)> {
        let honest = |r: &usize| !self.rows[*r].oracle;
        let grouped = |r: &usize| self.asked.groups.iter().any(|(_, rows)| rows.contains(&self.rows[*r].name()));
        let all = 0..self.rows.len();
        let mut blocks = vec![(String::new(), all.clone().filter(honest).filter(|r| !grouped(r)).collect::<Vec<_>>())];
        for (title, names) in &self.asked.groups {
            let rows = all.clone().filter(honest).filter(|r| names.contains(&self.rows[*r].name())).collect();
            blocks.push((format!("{title}:"), rows));
        }
        let oracles = all.filter(|r| self.rows[*r].oracle).collect();
        blocks.push(("Oracle rows: a teacher was trained on the benchmark's own labels.".into(), oracles));
        blocks.retain(|(_, rows)| !rows.is_empty());
        blocks
    }

    fn block(&self, rows: &[usize], room: Room) -> Table {
        let (roomy, short) = (self.styled(rows, 2), self.styled(rows, 1));
        let Some(width) = room.width.filter(|_| !room.wide) else { return roomy.fitted(room) };
        let unbound = Room { width: None, ..room };
        let fits = |t: &Table| t.clone().fitted(unbound).width() <= width;
        if fits(&roomy) { roomy.fitted(unbound) } else { short.fitted(room) }
    }

    fn styled(&self, rows: &[usize], decimals: usize) -> Table {
        let mut table = Table { rows: vec![Vec::new(); rows.len()], ..Table::default() };
        table.leads = vec![Vec::new(); rows.len()];
        let mut add = |column: Column, cell: &dyn Fn(usize) -> (String, Vec<usize>)| {
            table.columns.push(column);
            for (i, &r) in rows.iter().enumerate() {
                let (text, runs) = cell(r);
                table.rows[i].push(text);
                table.leads[i].push(runs.into_iter().map(|i| self.runs[i].dir.clone()).collect());
            }
        };
        for (i, name) in self.asked.rows.iter().enumerate() {
            add(Column::words(last_part(name)), &|r| (self.rows[r].parts[i].clone(), Vec::new()));
        }
        for (c, n) in self.places() {
            let cell = |r: usize| self.cells.get(&(r, c, n));
            let runs = |r: usize| cell(r).map_or_else(Vec::new, |c| c.values.iter().map(|v| v.1).collect());
            let rank = if (c, n) == (0, 0) { 0 } else { (n + 1).min(200) as u8 };
            add(Column::numbers(self.head(c, n)).rank(rank), &|r| (self.text(cell(r), n, decimals), runs(r)));
            if rows.iter().any(|&r| cell(r).is_some_and(|c| !c.published.is_empty())) {
                add(Column::numbers("published").rank(rank), &|r| (published(cell(r)), Vec::new()));
                add(Column::numbers("ours − published").rank(rank), &|r| (beyond(cell(r), n, self), Vec::new()));
            }
        }
        add(Column::numbers("seeds").rank(250).quiet(), &|r| (self.seeds(r), Vec::new()));
        add(Column::words("extras").rank(251).quiet(), &|r| (self.rows[r].extras.join(", "), Vec::new()));
        table
    }

    /// Columns and numbers, side by side.
    fn places(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        (0..self.columns.len()).flat_map(move |c| (0..self.asked.numbers.len()).map(move |n| (c, n)))
    }

    fn head(&self, column: usize, number: usize) -> String {
        let (name, what) = (self.column_name(column), value::head(&self.asked.numbers[number]));
        match (name.is_empty(), self.asked.numbers.len()) {
            (true, _) => what.into(),
            (false, 1) => name,
            _ => format!("{name}, {what}"),
        }
    }

    /// What tells a column apart, in words; empty for the only one.
    pub(super) fn column_name(&self, column: usize) -> String {
        let part = |(key, text): (&String, &String)| match last_part(key) {
            "cell" | "arm" | "method" | "stage" | "kind" => text.clone(),
            // A whole number without its point.
            name => format!("{name} {}", text.strip_suffix(".0").unwrap_or(text)),
        };
        self.asked.columns.iter().zip(&self.columns[column]).map(part).collect::<Vec<_>>().join(", ")
    }

    fn text(&self, cell: Option<&Cell>, number: usize, decimals: usize) -> String {
        let Some(cell) = cell else { return "not planned".into() };
        let (of, scale) = (cell.spread(), scale(&self.asked.numbers[number]));
        let mut text = match (of.mean(), of.deviation()) {
            (Some(m), Some(d)) => format!("{:.decimals$} ± {:.decimals$}", scale * m, scale * d),
            (Some(m), None) => format!("{:.decimals$}", scale * m),
            _ => "–".into(),
        };
        if !cell.missing.is_empty() {
            text.push_str(&format!(" ({} of {})", cell.values.len(), cell.planned));
        }
        text
    }

    /// How many seeds a row's first number has, and which.
    fn seeds(&self, row: usize) -> String {
        let cells = self.cells.iter().filter(|((r, _, n), _)| *r == row && *n == 0);
        let mut seeds: Vec<u64> = cells.flat_map(|(_, c)| c.values.iter().map(|v| v.0.0)).collect();
        seeds.sort_unstable();
        seeds.dedup();
        if seeds.is_empty() { "–".into() } else { format!("{} ({})", seeds.len(), ranges(&seeds)) }
    }

    /// What a reader must know beside the cells.
    pub(super) fn notes_of(&self, unplaced: &[&Entry]) -> Vec<String> {
        let mut notes = self.value_notes();
        let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for ((r, c, n), cell) in &self.cells {
            for (seeds, why) in &cell.missing {
                let mut place = vec![self.rows[*r].name(), self.column_name(*c)];
                place.extend((self.asked.numbers.len() > 1).then(|| value::head(&self.asked.numbers[*n]).to_string()));
                place.retain(|p| !p.is_empty());
                missing.entry(why.clone()).or_default().push(format!("{} ({})", place.join(", "), seed(*seeds)));
            }
        }
        for entry in unplaced {
            let name = entry.at.get("cell").or(entry.at.get("arm")).cloned().unwrap_or_default();
            missing.entry(entry.state.clone()).or_default().push(format!("{name} ({})", seed(entry.seeds)));
        }
        for (why, mut places) in missing {
            places.dedup();
            notes.push(format!("Missing, {why}: {}.", places.join(", ")));
        }
        let rows: Vec<String> = self.rows.iter().map(|l| l.name()).collect();
        let unknown: Vec<&String> = self.asked.groups.iter().flat_map(|g| &g.1).filter(|n| !rows.contains(n)).collect();
        if !unknown.is_empty() {
            let names: Vec<&str> = unknown.iter().map(|n| n.as_str()).collect();
            notes.push(format!("table.groups names rows that are not there: {}.", names.join(", ")));
        }
        notes.extend(self.published_notes());
        notes
    }

    fn published_notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = Vec::new();
        for known in self.cells.values().flat_map(|c| &c.published) {
            let note = format!("Published: {}", known.sentence());
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        notes
    }

    fn json(&self) -> Value {
        let cell = |((r, c, n), cell): (&(usize, usize, usize), &Cell)| {
            let (line, of, number) = (&self.rows[*r], cell.spread(), &self.asked.numbers[*n]);
            let missing = |(s, why): &(Seeds, String)| json!({ "seed": s.0, "split_seed": s.1, "why": why });
            let known = |k: &super::Known| {
                json!({ "percent": k.value, "kind": k.kind.name(), "source": k.source, "differs": k.differs,
                    "difference": of.mean().map(|m| scale(number) * m - k.value) })
            };
            json!({ "row": line.parts, "column": self.columns[*c], "number": number,
                "seeds": cell.values.iter().map(|v| v.0.0).collect::<Vec<_>>(), "values": of.values,
                "mean": of.mean(), "deviation": of.deviation(), "planned": cell.planned,
                "missing": cell.missing.iter().map(missing).collect::<Value>(),
                "directories": cell.values.iter().map(|v| &self.runs[v.1].dir).collect::<Vec<_>>(),
                "oracle": line.oracle, "extras": line.extras,
                "published": cell.published.iter().map(known).collect::<Value>() })
        };
        json!({ "schema": JSON_SCHEMA, "title": self.asked.title, "rows": self.asked.rows,
            "columns": self.asked.columns, "cells": self.cells.iter().map(cell).collect::<Value>(),
            "contrasts": self.difference_json(), "notes": self.notes })
    }

    fn sheet(&self) -> Sheet {
        let mut head: Vec<String> = self.asked.rows.iter().chain(&self.asked.columns).cloned().collect();
        let rest = ["number", "mean", "deviation", "seeds", "planned", "oracle", "extras", "published", "source"];
        head.extend(rest.map(String::from));
        let number = |v: Option<f64>| v.map(|v| v.to_string()).unwrap_or_default();
        let row = |((r, c, n), cell): (&(usize, usize, usize), &Cell)| {
            let (line, of) = (&self.rows[*r], cell.spread());
            let mut cells: Vec<String> = line.parts.iter().chain(&self.columns[*c]).cloned().collect();
            let seeds: Vec<String> = cell.values.iter().map(|v| v.0.0.to_string()).collect();
            let known =
                |f: &dyn Fn(&super::Known) -> String| cell.published.iter().map(f).collect::<Vec<_>>().join("; ");
            cells.extend([self.asked.numbers[*n].clone(), number(of.mean()), number(of.deviation()), seeds.join(" ")]);
            cells.extend([cell.planned.to_string(), line.oracle.to_string(), line.extras.join(", ")]);
            cells.extend([known(&|k| k.value.to_string()), known(&|k| format!("{}, {}", k.kind.name(), k.source))]);
            cells
        };
        Sheet { head, rows: self.cells.iter().map(row).collect() }
    }
}

/// A key's last part.
fn last_part(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

fn seed((seed, split): Seeds) -> String {
    split.map_or_else(|| format!("seed {seed}"), |s| format!("seed {seed}, split seed {s}"))
}

fn published(cell: Option<&Cell>) -> String {
    let all = cell.map_or(&[][..], |c| &c.published);
    if all.is_empty() {
        "–".into()
    } else {
        all.iter().map(|k| format!("{:.2}", k.value)).collect::<Vec<_>>().join(" / ")
    }
}

/// Ours minus each published number, in points.
fn beyond(cell: Option<&Cell>, number: usize, pivot: &Pivot) -> String {
    let Some((cell, mean)) = cell.and_then(|c| Some((c, c.spread().mean()?))).filter(|(c, _)| !c.published.is_empty())
    else {
        return "–".into();
    };
    let ours = scale(&pivot.asked.numbers[number]) * mean;
    cell.published.iter().map(|k| format!("{:+.1}", ours - k.value)).collect::<Vec<_>>().join(" / ")
}
