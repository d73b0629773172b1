//! Which client holds which modality of which sample: FedMLLM's four scenarios.
//!
//! | kind | who lacks what | its key | published values |
//! |---|---|---|---|
//! | aligned | nobody | – | alpha 5, 1, 0.5 |
//! | missing | every sample loses each modality by itself with probability `beta` | `beta` | 0.3, 0.4, 0.5 |
//! | cross | `images` clients hold pictures alone, the others texts alone | `images` | 3, 5, 7 of 10 |
//! | hybrid | a client holds each modality with probability `keep`; with neither, each sample keeps one of the two | `keep` | 0.8, 0.7, 0.6 |
//!
//! Samples with labels (choices) are dealt label by label, by a Dirichlet draw of concentration `alpha` (0.5 in all
//! scenarios but aligned). Samples without (open questions) are dealt in equal shares: those with a picture among the
//! clients that hold pictures, those without among those that hold texts; a client that holds both gets a share of each.
//!
//! `draw = "keyed"` draws from the run's key path: a sample's mask depends on the key and its id alone, not on how
//! many others there are or where they lie. `draw = "reference"` replays the published scripts' generators ([`reference`]):
//! for their ten clients and counts of labels, the very same samples.
//!
//! Samples that keep neither modality stay: they are asked the question alone, as in the published scripts.

mod holdings;
mod keyed;
pub mod reference;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Modalities, Recipe, Sample};
use crate::error::{Error, Result};
use crate::key::Key;

pub use holdings::{Held, Holdings, Mix};

/// Where the draws come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScenarioDraw {
    /// The run's key path, by sample.
    #[default]
    Keyed,
    /// The published scripts' generators.
    Reference,
}

/// How samples are dealt, and who lacks what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ScenarioConfig {
    /// Every client holds all of its samples.
    Aligned(AlignedConfig),
    /// Every sample loses each modality by itself.
    Missing(MissingConfig),
    /// Some clients hold pictures alone, the others texts alone.
    Cross(CrossConfig),
    /// Every client holds each modality or does not.
    Hybrid(HybridConfig),
}

/// The section of one kind: its own key, and those that all kinds share.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$own_doc:meta])* $own:ident: $type:ty = $value:expr)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$own_doc])* pub $own: $type,)?
            /// Clients, at least 1.
            pub clients: usize,
            /// Concentration of the Dirichlet draw over clients, > 0: small is uneven. Open questions do not use it.
            pub alpha: f64,
            /// Where the draws come from.
            pub draw: ScenarioDraw,
            /// A seed of its own; without it the run's, or the published one.
            pub seed: Option<u32>,
        }

        impl Default for $name {
            fn default() -> Self {
                let Deal { clients, alpha, draw, seed } = Deal::default();
                $name { $($own: $value,)? clients, alpha, draw, seed }
            }
        }

        impl $name {
            fn deal(&self) -> Deal {
                Deal { clients: self.clients, alpha: self.alpha, draw: self.draw, seed: self.seed }
            }
        }
    };
}

section! {
    /// The aligned kind.
    AlignedConfig {}
}

section! {
    /// The missing kind.
    MissingConfig {
        /// Probability that a sample loses its picture, and that it loses its text, in [0, 1].
        beta: f64 = 0.5
    }
}

section! {
    /// The cross kind.
    CrossConfig {
        /// How many clients hold pictures alone.
        images: usize = 5
    }
}

section! {
    /// The hybrid kind.
    HybridConfig {
        /// Probability that a client holds pictures, and that it holds texts, in [0, 1]. One with neither keeps one of the
        /// two of each sample.
        keep: f64 = 0.7
    }
}

impl Default for ScenarioConfig {
    fn default() -> Self {
        ScenarioConfig::Aligned(AlignedConfig::default())
    }
}

/// What all kinds say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Deal {
    clients: usize,
    alpha: f64,
    draw: ScenarioDraw,
    seed: Option<u32>,
}

impl Default for Deal {
    fn default() -> Self {
        Deal { clients: 10, alpha: 0.5, draw: ScenarioDraw::Keyed, seed: None }
    }
}

/// What one kind says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Lack {
    Nothing,
    Missing { beta: f64 },
    Cross { images: usize },
    Hybrid { keep: f64 },
}

impl ScenarioConfig {
    /// Clients of the federation.
    pub fn clients(&self) -> usize {
        self.deal().clients
    }

    fn deal(&self) -> Deal {
        match self {
            ScenarioConfig::Aligned(c) => c.deal(),
            ScenarioConfig::Missing(c) => c.deal(),
            ScenarioConfig::Cross(c) => c.deal(),
            ScenarioConfig::Hybrid(c) => c.deal(),
        }
    }

