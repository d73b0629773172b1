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
    /// Clients train as if their data were balanced.
    "balancefl" => balancefl::BalanceFl,
    /// Federated averaging.
    "fedavg" => fedavg::FedAvg,
    /// A frozen sparse frame for the body, a global and a local head.
    "fedloge" => fedloge::FedLoge,
    /// A proximal term keeps clients near the model they received.
    "fedprox" => fedprox::FedProx,
    /// Features stay near the received model's and leave the client's previous ones.
    "moon" => moon::Moon,
    /// Classes that move the classifier seldom weigh more.
    "ratio-loss" => ratio_loss::RatioLoss,
    /// Control variates correct client drift.
    "scaffold" => scaffold::Scaffold,
}

impl Default for AlgorithmConfig {
    fn default() -> Self {
        AlgorithmConfig::FedAvg(fedavg::FedAvg::default())
    }
}
