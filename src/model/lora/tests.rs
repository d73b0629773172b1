//! Adapters by hand.
