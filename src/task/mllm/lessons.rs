//! What clients hold, in the model's tokens.

use std::borrow::Cow;
use std::sync::Arc;

use crate::data::census::{Census, Why};
use crate::data::decode;
use crate::data::multimodal::scenario::Holdings;
use crate::data::multimodal::{Modalities, Multimodal, Sample as Example};
use crate::error::{Error, Place, Result};
use crate::exec::{self, Context, Event};
use crate::key::Key;
use crate::mllm::wording::{Prompts, Worded};
use crate::model::chat::{Message, Role};
use crate::model::clip::Picture;
use crate::model::vlm::{Prompt, Sample, Vlm};
use crate::nn::{Batch, Samples, View};

/// Samples that are under way at once while they are prepared.
const WINDOW: usize = 64;

/// Pictures that are prepared once and kept, as far as memory was granted.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Bytes.
    pub budget: usize,
    /// Whether what the pictures are to the language model can be kept: nothing that they go through is trained.
    pub features: bool,
}

/// A lesson: a sample as one client holds it.
#[derive(Clone, Debug)]
struct Lesson {
    /// Its place among the training samples.
    sample: usize,
    holds: Modalities,
    /// All of it, where it was kept.
    whole: Option<Arc<Sample>>,
}

/// All lessons of all clients, numbered client by client.
pub struct Lessons {
    vlm: Arc<dyn Vlm>,
    prompts: Prompts,
    examples: Vec<Example>,
    lessons: Vec<Lesson>,
    labels: Vec<u32>,
    features: bool,
    /// The lessons of each client.
    pub clients: Vec<Vec<u32>>,
    /// Of a mean lesson's forward pass.
    pub multiply_adds: u64,
    /// What was taken, and what was not.
    pub census: Census,
    /// Tokens of the longest lesson.
    pub longest: usize,
}

impl Lessons {
    /// Prepares every lesson once, for its length; keeps what fits. Lessons above `max_length` tokens are left out.
    pub fn prepare(
        vlm: Arc<dyn Vlm>,
        set: &Multimodal,
        holdings: &Holdings,
        prompts: Prompts,
        max_length: usize,
        keep: Keep,
        cx: &Context,
    ) -> Result<Self> {
        let examples = set.train.samples.clone();
        let held: Vec<(usize, Lesson)> = holdings
            .clients
            .iter()
            .enumerate()
            .flat_map(|(client, held)| {
                held.iter().map(move |h| (client, Lesson { sample: h.sample as usize, holds: h.holds, whole: None }))
            })
            .collect();
        let mut all = Lessons {
            vlm,
            prompts,
            examples,
            lessons: Vec::new(),
            labels: Vec::new(),
            features: keep.features,
            clients: vec![Vec::new(); holdings.clients.len()],
            multiply_adds: 0,
            census: Census::new("the clients' samples", "samples"),
            longest: 0,
        };
        let (mut left, mut tokens) = (keep.budget, 0usize);
        let made = {
            let (all, mut made) = (&all, Vec::with_capacity(held.len()));
            cx.events.on(Event::Begin { name: "prepare", unit: "sample", done: 0, total: held.len() as u64 });
            let job = |_: &mut (), i: usize| {
                cx.cancel.check()?;
                let lesson = &held[i].1;
                // A text that no model of this context could read is not shown to it.
                let most = max_length.min(all.vlm.llm().config().max_position_embeddings);
                if all.words(lesson)? > most {
                    return Ok(Err(None));
                }
                match all.make(lesson) {
                    Err(e) if e.is_isolated() => Ok(Err(None)), // Its picture or its end mark made it too long.
                    Err(e) if e.message().starts_with("not a readable image") => Ok(Err(Some(e.message().to_string()))),
                    made => made.map(Ok),
                }
            };
            let threads = if cx.device.is_cpu() { cx.threads } else { 1 };
            exec::ordered(
                threads,
                held.len(),
                WINDOW,
                |_| Ok(()),
                job,
                |i, sample: Result<Sample, Option<String>>| {
                    let unreadable = sample.as_ref().err().cloned().flatten();
                    let sample = sample.ok();
                    let length = sample.as_ref().map_or(usize::MAX, |s| s.prompt.ids.len());
                    let kept = sample.filter(|s| length <= max_length && bytes(&s.prompt) <= left);
                    left -= kept.as_ref().map_or(0, |s| bytes(&s.prompt));
                    made.push((length, kept.map(Arc::new), unreadable));
                    cx.events.on(Event::Advance { done: i as u64 + 1, figures: &[] });
                    Ok(())
                },
            )?;
            cx.events.on(Event::End);
            made
        };
        for ((client, lesson), (length, whole, unreadable)) in held.into_iter().zip(made) {
            let example = &all.examples[lesson.sample];
            if let Some(why) = unreadable {
                all.census.pass(Why::Unreadable, format!("{}: {why}", example.id));
                continue;
            }
            if length > max_length {
                all.census.pass(Why::TooLong, example.id.clone());
                continue;
            }
            all.clients[client].push(all.lessons.len() as u32);
            all.labels.push(example.label.unwrap_or(0));
            all.lessons.push(Lesson { whole, ..lesson });
            all.census.read += 1;
            all.longest = all.longest.max(length);
            tokens += length;
        }
        if all.lessons.is_empty() {
            return Err(Error::input(format!(
                "no client has a sample of {max_length} tokens and less; {}",
                all.census.line()
            ))
            .hint("raise task.max_length"));
        }
        all.multiply_adds = per_token(&*all.vlm) * (tokens / all.lessons.len()) as u64;
        Ok(all)
    }

