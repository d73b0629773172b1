//! Python's pickles, protocols 0 to 5: read as values and names, never run.
//!
//! A call or an object stays what the file says it is: a name, arguments, a state. Who reads it knows the few names
//! that matter ([`Item::array`] knows numpy's). Everything lies in one list, so shared and circular values cost nothing.

mod array;

use std::borrow::Cow;
use std::collections::BTreeMap;

pub use array::Array;

use crate::error::{Error, Result};

/// Most values in one pickle.
const MOST: usize = 100_000_000;

/// A pickle, read.
pub struct Pickle {
    nodes: Vec<Kind>,
    root: usize,
}

/// A value of a pickle.
#[derive(Clone, Copy)]
pub struct Item<'a> {
    pickle: &'a Pickle,
    at: usize,
}

enum Kind {
    None,
    Bool(bool),
    Int(i64),
    /// An integer that needs more than 64 bits.
    Wide,
    Float,
    Bytes(Vec<u8>),
    Text(String),
    List(Vec<usize>),
    Tuple(Vec<usize>),
    Dict(Vec<(usize, usize)>),
    Name(String, String),
    Object(Object),
    Saved(usize),
}

/// What a call gave.
struct Object {
    by: usize,
    args: usize,
    state: Option<usize>,
    items: Vec<usize>,
    pairs: Vec<(usize, usize)>,
}

impl Pickle {
    /// Reads the pickle at the beginning of `bytes`, and says how long it is.
    pub fn read(bytes: &[u8]) -> Result<(Pickle, usize)> {
        let mut machine =
            Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: BTreeMap::new() };
        while machine.step()? {}
        let root = machine.pop()?;
        Ok((Pickle { nodes: machine.nodes, root }, machine.at))
    }

    /// The names of all values that lie outside of it.
    pub fn saved(&self) -> impl Iterator<Item = Item<'_>> {
        let item = |kind: &Kind| if let Kind::Saved(at) = kind { Some(Item { pickle: self, at: *at }) } else { None };
        self.nodes.iter().filter_map(item)
    }

    /// The value that was pickled.
    pub fn root(&self) -> Item<'_> {
        Item { pickle: self, at: self.root }
    }
}

