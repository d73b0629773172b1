//! The stages of a run, in order, each from what the one before left on disk.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Experiment;
use super::pretraining::Pretrained;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::exec::{Context, Event};
use crate::fl::align::{Aligner, When};
use crate::fl::round::{Federation, ServerStep};
use crate::fl::trainer::CompactTrainer;
use crate::key::Purpose;
use crate::nn::Params;
use crate::run::RunDir;
use crate::stage::finetune::{Finetune, Finetuned};
use crate::stage::metrics::Evaluation;
use crate::stage::teach::TeacherConfig;
use crate::stage::{Loaded, align, evaluate, teach};

/// Which stages to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stages {
    /// All that the config switches on.
    All,
    /// Stage 1 alone.
    Pretrain,
    /// Stage 2, from a finished stage 1 where the config has one.
    Finetune,
    /// Stage 3 at the end, from a finished stage 2.
    Align,
}

type Entries = BTreeMap<String, Map<String, Value>>;

/// Runs the stages of one configuration in its directory; what is done is not done again.
pub fn run(config: &Config, stages: Stages, cx: &Context) -> Result<()> {
    let dir = RunDir::open(Path::new(&config.run.dir), &config.to_table()?)?;
    dir.update_manifest(&[("state", json!("running"))].into())?;
    let outcome = stages_of(config, stages, &dir, cx);
    let state = match &outcome {
        Ok(()) => "done".to_string(),
        Err(e) if e.class() == crate::error::Class::Stopped => "stopped".to_string(),
        Err(e) => format!("failed: {}", e.message()),
    };
    dir.update_manifest(&[("state", json!(state))].into())?;
    outcome
}

fn stages_of(config: &Config, stages: Stages, dir: &RunDir, cx: &Context) -> Result<()> {
    let experiment = Experiment::open(config.clone(), cx)?;
    experiment.record_split(dir, cx)?;
    let estimate = experiment.estimate(cx)?;
    cx.events.on(Event::Note(&format!("memory: about {}", estimate.sum_in_words())));
    dir.update_manifest(&experiment.facts(cx))?;
    let mut entries = Entries::new();
    let pretrained = experiment.stage_one(stages, dir, cx)?;
    if let Some(p) = &pretrained
        && let Some(figures) = &p.evaluation
    {
        entries.insert("pretrain".into(), evaluate::entry(figures, &p.params.digest(), None));
    }
    if stages == Stages::Pretrain {
        return evaluate::write(dir, &entries, "pretrain", experiment.extras());
    }
    let teacher = experiment.teach(&mut entries, cx)?;
    let (data, set) = experiment.server_set();
    let (images, align) = (Loaded { data, loader: &experiment.loader }, &config.align);
    let aligner = if align.enabled {
        let key = experiment.key.fold(Purpose::Align, 0);
        let (net, backend) = (experiment.net.clone(), config.run.engine);
        Some(Aligner::new(net, backend, &images, &set, teacher.as_deref(), align, key)?)
    } else {
        None
    };
    let every_round = aligner.as_ref().filter(|_| align.when == When::EveryRound);
    let step = every_round.map(|a| a as &dyn ServerStep);
    let tuned = experiment.stage_two(stages, dir, pretrained.as_ref(), step, cx)?;
    let records = evaluate::records(dir)?;
    let last = |stage| evaluate::last_ten(&records, stage, "test", "accuracy");
    let figures = experiment.judge().classifier(&experiment.net, &tuned.model, cx)?;
    entries.insert("finetune".into(), evaluate::entry(&figures, &tuned.model.digest(), last("finetune")));
    let (mut model, mut stage) = (tuned.model, "finetune");
    if let (Some(aligner), true) = (&aligner, stages != Stages::Finetune) {
        let judge = |p: &Params| experiment.judge().classifier(&experiment.net, p, cx);
        model = match tuned.aligned {
            Some(aligned) => aligned,
            None => align::align(dir, &experiment.net, aligner, &model, config.federated.rounds, &judge, cx)?,
        };
        let last = if align.when == When::EveryRound { last("align") } else { None };
        entries.insert("align".into(), evaluate::entry(&judge(&model)?, &model.digest(), last));
        stage = "align";
    }
    if config.evaluate.logits {
        let (logits, labels) = experiment.judge().outputs(&experiment.net, &model, cx)?;
        evaluate::write_logits(dir, "logits.safetensors", &logits, &labels, experiment.net.outputs())?;
    }
    evaluate::write(dir, &entries, stage, experiment.extras())
}

