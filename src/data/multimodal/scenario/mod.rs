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

/// Which scenario.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScenarioKind {
    /// Every client holds all of its samples.
    #[default]
    Aligned,
    /// Every sample loses each modality with probability `beta`.
    Missing,
    /// Some clients hold pictures alone, the others texts alone.
    Cross,
    /// Every client holds each modality with probability `keep`.
    Hybrid,
}

impl ScenarioKind {
    fn word(self) -> &'static str {
        match self {
            ScenarioKind::Aligned => "aligned",
            ScenarioKind::Missing => "missing",
            ScenarioKind::Cross => "cross",
            ScenarioKind::Hybrid => "hybrid",
        }
    }
}

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

/// The scenario: how samples are dealt, and who lacks what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScenarioConfig {
    /// Which scenario.
    pub kind: ScenarioKind,
    /// Clients, at least 1.
    pub clients: usize,
    /// Concentration of the Dirichlet draw over clients, > 0: small is uneven. Samples without labels do not use it.
    pub alpha: f64,
    /// Of `missing`: probability that a sample loses its picture, and that it loses its text, in [0, 1].
    pub beta: Option<f64>,
    /// Of `cross`: how many clients hold pictures alone.
    pub images: Option<usize>,
    /// Of `hybrid`: probability that a client holds pictures, and that it holds texts, in [0, 1].
    pub keep: Option<f64>,
    /// Where the draws come from.
    pub draw: ScenarioDraw,
    /// A seed of its own; without it the run's, or the published one.
    pub seed: Option<u32>,
}

impl Default for ScenarioConfig {
    fn default() -> Self {
        ScenarioConfig {
            kind: ScenarioKind::Aligned,
            clients: 10,
            alpha: 0.5,
            beta: None,
            images: None,
            keep: None,
            draw: ScenarioDraw::Keyed,
            seed: None,
        }
    }
}

/// A scenario, checked: its kind with the value that it needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scene {
    Aligned,
    Missing { beta: f64 },
    Cross { images: usize },
    Hybrid { keep: f64 },
}

impl ScenarioConfig {
    /// Refuses values that no data could make right.
    pub fn check(&self) -> Result<()> {
        self.scene().map(|_| ())
    }

    pub(crate) fn scene(&self) -> Result<Scene> {
        if self.clients == 0 {
            return Err(Error::input("scenario.clients = 0: the smallest is 1"));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(Error::input(format!("scenario.alpha = {} is not a positive number", self.alpha)));
        }
        let given = [("beta", self.beta.is_some()), ("images", self.images.is_some()), ("keep", self.keep.is_some())];
        let kind = self.kind.word();
        let own = match self.kind {
            ScenarioKind::Aligned => "",
            ScenarioKind::Missing => "beta",
            ScenarioKind::Cross => "images",
            ScenarioKind::Hybrid => "keep",
        };
        if let Some((key, _)) = given.iter().find(|(key, given)| *given && *key != own) {
            return Err(Error::input(format!("scenario.{key} is not a key of scenario.kind = {kind:?}"))
                .hint("missing has beta, cross has images, hybrid has keep"));
        }
        let needed = || Error::input(format!("scenario.kind = {kind:?} needs scenario.{own}"));
        let share = |value: Option<f64>| {
            let value = value.ok_or_else(needed)?;
            match (0.0..=1.0).contains(&value) {
                true => Ok(value),
                false => Err(Error::input(format!("scenario.{own} = {value} is not between 0 and 1"))),
            }
        };
        Ok(match self.kind {
            ScenarioKind::Aligned => Scene::Aligned,
            ScenarioKind::Missing => Scene::Missing { beta: share(self.beta)? },
            ScenarioKind::Cross => match self.images.ok_or_else(needed)? {
                images if images <= self.clients => Scene::Cross { images },
                images => {
                    let clients = self.clients;
                    return Err(Error::input(format!("scenario.images = {images} of {clients} clients")));
                }
            },
            ScenarioKind::Hybrid => Scene::Hybrid { keep: share(self.keep)? },
        })
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
    let scene = config.scene()?;
    if config.clients > rows.len() {
        return Err(Error::input(format!("scenario.clients = {} with {} samples", config.clients, rows.len()))
            .hint("every client needs at least one sample"));
    }
    let labelled = rows.iter().filter(|r| r.label.is_some()).count();
    if labelled != 0 && labelled != rows.len() {
        return Err(Error::data(format!("scenario: {labelled} of {} samples have a label", rows.len()))
            .hint("choices are dealt by label and open questions in shares; do not mix them"));
    }
    let clients = match (config.draw, labelled > 0) {
        (ScenarioDraw::Keyed, true) => keyed::labelled(config, scene, rows, key),
        (ScenarioDraw::Keyed, false) => keyed::shared(config, scene, rows, key),
        (ScenarioDraw::Reference, true) => reference::labelled(config, scene, rows, recipe),
        (ScenarioDraw::Reference, false) => reference::shared(config, scene, rows, recipe),
    }?;
    if let Some(client) = clients.iter().position(Vec::is_empty) {
        return Err(Error::input(format!("scenario: client {client} of {} drew no sample", config.clients))
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
