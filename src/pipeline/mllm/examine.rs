//! What the adapters answer on the test sets.

use serde_json::{Map, Value, json};

use super::Mllm;
use crate::data::multimodal::{Ask, Subset};
use crate::error::{Error, Result};
use crate::exec::{Context, Event};
use crate::mllm::judge::{Case, Endpoint};
use crate::nn::Params;
use crate::run::RunDir;
use crate::task::mllm::judge::{Exam, Manner, Reply};

/// An entry of `eval.json`, its figures for a table, and all answers.
type Examined = (Map<String, Value>, Vec<(String, String)>, String);

impl Mllm<'_> {
    fn manner(&self) -> Manner {
        let (task, parser) = (self.task, self.config.judge.parser);
        Manner {
            prompts: task.prompts,
            parser,
            tokens: task.answer_tokens,
            batch: task.answer_batch,
            likelihood: task.likelihood,
        }
    }

    /// Every test part, ready to be asked.
    pub(super) fn exams(&self, cx: &Context) -> Result<Vec<Exam<'_>>> {
        let vlm = self.school.opened.frozen()?;
        let mut budget = self.task.keep_pictures << 20;
        let part = |part| Exam::prepare(&*vlm, &self.set, part, self.manner(), (&mut budget, self.frozen), cx);
        self.set.tests.iter().map(part).collect()
    }

    /// The validation part, where the set has one and it selects.
    pub(super) fn validation(&self, cx: &Context) -> Result<Option<Exam<'_>>> {
        let best = self.config.federated.export == crate::fl::config::Export::Best;
        if !best {
            if !self.set.val.samples.is_empty() {
                let n = self.set.val.samples.len();
                let text =
                    format!("{n} validation samples are asked only where federated.export = \"best\" selects by them");
                cx.events.on(Event::Note(&text));
            }
            return Ok(None);
        }
        if self.set.val.samples.is_empty() {
            return Err(Error::input(format!("federated.export = \"best\": {} has no validation part", self.set.name))
                .hint("federated.export = \"last\" needs none"));
        }
        let vlm = self.school.opened.frozen()?;
        let mut budget = self.task.keep_pictures << 20;
        Exam::prepare(&*vlm, &self.set, &self.set.val, self.manner(), (&mut budget, self.frozen), cx).map(Some)
    }

    /// The final adapters on all test parts: the entry of `eval.json`, what of it a table shows, and every answer, a line
    /// each.
    pub(super) fn examine(&self, dir: &RunDir, exams: &[Exam<'_>], params: &Params, cx: &Context) -> Result<Examined> {
        let vlm = self.school.opened.merged(&self.school.plan, params)?;
        let (mut entry, mut tests, mut lines, mut columns) = (Map::new(), Map::new(), String::new(), Vec::new());
        for (exam, part) in exams.iter().zip(&self.set.tests) {
            let replies = exam.ask(&*vlm, cx)?;
            let mut figures = exam.scores(&replies)?.to_json();
            figures.extend(self.judged_by_others(dir, part, &replies, cx)?);
            if entry.is_empty() {
                entry = self.entry(&exam.scores(&replies)?, &params.digest(), dir)?;
                entry.extend(figures.clone());
                columns = exam.scores(&replies)?.columns();
            } else {
                columns.push((format!("tests/{}/overall", exam.name()), exam.name().to_string()));
            }
            exam.lines(&replies).iter().for_each(|line| lines += &format!("{line}\n"));
            tests.insert(exam.name().to_string(), Value::Object(figures));
        }
        if tests.len() > 1 {
            entry.insert("tests".into(), Value::Object(tests));
        }
        entry.extend(self.personal_entry(dir)?);
        Ok((entry, columns, lines))
    }

    /// What the judge that `judge.endpoint` names says of open answers; nothing where none is named.
    fn judged_by_others(
        &self,
        dir: &RunDir,
        part: &Subset,
        replies: &[Reply],
        cx: &Context,
    ) -> Result<Map<String, Value>> {
        if self.config.judge.endpoint.is_empty() {
            return Ok(Map::new());
        }
        let mut cases = Vec::new();
        for (sample, reply) in part.samples.iter().zip(replies) {
            if let Ask::Open(question) = &sample.ask {
                let (id, kind, right, given) = (&sample.id, sample.facets.answer_type, &sample.target, &reply.answer);
                cases.push(Case { id, kind, question, right, given });
            }
        }
        let judged = Endpoint::open(&self.config.judge, &dir.file("verdicts.jsonl"))?.judge(&cases, cx)?;
        cx.events.on(Event::Note(&format!(
            "{}: {} answers judged by {}, {} verdicts unread",
            part.name,
            cases.len(),
            self.config.judge.model,
            judged.unjudged
        )));
        let scores = judged.scores;
        let facts = json!({ "judged": scores.overall.rate(), "judged_open": scores.open.rate(),
            "judged_closed": scores.closed.rate(), "unjudged": judged.unjudged });
        Ok(facts.as_object().cloned().unwrap_or_default())
    }

    /// What clients' own adapters do, for `eval.json`.
    fn personal_entry(&self, dir: &RunDir) -> Result<Map<String, Value>> {
        let path = dir.file(super::PERSONAL);
        if !path.exists() {
            return Ok(Map::new());
        }
        let facts = crate::run::directory::read_json(&path)?;
        let figures = json!({ "personal": facts["overall"], "personal_headline": facts["headline"],
            "personal_clients": facts["judged"] });
        Ok(figures.as_object().cloned().unwrap_or_default())
    }
}
