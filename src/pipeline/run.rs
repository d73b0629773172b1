//! The stages of a run, in order, each from what the one before left on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::made_of::same_device;
use super::pretraining::Pretrained;
use super::{Experiment, Library};
use crate::config::Config;
use crate::data::PoolConfig;
use crate::error::{Error, Result};
use crate::exec::{Context, Event};
use crate::fl::Mode;
use crate::fl::align::{Aligner, When};
use crate::fl::alone::Alone;
use crate::fl::config::{Export, RateSchedule};
use crate::fl::round::{Federation, ServerStep};
use crate::fl::trainer::CompactTrainer;
use crate::fl::way::noise::EPSILON;
use crate::fsx;
use crate::key::Purpose;
use crate::nn::Params;
use crate::run::tensorboard::Board;
use crate::run::{RunDir, Shelf, checkpoint, csv, directory};
use crate::stage::evaluate::Judge;
use crate::stage::finetune::{Evaluate, FAILED, Finetune, Finetuned};
use crate::stage::metrics::{Evaluation, Judged};
use crate::stage::teach::TeacherConfig;
use crate::stage::{Loaded, align, evaluate, probe, teach};

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

pub(super) type Entries = BTreeMap<String, Map<String, Value>>;

/// Runs the stages of one configuration in its directory; what is done is not done again. Runs of one library read
/// the same benchmark once.
pub fn run(config: &Config, stages: Stages, library: &Library, cx: &Context) -> Result<()> {
    let whole = |old| Config::from_table(old)?.to_table();
    let (path, table) = (Path::new(&config.run.dir), config.to_table()?);
    if stages == Stages::All && RunDir::rests(path, &table, &whole)? && finished(path)? {
        return Ok(());
    }
    let mut dir = RunDir::open_with(path, &table, &whole, &|old| idle(old, config, path))?;
    fsx::sweep_stale(Path::new(&config.run.cache))?;
    if stages == Stages::All && !dir.longer() && finished(dir.path())? {
        // A process killed in its last instant has left another word.
        if directory::read_json(&dir.file("manifest.json"))?["state"] != "done" {
            dir.update_manifest(&[("state", json!("done"))].into())?;
        }
        return Ok(());
    }
    let outcome = stages_of(config, stages, &mut dir, library, cx);
    if dir.longer() {
        return outcome; // It stays the shorter run that it was.
    }
    if !dir.file("config.toml").exists() {
        return outcome.map_err(|e| moved(path, e));
    }
    let state = match &outcome {
        Ok(()) => "done".to_string(),
        Err(e) if e.class() == crate::error::Class::Stopped => "stopped".to_string(),
        Err(e) => format!("failed: {}", e.message()),
    };
    dir.update_manifest(&[("state", json!(state))].into())?;
    if outcome.as_ref().is_err_and(|e| e.class() != crate::error::Class::Stopped) && !dir.begun() {
        dir.abandon()?;
        return outcome;
    }
    csv::write(dir.path())?;
    outcome
}

/// Keys with another value in `old` with which all that is done in a run's directory would be the same:
/// `federated.eval_every`, where every round up to the newest checkpoint is judged by both, or by neither.
fn idle(old: &toml::Table, config: &Config, path: &Path) -> Vec<&'static str> {
    let Ok(old) = Config::from_table(old.clone()) else { return Vec::new() };
    let (was, is) = (&old.federated, &config.federated);
    let done = match path.join("finetune/done.json").exists() {
        true => was.rounds,
        // One that is damaged counts: the one before it may be too.
        false => checkpoint::rounds(&path.join("checkpoints")).map_or(was.rounds, |all| all.last().map_or(0, |l| l.0)),
    };
    let same = was.rounds == is.rounds && (1..=done).all(|round| was.judged(round) == is.judged(round));
    if same { vec!["federated.eval_every"] } else { Vec::new() }
}

