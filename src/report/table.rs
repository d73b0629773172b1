//! A table of texts, and how it gets narrow.

use std::path::PathBuf;

/// A column's head and how it behaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Its head.
    pub head: String,
    /// Whether numbers stand in it.
    pub number: bool,
    /// 0: it stays; else those of the highest rank leave first where the width does not do.
    pub rank: u8,
    /// Whether it leaves where all its cells are alike.
    pub quiet: bool,
}

/// Heads and cells, and the sentences that belong to them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Above it; empty for none.
    pub title: String,
    /// Its columns.
    pub columns: Vec<Column>,
    /// Its rows, a text a column.
    pub rows: Vec<Vec<String>>,
    /// Below it, a sentence each.
    pub notes: Vec<String>,
    /// The directories of the runs behind each cell, laid out as `rows`; empty where nobody says.
    pub leads: Vec<Vec<Vec<PathBuf>>>,
}

/// How much room there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Characters in a line; `None` for as many as it takes.
    pub width: Option<usize>,
    /// Whether every column stays, whatever the width.
    pub wide: bool,
}

impl Column {
    /// A column of words that stays.
    pub fn words(head: impl Into<String>) -> Self {
        Column { head: head.into(), number: false, rank: 0, quiet: false }
    }

    /// A column of numbers that stays.
    pub fn numbers(head: impl Into<String>) -> Self {
        Column { head: head.into(), number: true, rank: 0, quiet: false }
    }

    /// Leaves for the width, those of the highest rank first.
    pub fn rank(mut self, rank: u8) -> Self {
        self.rank = rank;
        self
    }

    /// Leaves where all cells are alike.
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }
}

impl Table {
    /// The table in this room: columns that say the same in all rows leave and are said in one line below, then those
    /// that are worth least, which are named.
    pub fn fitted(mut self, room: Room) -> Table {
        if room.wide {
            return self;
        }
        self.drop_constant();
        let Some(width) = room.width else { return self };
        let mut left = Vec::new();
        while self.least() > width {
            let Some(at) =
                (0..self.columns.len()).filter(|&c| self.columns[c].rank > 0).max_by_key(|&c| self.columns[c].rank)
            else {
                break;
            };
            left.insert(0, self.remove(at).head);
        }
        if !left.is_empty() {
            self.notes.push(format!("No room for: {} (--wide shows all).", left.join(", ")));
        }
        self
    }

    fn drop_constant(&mut self) {
        let (mut said, mut some, mut empty) = (Vec::new(), Vec::new(), Vec::new());
        if self.rows.len() < 2 {
            return;
        }
        for at in (0..self.columns.len()).rev().filter(|&c| self.columns[c].quiet).collect::<Vec<_>>() {
            let mut values: Vec<&str> = self.rows.iter().map(|r| r[at].as_str()).filter(|v| !v.is_empty()).collect();
            let all = values.len() == self.rows.len();
            values.dedup();
            if values.len() > 1 {
                continue;
            }
            let value = values.first().copied().unwrap_or("–").to_string();
            let column = self.remove(at);
            match (value.as_str(), all) {
                ("–", _) => empty.insert(0, column.head),
                (_, true) => said.insert(0, format!("{} {value}", column.head)),
                (_, false) => some.insert(0, format!("{} {value}", column.head)),
            }
        }
        let sentences = [("In all rows", said), ("In all rows that have one", some), ("In no row", empty)];
        let told = sentences.into_iter().filter(|(_, what)| !what.is_empty());
        let told: Vec<String> = told.map(|(where_, what)| format!("{where_}: {}.", what.join(" · "))).collect();
        self.notes.splice(0..0, told);
    }

    fn remove(&mut self, at: usize) -> Column {
        self.rows.iter_mut().for_each(|r| drop(r.remove(at)));
        self.leads.iter_mut().for_each(|r| drop(r.remove(at)));
        self.columns.remove(at)
    }

    /// Characters that its longest line takes on a terminal, no cell broken.
    pub fn width(&self) -> usize {
        let cells = |c: usize| self.rows.iter().map(move |r| length(&r[c])).max().unwrap_or(0);
        total((0..self.columns.len()).map(|c| cells(c).max(self.head_width(c))))
    }

    /// The same with words broken where they may be.
    pub fn least(&self) -> usize {
        total((0..self.columns.len()).map(|c| self.least_of(c)))
    }

