//! What cannot run, or cannot be meant, is refused before anything is read or written.

use super::Config;
use crate::data::PartitionConfig;
use crate::data::multimodal::scenario::ScenarioConfig;
use crate::error::{Error, Result};
use crate::fl::Mode;
use crate::fl::alone::Alone;
use crate::fl::config::Export;
use crate::fl::way::LinkConfig;
use crate::mllm::judge::JudgeConfig;
use crate::run::SCHEMA;
use crate::stage::finetune::HeadInit;
use crate::stage::pretrain::Pretext;

/// Most worker threads that a machine is believed to have.
const THREADS: usize = 1024;
/// Most rounds that anybody waits for.
const ROUNDS: usize = 1_000_000;

impl Config {
    pub(super) fn check(&self) -> Result<()> {
        if self.schema.0 > SCHEMA {
            return Err(Error::input(format!("schema = {}: this program knows {SCHEMA}", self.schema.0))
                .hint("use a newer fedllava"));
        }
        self.check_arms()?;
        self.check_task()?;
        self.check_before()?;
        self.check_sizes()?;
        self.check_rates()?;
        self.finetune.check()?;
        self.unlabelled.check()?;
        if self.pretrain.enabled {
            self.pretrain.check()?;
        }
        self.check_start()?;
        if self.align.enabled {
            self.align.check()?;
        }
        if self.federated.mode == Mode::Local {
            Alone(self.algorithm.algorithm()).check()?;
        }
        if self.sweeps() {
            self.plan()?;
        }
        if let Some(table) = &self.table {
            table.check()?;
        }
        self.federated.check(self.clients(), self.algorithm.algorithm())
    }

    fn check_arms(&self) -> Result<()> {
        let mut names: Vec<&str> = self.arms.iter().map(|a| a.name.as_str()).collect();
        names.sort_unstable();
        if names.iter().any(|n| n.is_empty() || n.contains(['/', '\\', '.'])) || names.windows(2).any(|w| w[0] == w[1])
        {
            return Err(Error::input("arms: each needs a name of its own, without '/' and '.'"));
        }
        Ok(())
    }

    /// What belongs to the other task is refused, not passed over.
    fn check_task(&self) -> Result<()> {
        let refused = |text: &str, hint: &str| Err(Error::input(text).hint(hint));
        let Some(task) = self.task.mllm() else {
            return match (self.data.multimodal().is_some(), &self.scenario, &self.judge) {
                (true, ..) => refused(
                    "data.kind names questions, and task.kind = \"classify\" needs images with labels",
                    "set task.kind=mllm",
                ),
                (_, scenario, _) if *scenario != ScenarioConfig::default() => refused(
                    "scenario is for task.kind = \"mllm\"",
                    "set task.kind=mllm, or deal images with the keys of partition",
                ),
                (_, _, judge) if *judge != JudgeConfig::default() => {
                    refused("judge is for task.kind = \"mllm\"", "set task.kind=mllm")
                }
                _ => Ok(()),
            };
        };
        if self.data.multimodal().is_none() {
            return refused(
                "task.kind = \"mllm\" answers questions, and data.kind names images with labels",
                "choose data.kind = \"questions\", \"hateful-memes\", \"crisismmd\", \"vqa-rad\", \"medical\" or \"jsonl\"",
            );
        }
        for (key, on) in [("pretrain.enabled", self.pretrain.enabled), ("align.enabled", self.align.enabled)] {
            if on {
                return Err(Error::input(format!("{key} = true: task.kind = \"mllm\" has rounds alone"))
                    .hint(format!("set {key}=false")));
            }
        }
        if self.federated.way.iter().any(|link| matches!(link, LinkConfig::Attack(a) if a.flips() && a.attackers > 0)) {
            return refused(
                "federated.way: attack: how = \"label-flip\" turns classes round, and questions have none",
                "choose another attack, or task.kind = \"classify\"",
            );
        }
        if self.federated.export == Export::Best && self.federated.mode == Mode::Local {
            return refused(
                "federated.export = \"best\" chooses among the server's models, which local ones are not",
                "set federated.export=last",
            );
        }
        task.check()?;
        self.scenario.check()?;
        self.judge.check()
    }

