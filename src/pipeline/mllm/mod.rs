//! A run whose task is a multimodal LLM: samples → who holds what → rounds on adapters → answers.
//!
//! | file | what |
//! |---|---|
//! | this one | the run from its config to `eval.json` |
//! | `open` | what the run is made of: the set, the holdings, the model, the lessons |
//! | `examine` | answers on every test set, the judge of open ones, the adapters as a folder |

mod examine;
mod open;

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::head::carried;
use super::made_of::{self, Inputs, same_device};
use super::run::{Entries, Stages, extend, left_out, spent};
use crate::config::Config;
use crate::data::Ledger;
use crate::data::multimodal::Multimodal;
use crate::data::multimodal::scenario::Holdings;
use crate::error::{Error, Place, Result};
use crate::exec::{Context, Event};
use crate::fl::Mode;
use crate::fl::alone::Alone;
use crate::fl::round::Federation;
use crate::fl::trainer::CompactTrainer;
use crate::fl::way::noise::EPSILON;
use crate::fsx;
use crate::key::{Key, Purpose};
use crate::nn::Params;
use crate::run::{Origin, RunDir, checkpoint, directory};
use crate::stage::evaluate::{self, Said};
use crate::stage::finetune::{Begin, Evaluate, Finetune, Finetuned};
use crate::stage::metrics::{Judged, mean_and_deviation};
use crate::task::mllm::MllmTaskConfig;
use crate::task::mllm::judge::{Exam, Scores};
use crate::task::mllm::regular::Regularised;
use crate::task::mllm::speaker::School;

pub use open::Held;

/// A run on a multimodal LLM, its inputs read and checked.
pub struct Mllm<'a> {
    config: &'a Config,
    task: &'a MllmTaskConfig,
    key: Key,
    set: Multimodal,
    holdings: Holdings,
    school: Arc<School>,
    /// Whether what pictures go through is frozen.
    frozen: bool,
    ledger: Ledger,
}

/// The file of what clients' own adapters do.
const PERSONAL: &str = "personal.json";

/// Runs the one stage that there is, and judges it.
pub(super) fn stages_of(
    config: &Config,
    task: &MllmTaskConfig,
    stages: Stages,
    dir: &mut RunDir,
    cx: &Context,
) -> Result<()> {
    if matches!(stages, Stages::Pretrain | Stages::Align) {
        return Err(Error::input("task.kind = \"mllm\" has neither stage 1 nor stage 3")
            .hint("`fedllava run` or `fedllava finetune` trains its adapters"));
    }
    let cx = &Context { dtype: task.precision.into(), ..cx.clone() };
    let mllm = Mllm::open(config, task, cx)?;
    if dir.longer() {
        extend(config, dir)?;
    }
    dir.update_manifest(&[("state", json!("running"))].into())?;
    let dir = &*dir;
    made_of::same(dir, &mllm.inputs()?)?;
    mllm.record_split(dir, cx)?;
    same_device(dir, cx)?;
    dir.update_manifest(&mllm.facts(cx)?)?;
    let exams = mllm.exams(cx)?;
    let tuned = mllm.rounds(dir, &exams, cx)?;
    let (entry, columns, answers) = mllm.examine(dir, &exams, &tuned.model, cx)?;
    let mut entries = Entries::from([("finetune".to_string(), entry)]);
    mllm.say(&mut entries, columns);
    fsx::write_atomic(&dir.file("answers.jsonl"), answers.as_bytes())?;
    mllm.school.opened.save_adapter(&dir.file("adapter"), &mllm.school.plan, &tuned.model).at(|| "adapter")?;
    let mut extras = mllm.extras()?;
    let records = evaluate::records(dir)?;
    if let Some(epsilon) = spent(&records) {
        extras[EPSILON] = epsilon;
    }
    if let Some((failures, text)) = left_out(&records) {
        cx.events.on(Event::Warning(&text));
        extras["failures"] = failures;
    }
    evaluate::write(dir, &entries, "finetune", extras)?;
    dir.update_manifest(&[("complete", json!(stages == Stages::All)), ("sources", mllm.ledger.to_json())].into())
}

