//! Draws squares of confusion, and who holds what.

use plotters::prelude::*;

use super::data::{Holding, Square};
use super::page::{Area, GRID, HEAT, SERIES, failed, leading, page, width, wrap, write, write_lines};
use crate::error::Result;

const SMALL: i32 = 14;
/// Widest side of a square with many classes.
const SIDE: i32 = 320;
/// Most classes whose names stand beside a square, and whose shares stand in it as numbers.
const NAMED: usize = 12;
/// Smallest share that is drawn.
const LEAST: f64 = 0.005;
/// Squares beside each other.
const ABREAST: usize = 3;

/// Squares of share, each under its name; rows are true classes, columns predicted ones.
pub fn confusions(classes: &[String], squares: &[Square]) -> Result<String> {
    let n = squares.iter().map(|s| s.shares.len()).max().unwrap_or(1).max(1);
    let cell = if n <= NAMED { 28 } else { (SIDE / n as i32).max(2) };
    let (side, names) = (cell * n as i32, if n <= NAMED { room(classes) + 44 } else { 40 });
    let columns = squares.len().min(ABREAST);
    let head = squares.iter().map(|s| wrap(&s.name, side, SMALL).len()).max().unwrap_or(1) as i32 * leading(SMALL) + 22;
    let (step_x, step_y) = (side + 40, head + side + 20);
    let page_width = (names + columns as i32 * step_x + 12).max(560);
    let title =
        wrap("Confusion: predicted classes (columns) of each true class (rows), shares in %", page_width - 24, 18);
    let top = 14 + title.len() as i32 * leading(18);
    let notes = wrap(&confusion_note(n), page_width - 24, SMALL);
    let height = top + squares.len().div_ceil(columns) as i32 * step_y + notes.len() as i32 * leading(SMALL) + 12;
    page((page_width, height), |area| {
        write_lines(area, &title, (12, 12), 18)?;
        for (i, square) in squares.iter().enumerate() {
            let at = (names + (i % columns) as i32 * step_x, top + (i / columns) as i32 * step_y + head);
            write_lines(area, &wrap(&square.name, side, SMALL), (at.0, at.1 - head + 6), SMALL)?;
            if i % columns == 0 {
                class_names(area, classes, n, (12, at.1), (names - 20, cell))?;
            }
            one(area, square, at, cell)?;
        }
        write_lines(area, &notes, (12, height - notes.len() as i32 * leading(SMALL) - 6), SMALL).map(|_| ())
    })
}

fn confusion_note(n: usize) -> String {
    match n <= NAMED {
        true => "Images of all seeds together.".into(),
        false => format!(
            "Images of all seeds together; {n} classes, every tenth numbered; the shade is the share's root, and shares below 0.5 % are not drawn."
        ),
    }
}

/// Names or numbers beside rows of cells.
fn class_names(area: &Area<'_>, classes: &[String], n: usize, at: (i32, i32), (wide, cell): (i32, i32)) -> Result<()> {
    for i in (0..n).filter(|i| n <= NAMED || i % 10 == 0) {
        let name = classes.get(i).map_or("", String::as_str);
        let text = if n <= NAMED { clipped(&format!("{} {name}", i + 1), wide) } else { (i + 1).to_string() };
        write(area, &text, (at.0, at.1 + i as i32 * cell + cell / 2 - 8), SMALL)?;
    }
    Ok(())
}

/// A name cut to a width, its end as an ellipsis.
fn clipped(text: &str, pixels: i32) -> String {
    if width(text, SMALL) <= pixels {
        return text.into();
    }
    let mut kept: String = text.into();
    while !kept.is_empty() && width(&format!("{kept}…"), SMALL) > pixels {
        kept.pop();
    }
    format!("{kept}…")
}

/// Pixels that names of classes take, at most so many.
fn room(names: &[String]) -> i32 {
    names.iter().map(|n| width(n, SMALL)).max().unwrap_or(0).clamp(60, 220)
}

fn one(area: &Area<'_>, square: &Square, (x, y): (i32, i32), cell: i32) -> Result<()> {
    let n = square.shares.len() as i32;
    area.draw(&Rectangle::new([(x, y), (x + n * cell, y + n * cell)], GRID.stroke_width(1))).map_err(failed)?;
    for (i, line) in square.shares.iter().enumerate() {
        let numbered = if n as usize <= NAMED { true } else { i % 10 == 0 };
        if numbered {
            let label = (i + 1).to_string();
            write(area, &label, (x + i as i32 * cell + (cell - width(&label, 12)) / 2, y - 15), 12)?;
        }
        let shade = |share: f64| if n as usize <= NAMED { share.clamp(0.0, 1.0) } else { share.clamp(0.0, 1.0).sqrt() };
        for (j, share) in line.iter().enumerate().filter(|(_, s)| **s >= LEAST) {
            let at = (x + j as i32 * cell, y + i as i32 * cell);
            let corners = [at, (at.0 + cell, at.1 + cell)];
            area.draw(&Rectangle::new(corners, HEAT.mix(shade(*share)).filled())).map_err(failed)?;
            if n as usize <= NAMED && (100.0 * share).round() >= 1.0 {
                let text = format!("{:.0}", 100.0 * share);
                write(area, &text, (at.0 + (cell - width(&text, 12)) / 2, at.1 + 8), 12)?;
            }
        }
    }
    Ok(())
}

