//! Speed and memory of finetuning adapters: a step of LoRA on four samples with a picture each.
//!
//! `scripts/bench_lora.py pair` runs it in turns with transformers and PEFT on the same model. By hand:
//! `FEDLLAVA_BENCH_MODEL=FOLDER FEDLLAVA_BENCH_THREADS=2 cargo bench --bench lora`. Each line is JSON: samples per second
//! by the wall clock and by the processor's, and the most resident memory of the process in MiB.
//! `FEDLLAVA_BENCH_KEEP=1` keeps all layers' activations instead of computing them again.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::path::Path;
use std::time::Instant;

use fedllava::data::decode::on_threads;
use fedllava::error::Result;
use fedllava::exec::Context;
use fedllava::key::Key;
use fedllava::model::chat::{Message, Role};
use fedllava::model::clip::Picture;
use fedllava::model::lora::LoraConfig;
use fedllava::model::vlm::{Opened, Sample};
use fedllava::nn::optim::{AdamwConfig, Optimiser, OptimiserConfig};

const ROWS: usize = 4;
const STEPS: usize = 3;
const QUESTION: &str = "Is the content hateful? (A) no (B) yes. The best answer is";
const ANSWER: &str = "(A) no, it is a picture of a dog";

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
    let opened = Opened::open(folder, cx)?;
    let plan = opened.plan(&LoraConfig::default())?;
    let mut params = opened.fresh(&plan, Key::from_seed(1))?;
    let mut learner = opened.learner(&plan, &params)?;
    learner.recompute(std::env::var_os("FEDLLAVA_BENCH_KEEP").is_none());
    let pixels = vec![0u8; 3 * 240 * 320];
    let picture = Picture { height: 240, width: 320, pixels: pixels.as_slice().into() };
    let talk = [Message::about(1, QUESTION), Message::text(Role::Assistant, ANSWER)];
    let sample = learner.vlm().sample(&talk, &[picture])?;
    let batch: Vec<&Sample> = vec![&sample; ROWS];
    let mut adamw = Optimiser::new(&OptimiserConfig::Adamw(AdamwConfig::default()), plan.layout());
    for step in 0..=STEPS {
        let (clock, before) = (Instant::now(), processor());
        let got = learner.gradients(&batch, Key::from_seed(step as u64))?;
        adamw.step(params.data_mut(), &got.gradient, 1.0);
        learner.set(&params)?;
        let (wall, cpu) = (clock.elapsed().as_secs_f64(), processor() - before);
        // The first step brings the pages.
        if step > 0 {
            let rows = ROWS as f64;
            println!(r#"{{"name": "LoRA samples", "wall": {:.4}, "cpu": {:.4}}}"#, rows / wall, rows / cpu.max(1e-9));
        }
    }
    let need = opened.need(&plan, ROWS, sample.prompt.ids.len()).total() as f64 / 1024.0 / 1024.0;
    let tokens = sample.prompt.ids.len();
    println!(r#"{{"name": "memory, MiB", "peak": {:.0}, "estimate": {need:.0}, "tokens": {tokens}}}"#, peak());
    Ok(())
}

/// Seconds that all threads together have run.
fn processor() -> f64 {
    let nanoseconds = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0)
    };
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks.map(nanoseconds).sum::<f64>() * 1e-9
}

/// Most resident memory so far, in MiB.
fn peak() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}
