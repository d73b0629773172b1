//! The keys of a config as data, read off the structs' own docs by way of their JSON Schema.

use std::sync::OnceLock;

use serde_json::Value as Json;
use toml::{Table, Value};

use super::Config;

/// A key of a section.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its name.
    pub name: String,
    /// What it means: the struct's own doc comment, its first paragraph.
    pub doc: String,
    /// Its value where nobody says anything; none where it is then absent.
    pub default: Option<Value>,
    /// What may stand there.
    pub node: Node,
}

/// What may stand at a key.
#[derive(Clone, Debug)]
pub enum Node {
    /// A section.
    Section(Vec<Key>),
    /// A section whose keys follow from its `kind`.
    Kinds(Vec<Kind>),
    /// A list, of so many where that is fixed.
    List(Box<Node>, Option<usize>),
    /// One value.
    Value(Form),
    /// Sections of a config, as an arm changes them.
    Changes,
}

/// One kind of a section.
#[derive(Clone, Debug)]
pub struct Kind {
    /// What `kind` is called.
    pub name: String,
    /// What it is.
    pub doc: String,
    /// Its keys, `kind` not among them.
    pub keys: Vec<Key>,
}

/// The form of one value.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// An integer from a least to a greatest one.
    Whole(i64, i64),
    /// A number; whether it is kept in single precision.
    Number(bool),
    /// A string.
    Text,
    /// `true` or `false`.
    Switch,
    /// One of these, each with what it means.
    Names(Vec<(String, String)>),
}

impl Form {
    /// For people: `a whole number ≥ 0`.
    pub fn words(&self) -> String {
        match self {
            Form::Whole(0, _) => "a whole number ≥ 0".into(),
            Form::Whole(..) => "a whole number".into(),
            Form::Number(_) => "a number".into(),
            Form::Text => "text".into(),
            Form::Switch => "true or false".into(),
            Form::Names(names) => names.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>().join(" | "),
        }
    }
}

impl Node {
    /// For people: what may stand there.
    pub fn words(&self) -> String {
        match self {
            Node::Section(_) | Node::Changes => "a section".into(),
            Node::Kinds(kinds) => kinds.iter().map(|k| k.name.as_str()).collect::<Vec<_>>().join(" | "),
            Node::List(of, None) => format!("a list: {}", of.words()),
            Node::List(of, Some(n)) => format!("a list of {n}: {}", of.words()),
            Node::Value(form) => form.words(),
        }
    }
}

/// The JSON Schema of a config file.
pub fn schema() -> Json {
    schemars::schema_for!(Config).to_value()
}

/// The sections of a config.
pub fn sections() -> &'static [Key] {
    static SECTIONS: OnceLock<Vec<Key>> = OnceLock::new();
    SECTIONS.get_or_init(|| {
        let schema = schema();
        keys(&schema, &schema["$defs"])
    })
}

/// The keys' defaults as a table.
pub fn defaults(keys: &[Key]) -> Table {
    keys.iter().filter_map(|k| Some((k.name.clone(), k.default.clone()?))).collect()
}

/// A kind's defaults, `kind` among them.
pub fn defaults_of(kind: &Kind) -> Table {
    let mut table = defaults(&kind.keys);
    table.insert("kind".into(), Value::String(kind.name.clone()));
    table
}

fn keys(schema: &Json, defs: &Json) -> Vec<Key> {
    let Some(properties) = schema["properties"].as_object() else { return Vec::new() };
    let key = |(name, schema): (&String, &Json)| {
        let node = node(schema, defs);
        let default = schema.get("default").and_then(|d| value(d, &node));
        let doc = doc(schema).or_else(|| doc(target(schema, defs))).unwrap_or_default();
        Key { name: name.clone(), doc, default, node }
    };
    properties.iter().filter(|(_, s)| s.get("const").is_none()).map(key).collect()
}

