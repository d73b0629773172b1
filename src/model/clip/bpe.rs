//! Learning byte-pair merges from texts (Sennrich et al., *Neural machine translation of rare words with subword units*,
//! 2016), for a CLIP that is trained from nothing.

use std::collections::BTreeMap;

use tokenizers::{Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use super::tokenizer::{END, START, Tokenizer};
use crate::error::{Error, Result};

/// The printable stand-ins of the 256 bytes in GPT-2's order: the visible ones stand for themselves, the others come
/// after them as U+0100 and on. CLIP's vocabulary begins with them, then each with `</w>`.
fn byte_characters() -> Vec<char> {
    let visible = |b: &u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let shown = (0..=255u8).filter(visible).map(char::from);
    let hidden = (0..=255u8).filter(|b| !visible(b)).enumerate();
    shown.chain(hidden.filter_map(|(i, _)| char::from_u32(256 + i as u32))).collect()
}

/// Token ids in CLIP's order: bytes, bytes at the end of a word, merges, start, end.
pub(super) fn vocabulary(merges: &[(String, String)]) -> BTreeMap<String, u32> {
    let bytes = byte_characters();
    let plain = bytes.iter().map(char::to_string);
    let last = bytes.iter().map(|c| format!("{c}</w>"));
    let joined = merges.iter().map(|(a, b)| format!("{a}{b}"));
    let special = [START.to_string(), END.to_string()];
    plain.chain(last).chain(joined).chain(special).zip(0..).collect()
}

impl Tokenizer {
    /// Learns at most `merges` merges from `texts`: the most frequent pair each time, the first in code point order of
    /// equals. The vocabulary has 514 tokens more. The last two ids are the start and the end token.
    pub fn learn<S: AsRef<str>>(texts: &[S], merges: usize, length: usize) -> Result<Tokenizer> {
        let mut words = words(texts, length)?;
        let mut learned = Vec::new();
        while learned.len() < merges {
            let mut pairs: BTreeMap<(&str, &str), u64> = BTreeMap::new();
            for (word, count) in &words {
                for pair in word.windows(2) {
                    *pairs.entry((&pair[0], &pair[1])).or_default() += count;
                }
            }
            // `max_by_key` keeps the last of equals, so the walk is from the back.
            let Some(((a, b), _)) = pairs.into_iter().rev().max_by_key(|(_, count)| *count) else { break };
            let best = (a.to_string(), b.to_string());
            words = words.into_iter().map(|(word, count)| (joined(word, &best), count)).collect();
            learned.push(best);
        }
        Tokenizer::from_parts(&vocabulary(&learned), &learned, length)
    }
}

/// The words of the texts as CLIP splits them, in bytes, and how often each occurs.
fn words<S: AsRef<str>>(texts: &[S], length: usize) -> Result<Vec<(Vec<String>, u64)>> {
    let bytes_only = Tokenizer::from_parts(&vocabulary(&[]), &[], length)?;
    let engine = bytes_only.engine();
    let bad = |e: tokenizers::Error| Error::data(format!("cannot split a text into words: {e}"));
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for text in texts {
        let mut split = PreTokenizedString::from(text.as_ref());
        if let Some(normalizer) = engine.get_normalizer() {
            split.normalize(|piece| normalizer.normalize(piece)).map_err(bad)?;
        }
        if let Some(pre) = engine.get_pre_tokenizer() {
            pre.pre_tokenize(&mut split).map_err(bad)?;
        }
        for (word, ..) in split.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            *counts.entry(word.to_string()).or_default() += 1;
        }
    }
    let symbols = |word: &str| {
        let mut symbols: Vec<String> = word.chars().map(String::from).collect();
        if let Some(last) = symbols.last_mut() {
            last.push_str("</w>");
        }
        symbols
    };
    Ok(counts.iter().map(|(word, count)| (symbols(word), *count)).collect())
}

/// Joins each occurrence of a pair, from the left.
fn joined(word: Vec<String>, (a, b): &(String, String)) -> Vec<String> {
    let mut out: Vec<String> = Vec::with_capacity(word.len());
    let mut open = false;
    for symbol in word {
        match out.last_mut() {
            Some(last) if open && last == a && symbol == *b => {
                last.push_str(&symbol);
                open = false;
            }
            _ => {
                out.push(symbol);
                open = true;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The golden script learns 60 merges from these lines with its own code.
    const CORPUS: [&str; 7] = [
        "a photo of a cat",
        "a photo of a dog",
        "a red circle on a blue background",
        "two small green squares",
        "three striped triangles above the dotted line",
        "it's a very long text",
        "hello world of photos",
    ];

    #[test]
    fn merges_equal_those_of_an_independent_learner() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/clip/legacy");
        let learned = Tokenizer::learn(&CORPUS, 40, 16).unwrap();
        let golden = Tokenizer::open(&folder, 16).unwrap();
        // The script splits at spaces only; "it's" is the one word that CLIP splits further.
        let elsewhere = |(a, b): &(String, String)| !format!("{a}{b}").contains('\'');
        let merges = |t: &Tokenizer| t.parts().unwrap().1.into_iter().filter(elsewhere).collect::<Vec<_>>();
        assert_eq!(merges(&learned)[..36], merges(&golden)[..36]);
        assert_eq!(learned.vocab_size(), 554);
    }

    #[test]
    fn a_learned_tokenizer_writes_its_texts_in_few_tokens_and_others_in_bytes() {
        let learned = Tokenizer::learn(&CORPUS, 1000, 16).unwrap();
        let (start, end) = (learned.id(START).unwrap(), learned.id(END).unwrap());
        let ids = learned.encode("A photo of a CAT").unwrap();
        assert_eq!(ids.len(), 7);
        assert_eq!((ids[0], ids[6]), (start, end));
        assert_eq!(learned.encode("\u{4f60}").unwrap().len(), 5);
        assert_eq!(Tokenizer::learn(&CORPUS, 1000, 16).unwrap().definition(), learned.definition());
    }
}
