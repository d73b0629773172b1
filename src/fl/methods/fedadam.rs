//! FedAdam: Reddi et al., *Adaptive Federated Optimization*, ICLR 2021, Algorithm 2 with Adam's second moment.
//! Equations, choices and laws stand in the file of all three, `adaptive.rs`.

pub use super::adaptive::FedAdam;
