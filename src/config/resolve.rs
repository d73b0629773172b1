//! Files, `--set` and arms laid on the defaults, each value with where it came from.

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

use super::Config;
use super::check::{Fault, check};
use super::lay::lay;
use super::source::Source;
use super::tree::{self, Form, Node, joined, leaves, sections};
use crate::error::{Error, Result};

/// Most files that may lie on one another.
const BASES: usize = 4;

/// A config with the origin of every value.
pub struct Resolved {
    /// The config.
    pub config: Config,
    /// All that is in force, every default written out.
    pub table: Table,
    sources: Vec<Source>,
    /// Which source said a value: `section.key` → its place in `sources`; others are defaults.
    said: BTreeMap<String, usize>,
}

impl Resolved {
    /// Reads a file, what it is based on, and `--set` items on top. Its arms are checked too.
    pub fn read(path: &Path, items: &[String]) -> Result<Resolved> {
        let mut sources = files(path, 0)?;
        let mut sets = items.iter().map(|item| Source::set(item, &is_text)).collect::<Result<Vec<_>>>()?;
        // A key may be named before the kind that has it.
        sets.sort_by_key(|s| !names_a_kind(&s.table));
        sources.append(&mut sets);
        let mut resolved =
            Resolved { config: Config::default(), table: tree::defaults(sections()), sources, said: BTreeMap::new() };
        for i in 0..resolved.sources.len() {
            resolved.add(i)?;
        }
        let mut config = super::parse(resolved.table.clone()).map_err(|(path, e)| resolved.placed(e, &path))?;
        config.check().map_err(|e| resolved.placed(e, ""))?;
        config.place(path);
        if let Some(run) = resolved.table.get_mut("run").and_then(Value::as_table_mut) {
            run.insert("dir".into(), Value::String(config.run.dir.clone()));
        }
        resolved.config = config;
        resolved.check_arms()?;
        Ok(resolved)
    }

    fn add(&mut self, i: usize) -> Result<()> {
        let source = &self.sources[i];
        let faults = check(sections(), &self.table, &source.table);
        refuse(faults, |f| f.path.clone(), source)?;
        let before = flat(&self.table);
        lay(sections(), &mut self.table, &source.table);
        let written = flat(&source.table);
        for (key, value) in flat(&self.table) {
            if written.contains_key(&key) {
                self.said.insert(key, i);
            } else if before.get(&key) != Some(&value) {
                self.said.remove(&key);
            }
        }
        Ok(())
    }

    /// Holds what arms set against the keys, on the resolved config.
    fn check_arms(&self) -> Result<()> {
        let Some(source) = self.sources.iter().rev().find(|s| s.names("arms")) else { return Ok(()) };
        for (i, arm) in self.config.arms.iter().enumerate() {
            let (below, name) = (self.config.below_arms()?, &arm.name);
            refuse(check(sections(), &below, &arm.set), |f| format!("arms[{i}].set.{}", f.path), source)
                .map_err(|e| e.context(format!("arm {name}")))?;
            self.config.arm(arm).map_err(|e| match key_of(e.message()) {
                Some(key) => {
                    let shown = source.show(&format!("arms[{i}].set.{key}"), true);
                    e.detail(shown).context(format!("arm {name}"))
                }
                None => e.context(format!("arm {name}")),
            })?;
        }
        Ok(())
    }

    /// An error about a key, with the text that said its value.
    pub(super) fn placed(&self, e: Error, path: &str) -> Error {
        let named = key_of(e.message()).map(String::from);
        let key = if path.is_empty() { named } else { Some(path.to_string()) };
        match key.and_then(|key| Some((self.sources.iter().rev().find(|s| s.names(&key))?, key))) {
            Some((source, key)) => e.detail(source.show(&key, true)),
            None => e,
        }
    }

    /// Where the value of an arm's key was written: in the arm, or below it.
    pub(super) fn written(&self, arm: &str, key: &str) -> String {
        let place = self.config.arms.iter().position(|a| a.name == arm);
        let own = place.map(|i| format!("arms[{i}].set.{key}"));
        own.filter(|own| self.sources.iter().any(|s| s.names(own))).unwrap_or_else(|| key.into())
    }

    /// Every value in force, and where it came from: `default`, `configs/a.toml:12`, `--set …`.
    pub fn values(&self) -> Vec<(String, Value, String)> {
        flat(&self.table).into_iter().map(|(key, value)| (key.clone(), value, self.origin(&key))).collect()
    }

