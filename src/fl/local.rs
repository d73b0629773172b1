//! Local work: a brief's steps, done one after the other in a session of one lane.

use std::collections::BTreeMap;

use super::brief::{Bn, Job, MODEL, Measure, Step, Train};
use super::feed::{Data, Stream};
use super::fit::{self, Plan, Standing, fit};
use super::objective::{Here, Tap};
use super::reply::Outcome;
use crate::error::{Error, Result};
use crate::exec::{Context, Event};
use crate::key::{Key, Purpose};
use crate::nn::{Batch, Mode, Named, Node, Params, Session};

/// Does all steps of a job.
pub fn work(session: &mut dyn Session, job: &Job, data: &Data<'_>, cx: &Context) -> Result<Outcome> {
    let classes = session.net().outputs();
    let mut outcome = Outcome {
        params: job.model.clone(),
        found: Named::new(),
        samples: data.own.ids.len(),
        counts: data.counts(classes),
        steps: 0,
        loss: None,
        multiply_adds: 0,
    };
    // What the steps of one job are to its progress: equal parts.
    let scaled = (job.brief.steps.len() > 1).then(|| cx.part(1.0 / job.brief.steps.len() as f64));
    let cx = scaled.as_ref().unwrap_or(cx);
    for (i, step) in job.brief.steps.iter().enumerate() {
        let key = job.key.fold(Purpose::Step, i as u64);
        match step {
            Step::Train(step) => train(session, job, step, data, key, cx, &mut outcome)?,
            Step::Measure(step) => measure(session, job, step, data, key, cx, &mut outcome)?,
        }
    }
    if let Some(model) = outcome.found.remove(MODEL) {
        outcome.params = model;
    }
    Ok(outcome)
}

/// All slots that there are by now; one that an earlier step should have found and did not is an error when it is used.
fn slots(job: &Job, found: &Named) -> Result<Vec<Params>> {
    let absent = || Params::tensor("absent", &[0], Vec::new());
    (0..job.brief.slots.len())
        .map(|id| match &job.brief.slots[id] {
            super::brief::Slot::Found(name) if !found.contains_key(name.as_ref()) => absent(),
            _ => job.slot(id, found),
        })
        .collect()
}

fn train(
    session: &mut dyn Session,
    job: &Job,
    train: &Train<'_>,
    data: &Data<'_>,
    key: Key,
    cx: &Context,
    outcome: &mut Outcome,
) -> Result<()> {
    let slots = slots(job, &outcome.found)?;
    let standing = standing(job, train, &slots)?;
    let plan = Plan { train, slots: &slots, data, key };
    let fitted = fit(session, &[plan], vec![standing], cx, &mut ())?.pop();
    let fitted = fitted.ok_or_else(|| Error::defect("local work: nothing was trained"))?;
    outcome.steps += fitted.steps;
    outcome.multiply_adds += fitted.multiply_adds;
    outcome.loss = fitted.loss.or(outcome.loss);
    if let Some(moments) = &train.moments {
        let named = fitted.moments.into_iter().map(|(k, v)| (format!("{}/{k}", moments.name), v));
        outcome.found.extend(named);
    }
    for (&id, (values, state)) in train.beside.iter().zip(fitted.beside) {
        let name = slot_name(job, id)?;
        if let Some(moments) = &train.moments {
            let named = state.into_iter().map(|(k, v)| (format!("{}/{name}/{k}", moments.name), v));
            outcome.found.extend(named);
        }
        outcome.found.insert(name, values);
    }
    outcome.found.insert(train.into.to_string(), fitted.params);
    Ok(())
}

/// Where a training starts: with the optimisers' states that the client kept, or that its brief names.
fn standing(job: &Job, train: &Train<'_>, slots: &[Params]) -> Result<Standing> {
    let Some(moments) = &train.moments else { return Ok(Standing::default()) };
    let kept = job.kept.as_deref().map(|k| under(&moments.name, k)).filter(|m| !m.is_empty());
    let mut all = kept.unwrap_or_else(|| under(&moments.name, &moments.start));
    let beside = |&id: &usize| -> Result<(Params, Named)> {
        let values = slots.get(id).ok_or_else(|| Error::defect(format!("brief: no slot {id} beside the network")))?;
        Ok((values.clone(), under(&slot_name(job, id)?, &all)))
    };
    let beside = train.beside.iter().map(beside).collect::<Result<_>>()?;
    all.retain(|name, _| !name.contains('/'));
    Ok(Standing { moments: all, beside, ..Standing::default() })
}

