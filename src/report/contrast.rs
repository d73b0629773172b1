//! The questions of an experiment: differences between its arms, seed by seed, with 95 % intervals.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::group::{Report, TestSets, test_sets};
use super::numbers::Spread;
use super::table::{Column, Room, Table};
use crate::error::{Error, Result};

/// A question and its two sides, `arm/stage` each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// In words.
    pub name: String,
    /// Whose accuracy.
    pub of: String,
    /// What is subtracted.
    pub over: String,
    /// What it means when the difference is above 0; empty for nothing.
    pub if_above: String,
    /// What it means when it is below.
    pub if_below: String,
}

/// The answer: differences in points of accuracy.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The question.
    pub question: Question,
    /// The experiment's folder.
    pub below: PathBuf,
    /// The seeds that both sides have.
    pub seeds: Vec<u64>,
    /// One difference a seed, in points.
    pub differences: Spread,
    /// Test images of each run; 0 where it does not say.
    pub test_images: u64,
    /// What they were judged on.
    pub sets: TestSets,
}

/// All answers of some runs' experiments.
#[derive(Clone, Debug, Default)]
pub struct Contrasts {
    /// In the experiments' order.
    pub answers: Vec<Answer>,
    /// Questions that cannot be answered, and why.
    pub refused: Vec<String>,
}

impl Contrasts {
    /// The questions of all experiments that the report's runs belong to; an arm is looked up below its own experiment.
    pub fn of(report: &Report) -> Result<Contrasts> {
        let mut contrasts = Contrasts::default();
        let mut asked: Vec<(PathBuf, Question)> = Vec::new();
        for (file, experiment) in &report.found.experiments {
            let folder = file.parent().unwrap_or(Path::new("."));
            let seeded = folder.file_name().is_some_and(|n| n.to_string_lossy().starts_with("seed-"));
            let below = folder.parent().filter(|_| seeded).unwrap_or(folder).to_path_buf();
            for question in questions(experiment, file)? {
                let this = (below.clone(), question);
                if !asked.contains(&this) {
                    asked.push(this);
                }
            }
        }
        for (below, question) in asked {
            match answer(report, &below, &question) {
                Ok(Some(answer)) => contrasts.answers.push(answer),
                Ok(None) => (),
                Err(why) => contrasts.refused.push(format!("{}: {why}.", question.name)),
            }
        }
        Ok(contrasts)
    }

    /// A table an experiment.
    pub fn tables(&self, room: Room) -> Vec<Table> {
        let mut folders: Vec<&Path> = self.answers.iter().map(|a| a.below.as_path()).collect();
        folders.dedup();
        let several = folders.len() > 1;
        let table = |folder: &Path| {
            let answers: Vec<&Answer> = self.answers.iter().filter(|a| a.below == folder).collect();
            let columns = vec![
                Column::words("question"),
                Column::numbers("difference"),
                Column::numbers("95 % interval").quiet(),
                Column::numbers("above 0").rank(1),
            ];
            let mut table = Table { columns, rows: answers.iter().map(|a| a.cells()).collect(), ..Table::default() };
            if several {
                table.title = format!("{}:", folder.display());
            }
            table.notes = answers.iter().map(|a| a.seeds.len()).max().map(|n| error(&answers, n)).into_iter().collect();
            table.fitted(room)
        };
        folders.into_iter().map(table).collect()
    }

    /// What the experiments say of their answers, where those can be told from nothing; and questions without one.
    pub fn sentences(&self) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for said in self.answers.iter().filter_map(Answer::meaning).chain(self.refused.iter().cloned()) {
            if !all.contains(&said) {
                all.push(said);
            }
        }
        all
    }

    /// As JSON: differences in points.
    pub fn json(&self) -> Value {
        let row = |a: &Answer| {
            let q = &a.question;
            json!({ "name": q.name, "of": q.of, "over": q.over, "below": a.below, "seeds": a.seeds,
                "differences": a.differences.values, "mean": a.differences.mean(),
                "interval": a.differences.interval().map(|(low, high)| [low, high]) })
        };
        self.answers.iter().map(row).collect()
    }
}

impl Answer {
    fn cells(&self) -> Vec<String> {
        let interval =
            self.differences.interval().map_or("–".into(), |(low, high)| format!("{low:+.1} to {high:+.1}"));
        let above = self.differences.values.iter().filter(|d| **d > 0.0).count();
        let mean = self.differences.mean().unwrap_or(0.0);
        vec![self.question.name.clone(), format!("{mean:+.2}"), interval, format!("{above} of {}", self.seeds.len())]
    }

    /// The side of 0 on which the difference lies: by the interval, of one seed by the test sets' binomial error; `None`
    /// where it may be nothing.
    fn side(&self) -> Option<bool> {
        let mean = self.differences.mean()?;
        let least = 1.96 * 50.0 * (2.0 / self.test_images.max(1) as f64).sqrt();
        let (low, high) = self.differences.interval().unwrap_or((mean - least, mean + least));
        (low > 0.0 || high < 0.0).then_some(low > 0.0)
    }

    fn meaning(&self) -> Option<String> {
        let text = if self.side()? { &self.question.if_above } else { &self.question.if_below };
        let seeds = if self.seeds.len() == 1 { "By one seed: " } else { "" };
        (!text.is_empty()).then(|| format!("{seeds}{text}"))
    }
}

