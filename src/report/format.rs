//! Tables as text: for a terminal, as Markdown, as LaTeX; sheets as CSV.

use serde_json::Value;

use super::table::{GAP, Room, Table, length, wrapped};
use crate::error::{Error, Result};

/// One answer of `report` or `compare` in every form that it can be asked for.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// For people, already in the room that there is.
    pub tables: Vec<Table>,
    /// Below the tables, a sentence each.
    pub closing: Vec<String>,
    /// For programs: numbers, shares in `[0, 1]`.
    pub json: Value,
    /// For spreadsheets: the same numbers, one row a line.
    pub sheet: Sheet,
}

/// A head and rows of as many cells.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sheet {
    /// Names of the columns.
    pub head: Vec<String>,
    /// Cells, as text.
    pub rows: Vec<Vec<String>>,
}

impl View {
    /// For a terminal of this width; words wrap where they must, numbers never.
    pub fn terminal(&self, room: Room) -> String {
        let width = room.width.filter(|_| !room.wide);
        self.text(&|t| grid(t, width), &|s| width.map_or_else(|| s.to_string(), |w| wrapped(s, w).join("\n")))
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        self.text(&markdown, &|s| s.to_string())
    }

    /// As LaTeX, a `tabular` with booktabs' rules a table; sentences are comments.
    pub fn latex(&self) -> String {
        let comment = |s: &str| s.lines().map(|l| format!("% {l}")).collect::<Vec<_>>().join("\n");
        format!("% \\usepackage{{booktabs}} in the preamble\n{}", self.text(&tabular, &comment))
    }

    fn text(&self, table: &dyn Fn(&Table) -> String, sentence: &dyn Fn(&str) -> String) -> String {
        let mut parts: Vec<String> = Vec::new();
        for t in &self.tables {
            if !t.title.is_empty() {
                parts.push(sentence(&t.title));
            }
            if !t.rows.is_empty() {
                parts.push(table(t));
            }
            if !t.notes.is_empty() {
                parts.push(t.notes.iter().map(|n| sentence(n)).collect::<Vec<_>>().join("\n"));
            }
        }
        if !self.closing.is_empty() {
            parts.push(self.closing.iter().map(|n| sentence(n)).collect::<Vec<_>>().join("\n"));
        }
        parts.join("\n\n")
    }

    /// The sheet as CSV.
    pub fn csv(&self) -> Result<String> {
        let failed = |e: &dyn std::fmt::Display| Error::defect(format!("CSV: {e}"));
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(&self.sheet.head).map_err(|e| failed(&e))?;
        self.sheet.rows.iter().try_for_each(|row| writer.write_record(row)).map_err(|e| failed(&e))?;
        let bytes = writer.into_inner().map_err(|e| failed(&e))?;
        String::from_utf8(bytes).map(|t| t.trim_end().to_string()).map_err(|e| failed(&e))
    }
}

/// A table in lines: a rule below its heads, numbers at the right of their columns.
fn grid(table: &Table, width: Option<usize>) -> String {
    let widths = table.widths(width);
    let row = |cells: &mut dyn Iterator<Item = &String>| {
        let wrapped: Vec<Vec<String>> = cells.zip(&widths).map(|(cell, w)| wrapped(cell, *w)).collect();
        let height = wrapped.iter().map(Vec::len).max().unwrap_or(1);
        let line = |i: usize| {
            let cells = wrapped.iter().zip(&widths).zip(&table.columns);
            let text = |((lines, width), column): ((&Vec<String>, &usize), &super::table::Column)| {
                let text = lines.get(i).map_or("", String::as_str);
                if column.number { format!("{text:>width$}") } else { format!("{text:width$}") }
            };
            cells.map(text).collect::<Vec<_>>().join(&" ".repeat(GAP)).trim_end().to_string()
        };
        (0..height).map(line).collect::<Vec<_>>()
    };
    let mut lines = row(&mut table.columns.iter().map(|c| &c.head));
    lines.push("─".repeat((widths.iter().sum::<usize>() + GAP * widths.len()).saturating_sub(GAP)));
    lines.extend(table.rows.iter().flat_map(|cells| row(&mut cells.iter())));
    lines.join("\n")
}

fn markdown(table: &Table) -> String {
    let widths = table.widths(None);
    let widths: Vec<usize> = widths.iter().zip(&table.columns).map(|(w, c)| length(&c.head).max(*w).max(3)).collect();
    let row = |cells: &mut dyn Iterator<Item = String>| format!("| {} |", cells.collect::<Vec<_>>().join(" | "));
    let cell = |(i, text): (usize, &String)| {
        let (width, text) = (widths[i], text.replace('|', "\\|"));
        if table.columns[i].number { format!("{text:>width$}") } else { format!("{text:width$}") }
    };
    let rule = |(c, w): (&super::table::Column, &usize)| match c.number {
        true => format!("{}:", "-".repeat(w + 1)),
        false => "-".repeat(w + 2),
    };
    let mut lines = vec![row(&mut table.columns.iter().map(|c| &c.head).enumerate().map(cell))];
    lines.push(format!("|{}|", table.columns.iter().zip(&widths).map(rule).collect::<Vec<_>>().join("|")));
    lines.extend(table.rows.iter().map(|cells| row(&mut cells.iter().enumerate().map(cell))));
    lines.join("\n")
}

