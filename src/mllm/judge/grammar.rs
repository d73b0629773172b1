//! A choice read from an answer.
//!
//! Strictly, an answer's first line is
//!
//! ```text
//! answer = [lead] ( mark [words] | words ) ["."]
//! lead   = ["the"] ["best" | "correct"] "answer" ["is"] [":"]          in any case
//! mark   = "(" letter ")" | letter ")" | letter "." | letter ":" | letter      an upper-case letter of an option
//! words  = the option's own words                                             in any case; behind a mark, of that option
//! ```
//!
//! and anything else is unparsed: counted apart, and wrong. FedMLLM's scripts take the first capital letter anywhere, also
//! inside a word, and call option 2 whatever fails ([`reference`]).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::multimodal::Choice;

/// How a choice is read from an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Parser {
    /// By a grammar; what does not fit is unparsed, and wrong.
    #[default]
    Strict,
    /// As FedMLLM's scripts do, mistakes included.
    Reference,
}

/// What was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// The option's number; of the reference parser possibly beyond the last. None: nothing that could be compared.
    pub option: Option<usize>,
    /// Whether the answer said so itself.
    pub parsed: bool,
}

impl Parser {
    /// Reads which of `options` an answer means.
    pub fn read(self, answer: &str, options: &[String]) -> Read {
        match self {
            Parser::Strict => {
                let option = strict(answer, options);
                Read { option, parsed: option.is_some() }
            }
            Parser::Reference => reference(answer, options.len()),
        }
    }
}

/// The option that an answer means by the grammar of this module's head.
pub fn strict(answer: &str, options: &[String]) -> Option<usize> {
    let line = answer.trim().lines().next()?.trim();
    let line = without_lead(line);
    let is = |words: &str, option: &str| {
        let same = |words: &str| words.to_lowercase() == option.to_lowercase();
        same(words) || words.strip_suffix('.').is_some_and(same)
    };
    if let Some(found) = options.iter().position(|option| is(line, option)) {
        return Some(found);
    }
    let (letter, rest) = mark(line)?;
    let at = (0..options.len().min(26)).find(|&i| Choice::letter(i) == letter)?;
    let rest = rest.trim();
    (rest.is_empty() || rest == "." || is(rest, &options[at])).then_some(at)
}

/// A letter as a mark at the line's beginning, and what follows it.
fn mark(line: &str) -> Option<(char, &str)> {
    let open = line.strip_prefix('(');
    let mut rest = open.unwrap_or(line).chars();
    let letter = rest.next().filter(char::is_ascii_uppercase)?;
    let rest = rest.as_str();
    if open.is_some() {
        return Some((letter, rest.strip_prefix(')')?));
    }
    let bare =
        rest.strip_prefix([')', '.', ':']).or_else(|| (rest.is_empty() || rest.starts_with(' ')).then_some(rest));
    Some((letter, bare?))
}

/// A line without the words that lead to an answer.
fn without_lead(line: &str) -> &str {
    let mut rest = line;
    for (words, needed) in [(&["the"][..], false), (&["best", "correct"], false), (&["answer"], true), (&["is"], false)]
    {
        match words.iter().find_map(|word| after_word(rest, word)) {
            Some(after) => rest = after,
            None if needed => return line,
            None => {}
        }
    }
    rest.strip_prefix(':').unwrap_or(rest).trim_start()
}

/// What follows a word at the beginning, in any case; none where it does not stand there whole.
fn after_word<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    let head = line.get(..word.len())?;
    let rest = &line[word.len()..];
    (head.eq_ignore_ascii_case(word) && !rest.starts_with(char::is_alphanumeric)).then(|| rest.trim_start())
}

