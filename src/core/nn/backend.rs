//! Which interpreter runs the compact networks.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::engine::candle::Candle;
use super::engine::cohort::Cohort;
use super::engine::cpu::{Algorithm, Engine};
#[cfg(feature = "cuda")]
use super::engine::cuda::Precision;
use super::engine::cuda::{self, Card, Emulated, Resident};
use super::interpreter::Interpreter;
use super::kernels::Isa;
use super::net::Net;
use super::optim::OptimiserConfig;
use super::session::{Plain, Session};
use crate::error::{Error, Result};
use crate::exec::Context;
use crate::fsx;

/// The interpreter of compact networks (`run.engine`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// On a CPU our engine, each convolution by what is fastest: Intel's matrix unit where there is one and the
    /// convolution fills it (one group, multiples of 32 channels), else as `winograd`. candle elsewhere.
    #[default]
    Auto,
    /// Our CPU engine with direct convolution alone (on the matrix unit where there is one); another device is refused.
    Cpu,
    /// Our CPU engine with Winograd's F(4×4, 3×3) for 3×3 convolutions of 64 channels and more, and no matrix unit:
    /// faster than direct sums by vectors, up to ten times the rounding error.
    Winograd,
    /// candle tensors with autograd, on any device.
    Candle,
    /// Our CUDA engine, several clients in every launch, products on tensor cores in TF32 (10 bits of mantissa).
    Cuda,
    /// The same with products in f32.
    CudaStrict,
    /// The CUDA engine's kernels by the system's C++ compiler, on the CPU, thread by thread: a check of what a GPU would
    /// do, far slower than `cpu`.
    Emulated,
}

/// What one client of a session needs beside the network's values.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// How it is trained.
    pub optimiser: &'a OptimiserConfig,
    /// Vectors that pull at its parameters.
    pub pulls: usize,
    /// Rows of its batches at most.
    pub rows: usize,
}

impl Backend {
    /// Whether it runs on a card, where clients of one session share every launch.
    pub fn on_card(self) -> bool {
        matches!(self, Backend::Cuda | Backend::CudaStrict | Backend::Emulated)
    }

    /// Workers of a cohort: each of the machine's threads, or one for a card.
    pub fn workers(self, threads: usize) -> usize {
        if self.on_card() { 1 } else { threads }
    }

    /// A workspace for one worker, not on a card, which may use `threads` threads of its own without changing a byte.
    pub fn workspace(self, net: &Arc<Net>, cx: &Context, threads: usize) -> Result<Box<dyn Interpreter>> {
        if net.gives_losses() {
            return Err(Error::defect(format!("{} has an interpreter of its own", net.name)));
        }
        match (self, cx.device.is_cpu()) {
            (Backend::Cpu, true) => Ok(Box::new(Engine::new(net, threads)?)),
            (Backend::Auto, true) => Ok(Box::new(Engine::with(net, threads, Isa::detect(), Algorithm::Fastest)?)),
            (Backend::Winograd, true) => Ok(Box::new(Engine::with(net, threads, Isa::detect(), Algorithm::Winograd)?)),
            (Backend::Auto | Backend::Candle, _) => Ok(Box::new(Candle::new(net.clone(), cx.device.clone(), cx.dtype))),
            _ => Err(Error::input("run.engine: this one does not run on run.device")
                .hint("use run.engine = \"auto\" or \"candle\"")),
        }
    }

    /// A session of `lanes` clients for one worker, which may use `threads` threads of its own.
    pub fn session(self, net: &Arc<Net>, cx: &Context, threads: usize, lanes: usize) -> Result<Box<dyn Session>> {
        match self {
            Backend::Emulated => return Ok(Box::new(Resident::new(net, emulated()?, lanes)?)),
            Backend::Cuda | Backend::CudaStrict => return Ok(Box::new(Resident::new(net, self.gpu(cx)?, lanes)?)),
            _ => {}
        }
        let one = || self.workspace(net, cx, threads);
        let interpreter: Box<dyn Interpreter> = match lanes {
            1 => one()?,
            _ => Box::new(Cohort::new(net, (0..lanes).map(|_| one()).collect::<Result<Vec<_>>>()?)),
        };
        Ok(Box::new(Plain::new(net.as_ref().clone(), interpreter, one()?, lanes)))
    }

    /// How many clients of a cohort of `cohort` stand side by side in one session: on a CPU one, each core having a
    /// session of its own; on a card as many as its memory has room for.
    pub fn lanes(self, net: &Net, cx: &Context, load: Load<'_>, cohort: usize) -> Result<usize> {
        match self {
            Backend::Emulated => fitting(net, &emulated()?, load, cohort),
            Backend::Cuda | Backend::CudaStrict => fitting(net, &self.gpu(cx)?, load, cohort),
            _ => Ok(1),
        }
    }

    /// The card that `run.device` names.
    #[cfg(feature = "cuda")]
    fn gpu(self, cx: &Context) -> Result<cuda::Cuda> {
        let candle_core::DeviceLocation::Cuda { gpu_id } = cx.device.location() else {
            return Err(Error::input("run.engine = \"cuda\" needs a GPU").hint("set run.device = \"cuda\" too"));
        };
        cuda::Cuda::new(gpu_id, if self == Backend::Cuda { Precision::Tf32 } else { Precision::Strict })
    }

    #[cfg(not(feature = "cuda"))]
    fn gpu(self, _: &Context) -> Result<Emulated> {
        Err(Error::input("run.engine = \"cuda\": this binary was built without CUDA")
            .hint("build it with cargo build --release --features cuda"))
    }
}

fn fitting<C: Card>(net: &Net, card: &C, load: Load<'_>, cohort: usize) -> Result<usize> {
    cuda::lanes(net, card, load.optimiser, load.pulls, cohort, load.rows)
}

/// The card that stands in for a GPU; its program is kept in the person's cache folder.
fn emulated() -> Result<Emulated> {
    let none = || Error::environment("run.engine = \"emulated\" needs a C++ compiler").hint("CXX may name one");
    Emulated::new(&fsx::cache_dir()?.join("emulated"), 1)?.ok_or_else(none)
}
