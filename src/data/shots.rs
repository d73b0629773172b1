//! Many, medium and few: the groups of classes that long-tailed results are reported by.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How classes are grouped: `strict`, `oltr` or `rank:a/b/c` in a config.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub enum Shots {
    /// Many > 100, medium 20–100, few < 20 training images.
    #[default]
    Strict,
    /// Many ≥ 100, few ≤ 20 (the code of Liu et al., *Large-Scale Long-Tailed Recognition in an Open World*, 2019).
    Oltr,
    /// The `a` largest classes, the next `b`, the last `c`; equal sizes by label.
    Rank(usize, usize, usize),
}

/// Class labels of each group, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    /// The head.
    pub many: Vec<usize>,
    /// The middle.
    pub medium: Vec<usize>,
    /// The tail. Any group may be empty; its accuracy is then "–".
    pub few: Vec<usize>,
}

impl Shots {
    /// Groups classes by their number of training images over all clients, after the tail.
    pub fn group(self, counts: &[u32]) -> Result<Groups> {
        self.check(counts.len())?;
        if let Shots::Rank(many, medium, few) = self {
            return by_rank(counts, [many, medium, few]);
        }
        let mut groups = Groups::default();
        for (class, &n) in counts.iter().enumerate() {
            let (is_many, is_few) = if self == Shots::Oltr { (n >= 100, n <= 20) } else { (n > 100, n < 20) };
            match (is_many, is_few) {
                (true, _) => groups.many.push(class),
                (_, true) => groups.few.push(class),
                _ => groups.medium.push(class),
            }
        }
        Ok(groups)
    }

    /// Refuses ranks that are not so many.
    pub fn check(self, classes: usize) -> Result<()> {
        let Shots::Rank(many, medium, few) = self else { return Ok(()) };
        match many.saturating_add(medium).saturating_add(few) {
            named if named == classes => Ok(()),
            named => Err(Error::input(format!(
                "evaluate.shots = \"rank:{many}/{medium}/{few}\" names {named} classes, there are {classes}"
            ))
            .hint(format!("three numbers that add up to {classes}, or evaluate.shots = \"strict\""))),
        }
    }

    /// The rule in words, for the foot of a table.
    pub fn rule(self) -> String {
        match self {
            Shots::Strict => "many > 100, medium 20–100, few < 20 training images".into(),
            Shots::Oltr => "many ≥ 100, medium 21–99, few ≤ 20 training images".into(),
            Shots::Rank(a, b, c) => format!("many: the {a} largest classes, medium: the next {b}, few: the last {c}"),
        }
    }
}

/// Largest class first; equal sizes by label.
fn by_rank(counts: &[u32], [many, medium, _]: [usize; 3]) -> Result<Groups> {
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by_key(|&class| std::cmp::Reverse(counts[class]));
    let sorted = |range: std::ops::Range<usize>| {
        let mut group = order[range].to_vec();
        group.sort_unstable();
        group
    };
    Ok(Groups { many: sorted(0..many), medium: sorted(many..many + medium), few: sorted(many + medium..counts.len()) })
}

impl TryFrom<String> for Shots {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let wrong = || {
            Error::input(format!(
                "evaluate.shots = {text:?}: expected \"strict\", \"oltr\" or \"rank:many/medium/few\""
            ))
            .hint("for example \"rank:3/4/3\" for ten classes")
        };
        match text.as_str() {
            "strict" => Ok(Shots::Strict),
            "oltr" => Ok(Shots::Oltr),
            other => {
                let sizes = other.strip_prefix("rank:").ok_or_else(wrong)?;
                let sizes: Vec<usize> =
                    sizes.split('/').map(|s| s.trim().parse().map_err(|_| wrong())).collect::<Result<_>>()?;
                match sizes.as_slice() {
                    &[many, medium, few] => Ok(Shots::Rank(many, medium, few)),
                    _ => Err(wrong()),
                }
            }
        }
    }
}

impl From<Shots> for String {
    fn from(shots: Shots) -> String {
        match shots {
            Shots::Strict => "strict".into(),
            Shots::Oltr => "oltr".into(),
            Shots::Rank(many, medium, few) => format!("rank:{many}/{medium}/{few}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::longtail::LongTailConfig;
    use super::*;

    fn sizes(shots: Shots, counts: &[u32]) -> [usize; 3] {
        let groups = shots.group(counts).unwrap();
        [groups.many.len(), groups.medium.len(), groups.few.len()]
    }

    #[test]
    fn the_borders_belong_where_the_rules_say() {
        let counts = [101, 100, 99, 21, 20, 19];
        assert_eq!(sizes(Shots::Strict, &counts), [1, 4, 1]);
        assert_eq!(sizes(Shots::Oltr, &counts), [2, 2, 2]);
    }

    /// Group sizes of CIFAR-100-LT at imbalance 100, 50 and 10, as published with the splits.
    #[test]
    fn cifar_100_lt_has_the_published_groups() {
        for (imbalance, want) in [(100.0, [35, 35, 30]), (50.0, [41, 41, 18]), (10.0, [69, 31, 0])] {
            let tail = LongTailConfig { imbalance, ..Default::default() };
            let counts: Vec<u32> = tail.class_counts(500, 100).unwrap().iter().map(|&n| n as u32).collect();
            assert_eq!(sizes(Shots::Strict, &counts), want);
        }
    }

    #[test]
    fn ranks_go_by_size_then_by_label() {
        let groups = Shots::Rank(1, 2, 1).group(&[5, 9, 5, 7]).unwrap();
        assert_eq!((groups.many, groups.medium, groups.few), (vec![1], vec![0, 3], vec![2]));
        assert!(Shots::Rank(3, 4, 3).group(&[1, 2]).unwrap_err().to_string().contains("10 classes, there are 2"));
    }

    #[test]
    fn a_rule_is_read_as_it_is_written() {
        for text in ["strict", "oltr", "rank:3/4/3"] {
            let shots = Shots::try_from(text.to_string()).unwrap();
            assert_eq!(String::from(shots), text);
        }
        for text in ["few", "rank:3/4", "rank:a/b/c", "rank:1/2/3/4"] {
            assert!(Shots::try_from(text.to_string()).unwrap_err().to_string().contains("rank:3/4/3"), "{text}");
        }
    }
}
