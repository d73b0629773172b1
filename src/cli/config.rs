//! `config`: what keys there are, what a config says, whether it can run.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value as Json, json};
use toml::Value;

use super::explain::kind_of_item;
use super::{Changes, completions, machine, put};
use crate::config::Resolved;
use crate::config::tree::{self, Key, Kind, Leaf};
use crate::error::{Error, Result, closest};
use crate::exec::human;
use crate::pipeline;

/// `config`.
#[derive(Args)]
pub struct ConfigCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Every key with its type, default and meaning.
    #[command(after_help = "Examples:
  fedllava config list federated
  fedllava config list --json")]
    List {
        /// A section, such as federated or federated.optimiser.
        #[arg(add = completions::sections())]
        section: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// A config with every value that is in force, and where each came from.
    #[command(after_help = "Examples:
  fedllava config show configs/demo.toml --set federated.rounds=20
  fedllava config show configs/demo.toml --arm scratch")]
    Show {
        /// The experiment's TOML file.
        #[arg(add = completions::configs())]
        config: PathBuf,
        #[command(flatten)]
        changes: Changes,
        /// As this arm has it.
        #[arg(long)]
        arm: Option<String>,
    },
    /// Whether a config can run, and about how long and in how much memory; no data is read.
    #[command(after_help = "Example: fedllava config check configs/demo.toml")]
    Check {
        /// The experiment's TOML file.
        #[arg(add = completions::configs())]
        config: PathBuf,
        #[command(flatten)]
        changes: Changes,
    },
    /// The JSON Schema of a config, for editors.
    #[command(after_help = "Example: fedllava config schema")]
    Schema,
}

/// Does what was asked of `config`.
pub fn config(c: &ConfigCommand) -> Result<()> {
    match &c.action {
        Action::List { section, json } => list(section.as_deref().unwrap_or_default(), *json),
        Action::Show { config, changes, arm } => show(config, changes, arm.as_deref()),
        Action::Check { config, changes } => check(config, changes),
        Action::Schema => put(&serde_json::to_string_pretty(&editor_schema()).unwrap_or_default()),
    }
}

/// The leaves below a section, all where it is empty.
fn below(section: &str) -> Result<Vec<&'static Leaf<'static>>> {
    let inside = format!("{section}.");
    let found: Vec<&Leaf<'static>> = tree::leaves()
        .iter()
        .filter(|l| section.is_empty() || l.path == section || l.path.starts_with(&inside))
        .collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let names: Vec<&str> = tree::sections().iter().map(|k| k.name.as_str()).collect();
    let e = Error::input(format!("no section is called `{section}`; valid: {}", names.join(", ")));
    Err(match closest(section, names) {
        Some(near) => e.hint(format!("did you mean `{near}`?")),
        None => e,
    })
}

pub fn list(section: &str, json: bool) -> Result<()> {
    let found = below(section)?;
    if json {
        let rows: Vec<Json> = found.iter().map(|leaf| row(leaf)).collect();
        return put(&json!({ "keys": rows }).to_string());
    }
    for leaf in &found {
        put(&format!("{}{}", leaf.path, default_in_words(leaf)))?;
        put(&wrapped(&format!("{}. {}", leaf.words(), leaf.doc()), "    "))?;
        leaf.items.iter().try_for_each(|kind| put(&kind_of_item(leaf, kind)))?;
    }
    Ok(())
}

fn row(leaf: &Leaf<'_>) -> Json {
    let defaults: Vec<Json> = leaf
        .defaults()
        .into_iter()
        .map(|(value, kinds)| json!({ "kinds": kinds, "value": value.and_then(|v| serde_json::to_value(v).ok()) }))
        .collect();
    let mut row = json!({ "key": leaf.path, "type": leaf.words(), "defaults": defaults, "meaning": leaf.doc() });
    if !leaf.items.is_empty() {
        row["items"] = leaf.items.iter().map(item).collect();
    }
    row
}

/// A kind of a list's items.
fn item(kind: &Kind) -> Json {
    let key = |key: &Key| {
        let default = key.default.as_ref().and_then(|v| serde_json::to_value(v).ok());
        json!({ "key": key.name, "type": key.node.words(), "default": default, "meaning": key.doc })
    };
    json!({ "kind": kind.name, "meaning": kind.doc, "keys": kind.keys.iter().map(key).collect::<Vec<_>>() })
}

/// ` = 0.1 (sgd), 0.001 (adamw, adam)`: the default, and in which kinds.
pub fn default_in_words(leaf: &Leaf<'_>) -> String {
    let each = |(value, kinds): (Option<Value>, Vec<&str>)| {
        let value = value.map_or_else(|| "unset".into(), |v| v.to_string());
        if kinds.is_empty() { value } else { format!("{value} ({})", kinds.join(", ")) }
    };
    let all: Vec<String> = leaf.defaults().into_iter().map(each).collect();
    format!(" = {}", all.join(", "))
}

/// Lines no wider than the terminal, each after `indent`; one line where nobody looks.
pub fn wrapped(text: &str, indent: &str) -> String {
    let Some(width) = comfy_table::Table::new().width() else { return format!("{indent}{text}") };
    let mut lines = vec![indent.to_string()];
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, |l| l.chars().count());
        if line + word.chars().count() + 1 > usize::from(width) && line > indent.len() {
            lines.push(indent.to_string());
        }
        if let Some(line) = lines.last_mut() {
            if line.len() > indent.len() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.join("\n")
}