/// A run's folder was moved or removed while it went on, whatever failed for that.
fn moved(path: &Path, e: Error) -> Error {
    if e.class() == crate::error::Class::Stopped {
        return e;
    }
    Error::environment(format!("{}: moved or removed while the run went on: {}", path.display(), e.plain()))
        .hint("with run.dir where it lies now the same command goes on")
}

/// Whether every stage of the run in this directory has been run and judged. One that has been, and whose figures,
/// records or models are not there any more as they were, is an error.
pub fn finished(dir: &Path) -> Result<bool> {
    let manifest = dir.join("manifest.json");
    // One that cannot be read, or has lost what its run began with, is made again by judging again.
    let whole = |m: Value| m["complete"] == true && !m["version"].is_null();
    let complete = manifest.exists() && directory::read_json(&manifest).is_ok_and(whole);
    if !complete || ["eval.json", "split.json"].iter().any(|name| !dir.join(name).exists()) {
        return Ok(false);
    }
    directory::prove(dir)?;
    Ok(true)
}

/// Goes on with more rounds, unless something was done by the number of rounds that can not be taken back.
pub(super) fn extend(config: &Config, dir: &mut RunDir) -> Result<()> {
    let rounds = &config.federated;
    let sparse = rounds.eval_every > 1 || rounds.mode == Mode::Local;
    let reader = match rounds.export {
        _ if rounds.lr_schedule == RateSchedule::Cosine && rounds.lr_rounds == 0 => {
            Some("federated.lr_schedule = \"cosine\" went by the number of rounds, as federated.lr_rounds = 0 says")
        }
        Export::Best if sparse => Some(
            "federated.export = \"best\" may have chosen one of its last ten rounds, which a longer run judges less often",
        ),
        _ if config.algorithm.algorithm().needs().judged && sparse => {
            Some("algorithm.kind works more in its last ten rounds, which a longer run judges less often")
        }
        _ => None,
    };
    if let Some(reader) = reader {
        let at = dir.path().display();
        return Err(Error::input(format!("{at}: federated.rounds cannot grow: {reader}"))
            .hint("begin the longer run in another directory, as in --set run.dir=runs/longer"));
    }
    // The last ten rounds were judged; of a longer run they are not the last. Alignment at the end is done again.
    let keep = |record: &Value| match record["stage"].as_str() {
        Some("align") if config.align.when == When::End => false,
        Some("finetune" | "align") if record["split"] != "train" && record["split"] != FAILED => {
            record["round"].as_u64().is_some_and(|round| rounds.judged(round as usize))
        }
        _ => true,
    };
    dir.extend(&config.to_table()?, keep)
}

