//! The machine that pickles are programs of.

use std::collections::BTreeMap;

use super::{Kind, Object};
use crate::error::{Error, Result};

/// Most values in one pickle.
const MOST: usize = 1 << 24;
/// Most bytes of a name.
const NAME: usize = 1 << 10;

/// Runs the program at the beginning of `bytes`: its values, the one that was pickled, and the program's length.
pub(super) fn run(bytes: &[u8]) -> Result<(Vec<Kind>, usize, usize)> {
    let (nodes, stack, marks) = (Vec::new(), Vec::new(), Vec::new());
    let mut machine = Machine { bytes, at: 0, nodes, stack, marks, memo: BTreeMap::new() };
    while machine.step()? {}
    let root = machine.pop()?;
    Ok((machine.nodes, root, machine.at))
}

/// Values so far, those at hand, and where the program stands.
struct Machine<'b> {
    bytes: &'b [u8],
    at: usize,
    nodes: Vec<Kind>,
    stack: Vec<usize>,
    marks: Vec<usize>,
    memo: BTreeMap<u64, usize>,
}

fn too_many() -> Error {
    damaged(&format!("it holds more than {MOST} values"))
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
            return Err(too_many());
        }
        self.nodes.push(kind);
        self.lay(self.nodes.len() - 1)
    }

    /// Puts a value on the stack.
    fn lay(&mut self, at: usize) -> Result<()> {
        if self.stack.len() >= MOST || self.memo.len() >= MOST || self.marks.len() >= MOST {
            return Err(too_many());
        }
        self.stack.push(at);
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
            Kind::Text(text) if text.len() <= NAME => Ok(text.clone()),
            _ => Err(damaged("a name is no text, or too long")),
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
        if self.memo.len() > MOST { Err(too_many()) } else { Ok(()) }
    }

    fn recall(&mut self, name: u64) -> Result<()> {
        let at = *self.memo.get(&name).ok_or_else(|| damaged("it names a value that was never there"))?;
        self.lay(at)
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
            b'(' if self.marks.len() >= MOST => return Err(too_many()),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.marked()?),
            b'2' => self.top().and_then(|top| self.lay(top))?,
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
        if code == b'V' {
            let text = self.raw_unicode()?;
            return self.push(Kind::Text(text));
        }
        let line = self.line()?.trim();
        let kind = match code {
            b'I' if line == "00" => Kind::Bool(false),
            b'I' if line == "01" => Kind::Bool(true),
            b'I' | b'L' => line.trim_end_matches('L').parse().map_or(Kind::Wide, Kind::Int),
            b'F' => Kind::Float,
            _ => Kind::Bytes(unquoted(line)),
        };
        self.push(kind)
    }

    /// A text to the end of its line in Python's raw-unicode-escape: Latin-1, other characters as `\u0a0a` or `\U0001f600`.
    fn raw_unicode(&mut self) -> Result<String> {
        let rest = &self.bytes[self.at.min(self.bytes.len())..];
        let end = rest.iter().position(|b| *b == b'\n').ok_or_else(|| damaged("it is cut off"))?;
        let line: String = self.take(end as u64 + 1)?[..end].iter().map(|b| char::from(*b)).collect();
        let mut parts = line.split('\\');
        let mut text = parts.next().unwrap_or_default().to_string();
        for part in parts {
            let digits = if part.starts_with('u') { 5 } else { 9 };
            let code = part.get(1..digits).filter(|_| part.starts_with(['u', 'U']));
            match code.and_then(|hex| char::from_u32(u32::from_str_radix(hex, 16).ok()?)) {
                Some(character) => text.extend([character.to_string().as_str(), &part[digits..]]),
                None => text.extend(["\\", part]),
            }
        }
        Ok(text)
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
