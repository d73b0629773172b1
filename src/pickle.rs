//! Python's pickles, protocols 0 to 5: read as values and names, never run.
//!
//! A call or an object stays what the file says it is: a name, arguments, a state. Who reads it knows the few names
//! that matter ([`Item::array`] knows numpy's). Everything lies in one list, so shared and circular values cost nothing.

mod array;
mod machine;

use std::borrow::Cow;

pub use array::Array;

use crate::error::{Error, Result};
use crate::fsx;

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
        if let Some(what) = fsx::stand_in(&bytes[..bytes.len().min(64)]) {
            return Err(Error::data(format!("{what}, expected a pickle")).hint("fetch it again"));
        }
        let (nodes, root, length) = machine::run(bytes)?;
        Ok((Pickle { nodes, root }, length))
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
            Kind::Object(object) => match self.other(object.by).kind() {
                Kind::Name(module, name) => format!("what {module}.{name} gives"),
                _ => "what a call gives".into(),
            },
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
    fn bytes_of_protocol_0_are_unescaped() {
        // pickle.dumps(numpy.array([10, 92, 200, 32, 0], numpy.uint8), protocol=0)
        let bytes = b"cnumpy._core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0\ntp2\nc_codecs\nencode\np3\n(Vb\np4\nVlatin1\np5\ntp6\nRp7\ntp8\nRp9\n(I1\n(I5\ntp10\ncnumpy\ndtype\np11\n(Vu1\np12\nI00\nI01\ntp13\nRp14\n(I3\nV|\np15\nNNNI-1\nI-1\nI0\ntp16\nbI00\ng3\n(V\\u000a\\u005c\xc8 \\u0000\np17\ng5\ntp18\nRp19\ntp20\nb.";
        assert_eq!(read(bytes).root().integers().unwrap(), [10, 92, 200, 32, 0]);
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