/// Widest a picture of holders gets.
const HOLDERS: i32 = 900;
/// Most columns of holders; of more, neighbours are put together.
const COLUMNS: usize = 120;

/// Images of each class that each client and the server hold: circles whose area is the number, or, of many, cells whose
/// shade is its root.
pub fn holders(all: &[Holding]) -> Result<String> {
    let plans: Vec<Plan> = all.iter().map(Plan::of).collect();
    let wide = plans.iter().map(|p| 12 + p.names + p.columns.len() as i32 * p.cell + 24).max().unwrap_or(0).max(560);
    let title = "Who holds what: clients, and the server's set at the right";
    let heights: Vec<i32> = plans.iter().map(|p| p.height(wide)).collect();
    page((wide, 44 + heights.iter().sum::<i32>()), |area| {
        write(area, title, (12, 12), 18)?;
        let mut y = 44;
        for (plan, height) in plans.iter().zip(&heights) {
            plan.draw(area, y, wide)?;
            y += height;
        }
        Ok(())
    })
}

/// How one split is drawn.
struct Plan<'h> {
    holding: &'h Holding,
    /// Images of each class, a column each; the last is the server's.
    columns: Vec<Vec<u64>>,
    /// Clients in a column.
    each: usize,
    cell: i32,
    circles: bool,
    names: i32,
    rows: usize,
}

impl<'h> Plan<'h> {
    fn of(holding: &'h Holding) -> Self {
        let rows = holding.holders.iter().map(Vec::len).max().unwrap_or(1).max(1);
        let clients = holding.holders.len() - 1;
        let each = clients.div_ceil(COLUMNS).max(1);
        let sum = |part: &[Vec<u64>]| (0..rows).map(|c| part.iter().filter_map(|h| h.get(c)).sum()).collect();
        let mut columns: Vec<Vec<u64>> = holding.holders[..clients].chunks(each).map(sum).collect();
        columns.push(holding.holders[clients].clone());
        let circles = rows <= 20 && columns.len() <= 30;
        let cell = if circles { 28 } else { ((HOLDERS - 160) / columns.len() as i32).clamp(4, 14) };
        Plan {
            holding,
            columns,
            each,
            cell,
            circles,
            names: if rows <= 20 { room(&holding.classes) + 16 } else { 40 },
            rows,
        }
    }

    fn step(&self) -> i32 {
        if self.circles {
            self.cell
        } else if self.rows <= 20 {
            18
        } else {
            (360 / self.rows as i32).max(4)
        }
    }

    fn head(&self, wide: i32) -> Vec<String> {
        wrap(&self.holding.name, wide - 24, 15)
    }

    fn height(&self, wide: i32) -> i32 {
        self.head(wide).len() as i32 * leading(15) + self.rows as i32 * self.step() + 74
    }

    fn draw(&self, area: &Area<'_>, y: i32, wide: i32) -> Result<()> {
        let top = y + write_lines(area, &self.head(wide), (12, y), 15)? + 6;
        let (left, step) = (12 + self.names, self.step());
        let most = self.columns.iter().flatten().copied().max().unwrap_or(1).max(1);
        let root = |n: u64| (n as f64 / most as f64).sqrt();
        for row in (0..self.rows).filter(|r| self.rows <= 20 || r % 10 == 0) {
            let name = self.holding.classes.get(row).map_or("", String::as_str);
            let text = if self.rows <= 20 { clipped(name, self.names - 12) } else { (row + 1).to_string() };
            write(area, &text, (12, top + row as i32 * step + step / 2 - 8), SMALL)?;
        }
        for (c, counts) in self.columns.iter().enumerate() {
            let colour = SERIES[usize::from(c + 1 == self.columns.len())];
            for (row, n) in counts.iter().enumerate().filter(|(_, n)| **n > 0) {
                let (x, y) = (left + c as i32 * self.cell, top + row as i32 * step);
                if self.circles {
                    let (at, radius) = ((x + self.cell / 2, y + step / 2), root(*n) * f64::from(self.cell) * 0.48);
                    area.draw(&Circle::new(at, radius.max(1.5), colour.filled())).map_err(failed)?;
                } else {
                    let corners = [(x, y), (x + self.cell, y + step)];
                    area.draw(&Rectangle::new(corners, colour.mix(0.08 + 0.92 * root(*n)).filled())).map_err(failed)?;
                }
            }
        }
        self.foot(area, (left, top + self.rows as i32 * step + 6), most)
    }

    fn foot(&self, area: &Area<'_>, (left, y): (i32, i32), most: u64) -> Result<()> {
        let last = self.columns.len() - 1;
        let every = (width("000", 12) + 4) / self.cell + 1;
        for c in (0..last).filter(|c| *c as i32 % every == 0) {
            let label = (c * self.each).to_string();
            write(area, &label, (left + c as i32 * self.cell + (self.cell - width(&label, 12)) / 2, y), 12)?;
        }
        write(area, "S", (left + last as i32 * self.cell + (self.cell - width("S", 12)) / 2, y), 12)?;
        let each = if self.each > 1 { format!("each column is {} clients · ", self.each) } else { String::new() };
        let how = if self.circles { "area: images" } else { "shade: root of the images" };
        write(area, &format!("client, S: server · {each}{how}, the largest is {most}"), (12, y + 22), SMALL)
    }
}
