//! Differences between rows of a table, paired by seed.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::compare::scale;
use super::super::contrast::{Question, in_words};
use super::super::numbers::Spread;
use super::super::published::Known;
use super::super::table::{Column, Room, Table};
use super::{Pivot, Seeds, value};

/// A question's answer in one column, by the table's first number.
pub struct Difference<'p> {
    /// The question.
    pub question: &'p Question,
    /// The column, an index.
    pub column: usize,
    /// The seeds that both rows have.
    pub seeds: Vec<Seeds>,
    /// One difference a seed, in points.
    pub values: Spread,
    /// Published margins of the same.
    pub published: Vec<&'p Known>,
    runs: BTreeSet<usize>,
}

impl Pivot {
    /// The answers, question by question; and questions that cannot be answered, with the reason.
    pub fn differences(&self) -> (Vec<Difference<'_>>, Vec<String>) {
        let (mut all, mut refused) = (Vec::new(), Vec::new());
        for question in &self.asked.questions {
            let side = |name: &str| self.row(name).ok_or_else(|| format!("{}: there is no row {name}.", question.name));
            match (side(&question.of), side(&question.over)) {
                (Ok(of), Ok(over)) => {
                    let found: Vec<Difference<'_>> =
                        (0..self.columns.len()).filter_map(|c| self.difference(question, of, over, c)).collect();
                    if found.is_empty() {
                        refused.push(format!(
                            "{}: no seed has both {} and {}.",
                            question.name, question.of, question.over
                        ));
                    }
                    all.extend(found);
                }
                (Err(why), _) | (_, Err(why)) => refused.push(why),
            }
        }
        (all, refused)
    }

    fn difference<'p>(
        &'p self,
        question: &'p Question,
        of: usize,
        over: usize,
        column: usize,
    ) -> Option<Difference<'p>> {
        let (a, b) = (self.cells.get(&(of, column, 0))?, self.cells.get(&(over, column, 0))?);
        let scale = scale(&self.asked.numbers[0]);
        let (mut seeds, mut values, mut runs) = (Vec::new(), Spread::default(), BTreeSet::new());
        for (s, i, x) in &a.values {
            let Some((_, j, y)) = b.values.iter().find(|(t, ..)| t == s) else { continue };
            seeds.push(*s);
            values.values.push(scale * (x - y));
            runs.extend([*i, *j]);
        }
        let published = self.margins(question, *runs.first()?);
        Some(Difference { question, column, seeds, values, published, runs })
    }

    /// Published margins of a question between two methods.
    fn margins(&self, question: &Question, run: usize) -> Vec<&Known> {
        let Some(published) = &self.asked.published else { return Vec::new() };
        let text = |key: &str| self.runs[run].keys.get(key).map(super::super::group::shown).unwrap_or_default();
        let (benchmark, imbalance) = (text("data.kind"), text("longtail.imbalance"));
        let place = super::Place {
            benchmark: &benchmark,
            imbalance: &imbalance,
            method: &question.of,
            number: &self.asked.numbers[0],
        };
        published.margins(&place, &question.over)
    }

    /// The differences as a table, and what they mean, a sentence each.
    pub(super) fn difference_table(&self, room: Room) -> (Option<Table>, Vec<String>) {
        let (all, mut sentences) = self.differences();
        for d in &all {
            let side = d.values.interval().and_then(|(low, high)| (low > 0.0 || high < 0.0).then_some(low > 0.0));
            let text = side.map_or("", |above| if above { &d.question.if_above } else { &d.question.if_below });
            if !text.is_empty() && !sentences.contains(&text.to_string()) {
                sentences.push(text.into());
            }
        }
        if all.is_empty() {
            return (None, sentences);
        }
        let mut columns = vec![Column::words("question"), Column::words("at").quiet()];
        columns.extend(["difference", "95 % interval", "above 0"].map(Column::numbers));
        let with_published = all.iter().any(|d| !d.published.is_empty());
        columns.extend(with_published.then(|| Column::numbers("published")));
        let rows = all.iter().map(|d| {
            let mut cells = vec![d.question.name.clone(), self.column_name(d.column)];
            cells.extend(d.cells());
            cells.extend(with_published.then(|| match d.published.is_empty() {
                true => "–".into(),
                false => d.published.iter().map(|k| format!("{:+.2}", k.value)).collect::<Vec<_>>().join(" / "),
            }));
            cells
        });
        let mut table = Table { columns, rows: rows.collect(), ..Table::default() };
        let runs: BTreeSet<usize> = all.iter().flat_map(|d| d.runs.iter().copied()).collect();
        table.notes = vec![format!(
            "Differences in points by \"{}\", paired by seed; the interval is Student's t; {}.",
            value::head(&self.asked.numbers[0]),
            in_words(self.test_sets(&runs))
        )];
        let mut known: Vec<String> = all.iter().flat_map(|d| &d.published).map(|k| k.sentence()).collect();
        known.dedup();
        table.notes.extend(known.into_iter().map(|s| format!("Published: {s}")));
        (Some(table.fitted(room)), sentences)
    }

    pub(super) fn difference_json(&self) -> Value {
        let one = |d: &Difference<'_>| {
            json!({ "name": d.question.name, "of": d.question.of, "over": d.question.over,
                "column": self.columns[d.column], "number": self.asked.numbers[0],
                "seeds": d.seeds.iter().map(|s| s.0).collect::<Vec<_>>(), "differences": d.values.values,
                "mean": d.values.mean(), "interval": d.values.interval().map(|(low, high)| [low, high]),
                "published": d.published.iter().map(|k| json!({ "points": k.value, "kind": k.kind.name(),
                    "source": k.source, "differs": k.differs })).collect::<Value>() })
        };
        self.differences().0.iter().map(one).collect()
    }
}

impl Difference<'_> {
    fn cells(&self) -> [String; 3] {
        let mean = self.values.mean().map_or("–".into(), |m| format!("{m:+.2}"));
        let interval = self.values.interval().map_or("–".into(), |(low, high)| format!("{low:+.1} to {high:+.1}"));
        let above = self.values.values.iter().filter(|d| **d > 0.0).count();
        [mean, interval, format!("{above} of {}", self.seeds.len())]
    }
}