impl Experiment {
    fn stage_one(&self, stages: Stages, dir: &RunDir, cx: &Context) -> Result<Option<Pretrained>> {
        if !self.config.pretrain.enabled {
            return match stages {
                Stages::Pretrain => Err(Error::input("pretrain.enabled = false in this config")),
                _ => Ok(None),
            };
        }
        if matches!(stages, Stages::Finetune | Stages::Align) && !dir.file("pretrain/done.json").exists() {
            return Err(Error::input(format!("{} holds no finished pretraining", dir.path().display()))
                .hint("run `fedllava pretrain` with this config first, or set pretrain.enabled=false"));
        }
        self.pretrain(dir, cx).map(Some)
    }

    /// Teacher distributions for the server set; with `evaluate.teacher`, what the teacher does alone.
    fn teach(&self, entries: &mut Entries, cx: &Context) -> Result<Option<Vec<f32>>> {
        let config = &self.config;
        if !config.align.enabled {
            return Ok(None);
        }
        if config.evaluate.teacher {
            entries.insert("teacher".into(), self.alone(&config.teacher, cx)?);
        }
        for teacher in &config.evaluate.teachers {
            let name = format!("teacher {}", teacher.label());
            entries.insert(name, self.alone(teacher, cx)?);
        }
        if config.align.beta == 0.0 {
            return Ok(None);
        }
        let (data, set) = self.server_set();
        let mut q = teach::distributions(&config.teacher, data, &set, &self.embedder, cx)?;
        if config.align.shuffle_teacher {
            let classes = self.net.outputs();
            let mut order: Vec<usize> = (0..set.len()).collect();
            self.key.fold(Purpose::Align, 1).rng().shuffle(&mut order);
            q = order.iter().flat_map(|&i| &q[i * classes..(i + 1) * classes]).copied().collect();
        }
        Ok(Some(q))
    }

    /// What a teacher alone does on test.
    fn alone(&self, teacher: &TeacherConfig, cx: &Context) -> Result<Map<String, Value>> {
        let test = &self.benchmark.test;
        let ids: Vec<u32> = (0..test.len() as u32).collect();
        let q = teach::distributions(teacher, test, &ids, &self.embedder, cx)?;
        let logs: Vec<f32> = q.iter().map(|p| p.max(1e-30).ln()).collect();
        let figures = Evaluation::of(&logs, &test.labels, test.classes.len(), &self.groups);
        Ok(evaluate::entry(&figures, "", None))
    }

    fn stage_two(
        &self,
        stages: Stages,
        dir: &RunDir,
        pretrained: Option<&Pretrained>,
        align: Option<&dyn ServerStep>,
        cx: &Context,
    ) -> Result<Finetuned> {
        if stages == Stages::Align && !dir.file("finetune/done.json").exists() {
            return Err(Error::input(format!("{} holds no finished federated stage", dir.path().display()))
                .hint("run `fedllava finetune` with this config first"));
        }
        let images = self.train();
        let (net, backend) = (self.net.clone(), self.config.run.engine);
        let trainer = CompactTrainer { net, backend, images: &images, clients: &self.split.clients };
        let cohort = |round| self.cohort(round);
        let federation = Federation {
            algorithm: self.config.algorithm.algorithm(),
            trainer: &trainer,
            config: &self.config.federated,
            clients: self.split.clients.len(),
            cohort: &cohort,
            align,
            feedback: self.config.align.feedback,
            key: self.key,
        };
        let judge = |p: &Params| self.judge().classifier(&self.net, p, cx);
        Finetune { dir, federation, net: &self.net, evaluate: &judge }.run(self.start(pretrained)?, cx)
    }

    /// What a table says beside the numbers: what the run had that a plain baseline lacks.
    fn extras(&self) -> Value {
        let config = &self.config;
        let counts = self.split.global_counts();
        json!({
            "algorithm": serde_json::to_value(&config.algorithm).unwrap_or(Value::Null)["kind"],
            "clients": self.split.clients.len(),
            "rounds": config.federated.rounds,
            "seed": config.run.seed,
            "server_labels": if config.align.enabled { self.server_set().1.len() } else { 0 },
            "smallest_class": counts.iter().min(),
            "teacher": if config.align.enabled { json!(config.teacher.label()) } else { Value::Null },
            "oracle": config.align.enabled && config.teacher.oracle(),
            "pretrained": config.pretrain.enabled,
            "shots": config.evaluate.shots.rule(),
            "split": self.split.digest(),
        })
    }
}
