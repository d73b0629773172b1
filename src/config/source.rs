//! Where a value was written: a file's text or a `--set`, with the place of every key in it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Table;
use toml::de::{DeTable, DeValue};

use crate::error::{Error, Result};
use crate::shipped;

/// One text that changes a config.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file; none for a `--set`.
    pub file: Option<PathBuf>,
    /// Its text.
    pub text: String,
    /// What it says.
    pub table: Table,
    /// Where each key and each value stands, by `section.key`; an item of a list is `key[0]`.
    spans: BTreeMap<String, At>,
}

/// Bytes of a text.
#[derive(Clone, Debug)]
struct At {
    key: Range<usize>,
    value: Range<usize>,
}

impl Source {
    /// A config file.
    pub fn file(path: &Path) -> Result<Source> {
        let text = Self::read(path)?;
        let mut source = Source { file: Some(path.into()), text, table: Table::new(), spans: BTreeMap::new() };
        source.parse().map_err(|(message, span)| {
            let escaped = source.text[source.line(span.start).1].contains('\\');
            let e = Error::input(message).detail(source.excerpt(span));
            match escaped {
                true => {
                    e.hint("between double quotes a backslash begins an escape; write paths between 'single quotes'")
                }
                false => e,
            }
        })?;
        Ok(source)
    }

    /// A config file's text.
    pub fn read(path: &Path) -> Result<String> {
        shipped::read_text(path)
    }

    /// A `key=value`. The value is TOML; what is not TOML is text, and so is everything where `is_text` says so of a key.
    pub fn set(item: &str, is_text: &dyn Fn(&str) -> bool) -> Result<Source> {
        let Some((key, value)) = item.split_once('=') else {
            let near = if item.contains('.') { item } else { "federated.rounds" };
            return Err(Error::input(format!("--set {item}: expected key=value"))
                .hint(format!("write the value after an equals sign: --set {near}=…")));
        };
        let mut source = Source { file: None, text: item.into(), table: Table::new(), spans: BTreeMap::new() };
        if is_text(key.trim()) && !value.trim_start().starts_with(['"', '\'']) || source.parse().is_err() {
            let text = toml::Value::String(value.trim().into());
            source.text = format!("{}={text}", key.trim());
            let parsed = source.parse();
            source.text = item.into();
            parsed.map_err(|_| {
                Error::input(format!("`{}` is no key", key.trim())).detail(source.excerpt(0..key.trim_end().len()))
            })?;
            for at in source.spans.values_mut() {
                at.value = key.len() + 1..item.len();
            }
        }
        Ok(source)
    }

    fn parse(&mut self) -> std::result::Result<(), (String, Range<usize>)> {
        let failed = |e: &toml::de::Error| {
            (format!("this is not TOML: {}", e.message().replace('\n', ", ")), e.span().unwrap_or(0..0))
        };
        self.table = toml::from_str(&self.text).map_err(|e| failed(&e))?;
        let parsed = DeTable::parse(&self.text).map_err(|e| failed(&e))?;
        let mut spans = BTreeMap::new();
        record("", parsed.get_ref(), &mut spans);
        self.spans = spans;
        Ok(())
    }

    /// Whether it says something of this key.
    pub fn names(&self, path: &str) -> bool {
        self.spans.contains_key(path)
    }

    /// In a word: `configs/a.toml:12`, or the `--set` itself.
    pub fn place(&self, path: &str) -> String {
        match (&self.file, self.spans.get(path)) {
            (Some(file), Some(at)) => format!("{}:{}", file.display(), self.line(at.key.start).0 + 1),
            (Some(file), None) => file.display().to_string(),
            (None, _) => format!("--set {}", self.text),
        }
    }

    /// Where a key stands in the text.
    pub fn position(&self, path: &str) -> usize {
        self.spans.get(path).map_or(0, |at| at.key.start)
    }

    /// The line that says it, with the key or its value underlined.
    pub fn show(&self, path: &str, value: bool) -> String {
        match self.spans.get(path) {
            Some(at) if value => self.excerpt(at.value.clone()),
            // A --set is short: its dotted key is underlined whole.
            Some(at) if self.file.is_none() => self.excerpt(0..at.key.end),
            Some(at) => self.excerpt(at.key.clone()),
            None => self.place(path),
        }
    }

