//! numpy's arrays and scalars in pickles: `_reconstruct` with a state (up to protocol 4) and `_frombuffer` (5).

use super::Item;
use crate::error::{Error, Result};

/// An array as it lies in the file.
pub struct Array {
    /// `(…)`.
    pub shape: Vec<usize>,
    /// numpy's type without the byte order: `u1`, `i8`, `f4`.
    pub kind: String,
    /// Row-major, little-endian.
    pub bytes: Vec<u8>,
}

impl Array {
    /// Its integers, whatever their width.
    pub fn integers(&self) -> Result<Vec<i64>> {
        let (Some(width), signed) = (self.width(), self.kind.starts_with('i')) else {
            return Err(Error::data(format!("an array of type {}, expected integers", self.kind)));
        };
        if !(signed || self.kind.starts_with(['u', 'b'])) || width > 8 {
            return Err(Error::data(format!("an array of type {}, expected integers", self.kind)));
        }
        Ok(self.bytes.chunks_exact(width).map(|c| integer(c, signed)).collect())
    }

    fn width(&self) -> Option<usize> {
        self.kind.get(1..)?.parse().ok().filter(|w| *w > 0)
    }
}

/// A little-endian integer of at most 8 bytes.
fn integer(bytes: &[u8], signed: bool) -> i64 {
    let negative = signed && bytes.last().is_some_and(|b| b & 0x80 != 0);
    let fill = if negative { u64::MAX } else { 0 };
    bytes.iter().rev().fold(fill, |all, b| all << 8 | u64::from(*b)) as i64
}

impl<'a> Item<'a> {
    /// A numpy array, if it is one.
    pub fn array(self) -> Option<Result<Array>> {
        if self.is_by("numpy", "_reconstruct") {
            let state = self.state().and_then(Item::list).unwrap_or_default();
            return Some(match state.as_slice() {
                [_, shape, dtype, order, data] => built(*shape, *dtype, order.truth() == Some(true), *data),
                _ => Err(Error::data("an array without a state")),
            });
        }
        if self.is_by("numpy", "_frombuffer") {
            let args = self.args();
            return Some(match args.as_slice() {
                [data, dtype, shape, order] => built(*shape, *dtype, order.text() == Some("F"), *data),
                _ => Err(Error::data("an array without its four parts")),
            });
        }
        None
    }

    /// Integers as a list or as an array.
    pub fn integers(self) -> Result<Vec<i64>> {
        if let Some(array) = self.array() {
            return array?.integers();
        }
        let list = self.list().ok_or_else(|| Error::data(format!("{}, expected a list or an array", self.what())))?;
        let one = |item: Item| item.int().ok_or_else(|| Error::data(format!("{}, expected an integer", item.what())));
        list.into_iter().map(one).collect()
    }

    pub(super) fn scalar(self) -> Option<i64> {
        if !self.is_by("numpy", "scalar") {
            return None;
        }
        let args = self.args();
        let [dtype, data] = args.as_slice() else { return None };
        let (kind, big) = kind_of(*dtype)?;
        let mut bytes = data.bytes()?.into_owned();
        if big {
            bytes.reverse();
        }
        let array = Array { shape: Vec::new(), kind, bytes };
        array.integers().ok()?.first().copied()
    }
}

/// The type's name and whether its numbers are big-endian.
fn kind_of(dtype: Item) -> Option<(String, bool)> {
    let name = dtype.args().first()?.text()?.trim_start_matches(['<', '>', '|', '=']).to_string();
    let order = dtype.state().and_then(Item::list).and_then(|s| s.get(1)?.text());
    Some((name, order == Some(">")))
}

fn built(shape: Item, dtype: Item, fortran: bool, data: Item) -> Result<Array> {
    let dims: Option<Vec<usize>> =
        shape.list().and_then(|s| s.into_iter().map(|n| usize::try_from(n.int()?).ok()).collect());
    let dims = dims.ok_or_else(|| Error::data("an array without a shape"))?;
    let (kind, big) = kind_of(dtype).ok_or_else(|| Error::data("an array of no known type"))?;
    let mut array = Array { shape: dims, kind, bytes: Vec::new() };
    let bytes = data.bytes().ok_or_else(|| Error::data(format!("an array whose numbers are {}", data.what())))?;
    let count = array.shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n));
    let width = array.width().ok_or_else(|| Error::data(format!("an array of type {}", array.kind)))?;
    if count.and_then(|n| n.checked_mul(width)) != Some(bytes.len()) {
        return Err(Error::data(format!(
            "an array of shape {:?} and type {} with {} bytes",
            array.shape,
            array.kind,
            bytes.len()
        )));
    }
    array.bytes = bytes.into_owned();
    if big {
        array.bytes.chunks_exact_mut(width).for_each(<[u8]>::reverse);
    }
    if fortran && array.shape.len() > 1 {
        array.bytes = rows_first(&array.bytes, &array.shape, width);
    }
    Ok(array)
}

/// Column-major to row-major.
fn rows_first(bytes: &[u8], shape: &[usize], width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = vec![0usize; shape.len()];
    for _ in 0..bytes.len() / width {
        let at = index.iter().zip(shape).rev().fold(0, |at, (i, n)| at * n + i);
        out.extend_from_slice(&bytes[at * width..(at + 1) * width]);
        for (i, n) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < *n {
                break;
            }
            *i = 0;
        }
    }
    out
}