    /// Widths of the columns on a terminal: words give way from the widest column on, numbers never.
    pub fn widths(&self, width: Option<usize>) -> Vec<usize> {
        let cells = |c: usize| self.rows.iter().map(|r| length(&r[c])).max().unwrap_or(0).max(self.head_width(c));
        let mut widths: Vec<usize> = (0..self.columns.len()).map(cells).collect();
        let Some(width) = width else { return widths };
        while total(widths.iter().copied()) > width {
            let gives = |c: &usize| !self.columns[*c].number && widths[*c] > self.least_of(*c);
            match (0..widths.len()).filter(gives).max_by_key(|&c| widths[c]) {
                Some(widest) => widths[widest] -= 1,
                None => break,
            }
        }
        widths
    }

    /// A head breaks at its spaces over a column of numbers.
    fn head_width(&self, c: usize) -> usize {
        let head = &self.columns[c].head;
        if self.columns[c].number { longest_word(head) } else { length(head) }
    }

    fn least_of(&self, c: usize) -> usize {
        let cells = || self.rows.iter().map(|r| r[c].as_str());
        if self.columns[c].number {
            return cells().map(length).max().unwrap_or(0).max(self.head_width(c));
        }
        let all = || cells().chain([self.columns[c].head.as_str()]);
        let (word, whole) = (all().map(longest_word).max().unwrap_or(0), all().map(length).max().unwrap_or(0));
        word.min(WORD).max(whole.min(NARROW))
    }
}

/// Between two columns on a terminal.
pub const GAP: usize = 2;
/// Narrower than this no column of words gets, unless its cells are.
const NARROW: usize = 12;
/// Words longer than this are broken where there is no room.
const WORD: usize = 24;

fn total(widths: impl Iterator<Item = usize>) -> usize {
    widths.map(|w| w + GAP).sum::<usize>().saturating_sub(GAP)
}

/// Characters of a text.
pub fn length(text: &str) -> usize {
    text.chars().count()
}

fn longest_word(text: &str) -> usize {
    text.split(' ').map(length).max().unwrap_or(0)
}

/// A text in lines of at most this many characters: broken at spaces, within a word only where it is longer itself.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut rest: Vec<char> = word.chars().collect();
        let used = lines.last().map_or(0, |l| length(l));
        if used > 0 && used + 1 + rest.len() <= width {
            lines.last_mut().into_iter().for_each(|l| *l = format!("{l} {word}"));
            continue;
        }
        while rest.len() > width.max(1) {
            // After a dot or a stroke, if there is one.
            let cut = (width / 2..width).rev().find(|&i| ".,-/_=".contains(rest[i])).map_or(width.max(1), |i| i + 1);
            lines.push(rest.drain(..cut).collect());
        }
        lines.push(rest.into_iter().collect());
    }
    let mut kept: Vec<String> = lines.into_iter().filter(|l| !l.is_empty()).collect();
    if kept.is_empty() {
        kept.push(String::new());
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let columns = vec![
            Column::words("run"),
            Column::words("algorithm").quiet(),
            Column::numbers("accuracy"),
            Column::numbers("few").rank(1),
            Column::words("extras").rank(2),
        ];
        let row =
            |run: &str| [run, "fedavg", "60.00 ± 1.00", "20.00 ± 1.00", "50 server labels"].map(String::from).to_vec();
        Table { columns, rows: vec![row("a"), row("b")], ..Table::default() }
    }

    #[test]
    fn words_break_at_spaces_then_after_dots_and_numbers_never() {
        assert_eq!(wrapped("1 pretrain (zero-shot)", 11), ["1 pretrain", "(zero-shot)"]);
        assert_eq!(wrapped("algorithm.server_lr = 1", 12), ["algorithm.", "server_lr =", "1"]);
        let widths = table().widths(Some(45));
        assert_eq!((widths[2], widths[3]), (12, 12), "{widths:?}");
    }

    #[test]
    fn constant_columns_leave_and_are_said_and_the_least_worth_leaves_for_the_width() {
        let fitted = table().fitted(Room { width: Some(40), wide: false });
        assert!(fitted.least() <= 40);
        let heads: Vec<&str> = fitted.columns.iter().map(|c| c.head.as_str()).collect();
        assert_eq!(heads, ["run", "accuracy", "few"]);
        assert_eq!(fitted.notes, ["In all rows: algorithm fedavg.", "No room for: extras (--wide shows all)."]);
        assert_eq!(table().fitted(Room { width: Some(40), wide: true }), table());
    }
}
