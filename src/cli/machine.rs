//! The machine that a command runs on: threads, device, signals.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::progress::Progress;
use super::{Changes, ranks, say};
use crate::config::{Config, Resolved, RunConfig};
use crate::error::{Class, Error, Result};
use crate::exec::{Cancel, Context, Events};

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

/// The same for a rank whose events go elsewhere.
pub fn context_with(run: &RunConfig, events: Arc<dyn Events>) -> Result<Context> {
    context_on(&run.device, run.threads, events)
}

/// The context on a device with so many threads; 0 takes every core.
pub fn context_of(device: &str, threads: usize, quiet: bool) -> Result<Context> {
    context_on(device, threads, Arc::new(Progress::new(quiet)))
}

fn context_on(device: &str, threads: usize, events: Arc<dyn Events>) -> Result<Context> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if threads == 0 { cores } else { threads };
    common_threads(cores)?;
    let device = self::device(device)?;
    let cancel = signals()?.begin();
    let ranks = ranks::here();
    let events = ranks::Watch::over(events, &ranks, &cancel);
    Ok(Context { device, dtype: DType::F32, threads, cancel, events, ranks })
}

/// Most threads of the pool that libraries share, whatever `RAYON_NUM_THREADS` says.
const COMMON: usize = 1024;

/// Starts the pool that libraries share: left to them, a thread that cannot be had is a panic.
fn common_threads(cores: usize) -> Result<()> {
    static STARTED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
    let threads = asked.unwrap_or(cores).min(COMMON);
    let start = || rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(|e| e.to_string());
    STARTED.get_or_init(start).clone().map_err(|e| {
        Error::environment(format!("cannot start {threads} worker threads: {e}"))
            .hint("is there a limit on processes (ulimit -u)? RAYON_NUM_THREADS=1 takes the fewest")
    })
}

/// The signals of this process.
pub struct Signals {
    cancel: Cancel,
    /// Whether the next SIGINT, SIGTERM, SIGHUP or SIGUSR1 ends at once: before anything listens to the request, and
    /// after a first SIGINT or SIGTERM.
    at_once: Arc<AtomicBool>,
}

impl Signals {
    /// From now on a signal is a request, and who has this listens to it.
    pub fn begin(&self) -> Cancel {
        self.at_once.store(false, Ordering::SeqCst);
        self.cancel.clone()
    }
}

/// Listens to signals, the first thing that a process does. SIGINT, SIGTERM, SIGHUP and SIGUSR1 ask for a clean stop; a
/// second SIGINT or SIGTERM ends at once. (A terminal that closes sends SIGHUP twice.) Before there is work to stop
/// each ends at once, with the same exit code. Only what comes before `main`, the system's and the loader's part of a start,
/// dies of the signal itself.
pub fn signals() -> Result<&'static Signals> {
    static HEARD: OnceLock<std::result::Result<Signals, String>> = OnceLock::new();
    let heard = HEARD.get_or_init(|| listen().map_err(|e| e.to_string()));
    heard.as_ref().map_err(|e| Error::environment(format!("cannot listen to signals: {e}")))
}

fn listen() -> std::io::Result<Signals> {
    let signals = Signals { cancel: Cancel::default(), at_once: Arc::new(AtomicBool::new(true)) };
    let Signals { cancel, at_once } = &signals;
    let hear = |signal: i32, twice: bool| -> std::io::Result<()> {
        flag::register_conditional_shutdown(signal, i32::from(Class::Stopped.exit_code()), at_once.clone())?;
        if twice {
            flag::register(signal, at_once.clone())?;
        }
        flag::register(signal, cancel.flag()).map(|_| ())
    };
    hear(SIGINT, true)?;
    hear(SIGTERM, true)?;
    #[cfg(unix)]
    for signal in [signal_hook::consts::SIGUSR1, signal_hook::consts::SIGHUP] {
        if !ignored(signal) {
            hear(signal, false)?;
        }
    }
    // Heard and left alone: a file that reaches the limit of `ulimit -f` is then an error of writing.
    #[cfg(unix)]
    flag::register(libc::SIGXFSZ, Arc::default())?;
    Ok(signals)
}

/// Whether who started this process had it ignore a signal, as `nohup` does, where the system tells (Linux).
#[cfg(unix)]
fn ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).is_some_and(|m| m >> (signal - 1) & 1 == 1)
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
