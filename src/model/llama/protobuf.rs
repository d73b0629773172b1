//! As much of protobuf's wire format as a SentencePiece model needs.

use crate::error::{Error, Result};

/// The value of a protobuf field.
pub(super) enum Value<'a> {
    /// A variable-length integer.
    Number(u64),
    /// Four bytes.
    Word(u32),
    /// A string or a message.
    Bytes(&'a [u8]),
    /// Eight bytes, which nothing here reads.
    Long,
}

/// The fields of a protobuf message, in order.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let (&b, rest) = self.0.split_first().ok_or_else(torn)?;
            self.0 = rest;
            n |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return Ok(n);
            }
        }
        Err(torn())
    }

    fn bytes(&mut self, n: u64) -> Result<&'a [u8]> {
        let n = usize::try_from(n).map_err(|_| torn())?;
        let (taken, rest) = self.0.split_at_checked(n).ok_or_else(torn)?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => {
                self.bytes(8)?;
                Value::Long
            }
            2 => {
                let n = self.varint()?;
                Value::Bytes(self.bytes(n)?)
            }
            5 => Value::Word(u32::from_le_bytes(self.bytes(4)?.try_into().map_err(|_| torn())?)),
            _ => return Err(torn()),
        };
        Ok((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn torn() -> Error {
    Error::data("not a whole SentencePiece model").hint("is the file cut off, or a Git LFS pointer?")
}
