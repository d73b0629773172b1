//! What a person wrote, held against the keys: the first mistake, in the words of a config.

use toml::{Table, Value};

use super::foreign;
use super::lay::kind_of;
use super::tree::{Form, Key, Kind, Leaf, Node, joined, leaves};
use crate::error::closest;

/// The greatest count that anybody means; beyond it sums and products of sizes would overflow. Seeds may be any number.
const COUNT: i64 = 1_000_000_000;

/// A mistake in a config.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// `section.key` that it is about, as it was written.
    pub path: String,
    /// Whether the value is wrong, not the key.
    pub value: bool,
    /// What is wrong.
    pub text: String,
    /// The valid names, or nothing.
    pub valid: String,
    /// What to do, or nothing.
    pub hint: String,
}

impl Fault {
    fn key(path: String, text: String, valid: String, hint: String) -> Fault {
        Fault { path, value: false, text, valid, hint }
    }

    fn value(path: &str, text: String, hint: String) -> Fault {
        Fault { path: path.into(), value: true, text, valid: String::new(), hint }
    }
}

/// Holds `over` against the keys; `below` is what it lies on, for the kinds in force. All mistakes, by key.
pub fn check(keys: &[Key], below: &Table, over: &Table) -> Vec<Fault> {
    let mut faults = Vec::new();
    section("", keys, None, below, over, &mut faults);
    faults
}

/// A section that has kinds: all of them and the one in force.
type Of<'a> = Option<(&'a [Kind], &'a Kind)>;

fn section(path: &str, keys: &[Key], of: Of<'_>, below: &Table, over: &Table, faults: &mut Vec<Fault>) {
    for (name, value) in over {
        let here = joined(path, name);
        match keys.iter().find(|k| k.name == *name) {
            Some(key) => node(&here, &key.node, below.get(name), value, faults),
            None if name == "kind" && of.is_some() => {}
            None => faults.push(unknown(path, name, keys, of)),
        }
    }
}

fn node(path: &str, node: &Node, below: Option<&Value>, value: &Value, faults: &mut Vec<Fault>) {
    let empty = Table::new();
    let table = below.and_then(Value::as_table);
    match (node, value) {
        (Node::Section(keys), Value::Table(over)) => section(path, keys, None, table.unwrap_or(&empty), over, faults),
        (Node::Kinds(kinds), Value::Table(over)) => match kind(path, kinds, table, over) {
            Ok(kind) => section(path, &kind.keys, Some((kinds, kind)), table.unwrap_or(&empty), over, faults),
            Err(fault) => faults.push(fault),
        },
        (Node::List(_, Some(n)), Value::Array(items)) if items.len() != *n => {
            faults.push(Fault::value(path, format!("{path} needs {n} values, not {}", items.len()), String::new()));
        }
        (Node::List(of, _), Value::Array(items)) => {
            for (i, item) in items.iter().enumerate() {
                self::node(&format!("{path}[{i}]"), of, None, item, faults);
            }
        }
        // Arms are held against the keys when they are laid on the config.
        (Node::Changes, Value::Table(_)) => {}
        (Node::Value(form), value) => faults.extend(single(path, form, value)),
        (Node::Kinds(kinds), Value::String(name)) => {
            let hint = match near(name, kinds.iter().map(|k| k.name.as_str())) {
                Some(kind) => format!("write {path}.kind = \"{kind}\""),
                None => format!("write {path}.kind = \"…\""),
            };
            faults.push(Fault::value(path, format!("{path} is a section, not {}", called(value)), hint));
        }
        (node, value) => {
            let hint = match (node, value) {
                (Node::List(..), Value::String(_) | Value::Integer(_) | Value::Float(_)) => {
                    format!("write {path}=[{value}]")
                }
                _ => String::new(),
            };
            faults.push(Fault::value(path, format!("{path} needs {}, not {}", node.words(), called(value)), hint));
        }
    }
}

/// The kind that a section will have.
fn kind<'a>(path: &str, kinds: &'a [Kind], below: Option<&Table>, over: &Table) -> Result<&'a Kind, Fault> {
    let names = || kinds.iter().map(|k| k.name.as_str());
    let valid = || names().collect::<Vec<_>>().join(", ");
    match over.get("kind") {
        Some(Value::String(name)) => kinds.iter().find(|k| k.name == *name).ok_or_else(|| {
            let (text, hint) = (format!("unknown name `{name}` for {path}.kind"), did_you_mean(name, names()));
            Fault { path: joined(path, "kind"), value: true, text, valid: valid(), hint }
        }),
        Some(other) => {
            let text = format!("{path}.kind is text, not {}", called(other));
            Err(Fault { path: joined(path, "kind"), value: true, text, valid: valid(), hint: String::new() })
        }
        None => kind_of(kinds, below).ok_or_else(|| {
            let hint = format!("name it first: {path}.kind = \"{}\"", names().next().unwrap_or_default());
            Fault::key(path.into(), format!("{path} has no kind yet"), valid(), hint)
        }),
    }
}