fn stages_of(config: &Config, stages: Stages, dir: &mut RunDir, library: &Library, cx: &Context) -> Result<()> {
    if let Some(task) = config.task.mllm() {
        return super::mllm::stages_of(config, task, stages, dir, cx);
    }
    config.check_supplies()?;
    let experiment = Experiment::open_with(config.clone(), library, cx)?;
    experiment.refuse_unsupplied()?;
    if stages != Stages::Pretrain {
        experiment.refuse_single(cx)?;
    }
    let estimate = experiment.estimate(cx)?;
    if dir.longer() {
        extend(config, dir)?;
    }
    dir.update_manifest(&[("state", json!("running"))].into())?;
    if config.run.tensorboard {
        Board::begin(dir.path())?;
    }
    let dir = &*dir;
    experiment.record_split(dir, cx)?;
    experiment.prove_inputs(dir, cx)?;
    cx.events.on(Event::Note(&format!("memory: about {}", estimate.sum_in_words())));
    same_device(dir, cx)?;
    dir.update_manifest(&experiment.facts(cx)?)?;
    let mut entries = Entries::new();
    let pretrained = experiment.stage_one(stages, dir, cx)?;
    if let Some(p) = &pretrained
        && let Some(figures) = &p.evaluation
    {
        let entry = evaluate::entry(figures, &p.params.digest(), None);
        entries.insert("pretrain".into(), entry);
    }
    let pool_images = pretrained.as_ref().map_or(0, |p| p.images);
    if stages == Stages::Pretrain {
        let extras = experiment.extras(pool_images, 0, cx)?;
        experiment.say(&mut entries, &extras);
        experiment.prove_inputs(dir, cx)?;
        return evaluate::write(dir, &entries, "pretrain", extras);
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
    let tuned = experiment.stage_two(stages, dir, pretrained.as_ref(), step, library, cx)?;
    let records = evaluate::records(dir)?;
    // Counted when the rounds are over: nobody waits for a walk through all of them before the first.
    let mut extras = experiment.extras(pool_images, config.federated.rounds, cx)?;
    extras["burden"] = experiment.burden(&records);
    if let Some(epsilon) = spent(&records) {
        extras[EPSILON] = epsilon;
    }
    if let Some((failures, text)) = left_out(&records) {
        cx.events.on(Event::Warning(&text));
        extras["failures"] = failures;
    }
    let last = |stage| evaluate::last_ten(&records, stage, "test", "accuracy");
    let figures = experiment.judge().classifier(&experiment.net, &tuned.model, cx)?;
    let mut entry = evaluate::entry(&figures, &tuned.model.digest(), last("finetune"));
    entry.extend(experiment.personal_entry(dir)?);
    entry.extend(experiment.validated(&tuned.model, cx)?);
    entries.insert("finetune".into(), entry);
    let (mut model, mut stage) = (tuned.model, "finetune");
    if let (Some(aligner), true) = (&aligner, stages != Stages::Finetune) {
        let judge = |p: &Params| experiment.judge().classifier(&experiment.net, p, cx);
        model = match tuned.aligned {
            Some(aligned) => aligned,
            None => align::align(dir, &experiment.net, aligner, &model, config.federated.rounds, &judge, cx)?,
        };
        let last = if align.when == When::EveryRound { last("align") } else { None };
        let mut entry = evaluate::entry(&judge(&model)?, &model.digest(), last);
        entry.extend(experiment.validated(&model, cx)?);
        entries.insert("align".into(), entry);
        stage = "align";
    }
    if config.evaluate.logits {
        let (logits, labels) = experiment.judge().logits(&experiment.net, &model, cx)?;
        evaluate::write_logits(dir, "logits.safetensors", &logits, &labels, experiment.net.outputs())?;
    }
    experiment.say(&mut entries, &extras);
    evaluate::write(dir, &entries, stage, extras)?;
    // Once more, for what was fetched meanwhile.
    experiment.prove_inputs(dir, cx)?;
    let sources = experiment.ledger.to_json();
    dir.update_manifest(&[("complete", json!(stages == Stages::All)), ("sources", sources)].into())
}

/// Which clients were left out of rounds, as `eval.json` has it and in words; none where none was.
pub(super) fn left_out(records: &[Value]) -> Option<(Value, String)> {
    let failed: Vec<&Value> = records.iter().filter(|r| r["split"] == FAILED).collect();
    let distinct = |key| failed.iter().filter_map(|r| r[key].as_u64()).collect::<BTreeSet<u64>>();
    let (clients, rounds, n) = (distinct("client"), distinct("round"), failed.len());
    let names: Vec<String> = clients.iter().take(10).map(u64::to_string).collect();
    let more = if clients.len() > names.len() { ", …" } else { "" };
    let text = format!(
        "in {} round(s) clients failed and were left out, {n} times in all: {}{more}; metrics.jsonl says why",
        rounds.len(),
        names.join(", ")
    );
    (n > 0).then(|| (json!({ "times": n, "clients": clients, "rounds": rounds.len() }), text))
}

/// The privacy that the rounds have cost, where they are private.
pub(super) fn spent(records: &[Value]) -> Option<Value> {
    records.iter().rev().find_map(|r| r.get(EPSILON)).cloned()
}

impl Experiment {
    /// A classifier's figures on the validation set, where there is one, as an entry of `eval.json` holds them.
    fn validated(&self, model: &Params, cx: &Context) -> Result<Map<String, Value>> {
        let Some(data) = self.validation()? else { return Ok(Map::new()) };
        let figures = Judge { data: &data, ..self.judge() }.classifier(&self.net, model, cx)?.to_json();
        Ok(Map::from_iter([("validation".to_string(), Value::Object(figures))]))
    }

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
            let again = (2..).map(|n| format!("{name} {n}"));
            let free = std::iter::once(name.clone()).chain(again).find(|n| !entries.contains_key(n));
            entries.insert(free.unwrap_or(name), self.alone(teacher, cx)?);
        }
        let (data, set) = self.server_set();
        if config.evaluate.probe {
            let test = &self.benchmark.test;
            let server = data.select(format!("{} (taught)", data.name), &set)?;
            let [fit, judged] = [&server, test].map(|d| self.embedder.dataset_features(d, cx));
            let scores = probe::probe(&fit?, &server.labels, test.classes.len(), &judged?)?;
            let figures = Evaluation::of(&scores, &test.labels, test.classes.len(), &self.groups);
            entries.insert("probe".into(), evaluate::entry(&figures, "", None));
        }
        if config.align.beta == 0.0 {
            return Ok(None);
        }
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
        library: &Library,
        cx: &Context,
    ) -> Result<Finetuned> {
        if stages == Stages::Align && !dir.file("finetune/done.json").exists() {
            return Err(Error::input(format!("{} holds no finished federated stage", dir.path().display()))
                .hint("run `fedllava finetune` with this config first"));
        }
        self.federated(Some(dir), align, cx, |federation| self.rounds(federation, dir, pretrained, library, cx))
    }

    /// Makes this run's federation for `work`; a directory is held against what it names.
    pub(super) fn federated<T>(
        &self,
        dir: Option<&RunDir>,
        align: Option<&dyn ServerStep>,
        cx: &Context,
        work: impl FnOnce(Federation<'_>) -> Result<T>,
    ) -> Result<T> {
        let (images, holders, stock) = (self.train(), self.holders(), self.stock(cx)?);
        let unlabelled = stock.loaded(&self.loader);
        dir.map_or(Ok(()), |dir| self.prove_unlabelled(dir, stock.unlabelled()))?;
        let supplies = self.supplies(&stock, unlabelled.as_ref(), cx)?;
        let (net, backend) = (self.net.clone(), self.config.run.engine);
        let trainer = CompactTrainer::new(net, backend, &images, &holders).with(supplies);
        let (mode, algorithm) = (self.config.federated.mode, self.config.algorithm.algorithm());
        let alone = Alone(algorithm);
        let cohort = |round| match mode {
            Mode::Centralised => Ok(vec![0]),
            _ => self.cohort(round),
        };
        work(Federation {
            algorithm: if mode == Mode::Local { &alone } else { algorithm },
            trainer: &trainer,
            config: &self.config.federated,
            clients: self.split.clients.len(),
            cohort: &cohort,
            align,
            feedback: self.config.align.feedback,
            key: self.key,
        })
    }

    /// The federated rounds, from what lies on disk or another run has left; and what clients' own models do.
    fn rounds(
        &self,
        federation: Federation<'_>,
        dir: &RunDir,
        pretrained: Option<&Pretrained>,
        library: &Library,
        cx: &Context,
    ) -> Result<Finetuned> {
        let judge = |p: &Params| self.judge().classifier(&self.net, p, cx).map(Judged::from);
        let done = dir.file("finetune/done.json").exists();
        // What the rounds go on from is in their own checkpoints: another run need not keep its.
        let begun = done || !checkpoint::rounds(&dir.file("checkpoints"))?.is_empty();
        let start = match begun && !self.config.finetune.from.is_empty() {
            true => None,
            false => Some(self.start(pretrained, cx)?),
        };
        // Of a finished one only what waits to be kept: its process was killed before it could.
        let open = !done || Shelf::awaits(dir, "finetune");
        let plain = start.as_ref().filter(|start| open && start.carried.is_none());
        let shelf = plain.map_or(Ok(None), |start| self.finetune_shelf(&start.model))?;
        let given = if done { Ok(false) } else { shelf.as_ref().map_or(Ok(false), |s| s.give(dir, &*cx.events)) }?;
        shelf.as_ref().filter(|_| !done && !given).map_or(Ok(()), |s| s.begin(dir))?;
        let validation = self.validation()?;
        let validate = validation.as_ref().map(|data| {
            move |p: &Params| Judge { data, ..self.judge() }.classifier(&self.net, p, cx).map(Judged::from)
        });
        let validate = validate.as_ref().map(|v| v as Evaluate<'_>);
        let summon = || super::ranks::summon(&self.config, Some(library), self.sets(), cx);
        let stage = Finetune { dir, federation, layout: &self.net.layout, evaluate: &judge, validate, summon: &summon };
        let tuned = stage.run(start, cx)?;
        self.judge_personal(dir, &stage.federation, &tuned, cx)?;
        shelf.map_or_else(|| Shelf::forget(dir, "finetune"), |s| s.keep(dir, &[]))?;
        Ok(tuned)
    }

    /// What a table says beside the numbers: what the run had that a plain baseline lacks.
    /// `rounds` were run.
    fn extras(&self, pool_images: usize, rounds: usize, cx: &Context) -> Result<Value> {
        let config = &self.config;
        let counts = self.split.global_counts();
        Ok(json!({
            "budget": self.budget(pool_images, rounds, cx)?,
            "algorithm": serde_json::to_value(&config.algorithm).unwrap_or(Value::Null)["kind"],
            "mode": config.federated.mode,
            "tau_norm": config.finetune.tau_norm,
            "clients": self.split.clients.len(),
            "rounds": config.federated.rounds,
            "seed": config.run.seed,
            "server_labels": if config.align.enabled { self.server_set().1.len() } else { 0 },
            "smallest_class": counts.iter().min(),
            "teacher": if config.align.enabled && config.align.beta > 0.0 { json!(config.teacher.label()) } else { Value::Null },
            "oracle": (config.align.enabled || config.algorithm.algorithm().needs().teacher) && config.teacher.oracle(),
            "pretrained": config.pretrain.enabled,
            "shots": config.evaluate.shots.rule(),
            "supervised": matches!(&config.pool, PoolConfig::World(w) if w.labels),
            "test_images": self.benchmark.test.len(),
            "test": self.benchmark.test.digest,
            "classes": self.benchmark.test.classes,
            "groups": self.group_names(),
            "class_counts": counts,
            "held": { "clients": self.split.counts(), "server": self.reserved()[0] },
            "split": self.split.digest(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_often_is_judged_may_change_while_no_round_that_is_done_tells_the_difference() {
        let dir = tempfile::tempdir().unwrap();
        let config = |every: usize, rounds: usize| {
            let text = format!("federated = {{ rounds = {rounds}, eval_every = {every} }}");
            Config::from_table(toml::from_str(&text).unwrap()).unwrap()
        };
        let may = |(was, is): (usize, usize), rounds: (usize, usize)| {
            !idle(&config(was, rounds.0).to_table().unwrap(), &config(is, rounds.1), dir.path()).is_empty()
        };
        assert!(may((2, 3), (40, 40)), "nothing is done");
        assert!(!may((4, 4), (40, 50)), "more rounds are another matter");
        std::fs::create_dir_all(dir.path().join("checkpoints/round-000002")).unwrap();
        assert!(may((4, 8), (40, 40)) && !may((2, 3), (40, 40)) && !may((3, 1), (40, 40)));
        fsx::write_atomic(&dir.path().join("finetune/done.json"), b"{}").unwrap();
        assert!(!may((4, 8), (40, 40)));
        assert!(may((1, 5), (10, 10)), "each of the last ten rounds is judged");
    }
}