    fn lack(&self) -> Lack {
        match self {
            ScenarioConfig::Aligned(_) => Lack::Nothing,
            ScenarioConfig::Missing(c) => Lack::Missing { beta: c.beta },
            ScenarioConfig::Cross(c) => Lack::Cross { images: c.images },
            ScenarioConfig::Hybrid(c) => Lack::Hybrid { keep: c.keep },
        }
    }

    /// Refuses values that no data could make right.
    pub fn check(&self) -> Result<()> {
        let Deal { clients, alpha, .. } = self.deal();
        if clients == 0 {
            return Err(Error::input("scenario.clients = 0: the smallest is 1"));
        }
        if !(alpha.is_finite() && alpha > 0.0) {
            return Err(Error::input(format!("scenario.alpha = {alpha} is not a positive number")));
        }
        let share = |key: &str, value: f64| match (0.0..=1.0).contains(&value) {
            true => Ok(()),
            false => Err(Error::input(format!("scenario.{key} = {value} is not between 0 and 1"))),
        };
        match self.lack() {
            Lack::Nothing => Ok(()),
            Lack::Missing { beta } => share("beta", beta),
            Lack::Hybrid { keep } => share("keep", keep),
            Lack::Cross { images } if images <= clients => Ok(()),
            Lack::Cross { images } => Err(Error::input(format!("scenario.images = {images} of {clients} clients"))),
        }
    }
}

/// What a draw sees of a sample.
#[derive(Clone, Copy, Debug)]
pub struct Outline<'a> {
    /// Its name.
    pub id: &'a str,
    /// Its label, if it has one.
    pub label: Option<u32>,
    /// What it has.
    pub has: Modalities,
}

impl<'a> From<&'a Sample> for Outline<'a> {
    fn from(sample: &'a Sample) -> Self {
        Outline { id: &sample.id, label: sample.label, has: sample.has() }
    }
}

/// Deals the training samples and takes modalities away. `recipe` is the set's own ([`Multimodal::recipe`]
/// (super::Multimodal)), `key` the run's. A client that holds nothing is an error.
pub fn draw(config: &ScenarioConfig, train: &[Sample], recipe: &Recipe, key: Key) -> Result<Holdings> {
    let rows: Vec<Outline> = train.iter().map(Outline::from).collect();
    draw_outlines(config, &rows, recipe, key)
}

/// As [`draw`], of what it sees.
pub fn draw_outlines(config: &ScenarioConfig, rows: &[Outline], recipe: &Recipe, key: Key) -> Result<Holdings> {
    config.check()?;
    let (deal, lack) = (config.deal(), config.lack());
    if deal.clients > rows.len() {
        return Err(Error::input(format!("scenario.clients = {} with {} samples", deal.clients, rows.len()))
            .hint("every client needs at least one sample"));
    }
    let labelled = rows.iter().filter(|r| r.label.is_some()).count();
    if labelled != 0 && labelled != rows.len() {
        return Err(Error::data(format!("scenario: {labelled} of {} samples have a label", rows.len()))
            .hint("choices are dealt by label and open questions in shares; do not mix them"));
    }
    let clients = match (deal.draw, labelled > 0) {
        (ScenarioDraw::Keyed, true) => keyed::labelled(&deal, lack, rows, key),
        (ScenarioDraw::Keyed, false) => keyed::shared(&deal, lack, rows, key),
        (ScenarioDraw::Reference, true) => reference::labelled(&deal, lack, rows, recipe),
        (ScenarioDraw::Reference, false) => reference::shared(&deal, lack, rows, recipe),
    }?;
    if let Some(client) = clients.iter().position(Vec::is_empty) {
        return Err(Error::input(format!("scenario: client {client} of {} drew no sample", deal.clients))
            .hint("raise scenario.alpha, or lower scenario.clients"));
    }
    Ok(Holdings { clients })
}

/// Places of the labels' samples, in the order in which labels first appear.
pub(crate) fn by_label(rows: &[Outline]) -> Vec<Vec<u32>> {
    let mut order: Vec<(u32, Vec<u32>)> = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        let label = row.label.unwrap_or_default();
        match order.iter_mut().find(|(known, _)| *known == label) {
            Some((_, list)) => list.push(i as u32),
            None => order.push((label, vec![i as u32])),
        }
    }
    order.into_iter().map(|(_, list)| list).collect()
}

/// Places of the samples with a picture, and of those without.
pub(crate) fn pools(rows: &[Outline]) -> [Vec<u32>; 2] {
    let of = |image: bool| (0..rows.len()).filter(|&i| rows[i].has.image == image).map(|i| i as u32).collect();
    [of(true), of(false)]
}

/// A pool without samples for clients that should hold some.
pub(crate) fn no_samples(what: &str, clients: usize) -> Error {
    Error::input(format!("scenario: no training sample {what} a picture for {clients} clients"))
        .hint("cross and hybrid of open questions need both: VQA-RAD with flashcards is the kind \"medical\"")
}

#[cfg(test)]
mod tests;
