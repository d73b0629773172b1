//! `fedllava man DIR`: a manual page for each command.

use std::path::PathBuf;

use clap::{Args, Command};

use super::say;
use crate::error::{Error, Result};
use crate::fsx;

/// `man`.
#[derive(Args)]
pub struct Man {
    /// The folder that the pages go to, such as ~/.local/share/man/man1.
    dir: PathBuf,
}

/// Writes a page for the program and for each of its commands.
pub fn man(m: &Man, program: Command) -> Result<()> {
    fsx::create_dir(&m.dir)?;
    clap_mangen::generate_to(program.disable_help_subcommand(true), &m.dir)
        .map_err(|e| Error::io("write manual pages to", &m.dir, e))?;
    let page = m.dir.join("fedllava.1");
    say(&format!("one page a command in {}; read the first with: man -l {}", m.dir.display(), page.display()));
    Ok(())
}
