//! Data: where images, labels and captions come from.

pub mod world;
