//! What travels between ranks, as bytes: words of eight and slices of numbers, in the machine's own order of bytes. A
//! layout travels once a message.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::fl::brief::Name;
use crate::nn::{Layout, Params, Role};

/// A message being written.
#[derive(Default)]
pub struct Pack {
    bytes: Vec<u8>,
    layouts: Vec<Arc<Layout>>,
}

/// A message being read.
pub struct Unpack<'a> {
    rest: &'a [u8],
    layouts: Vec<Arc<Layout>>,
}

/// What a message can hold.
pub trait Packed: Sized {
    /// Writes it.
    fn put(&self, to: &mut Pack);
    /// Reads it back.
    fn take(from: &mut Unpack<'_>) -> Result<Self>;
}

/// A message that holds this.
pub fn pack(what: &impl Packed) -> Vec<u8> {
    let mut to = Pack::default();
    what.put(&mut to);
    to.bytes
}

/// A message that holds all of these.
pub fn pack_all(all: &[impl Packed]) -> Vec<u8> {
    let mut to = Pack::default();
    put_all(all, &mut to);
    to.bytes
}

fn put_all(all: &[impl Packed], to: &mut Pack) {
    all.len().put(to);
    all.iter().for_each(|it| it.put(to));
}

/// What a message holds, all of it.
pub fn unpack<T: Packed>(bytes: &[u8]) -> Result<T> {
    let mut from = Unpack { rest: bytes, layouts: Vec::new() };
    let what = T::take(&mut from)?;
    match from.rest.len() {
        0 => Ok(what),
        n => Err(Error::defect(format!("ranks: {n} bytes of a message are left over"))),
    }
}

impl Pack {
    /// A slice of numbers.
    pub fn numbers<T: bytemuck::Pod>(&mut self, numbers: &[T]) {
        numbers.len().put(self);
        self.bytes.extend_from_slice(bytemuck::cast_slice(numbers));
    }
}

impl<'a> Unpack<'a> {
    fn bytes(&mut self, n: usize) -> Result<&'a [u8]> {
        let cut = || Error::defect(format!("ranks: a message is cut short: {n} bytes are due"));
        let (bytes, rest) = self.rest.split_at_checked(n).ok_or_else(cut)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// A slice of numbers.
    pub fn numbers<T: bytemuck::Pod>(&mut self) -> Result<Vec<T>> {
        let n = usize::take(self)?;
        let bytes = self.bytes(n.saturating_mul(size_of::<T>()))?;
        let mut numbers = vec![T::zeroed(); n];
        bytemuck::cast_slice_mut(&mut numbers).copy_from_slice(bytes);
        Ok(numbers)
    }
}

impl Packed for u64 {
    fn put(&self, to: &mut Pack) {
        to.bytes.extend_from_slice(&self.to_ne_bytes());
    }

    fn take(from: &mut Unpack<'_>) -> Result<Self> {
        let mut word = [0; 8];
        word.copy_from_slice(from.bytes(8)?);
        Ok(u64::from_ne_bytes(word))
    }
}

/// Types that are a word.
macro_rules! word {
    ($($kind:ty: $it:ident => $to:expr, $from:expr;)*) => {$(
        impl Packed for $kind {
            fn put(&self, to: &mut Pack) {
                let $it = *self;
                let word: u64 = $to;
                word.put(to);
            }

            fn take(from: &mut Unpack<'_>) -> Result<Self> {
                let $it = u64::take(from)?;
                Ok($from)
            }
        }
    )*};
}

word! {
    usize: n => n as u64, n as usize;
    u32: n => u64::from(n), n as u32;
    u8: n => u64::from(n), n as u8;
    bool: n => u64::from(n), n != 0;
    f64: n => n.to_bits(), f64::from_bits(n);
}

/// A message within a message.
pub struct Packet(pub Vec<u8>);

impl Packed for Packet {
    fn put(&self, to: &mut Pack) {
        to.numbers(&self.0);
    }

