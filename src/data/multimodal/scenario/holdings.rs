//! What clients hold, counted and named.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use crate::data::multimodal::{Modalities, Sample};
use crate::error::{Error, Result};
use crate::fsx;

/// A sample in a client's hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Its place in the training part.
    pub sample: u32,
    /// What of it the client holds.
    pub holds: Modalities,
}

/// Who holds what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Of each client, in its order; every sample is at one client at most.
    pub clients: Vec<Vec<Held>>,
}

/// How many samples of a client are whole, lack one modality, or both; and its labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Mix {
    /// Samples with picture and text.
    pub both: usize,
    /// Samples with the picture alone.
    pub image: usize,
    /// Samples with the text alone.
    pub text: usize,
    /// Samples with neither.
    pub neither: usize,
    /// Samples of each label; empty of open questions.
    pub labels: BTreeMap<u32, usize>,
}

impl Mix {
    /// All of them.
    pub fn total(&self) -> usize {
        self.both + self.image + self.text + self.neither
    }

    /// Of one client.
    pub fn of(held: &[Held], train: &[Sample]) -> Result<Mix> {
        let mut mix = Mix::default();
        for one in held {
            let sample = train.get(one.sample as usize);
            let sample = sample.ok_or_else(|| Error::defect(format!("scenario: no sample {}", one.sample)))?;
            *match (one.holds.image, one.holds.text) {
                (true, true) => &mut mix.both,
                (true, false) => &mut mix.image,
                (false, true) => &mut mix.text,
                (false, false) => &mut mix.neither,
            } += 1;
            if let Some(label) = sample.label {
                *mix.labels.entry(label).or_default() += 1;
            }
        }
        Ok(mix)
    }
}

impl Holdings {
    /// Of each client.
    pub fn mixes(&self, train: &[Sample]) -> Result<Vec<Mix>> {
        self.clients.iter().map(|held| Mix::of(held, train)).collect()
    }

    /// SHA-256 of every client's samples by id, with what it holds of them, in its order.
    pub fn digest(&self, train: &[Sample]) -> Result<String> {
        let mut text = String::new();
        for (client, held) in self.clients.iter().enumerate() {
            text += &format!("client {client}\n");
            for one in held {
                let sample = train.get(one.sample as usize);
                let sample = sample.ok_or_else(|| Error::defect(format!("scenario: no sample {}", one.sample)))?;
                let holds = u8::from(one.holds.image) * 2 + u8::from(one.holds.text);
                text += &format!("{holds} {}\n", sample.id);
            }
        }
        Ok(fsx::sha256(text.as_bytes()))
    }

    /// `{"digest": …, "clients": [{"both", "image", "text", "neither", "labels"}, …]}`.
    pub fn to_json(&self, train: &[Sample]) -> Result<Value> {
        Ok(json!({ "digest": self.digest(train)?, "clients": self.mixes(train)? }))
    }
}