    fn check_sizes(&self) -> Result<()> {
        let refused = |text: String, hint: &str| Err(Error::input(text).hint(hint));
        if self.run.threads > THREADS {
            let text = format!("run.threads = {}: the most is {THREADS}", self.run.threads);
            return refused(text, "0 takes every core");
        }
        if !(0.0..=1.0).contains(&self.run.tolerate) {
            return refused(
                format!("run.tolerate = {}: a share is from 0 to 1", self.run.tolerate),
                "0.01 is one in a hundred",
            );
        }
        if self.federated.rounds > ROUNDS {
            let text = format!("federated.rounds = {}: the most is {ROUNDS}", self.federated.rounds);
            return refused(text, "a finished run goes on with more rounds: begin with fewer");
        }
        if self.federated.local_epochs == 0 {
            return refused(
                "federated.local_epochs = 0: clients would not train".into(),
                "the smallest is 1; for the start model alone set federated.rounds=0",
            );
        }
        let llm = self.pretrain.objective == Pretext::Llm;
        let (key, epochs) = match llm {
            true => ("pretrain.llm.epochs", self.pretrain.llm.epochs),
            false => ("pretrain.epochs", self.pretrain.epochs),
        };
        if self.pretrain.enabled && epochs == 0 {
            return refused(
                format!("{key} = 0: nothing would be learned"),
                "pretrain.enabled=false switches the stage off",
            );
        }
        if self.align.enabled && self.align.steps == 0 {
            return refused(
                "align.steps = 0: nothing would change".into(),
                "align.enabled=false switches the stage off",
            );
        }
        if self.partition.clients() == 0 {
            return refused("partition.clients = 0: nobody would hold anything".into(), "the smallest is 1");
        }
        match &self.partition {
            PartitionConfig::File(file) if file.path.is_empty() => refused(
                "partition.path is empty".into(),
                "name the file that `fedllava split export CONFIG split.json` wrote",
            ),
            _ => Ok(()),
        }
    }

    fn check_rates(&self) -> Result<()> {
        let rates = [
            (true, "federated", &self.federated.optimiser),
            (
                self.pretrain.enabled && self.pretrain.objective == Pretext::Contrast,
                "pretrain",
                &self.pretrain.optimiser,
            ),
            (
                self.pretrain.enabled && self.pretrain.objective == Pretext::Llm,
                "pretrain.llm",
                &self.pretrain.llm.optimiser,
            ),
            (self.align.enabled, "align", &self.align.optimiser),
        ];
        for (_, section, optimiser) in rates.iter().filter(|(used, ..)| *used) {
            optimiser.check(&format!("{section}.optimiser"))?;
            let lr = optimiser.lr();
            if !(lr.is_finite() && lr > 0.0) {
                return Err(Error::input(format!("{section}.optimiser.lr = {lr}: nothing would be learned")).hint(
                    "choose a rate above 0; pretrain.enabled, align.enabled and federated.rounds switch stages off",
                ));
            }
        }
        Ok(())
    }

    fn check_start(&self) -> Result<()> {
        let head = self.finetune.head_init;
        if self.pretrain.enabled && self.pretrain.objective == Pretext::Llm && head == HeadInit::Text {
            return Err(Error::input("finetune.head_init = \"text\" needs pretrain.objective = \"contrast\"").hint(
                "the language model's objective trains no projection to the class texts; \"probe\" and \"random\" need none",
            ));
        }
        if head == HeadInit::Probe && !self.finetune.from.is_empty() {
            return Err(Error::input(
                "finetune.from starts the classifier too: head_init = \"probe\" would replace it",
            ));
        }
        Ok(())
    }
}
