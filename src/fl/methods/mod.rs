//! The methods, one file each: config, objective, state, both sides, laws. A new one is a file and a line here.

use serde::{Deserialize, Serialize};

use super::Algorithm;

/// The registry: `kind => module::Type` with what it is in a phrase.
macro_rules! methods {
    ($($(#[doc = $doc:literal])* $kind:literal => $module:ident::$name:ident,)*) => {
        $(pub mod $module;)*

        /// Which algorithm, with its knobs (`algorithm` section).
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind")]
        pub enum AlgorithmConfig {
            $($(#[doc = $doc])* #[serde(rename = $kind)] $name($module::$name),)*
        }

        impl AlgorithmConfig {
            /// The algorithm itself.
            pub fn algorithm(&self) -> &dyn Algorithm {
                match self {
                    $(AlgorithmConfig::$name(a) => a,)*
                }
            }

            /// Every method with its defaults, by the name that a config gives it.
            pub fn all() -> Vec<(&'static str, AlgorithmConfig)> {
                vec![$(($kind, AlgorithmConfig::$name($module::$name::default())),)*]
            }
        }
    };
}

methods! {
    /// Federated averaging.
    "fedavg" => fedavg::FedAvg,
    /// A proximal term keeps clients near the model they received.
    "fedprox" => fedprox::FedProx,
    /// A gated, calibrated ensemble of the clients teaches the server's student.
    "fedic" => fedic::Fedic,
    /// Weakly augmented images teach strongly augmented ones, under a prior that blends global and local.
    "fedyoyo" => fedyoyo::FedYoYo,
    /// Control variates correct client drift.
    "scaffold" => scaffold::Scaffold,
}

impl Default for AlgorithmConfig {
    fn default() -> Self {
        AlgorithmConfig::FedAvg(fedavg::FedAvg::default())
    }
}
