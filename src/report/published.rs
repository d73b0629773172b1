//! Published numbers (`data/published.toml`): each with its source, and how its protocol differs from ours.

use serde::Deserialize;

use crate::error::{Error, Result};

/// Where a number stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Kind {
    /// In a paper itself.
    #[serde(rename = "paper")]
    Paper,
    /// In the logs that a paper's authors published with their code.
    #[serde(rename = "authors' logs")]
    AuthorsLogs,
    /// On a page of somebody else about the paper.
    #[serde(rename = "third-party page")]
    ThirdParty,
    /// From somebody else's run of the authors' code, or of code of their own.
    #[serde(rename = "re-run by others")]
    Rerun,
    /// In a paper that took it from another.
    #[serde(rename = "copied between papers")]
    Copied,
}

impl Kind {
    /// As a table says it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Paper => "paper",
            Kind::AuthorsLogs => "authors' logs",
            Kind::ThirdParty => "third-party page",
            Kind::Rerun => "re-run by others",
            Kind::Copied => "copied between papers",
        }
    }
}

/// What all entries say.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// `data.kind` of the benchmark.
    pub benchmark: String,
    /// `longtail.imbalance`; none where the benchmark has its own tail.
    #[serde(default)]
    pub imbalance: Option<f64>,
    /// The method, by our name of it.
    pub method: String,
    /// Of a margin: the method that it is measured from; empty for an accuracy.
    #[serde(default)]
    pub over: String,
    /// `accuracy`, or a group of classes such as `few`.
    #[serde(default = "accuracy")]
    pub figure: String,
    /// Percent; of a margin points, as the source says it.
    pub value: f64,
    /// Where it stands.
    pub kind: Kind,
    /// Where exactly: title or name, and what can be looked up.
    pub source: String,
    /// How its protocol differs from ours, or what is not known of it.
    pub differs: Vec<String>,
}

fn accuracy() -> String {
    "accuracy".into()
}

/// All published numbers.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// In the file's order.
    #[serde(rename = "number")]
    pub numbers: Vec<Known>,
}

impl Published {
    /// Reads the file's text. An entry without a source, without a kind, or without a word on its protocol is refused.
    pub fn parse(text: &str, file: &str) -> Result<Published> {
        let all: Published =
            toml::from_str(text).map_err(|e| Error::data(format!("{file}: {}", e.to_string().trim_end())))?;
        for (i, known) in all.numbers.iter().enumerate() {
            let refused = |what: &str| {
                Err(Error::data(format!("{file}: number {} ({}): {what}", i + 1, known.method))
                    .hint("a number whose source cannot be named does not enter"))
            };
            if known.source.trim().is_empty() {
                return refused("its source is empty");
            }
            if known.differs.is_empty() || known.differs.iter().any(|d| d.trim().is_empty()) {
                return refused("it does not say how its protocol differs, or what is not known of it");
            }
            if known.over.is_empty() && !(0.0..=100.0).contains(&known.value) {
                return refused("its value is no percentage");
            }
        }
        Ok(all)
    }

    /// Accuracies of a method on a benchmark.
    pub fn of(&self, place: &Place<'_>) -> Vec<&Known> {
        self.numbers.iter().filter(|k| k.over.is_empty() && k.stands_at(place)).collect()
    }

    /// Margins of a method over another.
    pub fn margins(&self, place: &Place<'_>, over: &str) -> Vec<&Known> {
        self.numbers.iter().filter(|k| !k.over.is_empty() && k.over == over && k.stands_at(place)).collect()
    }
}

/// What a number of ours is of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place<'a> {
    /// `data.kind`.
    pub benchmark: &'a str,
    /// `longtail.imbalance`, as a table shows it.
    pub imbalance: &'a str,
    /// The arm where there is one, else the method.
    pub method: &'a str,
    /// The number of the table: `last10`, `few`.
    pub number: &'a str,
}

impl Known {
    fn stands_at(&self, place: &Place<'_>) -> bool {
        let figure = match place.number {
            "last10" | "last" | "selected" | "overall" => "accuracy",
            other => other,
        };
        let same = |ours: &str| self.imbalance.is_none_or(|i| ours.parse::<f64>().is_ok_and(|o| o == i));
        self.benchmark == place.benchmark
            && self.method == place.method
            && self.figure == figure
            && same(place.imbalance)
    }

    /// In one sentence: the number, what kind it is, where it stands, how it differs.
    pub fn sentence(&self) -> String {
        let value = match self.over.is_empty() {
            true => format!("{} {}", self.method, self.value),
            false => format!("{} {:+} over {}", self.method, self.value, self.over),
        };
        format!("{value}: {}, {}; {}.", self.kind.name(), self.source, self.differs.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(more: &str) -> String {
        format!("[[number]]\nbenchmark = \"cifar10\"\nimbalance = 100\nmethod = \"x\"\n{more}")
    }

    const WHOLE: &str = "value = 70.5\nkind = \"paper\"\nsource = \"A paper, Table 2\"\ndiffers = [\"one seed\"]\n";

    #[test]
    fn an_entry_without_source_kind_or_protocol_is_refused() {
        assert!(Published::parse(&entry(WHOLE), "p").is_ok());
        for (without, says) in [
            ("kind", "missing field `kind`"),
            ("source", "missing field `source`"),
            ("differs", "missing field `differs`"),
        ] {
            let text: String = WHOLE.lines().filter(|l| !l.starts_with(without)).map(|l| format!("{l}\n")).collect();
            let e = Published::parse(&entry(&text), "p").unwrap_err().to_string();
            assert!(e.contains(says), "{e}");
        }
        for (change, says) in [
            (("\"A paper, Table 2\"", "\" \""), "source is empty"),
            (("[\"one seed\"]", "[]"), "does not say how its protocol differs"),
            (("\"paper\"", "\"hearsay\""), "unknown variant `hearsay`"),
            (("70.5", "170.5"), "no percentage"),
        ] {
            let e = Published::parse(&entry(&WHOLE.replace(change.0, change.1)), "p").unwrap_err().to_string();
            assert!(e.contains(says), "{e}");
        }
    }

    #[test]
    fn the_shipped_numbers_all_have_their_source_and_margins_are_no_accuracies() {
        let text = include_str!("../../data/published.toml");
        let all = Published::parse(text, "data/published.toml").unwrap();
        let place = |method| Place { benchmark: "cifar10", imbalance: "100.0", method, number: "last10" };
        assert_eq!(all.of(&place("clip2fl")).len(), 1);
        assert!(all.of(&place("fedllava")).is_empty(), "a margin is no accuracy");
        assert_eq!(all.margins(&place("fedllava"), "clip2fl")[0].value, 2.12);
        assert!(all.margins(&Place { imbalance: "10", ..place("fedllava") }, "clip2fl").is_empty());
    }
}
