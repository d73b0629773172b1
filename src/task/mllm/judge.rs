//! Answers on the test sets, and what they are worth.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::lessons::{asked, bytes, see};
use crate::data::multimodal::{Ask as Asked, Metric, Multimodal, Sample as Example, Subset};
use crate::error::{Place, Result};
use crate::exec::{self, Context, Event};
use crate::mllm::judge::{AnswerScores, Parser};
use crate::mllm::wording::Prompts;
use crate::model::chat::{Message, Role};
use crate::model::sample::Decoding;
use crate::model::vlm::{Ask, Prompt, Sample, Vlm};

/// Groups of questions that are under way at once.
const WINDOW: usize = 16;

/// How a model is judged.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// How samples are put into words.
    pub prompts: Prompts,
    /// How a choice is read from an answer.
    pub parser: Parser,
    /// Most tokens of an answer.
    pub tokens: usize,
    /// Questions answered side by side.
    pub batch: usize,
    /// Whether options are scored by their likelihood too.
    pub likelihood: bool,
}

/// One question, ready to be asked.
struct Question {
    prompt: Prompt,
    /// The options of a choice as answers to be learnt, where their likelihood is wanted.
    options: Vec<Sample>,
}

/// What a model said to one question.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// Its greedy answer.
    pub answer: String,
    /// The probability of each option: its likelihood over the sum of all options'.
    pub probabilities: Option<Vec<f64>>,
}

/// A set to test on.
pub struct Exam<'a> {
    set: &'a Multimodal,
    part: &'a Subset,
    manner: Manner,
    /// Prepared questions as far as memory was granted.
    kept: Vec<Option<Arc<Question>>>,
}

impl<'a> Exam<'a> {
    /// Prepares the questions of a part, keeping them where the picture's way is frozen and `budget` bytes allow it.
    pub fn prepare(
        vlm: &dyn Vlm,
        set: &'a Multimodal,
        part: &'a Subset,
        manner: Manner,
        (budget, frozen): (&mut usize, bool),
        cx: &Context,
    ) -> Result<Self> {
        let mut exam = Exam { set, part, manner, kept: vec![None; part.samples.len()] };
        if !frozen || *budget == 0 {
            return Ok(exam);
        }
        let (total, mut kept) = (part.samples.len(), Vec::with_capacity(part.samples.len()));
        cx.events.on(Event::Begin { name: "prepare test", unit: "question", done: 0, total: total as u64 });
        let job = |_: &mut (), i: usize| {
            cx.cancel.check()?;
            exam.question(vlm, i)
        };
        let threads = if cx.device.is_cpu() { cx.threads } else { 1 };
        exec::ordered(
            threads,
            total,
            4 * WINDOW,
            |_| Ok(()),
            job,
            |i, question: Question| {
                let size = bytes(&question.prompt) + question.options.iter().map(|o| bytes(&o.prompt)).sum::<usize>();
                let fits = size <= *budget;
                *budget -= if fits { size } else { 0 };
                kept.push(fits.then(|| Arc::new(question)));
                cx.events.on(Event::Advance { done: i as u64 + 1, figures: &[] });
                Ok(())
            },
        )?;
        cx.events.on(Event::End);
        exam.kept = kept;
        Ok(exam)
    }

    /// What people call the part.
    pub fn name(&self) -> &str {
        &self.part.name
    }

    fn question(&self, vlm: &dyn Vlm, i: usize) -> Result<Question> {
        let example = &self.part.samples[i];
        let worded = self.manner.prompts.evaluation(example);
        let make = || -> Result<Question> {
            let (ask, pictures) = asked(example, &worded)?;
            let mut prompt = vlm.prepare(std::slice::from_ref(&ask), &pictures)?;
            see(vlm, &mut prompt)?;
            let mut options = Vec::new();
            if let (true, Asked::Choice(choice)) = (self.manner.likelihood, &example.ask) {
                for (n, words) in choice.options.iter().enumerate() {
                    let letter = crate::data::multimodal::Choice::letter(n);
                    let answer = Message::text(Role::Assistant, format!("({letter}) {words}"));
                    let mut option = vlm.sample(&[ask.clone(), answer], &pictures)?;
                    // The same pictures stand in every option's prompt: what they are is known.
                    option.prompt.features.clone_from(&prompt.features);
                    option.prompt.pictures.clear();
                    options.push(option);
                }
            }
            Ok(Question { prompt, options })
        };
        make().at(|| format!("sample {}", example.id))
    }

    /// Asks a model everything.
    pub fn ask(&self, vlm: &dyn Vlm, cx: &Context) -> Result<Vec<Reply>> {
        let n = self.part.samples.len();
        let groups: Vec<Vec<usize>> =
            (0..n).collect::<Vec<_>>().chunks(self.manner.batch.max(1)).map(<[usize]>::to_vec).collect();
        let mut replies = Vec::with_capacity(n);
        let job = |_: &mut (), g: usize| {
            cx.cancel.check()?;
            self.group(vlm, &groups[g], cx)
        };
        let threads = if cx.device.is_cpu() { cx.threads } else { 1 };
        exec::ordered(
            threads,
            groups.len(),
            WINDOW,
            |_| Ok(()),
            job,
            |_, some: Vec<Reply>| {
                replies.extend(some);
                Ok(())
            },
        )?;
        Ok(replies)
    }

