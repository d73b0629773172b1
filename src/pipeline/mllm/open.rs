//! What a run on a multimodal LLM is made of.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Mllm;
use crate::config::Config;
use crate::data::multimodal::scenario::{self, Holdings};
use crate::data::multimodal::{self, Multimodal};
use crate::data::{self, Census, Ledger};
use crate::error::{Error, Place, Result};
use crate::exec::{Context, Event, available_memory, human};
use crate::fl::cohort::{self, CohortDraw};
use crate::fl::round::Federation;
use crate::fl::trainer::CompactTrainer;
use crate::fl::{ClientId, Mode};
use crate::fsx::Made;
use crate::key::Key;
use crate::model::hub;
use crate::model::lora::Plan;
use crate::model::vlm::Opened;
use crate::nn::{Batch, Samples, View};
use crate::pipeline::COMMIT;
use crate::pipeline::experiment::instruction_set;
use crate::pipeline::made_of::Inputs;
use crate::run::{RunDir, directory, program};
use crate::task::mllm::MllmTaskConfig;
use crate::task::mllm::lessons::{Keep, Lessons};
use crate::task::mllm::speaker::{self, School};

const MIB: usize = 1 << 20;

/// A set and who holds what of it: all that `split` needs, without a model.
pub struct Held {
    /// The samples.
    pub set: Multimodal,
    /// Who holds which modality of which.
    pub holdings: Holdings,
}

impl Held {
    /// Reads the set and draws the scenario.
    pub fn open(config: &Config, enter: &dyn Fn(&Census) -> Result<()>, cx: &Context) -> Result<Self> {
        let Some(of) = config.data.multimodal() else {
            return Err(Error::input("task.kind = \"mllm\" answers questions, and data.kind names a set of images")
                .hint("choose data.kind = \"questions\", \"hateful-memes\", \"crisismmd\", \"vqa-rad\", \"medical\" or \"jsonl\""));
        };
        let key = config.run.split_key();
        let set = multimodal::load(&of, key, cx)?;
        let set = match config.task.mllm() {
            Some(task) => task.shuffled.of(set, key)?,
            None => set,
        };
        set.sources.iter().try_for_each(enter)?;
        let holdings = scenario::draw(&config.scenario, &set.train.samples, &set.recipe, key)?;
        Ok(Held { set, holdings })
    }
}

/// Refuses what no sample would make right: a method that works on scores, settings that do not fit each other.
fn refuse(config: &Config, plan: &Plan, clients: usize, key: Key, cx: &Context) -> Result<()> {
    let net = Arc::new(speaker::net(plan, 0));
    let start = net.init(key);
    let session = |_: &Context, _| Err(Error::defect("nobody trains yet"));
    let (nothing, nobody) = (Nothing, vec![Vec::new(); clients]);
    let trainer = CompactTrainer::within(net, session, &nothing, &nobody);
    let cohort = |_| Ok(vec![0]);
    let (algorithm, config) = (config.algorithm.algorithm(), &config.federated);
    let federation = Federation {
        algorithm,
        trainer: &trainer,
        config,
        clients,
        cohort: &cohort,
        align: None,
        feedback: false,
        key,
    };
    federation.start(start, cx).map(drop)
}

/// No samples.
struct Nothing;

impl Samples for Nothing {
    fn fill(&self, _: &[u32], _: View, _: Key, _: &mut Batch) -> Result<()> {
        Err(Error::defect("no sample was prepared yet"))
    }
}

impl<'a> Mllm<'a> {
    /// Reads the set, opens the model, prepares what clients hold.
    pub fn open(config: &'a Config, task: &'a MllmTaskConfig, cx: &Context) -> Result<Self> {
        let ledger = Ledger::default();
        let enter = |census: &Census| ledger.enter(census, config.run.tolerate, cx);
        let Held { set, holdings } = Held::open(config, &enter, cx)?;
        let folder = data::resolve(&task.model).or_else(|e| match hub::is_id(&task.model) {
            true => hub::resolve(&task.model),
            false => Err(e),
        });
        let opened = Opened::open(&folder.at(|| "task.model")?, cx)?;
        let plan = opened.plan(&task.lora)?;
        let key = Key::from_seed(config.run.seed);
        refuse(config, &plan, holdings.clients.len(), key, cx)?;
        // What pictures go through is frozen where all that is trained belongs to the language model.
        let frozen = plan.layout().entries().iter().all(|e| plan.always(&e.name));
        let keep = Keep { budget: task.keep_pictures * MIB, features: frozen };
        let (prompts, longest) = (task.prompts, task.max_length);
        let lessons = Lessons::prepare(opened.frozen()?, &set, &holdings, prompts, longest, keep, cx)?;
        enter(&lessons.census)?;
        let need = opened.need(&plan, task.micro_batch, lessons.longest);
        let all = need.total() + (cx.threads as u64 - 1) * (need.total() - need.base);
        cx.events.on(Event::Note(&format!("memory: {need}; {} with {} workers", human(all), cx.threads)));
        if let Some(free) = available_memory().filter(|free| cx.device.is_cpu() && all > *free) {
            return Err(Error::environment(format!("training takes about {}, {} are free", human(all), human(free)))
                .hint("lower run.threads or task.micro_batch, or set task.precision = \"bf16\""));
        }
        let (micro_batch, recompute) = (task.micro_batch, task.recompute);
        let school = Arc::new(School { opened, plan, lessons, micro_batch, recompute });
        Ok(Mllm { config, task, key, set, holdings, school, frozen, ledger })
    }

