//! Rows of activations turned into panels: for each column sixteen, 32 or 48 values, one of each row.

use std::ops::Range;

use rayon::prelude::*;

use super::dense::Rows;
use super::simd::{Isa, Simd, per_isa};
use super::spare::Spare;

/// Rows of a whole panel: three registers.
pub(super) const PANEL: usize = 48;

/// A panel's place: its first row, its rows, and its lanes, which are its rows up to whole registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub first: usize,
    pub count: usize,
    pub lanes: usize,
}

/// The panels of so many rows. One register alone is slow: what would be left for it shares with the panel before.
pub(super) fn places(rows: usize) -> impl Iterator<Item = Place> {
    let left = rows % PANEL;
    let narrow = if rows > PANEL && (1..=16).contains(&left) { PANEL + left } else { left };
    let whole = (rows - narrow) / PANEL;
    let step = if narrow > PANEL { 32 } else { PANEL };
    let tail = (0..narrow).step_by(step).map(move |at| {
        let count = step.min(narrow - at);
        Place { first: whole * PANEL + at, count, lanes: count.next_multiple_of(16) }
    });
    (0..whole).map(|i| Place { first: i * PANEL, count: PANEL, lanes: PANEL }).chain(tail)
}

/// Lanes of all panels of so many rows.
pub(super) fn lanes(rows: usize) -> usize {
    places(rows).map(|p| p.lanes).sum()
}

/// Rows `0..rows` in groups of about `most`, none smaller than a panel unless all rows are, and as many for each of
/// `threads`. Nothing where the rows are too few to go round.
pub fn groups(rows: usize, most: usize, threads: usize) -> Option<Vec<Range<usize>>> {
    let panels = rows / PANEL;
    if threads > 1 && panels < 4 * threads {
        return None;
    }
    let groups = panels.div_ceil((most / PANEL).max(1)).next_multiple_of(threads).clamp(1, panels.max(1));
    let edge = |i: usize| if i == groups { rows } else { i * panels / groups * PANEL };
    Some((0..groups).map(|i| edge(i)..edge(i + 1)).collect())
}

/// Rows as panels, one after the other.
pub(super) struct Panels {
    values: Spare,
    inputs: usize,
    rows: usize,
}

impl Panels {
    /// Of rows of `inputs` values; by the current rayon pool, or by this thread alone.
    pub fn of(isa: Isa, x: &[f32], inputs: usize, pool: bool) -> Self {
        let rows = x.len() / inputs;
        let mut values = Spare::take(lanes(rows) * inputs);
        let mut parts = Vec::new();
        let mut rest: &mut [f32] = &mut values;
        for place in places(rows) {
            let (part, tail) = rest.split_at_mut(place.lanes * inputs);
            parts.push((place, part));
            rest = tail;
        }
        let one = |(place, part): (Place, &mut [f32])| {
            let rows = &x[place.first * inputs..(place.first + place.count) * inputs];
            let rows = Rows { at: rows.as_ptr(), stride: inputs, count: place.count };
            // SAFETY: `isa` is this machine's; `rows` has the place's rows, `part` its lanes for each column.
            unsafe { turn(isa, rows, inputs, part, place.lanes) }
        };
        match pool {
            true => parts.into_par_iter().for_each(one),
            false => parts.into_iter().for_each(one),
        }
        Panels { values, inputs, rows }
    }

    /// Each panel with its place.
    pub fn each(&self) -> impl Iterator<Item = (Place, &[f32])> {
        let mut rest: &[f32] = &self.values;
        places(self.rows).map(move |place| {
            let (panel, tail) = rest.split_at(place.lanes * self.inputs);
            rest = tail;
            (place, panel)
        })
    }
}

per_isa! {
    /// `x` as one panel of `lanes` lanes; lanes of no row hold anything, and nobody reads their sums. Contract: `x` has
    /// at most `lanes` rows of `inputs` readable values, `panel` `lanes` values for each column.
    turn = turn_body(x: Rows, inputs: usize, panel: &mut [f32], lanes: usize)
}

/// See [`turn`].
#[inline(always)]
pub(super) unsafe fn turn_body<S: Simd>(x: Rows, inputs: usize, panel: &mut [f32], lanes: usize) {
    // Whole squares by registers; what is left by itself.
    let (rows, whole) = (x.count / 16 * 16, inputs / 16 * 16);
    for r in (0..rows).step_by(16) {
        for i in (0..whole).step_by(16) {
            // SAFETY: the contract of `turn`.
            unsafe { S::turn(x.at.add(r * x.stride + i), x.stride, panel.as_mut_ptr().add(i * lanes + r), lanes) };
        }
    }
    for r in 0..x.count {
        for i in if r < rows { whole..inputs } else { 0..inputs } {
            // SAFETY: as above.
            panel[i * lanes + r] = unsafe { *x.at.add(r * x.stride + i) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_cover_every_row_once_and_no_panel_beside_others_is_one_register() {
        for rows in 1..200 {
            let all: Vec<Place> = places(rows).collect();
            let mut next = 0;
            for p in &all {
                assert_eq!(p.first, next, "{rows} rows");
                assert!(p.count > 0 && p.count <= p.lanes && p.lanes <= PANEL && p.lanes % 16 == 0);
                assert!(p.lanes > 16 || rows <= 16, "{rows} rows: {p:?}");
                next += p.count;
            }
            assert_eq!(next, rows);
        }
    }

    #[test]
    fn groups_cover_every_row_once_and_none_is_smaller_than_a_panel() {
        for threads in [1, 2, 3, 16] {
            for rows in [1, 8, 48, 97, 216, 700, 1600, 5000] {
                let Some(groups) = groups(rows, 200, threads) else {
                    assert!(threads > 1 && rows < 4 * PANEL * threads + PANEL);
                    continue;
                };
                assert_eq!(groups.iter().fold(0, |next, g| if g.start == next { g.end } else { usize::MAX }), rows);
                assert!(groups.iter().all(|g| g.len() >= PANEL.min(rows)), "{groups:?}");
                assert!(threads == 1 || groups.len() % threads == 0 || groups.len() == rows / PANEL);
            }
        }
    }
}
