//! What all families do alike: embeddings with pictures in them, logits, losses, answers.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::{Ask, Pixels, Prompt, Sample, Target, Vlm};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::model::chat::{Message, Part, Role};
use crate::model::clip::Picture;
use crate::model::graph::Sink;
use crate::model::llama::{Likelihood, Places, Prompts, Written, behind};

/// See [`Vlm::embed`].
pub fn embed<V: Vlm + ?Sized>(vlm: &V, prompt: &Prompt) -> Result<Tensor> {
    let seen = features(vlm, &[prompt])?.pop().flatten();
    placed(vlm, prompt, seen.as_ref())
}

/// What the pictures of each prompt are to the language model, `(places, hidden)`; what was not seen before goes through
/// the tower together.
fn features<V: Vlm + ?Sized>(vlm: &V, prompts: &[&Prompt]) -> Result<Vec<Option<Tensor>>> {
    let places = |p: &Prompt| p.slots.iter().map(ExactSizeIterator::len).sum::<usize>();
    let new = |p: &Prompt| p.features.is_none() && places(p) > 0;
    let pictures: Vec<Pixels> = prompts.iter().filter(|p| new(p)).flat_map(|p| p.pictures.iter().cloned()).collect();
    let seen = if pictures.is_empty() { None } else { Some(vlm.see(&pictures)?) };
    let wanted: usize = prompts.iter().filter(|p| new(p)).map(|p| places(p)).sum();
    let given = seen.as_ref().map_or(Ok(0), |s| s.dim(0))?;
    if given != wanted {
        return Err(Error::defect(format!("prompts with {wanted} places for pictures, {given} features")));
    }
    let mut at = 0;
    let of = |p: &&Prompt| match (&seen, new(p)) {
        (Some(seen), true) => {
            at += places(p);
            Ok(Some(seen.narrow(0, at - places(p), places(p))?))
        }
        _ => Ok(p.features.clone()),
    };
    prompts.iter().map(of).collect()
}

/// Embeddings of a prompt with features in its slots.
fn placed<V: Vlm + ?Sized>(vlm: &V, prompt: &Prompt, features: Option<&Tensor>) -> Result<Tensor> {
    let llm = vlm.llm();
    let Some(features) = features else { return llm.embed(std::slice::from_ref(&prompt.ids)) };
    let features = features.to_dtype(llm.dtype())?.unsqueeze(0)?;
    let (mut parts, mut at, mut seen) = (Vec::new(), 0, 0);
    for slot in &prompt.slots {
        if at < slot.start {
            parts.push(llm.embed(&[prompt.ids[at..slot.start].to_vec()])?);
        }
        parts.push(features.narrow(1, seen, slot.len())?);
        (at, seen) = (slot.end, seen + slot.len());
    }
    if at < prompt.ids.len() {
        parts.push(llm.embed(&[prompt.ids[at..].to_vec()])?);
    }
    Ok(Tensor::cat(&parts, 1)?)
}

/// Places of a batch, if any row has its own; the others count on.
fn places(prompts: &[&Prompt]) -> Option<Vec<Places>> {
    prompts.iter().any(|p| p.places.is_some()).then(|| {
        let counting = |n: usize| Places { axes: (0..n as u32).map(|i| [i; 3]).collect(), shift: 0 };
        prompts.iter().map(|p| p.places.clone().unwrap_or_else(|| counting(p.ids.len()))).collect()
    })
}

/// See [`Vlm::hidden`].
pub fn hidden<V: Vlm + ?Sized>(vlm: &V, prompt: &Prompt) -> Result<Tensor> {
    let places = places(&[prompt]);
    Ok(vlm.llm().hidden_at(&embed(vlm, prompt)?, places.as_deref(), None)?.squeeze(0)?)
}

/// See [`Vlm::logits`].
pub fn logits<V: Vlm + ?Sized>(vlm: &V, prompt: &Prompt) -> Result<Tensor> {
    Ok(vlm.llm().logits(&hidden(vlm, prompt)?)?.to_dtype(DType::F32)?)
}

/// Embeddings of prompts with so many zeros before and behind each, `(rows, tokens, hidden)`.
fn rows<V: Vlm + ?Sized>(vlm: &V, prompts: &[&Prompt], pads: &[[usize; 2]]) -> Result<Tensor> {
    let seen = features(vlm, prompts)?;
    let mut rows = Vec::with_capacity(prompts.len());
    for ((prompt, seen), [before, behind]) in prompts.iter().zip(&seen).zip(pads) {
        rows.push(placed(vlm, prompt, seen.as_ref())?.pad_with_zeros(1, *before, *behind)?);
    }
    Ok(Tensor::cat(&rows, 0)?)
}

/// Rows aligned at their starts, `(rows, longest, hidden)`; causal rows do not see what is behind them.
fn filled<V: Vlm + ?Sized>(vlm: &V, prompts: &[&Prompt]) -> Result<(Tensor, usize)> {
    let longest = prompts.iter().map(|p| p.ids.len()).max().unwrap_or(0);
    if longest == 0 {
        return Err(Error::input("no prompt, or one without a token"));
    }
    let pads: Vec<[usize; 2]> = prompts.iter().map(|p| [0, longest - p.ids.len()]).collect();
    Ok((rows(vlm, prompts, &pads)?, longest))
}

/// See [`Vlm::next_logits`].
pub fn next_logits<V: Vlm + ?Sized>(vlm: &V, prompts: &[&Prompt]) -> Result<Tensor> {
    let (x, longest) = filled(vlm, prompts)?;
    let hidden = vlm.llm().hidden_at(&x, places(prompts).as_deref(), None)?;
    let at: Vec<u32> = prompts.iter().enumerate().map(|(i, p)| (i * longest + p.ids.len() - 1) as u32).collect();
    let last = hidden.flatten(0, 1)?.index_select(&Tensor::new(at, x.device())?, 0)?;
    Ok(vlm.llm().logits(&last)?.to_dtype(DType::F32)?)
}