impl<'a> Item<'a> {
    fn kind(self) -> &'a Kind {
        &self.pickle.nodes[self.at]
    }

    fn other(self, at: usize) -> Item<'a> {
        Item { pickle: self.pickle, at }
    }

    /// What it is, in a word.
    pub fn what(self) -> String {
        match self.kind() {
            Kind::None => "None".into(),
            Kind::Bool(_) => "a truth value".into(),
            Kind::Int(_) | Kind::Wide => "an integer".into(),
            Kind::Float => "a float".into(),
            Kind::Bytes(_) => "bytes".into(),
            Kind::Text(_) => "a text".into(),
            Kind::List(_) => "a list".into(),
            Kind::Tuple(_) => "a tuple".into(),
            Kind::Dict(_) => "a dictionary".into(),
            Kind::Name(module, name) => format!("{module}.{name}"),
            Kind::Object(object) => format!("what {} gives", self.other(object.by).what()),
            Kind::Saved(_) => "something stored elsewhere".into(),
        }
    }

    /// An integer, numpy's scalars included.
    pub fn int(self) -> Option<i64> {
        match self.kind() {
            Kind::Int(n) => Some(*n),
            Kind::Bool(b) => Some(i64::from(*b)),
            _ => self.scalar(),
        }
    }

    /// A truth value.
    pub fn truth(self) -> Option<bool> {
        if let Kind::Bool(b) = self.kind() { Some(*b) } else { None }
    }

    /// A text; bytes count where they are UTF-8, as Python 2 wrote texts.
    pub fn text(self) -> Option<&'a str> {
        match self.kind() {
            Kind::Text(text) => Some(text),
            Kind::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Bytes, also as Python 3 writes them in old protocols: a text and its encoding.
    pub fn bytes(self) -> Option<Cow<'a, [u8]>> {
        match self.kind() {
            Kind::Bytes(bytes) => Some(bytes.into()),
            Kind::Object(_) if self.is_by("_codecs", "encode") => {
                let text = self.args().first()?.text()?;
                text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect::<Option<Vec<u8>>>().map(Cow::from)
            }
            _ => None,
        }
    }

    /// The entries of a list, a tuple or a set.
    pub fn list(self) -> Option<Vec<Item<'a>>> {
        match self.kind() {
            Kind::List(list) | Kind::Tuple(list) => Some(list.iter().map(|&at| self.other(at)).collect()),
            Kind::Object(object) if !object.items.is_empty() => {
                Some(object.items.iter().map(|&at| self.other(at)).collect())
            }
            _ => None,
        }
    }

    /// The entries of a dictionary, or of an object that holds such entries, in the order of the file.
    pub fn pairs(self) -> Option<Vec<(Item<'a>, Item<'a>)>> {
        let pairs = match self.kind() {
            Kind::Dict(pairs) => pairs,
            Kind::Object(object) => &object.pairs,
            _ => return None,
        };
        Some(pairs.iter().map(|&(k, v)| (self.other(k), self.other(v))).collect())
    }

    /// The entry of a dictionary called `key`.
    pub fn get(self, key: &str) -> Option<Item<'a>> {
        self.pairs()?.into_iter().rev().find(|(k, _)| k.text() == Some(key)).map(|(_, v)| v)
    }

    /// Whether it is what the function or class `name` of a module that begins with `module` gave.
    pub fn is_by(self, module: &str, name: &str) -> bool {
        match self.kind() {
            Kind::Object(object) => self.other(object.by).is_name(module, name),
            _ => false,
        }
    }

    /// Whether it is this name itself.
    pub fn is_name(self, module: &str, name: &str) -> bool {
        matches!(self.kind(), Kind::Name(m, n) if m.starts_with(module) && n == name)
    }

    /// The name, where it is one.
    pub fn name(self) -> Option<&'a str> {
        if let Kind::Name(_, name) = self.kind() { Some(name) } else { None }
    }

    /// What the call that gave it was given.
    pub fn args(self) -> Vec<Item<'a>> {
        match self.kind() {
            Kind::Object(object) => self.other(object.args).list().unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// The state that an object was given after it was made.
    pub fn state(self) -> Option<Item<'a>> {
        match self.kind() {
            Kind::Object(object) => object.state.map(|at| self.other(at)),
            _ => None,
        }
    }

    /// What names a value that lies outside of the pickle.
    pub fn saved(self) -> Option<Item<'a>> {
        if let Kind::Saved(at) = self.kind() { Some(self.other(*at)) } else { None }
    }
}

/// The machine that pickles are programs of.
struct Machine<'b> {
    bytes: &'b [u8],
    at: usize,
    nodes: Vec<Kind>,
    stack: Vec<usize>,
    marks: Vec<usize>,
    memo: BTreeMap<u64, usize>,
}

fn damaged(what: &str) -> Error {
    Error::data(format!("cannot be read as a pickle: {what}"))
}

