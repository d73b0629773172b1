//! An archived run once more, held bit for bit against what it gave.

use std::path::Path;

use serde_json::Value;

use super::{Library, Stages, run};
use crate::config::Config;
use crate::error::{Error, Place, Result};
use crate::exec::Context;
use crate::fsx;
use crate::run::archive::{Archive, CONTENTS};

/// Files that say when and by what a run was made.
const OWN: [&str; 2] = ["config.toml", "manifest.json"];

/// The archive's config, to run in another directory.
pub fn config(archive: &Archive, dir: &Path) -> Result<Config> {
    let table = toml::from_str(&archive.text("config.toml")?)
        .map_err(|e| Error::data(format!("the archive's config.toml: {}", e.message())))?;
    let mut config = Config::from_table(table).at(|| "the archive's config.toml")?;
    config.run.dir = dir.display().to_string();
    Ok(config)
}

/// What differs between the program and processor of the archive and those here, a sentence each: then equal bytes cannot
/// be expected.
pub fn differs_here(archive: &Archive) -> Result<Vec<String>> {
    let manifest = archive.json("manifest.json")?;
    let here = [
        ("version", env!("CARGO_PKG_VERSION").to_string()),
        ("instruction_set", super::experiment::instruction_set()),
        ("commit", super::COMMIT.to_string()),
    ];
    let said = |key: &str| manifest[key].as_str().unwrap_or("unknown").to_string();
    let line =
        |(key, is): &(&str, String)| (said(key) != *is).then(|| format!("{key}: {} there, {is} here", said(key)));
    Ok(here.iter().filter_map(line).collect())
}

/// Runs the config again.
pub fn again(config: &Config, cx: &Context) -> Result<()> {
    run(config, Stages::All, &Library::default(), cx)
}

/// Names of the files that are equal to the archive's; the first that differs is an error that says where.
pub fn compare(archive: &Archive, dir: &Path) -> Result<Vec<String>> {
    let mut equal = Vec::new();
    for name in CONTENTS.into_iter().filter(|name| !OWN.contains(name)) {
        let path = dir.join(name);
        match (archive.files.get(name), path.exists()) {
            (None, false) => {}
            (Some(there), true) => {
                let here = fsx::read(&path)?;
                if *there != here {
                    return Err(different(name, &first_difference(name, there, &here), dir));
                }
                equal.push(name.to_string());
            }
            (Some(_), false) => return Err(different(name, "it is in the archive, and the new run has none", dir)),
            (None, true) => return Err(different(name, "the new run has it, and the archive does not", dir)),
        }
    }
    Ok(equal)
}

fn different(name: &str, how: &str, dir: &Path) -> Error {
    Error::data(format!("not reproduced: {name} differs first: {how}"))
        .hint(format!("the new run is in {}; files are compared in the order in which a run makes them", dir.display()))
}

/// Where two files differ first, in words.
fn first_difference(name: &str, there: &[u8], here: &[u8]) -> String {
    let parsed = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
    if name.ends_with(".jsonl") {
        let lines = |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().map(String::from).collect::<Vec<_>>();
        let (a, b) = (lines(there), lines(here));
        let Some(at) = (0..a.len().min(b.len())).find(|&i| a[i] != b[i]) else {
            return format!("{} records there, {} here", a.len(), b.len());
        };
        let place = parsed(a[at].as_bytes()).map_or_else(String::new, |r| {
            format!(
                " ({}, round {}, {})",
                r["stage"].as_str().unwrap_or("?"),
                r["round"],
                r["split"].as_str().unwrap_or("?")
            )
        });
        return format!("record {}{place}: {}", at + 1, first_difference("", a[at].as_bytes(), b[at].as_bytes()));
    }
    match (parsed(there), parsed(here)) {
        (Some(a), Some(b)) => unequal("", &a, &b).unwrap_or_else(|| "the same values, written otherwise".into()),
        _ => "its bytes".into(),
    }
}

/// The first place where two JSON values differ, and both values.
fn unequal(path: &str, a: &Value, b: &Value) -> Option<String> {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys: std::collections::BTreeSet<&String> = x.keys().chain(y.keys()).collect();
            let none = &Value::Null;
            keys.into_iter().find_map(|k| {
                let place = if path.is_empty() { k.clone() } else { format!("{path}/{k}") };
                unequal(&place, x.get(k).unwrap_or(none), y.get(k).unwrap_or(none))
            })
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            x.iter().zip(y).enumerate().find_map(|(i, (a, b))| unequal(&format!("{path}/{i}"), a, b))
        }
        _ if a == b => None,
        _ => Some(format!("{path}: {} there, {} here", brief(a), brief(b))),
    }
}

fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { format!("{}…", text.chars().take(60).collect::<String>()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_by_its_first_place() {
        let a = b"{\"round\":1,\"split\":\"test\",\"stage\":\"finetune\",\"accuracy\":0.5}\n{\"round\":2,\"split\":\"test\",\"stage\":\"finetune\",\"accuracy\":0.5}\n";
        let b =
            String::from_utf8_lossy(a).replace("\"accuracy\":0.5}\n{\"round\":2", "\"accuracy\":0.25}\n{\"round\":2");
        let text = first_difference("metrics.jsonl", a, b.as_bytes());
        assert_eq!(text, "record 1 (finetune, round 1, test): accuracy: 0.5 there, 0.25 here");
        let shorter = &a[..a.len() / 2 + 1];
        assert!(
            first_difference("metrics.jsonl", a, &[shorter, b"\n"].concat()[..a.len() / 2])
                .contains("2 records there, 1 here")
        );
        let nested = first_difference("eval.json", b"{\"a\": {\"b\": [1, 2]}}", b"{\"a\": {\"b\": [1, 3]}}");
        assert_eq!(nested, "a/b/1: 2 there, 3 here");
        assert_eq!(first_difference("eval.json", b"{\"a\":1}", b"{\"a\": 1}"), "the same values, written otherwise");
    }
}
