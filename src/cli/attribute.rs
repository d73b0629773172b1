//! `attribute`: which part of the method a gain is from.

use std::path::PathBuf;

use clap::Args;

use super::report::{Output, read};
use crate::error::Result;
use crate::report::attribute::attribute as shares;

/// What `attribute --help` says at its end.
pub const HELP: &str = "\
A part's share is what is lost without it: the run with all parts minus the arm that lacks this part and differs in nothing
else, paired by seed. An arm that is not there is named, with the command that makes it.

Examples:
  fedllava attribute runs/demo-controls
  fedllava attribute runs/demo-controls --of fedllava --figure few --format json";

/// `attribute`.
#[derive(Args)]
pub struct Attribute {
    /// Run directories, or directories of runs.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// The run with all parts, where there are several.
    #[arg(long, value_name = "NAME")]
    of: Option<String>,
    /// Which figure of eval.json is shared out.
    #[arg(long, value_name = "NAME", default_value = "overall")]
    figure: String,
    #[command(flatten)]
    output: Output,
}

/// Prints the shares.
pub fn attribute(a: &Attribute) -> Result<()> {
    let runs = read(&a.runs)?;
    a.output.print(|room| shares(&runs, a.of.as_deref(), &a.figure, room))
}