/// What is named `name/…`, without the prefix.
fn under(name: &str, all: &Named) -> Named {
    let own = |(k, v): (&String, &Params)| Some((k.strip_prefix(name)?.strip_prefix('/')?.to_string(), v.clone()));
    all.iter().filter_map(own).collect()
}

/// A trained vector beside the network is found under its slot's own name.
fn slot_name(job: &Job, id: usize) -> Result<String> {
    use super::brief::Slot;
    match job.brief.slots.get(id) {
        Some(Slot::Sent(name, _) | Slot::Patch(name, _) | Slot::Kept(name, _) | Slot::Found(name)) => {
            Ok(name.to_string())
        }
        _ => Err(Error::defect(format!("brief: slot {id} beside the network has no name"))),
    }
}

fn measure(
    session: &mut dyn Session,
    job: &Job,
    step: &Measure,
    data: &Data<'_>,
    key: Key,
    cx: &Context,
    outcome: &mut Outcome,
) -> Result<()> {
    let slots = slots(job, &outcome.found)?;
    let net = session.net().clone();
    let classifier = net.classifier();
    let features = classifier.as_ref().map_or(0, |c| c.features);
    let nodes = fit::nodes(&net, std::iter::once(Tap::Logits).chain(step.what.taps().iter().copied()))?;
    let order: Vec<Node> = nodes.values().copied().collect();
    let mut stream = Stream::new(&step.feed, data, &slots, features)?;
    let (mut batch, mut outs, mut sums) = (Batch::default(), vec![Vec::new(); order.len()], BTreeMap::new());
    let (batches, mut columns) = (stream.batches(), BTreeMap::new());
    for at in 0..batches * step.repeats {
        cx.cancel.check()?;
        let ids = stream.ids(at, key, 0).to_vec();
        let epoch = key.fold(Purpose::Epoch, (at / batches) as u64);
        let key = epoch.fold(Purpose::Step, (at % batches) as u64);
        stream.fill(&ids, key.fold(Purpose::Augment, 0), &mut batch)?;
        columns.clear();
        stream.join(&ids, data.columns, &mut columns)?;
        for (network, &id) in step.at.iter().enumerate() {
            let params = slots.get(id).ok_or_else(|| Error::defect(format!("measure: no slot {id}")))?;
            let (mode, all) = (if step.bn == Bn::Batch { Mode::Train(key) } else { Mode::Infer }, 0..ids.len());
            session.look(params, &batch.x, ids.len(), mode, &order, &mut outs)?;
            let values: BTreeMap<Tap, &Vec<f32>> = nodes.keys().copied().zip(&outs).collect();
            let value = |tap: Tap| values.get(&tap).map_or(&[][..], |v| v.as_slice());
            let here = Here {
                y: &batch.y,
                ids: &batch.ids,
                feeds: std::slice::from_ref(&all),
                classes: net.outputs(),
                features,
                counts: &outcome.counts,
                step: at,
                steps: batches * step.repeats,
                batch: at % batches,
                batches,
                progress: 0.0,
                key,
                network,
                logits: value(Tap::Logits),
                feature: value(Tap::Feature),
                map: value(Tap::Map),
                head: classifier.as_ref().map_or((&[], &[]), |c| c.of(params.data())),
                d_logits: &mut [],
                d_feature: &mut [],
                d_map: &mut [],
                d_head: (&mut [], &mut []),
                beside: &mut [],
                witnesses: &[],
                slots: &slots,
                columns: &columns,
            };
            step.what.add(&here, &mut sums)?;
        }
        outcome.multiply_adds += (ids.len() * step.at.len()) as u64 * net.multiply_adds();
        cx.events.on(Event::Part(1.0 / (batches * step.repeats) as f64));
    }
    outcome.found.extend(step.what.close(sums)?);
    Ok(())
}
