//! Speed of LLaVA on this machine: image encoding, prefill, decoding, alone and eight side by side.
//!
//! `FEDLLAVA_BENCH_MODEL=FOLDER cargo bench --bench llava`; `scripts/bench_llava.py` makes the folder and times
//! transformers on it.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use fedllava::error::Result;
use fedllava::exec::{Cancel, Context};
use fedllava::key::Key;
use fedllava::model::clip::Picture;
use fedllava::model::llava::{Llava, Query};
use fedllava::model::sample::Decoding;

const PROMPT: &str = "USER: <image>\nWhat is shown in this image? ASSISTANT:";
const NEW: usize = 64;

fn main() -> Result<()> {
    let Some(folder) = std::env::var_os("FEDLLAVA_BENCH_MODEL") else {
        println!("skipped: FEDLLAVA_BENCH_MODEL names no folder");
        return Ok(());
    };
    let model = Llava::open(Path::new(&folder), &Context::cpu(1))?;
    let pixels = vec![0u8; 3 * 240 * 320];
    let mut rates: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for _ in 0..5 {
        let start = Instant::now();
        let seen = model.see(&[Picture { height: 240, width: 320, pixels: pixels.as_slice().into() }])?;
        rates.entry("seconds an image".into()).or_default().push(start.elapsed().as_secs_f64());
        for rows in [1, 8] {
            let query = Query { prompt: PROMPT, images: vec![0], key: Key::from_seed(0) };
            let prompts = model.prompts(&vec![query; rows], &seen)?;
            // One token comes with the prompt; no token ends the text.
            let written =
                model.llm().write(&prompts, &Decoding::greedy(NEW + 1), &[], &Cancel::default(), |_, _| Ok(()))?;
            let prompt = (rows * prompts.embeddings.dim(1)?) as f64 / written.prefill.as_secs_f64();
            let new = (rows * NEW) as f64 / written.decode.as_secs_f64();
            rates.entry(format!("prompt tokens/s, {rows} rows")).or_default().push(prompt);
            rates.entry(format!("new tokens/s, {rows} rows")).or_default().push(new);
        }
    }
    for (name, mut values) in rates {
        values.sort_by(f64::total_cmp);
        println!("{name}: median {:.3} of {values:.3?}", values[values.len() / 2]);
    }
    Ok(())
}
