//! What is checked from outside, as one binary.

mod engine;
mod laws;
mod net_golden;
mod toy;
