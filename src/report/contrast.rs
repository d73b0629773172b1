//! Differences between arms, seed by seed, with 95 % intervals; and the regime that makes them worth reading.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::{EXPERIMENT, children, name_of};
use crate::error::{Error, Result};
use crate::run::directory::read_json;

/// A question and its two sides, `arm/stage` each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// In words.
    pub name: String,
    /// Whose accuracy.
    pub of: String,
    /// What is subtracted.
    pub over: String,
}

/// The answer: differences in points of accuracy.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The question.
    pub question: Question,
    /// One difference a seed, in points, by seed.
    pub differences: Vec<f64>,
}

/// What several arms and seeds did: `arm/stage` → seed → accuracy in `[0, 1]`.
#[derive(Debug, Default)]
pub struct Outcomes {
    accuracy: BTreeMap<String, BTreeMap<u64, f64>>,
    questions: Vec<Question>,
    test_images: u64,
}

impl Outcomes {
    /// Of all arms and seeds below these folders.
    pub fn read(paths: &[PathBuf]) -> Result<Self> {
        let mut outcomes = Outcomes::default();
        for path in paths {
            outcomes.walk(path, 0)?;
        }
        Ok(outcomes)
    }

    fn walk(&mut self, path: &Path, depth: usize) -> Result<()> {
        let eval = path.join("eval.json");
        if eval.exists() {
            let eval = read_json(&eval)?;
            let Some(seed) = eval["facts"]["seed"].as_u64() else { return Ok(()) };
            self.test_images = eval["facts"]["test_images"].as_u64().unwrap_or(0);
            for (stage, entry) in eval["stages"].as_object().into_iter().flatten() {
                let name = format!("{}/{stage}", name_of(path));
                if let Some(accuracy) = entry["overall"].as_f64() {
                    self.accuracy.entry(name).or_default().insert(seed, accuracy);
                }
            }
            return Ok(());
        }
        let file = path.join(EXPERIMENT);
        if file.exists() {
            for question in questions(&read_json(&file)?, &file)? {
                if !self.questions.contains(&question) {
                    self.questions.push(question);
                }
            }
        }
        if depth < 3 && path.is_dir() {
            children(path)?.iter().try_for_each(|child| self.walk(child, depth + 1))?;
        }
        Ok(())
    }

    /// The answers to all questions whose two sides have a seed in common.
    pub fn answers(&self) -> Vec<Answer> {
        let answer = |q: &Question| {
            let (of, over) = (self.accuracy.get(&q.of)?, self.accuracy.get(&q.over)?);
            let pairs = of.iter().filter_map(|(seed, a)| Some(100.0 * (a - over.get(seed)?)));
            let differences: Vec<f64> = pairs.collect();
            (!differences.is_empty()).then(|| Answer { question: q.clone(), differences })
        };
        self.questions.iter().filter_map(answer).collect()
    }

    fn mean(&self, name: &str) -> Option<f64> {
        let seeds = self.accuracy.get(name)?;
        Some(100.0 * seeds.values().sum::<f64>() / seeds.len().max(1) as f64)
    }

    /// The regime in words: what the teacher, the server, the federation and a central machine do by themselves.
    pub fn regime(&self) -> String {
        let sides = [
            ("teacher alone", "fedllava/teacher"),
            ("linear probe", "fedllava/probe"),
            ("server only", "server-only/align"),
            ("FedAvg", "scratch/finetune"),
            ("all three stages", "fedllava/align"),
            ("centralised", "centralised/finetune"),
            ("all three stages, centralised", "centralised-from-p/align"),
        ];
        let known = sides.iter().filter_map(|(name, key)| Some(format!("{name} {:.1} %", self.mean(key)?)));
        let known: Vec<String> = known.collect();
        if known.len() < 2 {
            return String::new();
        }
        let mut text = format!("Regime: {}.\n", known.join(" · "));
        let (Some(teacher), Some(all)) = (self.mean("fedllava/teacher"), self.mean("fedllava/align")) else {
            return text;
        };
        let useful = (55.0..=80.0).contains(&teacher);
        text += &format!(
            "The teacher is {}the useful range of 55 to 80 %, and {} the aligned model: {}\n",
            if useful { "in " } else { "outside " },
            if teacher > all { "better than" } else { "not better than" },
            if teacher > all {
                "who can run CLIP on every test image is better served by CLIP."
            } else {
                "the compact model has passed it."
            }
        );
        text
    }

