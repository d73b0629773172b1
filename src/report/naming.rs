//! What tells rows apart: their names, the keys that differ; and what a reader must know of them.

use std::collections::{BTreeMap, BTreeSet};

use super::group::{Report, Row};
use super::numbers::ranges;

impl Report {
    /// Keys whose values differ between the rows that they reach, the algorithm's kind aside.
    pub(super) fn differing_keys(&self) -> Vec<String> {
        let keys: BTreeSet<&String> = self.rows.iter().flat_map(|r| self.run(r.runs[0]).keys.keys()).collect();
        let differs = |key: &&String| {
            let readers = self.rows.iter().filter(|r| self.reads(r, key));
            let mut values = readers.map(|r| self.run(r.runs[0]).keys.get(*key));
            let first = values.next();
            *key != "algorithm.kind" && values.any(|v| Some(v) != first)
        };
        keys.into_iter().filter(differs).cloned().collect()
    }

    /// The commonest value of a key among the rows that it reaches; the first row's among equals.
    pub(super) fn commonest(&self, key: &str) -> String {
        let values: Vec<String> = self.rows.iter().filter_map(|r| self.value(r, key)).collect();
        let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
        values.iter().for_each(|v| *counts.entry(v).or_default() += 1);
        let most = counts.values().max().copied().unwrap_or(0);
        values.iter().find(|v| counts[v] == most).cloned().unwrap_or_default()
    }

    /// Names rows after their runs; rows that would read alike after their directories.
    pub(super) fn name_rows(&mut self) {
        for depth in 0..3 {
            let texts: Vec<Vec<String>> = self.rows.iter().map(|r| self.text(r)).collect();
            let names: Vec<Option<String>> = (0..self.rows.len())
                .map(|i| {
                    let alike = texts.iter().filter(|t| **t == texts[i]).count() > 1;
                    (depth == 0 || alike).then(|| self.name_at(&self.rows[i], depth))
                })
                .collect();
            for (row, name) in self.rows.iter_mut().zip(names) {
                row.name = name.unwrap_or_else(|| row.name.clone());
            }
        }
    }

    /// All that a table says to tell a row from another.
    fn text(&self, row: &Row) -> Vec<String> {
        let mut text = vec![row.name.clone(), self.label(row), self.algorithm(row).into()];
        text.extend(self.differing.iter().map(|key| self.value(row, key).unwrap_or_default()));
        text
    }

    fn name_at(&self, row: &Row, depth: usize) -> String {
        let name = |i: &usize| {
            let run = self.run(*i);
            let parts = || run.dir.iter().map(|p| p.to_string_lossy()).filter(|p| !p.starts_with("seed-"));
            match depth {
                0 => run.name.clone(),
                1 => parts().collect::<Vec<_>>().join("/").replacen("//", "/", 1),
                _ => run.dir.display().to_string(),
            }
        };
        let mut names: Vec<String> = Vec::new();
        for name in row.runs.iter().chain(&row.shared).map(name) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.join(", ")
    }

    /// Seeds that are missing, copies, runs of an earlier version.
    pub(super) fn notes_of(&self, groups: &[Vec<usize>]) -> Vec<String> {
        let mut notes = Vec::new();
        let mut missing: BTreeMap<Vec<u64>, Vec<String>> = BTreeMap::new();
        for row in &self.rows {
            let (lacks, text) = (self.missing(row), format!("{} ({})", row.name, self.label(row)));
            if !lacks.is_empty() {
                missing.entry(lacks).or_default().push(text);
            }
        }
        for (seeds, rows) in missing {
            let (word, list) = (if seeds.len() == 1 { "Seed" } else { "Seeds" }, ranges(&seeds));
            notes.push(format!("{word} {list} missing: {}.", rows.join(", ")));
        }
        for (i, group) in groups.iter().enumerate() {
            let again = groups[..i].iter().find(|g| self.run(g[0]).keys == self.run(group[0]).keys);
            if let Some(first) = again {
                let of = |g: &[usize]| g.iter().map(|&i| self.run(i).dir.display().to_string()).collect::<Vec<_>>();
                let (a, b) = (of(first).join(", "), of(group).join(", "));
                notes.push(format!("The same config and seed twice, kept apart: {a}; {b}."));
            }
        }
        if self.found.old > 0 {
            notes.push(format!(
                "Runs of an earlier version: {}; their stages go by their keys in eval.json, without extras.",
                self.found.old
            ));
        }
        notes
    }
}
