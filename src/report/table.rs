//! A table of texts, and how it gets narrow.

use comfy_table::{CellAlignment, Table as Grid, TableStyle, presets};

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
        while self.width() > width {
            let Some(at) = (0..self.columns.len()).filter(|&c| self.columns[c].rank > 0).max_by_key(|&c| self.columns[c].rank)
            else {
                break;
            };
            left.insert(0, self.remove(at).0.head);
        }
        if !left.is_empty() {
            self.notes.push(format!("No room for: {} (--wide shows all).", left.join(", ")));
        }
        self
    }

    fn drop_constant(&mut self) {
        let (mut said, mut empty) = (Vec::new(), Vec::new());
        if self.rows.len() < 2 {
            return;
        }
        for at in (0..self.columns.len()).rev().filter(|&c| self.columns[c].quiet).collect::<Vec<_>>() {
            let first = &self.rows[0][at];
            if self.rows.iter().any(|r| r[at] != *first) {
                continue;
            }
            let (column, cells) = self.remove(at);
            match cells[0].as_str() {
                "" | "–" => empty.insert(0, column.head),
                value => said.insert(0, format!("{} {value}", column.head)),
            }
        }
        if !said.is_empty() {
            self.notes.insert(0, format!("In all rows: {}.", said.join(" · ")));
        }
        if !empty.is_empty() {
            self.notes.insert(usize::from(!said.is_empty()), format!("In no row: {}.", empty.join(", ")));
        }
    }

    fn remove(&mut self, at: usize) -> (Column, Vec<String>) {
        let cells = self.rows.iter_mut().map(|r| r.remove(at)).collect();
        (self.columns.remove(at), cells)
    }

    /// Characters that its longest line takes on a terminal, unbroken.
    pub fn width(&self) -> usize {
        self.grid(presets::UTF8_HORIZONTAL_ONLY).lines().map(|l| l.chars().count()).max().unwrap_or(0)
    }

    /// As a grid of this style.
    pub fn grid(&self, style: TableStyle) -> Grid {
        let mut grid = Grid::new();
        grid.load_style(style);
        grid.set_header(self.columns.iter().map(|c| c.head.clone()));
        for row in &self.rows {
            grid.add_row(row.clone());
        }
        for at in (0..self.columns.len()).filter(|&c| self.columns[c].number) {
            if let Some(column) = grid.column_mut(at) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        grid
    }
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
        let row = |run: &str| [run, "fedavg", "60.00 ± 1.00", "20.00 ± 1.00", "50 server labels"].map(String::from).to_vec();
        Table { columns, rows: vec![row("a"), row("b")], ..Table::default() }
    }

    #[test]
    fn constant_columns_leave_and_are_said_and_the_least_worth_leaves_for_the_width() {
        let fitted = table().fitted(Room { width: Some(40), wide: false });
        assert!(fitted.width() <= 40);
        let heads: Vec<&str> = fitted.columns.iter().map(|c| c.head.as_str()).collect();
        assert_eq!(heads, ["run", "accuracy", "few"]);
        assert_eq!(fitted.notes, ["In all rows: algorithm fedavg.", "No room for: extras (--wide shows all)."]);
        assert_eq!(table().fitted(Room { width: Some(40), wide: true }), table());
    }
}
