//! What is checked from outside, as one binary.

mod cases;
mod cli;
mod config;
mod curves;
mod cuda_engine;
mod damage;
mod demo_clip;
mod demo_laws;
mod digests;
mod door;
mod engine;
mod extend;
mod failures;
mod fedmllm;
mod hints;
mod fuzz;
#[cfg(unix)]
mod inputs;
mod iterates;
#[cfg(target_os = "linux")]
mod kills;
mod laws;
mod layers;
mod lists;
mod llava;
mod matrix;
mod methods;
mod methods_distil;
mod methods_golden;
mod methods_loge;
mod methods_matching;
mod methods_plain;
mod methods_small;
mod methods_yoyo;
#[cfg(target_os = "linux")]
mod mpi;
mod net_golden;
mod ranks;
mod reports;
#[cfg(target_os = "linux")]
mod resilience;
mod round_golden;
#[cfg(unix)]
mod sweep;
#[cfg(unix)]
mod tables;
mod toy;
#[cfg(unix)]
mod trust;
mod vlm;
mod way;
