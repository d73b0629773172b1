//! Our own trainer of compact networks on a CPU.
//!
//! [`Engine`] runs any [`Net`] on the machine's widest registers (portable; AVX2 + FMA or AVX-512, chosen at run time;
//! NEON). Inside, values lie as pixels × channels with a border of zeros where a convolution pads, so that its kernels
//! know no edges; outside, everything is PyTorch's order in flat slices. One block of memory per engine, made once for the
//! largest batch seen. Convolution is direct, by Winograd's algorithm, or on Intel's matrix unit.
//!
//! The same seed gives the same bytes for any number of threads: workers share output tiles and samples, never a sum,
//! and every sum has one order. Another instruction set may round otherwise.

mod regions;
mod backward;
#[cfg(test)]
mod check;
mod conv;
mod forward;
mod gradient;
mod map;
mod overlap;
mod plan;
mod pooling;
mod rows;
mod taps;
mod tile;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(not(target_arch = "x86_64"))]
#[path = "tiles/absent.rs"]
mod tiles;
mod winograd;

pub use conv::Algorithm;
use plan::{Plan, Spot};
use regions::{Mem, Regions, Shared};

use crate::error::{Error, Result};
use crate::key::Key;
use crate::nn::interpreter::{Interpreter, Mode};
use crate::nn::kernels::{Isa, crew};
use crate::nn::net::{BN_MOMENTUM, Net, Node};

/// A workspace for one network on this machine's CPU.
pub struct Engine {
    net: Net,
    plan: Plan,
    isa: Isa,
    threads: usize,
    regions: Regions,
    /// Samples that the regions have room for.
    capacity: usize,
    /// Samples of the last forward.
    rows: usize,
    mode: Mode,
}

/// What the workers of one call see.
struct Call<'a> {
    net: &'a Net,
    plan: &'a Plan,
    isa: Isa,
    mem: Mem<'a>,
    params: &'a [f32],
    rows: usize,
    mode: Mode,
}

impl Engine {
    /// An engine on the best instruction set here, with `threads` workers (at least 1) inside each call.
    pub fn new(net: &Net, threads: usize) -> Result<Self> {
        Self::with(net, threads, Isa::detect(), Algorithm::default())
    }

    /// An engine on a chosen instruction set; refused when this machine lacks it.
    pub fn with_isa(net: &Net, threads: usize, isa: Isa) -> Result<Self> {
        Self::with(net, threads, isa, Algorithm::default())
    }