/// Serves the rounds of such a run on a rank above 0, once `same` has approved of what is here.
pub(super) fn serve(
    config: &Config,
    task: &MllmTaskConfig,
    same: &dyn Fn(Inputs) -> Result<()>,
    cx: &Context,
) -> Result<()> {
    let cx = &Context { dtype: task.precision.into(), ..cx.clone() };
    let mllm = Mllm::open(config, task, cx)?;
    same(mllm.inputs()?)?;
    mllm.federated(|federation| federation.serve(cx))
}

impl Mllm<'_> {
    /// Makes this run's federation for `work`.
    fn federated<T>(&self, work: impl FnOnce(Federation<'_>) -> Result<T>) -> Result<T> {
        let config = &self.config.federated;
        let (net, school) = (Arc::new(self.school.net()), self.school.clone());
        let session_net = net.clone();
        let holders = self.holders();
        let trainer = CompactTrainer::within(
            net.clone(),
            move |_, _| Ok(school.session(&session_net)),
            &self.school.lessons,
            &holders,
        );
        let pull = self.task.regularise.pull(&self.school.plan, self.layers())?;
        let held = Regularised { of: self.config.algorithm.algorithm(), pull };
        let alone = Alone(&held);
        let cohort = |round| match config.mode {
            Mode::Centralised => Ok(vec![0]),
            _ => self.cohort(round),
        };
        work(Federation {
            algorithm: if config.mode == Mode::Local { &alone } else { &held },
            trainer: &trainer,
            config,
            clients: self.school.lessons.clients.len(),
            cohort: &cohort,
            align: None,
            feedback: false,
            key: self.key,
        })
    }

    /// The federated rounds.
    fn rounds(&self, dir: &RunDir, exams: &[Exam<'_>], cx: &Context) -> Result<Finetuned> {
        self.federated(|federation| self.rounds_of(federation, dir, exams, cx))
    }

    fn rounds_of(
        &self,
        federation: Federation<'_>,
        dir: &RunDir,
        exams: &[Exam<'_>],
        cx: &Context,
    ) -> Result<Finetuned> {
        let exam =
            exams.first().ok_or_else(|| Error::data("data: the set has no test part, so nothing can be judged"))?;
        let judge = |p: &Params| self.judged(exam, p, cx);
        let validation = self.validation(cx)?;
        let validate = validation.as_ref().map(|exam| move |p: &Params| self.judged(exam, p, cx));
        let validate = validate.as_ref().map(|v| v as Evaluate<'_>);
        let begun =
            dir.file("finetune/done.json").exists() || !checkpoint::rounds(&dir.file("checkpoints"))?.is_empty();
        let start = if begun { None } else { Some(self.start(cx)?) };
        let (layout, summon) =
            (self.school.plan.layout(), || super::ranks::summon(self.config, None, self.inputs()?, cx));
        let stage = Finetune { dir, federation, layout, evaluate: &judge, validate, summon: &summon };
        let tuned = stage.run(start, cx)?;
        self.judge_personal(dir, &stage.federation, exam, &tuned, cx)?;
        Ok(tuned)
    }

    /// Fresh adapters, those of a folder that PEFT or an earlier run wrote, or a round of another run with what goes on
    /// from it.
    fn start(&self, cx: &Context) -> Result<Begin> {
        let (from, school) = (&self.config.finetune.from, &self.school);
        if from.is_empty() {
            let model = school.opened.fresh(&school.plan, self.key.fold(Purpose::Init, 0))?;
            return Ok(Begin { model, carried: None });
        }
        self.started_from(from, cx).at(|| "finetune.from")
    }

    fn started_from(&self, from: &str, cx: &Context) -> Result<Begin> {
        let school = &self.school;
        let folder = crate::data::resolve(from).ok().filter(|f| f.join("adapter_config.json").is_file());
        let (model, left) = match folder {
            Some(folder) => {
                let (plan, params) = school.opened.adapter(&folder)?;
                self.same_adapters(from, plan.layout() == school.plan.layout())?;
                (params, None)
            }
            None => {
                let origin = Origin::find(from)?;
                match origin.read(&*cx.events)? {
                    Some(left) => (left.model.clone(), Some(left)),
                    None => (Params::load(&origin.folder()?, school.plan.layout())?, None),
                }
            }
        };
        self.same_adapters(from, model.layout() == school.plan.layout())?;
        let round = left.as_ref().map_or(String::new(), |left| format!(", round {}", left.round));
        cx.events.on(Event::Note(&format!("finetune.from: {from}{round}: {} adapter numbers", model.data().len())));
        let split = self.holdings.digest(&self.set.train.samples)?;
        let carried = left.and_then(|left| carried(left, self.config.algorithm.kind(), &split, cx));
        Ok(Begin { model, carried })
    }

    fn same_adapters(&self, from: &str, same: bool) -> Result<()> {
        match same {
            true => Ok(()),
            false => Err(Error::input(format!("the adapters in {from} are others than task.lora's"))
                .hint("give task.lora the rank and the targets of those adapters")),
        }
    }

    fn judged(&self, exam: &Exam<'_>, params: &Params, cx: &Context) -> Result<Judged> {
        let scores = self.scores(exam, params, cx)?;
        Ok(Judged { figures: scores.figures(), headline: scores.headline() })
    }

    fn scores(&self, exam: &Exam<'_>, params: &Params, cx: &Context) -> Result<Scores> {
        let vlm = self.school.opened.merged(&self.school.plan, params)?;
        exam.scores(&exam.ask(&*vlm, cx)?)
    }

    /// What every client's own adapters do on the first test set, where a method leaves clients some.
    fn judge_personal(
        &self,
        dir: &RunDir,
        federation: &Federation<'_>,
        exam: &Exam<'_>,
        tuned: &Finetuned,
        cx: &Context,
    ) -> Result<()> {
        let known = dir.file(PERSONAL).exists().then(|| directory::read_json(&dir.file(PERSONAL)));
        let Some(last) = tuned.last.as_ref().filter(|_| !tuned.kept.is_empty()) else { return Ok(()) };
        if known.is_some_and(|facts| facts.is_ok_and(|f| f["model"] == tuned.model.digest())) {
            return Ok(());
        }
        let now = federation.now(self.config.federated.rounds, None, &[], cx);
        let mut rows = Vec::new();
        for (client, kept) in &tuned.kept {
            let own = federation.algorithm.personal(&last.model, &last.deployed, &kept.named, &now)?;
            let Some(own) = own else { return Ok(()) };
            let scores = self.scores(exam, &own, cx)?;
            rows.push(json!({ "client": client, "overall": scores.accuracy(), "headline": scores.headline() }));
        }
        let of = |key: &str| {
            let all: Vec<f64> = rows.iter().filter_map(|r| r[key].as_f64()).collect();
            let v = mean_and_deviation(&all);
            json!({ "mean": v.map(|v| v.0), "deviation": v.map(|v| v.1) })
        };
        let facts = json!({ "model": tuned.model.digest(), "clients": rows.len(), "judged": rows.len(),
            "overall": of("overall"), "own": Value::Null, "headline": of("headline"), "each": rows });
        dir.write_json(PERSONAL, &facts)
    }

    /// Adds to the entry its label, its place, what it had, and which keys reach it.
    fn say(&self, entries: &mut Entries, columns: Vec<(String, String)>) {
        let mode = (self.config.federated.mode, self.config.federated.rounds);
        let label = match mode {
            (_, 0) => "2 no round: zero-shot",
            (Mode::Local, _) => "2 clients alone: the server's start model",
            _ => "2 finetune",
        };
        let reads = ["data", "scenario", "task", "judge", "federated", "algorithm", "finetune", "run.split_seed"];
        let said = Said {
            label: label.into(),
            order: 40,
            oracle: false,
            extras: Vec::new(),
            image_steps: self.sample_steps(),
            reads: reads.map(String::from).to_vec(),
            columns,
        };
        entries.values_mut().for_each(|entry| evaluate::say(entry, &said));
    }

    /// The figures of a model's replies on a part, as `eval.json` holds them.
    fn entry(&self, scores: &Scores, digest: &str, dir: &RunDir) -> Result<Map<String, Value>> {
        let records = evaluate::records(dir)?;
        let last = evaluate::last_ten(&records, "finetune", "test", "accuracy");
        let mut entry = scores.to_json();
        entry.insert("digest".into(), digest.into());
        entry.insert("last10".into(), json!(last.map(|l| l.mean)));
        entry.insert("last10_deviation".into(), json!(last.map(|l| l.deviation)));
        entry.insert("last10_rounds".into(), json!(last.map_or(0, |l| l.rounds)));
        Ok(entry)
    }
}
