//! What is checked from outside, as one binary.
