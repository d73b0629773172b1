//! A pool becomes annotations: every image, every prompt, one record each.

use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use serde_json::Value;

use super::captioner::{Answer, Captioner, Seen};
use super::journal::Journal;
use super::prompt::Instruction;
use crate::data::captions::Caption;
use crate::data::decode;
use crate::data::pool::Pool;
use crate::data::{Census, Why};
use crate::error::{Error, Result};
use crate::exec::{Context, Event, ordered};
use crate::fsx;
use crate::model::clip::Picture;

/// What is to be done.
pub struct Captioning<'a> {
    /// The images.
    pub pool: &'a Pool,
    /// Who answers.
    pub captioner: &'a dyn Captioner,
    /// What is asked about each image.
    pub prompts: &'a [Instruction],
    /// Images that are answered side by side.
    pub batch_size: usize,
    /// Only so many images, in the pool's order; 0: all.
    pub limit: usize,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Records in the file.
    pub records: usize,
    /// Of them, written by this call.
    pub written: usize,
    /// Images that could not be decoded: id and reason.
    pub undecodable: Vec<(String, String)>,
    /// Questions to which the captioner had no answer.
    pub unanswered: usize,
}

impl Report {
    /// What was seen of the `images` of a source.
    pub fn census(&self, source: &str, images: usize) -> Census {
        let mut census = Census::new(format!("{source} captioned"), "images");
        census.read = images.saturating_sub(self.undecodable.len());
        self.undecodable.iter().for_each(|(id, why)| census.pass(Why::Unreadable, format!("{id}: {why}")));
        census
    }
}

/// A batch's records, its undecodable images, its unanswered questions.
type Batch = (Vec<Caption>, Vec<(String, String)>, usize);

