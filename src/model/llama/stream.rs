//! Text as it is written, token by token.

use super::tokenizer::Tokenizer;
use crate::error::Result;

/// Turns tokens into text as they come; holds back the bytes of a character that is not complete.
pub struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    waiting: Vec<u32>,
    /// Tokens of some text, put before the waiting ones once the text has begun: a decoder strips the space at the
    /// very beginning.
    anchor: Vec<u32>,
    begun: bool,
}

impl<'a> Stream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Result<Self> {
        let anchor = tokenizer.encode_plain("a")?;
        Ok(Stream { tokenizer, waiting: Vec::new(), anchor, begun: false })
    }

    /// What the token adds to the text; empty while a character is not complete.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.waiting.push(id);
        let mut out = String::new();
        loop {
            let text = self.text(&self.waiting)?;
            let broken = text.chars().rev().take_while(|c| *c == '\u{fffd}').count();
            if broken == 0 {
                if self.begun || !text.is_empty() {
                    self.begun = true;
                    self.waiting.clear();
                }
                return Ok(out + &text);
            }
            // A character has at most four bytes: only three can wait for more.
            if broken < 4 {
                return Ok(out);
            }
            let cut = self.waiting.len().saturating_sub(3);
            out += &self.text(&self.waiting[..cut])?;
            self.waiting.drain(..cut);
            self.begun = true;
        }
    }

    /// What was held back.
    pub fn finish(self) -> Result<String> {
        self.text(&self.waiting)
    }

    fn text(&self, ids: &[u32]) -> Result<String> {
        if !self.begun {
            return self.tokenizer.decode(ids);
        }
        let before = self.tokenizer.decode(&self.anchor)?;
        let text = self.tokenizer.decode(&[self.anchor.as_slice(), ids].concat())?;
        Ok(text.strip_prefix(before.as_str()).unwrap_or_default().to_string())
    }
}
