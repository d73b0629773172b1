//! What local work gives, and what of it leaves the client, as data: outcomes, parts, replies.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::brief::{Job, MODEL, Name};
use crate::error::{Error, Result};
use crate::nn::{Layout, Named, Params, Role};

/// What local work produced.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The trained parameters, buffers included; the server's model where nothing was trained.
    pub params: Params,
    /// What measuring steps found, and every result that has a name of its own.
    pub found: Named,
    /// Samples the client holds.
    pub samples: usize,
    /// Of each class; empty where images have no labels.
    pub counts: Vec<u32>,
    /// Optimiser steps taken.
    pub steps: usize,
    /// Mean loss over the samples seen in training; none where nothing was trained.
    pub loss: Option<f64>,
    /// Multiply-adds of all forward and backward passes.
    pub multiply_adds: u64,
}

impl Outcome {
    /// What a step found under this name.
    pub fn found(&self, name: &str) -> Result<&Params> {
        self.found.get(name).ok_or_else(|| Error::defect(format!("outcome: no step found {name}")))
    }
}

/// What a part of a reply is, so that clipping, noise and compression know what they touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// A step: weights as differences from what was sent, buffers as values.
    Delta,
    /// A value.
    Value,
}

/// A named part of a reply.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name: `model`, `control`.
    pub name: Name,
    /// Step or value.
    pub kind: PartKind,
    /// The numbers.
    pub data: Params,
    /// Its weight in the mean.
    pub weight: f64,
}

impl Part {
    /// A value with weight 1.
    pub fn value(name: impl Into<Name>, data: Params) -> Self {
        Part { name: name.into(), kind: PartKind::Value, data, weight: 1.0 }
    }
}

/// What a client sends back.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The parts.
    pub parts: Vec<Part>,
    /// Samples of the client, for the record.
    pub samples: usize,
    /// Mean training loss, where it trained.
    pub loss: Option<f64>,
    /// Multiply-adds spent, for the record.
    pub multiply_adds: u64,
    /// What it went through on its way.
    pub wire: Wire,
}

/// What a reply went through on its way to the server.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    /// Bytes of the parts that were encoded; the others have four a number.
    pub coded: BTreeMap<Name, u64>,
    /// The parts under a mask, in place of themselves.
    pub sealed: Option<Sealed>,
    /// Whether it came too late to be taken.
    pub late: bool,
}

/// Parts as integers under a mask: alone they say nothing, and they add up.
#[derive(Clone, Debug, PartialEq)]
pub struct Sealed {
    /// What the integers are, part by part: numbers times weight, then the weight.
    pub parts: Vec<(Name, PartKind, Arc<Layout>)>,
    /// The integers, modulo a power of two.
    pub words: Vec<u64>,
    /// Bytes of each.
    pub width: u64,
}

impl Reply {
    /// The usual reply: the model as a step, with this weight in the mean.
    pub fn model(job: &Job, outcome: Outcome, weight: f64) -> Self {
        let mut reply = Reply::of(&outcome, Vec::new());
        let data = difference(outcome.params, &job.model);
        reply.parts.push(Part { name: MODEL.into(), kind: PartKind::Delta, data, weight });
        reply
    }

    /// These parts alone.
    pub fn of(outcome: &Outcome, parts: Vec<Part>) -> Self {
        let Outcome { samples, loss, multiply_adds, .. } = *outcome;
        Reply { parts, samples, loss, multiply_adds, wire: Wire::default() }
    }

    /// The part called `name`.
    pub fn part(&self, name: &str) -> Result<&Part> {
        let none = || Error::defect(format!("reply: no part is called {name}"));
        self.parts.iter().find(|p| p.name == name).ok_or_else(none)
    }

    /// Bytes that the client sends.
    pub fn bytes_up(&self) -> u64 {
        let raw = |p: &Part| 4 * p.data.data().len() as u64;
        let plain = self.parts.iter().map(|p| self.wire.coded.get(&p.name).copied().unwrap_or_else(|| raw(p)));
        plain.sum::<u64>() + self.wire.sealed.as_ref().map_or(0, |s| s.width * s.words.len() as u64)
    }
}

/// `a − b` in the weights, `a` in the buffers.
pub fn difference(mut a: Params, b: &Params) -> Params {
    let ranges = a.layout().ranges(Role::Weight);
    let data = a.data_mut();
    for range in ranges {
        data[range.clone()].iter_mut().zip(&b.data()[range]).for_each(|(x, y)| *x -= y);
    }
    a
}

/// `b + step` in the weights, the step's values in the buffers: what [`difference`] took apart.
pub fn applied(mut step: Params, b: &Params) -> Params {
    let ranges = step.layout().ranges(Role::Weight);
    let data = step.data_mut();
    for range in ranges {
        data[range.clone()].iter_mut().zip(&b.data()[range]).for_each(|(x, y)| *x += y);
    }
    step
}