    fn take(from: &mut Unpack<'_>) -> Result<Self> {
        from.numbers().map(Packet)
    }
}

impl Packed for String {
    fn put(&self, to: &mut Pack) {
        to.numbers(self.as_bytes());
    }

    fn take(from: &mut Unpack<'_>) -> Result<Self> {
        String::from_utf8(from.numbers()?).map_err(|e| Error::defect(format!("ranks: a text: {e}")))
    }
}

impl Packed for Name {
    fn put(&self, to: &mut Pack) {
        to.numbers(self.as_bytes());
    }

    fn take(from: &mut Unpack<'_>) -> Result<Self> {
        String::take(from).map(Cow::Owned)
    }
}

impl<T: Packed> Packed for Option<T> {
    fn put(&self, to: &mut Pack) {
        self.is_some().put(to);
        self.iter().for_each(|it| it.put(to));
    }

    fn take(from: &mut Unpack<'_>) -> Result<Self> {
        bool::take(from)?.then(|| T::take(from)).transpose()
    }
}

impl<T: Packed> Packed for Vec<T> {
    fn put(&self, to: &mut Pack) {
        put_all(self, to);
    }

    fn take(from: &mut Unpack<'_>) -> Result<Self> {
        (0..usize::take(from)?).map(|_| T::take(from)).collect()
    }
}

impl<K: Packed + Ord, V: Packed> Packed for BTreeMap<K, V> {
    fn put(&self, to: &mut Pack) {
        self.len().put(to);
        self.iter().for_each(|(key, value)| {
            key.put(to);
            value.put(to);
        });
    }

    fn take(from: &mut Unpack<'_>) -> Result<Self> {
        (0..usize::take(from)?).map(|_| Ok((K::take(from)?, V::take(from)?))).collect()
    }
}

impl<A: Packed, B: Packed> Packed for (A, B) {
    fn put(&self, to: &mut Pack) {
        self.0.put(to);
        self.1.put(to);
    }

    fn take(from: &mut Unpack<'_>) -> Result<Self> {
        Ok((A::take(from)?, B::take(from)?))
    }
}

/// Structs, field by field.
macro_rules! fields {
    ($kind:ident: $($field:ident),*) => {
        impl $crate::fl::ranks::pack::Packed for $kind {
            fn put(&self, to: &mut $crate::fl::ranks::pack::Pack) {
                $($crate::fl::ranks::pack::Packed::put(&self.$field, to);)*
            }

            fn take(from: &mut $crate::fl::ranks::pack::Unpack<'_>) -> $crate::error::Result<Self> {
                Ok($kind { $($field: $crate::fl::ranks::pack::Packed::take(from)?),* })
            }
        }
    };
}
pub(super) use fields;

impl Packed for Arc<Layout> {
    fn put(&self, to: &mut Pack) {
        let known = to.layouts.iter().position(|l| Arc::ptr_eq(l, self) || l == self);
        known.unwrap_or(to.layouts.len()).put(to);
        if known.is_none() {
            to.layouts.push(self.clone());
            self.entries().len().put(to);
            for entry in self.entries() {
                entry.name.put(to);
                entry.shape.put(to);
                (entry.role == Role::Buffer).put(to);
            }
        }
    }

    fn take(from: &mut Unpack<'_>) -> Result<Self> {
        let at = usize::take(from)?;
        if let Some(known) = from.layouts.get(at) {
            return Ok(known.clone());
        }
        let mut layout = Layout::default();
        for _ in 0..usize::take(from)? {
            let (name, shape) = (String::take(from)?, Vec::<usize>::take(from)?);
            layout.push(name, &shape, if bool::take(from)? { Role::Buffer } else { Role::Weight })?;
        }
        from.layouts.push(Arc::new(layout));
        Ok(from.layouts[from.layouts.len() - 1].clone())
    }
}

impl Packed for Params {
    fn put(&self, to: &mut Pack) {
        self.layout().put(to);
        to.numbers(self.data());
    }

    fn take(from: &mut Unpack<'_>) -> Result<Self> {
        Params::new(Packed::take(from)?, from.numbers::<f32>()?)
    }
}