/// What FedMLLM's scripts read: `answer` and `Answer` deleted, the first match of `[( ]*[A-G][) ]*` (up to the last option's
/// letter where there are more than seven), blanks and then brackets stripped from its ends; option 2 where that is no
/// option's letter.
pub fn reference(answer: &str, options: usize) -> Read {
    let text = answer.replace("answer", "").replace("Answer", "");
    let last = Choice::letter(options.saturating_sub(1)).max('G');
    let found = text.find(|c: char| ('A'..=last).contains(&c)).and_then(|at| {
        let before = text[..at].trim_end_matches(['(', ' ']).len();
        let behind = text[at + 1..].trim_start_matches([')', ' ']);
        let matched = text[before..text.len() - behind.len()].trim().trim_matches(['(', ')']);
        (0..options).find(|&i| matched.len() == 1 && matched.starts_with(Choice::letter(i)))
    });
    Read { option: Some(found.unwrap_or(2)), parsed: found.is_some() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Vec<String> {
        ["not-hateful", "hateful", "A thing"].map(String::from).to_vec()
    }

    #[test]
    fn the_grammar_takes_marks_words_and_both_when_they_agree() {
        let cases = [
            ("(B) hateful", Some(1)),
            (" B ", Some(1)),
            ("B.", Some(1)),
            ("B) Hateful.", Some(1)),
            ("(A)", Some(0)),
            ("A: not-hateful\nbecause of …", Some(0)),
            ("The best answer is: (B) hateful.", Some(1)),
            ("Answer: B", Some(1)),
            ("the correct answer is hateful", Some(1)),
            ("NOT-HATEFUL", Some(0)),
            ("A thing", Some(2)),
            ("(B) not-hateful", None),
            ("A meme about Bob", None),
            ("(D)", None),
            ("b", None),
            ("answering B", None),
            ("It is (B)", None),
            ("(B", None),
            ("", None),
            ("ä", None),
        ];
        for (answer, want) in cases {
            assert_eq!(strict(answer, &options()), want, "{answer:?}");
        }
    }

    #[test]
    fn the_reference_takes_the_first_capital_and_calls_failures_two() {
        let two = |answer: &str| reference(answer, 2);
        let read = |option, parsed| Read { option: Some(option), parsed };
        assert_eq!(two("(B) hateful"), read(1, true));
        assert_eq!(two("Answer: (A)"), read(0, true));
        // The first capital up to G, wherever it stands.
        assert_eq!(two("Because it is (A)"), read(1, true));
        assert_eq!(two("Good: (A)"), read(2, false));
        assert_eq!(two("Not hateful, so (A)"), read(0, true));
        // The letter stays behind a blank inside the brackets.
        assert_eq!(two("( A"), read(2, false));
        assert_eq!(two("b"), read(2, false));
        assert_eq!(two("C"), read(2, false));
        assert_eq!(reference("H", 8), read(7, true));
        assert_eq!(reference("(H)", 2), read(2, false));
        assert_eq!(reference("ÄÖ (D)", 8), read(3, true));
    }

    #[derive(serde::Deserialize)]
    struct Golden {
        answer: String,
        #[serde(rename = "2")]
        of_two: Option<usize>,
        #[serde(rename = "8")]
        of_eight: Option<usize>,
    }

    /// `tests/golden/fedmllm/parsed.json`, written by the script beside it with Python's `re`.
    #[test]
    fn the_reference_reads_three_hundred_scrambled_answers_as_python_does() {
        let cases: Vec<Golden> =
            serde_json::from_str(include_str!("../../../tests/golden/fedmllm/parsed.json")).unwrap();
        assert!(cases.iter().filter(|c| c.of_two.is_some()).count() > 50);
        for Golden { answer, of_two, of_eight } in cases {
            for (options, want) in [(2, of_two), (8, of_eight)] {
                let want = Read { option: Some(want.unwrap_or(2)), parsed: want.is_some() };
                assert_eq!(reference(&answer, options), want, "{answer:?} of {options}");
            }
        }
    }

    #[test]
    fn an_unparsed_answer_is_no_option_strictly_and_option_two_by_the_reference() {
        let unclear = "Both could be right";
        assert_eq!(Parser::Strict.read("I cannot say", &options()), Read { option: None, parsed: false });
        assert_eq!(Parser::Reference.read("no", &options()), Read { option: Some(2), parsed: false });
        assert_eq!(Parser::Reference.read(unclear, &options()), Read { option: Some(1), parsed: true });
    }
}