    /// Who trains: the clients, or one machine that holds what all of them do.
    pub(super) fn holders(&self) -> Vec<Vec<u32>> {
        let clients = &self.school.lessons.clients;
        match self.config.federated.mode {
            Mode::Centralised => vec![clients.concat()],
            _ => clients.clone(),
        }
    }

    /// Layers of the language model.
    pub(super) fn layers(&self) -> usize {
        self.school.opened.text().num_hidden_layers
    }

    pub(super) fn cohort(&self, round: usize) -> Result<Vec<ClientId>> {
        let (clients, size) = (self.school.lessons.clients.len(), self.config.federated.cohort);
        match self.config.federated.cohort_draw {
            CohortDraw::Key => Ok(cohort::by_key(self.key, round, clients, size)),
            CohortDraw::Fedmllm => Ok(cohort::fedmllm(round, clients, size)),
            CohortDraw::Creff => Err(Error::input("federated.cohort_draw = \"creff\" is another benchmark's")
                .hint("with task.kind = \"mllm\" choose \"key\" or \"fedmllm\"")),
        }
    }

    /// Samples that clients have trained on, each as often as it was seen, at the end of the run.
    pub(super) fn sample_steps(&self) -> u64 {
        let (federated, clients) = (&self.config.federated, &self.school.lessons.clients);
        let of = |round: usize| -> usize {
            let cohort = self.cohort(round).unwrap_or_default();
            cohort.iter().map(|&c| clients[c as usize].len()).sum()
        };
        let all: usize = clients.iter().map(Vec::len).sum();
        let seen: f64 = match federated.mode {
            Mode::Centralised => (federated.rounds * all * federated.cohort) as f64 / clients.len().max(1) as f64,
            _ => (1..=federated.rounds).map(of).sum::<usize>() as f64,
        };
        (seen * federated.local_epochs as f64) as u64
    }

    /// The model and the samples.
    pub(super) fn inputs(&self) -> Result<Inputs> {
        const MODEL: &str = "weights, tokenizer, picture processing and chat template";
        const SAMPLES: &str = "questions, texts and answers; pictures in files by name and size";
        let made = |digest: String, covers| Made { digest, covers };
        let mut found = BTreeMap::from([("task.model".to_string(), made(self.school.opened.revision()?, MODEL))]);
        for part in self.set.tests.iter().chain([&self.set.train, &self.set.val]).filter(|p| !p.samples.is_empty()) {
            found.insert(format!("data: {}", part.name), made(part.digest()?, SAMPLES));
        }
        Ok(found)
    }

    /// Writes `split.json`: what each client holds; another one on resumption is refused.
    pub(super) fn record_split(&self, dir: &RunDir, cx: &Context) -> Result<()> {
        let (path, now) = (dir.file("split.json"), self.holdings.to_json(&self.set.train.samples)?);
        let old = path.exists().then(|| directory::read_json(&path));
        match old {
            Some(Ok(old)) if old["digest"] == now["digest"] => Ok(()),
            Some(Ok(_)) => Err(Error::data(format!("{} is another split than this run draws", path.display()))
                .hint("the data set changed since the run began; start it in another directory")),
            Some(Err(e)) => {
                cx.events.on(Event::Warning(&format!("{}: drawn again", e.message())));
                dir.write_json("split.json", &now)
            }
            None => dir.write_json("split.json", &now),
        }
    }

    /// What the manifest says of this run.
    pub(super) fn facts(&self, cx: &Context) -> Result<BTreeMap<&'static str, Value>> {
        let (school, run) = (&self.school, &self.config.run);
        Ok(BTreeMap::from([
            ("commit", json!(COMMIT)),
            ("program", json!(program()?)),
            ("version", json!(env!("CARGO_PKG_VERSION"))),
            ("seed", json!(run.seed)),
            ("split_seed", json!(run.split_seed.unwrap_or(run.seed))),
            ("device", json!(format!("{:?}", cx.device.location()))),
            ("instruction_set", json!(instruction_set())),
            ("model", json!({ "family": school.opened.family().name(), "revision": school.opened.revision()? })),
            ("split", json!({ "digest": self.holdings.digest(&self.set.train.samples)? })),
            ("sources", self.ledger.to_json()),
            ("parameters", json!(school.plan.layout().weights())),
            ("multiply_adds", json!(school.lessons.multiply_adds)),
        ]))
    }

    /// What a table says beside the numbers.
    pub(super) fn extras(&self) -> Result<Value> {
        let config = &self.config;
        let test = self.set.tests.first().map_or(0, |t| t.samples.len());
        Ok(json!({
            "algorithm": serde_json::to_value(&config.algorithm).unwrap_or(Value::Null)["kind"],
            "mode": config.federated.mode,
            "clients": self.school.lessons.clients.len(),
            "rounds": config.federated.rounds,
            "seed": config.run.seed,
            "metric": self.set.metric,
            "test_images": test,
            "test": self.set.tests.first().map(|t| t.digest()).transpose()?,
            "classes": self.set.options,
            "held": { "modalities": self.holdings.mixes(&self.set.train.samples)? },
            "split": self.holdings.digest(&self.set.train.samples)?,
        }))
    }
}