fn single(path: &str, form: &Form, value: &Value) -> Option<Fault> {
    let wrong =
        |hint: String| Some(Fault::value(path, format!("{path} needs {}, not {}", form.words(), called(value)), hint));
    match (form, value) {
        (Form::Whole(least, most), Value::Integer(n)) if n < least || *n > count(path, *most) => {
            let most = count(path, *most);
            let bound = if n < least { format!("the smallest is {least}") } else { format!("the greatest is {most}") };
            Some(Fault::value(path, format!("{path} = {n}: {bound}"), String::new()))
        }
        (Form::Number(_), Value::Float(x)) if !x.is_finite() => {
            Some(Fault::value(path, format!("{path} = {x} is not finite"), String::new()))
        }
        (Form::Whole(..), Value::Integer(_)) | (Form::Number(_), Value::Integer(_) | Value::Float(_)) => None,
        (Form::Text, Value::String(_)) | (Form::Switch, Value::Boolean(_)) => None,
        (Form::Whole(..), Value::Float(x)) if x.fract() == 0.0 => wrong(format!("write {x:.0}, without a point")),
        (Form::Switch, Value::String(s)) if ["true", "false"].contains(&s.to_lowercase().as_str()) => {
            wrong(format!("write {}, in lower case and without quotes", s.to_lowercase()))
        }
        (Form::Whole(..) | Form::Number(_), Value::String(s)) if s.trim().parse::<f64>().is_ok() => {
            wrong(format!("write {}, without quotes", s.trim()))
        }
        (Form::Names(names), Value::String(name)) => {
            let all = || names.iter().map(|(n, _)| n.as_str());
            (!all().any(|n| n == name)).then(|| {
                let (text, hint) = (format!("unknown name `{name}` for {path}"), did_you_mean(name, all()));
                Fault { path: path.into(), value: true, text, valid: all().collect::<Vec<_>>().join(", "), hint }
            })
        }
        _ => wrong(String::new()),
    }
}

/// The greatest number that a key takes; seeds take any, and rounds and threads have bounds and hints of their own.
fn count(path: &str, most: i64) -> i64 {
    let name = path.rsplit('.').next().unwrap_or(path);
    let own = name.contains("seed") || ["rounds", "threads"].contains(&name);
    if own { most } else { most.min(COUNT) }
}

/// What a person would call a value.
fn called(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number with a point",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section",
    }
}

/// Without case, dashes and underscores.
fn plain(name: &str) -> String {
    name.to_lowercase().replace(['-', '_'], "")
}

fn near<'a>(name: &str, valid: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    valid.clone().find(|v| plain(v) == plain(name)).or_else(|| closest(&name.to_lowercase(), valid))
}

fn did_you_mean<'a>(name: &str, valid: impl Iterator<Item = &'a str> + Clone) -> String {
    match near(name, valid) {
        Some(found) if found == name.to_lowercase() => format!("did you mean `{found}`? Case matters"),
        Some(found) => format!("did you mean `{found}`?"),
        None => String::new(),
    }
}

/// A key that the section has not: of another kind, of another section, of another tool, or a typo.
fn unknown(path: &str, name: &str, keys: &[Key], of: Of<'_>) -> Fault {
    let here = joined(path, name);
    if let Some((kinds, now)) = of {
        let owners: Vec<&str> =
            kinds.iter().filter(|k| k.keys.iter().any(|k| k.name == name)).map(|k| k.name.as_str()).collect();
        if let Some(first) = owners.first() {
            let text = format!("`{here}` belongs to {}, and {path}.kind is {}", owners.join(", "), now.name);
            // An entry of a list has no path of its own.
            let hint = match path.ends_with(']') {
                true => format!("an entry {{ kind = \"{first}\", {name} = … }} has it"),
                false => format!("set {path}.kind={first} too"),
            };
            return Fault::key(here, text, String::new(), hint);
        }
    }
    let names = || keys.iter().map(|k| k.name.as_str());
    let place = if path.is_empty() { String::new() } else { format!(" in {path}") };
    let place = match of {
        Some((_, now)) => format!("{place}, whose kind is {}", now.name),
        None => place,
    };
    let mut valid: Vec<&str> = names().collect();
    if of.is_some() {
        valid.insert(0, "kind");
    }
    let exact = names().find(|k| plain(k) == plain(name));
    let hint = match exact {
        Some(_) => did_you_mean(name, names()),
        None => elsewhere(path, name).unwrap_or_else(|| did_you_mean(name, names())),
    };
    Fault::key(here, format!("unknown key `{name}`{place}"), valid.join(", "), hint)
}

