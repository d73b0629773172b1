//! What is checked from outside, as one binary.

mod laws;
mod toy;