    /// An engine on a chosen instruction set, convolving by a chosen algorithm.
    pub fn with(net: &Net, threads: usize, isa: Isa, algorithm: Algorithm) -> Result<Self> {
        if !Isa::available().contains(&isa) {
            return Err(Error::environment(format!("this machine has no {isa}")));
        }
        let plan = plan::plan(net, isa, threads, algorithm);
        let (net, threads) = (net.clone(), threads.max(1));
        Ok(Engine { net, plan, isa, threads, regions: Regions::new(&[])?, capacity: 0, rows: 0, mode: Mode::Eval })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Bytes of the workspace for batches of `rows` samples.
    pub fn bytes(&self, rows: usize) -> usize {
        4 * self.plan.sizes.iter().map(|s| s.of(rows)).sum::<usize>()
    }

    fn reserve(&mut self, rows: usize) -> Result<()> {
        if rows > self.capacity {
            let sizes: Vec<usize> = self.plan.sizes.iter().map(|s| s.of(rows)).collect();
            self.regions = Regions::new(&[])?;
            self.regions = Regions::new(&sizes)?;
            self.capacity = rows;
        }
        Ok(())
    }

    fn check(&self, params: &[f32]) -> Result<()> {
        let want = self.net.layout.len();
        if params.len() == want {
            return Ok(());
        }
        Err(Error::defect(format!("{}: {} parameters, expected {want}", self.net.name, params.len())))
    }

    fn spot(&self, node: Node) -> Result<Spot> {
        let visible = node == self.net.logits || self.net.taps.values().any(|&n| n == node);
        match self.plan.values.get(node) {
            Some(&Some(spot)) if visible => Ok(spot),
            _ => Err(Error::defect(format!("{}: node {node} is neither a tap nor the output", self.net.name))),
        }
    }

    /// Batch norm needs more than one value a channel to take a variance.
    fn check_statistics(&self, rows: usize) -> Result<()> {
        for norm in &self.plan.norms {
            if let Some(spot) = self.plan.values[norm.x]
                && rows * spot.map.pixels() == 1
            {
                let name = &self.net.layout.entries()[norm.params[0]].name;
                return Err(Error::input(format!("{}: {name}: one value a channel in training", self.net.name))
                    .hint("use batches of at least two samples"));
            }
        }
        Ok(())
    }
}

impl Interpreter for Engine {
    fn forward(&mut self, params: &[f32], x: &[f32], rows: &[usize], mode: Mode<&[Key]>) -> Result<()> {
        self.check(params)?;
        mode.check(rows.len())?;
        let &[rows] = rows else {
            return Err(Error::defect(format!("the CPU engine runs one client at a time, not {}", rows.len())));
        };
        let mode = mode.of(0)?;
        let sample: usize = self.net.input_shape().iter().product();
        if x.len() != rows * sample {
            return Err(Error::defect(format!(
                "{}: {rows} images of shape {:?} have {} values, got {}",
                self.net.name,
                self.net.input_shape(),
                rows * sample,
                x.len()
            )));
        }
        if matches!(mode, Mode::Train(_)) {
            self.check_statistics(rows)?;
        }
        self.reserve(rows)?;
        (self.rows, self.mode) = (rows, mode);
        if rows == 0 {
            return Ok(());
        }
        let (net, plan, isa, threads) = (&self.net, &self.plan, self.isa, self.threads);
        let call = Call { net, plan, isa, mem: self.regions.mem(), params, rows, mode };
        crew::run(threads, |worker| call.forward(worker, x));
        Ok(())
    }

    fn update_buffers(&mut self, params: &mut [f32]) -> Result<()> {
        self.check(params)?;
        if self.rows == 0 || !matches!(self.mode, Mode::Train(_)) {
            return Ok(());
        }
        let entries = self.net.layout.entries();
        for norm in &self.plan.norms {
            let state = self.regions.values(norm.state);
            let (c, cp) = (entries[norm.params[2]].len(), self.plan.values[norm.x].map_or(0, |s| s.map.cp));
            for (param, from) in [(norm.params[2], &state[..c]), (norm.params[3], &state[2 * cp..2 * cp + c])] {
                for (running, value) in params[entries[param].range()].iter_mut().zip(from) {
                    *running = (1.0 - BN_MOMENTUM) * *running + BN_MOMENTUM * value;
                }
            }
        }
        Ok(())
    }

    fn read(&mut self, node: Node, out: &mut Vec<f32>) -> Result<()> {
        let spot = self.spot(node)?;
        let sample = spot.map.c * spot.map.pixels();
        out.clear();
        out.resize(self.rows * sample, 0.0);
        let values = self.regions.values(spot.region);
        for (to, from) in out.chunks_exact_mut(sample).zip(values.chunks_exact(spot.map.image())) {
            spot.map.unpack(from, to);
        }
        Ok(())
    }

    fn backward(&mut self, params: &[f32], seeds: &[(Node, &[f32])], grads: &mut [f32]) -> Result<()> {
        self.check(params)?;
        self.check(grads)?;
        if self.mode == Mode::Infer {
            return Err(Error::defect(format!("{}: backward after a forward in Mode::Infer", self.net.name)));
        }
        for &(node, seed) in seeds {
            let spot = self.spot(node)?;
            let want = self.rows * spot.map.c * spot.map.pixels();
            if seed.len() != want {
                return Err(Error::defect(format!(
                    "{}: the seed of node {node} has {} values, expected {want}",
                    self.net.name,
                    seed.len()
                )));
            }
        }
        if self.rows == 0 {
            grads.fill(0.0);
            return Ok(());
        }
        let (net, plan, isa, threads) = (&self.net, &self.plan, self.isa, self.threads);
        let call = Call { net, plan, isa, mem: self.regions.mem(), params, rows: self.rows, mode: self.mode };
        let grads = Shared::new(grads);
        crew::run(threads, |worker| call.backward(worker, seeds, grads));
        Ok(())
    }
}