/// What the differences' error is made of.
fn error(answers: &[&Answer], seeds: usize) -> String {
    let images = answers.iter().map(|a| a.test_images).max().unwrap_or(0);
    let one = 50.0 / (images.max(1) as f64).sqrt();
    let of = match images {
        0 => "how many test images is not recorded".to_string(),
        n => format!("each accuracy is of {n} test images, whose binomial standard error is at most {one:.1} points"),
    };
    if seeds < 2 {
        return format!(
            "Differences in points of accuracy, of one seed: no interval; {of}. Run more seeds before believing any."
        );
    }
    let sets = answers.iter().map(|a| a.sets).fold(answers[0].sets, |a, b| if a == b { a } else { TestSets::Mixed });
    format!(
        "Differences in points of accuracy, by seed; the interval is Student's t over {seeds} seeds; {}; {of}.",
        in_words(sets)
    )
}

/// What an interval holds of the test images' chance.
pub fn in_words(sets: TestSets) -> &'static str {
    match sets {
        TestSets::Fixed => "all seeds are judged on one fixed test set, whose own error the interval does not hold",
        TestSets::Own => "each seed is judged on test images of its own, whose error the interval holds",
        TestSets::Mixed => "some seeds share their test images and some do not",
        TestSets::Unknown => "some run does not record its test images",
    }
}

fn answer(report: &Report, below: &Path, question: &Question) -> std::result::Result<Option<Answer>, String> {
    let (of, over) = (side(report, below, &question.of)?, side(report, below, &question.over)?);
    let mut answer = Answer {
        question: question.clone(),
        below: below.to_path_buf(),
        seeds: Vec::new(),
        differences: Spread::default(),
        test_images: 0,
        sets: TestSets::Unknown,
    };
    let mut runs = Vec::new();
    for (seed, i, a) in &of {
        let Some((_, j, b)) = over.iter().find(|(s, ..)| s == seed) else { continue };
        answer.seeds.push(*seed);
        answer.differences.values.push(100.0 * (a - b));
        answer.test_images = report.run(*i).eval["facts"]["test_images"].as_u64().unwrap_or(0);
        runs.extend([report.run(*i), report.run(*j)]);
    }
    answer.sets = test_sets(&runs);
    Ok((!answer.seeds.is_empty()).then_some(answer))
}

type Side = Vec<(u64, usize, f64)>;

/// Seed, run and accuracy of `arm/stage` below a folder, by seed.
fn side(report: &Report, below: &Path, name: &str) -> std::result::Result<Side, String> {
    let Some((arm, stage)) = name.rsplit_once('/') else { return Err(format!("{name} is not arm/stage")) };
    let mut side: Side = Vec::new();
    for (i, run) in report.found.runs.iter().enumerate() {
        let accuracy = run.stage(stage).and_then(|s| s.figure("overall"));
        let Some(accuracy) = accuracy.filter(|_| run.name == arm && run.dir.starts_with(below)) else { continue };
        if side.iter().any(|(_, j, _)| report.run(*j).keys != run.keys) {
            return Err(format!("{arm} has several configurations below {}", below.display()));
        }
        if side.iter().any(|(seed, ..)| *seed == run.seed) {
            return Err(format!("{arm} has seed {} twice below {}", run.seed, below.display()));
        }
        side.push((run.seed, i, accuracy));
    }
    side.sort_by_key(|(seed, ..)| *seed);
    Ok(side)
}

fn questions(experiment: &Value, file: &Path) -> Result<Vec<Question>> {
    let read = |c: &Value| {
        let text = |key: &str| {
            let missing = || Error::data(format!("{}: a contrast without {key}", file.display()));
            c[key].as_str().map(String::from).ok_or_else(missing)
        };
        let said = |key: &str| c[key].as_str().unwrap_or("").to_string();
        let (if_above, if_below) = (said("if_above"), said("if_below"));
        Ok(Question { name: text("name")?, of: text("of")?, over: text("over")?, if_above, if_below })
    };
    experiment["contrasts"].as_array().into_iter().flatten().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_paired_by_seed_below_their_own_experiment_and_mean_what_it_says() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: String, text: String| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let run = |dir: String, seed: u64, arm: &str, overall: f64| {
            let facts = json!({ "test_images": 100, "test": format!("t{seed}") });
            let eval = json!({ "facts": facts, "stages": { "align": { "overall": overall } } });
            write(format!("{dir}/eval.json"), eval.to_string());
            write(format!("{dir}/config.toml"), format!("arm = \"{arm}\"\n[run]\nseed = {seed}"));
        };
        // Accuracies a, b by seed; seed 4 has no b and must not count; another experiment has an arm of the same name.
        for (seed, a, b) in [(1, 0.60, Some(0.50)), (2, 0.72, Some(0.60)), (3, 0.55, Some(0.47)), (4, 0.99, None)] {
            run(format!("x/seed-{seed}/a"), seed, "a", a);
            b.iter().for_each(|b| run(format!("x/seed-{seed}/b"), seed, "b", *b));
            run(format!("y/b/seed-{seed}"), seed, "c", 0.0);
            let contrast = json!({ "name": "a over b", "of": "a/align", "over": "b/align", "if_above": "a helps", "if_below": "no" });
            let text = json!({ "arms": ["a", "b"], "contrasts": [contrast] }).to_string();
            write(format!("x/seed-{seed}/experiment.json"), text);
        }
        let report = Report::read(&[root.path().to_path_buf()]).unwrap();
        let contrasts = Contrasts::of(&report).unwrap();
        let [answer] = &contrasts.answers[..] else { panic!("{contrasts:?}") };
        assert_eq!((answer.seeds.clone(), answer.sets), (vec![1, 2, 3], TestSets::Own));
        let (low, high) = answer.differences.interval().unwrap();
        assert!((low + high - 20.0).abs() < 1e-9 && (high - low - 2.0 * 4.96834).abs() < 1e-4);
        let view = report.summary(&contrasts, Room::default()).markdown();
        for part in ["+5.0 to +15.0", "3 of 3", "100 test images", "test images of its own", "a helps"] {
            assert!(view.contains(part), "{part} in {view}");
        }
    }
}