/// What a `$ref`, or an option around one, points to.
fn target<'a>(schema: &'a Json, defs: &'a Json) -> &'a Json {
    if let Some(name) = schema["$ref"].as_str() {
        return target(&defs[name.rsplit('/').next().unwrap_or_default()], defs);
    }
    match schema["anyOf"].as_array() {
        Some(choices) => choices.iter().find(|c| c["type"] != "null").map_or(schema, |c| target(c, defs)),
        None => schema,
    }
}

fn node(schema: &Json, defs: &Json) -> Node {
    let schema = target(schema, defs);
    if let Some(choices) = schema["oneOf"].as_array() {
        if choices.iter().any(|c| c["type"] == "object") {
            return Node::Kinds(choices.iter().map(|c| kind(c, defs)).collect());
        }
        return Node::Value(Form::Names(choices.iter().flat_map(names).collect()));
    }
    if schema["enum"].is_array() {
        return Node::Value(Form::Names(names(schema)));
    }
    let kind = schema["type"].as_array().and_then(|t| t.first()).unwrap_or(&schema["type"]);
    match kind.as_str() {
        Some("object") if schema["properties"].is_object() => Node::Section(keys(schema, defs)),
        Some("object") => Node::Changes,
        Some("array") => {
            let n = schema["maxItems"].as_u64().filter(|n| schema["minItems"].as_u64() == Some(*n));
            Node::List(Box::new(node(&schema["items"], defs)), n.map(|n| n as usize))
        }
        Some("integer") => {
            let most = match schema["format"].as_str() {
                Some("uint8") => i64::from(u8::MAX),
                Some("uint32") => i64::from(u32::MAX),
                _ => i64::MAX,
            };
            Node::Value(Form::Whole(schema["minimum"].as_i64().unwrap_or(i64::MIN), most))
        }
        Some("number") => Node::Value(Form::Number(schema["format"] == "float")),
        Some("boolean") => Node::Value(Form::Switch),
        _ => Node::Value(Form::Text),
    }
}

fn kind(schema: &Json, defs: &Json) -> Kind {
    let name = schema["properties"]["kind"]["const"].as_str().unwrap_or_default().to_string();
    Kind { name, doc: doc(schema).unwrap_or_default(), keys: keys(schema, defs) }
}

/// The names of an enumeration: documented ones stand alone, the others in one list.
fn names(schema: &Json) -> Vec<(String, String)> {
    let text = doc(schema).unwrap_or_default();
    let listed = schema["enum"].as_array().into_iter().flatten();
    let all = schema.get("const").into_iter().chain(listed);
    all.filter_map(|n| Some((n.as_str()?.to_string(), text.clone()))).collect()
}

/// The first paragraph of a doc comment, without rustdoc's links.
fn doc(schema: &Json) -> Option<String> {
    let text = schema["description"].as_str()?;
    let paragraph: Vec<&str> = text.split("\n\n").next()?.lines().map(str::trim).collect();
    Some(without_links(&paragraph.join(" ")))
}

/// ``[`x`](y)`` and ``[`a::x`]`` become `x`.
fn without_links(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("[`") {
        let Some(end) = rest[start..].find("`]").map(|i| start + i) else { break };
        out.push_str(&rest[..start]);
        let name = &rest[start + 2..end];
        out.push_str(name.rsplit("::").next().unwrap_or(name));
        rest = &rest[end + 2..];
        if let (true, Some(close)) = (rest.starts_with('('), rest.find(')')) {
            rest = &rest[close + 1..];
        }
    }
    out + rest
}

