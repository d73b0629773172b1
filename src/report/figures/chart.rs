//! Draws charts: at most six series a panel, so that every one has a colour and a marker of its own.

use plotters::prelude::*;

use super::data::{Chart, Mark, Series};
use super::page::{
    Area, GRID, INK, SERIES, failed, leading, marker, page, thinned, width, wrap, write, write_lines, write_up,
};
use crate::error::{Error, Result};

const WIDTH: i32 = 860;
const LEFT: i32 = 64;
const LEGEND: i32 = 270;
const PLOT: i32 = 300;
/// Below a plot: labels and the axis's name.
const FOOT: i32 = 56;
/// Between the plot's edges and its first and last places.
const MARGIN: i32 = 32;
const SMALL: i32 = 14;
/// Most markers on a line.
const MARKERS: usize = 24;

/// Where values lie.
struct Scale {
    first: f64,
    last: f64,
    log: bool,
    top: f64,
    ticks: Vec<f64>,
    y: i32,
}

/// The chart as SVG.
pub fn chart(c: &Chart) -> Result<String> {
    if c.series.iter().all(|s| s.points.is_empty()) {
        return Err(Error::data(format!("figure {}: there is nothing to draw", c.title)));
    }
    let title = wrap(&c.title, WIDTH - 24, 18);
    let notes: Vec<String> = c.notes.iter().flat_map(|n| wrap(n, WIDTH - 24, SMALL)).collect();
    let each = c.series.len().div_ceil(c.series.len().div_ceil(SERIES.len()));
    let panels: Vec<&[Series]> = c.series.chunks(each).collect();
    let heights: Vec<i32> = panels.iter().map(|p| legend_height(p).max(PLOT + FOOT) + 24).collect();
    let head = 14 + title.len() as i32 * leading(18) + 8;
    let height = head + heights.iter().sum::<i32>() + notes.len() as i32 * leading(SMALL) + 10;
    page((WIDTH, height), |area| {
        write_lines(area, &title, (12, 12), 18)?;
        let mut y = head;
        for (n, panel) in panels.iter().enumerate() {
            let scale = Scale::of(c, y + 6);
            axes(area, c, &scale)?;
            panel.iter().enumerate().try_for_each(|(i, s)| one(area, c.mark, &scale, s, i, panel.len()))?;
            legend(area, panel, y + 6)?;
            y += heights[n];
        }
        write_lines(area, &notes, (12, y), SMALL).map(|_| ())
    })
}

impl Scale {
    fn of(c: &Chart, y: i32) -> Scale {
        let points = || c.series.iter().flat_map(|s| &s.points);
        let mut ticks: Vec<f64> = points().map(|p| p.x).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        let log = c.log && ticks.first().is_some_and(|t| *t > 0.0);
        let at = |v: &f64| if log { v.ln() } else { *v };
        let (mut first, mut last) = (ticks.first().map_or(0.0, at), ticks.last().map_or(1.0, at));
        if first == last {
            (first, last) = (first - 1.0, last + 1.0);
        }
        let high = |p: &super::data::Point| p.of.mean().unwrap_or(0.0) + p.of.deviation().unwrap_or(0.0);
        let most = points().map(high).fold(0.0, f64::max);
        let top = [5.0, 10.0, 20.0, 50.0].into_iter().find(|t| most <= *t).unwrap_or(100.0);
        if c.mark == Mark::Bands {
            ticks = if log { decades(first.exp(), last.exp()) } else { nice(first, last) };
        }
        Scale { first, last, log, top, ticks, y }
    }

    fn x(&self, v: f64) -> i32 {
        let room = f64::from(WIDTH - LEFT - LEGEND - 2 * MARGIN);
        let at = if self.log { v.ln() } else { v };
        LEFT + MARGIN + ((at - self.first) / (self.last - self.first) * room).round() as i32
    }

    /// Between the stems of so many series at one place: they keep clear of the next place, as far as they can be seen.
    fn step(&self, series: usize) -> i32 {
        let gap = self.ticks.windows(2).map(|w| self.x(w[1]) - self.x(w[0])).min().unwrap_or(60);
        (gap / (series as i32 + 1)).clamp(3, 9)
    }

    fn y(&self, v: f64) -> i32 {
        self.y + PLOT - (v.clamp(0.0, self.top) / self.top * f64::from(PLOT)).round() as i32
    }
}

/// Round numbers between two, some six of them.
fn nice(first: f64, last: f64) -> Vec<f64> {
    let step =
        [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0];
    let step = step.into_iter().find(|s| (last - first) / s <= 8.0).unwrap_or(10_000.0);
    let (a, b) = ((first / step).ceil() as i64, (last / step).floor() as i64);
    (a..=b).map(|i| i as f64 * step).collect()
}

/// One, two and five times the powers of ten between two numbers above 0.
fn decades(first: f64, last: f64) -> Vec<f64> {
    let powers = (first.log10().floor() as i32)..=(last.log10().ceil() as i32);
    let all = powers.flat_map(|k| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(k)));
    all.filter(|v| (first..=last).contains(v)).collect()
}

