//! Speed of LLaVA and of CLIP's image tower on this machine, and how far decoding is from the memory's speed.
//!
//! `scripts/bench_llava.py pair` runs it in turns with transformers on the same models. By hand:
//! `FEDLLAVA_BENCH_MODEL=FOLDER FEDLLAVA_BENCH_THREADS=2 cargo bench --bench llava`. Each line is JSON: units per second
//! by the wall clock and by the processor's.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use fedllava::data::decode::on_threads;
use fedllava::error::Result;
use fedllava::exec::{Cancel, Context};
use fedllava::key::Key;
use fedllava::model::clip::{Clip, Picture};
use fedllava::model::llava::{Llava, Query};
use fedllava::model::sample::Decoding;
use fedllava::nn::kernels::sweep;
use rayon::prelude::*;

const PROMPT: &str = "USER: <image>\nWhat is shown in this image? ASSISTANT:";
const NEW: usize = 32;
const ROUNDS: usize = 2;

fn main() -> Result<()> {
    let Some(folder) = std::env::var_os("FEDLLAVA_BENCH_MODEL") else {
        println!("skipped: FEDLLAVA_BENCH_MODEL names no folder");
        return Ok(());
    };
    let number = |name: &str| std::env::var(name).ok().and_then(|t| t.parse::<usize>().ok());
    let cx = Context::cpu(number("FEDLLAVA_BENCH_THREADS").unwrap_or(2));
    on_threads(&cx, || run(Path::new(&folder), &cx))?
}

fn run(folder: &Path, cx: &Context) -> Result<()> {
    let before = peak();
    let model = Llava::open(folder, cx)?;
    let bytes = |tensors: Vec<(String, Tensor)>| tensors.iter().map(|(_, t)| 4.0 * t.elem_count() as f64).sum::<f64>();
    let file = std::fs::metadata(folder.join("model.safetensors")).map_or(0, |m| m.len()) as f64;
    println!(r#"{{"name": "weights, MiB", "file": {:.0}, "peak": {:.0}}}"#, file / MIB, peak() - before);
    let embedding = model.llm().config().vocab_size * model.llm().config().hidden_size;
    let read = bytes(model.llm().tensors()) - 4.0 * embedding as f64;
    llava(&model, read)?;
    let clip = folder.join("vit-b-32");
    if clip.is_dir() {
        let clip = Clip::open(&clip, DType::F32, &Device::Cpu)?;
        let pixels = Tensor::zeros((32, 3, 224, 224), DType::F32, &Device::Cpu)?;
        clip.image_features(&pixels.narrow(0, 0, 2)?)?;
        for _ in 0..ROUNDS {
            let clock = Clock::start();
            clip.image_features(&pixels)?;
            clock.tell("ViT-B/32 images", 32.0);
        }
    }
    Ok(())
}

fn llava(model: &Llava, read: f64) -> Result<()> {
    let pixels = vec![0u8; 3 * 240 * 320];
    let mut token = (1.0, 1.0);
    for round in 0..=ROUNDS {
        for rows in [1, 8] {
            let whole = Clock::start();
            let picture = || Picture { height: 240, width: 320, pixels: pixels.as_slice().into() };
            let seen = model.see(&(0..rows).map(|_| picture()).collect::<Vec<_>>())?;
            let queries: Vec<Query> =
                (0..rows).map(|i| Query { prompt: PROMPT, images: vec![i], key: Key::from_seed(0) }).collect();
            let prompts = model.prompts(&queries, &seen)?;
            let mut marks = vec![Clock::start()];
            let mut heard = 0;
            // One token comes with the prompt; no token ends the text.
            model.llm().write(&prompts, &Decoding::greedy(NEW + 1), &[], &Cancel::default(), |_, _| {
                heard += 1;
                if heard == rows {
                    marks.push(Clock::start());
                }
                Ok(())
            })?;
            let end = Clock::start();
            if round == 0 {
                continue;
            }
            end.since(&whole, &format!("captions, {rows} rows"), rows as f64);
            if let [start, first] = &marks[..] {
                first.since(start, &format!("prompt tokens, {rows} rows"), (rows * prompts.embeddings.dim(1)?) as f64);
                let speed = end.since(first, &format!("new tokens, {rows} rows"), (rows * NEW) as f64);
                token = if rows == 1 { speed } else { token };
            }
        }
        if round > 0 {
            floor(read, token);
        }
    }
    Ok(())
}

/// Reads an array as large as the weights that a token needs, by the widest loads: tokens a second if nothing but that
/// took time. Beside it the time of a token of one text in such readings.
fn floor(read: f64, token: (f64, f64)) {
    let values = vec![1.0f32; (read / 4.0) as usize];
    let once = || values.par_chunks(1 << 18).map(sweep).sum::<f32>();
    // The first reading brings the pages.
    assert!(once() > 0.0);
    let clock = Clock::start();
    assert!(once() > 0.0);
    let (wall, cpu) = clock.tell("floor: readings of the weights of a token", 1.0);
    println!(r#"{{"name": "a new token in readings", "wall": {:.4}, "cpu": {:.4}}}"#, wall / token.0, cpu / token.1);
}

const MIB: f64 = 1024.0 * 1024.0;

/// The wall's clock and the processor's, all threads together.
struct Clock {
    wall: Instant,
    cpu: f64,
}

impl Clock {
    fn start() -> Self {
        let nanoseconds = |task: std::fs::DirEntry| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0)
        };
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        Clock { cpu: tasks.map(nanoseconds).sum::<f64>() * 1e-9, wall: Instant::now() }
    }

    /// Units per second of the wall's clock and of the processor's.
    fn since(&self, start: &Clock, name: &str, units: f64) -> (f64, f64) {
        let (wall, cpu) = ((self.wall - start.wall).as_secs_f64(), self.cpu - start.cpu);
        let (wall, cpu) = (units / wall, units / cpu.max(1e-9));
        println!(r#"{{"name": "{name}", "wall": {wall:.4}, "cpu": {cpu:.4}}}"#);
        (wall, cpu)
    }

    fn tell(&self, name: &str, units: f64) -> (f64, f64) {
        Clock::start().since(self, name, units)
    }
}

/// Most resident memory so far, in MiB.
fn peak() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}
