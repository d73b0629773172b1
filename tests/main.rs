//! What is checked from outside, as one binary.

mod cli;
mod demo_clip;
mod demo_laws;
mod digests;
mod engine;
mod iterates;
mod laws;
mod layers;
mod llava;
mod methods_distil;
mod methods_golden;
mod net_golden;
mod round_golden;
mod toy;