/// See [`Vlm::loss`].
pub fn loss<V: Vlm + ?Sized>(vlm: &V, samples: &[&Sample], sink: Option<&Arc<Sink>>) -> Result<Tensor> {
    let prompts: Vec<&Prompt> = samples.iter().map(|s| &s.prompt).collect();
    let (x, longest) = filled(vlm, &prompts)?;
    let (mut at, mut tokens) = (Vec::new(), Vec::new());
    for (i, sample) in samples.iter().enumerate() {
        at.extend(sample.targets.iter().map(|t| (i * longest) as u32 + t.at));
        tokens.extend(sample.targets.iter().map(|t| t.token));
    }
    if tokens.is_empty() {
        return Err(Error::input("a batch without a token to be learnt"));
    }
    let (llm, places) = (vlm.llm(), places(&prompts));
    let hidden = match sink {
        Some(sink) => llm.hidden_into(&x, places.as_deref(), sink)?,
        None => llm.hidden_at(&x, places.as_deref(), None)?,
    };
    let hidden = hidden.flatten(0, 1)?.index_select(&Tensor::new(at, x.device())?, 0)?;
    let scores = llm.logits(&hidden)?.to_dtype(DType::F32)?;
    Ok(candle_nn::loss::cross_entropy(&scores, &Tensor::new(tokens, x.device())?)?)
}

/// See [`Vlm::answer`].
pub fn answer<V: Vlm + ?Sized>(vlm: &V, ask: &Ask, heard: &mut dyn FnMut(usize, u32) -> Result<()>) -> Result<Written> {
    let prompts = ask.prompts;
    let longest = prompts.iter().map(|p| p.ids.len()).max().unwrap_or(0);
    let pads: Vec<usize> = prompts.iter().map(|p| longest - p.ids.len()).collect();
    let before: Vec<[usize; 2]> = pads.iter().map(|&pad| [pad, 0]).collect();
    let embeddings = rows(vlm, prompts, &before)?;
    let keys = match ask.keys.is_empty() {
        true => vec![Key::from_seed(0); prompts.len()],
        false => ask.keys.to_vec(),
    };
    let all = Prompts { embeddings, pads, keys, places: places(prompts) };
    vlm.llm().write(&all, ask.decoding, vlm.stop(), ask.cancel, heard)
}

/// See [`Vlm::likelihoods`].
pub fn likelihoods<V: Vlm + ?Sized>(
    vlm: &V,
    text: &str,
    pictures: &[Picture],
    answers: &[String],
) -> Result<Vec<Likelihood>> {
    let prompt = vlm.read(text, pictures)?;
    let encode = |text: &str| vlm.tokenizer().encode(text);
    let rows = answers.iter().map(|a| behind(text, a, encode)).collect::<Result<Vec<_>>>()?;
    let places = places(&[&prompt]);
    vlm.llm().likelihoods(&embed(vlm, &prompt)?, places.as_deref(), &rows)
}

/// See [`Vlm::sample`].
pub fn sample<V: Vlm + ?Sized>(vlm: &V, messages: &[Message], pictures: &[Picture]) -> Result<Sample> {
    let Some((answer, before)) = messages.split_last().filter(|(m, _)| m.role == Role::Assistant) else {
        return Err(Error::input("a conversation to learn from ends with an answer"));
    };
    let (asked, told) = (vlm.write(before, true)?, vlm.write(messages, false)?);
    if let Some(rest) = told.strip_prefix(asked.as_str()) {
        return vlm.sample_written(&asked, rest.trim_end(), pictures);
    }
    // A template that does not write answers as it asks for them.
    let words: Vec<&str> =
        answer.parts.iter().filter_map(|p| if let Part::Text(t) = p { Some(t.as_str()) } else { None }).collect();
    let gap = if asked.ends_with(char::is_whitespace) { "" } else { " " };
    vlm.sample_written(&asked, &format!("{gap}{}", words.join(" ").trim()), pictures)
}

/// See [`Vlm::sample_written`].
pub fn sample_written<V: Vlm + ?Sized>(vlm: &V, prompt: &str, answer: &str, pictures: &[Picture]) -> Result<Sample> {
    let asked = vlm.read(prompt, pictures)?;
    let mut told = vlm.read(&format!("{prompt}{answer}"), pictures)?;
    let from = asked.ids.iter().zip(&told.ids).take_while(|(a, b)| a == b).count();
    // Behind the end mark nothing is learnt; a template that writes none gets one.
    match told.ids[from..].iter().position(|id| vlm.stop().contains(id)) {
        Some(end) => told.ids.truncate(from + end + 1),
        None => told.ids.extend(vlm.tokenizer().eos().or(vlm.stop().first().copied())),
    }
    if let Some(places) = &mut told.places {
        let known = places.axes.len();
        places.axes.truncate(told.ids.len());
        places.axes.extend((known..told.ids.len()).map(|i| [(i as i64 + places.shift) as u32; 3]));
    }
    let context = vlm.llm().config().max_position_embeddings;
    if told.ids.len() > context {
        return Err(Error::data(format!(
            "a sample of {} tokens exceeds the model's context of {context}",
            told.ids.len()
        ))
        .hint("smaller pictures, or a shorter text")
        .isolated());
    }
    if from == 0 || from >= told.ids.len() {
        return Err(Error::data("an answer without a token"));
    }
    let target = |i: usize| Target { at: i as u32 - 1, token: told.ids[i] };
    let targets = (from..told.ids.len()).map(target).collect();
    Ok(Sample { prompt: told, targets })
}
