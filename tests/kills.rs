//! Thirty kills at system calls, by `scripts/kill_at_syscall.sh`.

use std::path::Path;
use std::process::Command;

use crate::sweep::{CONFIG, Desk};

/// Whether strace is here and may trace.
fn traces() -> bool {
    let tried =
        Command::new("strace").args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=sync:error=EIO", "true"]).status();
    tried.is_ok_and(|status| status.success())
}

#[test]
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
fn a_run_that_is_killed_at_any_call_ends_with_the_same_bytes() {
    if !traces() {
        return eprintln!("skipped: no strace that may trace");
    }
    let config =
        CONFIG.split("[sweep]").next().unwrap().replace("width = 4", "width = 2").replace("rounds = 4", "rounds = 3");
    let desk = Desk::new(&config);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kill_at_syscall.sh");
    let output =
        Command::new(script).arg(env!("CARGO_BIN_EXE_fedllava")).arg(desk.path("s.toml")).arg("30").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("30 kills, 0 failed"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
