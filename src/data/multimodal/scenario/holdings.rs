//! What clients hold: counted, named by a digest, and as a file.
//!
//! The file is one JSON object; `clients[k]` lists client k's samples in its order, each with what it holds of it:
//!
//! ```json
//! {"schema": 1, "samples": 8500, "digest": "…", "clients": [[["42953", "both"], ["23058", "image"], …], …]}
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::data::multimodal::{Modalities, Sample};
use crate::error::{Error, Place, Result};
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

const SCHEMA: u32 = 1;

/// What a file says.
#[derive(Deserialize)]
struct File {
    schema: u32,
    samples: usize,
    digest: String,
    clients: Vec<Vec<(String, String)>>,
}

impl File {
    fn holdings(self, train: &[Sample]) -> Result<Holdings> {
        if self.schema > SCHEMA {
            return Err(Error::data(format!("schema {} is newer than this program's {SCHEMA}", self.schema)));
        }
        if self.samples != train.len() {
            return Err(Error::data(format!("made for {} samples, there are {}", self.samples, train.len())));
        }
        let places: BTreeMap<&str, u32> = train.iter().enumerate().map(|(i, s)| (s.id.as_str(), i as u32)).collect();
        let mut taken = BTreeSet::new();
        let mut one = |(id, holds): &(String, String)| {
            let sample =
                *places.get(id.as_str()).ok_or_else(|| Error::data(format!("no training sample is called {id}")))?;
            if !taken.insert(sample) {
                return Err(Error::data(format!("sample {id} is held twice")));
            }
            let known = WORDS.iter().find(|(_, word)| word == holds).map(|(holds, _)| *holds);
            let strange = || Error::data(format!("sample {id}: both, image, text or neither, not {holds:?}"));
            Ok(Held { sample, holds: known.ok_or_else(strange)? })
        };
        let mut clients = Vec::new();
        for list in &self.clients {
            clients.push(list.iter().map(&mut one).collect::<Result<Vec<_>>>()?);
        }
        let holdings = Holdings { clients };
        let found = holdings.digest(train)?;
        match found == self.digest {
            true => Ok(holdings),
            false => Err(Error::data(format!("digest is {} in the file, but its contents give {found}", self.digest))),
        }
    }
}

const WORDS: [(Modalities, &str); 4] = [
    (Modalities::BOTH, "both"),
    (Modalities::IMAGE, "image"),
    (Modalities::TEXT, "text"),
    (Modalities::NEITHER, "neither"),
];

fn word(holds: Modalities) -> &'static str {
    WORDS.iter().find(|(known, _)| *known == holds).map_or("neither", |(_, word)| word)
}

fn sample(train: &[Sample], at: u32) -> Result<&Sample> {
    train.get(at as usize).ok_or_else(|| Error::defect(format!("scenario: no sample {at}")))
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
            let sample = sample(train, one.sample)?;
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
                text += &format!("{} {}\n", word(one.holds), sample(train, one.sample)?.id);
            }
        }
        Ok(fsx::sha256(text.as_bytes()))
    }

    /// Writes the file of this module's head, whole or not at all.
    pub fn export(&self, train: &[Sample], path: &Path) -> Result<()> {
        let one = |held: &Held| Ok((sample(train, held.sample)?.id.as_str(), word(held.holds)));
        let clients: Vec<Vec<(&str, &str)>> =
            self.clients.iter().map(|held| held.iter().map(one).collect()).collect::<Result<_>>()?;
        let file = json!({
            "schema": SCHEMA, "samples": train.len(), "digest": self.digest(train)?, "clients": clients,
        });
        fsx::write_atomic(path, file.to_string().as_bytes())
    }

    /// Reads what [`Holdings::export`] wrote, for the same training samples; what does not fit them is refused.
    pub fn import(train: &[Sample], path: &Path) -> Result<Holdings> {
        let file: File = fsx::read_json(path)?;
        file.holdings(train).at(|| path.display().to_string())
    }

    /// `{"digest": …, "clients": [{"both", "image", "text", "neither", "labels"}, …]}`.
    pub fn to_json(&self, train: &[Sample]) -> Result<Value> {
        Ok(json!({ "digest": self.digest(train)?, "clients": self.mixes(train)? }))
    }
}
