//! What a run says of its stages in `eval.json`, so that tables know none of them by name.

use serde_json::Value;

use super::Experiment;
use super::run::Entries;
use crate::data::PoolConfig;
use crate::fl::Mode;
use crate::fl::align::When;
use crate::stage::evaluate::{self, Said};
use crate::stage::finetune::HeadInit;
use crate::stage::pretrain::Pretext;
use crate::stage::teach::TeacherConfig;

/// What reaches every accuracy: the images, and which classes are many, medium, few.
const JUDGED: [&str; 7] =
    ["data", "longtail", "partition", "server_set", "validation", "run.split_seed", "evaluate.shots"];

impl Experiment {
    /// Adds to every entry its label, its place, what it had, and which keys reach it; `facts` hold the budget.
    pub(super) fn say(&self, entries: &mut Entries, facts: &Value) {
        let budget = |stage: &str| facts["budget"][stage].as_u64().unwrap_or(0);
        let (one, two) = (budget("pretrain"), budget("pretrain") + budget("finetune"));
        let mut others = self.config.evaluate.teachers.iter();
        let names: Vec<String> = entries.keys().cloned().collect();
        // Further teachers were entered by their config's order; their names sort by kind and number.
        let mut teachers: Vec<(String, TeacherConfig)> = Vec::new();
        for teacher in others.by_ref() {
            let stem = format!("teacher {}", teacher.label());
            let n = teachers.iter().filter(|(_, t)| t.label() == teacher.label()).count();
            teachers.push((if n == 0 { stem } else { format!("{stem} {}", n + 1) }, teacher.clone()));
        }
        for name in names {
            let said = match name.as_str() {
                "pretrain" => self.said_of_pretraining(one),
                "finetune" => self.said_of_rounds(two),
                "align" => self.said_of_alignment(two + budget("align")),
                "probe" => self.said_of_probe(),
                "teacher" => said_of_teacher(&self.config.teacher, 0, "teacher"),
                other => match teachers.iter().position(|(n, _)| n == other) {
                    Some(at) => said_of_teacher(&teachers[at].1, 1 + at as i64, "evaluate.teachers"),
                    None => Said { label: other.into(), ..Said::default() },
                },
            };
            entries.entry(name).and_modify(|entry| evaluate::say(entry, &said));
        }
    }

    /// `many`, `medium` or `few` of each class.
    pub(super) fn group_names(&self) -> Vec<&'static str> {
        let groups = &self.groups;
        let name = |c: usize| match (groups.many.contains(&c), groups.few.contains(&c)) {
            (true, _) => "many",
            (_, true) => "few",
            _ => "medium",
        };
        (0..self.benchmark.test.classes.len()).map(name).collect()
    }

    fn said_of_pretraining(&self, image_steps: u64) -> Said {
        let reads = reads(&["augment", "model", "run.engine", "clip", "pool", "pretrain"]);
        let label = "1 pretrain (zero-shot)".into();
        Said { label, order: 30, oracle: false, extras: self.pool_extra(), image_steps, reads, ..Said::default() }
    }

    fn said_of_rounds(&self, image_steps: u64) -> Said {
        let (config, needs) = (&self.config, self.config.algorithm.algorithm().needs());
        let (taught, labels) = (self.aligned_between() && config.align.beta > 0.0, self.aligned_between());
        let mut extras = self.pool_extra();
        if !config.finetune.from.is_empty() {
            extras = vec![format!("started from {}", config.finetune.from)];
        }
        if labels || needs.server_set || config.finetune.head_init == HeadInit::Probe {
            extras.push(self.labels_extra());
        }
        extras.extend(needs.unlabelled.then(|| "images without labels".to_string()));
        extras.extend(needs.texts.then(|| "CLIP's class texts".to_string()));
        extras.extend((taught || needs.teacher).then(|| self.teacher_extra()));
        let mut parts = vec!["augment", "model", "run.engine", "federated", "algorithm", "finetune", "unlabelled"];
        parts.extend(if config.pretrain.enabled { &["clip", "pool", "pretrain"][..] } else { &["pretrain.enabled"] });
        parts.extend((needs.texts || needs.teacher).then_some("clip"));
        parts.extend(needs.teacher.then_some("teacher"));
        parts.extend(if labels { &["align", "teacher", "clip"][..] } else { &[] });
        let label = match (config.federated.mode, config.federated.rounds) {
            (_, 0) => "2 no round: the start model",
            (Mode::Local, _) => "2 clients alone: the server's start model",
            _ => "2 finetune",
        };
        let oracle = (taught || needs.teacher) && config.teacher.oracle();
        Said { label: label.into(), order: 40, oracle, extras, image_steps, reads: reads(&parts), ..Said::default() }
    }

    fn said_of_alignment(&self, image_steps: u64) -> Said {
        let (before, taught) = (self.said_of_rounds(0), self.config.align.beta > 0.0);
        let mut extras = before.extras;
        for extra in [Some(self.labels_extra()), taught.then(|| self.teacher_extra())].into_iter().flatten() {
            if !extras.contains(&extra) {
                extras.push(extra);
            }
        }
        let mut reads = before.reads;
        reads.extend(["align", "teacher", "clip"].map(String::from));
        reads.sort_unstable();
        reads.dedup();
        let oracle = before.oracle || (taught && self.config.teacher.oracle());
        Said { label: "3 align".into(), order: 50, oracle, extras, image_steps, reads, ..Said::default() }
    }

    fn said_of_probe(&self) -> Said {
        let (label, extras) = ("linear probe of CLIP".into(), vec![self.labels_extra()]);
        Said { label, order: 20, oracle: false, extras, image_steps: 0, reads: reads(&["clip"]), ..Said::default() }
    }

    /// Whether alignment runs between rounds and its model goes on.
    fn aligned_between(&self) -> bool {
        let align = &self.config.align;
        align.enabled && align.feedback && align.when == When::EveryRound && self.config.federated.rounds > 0
    }

    fn pool_extra(&self) -> Vec<String> {
        let pretrain = &self.config.pretrain;
        let text = match &self.config.pool {
            _ if !pretrain.enabled => return Vec::new(),
            PoolConfig::World(w) if w.labels => "pool with labels",
            _ if pretrain.objective == Pretext::Contrast && !pretrain.text => "pool without captions",
            _ => "pool",
        };
        vec![text.into()]
    }

    fn labels_extra(&self) -> String {
        format!("{} server labels", self.server_set().1.len())
    }

    fn teacher_extra(&self) -> String {
        format!("teacher {}", self.config.teacher.label())
    }
}

fn said_of_teacher(teacher: &TeacherConfig, place: i64, section: &str) -> Said {
    let label = match teacher {
        TeacherConfig::Clip(c) if c.prompts.is_some() => "CLIP alone, prompt ensemble",
        TeacherConfig::Clip(_) => "CLIP alone",
        TeacherConfig::Mllm(_) => "MLLM alone, class names",
        TeacherConfig::Features(_) => "CLIP's features alone",
        TeacherConfig::Classifier(_) => "classifier alone",
    };
    let reads = reads(&["clip", section]);
    Said { label: label.into(), order: place, oracle: teacher.oracle(), reads, ..Said::default() }
}

fn reads(parts: &[&str]) -> Vec<String> {
    let mut all: Vec<String> = JUDGED.iter().chain(parts).map(|p| (*p).to_string()).collect();
    all.sort_unstable();
    all.dedup();
    all
}