    /// A lesson by its number.
    pub fn sample(&self, id: u32) -> Result<Arc<Sample>> {
        let lesson = self.lessons.get(id as usize);
        let lesson = lesson.ok_or_else(|| Error::defect(format!("lesson {id} of {}", self.lessons.len())))?;
        match &lesson.whole {
            Some(whole) => Ok(whole.clone()),
            None => self.make(lesson).map(Arc::new),
        }
    }

    /// Tokens of what is said, pictures left out.
    fn words(&self, lesson: &Lesson) -> Result<usize> {
        let worded = self.prompts.training(&self.examples[lesson.sample], lesson.holds);
        let talk = [Message::about(0, worded.ask.as_str()), Message::text(Role::Assistant, worded.answer.as_str())];
        Ok(self.vlm.tokenizer().encode(&self.vlm.write(&talk, false)?)?.len())
    }

    fn make(&self, lesson: &Lesson) -> Result<Sample> {
        let example = &self.examples[lesson.sample];
        let worded = self.prompts.training(example, lesson.holds);
        let make = || -> Result<Sample> {
            let (ask, pictures) = asked(example, &worded)?;
            let talk = [ask, Message::text(Role::Assistant, worded.answer.as_str())];
            let mut sample = self.vlm.sample(&talk, &pictures)?;
            if self.features {
                see(&*self.vlm, &mut sample.prompt)?;
            }
            Ok(sample)
        };
        make().at(|| format!("sample {}", example.id))
    }
}

/// A worded question as a message, with its picture.
pub(super) fn asked(example: &Example, worded: &Worded) -> Result<(Message, Vec<Picture<'static>>)> {
    let mut pictures = Vec::new();
    if let (true, Some(source)) = (worded.picture, &example.picture) {
        let image = source.rgb()?;
        let (height, width) = (image.height() as usize, image.width() as usize);
        pictures.push(Picture { height, width, pixels: Cow::Owned(decode::to_planes(&image)) });
    }
    Ok((Message::about(pictures.len(), worded.ask.as_str()), pictures))
}

/// Computes what a prompt's pictures are to the language model and lets the pixels go.
pub(super) fn see(vlm: &dyn Vlm, prompt: &mut Prompt) -> Result<()> {
    vlm.look(prompt)?;
    if prompt.features.is_some() {
        prompt.pictures = Vec::new();
    }
    Ok(())
}

/// What a prompt takes of memory.
pub(super) fn bytes(prompt: &Prompt) -> usize {
    let features = prompt.features.as_ref().map_or(0, |f| f.elem_count() * f.dtype().size_in_bytes());
    let tensors = prompt.pictures.iter().flat_map(|p| &p.tensors);
    let pixels: usize = tensors.map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum();
    4 * prompt.ids.len() + features + pixels
}

/// Multiply-adds of the language model's linear layers for one token; attention over the text comes on top.
fn per_token(vlm: &dyn Vlm) -> u64 {
    let c = vlm.llm().config();
    let n = |x: usize| x as u64;
    let (d, q) = (n(c.hidden_size), n(c.num_attention_heads * c.head_dim));
    let kv = n(c.num_key_value_heads * c.head_dim);
    n(c.num_hidden_layers) * (d * (2 * q + 2 * kv) + 3 * d * n(c.intermediate_size)) + d * n(c.vocab_size)
}

impl Samples for Lessons {
    /// A row is its lesson's number.
    fn fill(&self, ids: &[u32], _: View, _: Key, batch: &mut Batch) -> Result<()> {
        batch.x = ids.iter().map(|&id| id as f32).collect();
        batch.y = ids.iter().map(|&id| self.labels[id as usize]).collect();
        batch.ids = ids.to_vec();
        batch.rows = vec![ids.len()];
        Ok(())
    }

    fn labels(&self) -> &[u32] {
        &self.labels
    }
}
