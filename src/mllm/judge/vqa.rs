//! Exact match of open answers after the normaliser of the VQA challenge (Antol et al., ICCV 2015), by answer type.
//!
//! The normaliser, as its published code runs: punctuation is deleted where a blank stands beside it anywhere in the text,
//! or a comma between digits does, and becomes a blank elsewhere; the first 32 full stops that no digit follows are deleted;
//! in lower case; number words up to ten become digits (`none` is 0); articles go; contractions get their apostrophes. Then,
//! as FedMLLM's scripts add, `x ray` becomes `xray`.

use serde::Serialize;

use crate::data::multimodal::AnswerType;

/// So many of so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Share {
    /// Right ones.
    pub right: usize,
    /// All.
    pub all: usize,
}

impl Share {
    /// In `[0, 1]`; none of nothing.
    pub fn rate(self) -> Option<f64> {
        (self.all > 0).then(|| self.right as f64 / self.all as f64)
    }

    fn count(&mut self, right: bool) {
        self.right += usize::from(right);
        self.all += 1;
    }
}

/// Right answers by type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MatchScores {
    /// To open questions.
    pub open: Share,
    /// To closed ones.
    pub closed: Share,
    /// To all, those of no type included.
    pub overall: Share,
}

impl MatchScores {
    /// Counts one answer.
    pub fn count(&mut self, kind: Option<AnswerType>, right: bool) {
        self.overall.count(right);
        match kind {
            Some(AnswerType::Open) => self.open.count(right),
            Some(AnswerType::Closed) => self.closed.count(right),
            None => {}
        }
    }

    /// Of `(type, right answer, given answer)`, by exact match.
    pub fn of<'a>(answers: impl IntoIterator<Item = (Option<AnswerType>, &'a str, &'a str)>) -> MatchScores {
        let mut scores = MatchScores::default();
        for (kind, right, given) in answers {
            scores.count(kind, normalised(right) == normalised(given));
        }
        scores
    }
}

const PUNCTUATION: [char; 21] =
    [';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',', '?', '!'];
const NUMBERS: [(&str, &str); 12] = [
    ("none", "0"),
    ("zero", "0"),
    ("one", "1"),
    ("two", "2"),
    ("three", "3"),
    ("four", "4"),
    ("five", "5"),
    ("six", "6"),
    ("seven", "7"),
    ("eight", "8"),
    ("nine", "9"),
    ("ten", "10"),
];
/// Words that get their apostrophes back when one of them is left out. Those that would be other words (`its`, `wed`, `shes`,
/// `lets`, `id`, `ill`, `well`) are not among the published ones.
const CONTRACTED: &str = "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't \
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't \
    not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd \
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd \
    they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's \
    where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll \
    y'all'd've you'd you'd've you'll you're you've";

/// An answer as it is compared.
pub fn normalised(answer: &str) -> String {
    let plain = without_stops(&without_punctuation(answer)).to_lowercase();
    let mut words: Vec<String> = Vec::new();
    for word in plain.split_whitespace() {
        let word = NUMBERS.iter().find(|(name, _)| *name == word).map_or(word, |(_, digit)| digit);
        if !["a", "an", "the"].contains(&word) {
            words.push(contracted(word).unwrap_or(word).to_string());
        }
    }
    words.join(" ").replace("x ray", "xray")
}

fn without_punctuation(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let thousands = chars.windows(3).any(|w| w[0].is_numeric() && w[1] == ',' && w[2].is_numeric());
    let mut out = text.to_string();
    for p in PUNCTUATION {
        let beside = chars.windows(2).any(|w| (w[0] == p && w[1] == ' ') || (w[0] == ' ' && w[1] == p));
        out = out.replace(p, if beside || thousands { "" } else { " " });
    }
    out
}

/// The published expression counts to 32, by a flag in the place of a number.
fn without_stops(text: &str) -> String {
    let (mut out, mut left) = (String::new(), 32);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let stop = c == '.' && !chars.peek().is_some_and(|next| next.is_numeric());
        match stop && left > 0 {
            true => left -= 1,
            false => out.push(c),
        }
    }
    out
}

/// The contraction that a word is without one of its apostrophes.
fn contracted(word: &str) -> Option<&'static str> {
    // The published table has this one the other way round.
    if word == "somebody'd" {
        return Some("somebodyd");
    }
    CONTRACTED.split_whitespace().find(|whole| {
        let spots = whole.match_indices('\'').map(|(at, _)| at);
        let mut ways = spots.map(|at| format!("{}{}", &whole[..at], &whole[at + 1..]));
        ways.any(|short| short == word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        text: String,
        normalised: String,
    }

    /// `tests/golden/fedmllm/vqa.json`, written by the script beside it.
    #[test]
    fn answers_are_normalised_as_the_challenges_rules_say() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("../../../tests/golden/fedmllm/vqa.json")).unwrap();
        assert!(cases.len() > 30);
        for case in cases {
            assert_eq!(normalised(&case.text), case.normalised, "{:?}", case.text);
        }
    }

    #[test]
    fn answers_are_counted_by_type_and_blanks_and_articles_do_not_matter() {
        let (open, closed) = (Some(AnswerType::Open), Some(AnswerType::Closed));
        let scores = MatchScores::of([
            (closed, "Yes", "yes."),
            (closed, "No", "Yes"),
            (open, "the left lung", "Left  lung"),
            (open, "x-ray", "X ray"),
            (open, "two", "2"),
            (None, "a", "b"),
        ]);
        assert_eq!((scores.open, scores.closed), (Share { right: 3, all: 3 }, Share { right: 1, all: 2 }));
        assert_eq!(scores.overall, Share { right: 4, all: 6 });
        assert_eq!((Share::default().rate(), scores.closed.rate()), (None, Some(0.5)));
    }
}
