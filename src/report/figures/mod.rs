//! Figures as SVG. [`data`] and [`curve`] make the numbers, the rest draws them.

pub mod chart;
pub mod curve;
pub mod data;
pub mod page;
pub mod squares;

use super::group::Report;
use crate::error::{Error, Result};

/// The figures that these runs allow, each with its name: accuracy against rounds, accuracy of each class against its
/// frequency, confusion, who holds what. Every run that records such numbers is in them.
pub fn all(report: &Report) -> Result<Vec<(&'static str, String)>> {
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
    match figures.is_empty() {
        true => Err(Error::data("these runs record nothing that could be drawn")),
        false => Ok(figures),
    }
}

/// Final accuracy against a key of the configs.
pub fn against(report: &Report, key: &str, log: bool) -> Result<String> {
    chart::chart(&curve::curve(report, key, log)?)
}