    fn origin(&self, key: &str) -> String {
        self.said.get(key).map_or("default".into(), |&i| self.sources[i].place(key))
    }

    /// The same as an arm has it; none where no arm is called so.
    pub fn arm_values(&self, name: &str) -> Option<Vec<(String, Value, String)>> {
        let arm = self.config.arms.iter().find(|a| a.name == name)?;
        let (mut table, before, written) = (self.table.clone(), flat(&self.table), flat(&arm.set));
        ["arms", "contrasts", "sweep", "table"].iter().for_each(|name| drop(table.remove(*name)));
        lay(sections(), &mut table, &arm.set);
        let origin = |key: &str, value: &Value| {
            let own = self.written(name, key);
            match (written.contains_key(key), self.sources.iter().rev().find(|s| s.names(&own))) {
                (true, Some(source)) => format!("arm {name}, {}", source.place(&own)),
                (true, None) => format!("arm {name}"),
                _ if before.get(key) == Some(value) => self.origin(key),
                _ => "default".into(),
            }
        };
        Some(flat(&table).into_iter().map(|(key, value)| (key.clone(), value.clone(), origin(&key, &value))).collect())
    }
}

/// A file and those that it is based on, the lowest first.
fn files(path: &Path, depth: usize) -> Result<Vec<Source>> {
    let mut source = Source::file(path)?;
    let Some(base) = source.table.remove("base") else { return Ok(vec![source]) };
    let (Some(base), true) = (base.as_str(), depth < BASES) else {
        return Err(
            Error::input("base names one file beside this one, at most 4 deep").detail(source.show("base", true))
        );
    };
    let base = path.with_file_name(base);
    Source::read(&base)
        .map_err(|e| e.detail(source.show("base", true)).hint("base is looked for beside the file that names it"))?;
    let mut below = files(&base, depth + 1)?;
    below.push(source);
    Ok(below)
}

/// The first mistake in the order of the text, and how many follow.
fn refuse(faults: Vec<Fault>, written: impl Fn(&Fault) -> String, source: &Source) -> Result<()> {
    let count = faults.len();
    let Some(fault) = faults.into_iter().min_by_key(|f| source.position(&written(f))) else { return Ok(()) };
    let mut e = Error::input(&fault.text).detail(source.show(&written(&fault), fault.value));
    if !fault.valid.is_empty() {
        e = e.detail(format!("valid: {}", fault.valid));
    }
    if count > 1 {
        let more =
            if count == 2 { "1 more mistake follows".into() } else { format!("{} more mistakes follow", count - 1) };
        e = e.detail(format!("({more})"));
    }
    Err(if fault.hint.is_empty() { e } else { e.hint(fault.hint) })
}

/// Lays a table on the defaults, without the places of a text.
pub fn on_defaults(table: &Table) -> Result<Table> {
    let mut below = tree::defaults(sections());
    if let Some(fault) = check(sections(), &below, table).into_iter().next() {
        let text = if fault.valid.is_empty() { fault.text } else { format!("{}; valid: {}", fault.text, fault.valid) };
        let e = Error::input(text);
        return Err(if fault.hint.is_empty() { e } else { e.hint(fault.hint) });
    }
    lay(sections(), &mut below, table);
    Ok(below)
}

/// The key that a message begins with: `federated.cohort = 0: …`.
fn key_of(message: &str) -> Option<&str> {
    let end = message.find(|c: char| !(c.is_ascii_alphanumeric() || "._[]".contains(c))).unwrap_or(message.len());
    Some(&message[..end]).filter(|key| key.contains('.'))
}

/// Whether a key takes text in every kind that has it.
fn is_text(path: &str) -> bool {
    leaves().iter().any(|l| {
        let text = |node: &Node| matches!(node, Node::Value(Form::Text | Form::Names(_)));
        l.path == path && (!l.kinds.is_empty() || l.of.iter().all(|o| text(&o.key.node)))
    })
}

fn names_a_kind(table: &Table) -> bool {
    table.iter().any(|(key, value)| key == "kind" || value.as_table().is_some_and(names_a_kind))
}

/// `section.key` → value; lists are values.
pub fn flat(table: &Table) -> BTreeMap<String, Value> {
    fn walk(prefix: &str, table: &Table, out: &mut BTreeMap<String, Value>) {
        for (key, value) in table {
            let path = joined(prefix, key);
            match value {
                Value::Table(inner) => walk(&path, inner, out),
                other => {
                    out.insert(path, other.clone());
                }
            }
        }
    }
    let mut out = BTreeMap::new();
    walk("", table, &mut out);
    out
}
