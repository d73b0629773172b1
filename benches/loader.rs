//! Photographs from files to normalised batches, as `scripts/bench_loader.py` times it beside torchvision's loader.
//!
//! `cargo bench --bench loader -- FOLDER CASE THREADS` prints one JSON object: seconds and processor seconds for one pass
//! over the JPEGs of FOLDER. CASE is `train` (random crop and mirror), `jitter` (colours too), `evaluate` (resize and
//! centre crop), or `scaled` (`train` with `decode = "scaled"`); and what bare decoding costs, on one thread: `bare` (whole
//! pictures by the `image` crate), `whole` and `crop` (whole pictures, and training's crops, by ours).
//!
//! `cargo bench --bench loader -- FOLDER memory ENTRIES` is an epoch over so many list entries, the files again and again:
//! it prints the memory held after every tenth of it, and the most so far.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use fedllava::data::crop::{CropConfig, JitterConfig, Sight};
use fedllava::data::encoded::Encoded;
use fedllava::data::jpeg::{Jpeg, Memory};
use fedllava::data::stream::{Ask, Decode, Stream, StreamConfig};
use fedllava::error::{Error, Result};
use fedllava::exec::{Context, human, peak_memory};
use fedllava::key::{Key, Purpose};
use fedllava::nn::kernels::resample::Window;

const BATCH: usize = 64;

/// A list of `entries` that goes through the files in turn.
struct Files {
    paths: Vec<PathBuf>,
    entries: usize,
}

impl Encoded for Files {
    fn len(&self) -> usize {
        self.entries
    }

    fn name(&self, index: usize) -> String {
        self.paths[index % self.paths.len()].display().to_string()
    }

    fn bytes(&self, index: usize) -> Result<Vec<u8>> {
        let path = &self.paths[index % self.paths.len()];
        std::fs::read(path).map_err(|e| Error::io("read", path, e))
    }
}

#[allow(clippy::print_stdout, reason = "its result")]
fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [folder, case, number] = args.as_slice() else { return };
    let number: usize = number.parse().expect("a number");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("FOLDER is there").map(|e| e.expect("readable").path()).collect();
    paths.sort();
    let (begin, cpu) = (Instant::now(), processor_seconds());
    let pictures = match case.as_str() {
        "bare" | "whole" | "crop" => alone(&paths, case),
        "memory" => epoch(Files { paths, entries: number }, config("train"), 2, true),
        _ => epoch(Files { entries: paths.len(), paths }, config(case), number, false),
    };
    let (wall, cpu) = (begin.elapsed().as_secs_f64(), processor_seconds() - cpu);
    println!("{{\"pictures\": {pictures}, \"wall\": {wall:.4}, \"cpu\": {cpu:.4}}}");
}

fn config(case: &str) -> StreamConfig {
    let jitter = if case == "jitter" { JitterConfig::default() } else { JitterConfig::none() };
    let decode = if case == "scaled" { Decode::Scaled } else { Decode::Exact };
    StreamConfig { crop: CropConfig { jitter, ..CropConfig::default() }, decode, ..StreamConfig::default() }
}

fn sight(case: &str, i: usize) -> Sight {
    if case == "evaluate" { Sight::Centre } else { Sight::Random(Key::from_seed(1).fold(Purpose::Item, i as u64)) }
}

/// One epoch in batches, the next two hinted at.
#[allow(clippy::print_stdout, reason = "its result")]
fn epoch(files: Files, config: StreamConfig, threads: usize, memory: bool) -> usize {
    let case = std::env::args().nth(2).unwrap_or_default();
    let entries = files.entries;
    let stream = Stream::new(Arc::new(files), &config, &Context::cpu(threads)).expect("starts");
    let ask = |i: usize| Ask { index: i as u32, sight: sight(&case, i) };
    let batch = |b: usize| (b * BATCH..((b + 1) * BATCH).min(entries)).map(ask).collect::<Vec<_>>();
    let (batches, mut x) = (entries.div_ceil(BATCH), Vec::new());
    stream.ahead(&batch(0));
    for b in 0..batches {
        stream.ahead(&batch((b + 1).min(batches)));
        stream.fill(&batch(b), &mut x).expect("decodes");
        if memory && (b + 1) % (batches / 10).max(1) == 0 {
            let most = peak_memory().map_or("?".into(), human);
            let held = memory_now().map_or("?".into(), human);
            println!("{} of {entries} entries: {held} held, at most {most} so far", ((b + 1) * BATCH).min(entries));
        }
    }
    entries
}

/// Decoding alone.
fn alone(paths: &[PathBuf], case: &str) -> usize {
    let (crop, mut memory, mut pixels) = (CropConfig::default(), Memory::default(), Vec::new());
    for (i, path) in paths.iter().enumerate() {
        let bytes = std::fs::read(path).expect("readable");
        if case == "bare" {
            std::hint::black_box(image::load_from_memory(&bytes).expect("decodes"));
            continue;
        }
        let jpeg = Jpeg::open(&bytes).expect("a baseline JPEG");
        let (height, width) = jpeg.size();
        let window = match case {
            "whole" => Window::all(height, width),
            _ => crop.cut((height, width), sight("train", i)).frame.needs(),
        };
        jpeg.decode(window, 8, &mut memory, &mut pixels).expect("decodes");
    }
    paths.len()
}

/// Bytes of memory that the process holds, where the system tells (Linux).
fn memory_now() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Processor time of all threads so far.
fn processor_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
