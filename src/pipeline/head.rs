//! Where the federated stage starts: the body from stage 1, and the classifier on it.

use std::ops::Range;

use super::Experiment;
use super::pretraining::Pretrained;
use crate::error::{Error, Place, Result};
use crate::exec::{Context, Event};
use crate::fl::predict::predict;
use crate::key::Purpose;
use crate::model::weights::Start;
use crate::nn::Params;
use crate::run::Origin;
use crate::run::origin::Left;
use crate::stage::finetune::{Begin, Carried, HeadInit};
use crate::stage::{Loaded, probe};

impl Experiment {
    /// The start of the federated stage: fresh, from a file, or the pretrained body under a classifier.
    pub fn start(&self, pretrained: Option<&Pretrained>, cx: &Context) -> Result<Begin> {
        let fresh = self.net.init(self.key.fold(Purpose::Init, 0));
        let from = &self.config.finetune.from;
        if !from.is_empty() {
            return self.started_from(from, &fresh, cx).at(|| "finetune.from");
        }
        let mut start = fresh;
        if let Some(pretrained) = pretrained {
            take_body(&mut start, pretrained);
        }
        match (self.config.finetune.head_init, pretrained) {
            (HeadInit::Text, Some(pretrained)) => self.text_head(&mut start, pretrained)?,
            (HeadInit::Probe, _) => self.probe_head(&mut start, cx)?,
            (HeadInit::Random, _) | (HeadInit::Text, None) => (),
        }
        Ok(Begin { model: start, carried: None })
    }

    /// A file's model, or a round of another run with what goes on from it.
    fn started_from(&self, from: &str, fresh: &Params, cx: &Context) -> Result<Begin> {
        let origin = Origin::find(from)?;
        let left = origin.read(&*cx.events)?;
        let start = match &left {
            Some(left) => Start::of(&left.model, from, fresh)?,
            None => Start::read(&origin.folder()?, fresh)?,
        };
        let round = left.as_ref().map_or(String::new(), |left| format!(", round {}", left.round));
        let note = format!("finetune.from: {from}{round}: {}", start.line());
        cx.events.on(if start.fresh.is_empty() { Event::Note(&note) } else { Event::Warning(&note) });
        let carried = match left {
            Some(left) if !start.fresh.is_empty() && left.keeps() => anew("the networks differ", cx),
            Some(left) => carried(left, self.config.algorithm.kind(), &self.split.digest(), cx),
            None => None,
        };
        Ok(Begin { model: start.params, carried })
    }

    /// The classifier as the probe on the server set's features, in evaluation mode.
    fn probe_head(&self, start: &mut Params, cx: &Context) -> Result<()> {
        let (data, set) = self.server_set();
        if set.is_empty() {
            return Err(Error::input("finetune.head_init = \"probe\" is fitted to the server set, which is empty")
                .hint("set server_set.per_class, or head_init = \"random\""));
        }
        let images = Loaded { data, loader: &self.loader };
        let node = self.net.tap("feature")?;
        let (features, labels) = predict(&self.net, self.config.run.engine, start, node, &images, &set, cx)?;
        let dim = self.net.shapes[node].iter().product();
        let (weight, bias) = probe::head(&features, dim, &labels, self.net.outputs())?;
        let [w, b] = self.head()?;
        start.data_mut()[w].copy_from_slice(&weight);
        start.data_mut()[b].copy_from_slice(&bias);
        Ok(())
    }

    /// Where the classifier's weight and bias are.
    fn head(&self) -> Result<[Range<usize>; 2]> {
        let ranges = <[Range<usize>; 2]>::try_from(self.net.head());
        ranges.map_err(|_| Error::defect("head_init: the classifier has no weight and bias"))
    }

    /// `W = s T W_s`, `b = s T b_s`: class scores as the projection's products with the class texts, on the scale that
    /// pretraining's contrast has, `s = 1 / (τ · mean ‖z‖)`. So the first global model is the zero-shot classifier but
    /// for the length of each feature.
    fn text_head(&self, start: &mut Params, pretrained: &Pretrained) -> Result<()> {
        let [w, b] = self.head()?;
        let texts = pretrained.zero_shot.text_features();
        let weight = pretrained.params.get("projection.weight")?;
        let bias = pretrained.params.get("projection.bias")?;
        let inputs = weight.len() / texts.dim;
        let expected = texts.rows() * inputs;
        if w.len() != expected {
            return Err(Error::defect(format!(
                "head_init = text: {} values for ({}, {inputs})",
                w.len(),
                texts.rows()
            )));
        }
        let scale = (1.0 / (f64::from(self.config.pretrain.temperature) * pretrained.norm)) as f32;
        let data = start.data_mut();
        for class in 0..texts.rows() {
            let text = texts.row(class);
            for i in 0..inputs {
                let column = text.iter().enumerate().map(|(d, t)| t * weight[d * inputs + i]);
                data[w.start + class * inputs + i] = scale * column.sum::<f32>();
            }
            data[b.start + class] = scale * text.iter().zip(bias).map(|(t, v)| t * v).sum::<f32>();
        }
        Ok(())
    }
}

/// What of another run's state goes on in a run of algorithm `own` on the split of this digest; why it does not is said.
pub(super) fn carried(left: Left, own: &str, split: &str, cx: &Context) -> Option<Carried> {
    if !left.keeps() {
        return None;
    }
    let Left { state, kept, algorithm, .. } = left;
    if algorithm != own {
        return anew(&format!("it is {algorithm}'s, and this is {own}"), cx);
    }
    if !kept.is_empty() && left.split != split {
        return anew("clients kept some of it, and they hold other samples here", cx);
    }
    Some(Carried { state, kept })
}

/// Says why the state begins anew.
fn anew(why: &str, cx: &Context) -> Option<Carried> {
    let text = format!("finetune.from: the model goes on, the server's and the clients' state begins anew: {why}");
    cx.events.on(Event::Warning(&text));
    None
}

/// Copies the tensors that both networks have.
fn take_body(start: &mut Params, pretrained: &Pretrained) {
    let layout = start.layout().clone();
    for entry in layout.entries() {
        if let Ok(values) = pretrained.params.get(&entry.name) {
            start.data_mut()[entry.range()].copy_from_slice(values);
        }
    }
}
