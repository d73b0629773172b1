//! What a reader saw of a source: how much it took, what it passed over and why, what was joined. Nothing is left out
//! in silence: a run says one line a source, keeps it in `manifest.json`, and stops where too much was lost.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::exec::{Context, Event};

/// Names that are kept for each reason.
const NAMES: usize = 10;

/// Why something was passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// An image that cannot be decoded.
    Unreadable,
    /// An image of a kind, or under an ending, that is not read.
    Ending,
    /// A record about an image that is not there.
    NoImage,
    /// A text that is no text: not UTF-8, not JSON, half a character.
    NoText,
    /// A second image under one name.
    Double,
    /// An image outside of every class folder.
    Outside,
    /// What clients hold of the test set; it never trains.
    Test,
    /// Not an image at all.
    Other,
    /// Names that begin with a dot, and what systems leave in folders.
    Hidden,
    /// A record about no image.
    TextAlone,
    /// A record about an image that is not there, where every image that is there has one.
    Elsewhere,
    /// What another tool gave to clients for their own tests.
    OwnTest,
    /// A line whose label is none, or of no class.
    Label,
    /// An image of another class than the list's others in its folder.
    OtherClass,
    /// An image that another list has too.
    Shared,
    /// An image that no list names.
    Unlisted,
    /// A record with several images, where one is read.
    Several,
    /// A record without an answer.
    NoAnswer,
    /// A record in a language that is not asked for.
    Language,
    /// A sample of more tokens than are trained on.
    TooLong,
    /// A folder that was met before, by another name.
    Again,
}

impl Why {
    /// Whether something is lost: what was never meant as data is not.
    pub fn lost(self) -> bool {
        let never_meant = [
            Why::Other,
            Why::Hidden,
            Why::TextAlone,
            Why::Elsewhere,
            Why::OwnTest,
            Why::Unlisted,
            Why::Language,
            Why::Again,
        ];
        !never_meant.contains(&self)
    }

    fn words(self) -> &'static str {
        match self {
            Why::Unreadable => "unreadable",
            Why::Ending => "of a kind that is not read",
            Why::NoImage => "about no image that is there",
            Why::NoText => "whose text is none",
            Why::Double => "a second time under one name",
            Why::Outside => "outside of every class folder",
            Why::Test => "of the test set",
            Why::Other => "no images",
            Why::Hidden => "hidden",
            Why::TextAlone => "about no image at all",
            Why::Elsewhere => "about images elsewhere",
            Why::OwnTest => "meant for clients' own tests",
            Why::Label => "whose label is none",
            Why::OtherClass => "of another class than their folder's",
            Why::Shared => "in the training list too",
            Why::Unlisted => "on no list",
            Why::Several => "with several images",
            Why::NoAnswer => "without an answer",
            Why::Language => "in another language",
            Why::TooLong => "longer than the longest that is trained on",
            Why::Again => "folders met before",
        }
    }
}

/// What was passed over for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Passed {
    /// How many.
    pub count: usize,
    /// The first of them by name.
    pub first: Vec<String>,
}

/// What a reader saw of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Census {
    /// A folder, a file, or what it is for people.
    pub source: String,
    /// What is counted: `images`, `records`.
    pub unit: &'static str,
    /// How many were taken.
    pub read: usize,
    /// Of a file about images: how many images it says something about, and of how many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joined: Option<(usize, usize)>,
    /// What was taken although it is not as it should be, and how often: `answers that are numbers`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub noted: BTreeMap<String, usize>,
    /// What would help, where a reader knows.
    #[serde(skip)]
    pub advice: String,
    /// What was passed over.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub passed: BTreeMap<Why, Passed>,
}

impl Census {
    /// Of a source of so many `unit`, nothing seen yet.
    pub fn new(source: impl Into<String>, unit: &'static str) -> Self {
        Census { source: source.into(), unit, ..Census::default() }
    }

    /// Counts one thing that is passed over.
    pub fn pass(&mut self, why: Why, name: impl Into<String>) {
        let passed = self.passed.entry(why).or_default();
        passed.count += 1;
        if passed.first.len() < NAMES {
            passed.first.push(name.into());
        }
    }

    /// Counts so many things that have no names here.
    pub fn pass_unnamed(&mut self, why: Why, count: usize) {
        if count > 0 {
            self.passed.entry(why).or_default().count += count;
        }
    }

    /// Counts so many things that are taken, but are not as they should be.
    pub fn note(&mut self, what: &str, count: usize) {
        if count > 0 {
            *self.noted.entry(what.to_string()).or_default() += count;
        }
    }

    /// Adds what was passed over elsewhere.
    pub fn add(&mut self, other: Census) {
        for (why, passed) in other.passed {
            let own = self.passed.entry(why).or_default();
            own.count += passed.count;
            own.first.extend(passed.first);
            own.first.truncate(NAMES);
        }
    }

