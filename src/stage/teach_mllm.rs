//! A multimodal LLM as teacher: how likely it finds each class's name as its answer about an image.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::embed::Embedder;
use crate::data::{self, Dataset};
use crate::error::{Error, Result};
use crate::exec::{Context, Event, ordered};
use crate::fsx;
use crate::mllm::Instruction;
use crate::model::chat::Message;
use crate::model::clip::Picture;
use crate::model::clip::embed::Features;
use crate::model::hub;
use crate::model::llama::Likelihood;
use crate::model::llava::revision_of;
use crate::model::vlm::Opened;

/// `teacher.kind = "mllm"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MllmTeacher {
    /// A LLaVA, SmolVLM, Qwen2.5-VL or MiniCPM-V: a folder in Hugging Face layout, or an id.
    pub path: String,
    /// What is asked: `short`, another shipped prompt, or a text file.
    pub prompt: String,
    /// The answer whose likelihood counts; `{c}` stands for the class name.
    pub answer: String,
    /// Whether the log-likelihood is divided by the answer's tokens, so that long names are not punished.
    pub length_normalised: bool,
    /// Divides the scores before the softmax.
    pub temperature: f64,
}

impl Default for MllmTeacher {
    fn default() -> Self {
        MllmTeacher {
            path: "llava-hf/llava-1.5-7b-hf".into(),
            prompt: "short".into(),
            answer: "a {c}".into(),
            length_normalised: false,
            temperature: 1.0,
        }
    }
}

/// Class distributions `(ids, classes)`; likelihoods are cached with digests of model, image, question and answers.
pub fn distributions(
    config: &MllmTeacher,
    data: &Dataset,
    ids: &[u32],
    embedder: &Embedder,
    cx: &Context,
) -> Result<Vec<f32>> {
    if config.temperature.is_nan() || config.temperature <= 0.0 {
        return Err(Error::input(format!("teacher.temperature = {}: expected a number above 0", config.temperature)));
    }
    let folder = data::resolve(&config.path).or_else(|_| hub::resolve_until(&config.path, &cx.cancel))?;
    let instruction = Instruction::find(&config.prompt)?;
    let answers: Vec<String> =
        data.classes.iter().map(|c| config.answer.replace("{c}", &c.replace('_', " "))).collect();
    let asked = fsx::sha256(format!("{}\n{}", instruction.digest, answers.join("\n")).as_bytes());
    let item = |i: &u32| fsx::sha256(format!("{} {i} {asked}", data.digest).as_bytes());
    let compute = || likelihoods(&folder, &instruction, &answers, data, ids, cx);
    let items = ids.iter().map(item).collect();
    let rows = embedder.cached(&format!("{} mllm", data.name), &revision_of(&folder)?, items, cx, compute)?;
    let classes = answers.len();
    let mut out = Vec::with_capacity(ids.len() * classes);
    for row in rows.data.chunks_exact(2 * classes) {
        let score = |c: usize| {
            let tokens = if config.length_normalised { row[classes + c].max(1.0) } else { 1.0 };
            f64::from(row[c] / tokens) / config.temperature
        };
        let top = (0..classes).map(score).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = (0..classes).map(|c| (score(c) - top).exp()).collect();
        let sum: f64 = weights.iter().sum();
        out.extend(weights.iter().map(|w| (w / sum) as f32));
    }
    Ok(out)
}

/// For each image the answers' log-likelihoods, then their tokens: `(ids, 2 · classes)`.
fn likelihoods(
    folder: &std::path::Path,
    instruction: &Instruction,
    answers: &[String],
    data: &Dataset,
    ids: &[u32],
    cx: &Context,
) -> Result<Features> {
    let vlm = Opened::open(folder, cx)?.frozen()?;
    let prompt = vlm.write(&[Message::about(1, instruction.text.as_str())], true)?;
    let one = |_: &mut (), n: usize| -> Result<Vec<Likelihood>> {
        cx.cancel.check()?;
        let ([height, width], planes) = data.images.seen(ids[n] as usize)?;
        vlm.likelihoods(&prompt, &[Picture { height, width, pixels: planes }], answers)
    };
    let mut rows = Vec::with_capacity(ids.len() * 2 * answers.len());
    cx.events.on(Event::Begin { name: "MLLM teacher", unit: "image", done: 0, total: ids.len() as u64 });
    let fold = |n: usize, got: Vec<Likelihood>| {
        rows.extend(got.iter().map(|l| l.log as f32));
        rows.extend(got.iter().map(|l| l.tokens as f32));
        cx.events.on(Event::Advance { done: n as u64 + 1, figures: &[] });
        Ok(())
    };
    let workers = if cx.device.is_cpu() { cx.threads } else { 1 };
    ordered(workers, ids.len(), 8 * workers, |_| Ok(()), one, fold)?;
    cx.events.on(Event::End);
    Features::new(2 * answers.len(), rows)
}
