//! Figures as SVG. [`data`], [`cost`] and [`curve`] make the numbers, the rest draws them.

pub mod chart;
pub mod cost;
pub mod curve;
pub mod data;
pub mod page;
pub mod squares;

use super::group::Report;
use crate::error::{Error, Result};

/// The figures that these runs allow, each with its name: accuracy against rounds, accuracy of each class against its
/// frequency, confusion, who holds what. Every run that records such numbers is in them.
pub fn all(report: &Report) -> Result<Vec<(&'static str, String)>> {
    let figures = available(report)?;
    match figures.is_empty() {
        true => Err(Error::data("these runs record nothing that could be drawn")),
        false => Ok(figures),
    }
}

/// The same; none where nothing is recorded.
pub fn available(report: &Report) -> Result<Vec<(&'static str, String)>> {
    let mut figures = Vec::new();
    if let Some(rounds) = data::rounds(report)? {
        figures.push(("rounds", chart::chart(&rounds)?));
    }
    if let Some(frequency) = data::frequency(report) {
        figures.push(("frequency", chart::chart(&frequency)?));
    }
    let squares = data::squares(report);
    if !squares.is_empty() {
        figures.push(("confusion", squares::confusions(&data::classes(report), &squares)?));
    }
    let holdings = data::holdings(report);
    if !holdings.is_empty() {
        figures.push(("holders", squares::holders(&holdings)?));
    }
    Ok(figures)
}

/// What a page shows beside [`all`]: accuracy against bytes, computing and seconds, and of each client.
pub fn burdens(report: &Report) -> Result<Vec<(&'static str, String)>> {
    let mut charts = cost::costs(report)?;
    charts.extend(cost::fairness(report)?.map(|c| ("clients", c)));
    charts.iter().map(|(name, c)| Ok((*name, chart::chart(c)?))).collect()
}

/// Final accuracy against a key of the configs or the privacy spent (`epsilon`); or, of each round, against `bytes`,
/// `upload` (what clients send alone), `work` or `seconds`.
pub fn against(report: &Report, key: &str, log: bool) -> Result<String> {
    match cost::cost(report, key)? {
        Some(spent) => chart::chart(&data::Chart { log, ..spent }),
        None => chart::chart(&curve::curve(report, key, log)?),
    }
}