/// A default of the schema as TOML.
fn value(json: &Json, node: &Node) -> Option<Value> {
    Some(match (json, node) {
        (Json::Null, _) => return None,
        (Json::Number(n), Node::Value(Form::Number(single))) => {
            let x = n.as_f64()?;
            Value::Float(if *single { shortest(x) } else { x })
        }
        (Json::Number(n), _) => n.as_i64().map(Value::Integer).or_else(|| n.as_f64().map(Value::Float))?,
        (Json::Bool(b), _) => Value::Boolean(*b),
        (Json::String(s), _) => Value::String(s.clone()),
        (Json::Array(list), Node::List(of, _)) => Value::Array(list.iter().filter_map(|j| value(j, of)).collect()),
        (Json::Array(_), _) => return None,
        (Json::Object(map), node) => {
            let of = |name: &str| keys_in(node, map.get("kind").and_then(Json::as_str)).iter().find(|k| k.name == name);
            let free = Node::Changes;
            let pair =
                |(name, j): (&String, &Json)| Some((name.clone(), value(j, of(name).map_or(&free, |k| &k.node))?));
            Value::Table(map.iter().filter_map(pair).collect())
        }
    })
}

/// A number in single precision with as many digits as it has.
fn shortest(x: f64) -> f64 {
    (x as f32).to_string().parse().unwrap_or(x)
}

/// Gives numbers in single precision as many digits as they have: 0.1, not 0.10000000149011612.
pub fn tidy(keys: &[Key], table: &mut Table) {
    for (name, value) in table.iter_mut() {
        if let Some(key) = keys.iter().find(|k| k.name == *name) {
            tidy_value(&key.node, value);
        }
    }
}

fn tidy_value(node: &Node, value: &mut Value) {
    match (node, value) {
        (Node::Value(Form::Number(true)), Value::Float(x)) => *x = shortest(*x),
        (Node::List(of, _), Value::Array(items)) => items.iter_mut().for_each(|item| tidy_value(of, item)),
        (node, Value::Table(table)) => {
            let kind = table.get("kind").and_then(Value::as_str).map(String::from);
            tidy(keys_in(node, kind.as_deref()), table);
        }
        _ => {}
    }
}

/// The keys of a section that is of this kind, where it has kinds.
pub fn keys_in<'a>(node: &'a Node, kind: Option<&str>) -> &'a [Key] {
    match node {
        Node::Section(keys) => keys,
        Node::Kinds(kinds) => kinds.iter().find(|k| Some(k.name.as_str()) == kind).map_or(&[], |k| &k.keys),
        _ => &[],
    }
}

/// A single value or list of the config: where it is and what may stand there.
#[derive(Clone, Debug)]
pub struct Leaf<'a> {
    /// `section.key`.
    pub path: String,
    /// The key in each kind that has it.
    pub of: Vec<Owner<'a>>,
    /// For a `kind`: the kinds.
    pub kinds: &'a [Kind],
    /// For a list of sections: the kinds of its items.
    pub items: &'a [Kind],
}

/// A key in the kinds that it needs.
#[derive(Clone, Debug)]
pub struct Owner<'a> {
    /// The sections that must have a kind for it, outermost first, and which.
    pub chain: Vec<(String, &'a str)>,
    /// The key; of a `kind` its section.
    pub key: &'a Key,
}

impl Owner<'_> {
    /// The innermost kind; empty where its section has none.
    pub fn kind(&self) -> &str {
        self.chain.last().map_or("", |(_, kind)| kind)
    }

    /// The kinds that a table must still be given for it, as `section.kind=kind`.
    pub fn missing(&self, table: &Value) -> Vec<String> {
        let is = |section: &str, kind: &str| at(table, &joined(section, "kind")).and_then(Value::as_str) == Some(kind);
        self.chain.iter().filter(|(s, k)| !is(s, k)).map(|(s, k)| format!("{s}.kind={k}")).collect()
    }

    fn in_force(&self, table: &Value) -> bool {
        self.missing(table).is_empty()
    }
}

