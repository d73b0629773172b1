//! The methods, one file each: config, objective, state, both sides, laws. A new one is a file and a line here.

use serde::{Deserialize, Serialize};

use super::Algorithm;

pub mod distillation;

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
    /// The classifier is calibrated on Gaussian features of every class before it is judged.
    "ccvr" => ccvr::Ccvr,
    /// Models drawn around the clients' are distilled into their mean on images without labels.
    "fedbe" => fedbe::FedBe,
    /// The clients' ensemble is distilled into their mean on images without labels.
    "feddf" => feddf::FedDf,
    /// A proximal term keeps clients near the model they received.
    "fedprox" => fedprox::FedProx,
    /// Control variates correct client drift.
    "scaffold" => scaffold::Scaffold,
}

impl Default for AlgorithmConfig {
    fn default() -> Self {
        AlgorithmConfig::FedAvg(fedavg::FedAvg::default())
    }
}
