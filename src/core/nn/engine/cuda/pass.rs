//! One pass over a batch of K clients: what forward and backward share, and the way to and from the seam's rows.

use super::arena::Arena;
use super::card::{Arg, Card, Matrix, Memory, Product, Work};
use super::plan::{Plan, Shape, Window};
use crate::error::{Error, Result};
use crate::key::{Key, Purpose};
use crate::nn::interpreter::Mode;
use crate::nn::net::{Net, Node, ParamId};

/// The batch of the last forward.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    /// Rows of each client.
    pub of: Vec<usize>,
}

impl Rows {
    /// R: the most rows of a client.
    pub fn capacity(&self) -> usize {
        self.of.iter().copied().max().unwrap_or(0)
    }

    /// N: the rows of all clients.
    pub fn all(&self) -> usize {
        self.of.iter().sum()
    }
}

/// A workspace at work on a batch.
pub(super) struct Pass<'a, C> {
    pub net: &'a Net,
    pub plan: &'a Plan,
    pub card: &'a mut C,
    pub arena: &'a Arena,
    /// The clients' parameters, `[K, P]`.
    pub params: Memory,
    pub rows: &'a Rows,
    /// With batch statistics and dropout.
    pub training: bool,
}

/// Whole numbers as arguments.
pub(super) fn ints<const N: usize>(values: [usize; N]) -> [Arg; N] {
    values.map(|v| Arg::Int(v as i32))
}

/// Memory that is written whole from its beginning: so many floats of it.
pub(super) fn fill(memory: Memory, floats: usize) -> Arg {
    Arg::Fill(memory, 0, 4 * floats)
}

/// Memory from its beginning.
pub(super) fn at(memory: Memory) -> Arg {
    Arg::At(memory, 0)
}

