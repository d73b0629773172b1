//! One example of a multimodal set: what is seen, what is read, what is asked, and what is right.

use std::collections::BTreeMap;
use std::sync::Arc;

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::data::pool::Source;
use crate::error::{Error, Place, Result};
use crate::fsx;

/// One example, whole: a scenario says what of it a client holds.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Unique within its part.
    pub id: String,
    /// Where its picture lies, if it has one; see [`Source::rgb`].
    pub picture: Option<Source>,
    /// A text beside the question (a meme's, a tweet), if it has one.
    pub text: Option<String>,
    /// What is asked.
    pub ask: Ask,
    /// What is right: of a choice the option's own words, else the answer.
    pub target: String,
    /// Of a choice, the right option's number; what a Dirichlet partition goes by.
    pub label: Option<u32>,
    /// By what its score is told apart.
    pub facets: Facets,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// One of several options.
    Choice(Arc<Choice>),
    /// A question with an answer of its own words.
    Open(String),
}

/// A question with options, the same for every sample of a set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// The question without a word about modalities; it ends with a question mark.
    pub question: String,
    /// The options' words in the order of their letters, at most 26.
    pub options: Vec<String>,
    /// Whether the published question names the image before the text.
    pub image_first: bool,
}

impl Choice {
    /// The letter of option `index`: A, B, …
    pub fn letter(index: usize) -> char {
        char::from(b'A' + (index % 26) as u8)
    }
}

/// By what a score is told apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facets {
    /// Open or closed, where the set says so.
    pub answer_type: Option<AnswerType>,
    /// The rest: kind of question, language, organ, … by name.
    pub more: BTreeMap<&'static str, String>,
}

/// Whether a question can be answered with a word that it contains, as VQA-RAD and SLAKE tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnswerType {
    /// Free words.
    Open,
    /// Yes or no, or one of the alternatives that the question names.
    Closed,
}

/// Which of picture and text there are: of a sample, or in a client's hands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Modalities {
    /// The picture.
    pub image: bool,
    /// The text.
    pub text: bool,
}

impl Modalities {
    /// Both.
    pub const BOTH: Modalities = Modalities { image: true, text: true };
    /// The picture alone.
    pub const IMAGE: Modalities = Modalities { image: true, text: false };
    /// The text alone.
    pub const TEXT: Modalities = Modalities { image: false, text: true };
    /// Neither.
    pub const NEITHER: Modalities = Modalities { image: false, text: false };

    /// What is in both.
    pub fn and(self, other: Modalities) -> Modalities {
        Modalities { image: self.image && other.image, text: self.text && other.text }
    }
}

impl Sample {
    /// Its picture in its own size, upright; none where it has none.
    pub fn image(&self) -> Result<Option<RgbImage>> {
        let read = |picture: &Source| picture.rgb().at(|| format!("the picture of sample {}", self.id));
        self.picture.as_ref().map(read).transpose()
    }

    /// SHA-256 of all that it says, and of what another picture in its place would hardly have: a file's name and size, else
    /// the picture itself.
    pub fn digest(&self) -> Result<String> {
        let picture = match &self.picture {
            None => String::new(),
            Some(Source::File(path)) => {
                let size = std::fs::metadata(path).map_err(|e| Error::io("look at", path, e))?.len();
                format!("{} {size}", path.file_name().unwrap_or_default().to_string_lossy())
            }
            Some(other) => fsx::sha256(&other.bytes()?),
        };
        let (question, options) = match &self.ask {
            Ask::Choice(choice) => (choice.question.as_str(), choice.options.join("\n")),
            Ask::Open(question) => (question.as_str(), String::new()),
        };
        let text = self.text.as_ref().map_or_else(String::new, |text| format!("={text}"));
        let pieces = [&self.id, &picture, &text, question, &options, &self.target];
        Ok(fsx::hex(fsx::proof(&pieces.map(str::as_bytes))))
    }

    /// What it has. A question alone is a text: who holds it lacks the picture.
    pub fn has(&self) -> Modalities {
        let alone = self.picture.is_none() && matches!(self.ask, Ask::Open(_));
        Modalities { image: self.picture.is_some(), text: self.text.is_some() || alone }
    }

    /// What of it who holds `holds` sees: the picture and the text beside the question.
    pub fn seen(&self, holds: Modalities) -> (Option<&Source>, Option<&str>) {
        (self.picture.as_ref().filter(|_| holds.image), self.text.as_deref().filter(|_| holds.text))
    }
}
