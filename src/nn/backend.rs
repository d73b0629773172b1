//! Which interpreter runs the compact networks.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::candle::Candle;
use super::cpu::Engine;
use super::interpreter::Interpreter;
use super::net::Net;
use crate::error::{Error, Result};
use crate::exec::Context;

/// The interpreter of compact networks (`run.engine`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Our engine on a CPU, candle elsewhere.
    #[default]
    Auto,
    /// Our CPU engine; another device is refused.
    Cpu,
    /// candle tensors with autograd, on any device.
    Candle,
}

impl Backend {
    /// A workspace for one worker, which may use `threads` threads of its own without changing a byte.
    pub fn workspace(self, net: &Arc<Net>, cx: &Context, threads: usize) -> Result<Box<dyn Interpreter>> {
        match (self, cx.device.is_cpu()) {
            (Backend::Auto | Backend::Cpu, true) => Ok(Box::new(Engine::new(net, threads)?)),
            (Backend::Cpu, false) => Err(Error::input("run.engine = \"cpu\" runs on run.device = \"cpu\" only")
                .hint("use run.engine = \"auto\" or \"candle\"")),
            (Backend::Auto | Backend::Candle, _) => Ok(Box::new(Candle::new(net.clone(), cx.device.clone(), cx.dtype))),
        }
    }
}