/// Where a key of this name is, below the section first; what another tool calls so.
fn elsewhere(path: &str, name: &str) -> Option<String> {
    let all = leaves();
    let named = |leaf: &&Leaf<'_>| plain(leaf.path.rsplit('.').next().unwrap_or_default()) == plain(name);
    let below = format!("{path}.");
    if let Some(leaf) = all.iter().filter(named).find(|l| !path.is_empty() && l.path.starts_with(&below)) {
        return Some(format!("did you mean `{}`?", leaf.path));
    }
    if let Some(ours) = foreign::translate(name) {
        return Some(ours);
    }
    let found: Vec<String> = all.iter().filter(named).take(4).map(|l| format!("`{}`", l.path)).collect();
    (!found.is_empty()).then(|| format!("did you mean {}?", found.join(" or ")))
}

#[cfg(test)]
mod tests {
    use super::super::tree::{defaults, sections};
    use super::*;

    fn first(text: &str) -> Fault {
        let faults = check(sections(), &defaults(sections()), &toml::from_str(text).unwrap());
        faults.into_iter().next().unwrap_or_else(|| panic!("{text} is no mistake"))
    }

    #[test]
    fn a_typo_in_a_key_lists_the_valid_ones_and_the_likely_one() {
        let fault = first("[federated]\nround = 3");
        assert_eq!(fault.text, "unknown key `round` in federated");
        assert!(fault.valid.contains("local_epochs") && !fault.valid.contains("partition"), "{fault:?}");
        assert_eq!(fault.hint, "did you mean `rounds`?");
        assert_eq!(first("[federatd]").hint, "did you mean `federated`?");
    }

    #[test]
    fn a_key_of_another_section_is_found_there() {
        assert!(first("rounds = 3").hint.contains("federated.rounds"));
        assert!(first("[federated]\nlr = 3").hint.contains("federated.optimiser.lr"));
        assert!(first("[align]\nlr = 3").hint.contains("align.optimiser.lr"));
        assert!(first("[run]\nclients = 3").hint.contains("partition.clients"));
    }

    #[test]
    fn a_key_of_another_kind_says_whose_it_is() {
        let fault = first("algorithm.mu = 0.1");
        assert!(fault.text.contains("belongs to fedprox") && fault.text.contains("kind is fedavg"), "{fault:?}");
        assert!(fault.hint.contains("algorithm.kind=fedprox"), "{fault:?}");
        let fault = first("federated.way = [{ kind = \"clip\", norm = 1.0, delta = 0.1 }]");
        assert!(fault.text.contains("belongs to noise"), "{fault:?}");
        assert_eq!(fault.hint, "an entry { kind = \"noise\", delta = … } has it");
    }

    #[test]
    fn a_wrong_case_is_told() {
        assert_eq!(first("algorithm.kind = \"FedAvg\"").hint, "did you mean `fedavg`? Case matters");
        assert_eq!(first("algorithm.kind = \"fedprx\"").hint, "did you mean `fedprox`?");
        assert_eq!(first("federated.Rounds = 3").hint, "did you mean `rounds`? Case matters");
        assert!(first("align.enabled = \"True\"").hint.contains("write true"));
    }

    #[test]
    fn a_wrong_type_is_called_by_its_name_in_a_config() {
        assert_eq!(first("federated.rounds = \"many\"").text, "federated.rounds needs a whole number ≥ 0, not text");
        assert_eq!(first("federated.rounds = -1").text, "federated.rounds = -1: the smallest is 0");
        assert_eq!(
            first("federated.eval_every = 1000000001").text,
            "federated.eval_every = 1000000001: the greatest is 1000000000"
        );
        let seeds = "run.seed = 9223372036854775807\nsweep.seeds = [9223372036854775807]";
        assert!(check(sections(), &defaults(sections()), &toml::from_str(seeds).unwrap()).is_empty());
        assert_eq!(first("federated.rounds = 3.0").hint, "write 3, without a point");
        assert_eq!(first("caption.prompts = \"detail\"").hint, "write caption.prompts=[\"detail\"]");
        assert_eq!(first("federated = 3").text, "federated needs a section, not a whole number");
        assert_eq!(first("algorithm = \"FedProx\"").hint, "write algorithm.kind = \"fedprox\"");
        assert_eq!(first("evaluate.teachers = [{ kind = \"clp\" }]").path, "evaluate.teachers[0].kind");
        assert!(first("federated.optimiser.lr = nan").text.contains("not finite"));
    }

    #[test]
    fn a_section_without_a_kind_asks_for_one() {
        assert!(first("unlabelled.data.path = \"x\"").text.contains("has no kind yet"));
    }
}
