//! Local work: a brief's steps, done one after the other in a session, by one client or by several side by side.

use std::collections::BTreeMap;

use super::brief::{Bn, Brief, Job, MODEL, Measure, Rows, Step, Train};
use super::feed::{Data, Stream};
use super::fit::{self, Fitted, Plan, Standing, fit};
use super::objective::{Here, Tap};
use super::reply::Outcome;
use crate::error::{Error, Result};
use crate::exec::{Context, Event};
use crate::key::{Key, Purpose};
use crate::nn::{Batch, Mode, Named, Node, Params, Session};

/// One client's work with what it works on.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    /// What to do.
    pub job: &'a Job,
    /// On what.
    pub data: &'a Data<'a>,
}

impl<'a> Work<'a> {
    fn step(&self, i: usize) -> Result<&'a Step> {
        self.job.brief.steps.get(i).ok_or_else(|| Error::defect(format!("brief: no step {i}")))
    }

    fn key(&self, i: usize) -> Key {
        self.job.key.fold(Purpose::Step, i as u64)
    }

    fn begin(&self, classes: usize) -> Outcome {
        Outcome {
            params: self.job.model.clone(),
            found: Named::new(),
            samples: self.data.own.ids.len(),
            counts: self.data.counts(classes),
            steps: 0,
            loss: None,
            multiply_adds: 0,
        }
    }
}

/// Does all steps of some clients' jobs whose briefs are [`alike`]: they train side by side, in a lane each, and get what
/// each gets alone.
pub fn work(session: &mut dyn Session, all: &[Work<'_>], cx: &Context) -> Result<Vec<Outcome>> {
    let classes = session.net().outputs();
    let mut outcomes: Vec<Outcome> = all.iter().map(|w| w.begin(classes)).collect();
    let steps = all.first().map_or(0, |w| w.job.brief.steps.len());
    // What the steps of one job are to its progress: equal parts.
    let scaled = (steps > 1).then(|| cx.part(1.0 / steps as f64));
    let cx = scaled.as_ref().unwrap_or(cx);
    for i in 0..steps {
        if let Step::Train(_) = all[0].step(i)? {
            train(session, all, i, cx, &mut outcomes)?;
            continue;
        }
        for (w, outcome) in all.iter().zip(&mut outcomes) {
            let Step::Measure(step) = w.step(i)? else { return Err(Error::defect("briefs side by side differ")) };
            measure(session, w.job, step, w.data, w.key(i), cx, outcome)?;
        }
    }
    for outcome in &mut outcomes {
        if let Some(model) = outcome.found.remove(MODEL) {
            outcome.params = model;
        }
    }
    Ok(outcomes)
}

/// Whether clients with these briefs can train side by side.
pub fn alike(a: &Brief, b: &Brief) -> bool {
    let stored = |t: &Train<'_>| t.feeds.iter().any(|feed| matches!(feed.rows, Rows::Features(_)));
    let same = |(a, b): (&Step, &Step)| match (a, b) {
        (Step::Train(a), Step::Train(b)) => !a.apart && !b.apart && a.bn == b.bn && stored(a) == stored(b),
        (Step::Measure(_), Step::Measure(_)) => true,
        _ => false,
    };
    a.steps.len() == b.steps.len() && a.steps.iter().zip(&b.steps).all(same)
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

/// Step `i` of all, which is a training.
fn train(session: &mut dyn Session, all: &[Work<'_>], i: usize, cx: &Context, outcomes: &mut [Outcome]) -> Result<()> {
    let slots = all.iter().zip(&*outcomes).map(|(w, o)| slots(w.job, &o.found)).collect::<Result<Vec<_>>>()?;
    let (mut plans, mut from) = (Vec::with_capacity(all.len()), Vec::with_capacity(all.len()));
    for (w, slots) in all.iter().zip(&slots) {
        let Step::Train(train) = w.step(i)? else { return Err(Error::defect("briefs side by side differ")) };
        from.push(standing(w.job, train, slots)?);
        plans.push(Plan { train, slots, data: w.data, key: w.key(i) });
    }
    let fitted = fit(session, &plans, from, cx, &mut ())?;
    for (((w, plan), fitted), outcome) in all.iter().zip(&plans).zip(fitted).zip(outcomes) {
        keep(w.job, plan.train, fitted, outcome)?;
    }
    Ok(())
}

/// Puts what a training gave under its names.
fn keep(job: &Job, train: &Train<'_>, fitted: Fitted, outcome: &mut Outcome) -> Result<()> {
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
