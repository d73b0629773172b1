//! The methods, one file each: config, objective, state, both sides, laws. A new one is a file and a line here.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Algorithm;
use crate::error::{Error, Result};
use crate::nn::OptimiserConfig;

mod adaptive;
pub mod distillation;
mod matching;
mod prior;
mod shift;

/// The registry: `kind => module::Type` with what it is in a phrase.
macro_rules! methods {
    ($($(#[doc = $doc:literal])* $kind:literal => $module:ident::$name:ident,)*) => {
        $(pub mod $module;)*

        /// Which algorithm, with its knobs (`algorithm` section).
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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

            /// The name that a config gives it.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(AlgorithmConfig::$name(_) => $kind,)*
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
    /// Control variates correct client drift.
    "scaffold" => scaffold::Scaffold,
    /// The server's step has momentum.
    "fedavgm" => fedavgm::FedAvgM,
    /// The server's step is Adam's.
    "fedadam" => fedadam::FedAdam,
    /// The server's step is Yogi's.
    "fedyogi" => fedyogi::FedYogi,
    /// The server's step is Adagrad's.
    "fedadagrad" => fedadagrad::FedAdagrad,
    /// Clients' steps are divided by how many there were.
    "fednova" => fednova::FedNova,
    /// A linear and a proximal term align the clients' optima with the server's.
    "feddyn" => feddyn::FedDyn,
    /// Features stay near the received model's and leave the client's previous ones.
    "moon" => moon::Moon,
    /// The clients' ensemble is distilled into their mean on images without labels.
    "feddf" => feddf::FedDf,
    /// Models drawn around the clients' are distilled into their mean on images without labels.
    "fedbe" => fedbe::FedBe,
    /// The classifier is calibrated on Gaussian features of every class before it is judged.
    "ccvr" => ccvr::Ccvr,
    /// Focal loss: what is well classified counts less.
    "focal" => focal::Focal,
    /// Classes that move the classifier seldom weigh more.
    "ratio-loss" => ratio_loss::RatioLoss,
    /// Classes are weighted by how often they should be seen over how often they are.
    "fedir" => fedir::FedIr,
    /// Clients train as if their data were balanced.
    "balancefl" => balancefl::BalanceFl,
    /// A classifier retrained on features whose gradients match the clients'.
    "creff" => creff::CReFF,
    /// CReFF with a CLIP that teaches the clients, and class texts that attract the features.
    "clip2fl" => clip2fl::Clip2Fl,
    /// The loss sees logits shifted by the log of the class prior.
    "logit-adjustment" => logit_adjustment::LogitAdjustment,
    /// The loss sees logits lowered where a class is rare at the client.
    "fedlc" => fedlc::FedLc,
    /// A frozen sparse frame for the body, a global and a local head.
    "fedloge" => fedloge::FedLoge,
    /// Weakly augmented images teach strongly augmented ones, under a prior that blends global and local.
    "fedyoyo" => fedyoyo::FedYoYo,
    /// A gated, calibrated ensemble of the clients teaches the server's student.
    "fedic" => fedic::Fedic,
}

/// Refuses a server's optimiser that learns nothing, or that has values out of range.
fn check_server(optimiser: &OptimiserConfig) -> Result<()> {
    optimiser.check("algorithm.optimiser")?;
    match optimiser.lr() {
        lr if lr.is_finite() && lr > 0.0 => Ok(()),
        lr => Err(Error::input(format!("algorithm.optimiser.lr = {lr}: choose a rate above 0"))),
    }
}

impl Default for AlgorithmConfig {
    fn default() -> Self {
        AlgorithmConfig::FedAvg(fedavg::FedAvg::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_optimiser_that_learns_nothing_is_refused_and_so_is_a_step_backwards() {
        let says = |text: &str| {
            let config: AlgorithmConfig = toml::from_str(text).unwrap();
            config.algorithm().check().map_err(|e| e.to_string())
        };
        for kind in ["feddf", "fedbe", "ccvr"] {
            for (key, value) in [("lr", "0.0"), ("lr", "-1.0"), ("momentum", "-1.0"), ("weight_decay", "-1.0")] {
                let rate = if key == "lr" { "" } else { "lr = 0.1, " };
                let said = says(&format!("kind = {kind:?}\noptimiser = {{ kind = \"sgd\", {rate}{key} = {value} }}"));
                assert!(said.as_ref().is_err_and(|e| e.contains(&format!("algorithm.optimiser.{key}"))), "{said:?}");
            }
            assert_eq!(says(&format!("kind = {kind:?}")), Ok(()));
        }
        for rate in ["0.0", "-1.0"] {
            assert!(says(&format!("kind = \"scaffold\"\nserver_lr = {rate}")).unwrap_err().contains("server_lr"));
        }
    }
}