impl Leaf<'_> {
    /// What it means, in the first kind that has it.
    pub fn doc(&self) -> &str {
        self.of.first().map_or("", |o| &o.key.doc)
    }

    /// For people: what may stand there.
    pub fn words(&self) -> String {
        self.of.first().map_or_else(String::new, |o| o.key.node.words())
    }

    /// Its value where nobody says anything, with the kinds that have this one; absent where it is then unset.
    pub fn defaults(&self) -> Vec<(Option<Value>, Vec<&str>)> {
        let table = Value::Table(defaults(sections()));
        let mut found: Vec<(Option<Value>, Vec<&str>)> = Vec::new();
        for owner in &self.of {
            let own = owner.key.default.clone().filter(|_| self.kinds.is_empty());
            let value = if owner.in_force(&table) { at(&table, &self.path).cloned() } else { own };
            let known = found.iter().position(|(v, _)| *v == value).unwrap_or(found.len());
            if known == found.len() {
                found.push((value, Vec::new()));
            }
            if !owner.kind().is_empty() && !found[known].1.contains(&owner.kind()) {
                found[known].1.push(owner.kind());
            }
        }
        found
    }
}

/// What a table holds at `section.key`.
pub fn at<'a>(table: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(table, |value, part| value.get(part))
}

/// Every value of every kind, in the order of the sections; a key that several kinds share is there once.
pub fn leaves() -> &'static [Leaf<'static>] {
    static LEAVES: OnceLock<Vec<Leaf<'static>>> = OnceLock::new();
    LEAVES.get_or_init(|| {
        let mut found = Vec::new();
        walk("", sections(), &[], &mut found);
        found
    })
}

fn walk<'a>(prefix: &str, keys: &'a [Key], chain: &[(String, &'a str)], found: &mut Vec<Leaf<'a>>) {
    for key in keys {
        let path = joined(prefix, &key.name);
        let owner = Owner { chain: chain.to_vec(), key };
        let (path, kinds) = match &key.node {
            Node::Section(inner) => {
                walk(&path, inner, chain, found);
                continue;
            }
            Node::Kinds(kinds) => (joined(&path, "kind"), kinds.as_slice()),
            _ => (path, &[][..]),
        };
        match found.iter_mut().find(|leaf| leaf.path == path) {
            Some(known) => known.of.push(owner),
            None => {
                let items: &'a [Kind] = match &key.node {
                    Node::List(of, _) => match &**of {
                        Node::Kinds(kinds) => kinds.as_slice(),
                        _ => &[],
                    },
                    _ => &[],
                };
                found.push(Leaf { path: path.clone(), of: vec![owner], kinds, items });
            }
        }
        let section = path.trim_end_matches(".kind");
        for kind in kinds {
            let chain = [chain, &[(section.to_string(), kind.name.as_str())]].concat();
            walk(section, &kind.keys, &chain, found);
        }
    }
}

/// `section.key`; the key alone at the top.
pub fn joined(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_string() } else { format!("{section}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_of_the_tree_are_the_defaults_of_the_config() {
        let table = defaults(sections());
        assert_eq!(Config::from_table(table).unwrap(), Config::default());
        let written = Config::default().to_table().unwrap();
        assert_eq!(written.keys().collect::<Vec<_>>(), defaults(sections()).keys().collect::<Vec<_>>());
    }

    #[test]
    fn every_key_says_what_it_means_and_links_are_gone() {
        for leaf in leaves() {
            let doc = leaf.doc();
            assert!(doc.len() > 4 && !doc.contains("[`"), "{}: {doc}", leaf.path);
        }
        assert_eq!(without_links("a [`b::c`] and [`d`](e::f)."), "a c and d.");
    }

    #[test]
    fn defaults_in_single_precision_have_the_digits_that_were_written() {
        let lr = leaves().iter().find(|l| l.path == "align.optimiser.lr").unwrap();
        assert_eq!(lr.of[0].key.default.as_ref().unwrap().to_string(), "0.1", "SGD's own");
        let all: Vec<_> = lr.defaults().into_iter().map(|(v, kinds)| (v.unwrap().to_string(), kinds)).collect();
        assert_eq!(all, [("0.01".into(), vec!["sgd"]), ("0.001".into(), vec!["adamw", "adam"])], "alignment's");
    }
}