fn tabular(table: &Table) -> String {
    let row = |cells: &mut dyn Iterator<Item = &String>| {
        format!("  {} \\\\", cells.map(|c| escaped(c)).collect::<Vec<_>>().join(" & "))
    };
    let places: String = table.columns.iter().map(|c| if c.number { 'r' } else { 'l' }).collect();
    let mut lines = vec![format!("\\begin{{tabular}}{{{places}}}"), "  \\toprule".into()];
    lines.push(row(&mut table.columns.iter().map(|c| &c.head)));
    lines.push("  \\midrule".into());
    lines.extend(table.rows.iter().map(|cells| row(&mut cells.iter())));
    lines.extend(["  \\bottomrule".into(), "\\end{tabular}".into()]);
    lines.join("\n")
}

/// Text that LaTeX sets as it is read here, whatever characters are in it.
pub fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
            '\\' => out.push_str("\\textbackslash{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '<' => out.push_str("\\textless{}"),
            '>' => out.push_str("\\textgreater{}"),
            '|' => out.push_str("\\textbar{}"),
            '"' => out.push_str("''"),
            '[' | ']' => out.extend(['{', c, '}']),
            '–' => out.push_str("--"),
            '…' => out.push_str("\\ldots{}"),
            _ => match SYMBOLS.iter().find(|(symbol, _)| *symbol == c) {
                Some((_, name)) => out.push_str(&format!("\\ensuremath{{{name}}}")),
                None => out.push(c),
            },
        }
    }
    out
}

/// Characters that LaTeX has in its mathematics alone.
const SYMBOLS: [(char, &str); 18] = [
    ('±', "\\pm"),
    ('−', "-"),
    ('·', "\\cdot"),
    ('×', "\\times"),
    ('≤', "\\leq"),
    ('≥', "\\geq"),
    ('→', "\\rightarrow"),
    ('α', "\\alpha"),
    ('β', "\\beta"),
    ('γ', "\\gamma"),
    ('δ', "\\delta"),
    ('ε', "\\varepsilon"),
    ('η', "\\eta"),
    ('λ', "\\lambda"),
    ('μ', "\\mu"),
    ('σ', "\\sigma"),
    ('τ', "\\tau"),
    ('ρ', "\\rho"),
];

#[cfg(test)]
mod tests {
    use super::super::table::Column;
    use super::*;

    fn view() -> View {
        let columns = vec![Column::words("run & co"), Column::numbers("accuracy")];
        let rows =
            vec![vec!["a_b {50 %} #1 ~ ^ \\ $".into(), "55.00 ± 7.07".into()], vec!["λ, \"c\"".into(), "–".into()]];
        let sheet = Sheet { head: vec!["run".into(), "x".into()], rows: vec![vec!["a, \"b\"".into(), "1".into()]] };
        let table = Table { columns, rows, notes: vec!["50 % of it".into()], ..Table::default() };
        View { tables: vec![table], sheet, ..View::default() }
    }

    #[test]
    fn latex_escapes_what_it_must_and_every_row_has_its_columns() {
        let text = view().latex();
        let body: Vec<&str> = text.lines().filter(|l| l.ends_with("\\\\")).collect();
        assert_eq!(body.len(), 3);
        for line in body {
            let separators = line.replace("\\&", "").matches('&').count();
            assert_eq!(separators, 1, "{line}");
            assert!(line.is_ascii(), "{line}");
        }
        for needed in
            ["\\begin{tabular}{lr}", "\\toprule", "\\midrule", "\\bottomrule", "\\end{tabular}", "% 50 % of it"]
        {
            assert!(text.contains(needed), "{needed} in {text}");
        }
        let raw = "a\\_b \\{50 \\%\\} \\#1 \\textasciitilde{} \\textasciicircum{} \\textbackslash{} \\$";
        assert!(text.contains(raw) && text.contains("55.00 \\ensuremath{\\pm} 7.07"), "{text}");
        let depth = text
            .lines()
            .filter(|l| !l.starts_with('%'))
            .flat_map(|l| l.replace("\\{", "").replace("\\}", "").chars().collect::<Vec<_>>());
        assert_eq!(depth.map(|c| i32::from(c == '{') - i32::from(c == '}')).sum::<i32>(), 0, "braces");
    }

    #[test]
    fn a_sheet_quotes_commas_and_sentences_wrap_at_the_width() {
        assert_eq!(view().csv().unwrap(), "run,x\n\"a, \"\"b\"\"\",1");
        let narrow = view().terminal(Room { width: Some(26), wide: false });
        assert!(narrow.lines().all(|l| l.chars().count() <= 26) && narrow.contains("55.00 ± 7.07"), "{narrow}");
    }
}