impl<'b> Machine<'b> {
    fn take(&mut self, n: u64) -> Result<&'b [u8]> {
        let end = usize::try_from(n).ok().and_then(|n| self.at.checked_add(n));
        let got = end.and_then(|end| self.bytes.get(self.at..end)).ok_or_else(|| damaged("it is cut off"))?;
        self.at += got.len();
        Ok(got)
    }

    /// A little-endian number of so many bytes, at most 8.
    fn number(&mut self, n: u64) -> Result<u64> {
        Ok(self.take(n)?.iter().rev().fold(0, |all, b| all << 8 | u64::from(*b)))
    }

    fn line(&mut self) -> Result<&'b str> {
        let rest = &self.bytes[self.at.min(self.bytes.len())..];
        let end = rest.iter().position(|b| *b == b'\n').ok_or_else(|| damaged("it is cut off"))?;
        let line = std::str::from_utf8(self.take(end as u64 + 1)?).map_err(|_| damaged("a name is not UTF-8"))?;
        Ok(line.trim_end_matches(['\n', '\r']))
    }

    fn text(&mut self, n: u64) -> Result<()> {
        let bytes = self.take(n)?;
        // Python may hold half of a pair of surrogates; nothing here looks at such a text.
        self.push(Kind::Text(String::from_utf8_lossy(bytes).into_owned()))
    }

    fn push(&mut self, kind: Kind) -> Result<()> {
        if self.nodes.len() >= MOST {
            return Err(damaged("it holds too many values"));
        }
        self.stack.push(self.nodes.len());
        self.nodes.push(kind);
        Ok(())
    }

    fn pop(&mut self) -> Result<usize> {
        match self.marks.last() {
            Some(mark) if self.stack.len() <= *mark => Err(damaged("a value is missing")),
            _ => self.stack.pop().ok_or_else(|| damaged("a value is missing")),
        }
    }

    fn top(&self) -> Result<usize> {
        self.stack.last().copied().ok_or_else(|| damaged("a value is missing"))
    }

    /// Everything above the last mark.
    fn marked(&mut self) -> Result<Vec<usize>> {
        let mark = self.marks.pop().ok_or_else(|| damaged("a mark is missing"))?;
        if mark > self.stack.len() {
            return Err(damaged("a mark is missing"));
        }
        Ok(self.stack.split_off(mark))
    }

    fn name(&mut self, at: usize) -> Result<String> {
        match &self.nodes[at] {
            Kind::Text(text) => Ok(text.clone()),
            _ => Err(damaged("a name is no text")),
        }
    }

    fn tuple(&mut self, n: usize) -> Result<()> {
        let mut items = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
        items.reverse();
        self.push(Kind::Tuple(items))
    }

    fn call(&mut self, by: usize, args: usize) -> Result<()> {
        self.push(Kind::Object(Object { by, args, state: None, items: Vec::new(), pairs: Vec::new() }))
    }

    fn append(&mut self, more: Vec<usize>) -> Result<()> {
        let top = self.top()?;
        match &mut self.nodes[top] {
            Kind::List(list) => list.extend(more),
            Kind::Object(object) => object.items.extend(more),
            _ => return Err(damaged("something is appended to what is no list")),
        }
        Ok(())
    }

    fn set(&mut self, more: Vec<usize>) -> Result<()> {
        let top = self.top()?;
        let new = more.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        match &mut self.nodes[top] {
            Kind::Dict(pairs) => pairs.extend(new),
            Kind::Object(object) => object.pairs.extend(new),
            _ => return Err(damaged("an entry is put into what is no dictionary")),
        }
        Ok(())
    }

    fn remember(&mut self, name: u64) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(name, top);
        Ok(())
    }

    fn recall(&mut self, name: u64) -> Result<()> {
        let at = *self.memo.get(&name).ok_or_else(|| damaged("it names a value that was never there"))?;
        self.stack.push(at);
        Ok(())
    }

    fn integer(&mut self, bytes: &[u8]) -> Result<()> {
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        if bytes.len() > 8 {
            return self.push(Kind::Wide);
        }
        let fill = if negative { u64::MAX } else { 0 };
        let value = bytes.iter().rev().fold(fill, |all, b| all << 8 | u64::from(*b));
        self.push(Kind::Int(value as i64))
    }

    /// Does one instruction; `false` after the last.
    fn step(&mut self) -> Result<bool> {
        let code = self.take(1)?[0];
        match code {
            b'.' => return Ok(false),
            0x97 => return Err(damaged("its arrays lie outside of it (protocol 5 with out-of-band buffers)")),
            _ if self.value(code)? || self.group(code)? || self.object(code)? || self.order(code)? => {}
            other => return Err(damaged(&format!("instruction {other:#04x} at byte {}", self.at - 1))),
        }
        Ok(true)
    }

    /// Instructions that put one value down.
    fn value(&mut self, code: u8) -> Result<bool> {
        match code {
            b'N' => self.push(Kind::None)?,
            0x88 => self.push(Kind::Bool(true))?,
            0x89 => self.push(Kind::Bool(false))?,
            b'J' => self.sized(4, |m, n| m.push(Kind::Int((n as u32 as i32).into())))?,
            b'K' => self.sized(1, |m, n| m.push(Kind::Int(n as i64)))?,
            b'M' => self.sized(2, |m, n| m.push(Kind::Int(n as i64)))?,
            0x8a => self.sized(1, |m, n| m.take(n).and_then(|b| m.integer(b)))?,
            0x8b => self.sized(4, |m, n| m.take(n).and_then(|b| m.integer(b)))?,
            b'G' => self.take(8).and_then(|_| self.push(Kind::Float))?,
            b'I' | b'L' | b'F' | b'S' | b'V' => self.written(code)?,
            b'U' | b'C' => self.sized(1, Self::raw)?,
            b'T' | b'B' => self.sized(4, Self::raw)?,
            0x8e | 0x96 => self.sized(8, Self::raw)?,
            0x8c => self.sized(1, Self::text)?,
            b'X' => self.sized(4, Self::text)?,
            0x8d => self.sized(8, Self::text)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Instructions that make and fill lists, tuples, sets and dictionaries.
    fn group(&mut self, code: u8) -> Result<bool> {
        match code {
            b']' | 0x8f => self.push(Kind::List(Vec::new()))?,
            b'}' => self.push(Kind::Dict(Vec::new()))?,
            b')' => self.push(Kind::Tuple(Vec::new()))?,
            b'l' | 0x91 => self.marked().and_then(|items| self.push(Kind::List(items)))?,
            b't' => self.marked().and_then(|items| self.push(Kind::Tuple(items)))?,
            0x85..=0x87 => self.tuple(usize::from(code - 0x84))?,
            b'd' => {
                let items = self.marked()?;
                self.push(Kind::Dict(Vec::new()))?;
                self.set(items)?;
            }
            b'a' => self.pop().and_then(|item| self.append(vec![item]))?,
            b'e' | 0x90 => self.marked().and_then(|items| self.append(items))?,
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])?;
            }
            b'u' => self.marked().and_then(|items| self.set(items))?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Instructions about names, calls and objects.
    fn object(&mut self, code: u8) -> Result<bool> {
        match code {
            b'c' => {
                let (module, name) = (self.line()?.to_string(), self.line()?.to_string());
                self.push(Kind::Name(module, name))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let kind = Kind::Name(self.name(module)?, self.name(name)?);
                self.push(kind)?;
            }
            b'R' | 0x81 => {
                let (args, by) = (self.pop()?, self.pop()?);
                self.call(by, args)?;
            }
            0x92 => {
                let (_, args, by) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(by, args)?;
            }
            b'i' | b'o' => self.instance(code)?,
            b'b' => {
                let (state, top) = (self.pop()?, self.top()?);
                if let Kind::Object(object) = &mut self.nodes[top] {
                    object.state = Some(state);
                }
            }
            b'Q' => self.pop().and_then(|name| self.push(Kind::Saved(name)))?,
            b'P' => {
                let text = self.line()?.to_string();
                self.push(Kind::Text(text))?;
                self.pop().and_then(|name| self.push(Kind::Saved(name)))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Instructions that keep order: marks, what is remembered, and what says nothing.
    fn order(&mut self, code: u8) -> Result<bool> {
        match code {
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            0x98 => {}
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.marked()?),
            b'2' => self.stack.push(self.top()?),
            b'p' => self.index().and_then(|name| self.remember(name))?,
            b'g' => self.index().and_then(|name| self.recall(name))?,
            b'q' => self.sized(1, Self::remember)?,
            b'r' => self.sized(4, Self::remember)?,
            b'h' => self.sized(1, Self::recall)?,
            b'j' => self.sized(4, Self::recall)?,
            0x94 => self.remember(self.memo.len() as u64)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn sized(&mut self, width: u64, then: impl FnOnce(&mut Self, u64) -> Result<()>) -> Result<()> {
        let n = self.number(width)?;
        then(self, n)
    }

    fn raw(&mut self, n: u64) -> Result<()> {
        let bytes = self.take(n)?.to_vec();
        self.push(Kind::Bytes(bytes))
    }

    fn index(&mut self) -> Result<u64> {
        self.line()?.trim().parse().map_err(|_| damaged("a place is no number"))
    }

    /// Protocol 0's values, written as text.
    fn written(&mut self, code: u8) -> Result<()> {
        let line = self.line()?.trim();
        let kind = match code {
            b'I' if line == "00" => Kind::Bool(false),
            b'I' if line == "01" => Kind::Bool(true),
            b'I' | b'L' => line.trim_end_matches('L').parse().map_or(Kind::Wide, Kind::Int),
            b'F' => Kind::Float,
            b'S' => Kind::Bytes(unquoted(line)),
            _ => Kind::Text(line.to_string()),
        };
        self.push(kind)
    }

    fn instance(&mut self, code: u8) -> Result<()> {
        let named = if code == b'i' { Some((self.line()?.to_string(), self.line()?.to_string())) } else { None };
        let mut args = self.marked()?;
        let by = match named {
            Some((module, name)) => {
                self.push(Kind::Name(module, name))?;
                self.pop()?
            }
            None if args.is_empty() => return Err(damaged("a value is missing")),
            None => args.remove(0),
        };
        self.push(Kind::Tuple(args))?;
        let args = self.pop()?;
        self.call(by, args)
    }
}

/// The bytes of a text as Python 2's `repr` writes it.
fn unquoted(line: &str) -> Vec<u8> {
    let inner = line.strip_prefix(['\'', '"']).and_then(|l| l.strip_suffix(['\'', '"'])).unwrap_or(line);
    let (mut out, mut chars) = (Vec::new(), inner.bytes());
    while let Some(byte) = chars.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match chars.next() {
            Some(b'n') => out.push(b'\n'),
            Some(b't') => out.push(b'\t'),
            Some(b'r') => out.push(b'\r'),
            Some(b'x') => {
                let digits: String = chars.by_ref().take(2).map(char::from).collect();
                out.extend(u8::from_str_radix(&digits, 16));
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Pickle {
        Pickle::read(bytes).unwrap().0
    }

    /// `pickle.dumps({"a": [1, -2, 300, 2**40], "b": (None, True, 1.5), 7: b"xy"}, protocol)` of Python 3.
    #[test]
    fn the_same_value_comes_out_of_every_protocol() {
        let files: [&[u8]; 3] = [
            b"(dp0\nVa\np1\n(lp2\nI1\naI-2\naI300\naL1099511627776L\nasVb\np3\n(NI01\nF1.5\ntp4\nsI7\nc_codecs\nencode\np5\n(Vxy\np6\nVlatin1\np7\ntp8\nRp9\ns.",
            b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffM,\x01\x8a\x06\x00\x00\x00\x00\x00\x01eX\x01\x00\x00\x00bq\x03N\x88G?\xf8\x00\x00\x00\x00\x00\x00\x87q\x04K\x07c_codecs\nencode\nq\x05X\x02\x00\x00\x00xyq\x06X\x06\x00\x00\x00latin1q\x07\x86q\x08Rq\tu.",
            b"\x80\x05\x95?\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01a\x94]\x94(K\x01J\xfe\xff\xff\xffM,\x01\x8a\x06\x00\x00\x00\x00\x00\x01e\x8c\x01b\x94N\x88G?\xf8\x00\x00\x00\x00\x00\x00\x87\x94K\x07C\x02xy\x94u.",
        ];
        for bytes in files {
            let (pickle, length) = Pickle::read(bytes).unwrap();
            let root = pickle.root();
            let numbers: Vec<i64> = root.get("a").unwrap().list().unwrap().into_iter().filter_map(Item::int).collect();
            assert_eq!(numbers, [1, -2, 300, 1 << 40]);
            assert_eq!(root.get("b").unwrap().list().unwrap()[1].truth(), Some(true));
            assert_eq!(root.pairs().unwrap()[2].1.bytes().unwrap().as_ref(), b"xy");
            assert_eq!(length, bytes.len());
            for cut in 0..bytes.len() {
                assert!(Pickle::read(&bytes[..cut]).is_err(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_list_that_holds_itself_and_a_deep_one_are_only_numbers() {
        let own = read(b"\x80\x02]q\x00h\x00a.");
        assert_eq!(own.root().list().unwrap()[0].list().unwrap().len(), 1);
        let deep = [vec![b'('; 200_000], vec![b't'; 200_000], b".".to_vec()].concat();
        assert_eq!(read(&deep).root().what(), "a tuple");
    }

    #[test]
    fn nonsense_is_refused_and_never_panics() {
        let mut rng = crate::key::Key::from_seed(5).rng();
        let seed = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffeX\x01\x00\x00\x00bq\x03N\x88\x86q\x04u.";
        for _ in 0..20_000 {
            let mut bytes = seed.to_vec();
            for _ in 0..1 + rng.below(3) {
                let at = rng.below(bytes.len());
                bytes[at] = rng.u32() as u8;
            }
            if let Ok((pickle, _)) = Pickle::read(&bytes) {
                let root = pickle.root();
                let _ = (root.what(), root.list(), root.pairs(), root.args(), root.int(), root.array());
            }
        }
    }
}
