//! What the engine asks of a card: memory, launches of kernels by name, batched products. Everything happens in the order
//! in which it was asked for.

use crate::error::{Error, Result};

/// Memory on a card; a handle, freed by [`Card::release`] or with the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The card's number for it.
    pub id: u32,
    /// Its size.
    pub bytes: usize,
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// Memory from this byte on, which the kernel reads, or changes in places.
    At(Memory, usize),
    /// Memory from this byte on, of which the kernel writes so many bytes, all of them, and reads none before.
    Fill(Memory, usize, usize),
    /// No memory.
    Absent,
    /// A whole number of 32 bits.
    Int(i32),
    /// A number.
    Float(f32),
}

/// How many threads a launch has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// One for each of so many elements.
    Elements(usize),
    /// A block for each of so many sums.
    Blocks(usize),
}

/// A matrix of each batch, row by row.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// Where it lies.
    pub memory: Memory,
    /// First float.
    pub at: usize,
    /// Floats from row to row.
    pub pitch: usize,
    /// Floats from batch to batch.
    pub stride: usize,
    /// Whether its rows are the product's columns.
    pub turned: bool,
}

/// `c = a·b`, or `c += a·b`, for every batch: a (m, k), b (k, n), c (m, n).
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Batches.
    pub batch: usize,
    /// m, n, k.
    pub size: [usize; 3],
    /// The left factor.
    pub a: Matrix,
    /// The right factor.
    pub b: Matrix,
    /// The result, not turned.
    pub c: Matrix,
    /// Whether the result is added to what is there.
    pub add: bool,
}

/// A card, or what stands in for one.
pub trait Card: Send {
    /// What it is, for messages and tables.
    fn name(&self) -> String;

    /// Bytes that may still be allocated, as far as is known.
    fn room(&self) -> Result<usize>;

    /// Memory with anything in it.
    fn allocate(&mut self, bytes: usize) -> Result<Memory>;

    /// Gives memory back.
    fn release(&mut self, memory: Memory) -> Result<()>;

    /// Copies to the card, from byte `at` of the memory on.
    fn write(&mut self, memory: Memory, at: usize, bytes: &[u8]) -> Result<()>;

    /// Copies from the card, once everything before is done.
    fn read(&mut self, memory: Memory, at: usize, bytes: &mut [u8]) -> Result<()>;

    /// Zeroes so many bytes from byte `at` on.
    fn zero(&mut self, memory: Memory, at: usize, bytes: usize) -> Result<()>;

    /// Runs a kernel of [`super::kernels`].
    fn launch(&mut self, kernel: &'static str, work: Work, args: &[Arg]) -> Result<()>;

    /// Multiplies matrices.
    fn multiply(&mut self, product: &Product) -> Result<()>;
}

impl<C: Card + ?Sized> Card for Box<C> {
    fn name(&self) -> String {
        (**self).name()
    }

    fn room(&self) -> Result<usize> {
        (**self).room()
    }

    fn allocate(&mut self, bytes: usize) -> Result<Memory> {
        (**self).allocate(bytes)
    }

    fn release(&mut self, memory: Memory) -> Result<()> {
        (**self).release(memory)
    }

    fn write(&mut self, memory: Memory, at: usize, bytes: &[u8]) -> Result<()> {
        (**self).write(memory, at, bytes)
    }

    fn read(&mut self, memory: Memory, at: usize, bytes: &mut [u8]) -> Result<()> {
        (**self).read(memory, at, bytes)
    }

    fn zero(&mut self, memory: Memory, at: usize, bytes: usize) -> Result<()> {
        (**self).zero(memory, at, bytes)
    }

    fn launch(&mut self, kernel: &'static str, work: Work, args: &[Arg]) -> Result<()> {
        (**self).launch(kernel, work, args)
    }

    fn multiply(&mut self, product: &Product) -> Result<()> {
        (**self).multiply(product)
    }
}

/// Refuses a part that does not lie in its memory.
pub(super) fn inside(doing: &str, memory: Memory, at: usize, bytes: usize) -> Result<()> {
    match at.checked_add(bytes) {
        Some(end) if end <= memory.bytes => Ok(()),
        _ => Err(Error::defect(format!("{doing}: {bytes} bytes from {at} on, of {} there are", memory.bytes))),
    }
}
