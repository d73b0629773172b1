//! SentencePiece models of the BPE kind with byte fallback (Kudo and Richardson, 2018): Llama's `tokenizer.model`.
//!
//! Reads the protobuf file itself (three messages of `sentencepiece_model.proto`) and merges as the reference does:
//! always the adjacent pair whose piece has the highest score, the leftmost of equals.

use std::collections::{BTreeMap, BinaryHeap};

use super::protobuf::{Fields, Value};
use crate::error::{Error, Result};

/// The visible space of SentencePiece, U+2581.
pub const SPACE: char = '\u{2581}';

/// What a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Normal,
    /// Stands for what cannot be written.
    Unknown,
    /// `<s>` and the like: never found in text.
    Control,
    /// One byte of UTF-8.
    Byte(u8),
}

/// One entry of the vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Its text, with [`SPACE`] for a space.
    pub text: String,
    /// Higher merges first.
    pub score: f32,
    /// What it is.
    pub kind: Kind,
}

/// A vocabulary and its merge rule.
#[derive(Clone, Debug)]
pub struct SentencePiece {
    pieces: Vec<Piece>,
    normal: BTreeMap<String, u32>,
    bytes: Vec<Option<u32>>,
    unknown: u32,
    prefix: bool,
}

impl SentencePiece {
    /// From pieces in id order; `prefix` puts a space before a text.
    pub fn new(pieces: Vec<Piece>, prefix: bool) -> Self {
        let mut normal = BTreeMap::new();
        let mut bytes = vec![None; 256];
        let mut unknown = 0;
        for (id, piece) in pieces.iter().enumerate() {
            match piece.kind {
                Kind::Normal => {
                    normal.entry(piece.text.clone()).or_insert(id as u32);
                }
                Kind::Byte(b) => bytes[usize::from(b)] = Some(id as u32),
                Kind::Unknown => unknown = id as u32,
                Kind::Control => {}
            }
        }
        SentencePiece { pieces, normal, bytes, unknown, prefix }
    }