    /// How many were passed over for a reason.
    pub fn passed(&self, why: Why) -> usize {
        self.passed.get(&why).map_or(0, |p| p.count)
    }

    /// How many were lost.
    pub fn lost(&self) -> usize {
        self.passed.iter().filter(|(why, _)| why.lost()).map(|(_, p)| p.count).sum()
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let mut line = format!("{}: {} {}", self.source, self.read, self.unit);
        if let Some((some, all)) = self.joined {
            line += &format!(", about {some} of {all} images");
        }
        if !self.passed.is_empty() {
            line += &format!("; left out: {}", self.reasons(3, |_| true));
        }
        if !self.noted.is_empty() {
            let noted: Vec<String> = self.noted.iter().map(|(what, count)| format!("{count} {what}")).collect();
            line += &format!("; noted: {}", noted.join(", "));
        }
        line
    }

    fn reasons(&self, names: usize, of: impl Fn(Why) -> bool) -> String {
        let one = |(why, passed): (&Why, &Passed)| {
            let shown = &passed.first[..names.min(passed.first.len())];
            let more = if passed.count > shown.len() { ", …" } else { "" };
            match shown {
                [] => format!("{} {}", passed.count, why.words()),
                _ => format!("{} {} ({}{more})", passed.count, why.words(), shown.join(", ")),
            }
        };
        self.passed.iter().filter(|(why, _)| of(**why)).map(one).collect::<Vec<_>>().join(", ")
    }

    /// Refuses a source of which more than the share `tolerate` was lost, and names the first ten.
    pub fn check(&self, tolerate: f64) -> Result<()> {
        let (lost, all) = (self.lost(), self.read + self.lost());
        let share = lost as f64 / all.max(1) as f64;
        if share <= tolerate {
            return Ok(());
        }
        let enough = (100.0 * share).ceil() / 100.0;
        let (unit, reasons) = (self.unit, self.reasons(NAMES, Why::lost));
        let advice = if self.advice.is_empty() { String::new() } else { format!("{}; ", self.advice) };
        Err(Error::data(format!("{}: {lost} of {all} {unit} cannot be used: {reasons}", self.source)).hint(format!(
            "{advice}at most {} % may be lost: mend them, take them out, or allow more with --set run.tolerate={enough}",
            100.0 * tolerate
        )))
    }
}

/// All that a run read: each source is said once and kept.
#[derive(Default)]
pub struct Ledger(Mutex<BTreeMap<String, Census>>);

impl Ledger {
    /// Says what was seen of a source, unless it was said already, and refuses it where too much was lost. What was
    /// not read from anywhere has no source and is not entered.
    pub fn enter(&self, census: &Census, tolerate: f64, cx: &Context) -> Result<()> {
        if census.source.is_empty() {
            return Ok(());
        }
        let mut known = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if known.get(&census.source) != Some(census) {
            let line = census.line();
            cx.events.on(if census.lost() > 0 { Event::Warning(&line) } else { Event::Note(&line) });
            known.insert(census.source.clone(), census.clone());
        }
        census.check(tolerate)
    }

    /// The list that `manifest.json` keeps.
    pub fn to_json(&self) -> Value {
        let known = self.0.lock().unwrap_or_else(|e| e.into_inner());
        json!(known.values().collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn census() -> Census {
        let mut census = Census::new("photos", "images");
        census.read = 98;
        (0..12).for_each(|i| census.pass(Why::Hidden, format!("._{i}.png")));
        (0..2).for_each(|i| census.pass(Why::Unreadable, format!("{i}.png")));
        census
    }

    #[test]
    fn a_source_is_one_line_and_hidden_files_are_no_loss() {
        let census = census();
        let line = "photos: 98 images; left out: 2 unreadable (0.png, 1.png), 12 hidden (._0.png, ._1.png, ._2.png, …)";
        assert_eq!((census.line().as_str(), census.lost()), (line, 2));
        assert!(census.check(0.02).is_ok());
        let e = census.check(0.01).unwrap_err();
        assert!(e.to_string().contains("2 of 100 images cannot be used: 2 unreadable (0.png, 1.png)"), "{e}");
        assert!(e.to_string().contains("run.tolerate=0.02") && e.class().exit_code() == 3, "{e}");
    }

    #[test]
    fn a_run_keeps_each_source_once() {
        let (ledger, cx) = (Ledger::default(), Context::cpu(1));
        ledger.enter(&census(), 0.5, &cx).unwrap();
        ledger.enter(&census(), 0.5, &cx).unwrap();
        ledger.enter(&Census::default(), 0.0, &cx).unwrap();
        let kept = ledger.to_json();
        assert_eq!((kept.as_array().unwrap().len(), &kept[0]["passed"]["hidden"]["count"]), (1, &json!(12)));
    }
}
