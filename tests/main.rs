//! What is checked from outside, as one binary.

mod net_golden;
