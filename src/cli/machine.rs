//! The machine that a command runs on: threads, device, signals.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::progress::Progress;
use super::{Changes, say};
use crate::config::{Config, Resolved};
use crate::error::{Error, Result};
use crate::exec::{Cancel, Context};

/// The config with the command line's changes, and the context to run it in.
pub fn open(config: &Path, changes: &Changes, quiet: bool) -> Result<(Config, Context)> {
    open_set(config, Vec::new(), changes, quiet)
}

/// The same with `set` below the changes.
pub fn open_set(config: &Path, set: Vec<String>, changes: &Changes, quiet: bool) -> Result<(Config, Context)> {
    let config = Resolved::read(config, &[set, items(changes)].concat())?.config;
    let context = context(&config, quiet)?;
    Ok((config, context))
}

/// The config with the origin of every value, and the context to run it in.
pub fn resolved(config: &Path, changes: &Changes, quiet: bool) -> Result<(Resolved, Context)> {
    let resolved = Resolved::read(config, &items(changes))?;
    let context = context(&resolved.config, quiet)?;
    Ok((resolved, context))
}

/// The changes as `--set` items.
pub fn items(changes: &Changes) -> Vec<String> {
    let mut set = changes.set.clone();
    set.extend(changes.device.iter().map(|d| format!("run.device={d}")));
    set.extend(changes.threads.iter().map(|t| format!("run.threads={t}")));
    set
}

/// The context of a config: its device and threads, progress on stderr, signals that stop it.
pub fn context(config: &Config, quiet: bool) -> Result<Context> {
    context_of(&config.run.device, config.run.threads, quiet)
}

/// The context on a device with so many threads; 0 takes every core.
pub fn context_of(device: &str, threads: usize, quiet: bool) -> Result<Context> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if threads == 0 { cores } else { threads };
    Ok(Context {
        device: self::device(device)?,
        dtype: DType::F32,
        threads,
        cancel: signals()?,
        events: Arc::new(Progress::new(quiet)),
    })
}

/// SIGINT, SIGTERM and SIGUSR1 ask for a clean stop; a second SIGINT or SIGTERM ends at once.
fn signals() -> Result<Cancel> {
    let cancel = Cancel::default();
    let failed = |e: std::io::Error| Error::environment(format!("cannot listen to signals: {e}"));
    let twice = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 75, twice.clone()).map_err(failed)?;
        flag::register(signal, twice.clone()).map_err(failed)?;
        flag::register(signal, cancel.flag()).map_err(failed)?;
    }
    #[cfg(unix)]
    flag::register(signal_hook::consts::SIGUSR1, cancel.flag()).map_err(failed)?;
    Ok(cancel)
}

/// An error without the trace that candle may append.
fn first_line(e: &candle_core::Error) -> String {
    e.to_string().lines().next().unwrap_or_default().to_string()
}

fn device(name: &str) -> Result<Device> {
    let (kind, index) = name.split_once(':').unwrap_or((name, "0"));
    let index: usize = index
        .parse()
        .map_err(|_| Error::input(format!("device {name}: `{index}` is no number")).hint("write cuda:0, cuda:1, …"))?;
    match kind {
        "cpu" => Ok(Device::Cpu),
        "auto" if cfg!(feature = "cuda") => Ok(Device::new_cuda(index).unwrap_or_else(|e| {
            say(&format!("device auto: computing on the CPU: no GPU ({})", first_line(&e)));
            Device::Cpu
        })),
        "auto" => Ok(Device::Cpu),
        "cuda" if cfg!(feature = "cuda") => Device::new_cuda(index).map_err(|e| {
            Error::environment(format!("device {name}: no GPU ({})", first_line(&e)))
                .hint("does `nvidia-smi` list it? --device cpu runs everywhere, --device auto where it can")
        }),
        "cuda" => Err(Error::environment(format!("device {name}: this binary was built without CUDA"))
            .hint("cargo build --release --features cuda, or --device cpu")),
        _ => Err(Error::input(format!("device {name}; valid: cpu, auto, cuda, cuda:N"))),
    }
}