    /// The answers as a Markdown table with what their error is made of; empty where no question was asked.
    pub fn markdown(&self) -> String {
        let answers = self.answers();
        let Some(first) = answers.first() else { return String::new() };
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["question", "difference", "95 % interval", "seeds above 0"]);
        for a in &answers {
            let interval = a.interval().map_or("–".into(), |(low, high)| format!("{low:+.1} to {high:+.1}"));
            let above = a.differences.iter().filter(|d| **d > 0.0).count();
            let seeds = format!("{above} of {}", a.differences.len());
            table.add_row([a.question.name.clone(), format!("{:+.2}", a.mean()), interval, seeds]);
        }
        (1..4).filter_map(|c| table.column_mut(c).map(|c| c.set_cell_alignment(CellAlignment::Right))).for_each(drop);
        let seeds = answers.iter().map(|a| a.differences.len()).max().unwrap_or(first.differences.len());
        format!("{table}\n\n{}{}", self.error(seeds), self.regime())
    }

    fn error(&self, seeds: usize) -> String {
        let (n, worst) = (self.test_images.max(1) as f64, 50.0);
        let one = worst / n.sqrt();
        if seeds < 2 {
            return format!(
                "Differences in points of accuracy, of one seed: no interval. Each accuracy is of {} test images, whose \
                 binomial standard error is at most {one:.1} points; run more seeds before believing any.\n",
                self.test_images
            );
        }
        format!(
            "Differences in points of accuracy, by seed; the interval is Student's t over {seeds} seeds. It holds the \
             test sets' error too: each seed draws {} test images of its own, whose binomial standard error is at most \
             {one:.1} points for one accuracy of one seed, {:.1} for a mean of {seeds}.\n",
            self.test_images,
            one / (seeds.max(1) as f64).sqrt()
        )
    }

    /// The answers as JSON.
    pub fn to_json(&self) -> Value {
        let row = |a: &Answer| {
            let q = &a.question;
            json!({ "question": q.name, "of": q.of, "over": q.over, "differences": a.differences,
                "mean": a.mean(), "interval": a.interval().map(|(low, high)| [low, high]) })
        };
        self.answers().iter().map(row).collect()
    }
}

impl Answer {
    /// Mean difference in points.
    pub fn mean(&self) -> f64 {
        self.differences.iter().sum::<f64>() / self.differences.len().max(1) as f64
    }

    /// The 95 % interval of the mean by Student's t; `None` for one seed.
    pub fn interval(&self) -> Option<(f64, f64)> {
        let (n, mean) = (self.differences.len(), self.mean());
        if n < 2 {
            return None;
        }
        let squares: f64 = self.differences.iter().map(|d| (d - mean).powi(2)).sum();
        let error = (squares / (n - 1) as f64 / n as f64).sqrt();
        let half = student(n - 1) * error;
        Some((mean - half, mean + half))
    }
}

/// The 97.5 % quantile of Student's t with so many degrees of freedom, at least 1: tabulated to 10, beyond by the
/// expansion of Cornish and Fisher in 1/ν (Abramowitz and Stegun 26.7.5), whose error there is below 0.001.
pub fn student(freedom: usize) -> f64 {
    const TABLE: [f64; 10] = [12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281];
    if let Some(value) = TABLE.get(freedom.max(1) - 1) {
        return *value;
    }
    let (z, v) = (1.959_964_f64, freedom as f64);
    let (g1, g2) = ((z.powi(3) + z) / 4.0, (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0);
    let g3 = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    z + g1 / v + g2 / v.powi(2) + g3 / v.powi(3)
}

fn questions(experiment: &Value, file: &Path) -> Result<Vec<Question>> {
    let read = |c: &Value| {
        let text = |key: &str| {
            let missing = || Error::data(format!("{}: a contrast without {key}", file.display()));
            c[key].as_str().map(String::from).ok_or_else(missing)
        };
        Ok(Question { name: text("name")?, of: text("of")?, over: text("over")? })
    };
    experiment["contrasts"].as_array().into_iter().flatten().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_student_are_the_tabulated_ones() {
        // R: qt(0.975, c(1, 9, 11, 20, 29, 100))
        for (v, want) in [(1, 12.7062), (9, 2.2622), (11, 2.2010), (20, 2.0860), (29, 2.0452), (100, 1.9840)] {
            assert!((student(v) - want).abs() < 1e-3, "{v}: {} {want}", student(v));
        }
    }

    #[test]
    fn differences_are_paired_by_seed_and_the_interval_is_students() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, value: Value| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value.to_string()).unwrap();
        };
        // Accuracies a, b by seed; seed 4 has no b and must not count.
        for (seed, a, b) in [(1, 0.60, Some(0.50)), (2, 0.72, Some(0.60)), (3, 0.55, Some(0.47)), (4, 0.99, None)] {
            let eval = |x: f64| {
                json!({ "facts": { "seed": seed, "test_images": 100 },
                "stages": { "align": { "overall": x } } })
            };
            write(&format!("seed-{seed}/a/eval.json"), eval(a));
            b.iter().for_each(|b| write(&format!("seed-{seed}/b/eval.json"), eval(*b)));
            let contrast = json!({ "name": "a over b", "of": "a/align", "over": "b/align" });
            write(&format!("seed-{seed}/experiment.json"), json!({ "arms": ["a", "b"], "contrasts": [contrast] }));
        }
        let outcomes = Outcomes::read(&[root.path().to_path_buf()]).unwrap();
        let answers = outcomes.answers();
        assert_eq!((answers.len(), answers[0].differences.len()), (1, 3));
        // 10, 12, 8: mean 10, deviation 2, half-width 4.3027 · 2 / √3.
        let (low, high) = answers[0].interval().unwrap();
        assert!((answers[0].mean() - 10.0).abs() < 1e-9 && (high - low - 2.0 * 4.96834).abs() < 1e-4);
        let text = outcomes.markdown();
        assert!(
            text.contains("+5.0 to +15.0") && text.contains("3 of 3") && text.contains("100 test images"),
            "{text}"
        );
    }
}