    /// Parses a `tokenizer.model`.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let mut pieces = Vec::new();
        let (mut kind, mut prefix, mut trims) = (1, true, true);
        for field in Fields(file) {
            match field? {
                (1, Value::Bytes(message)) => pieces.push(piece(message)?),
                (2, Value::Bytes(trainer)) => {
                    for field in Fields(trainer) {
                        if let (3, Value::Number(n)) = field? {
                            kind = n;
                        }
                    }
                }
                (3, Value::Bytes(normalizer)) => {
                    for field in Fields(normalizer) {
                        match field? {
                            (2, Value::Bytes(rules)) if !rules.is_empty() => return Err(unsupported("a normaliser")),
                            (3, Value::Number(n)) => prefix = n != 0,
                            (4, Value::Number(n)) => trims = n != 0,
                            (5, Value::Number(0)) => return Err(unsupported("unescaped spaces")),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if pieces.is_empty() {
            return Err(Error::data("not a SentencePiece model: it has no pieces"));
        }
        if kind != 2 {
            return Err(unsupported("a model kind other than BPE"));
        }
        if trims {
            return Err(unsupported("trimming of extra spaces"));
        }
        Ok(SentencePiece::new(pieces, prefix))
    }

    /// The vocabulary in id order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Whether a space is put before a text.
    pub fn prefix(&self) -> bool {
        self.prefix
    }

    /// Token ids of a text, without beginning and end marks. `first` says whether the text begins a sequence, so
    /// that a space is put before it.
    pub fn encode(&self, text: &str, first: bool) -> Vec<u32> {
        if text.is_empty() {
            return Vec::new();
        }
        let mut escaped = text.replace(' ', "\u{2581}");
        if first && self.prefix {
            escaped.insert(0, SPACE);
        }
        let mut ids = Vec::new();
        for part in self.merge(&escaped) {
            match self.normal.get(part) {
                Some(&id) => ids.push(id),
                None => self.spell(part, &mut ids),
            }
        }
        ids
    }

    /// A part that is no piece: its bytes, or the unknown token.
    fn spell(&self, part: &str, ids: &mut Vec<u32>) {
        let bytes: Option<Vec<u32>> = part.bytes().map(|b| self.bytes[usize::from(b)]).collect();
        ids.extend(bytes.unwrap_or_else(|| vec![self.unknown]));
    }

    /// Splits a text into the parts that no pair merges any further.
    fn merge<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut chain = Chain::new(text);
        let mut heap = BinaryHeap::new();
        for i in 1..chain.links.len() {
            heap.extend(self.pair(&chain, i - 1, i));
        }
        while let Some(pair) = heap.pop() {
            if !chain.is_current(&pair) {
                continue;
            }
            chain.join(pair.left, pair.right);
            if let Some(before) = chain.links[pair.left].before {
                heap.extend(self.pair(&chain, before, pair.left));
            }
            if let Some(after) = chain.links[pair.left].after {
                heap.extend(self.pair(&chain, pair.left, after));
            }
        }
        chain.parts()
    }

    fn pair(&self, chain: &Chain<'_>, left: usize, right: usize) -> Option<Pair> {
        let (start, end) = (chain.links[left].start, chain.links[right].end);
        let id = *self.normal.get(chain.text.get(start..end)?)?;
        Some(Pair { score: self.pieces[id as usize].score, left, right, bytes: end - start })
    }
}

/// Parts of a text as a doubly linked list; a part that was joined to its left neighbour is empty.
struct Chain<'t> {
    text: &'t str,
    links: Vec<Link>,
}

struct Link {
    start: usize,
    end: usize,
    before: Option<usize>,
    after: Option<usize>,
}

impl<'t> Chain<'t> {
    fn new(text: &'t str) -> Self {
        let count = text.chars().count();
        let links = text.char_indices().enumerate().map(|(i, (start, c))| Link {
            start,
            end: start + c.len_utf8(),
            before: i.checked_sub(1),
            after: (i + 1 < count).then_some(i + 1),
        });
        Chain { text, links: links.collect() }
    }

    /// Whether both sides are still what they were when the pair was seen.
    fn is_current(&self, pair: &Pair) -> bool {
        let (l, r) = (&self.links[pair.left], &self.links[pair.right]);
        l.start < l.end && r.start < r.end && l.after == Some(pair.right) && r.end - l.start == pair.bytes
    }

    fn join(&mut self, left: usize, right: usize) {
        let (end, after) = (self.links[right].end, self.links[right].after);
        self.links[right].start = end;
        self.links[left].end = end;
        self.links[left].after = after;
        if let Some(after) = after {
            self.links[after].before = Some(left);
        }
    }

    fn parts(&self) -> Vec<&'t str> {
        let whole = self.links.iter().filter(|l| l.start < l.end);
        whole.filter_map(|l| self.text.get(l.start..l.end)).collect()
    }
}

/// A pair that could merge; ordered so that the heap gives the highest score first, then the leftmost.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    bytes: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

/// One `SentencePiece` message: text, score, type.
fn piece(message: &[u8]) -> Result<Piece> {
    let (mut text, mut score, mut kind) = (String::new(), 0.0, 1);
    for field in Fields(message) {
        match field? {
            (1, Value::Bytes(b)) => {
                text = String::from_utf8(b.to_vec()).map_err(|_| Error::data("tokenizer: a piece is not UTF-8"))?;
            }
            (2, Value::Word(bits)) => score = f32::from_bits(bits),
            (3, Value::Number(n)) => kind = n,
            _ => {}
        }
    }
    if text.is_empty() {
        return Err(Error::data("tokenizer: a piece without a text"));
    }
    let kind = match kind {
        1 => Kind::Normal,
        2 => Kind::Unknown,
        3 => Kind::Control,
        6 => Kind::Byte(byte(&text).ok_or_else(|| Error::data(format!("tokenizer: {text:?} is not a byte")))?),
        _ => return Err(unsupported("user-defined or unused pieces")),
    };
    Ok(Piece { text, score, kind })
}

/// The byte that `<0x0A>` stands for.
pub fn byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

fn unsupported(what: &str) -> Error {
    Error::data(format!("SentencePiece model: {what} is not supported"))
        .hint("save the tokenizer as tokenizer.json with transformers, and put it beside")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> SentencePiece {
        let normal = |text: &str, score| Piece { text: text.into(), score, kind: Kind::Normal };
        SentencePiece::new(
            vec![
                Piece { text: "<unk>".into(), score: 0.0, kind: Kind::Unknown },
                normal("ab", -1.0),
                normal("bc", -2.0),
                normal("abc", -3.0),
                normal("a", -4.0),
                normal("b", -5.0),
                normal("c", -6.0),
            ],
            false,
        )
    }

    #[test]
    fn the_best_pair_merges_first_and_the_leftmost_of_equals() {
        assert_eq!(tiny().encode("abc", true), [3]);
        assert_eq!(tiny().encode("bcab", true), [2, 1]);
        assert_eq!(tiny().encode("aab", true), [4, 1]);
    }

    #[test]
    fn what_no_piece_and_no_byte_covers_is_unknown() {
        assert_eq!(tiny().encode("xab", true), [0, 1]);
    }

    #[test]
    fn a_torn_file_is_an_error_and_no_panic() {
        for n in 0..4 {
            assert!(SentencePiece::parse(&[0x0a, 0x05, 0x0a, 0x03][..n]).is_err());
        }
        assert!(SentencePiece::parse(b"version https://git-lfs.github.com/spec/v1\n").is_err());
    }
}
