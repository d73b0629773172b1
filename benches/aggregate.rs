//! The server's weighted mean of K models, as `scripts/bench_aggregate.py` times it beside numpy's.
//!
//! `cargo bench --bench aggregate -- FILE K P SECONDS` prints one JSON object. FILE holds K·P little-endian f32, model
//! after model; the weights are 1, 2, …, K. A repetition is what the server does in a round: K replies folded, the last
//! leaf closed, the mean taken, its memory included. `result` is the mean's first 8 values, to compare.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fedllava::fl::{Collect, Collected, Part, PartKind, Reply};
use fedllava::nn::{Layout, Params, Role};

#[allow(clippy::print_stdout, reason = "its result")]
fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [file, models, parameters, seconds] = args.as_slice() else { return };
    let models: usize = models.parse().expect("K is a number");
    let parameters: usize = parameters.parse().expect("P is a number");
    let seconds: f64 = seconds.parse().expect("SECONDS is a number");
    let bytes = std::fs::read(file).expect("FILE is there");
    let values: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let mut layout = Layout::default();
    layout.push("w", &[parameters], Role::Weight).expect("one name");
    let layout = Arc::new(layout);
    let model = |k: usize| Params::new(layout.clone(), values[k * parameters..(k + 1) * parameters].to_vec());
    let models: Vec<Params> = (0..models).map(|k| model(k).expect("FILE holds K·P values")).collect();
    let (mut times, start, mut mean) = (Vec::new(), Instant::now(), Vec::new());
    while start.elapsed() < Duration::from_secs_f64(seconds) || times.len() < 3 {
        let begin = Instant::now();
        mean = aggregate(&models);
        times.push(begin.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let (best, median) = (times[0], times[times.len() / 2]);
    println!("{{\"best\": {best:e}, \"median\": {median:e}, \"result\": {:?}}}", &mean[..8.min(mean.len())]);
}

fn aggregate(models: &[Params]) -> Vec<f64> {
    let mut got = Collected::default();
    for (k, model) in models.iter().enumerate() {
        let (data, weight) = (model.clone(), (k + 1) as f64);
        let reply = Reply {
            parts: vec![Part { name: "model".into(), kind: PartKind::Value, data, weight }],
            samples: 1,
            loss: None,
            multiply_adds: 0,
            wire: Default::default(),
        };
        got.fold(k as u32, reply, Collect::Sum).expect("adds up");
    }
    got.close();
    got.sum("model").and_then(|sum| sum.mean()).expect("adds up")
}
