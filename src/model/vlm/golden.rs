//! Against transformers.