impl Captioning<'_> {
    /// Writes what is missing in the caption file `path`. Stopped at any moment, the same call goes on: no record is
    /// repeated or lost, and the file comes out the same.
    pub fn run(&self, path: &Path, cx: &Context) -> Result<Report> {
        if self.batch_size == 0 {
            return Err(Error::input("caption.batch_size = 0: expected at least 1"));
        }
        let mut journal = Journal::open(path, |record| self.same(record))?;
        if journal.repaired > 0 {
            let note = format!("{}: {} bytes of a torn last line cut off", path.display(), journal.repaired);
            cx.events.on(Event::Warning(&note));
        }
        let images = if self.limit == 0 { self.pool.len() } else { self.limit.min(self.pool.len()) };
        let total = (images * self.prompts.len()) as u64;
        let (start, done) = (Instant::now(), journal.len());
        cx.events.on(Event::Begin { name: "caption", unit: "caption", done: done as u64, total });
        let batches: Vec<std::ops::Range<usize>> = (0..images)
            .step_by(self.batch_size)
            .map(|from| from..(from + self.batch_size).min(images))
            .filter(|range| range.clone().any(|i| self.prompts.iter().any(|p| !self.has(&journal, i, p))))
            .collect();
        let mut report = Report::default();
        // A GPU is shared; on a CPU every core answers its own batch.
        let workers = if cx.device.is_cpu() { cx.threads } else { 1 };
        let shared = Mutex::new(&mut journal);
        let job = |_: &mut (), b: usize| self.batch(batches[b].clone(), &shared, cx);
        let fold = |_, (records, undecodable, unanswered): Batch| {
            let mut journal = shared.lock().unwrap_or_else(|e| e.into_inner());
            report.written += journal.append(records)?;
            report.undecodable.extend(undecodable);
            report.unanswered += unanswered;
            let rate = report.written as f64 / start.elapsed().as_secs_f64().max(1e-9);
            cx.events.on(Event::Advance { done: journal.len() as u64, figures: &[("captions/s", rate)] });
            Ok(())
        };
        ordered(workers, batches.len(), 2 * workers, |_| Ok(()), job, fold)?;
        journal.sync()?;
        cx.events.on(Event::End);
        report.records = journal.len();
        Ok(report)
    }

    fn has(&self, journal: &Journal, i: usize, prompt: &Instruction) -> bool {
        self.pool.items.get(i).is_some_and(|item| journal.has(&item.id, &prompt.id))
    }

    /// Answers a batch: for each prompt that misses a record, all its images together, so that a resumed run computes
    /// what an uninterrupted one does.
    fn batch(&self, range: std::ops::Range<usize>, journal: &Mutex<&mut Journal>, cx: &Context) -> Result<Batch> {
        let (mut images, mut undecodable) = (Vec::new(), Vec::new());
        for i in range.clone() {
            cx.cancel.check()?;
            match self.pool.rgb(i) {
                Ok(image) => {
                    let mut planes = Vec::new();
                    decode::planes(&image, &mut planes);
                    let digest = fsx::sha256(&self.pool.bytes(i)?);
                    images.push((i, digest, image.height() as usize, image.width() as usize, planes));
                }
                Err(e) => undecodable.push((self.pool.items[i].id.clone(), e.message().to_string())),
            }
        }
        let seen: Vec<Seen> = images
            .iter()
            .map(|(i, digest, height, width, planes)| Seen {
                id: &self.pool.items[*i].id,
                digest,
                picture: Picture { height: *height, width: *width, pixels: planes.as_slice().into() },
            })
            .collect();
        let (mut records, mut unanswered) = (Vec::new(), 0);
        for prompt in self.prompts {
            let missing = |s: &Seen| !journal.lock().unwrap_or_else(|e| e.into_inner()).has(s.id, &prompt.id);
            if !seen.iter().any(missing) {
                continue;
            }
            cx.cancel.check()?;
            let answers = self.captioner.answers(&seen, prompt, cx)?;
            if answers.len() != seen.len() {
                return Err(Error::defect(format!("{} answers about {} images", answers.len(), seen.len())));
            }
            for (seen, answer) in seen.iter().zip(answers) {
                match answer {
                    Some(answer) => records.push(self.record(seen, prompt, answer)),
                    None => unanswered += 1,
                }
            }
        }
        Ok((records, undecodable, unanswered))
    }

    fn record(&self, seen: &Seen, prompt: &Instruction, answer: Answer) -> Caption {
        let identity = self.captioner.identity();
        let mut more =
            std::collections::BTreeMap::from([("prompt_digest".to_string(), Value::from(prompt.digest.clone()))]);
        if !answer.ended {
            more.insert("cut_off".into(), true.into());
        }
        Caption {
            image: seen.id.into(),
            digest: Some(seen.digest.into()),
            caption: Some(answer.text),
            prompt: Some(prompt.id.clone()),
            model: Some(identity.model.clone()),
            revision: Some(identity.revision.clone()),
            decoding: Some(identity.decoding.clone()).filter(|d| !d.is_null()),
            more,
            ..Caption::default()
        }
    }

    /// Refuses a record that this captioner would not write.
    fn same(&self, record: &Caption) -> Result<()> {
        let identity = self.captioner.identity();
        let decoding = Some(&identity.decoding).filter(|d| !d.is_null());
        let asked = self.prompts.iter().find(|p| Some(&p.id) == record.prompt.as_ref());
        let prompt = asked.map(|p| Value::from(p.digest.clone()));
        let differs = if record.model.as_ref() != Some(&identity.model) {
            format!("model is {:?}", record.model.as_deref().unwrap_or("not named"))
        } else if record.revision.as_ref() != Some(&identity.revision) {
            "the model's revision is another".into()
        } else if record.decoding.as_ref() != decoding {
            "the decoding is another".into()
        } else if prompt.is_some() && record.more.get("prompt_digest") != prompt.as_ref() {
            format!("the text of prompt {} is another", record.prompt.as_deref().unwrap_or_default())
        } else {
            return Ok(());
        };
        Err(Error::input(format!("this caption file was made otherwise: {differs}"))
            .hint("give these captions a file of their own"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::Images;
    use crate::data::pool::{Item, Source};
    use crate::mllm::captioner::Identity;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Answers with what it sees, and falls over after so many batches.
    struct Echo {
        identity: Identity,
        batches: AtomicUsize,
        most: usize,
    }

    impl Echo {
        fn new(most: usize) -> Self {
            let identity = Identity { model: "echo".into(), revision: "1".into(), decoding: Value::Null };
            Echo { identity, batches: AtomicUsize::new(0), most }
        }
    }

    impl Captioner for Echo {
        fn identity(&self) -> &Identity {
            &self.identity
        }

        fn answers(&self, images: &[Seen], prompt: &Instruction, _: &Context) -> Result<Vec<Option<Answer>>> {
            if self.batches.fetch_add(1, Ordering::SeqCst) >= self.most {
                return Err(Error::stopped());
            }
            let text = |s: &Seen| format!("{} of {} in a batch of {}", prompt.id, s.picture.pixels[0], images.len());
            Ok(images.iter().map(|s| Some(Answer { text: text(s), ended: s.picture.pixels[0] % 2 == 0 })).collect())
        }
    }

    fn pool() -> Pool {
        let images = Arc::new(Images::new([3, 1, 1], (0..21).collect()).unwrap());
        let item = |i: usize| Item { id: format!("i{i}"), texts: vec![], source: Source::Pixels(images.clone(), i) };
        Pool::new("p", (0..7).map(item).collect(), false).unwrap()
    }

    fn prompts() -> Vec<Instruction> {
        vec![Instruction::new("one", "Say one.").unwrap(), Instruction::new("two", "Say two.").unwrap()]
    }

    fn run(captioner: &Echo, path: &Path, threads: usize) -> Result<Report> {
        let (pool, prompts) = (pool(), prompts());
        let work = Captioning { pool: &pool, captioner, prompts: &prompts, batch_size: 3, limit: 0 };
        work.run(path, &Context::cpu(threads))
    }

    #[test]
    fn stopped_anywhere_the_file_comes_out_the_same_for_any_number_of_threads() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let report = run(&Echo::new(99), &path("whole"), 1).unwrap();
        assert_eq!((report.written, report.records), (14, 14));
        let whole = fsx::read(&path("whole")).unwrap();
        for threads in [1, 3] {
            for stop in 0..6 {
                let name = path(&format!("stopped-{threads}-{stop}"));
                assert_eq!(run(&Echo::new(stop), &name, threads).unwrap_err().class(), crate::error::Class::Stopped);
                let report = run(&Echo::new(99), &name, threads).unwrap();
                assert_eq!(report.records, 14);
                assert_eq!(fsx::read(&name).unwrap(), whole);
            }
        }
    }

    #[test]
    fn killed_in_the_middle_of_a_line_nothing_is_lost_or_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("captions.jsonl");
        run(&Echo::new(99), &path, 1).unwrap();
        let whole = fsx::read(&path).unwrap();
        for cut in (0..whole.len()).step_by(41) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            run(&Echo::new(99), &path, 2).unwrap();
            let lines = |bytes: &[u8]| {
                let mut lines: Vec<String> = String::from_utf8_lossy(bytes).lines().map(str::to_string).collect();
                lines.sort();
                lines
            };
            assert_eq!(lines(&fsx::read(&path).unwrap()), lines(&whole), "cut at {cut}");
        }
    }

    #[test]
    fn a_file_of_another_model_or_prompt_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("captions.jsonl");
        run(&Echo::new(99), &path, 1).unwrap();
        let whole = fsx::read(&path).unwrap();
        let mut other = Echo::new(99);
        other.identity.revision = "2".into();
        assert!(run(&other, &path, 1).unwrap_err().to_string().contains("revision is another"));
        let (pool, echo) = (pool(), Echo::new(99));
        let changed = vec![Instruction::new("one", "Say one!").unwrap()];
        let work = Captioning { pool: &pool, captioner: &echo, prompts: &changed, batch_size: 3, limit: 0 };
        let e = work.run(&path, &Context::cpu(1)).unwrap_err().to_string();
        assert!(e.contains("prompt one is another") && e.contains("a file of their own"), "{e}");
        assert_eq!(fsx::read(&path).unwrap(), whole);
    }

    #[test]
    fn a_record_says_what_it_was_made_from() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("captions.jsonl");
        run(&Echo::new(99), &path, 1).unwrap();
        let records = super::super::journal::read(&path).unwrap();
        let first = &records[0];
        assert_eq!(first.digest, Some(fsx::sha256(&[0, 1, 2])));
        assert_eq!((first.prompt.as_deref(), first.model.as_deref()), (Some("one"), Some("echo")));
        assert_eq!(first.more["prompt_digest"], fsx::sha256(b"Say one."));
        assert!(!first.more.contains_key("cut_off") && records[1].more["cut_off"] == true);
    }
}
