//! Which interpreter runs the compact networks.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::engine::candle::Candle;
use super::engine::cpu::{Algorithm, Engine};
use super::interpreter::Interpreter;
use super::kernels::Isa;
use super::net::Net;
use crate::error::{Error, Result};
use crate::exec::Context;

/// The interpreter of compact networks (`run.engine`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
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
}

impl Backend {
    /// A workspace for one worker, which may use `threads` threads of its own without changing a byte.
    pub fn workspace(self, net: &Arc<Net>, cx: &Context, threads: usize) -> Result<Box<dyn Interpreter>> {
        if net.gives_losses() {
            return Err(Error::defect(format!("{} has an interpreter of its own", net.name)));
        }
        match (self, cx.device.is_cpu()) {
            (Backend::Cpu, true) => Ok(Box::new(Engine::new(net, threads)?)),
            (Backend::Auto, true) => Ok(Box::new(Engine::with(net, threads, Isa::detect(), Algorithm::Fastest)?)),
            (Backend::Winograd, true) => Ok(Box::new(Engine::with(net, threads, Isa::detect(), Algorithm::Winograd)?)),
            (Backend::Cpu | Backend::Winograd, false) => {
                Err(Error::input("run.engine = \"cpu\" runs on run.device = \"cpu\" only")
                    .hint("use run.engine = \"auto\" or \"candle\""))
            }
            (Backend::Auto | Backend::Candle, _) => Ok(Box::new(Candle::new(net.clone(), cx.device.clone(), cx.dtype))),
        }
    }
}
