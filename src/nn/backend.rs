//! Which interpreter runs the compact networks.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::candle::Candle;
use super::interpreter::Interpreter;
use super::net::Net;
use crate::error::Result;
use crate::exec::Context;

/// The interpreter of compact networks (`run.engine`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// candle tensors with autograd, on any device.
    #[default]
    Candle,
}

impl Backend {
    /// A workspace for one worker, which may use `threads` threads of its own without changing a byte.
    pub fn workspace(self, net: &Arc<Net>, cx: &Context, _threads: usize) -> Result<Box<dyn Interpreter>> {
        match self {
            Backend::Candle => Ok(Box::new(Candle::new(net.clone(), cx.device.clone(), cx.dtype))),
        }
    }
}