    /// Number and bytes of the line around a place.
    fn line(&self, place: usize) -> (usize, Range<usize>) {
        let place = place.min(self.text.len());
        let start = self.text[..place].rfind('\n').map_or(0, |i| i + 1);
        let end = self.text[place..].find('\n').map_or(self.text.len(), |i| place + i);
        (self.text[..start].matches('\n').count(), start..end)
    }

    fn excerpt(&self, span: Range<usize>) -> String {
        let (number, bytes) = self.line(span.start);
        let line = self.text[bytes.clone()].trim_end().replace('\t', " ");
        let before = self.text[bytes.start..span.start.min(bytes.end)].chars().count();
        let marked =
            self.text[span.start.min(bytes.end)..span.end.clamp(span.start, bytes.end).min(bytes.end)].chars().count();
        let marks = format!("{}{}", " ".repeat(before), "^".repeat(marked.max(1)));
        match &self.file {
            Some(file) => {
                let number = (number + 1).to_string();
                let gap = " ".repeat(number.len());
                format!("  {}:{number}\n  {number} | {line}\n  {gap} | {marks}", file.display())
            }
            None => format!("  --set {line}\n        {marks}"),
        }
    }
}

fn record(prefix: &str, table: &DeTable<'_>, spans: &mut BTreeMap<String, At>) {
    for (key, value) in table {
        let path = super::tree::joined(prefix, key.get_ref());
        spans.insert(path.clone(), At { key: key.span(), value: value.span() });
        within(&path, value.get_ref(), spans);
    }
}

fn within(path: &str, value: &DeValue<'_>, spans: &mut BTreeMap<String, At>) {
    match value {
        DeValue::Table(table) => record(path, table, spans),
        DeValue::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                let path = format!("{path}[{i}]");
                spans.insert(path.clone(), At { key: item.span(), value: item.span() });
                within(&path, item.get_ref(), spans);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(item: &str) -> Result<Source> {
        Source::set(item, &|key| key == "run.dir")
    }

    #[test]
    fn numbers_lists_and_bare_words_are_understood() {
        assert_eq!(set("a.b=3").unwrap().table["a"]["b"].as_integer(), Some(3));
        assert_eq!(set("a=[1, 2]").unwrap().table["a"].as_array().unwrap().len(), 2);
        assert_eq!(set("a.b=fedavg").unwrap().table["a"]["b"].as_str(), Some("fedavg"));
        assert_eq!(set("run.dir=2024").unwrap().table["run"]["dir"].as_str(), Some("2024"));
        assert!(set("federated.rounds").is_err() && set("a..b=3").is_err());
    }

    #[test]
    fn the_line_is_shown_with_the_text_underlined() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "[run]\nseed = 1\n[federated]\nrounds = \"é\" # many\n").unwrap();
        let shown = Source::file(&path).unwrap().show("federated.rounds", true);
        assert_eq!(shown.lines().skip(1).collect::<Vec<_>>(), ["  4 | rounds = \"é\" # many", "    |          ^^^"]);
        assert_eq!(set("a.b=x").unwrap().show("a.b", false), "  --set a.b=x\n        ^^^");
        assert_eq!(set("a.b=x").unwrap().show("a.b", true), "  --set a.b=x\n            ^");
    }

    #[test]
    fn what_is_not_toml_is_shown_where_it_breaks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "[run]\nseed 1\n").unwrap();
        let e = Source::file(&path).unwrap_err().to_string();
        assert!(e.contains("c.toml:2") && e.contains("2 | seed 1") && !e.contains("hint"), "{e}");
    }

    #[test]
    fn a_windows_path_between_double_quotes_is_told_of_single_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        for name in [r"C:\Users\me", r"D:\data"] {
            std::fs::write(&path, format!("[data]\npath = \"{name}\"\n")).unwrap();
            let e = Source::file(&path).unwrap_err().to_string();
            assert!(e.contains("c.toml:2") && e.contains("'single quotes'"), "{e}");
            std::fs::write(&path, format!("[data]\npath = '{name}'\n")).unwrap();
            assert_eq!(Source::file(&path).unwrap().table["data"]["path"].as_str(), Some(name));
        }
    }
}