fn show(file: &Path, changes: &Changes, arm: Option<&str>) -> Result<()> {
    let resolved = Resolved::read(file, &machine::items(changes))?;
    let values = match arm {
        None => resolved.values(),
        Some(name) => of_arm(&resolved, name)?,
    };
    // Sections in order, each with its own keys before those below it.
    let split =
        |key: &str| key.rsplit_once('.').map_or((String::new(), key.to_string()), |(s, k)| (s.into(), k.into()));
    let mut rows: Vec<(String, String, String)> = values
        .iter()
        .filter(|(key, ..)| !["arms", "contrasts"].contains(&key.as_str()))
        .map(|(key, value, origin)| {
            let (section, key) = split(key);
            (section, format!("{key} = {value}"), origin.clone())
        })
        .collect();
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    let width = rows.iter().map(|r| r.1.chars().count()).filter(|&n| n < 40).max().unwrap_or(0);
    let mut last = String::new();
    for (section, text, origin) in rows {
        if section != last {
            put(&format!("\n[{section}]"))?;
            last = section;
        }
        put(&format!("{text:width$}  # {origin}"))?;
    }
    if arm.is_some() {
        return Ok(());
    }
    for arm in &resolved.config.arms {
        let set = Value::Table(arm.set.clone());
        put(&format!("\n[[arms]]\nname = {}\nset = {set}", Value::String(arm.name.clone())))?;
    }
    for c in &resolved.config.contrasts {
        let text = |s: &String| Value::String(s.clone());
        put(&format!("\n[[contrasts]]\nname = {}\nof = {}\nover = {}", text(&c.name), text(&c.of), text(&c.over)))?;
    }
    Ok(())
}

/// An arm's values, each with where it came from.
fn of_arm(resolved: &Resolved, name: &str) -> Result<Vec<(String, Value, String)>> {
    resolved.arm_values(name).ok_or_else(|| {
        let names: Vec<&str> = resolved.config.arms.iter().map(|a| a.name.as_str()).collect();
        let e = Error::input(format!("no arm is called `{name}`; valid: {}", names.join(", ")));
        match closest(name, names) {
            Some(near) => e.hint(format!("did you mean `{near}`?")),
            None => e,
        }
    })
}

fn check(file: &Path, changes: &Changes) -> Result<()> {
    let (resolved, cx) = machine::resolved(file, changes, true)?;
    let config = &resolved.config;
    let all = config.expand()?;
    let arms = if config.arms.is_empty() { String::new() } else { format!(", {} arms", all.len()) };
    put(&format!("{}: valid{arms}, seed {}, into {}", file.display(), config.run.seed, config.run.dir))?;
    let mut speeds = pipeline::Speeds::new();
    for (name, arm) in &all {
        let name = if name.is_empty() { String::new() } else { format!("{name}: ") };
        match pipeline::outlook(arm, &mut speeds, &cx)? {
            Some(outlook) => put(&format!("{name}{}", in_words(&outlook, cx.threads)))?,
            None => {
                put(&format!("{name}the sizes of a folder and of lists are known when they are read: no estimate"))?
            }
        }
    }
    resolved.check_inputs()
}

fn in_words(o: &pipeline::Outlook, threads: usize) -> String {
    let total: f64 = o.seconds.iter().map(|(_, s)| s).sum();
    let stages: Vec<String> = o.seconds.iter().map(|(stage, s)| format!("{stage} {}", duration(*s))).collect();
    let untold: Vec<String> = o.untold.iter().map(|(stage, why)| format!("; {stage}: {why}")).collect();
    if stages.is_empty() {
        let memory = human(o.memory.total());
        return format!("{} parameters; memory about {memory}; no estimate of time{}", o.parameters, untold.concat());
    }
    format!(
        "{} parameters; memory about {}; time about {} on {threads} threads of this machine ({}{})",
        o.parameters,
        human(o.memory.total()),
        duration(total),
        stages.join(", "),
        untold.concat()
    )
}

/// `40 s`, `12 min`, `3.5 h`.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.0} s"),
        s if s < 6000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// The schema with what a file may have besides: a base, and sections that leave their kind at its default.
fn editor_schema() -> Json {
    let mut schema = tree::schema();
    relax(&mut schema);
    let base = json!({ "type": "string", "description": "A config beside this one, which this one is laid on." });
    schema["properties"]["base"] = base;
    schema["$defs"]["Arm"]["properties"]["set"] = json!({ "$ref": "#", "description": "The keys it changes." });
    schema
}

fn relax(schema: &mut Json) {
    match schema {
        Json::Object(map) => {
            if let Some(choices) = map.remove("oneOf") {
                map.insert("anyOf".into(), choices);
            }
            map.remove("required");
            map.values_mut().for_each(relax);
        }
        Json::Array(items) => items.iter_mut().for_each(relax),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_for_editors_knows_a_base_and_asks_for_no_kind() {
        let text = editor_schema().to_string();
        assert!(text.contains("\"base\"") && !text.contains("\"required\"") && text.contains("Communication rounds"));
    }
}