    fn group(&self, vlm: &dyn Vlm, group: &[usize], cx: &Context) -> Result<Vec<Reply>> {
        let questions = group
            .iter()
            .map(|&i| self.kept[i].clone().map_or_else(|| self.question(vlm, i).map(Arc::new), Ok))
            .collect::<Result<Vec<_>>>()?;
        let prompts: Vec<&Prompt> = questions.iter().map(|q| &q.prompt).collect();
        let decoding = Decoding::greedy(self.manner.tokens);
        let ask = Ask { prompts: &prompts, keys: &[], decoding: &decoding, cancel: &cx.cancel };
        let written = vlm.answer(&ask, &mut |_, _| Ok(()))?;
        let reply = |(question, tokens): (&Arc<Question>, &Vec<u32>)| {
            let probabilities = likelihoods(vlm, &question.options)?;
            Ok(Reply { answer: vlm.text(tokens)?, probabilities })
        };
        questions.iter().zip(&written.tokens).map(reply).collect()
    }

    /// What the replies are worth.
    pub fn scores(&self, replies: &[Reply]) -> Result<Scores> {
        let answers: Vec<String> = replies.iter().map(|r| r.answer.clone()).collect();
        let asked = replies.iter().any(|r| r.probabilities.is_some());
        let options: Vec<Vec<f64>> = replies.iter().map(|r| r.probabilities.clone().unwrap_or_default()).collect();
        let (samples, parser) = (&self.part.samples, self.manner.parser);
        let of =
            AnswerScores::of(samples, &answers, asked.then_some(&options), parser).at(|| self.part.name.clone())?;
        Ok(Scores { of, metric: self.set.metric })
    }

    /// Every question with its answer, a line each: `answers.jsonl`.
    pub fn lines(&self, replies: &[Reply]) -> Vec<Value> {
        let line = |(e, r): (&Example, &Reply)| {
            json!({ "set": self.part.name, "id": e.id, "target": e.target, "answer": r.answer,
                "probabilities": r.probabilities })
        };
        self.part.samples.iter().zip(replies).map(line).collect()
    }
}

/// The options' shares of their likelihood: softmax over the sums of their tokens' log-probabilities.
fn likelihoods(vlm: &dyn Vlm, options: &[Sample]) -> Result<Option<Vec<f64>>> {
    if options.is_empty() {
        return Ok(None);
    }
    let logs = options
        .iter()
        .map(|o| Ok(-f64::from(vlm.loss(&[o], None)?.to_scalar::<f32>()?) * o.targets.len() as f64))
        .collect::<Result<Vec<f64>>>()?;
    let top = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logs.iter().map(|l| (l - top).exp()).sum();
    Ok(Some(logs.iter().map(|l| (l - top).exp() / sum).collect()))
}

/// What answers are worth, shares in `[0, 1]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    of: AnswerScores,
    metric: Metric,
}

impl Scores {
    /// Share of right answers: what every set has.
    pub fn accuracy(&self) -> f64 {
        let choices = self.of.choices.as_ref().map_or((0.0, 0), |c| (c.accuracy * c.answers as f64, c.answers));
        let open = self.of.matches.as_ref().map_or((0, 0), |m| (m.overall.right, m.overall.all));
        (choices.0 + open.0 as f64) / (choices.1 + open.1).max(1) as f64
    }

    /// The set's own score; the share of right answers where it has none.
    pub fn headline(&self) -> f64 {
        let own = self.of.choices.as_ref().and_then(|c| match self.metric {
            Metric::Auc => c.auc,
            Metric::MacroF1 => Some(c.macro_f1),
            Metric::Accuracy | Metric::ExactMatch => None,
        });
        own.unwrap_or_else(|| self.accuracy())
    }

    /// Names and values for a record line.
    pub fn figures(&self) -> Vec<(&'static str, f64)> {
        let mut figures = vec![("accuracy", self.accuracy())];
        if let Some(c) = &self.of.choices {
            figures.push(("macro_f1", c.macro_f1));
            figures.extend(c.auc.map(|v| ("auc", v)));
            figures.extend(c.auc_probability.map(|v| ("auc_probability", v)));
            figures.push(("unparsed", c.unparsed as f64 / c.answers.max(1) as f64));
        }
        if let Some(m) = &self.of.matches {
            figures.extend(m.open.rate().map(|v| ("open", v)));
            figures.extend(m.closed.rate().map(|v| ("closed", v)));
        }
        figures
    }

    /// What a table shows of them beside the accuracy: names, and how people call them.
    pub fn columns(&self) -> Vec<(String, String)> {
        let called = |name: &str| match name {
            "auc" => "AUC".to_string(),
            "auc_probability" => "AUC by likelihood".to_string(),
            "macro_f1" => "macro-F1".to_string(),
            other => other.to_string(),
        };
        let own = self.figures().into_iter().filter(|(name, _)| *name != "accuracy");
        own.map(|(name, _)| (name.to_string(), called(name))).collect()
    }

    /// As `eval.json` holds them: `overall` is the share of right answers.
    pub fn to_json(&self) -> Map<String, Value> {
        let named = self
            .figures()
            .into_iter()
            .map(|(name, value)| (if name == "accuracy" { "overall" } else { name }.to_string(), json!(value)));
        named.chain([("headline".to_string(), json!(self.headline()))]).collect()
    }
}
