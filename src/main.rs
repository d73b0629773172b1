//! The `fedllava` binary: a thin door to the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    fedllava::cli::main(std::env::args_os())
}
