//! `fedllava caption`: a pool becomes annotations.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::{Changes, machine, put, say};
use crate::error::{Class, Result};
use crate::pipeline;

/// `caption`.
#[derive(Args)]
pub struct Caption {
    /// The experiment's TOML file; its sections pool, caption, and for the filters data and clip are used.
    config: PathBuf,
    /// Where captions.jsonl (every answer) and kept.jsonl (what the filters let through) go.
    #[arg(long, default_value = "captions")]
    out: PathBuf,
    #[command(flatten)]
    changes: Changes,
    /// Print the counts as JSON.
    #[arg(long)]
    json: bool,
}

/// Writes what is missing in the caption file, then filters.
pub fn caption(c: &Caption, quiet: bool) -> Result<()> {
    let (config, cx) = machine::open(&c.config, &c.changes, quiet)?;
    let done = pipeline::captioning(&config, &c.out, &cx).map_err(|e| match e.class() {
        Class::Stopped => e.hint("the same command goes on; no answer is repeated or lost"),
        _ => e,
    })?;
    let kept = c.out.join("kept.jsonl");
    if c.json {
        return put(&json!({
            "records": done.report.records, "written": done.report.written, "unanswered": done.report.unanswered,
            "undecodable": done.report.undecodable.len(), "kept": done.dropped.kept,
            "dropped": done.dropped.dropped, "examples": done.dropped.examples, "file": kept,
        })
        .to_string());
    }
    put(&format!("{} answers, {} of them new; {} kept", done.report.records, done.report.written, done.dropped.kept))?;
    for (reason, n) in &done.dropped.dropped {
        let name = serde_json::to_value(reason).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default();
        let examples = done.dropped.examples.get(reason).map(|e| e.join(", ")).unwrap_or_default();
        put(&format!("dropped {n:>7}  {name}: {examples}"))?;
    }
    say(&format!("use them in a config: {}", hint(&kept)));
    Ok(())
}

fn hint(kept: &Path) -> String {
    format!("pool.captions = {}", toml::Value::String(kept.to_string_lossy().into_owned()))
}