impl<C: Card> Pass<'_, C> {
    pub fn lanes(&self) -> usize {
        self.rows.of.len()
    }

    pub fn capacity(&self) -> usize {
        self.rows.capacity()
    }

    pub fn shape(&self, node: Node) -> Shape {
        self.plan.shapes[node]
    }

    /// Floats of a node's value, K · R of them a sample.
    pub fn floats(&self, node: Node) -> usize {
        self.lanes() * self.capacity() * self.shape(node).floats()
    }

    pub fn value(&self, node: Node) -> Result<Memory> {
        self.arena.value(node)
    }

    /// The client's rows on the card, as an argument.
    pub fn counts(&self) -> Result<Arg> {
        Ok(at(self.arena.rows()?))
    }

    /// K, C, R, S of a node.
    pub fn sizes(&self, node: Node) -> [Arg; 4] {
        let shape = self.shape(node);
        ints([self.lanes(), shape.channels, self.capacity(), shape.pixels()])
    }

    /// Sides of input and output and the window.
    pub fn window(&self, x: Node, out: Node, w: Window) -> [Arg; 7] {
        let (x, y) = (self.shape(x), self.shape(out));
        ints([x.height, x.width, y.height, y.width, w.kernel, w.stride, w.padding])
    }

    /// A result that is written, or added to what is there.
    pub fn result(&self, memory: Memory, floats: usize, add: bool) -> Arg {
        if add { at(memory) } else { fill(memory, floats) }
    }

    /// First float of a parameter in a client's slice.
    pub fn offset(&self, id: ParamId) -> usize {
        self.net.layout.entries()[id].offset
    }

    pub fn offsets<const N: usize>(&self, ids: [ParamId; N]) -> [Arg; N] {
        ints(ids.map(|id| self.offset(id)))
    }

    /// P as an argument.
    pub fn size(&self) -> Arg {
        Arg::Int(self.net.layout.len() as i32)
    }

    pub fn each(&mut self, kernel: &'static str, elements: usize, args: &[&[Arg]]) -> Result<()> {
        match elements {
            0 => Ok(()),
            n => self.card.launch(kernel, Work::Elements(n), &args.concat()),
        }
    }

    pub fn blocks(&mut self, kernel: &'static str, blocks: usize, args: &[&[Arg]]) -> Result<()> {
        match blocks {
            0 => Ok(()),
            n => self.card.launch(kernel, Work::Blocks(n), &args.concat()),
        }
    }

    pub fn multiply(&mut self, size: [usize; 3], [a, b, c]: [Matrix; 3], add: bool) -> Result<()> {
        let batch = self.lanes();
        if batch * size[0] * size[1] == 0 {
            return Ok(());
        }
        self.card.multiply(&Product { batch, size, a, b, c, add })
    }

    /// A weight, or its gradient, as a matrix of so many columns; rows from `first` on.
    pub fn weight(&self, memory: Memory, id: ParamId, columns: usize, first: usize) -> Matrix {
        let (at, stride) = (self.offset(id) + first * columns, self.net.layout.len());
        Matrix { memory, at, pitch: columns, stride, turned: false }
    }

    /// A value's, or gradient's, channels from `first` on, as a matrix of R · S columns.
    pub fn channels(&self, memory: Memory, node: Node, first: usize) -> Matrix {
        let (shape, capacity) = (self.shape(node), self.capacity());
        let pitch = capacity * shape.pixels();
        Matrix { memory, at: first * pitch, pitch, stride: capacity * shape.floats(), turned: false }
    }

    /// Rows of a convolution's columns: channels of a group times taps.
    pub fn taps(&self, x: Node, window: Window, groups: usize) -> usize {
        self.shape(x).channels / groups * window.kernel * window.kernel
    }

    /// A group's columns as a matrix; those of a convolution that sees one pixel at a time are the channels in `memory`.
    pub fn columns(
        &self,
        memory: Memory,
        x: Node,
        out: Node,
        window: Window,
        [group, groups]: [usize; 2],
    ) -> Result<Matrix> {
        if window.is_point() {
            return Ok(self.channels(memory, x, group * (self.shape(x).channels / groups)));
        }
        let pitch = self.capacity() * self.shape(out).pixels();
        let stride = self.taps(x, window, groups) * pitch;
        Ok(Matrix { memory: self.arena.columns()?, at: 0, pitch, stride, turned: false })
    }

    /// Brings `rows[k]` and `first[k]` to the card.
    pub fn count(&mut self) -> Result<()> {
        let rows: Vec<i32> = self.rows.of.iter().map(|&n| n as i32).collect();
        let first: Vec<i32> = rows.iter().scan(0, |sum, n| Some(std::mem::replace(sum, *sum + n))).collect();
        self.card.write(self.arena.rows()?, 0, bytemuck::cast_slice(&rows))?;
        self.card.write(self.arena.first()?, 0, bytemuck::cast_slice(&first))
    }

    /// Brings dropout's keys to the card.
    pub fn draw(&mut self, keys: &[Key], node: Node, number: usize) -> Result<()> {
        let words = |key: &Key| {
            let (hi, lo) = key.fold(Purpose::Dropout, node as u64).halves();
            [hi as u32, (hi >> 32) as u32, lo as u32, (lo >> 32) as u32]
        };
        let words: Vec<u32> = keys.iter().flat_map(words).collect();
        self.card.write(self.arena.keys()?, 16 * self.lanes() * number, bytemuck::cast_slice(&words))
    }

    /// Rows `(N, shape of the node…)` of the host into a value or a gradient; 0 behind each client's own.
    pub fn put(&mut self, node: Node, rows: &[f32], to: Memory, add: bool) -> Result<()> {
        let (want, sample) = (self.rows.all() * self.shape(node).floats(), self.shape(node).floats());
        if rows.len() != want {
            let (net, n) = (&self.net.name, self.rows.all());
            return Err(Error::defect(format!("{net}: node {node}: {} values for {n} rows of {sample}", rows.len())));
        }
        let staging = self.arena.staging()?;
        self.card.write(staging, 0, bytemuck::cast_slice(rows))?;
        let (counts, first, n) = (self.counts()?, at(self.arena.first()?), self.floats(node));
        let result = self.result(to, n, add);
        let sizes = self.sizes(node);
        self.each("unpack_rows", n, &[&[at(staging), counts, first], &sizes, &[Arg::Int(add.into()), result]])
    }

    /// A node's value as rows `(N, shape of the node…)` on the host.
    pub fn get(&mut self, node: Node, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        out.resize(self.rows.all() * self.shape(node).floats(), 0.0);
        if out.is_empty() {
            return Ok(());
        }
        let (value, staging) = (self.value(node)?, self.arena.staging()?);
        let (counts, first, n) = (self.counts()?, at(self.arena.first()?), self.floats(node));
        let (sizes, result) = (self.sizes(node), fill(staging, out.len()));
        self.each("pack_rows", n, &[&[at(value), counts, first], &sizes, &[result]])?;
        self.card.read(staging, 0, bytemuck::cast_slice_mut(out))
    }

    /// Moves the running statistics of clients with rows, as the last forward's batch says.
    pub fn update_buffers(&mut self) -> Result<()> {
        if !self.training || self.rows.all() == 0 {
            return Ok(());
        }
        for (i, norm) in self.plan.norms.iter().enumerate() {
            let channels = self.shape(norm.x).channels;
            let (state, counts, params) = (at(self.arena.states[i]), self.counts()?, at(self.params));
            let [mean, var] = self.offsets([norm.params[2], norm.params[3]]);
            let [lanes, c] = ints([self.lanes(), channels]);
            let args =
                [state, counts, lanes, c, self.size(), mean, var, Arg::Float(crate::nn::net::BN_MOMENTUM), params];
            self.each("norm_update", self.lanes() * channels, &[&args])?;
        }
        Ok(())
    }
}

/// Whether a mode trains, and the clients' keys.
pub(super) fn keys(mode: Mode<&[Key]>) -> (bool, &[Key]) {
    match mode {
        Mode::Train(keys) => (true, keys),
        Mode::Eval | Mode::Infer => (false, &[]),
    }
}