fn axes(area: &Area<'_>, c: &Chart, s: &Scale) -> Result<()> {
    let (right, base) = (WIDTH - LEGEND, s.y(0.0));
    for i in 0..=5 {
        let value = s.top * f64::from(i) / 5.0;
        let (at, label) = (s.y(value), plain(value));
        area.draw(&PathElement::new([(LEFT, at), (right, at)], GRID.stroke_width(1))).map_err(failed)?;
        write(area, &label, (LEFT - 8 - width(&label, SMALL), at - 8), SMALL)?;
    }
    let places: Vec<i32> = s.ticks.iter().map(|t| s.x(*t)).collect();
    let labels: Vec<String> = s.ticks.iter().map(|t| plain(*t)).collect();
    let widths: Vec<i32> = labels.iter().map(|l| width(l, SMALL)).collect();
    for (((at, label), wide), kept) in places.iter().zip(&labels).zip(&widths).zip(thinned(&places, &widths)) {
        area.draw(&PathElement::new([(*at, base), (*at, base + if kept { 6 } else { 3 })], INK.stroke_width(1)))
            .map_err(failed)?;
        if kept {
            write(area, label, (at - wide / 2, base + 9), SMALL)?;
        }
    }
    let middle = (LEFT + right) / 2 - width(&c.x, 15) / 2;
    write(area, &c.x, (middle.max(LEFT), base + 30), 15)?;
    write_up(area, "accuracy (%)", (10, s.y(s.top / 2.0) + width("accuracy (%)", 15) / 2), 15)
}

fn one(area: &Area<'_>, mark: Mark, s: &Scale, series: &Series, i: usize, of: usize) -> Result<()> {
    let colour = SERIES[i];
    // Stems of several series stand beside each other, in the middle of their place.
    let beside = if mark == Mark::Stems { (2 * i as i32 + 1 - of as i32) * s.step(of) / 2 } else { 0 };
    let told: Vec<(i32, f64, f64)> = series
        .points
        .iter()
        .filter_map(|p| Some((s.x(p.x) + beside, p.of.mean()?, p.of.deviation().unwrap_or(0.0))))
        .collect();
    let points: Vec<(i32, i32)> = told.iter().map(|(x, mean, _)| (*x, s.y(*mean))).collect();
    if mark == Mark::Bands && told.iter().any(|t| t.2 > 0.0) {
        let upper = told.iter().map(|(x, m, d)| (*x, s.y(m + d)));
        let lower = told.iter().rev().map(|(x, m, d)| (*x, s.y(m - d)));
        let around: Vec<(i32, i32)> = upper.chain(lower).collect();
        area.draw(&Polygon::new(around, colour.mix(0.18).filled())).map_err(failed)?;
    }
    match mark {
        Mark::Stems => {
            for (x, y) in &points {
                let stem = [(*x, s.y(0.0)), (*x, *y)];
                area.draw(&PathElement::new(stem, colour.mix(0.35).stroke_width(2))).map_err(failed)?;
            }
        }
        _ => area.draw(&PathElement::new(points.clone(), colour.stroke_width(2))).map_err(failed)?,
    }
    if mark != Mark::Bands {
        for (x, mean, deviation) in told.iter().filter(|t| t.2 > 0.0) {
            let ends = [(*x, s.y(mean - deviation)), (*x, s.y(mean + deviation))];
            area.draw(&PathElement::new(ends, colour.stroke_width(1))).map_err(failed)?;
        }
    }
    let every = if mark == Mark::Bands { points.len().div_ceil(MARKERS) } else { 1 };
    points.into_iter().step_by(every.max(1)).try_for_each(|at| marker(area, i, at, colour))
}

fn legend_lines(series: &Series) -> Vec<String> {
    wrap(&series.name, LEGEND - 48, SMALL)
}

fn legend_height(panel: &[Series]) -> i32 {
    panel.iter().map(|s| legend_lines(s).len() as i32 * leading(SMALL) + 8).sum()
}

fn legend(area: &Area<'_>, panel: &[Series], top: i32) -> Result<()> {
    let (x, mut y) = (WIDTH - LEGEND + 20, top);
    for (i, series) in panel.iter().enumerate() {
        marker(area, i, (x, y + 8), SERIES[i])?;
        y += write_lines(area, &legend_lines(series), (x + 14, y), SMALL)? + 8;
    }
    Ok(())
}

/// A number without needless digits, at most three that count.
fn plain(v: f64) -> String {
    let whole = v.abs().max(1e-9).log10().floor() as i32 + 1;
    let decimals = (3 - whole).clamp(0, 6) as usize;
    let text = format!("{v:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_have_no_needless_digits() {
        let texts = [0.0, 5.0, 8.2857, 0.05, 164.4, 20_000.0, -1.5].map(plain);
        assert_eq!(texts, ["0", "5", "8.29", "0.05", "164", "20000", "-1.5"]);
    }

    #[test]
    fn a_logarithmic_axis_has_ticks_over_all_of_it() {
        assert_eq!(decades(2.6, 201.0), [5.0, 10.0, 20.0, 50.0, 100.0, 200.0]);
        assert_eq!(decades(0.5, 2.0), [0.5, 1.0, 2.0]);
    }
}
