//! `fedllava sweep`: many runs of one config.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::report::{Output, show};
use super::{Changes, machine, put, say, table};
use crate::config::Config;
use crate::config::sweep::SelectBy;
use crate::error::{Error, Result};
use crate::exec::{Context, human};
use crate::pipeline;
use crate::sweep::queue::{self, Outcome};
use crate::sweep::{State, Sweep, records, select, slurm};

/// What `sweep --help` says at its end.
pub const HELP: &str = "\
The runs are the product of arms, methods, axes and seeds. Runs that are done are not done again; kill anything and type
the command again. Other processes and machines on the same files take other runs.

Examples:
  fedllava sweep configs/sweeps/first.toml --plan
  fedllava sweep configs/sweeps/first.toml --jobs 2
  fedllava sweep status configs/sweeps/first.toml
  fedllava sweep configs/sweeps/first.toml --slurm";

/// `sweep`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    /// The TOML file with a section [sweep].
    config: Option<PathBuf>,
    #[command(flatten)]
    changes: Changes,
    #[command(flatten)]
    output: Output,
    /// Runs at once, each with its share of the threads.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: u16,
    /// Only runs whose name contains this; may be repeated.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Only the run of this number, from 0, in the plan's order.
    #[arg(long, value_name = "NUMBER")]
    run: Option<usize>,
    /// Print the runs and what they will take, and run nothing.
    #[arg(long)]
    plan: bool,
    /// Copy the finished runs without their models to this folder, and run nothing.
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// Print the array script of a Slurm cluster, and run nothing.
    #[arg(long)]
    slurm: bool,
    /// With --slurm: the time limit of a run.
    #[arg(long, value_name = "HH:MM:SS", default_value = "04:00:00", requires = "slurm")]
    limit: String,
}

#[derive(Subcommand)]
enum Action {
    /// How far every run is; at any time, also while others work.
    Status {
        /// The TOML file with a section [sweep].
        config: PathBuf,
        #[command(flatten)]
        changes: Changes,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Plans, runs, tells.
pub fn sweep(a: &Arguments, quiet: bool) -> Result<()> {
    if let Some(Action::Status { config, changes, json }) = &a.action {
        let (config, _) = machine::open(config, changes, true)?;
        return status(&Sweep::open(&config)?, *json);
    }
    let Some(file) = &a.config else {
        return Err(Error::input("sweep: no config").hint("fedllava sweep configs/sweeps/first.toml --plan"));
    };
    let (config, cx) = machine::open(file, &a.changes, quiet)?;
    let sweep = Sweep::open(&config)?;
    if a.plan {
        return plan(&sweep, a, &cx);
    }
    if a.slurm {
        return script(&sweep, file, a, &cx);
    }
    if let Some(folder) = &a.record {
        let (written, missing) = records::write(&sweep, folder)?;
        return put(&format!("{written} records in {}; {missing} runs are not finished", folder.display()));
    }
    work(&config, &sweep, a, &cx)
}

fn work(config: &Config, sweep: &Sweep, a: &Arguments, cx: &Context) -> Result<()> {
    if cx.ranks.size() > 1 {
        return Err(Error::input("sweep: ranks share the cohort of one run, and here are many runs").hint(
            "start sweeps without mpirun, one process or several; or `mpirun … fedllava run` for one large run",
        ));
    }
    let only = wanted(sweep, a)?;
    let outcome = queue::run(sweep, usize::from(a.jobs), &only, cx)
        .map_err(|e| e.hint("the same command goes on; what is done stays done"))?;
    tell(sweep, &outcome);
    let done = sweep.done()?;
    if !done.is_empty() {
        let chosen = chosen(sweep, done)?;
        match table::of(config, sweep)? {
            Some(table) => a.output.print(|room| Ok(table.view(room)))?,
            None => show(&chosen, &a.output)?,
        }
    }
    match outcome.failed.into_iter().next() {
        Some((name, e)) => Err(e.context(name).hint("the same command tries the failed runs again")),
        None => Ok(()),
    }
}

/// Which names `--run` and `--only` ask for; none is an error.
fn wanted(sweep: &Sweep, a: &Arguments) -> Result<impl Fn(&str) -> bool> {
    if let Some(number) = a.run.filter(|&n| n >= sweep.plan.runs.len()) {
        let most = sweep.plan.runs.len().saturating_sub(1);
        return Err(Error::input(format!("--run {number}: the runs are numbered 0 to {most}")));
    }
    let (numbered, some) = (a.run.map(|n| sweep.name(&sweep.plan.runs[n])), a.only.clone());
    let only = move |name: &str| {
        numbered.as_ref().is_none_or(|n| n == name)
            && (some.is_empty() || some.iter().any(|t| name.contains(t.as_str())))
    };
    if !sweep.plan.runs.iter().any(|run| only(&sweep.name(run))) {
        return Err(Error::input("--only: no run has such a name").hint("--plan prints them all"));
    }
    Ok(only)
}

fn tell(sweep: &Sweep, outcome: &Outcome) {
    let all = sweep.plan.runs.len();
    say(&format!(
        "{} runs done now, {} before, {} failed, of {all}",
        outcome.finished,
        outcome.before,
        outcome.failed.len()
    ));
    for (name, e) in &outcome.failed {
        say(&format!("failed: {name}: {}", e.message()));
    }
}

/// Where the figures lie that a table may show: of knobs the chosen ones.
fn chosen(sweep: &Sweep, done: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    if sweep.config.select_by == SelectBy::Nothing {
        return Ok(done);
    }
    let (chosen, open) = select::choose(sweep)?;
    select::write(sweep, &chosen)?;
    for c in chosen.iter().filter(|c| c.validation.len() > 1) {
        let tried: Vec<String> = c.validation.iter().map(|(knob, a)| format!("{knob} {:.1}", 100.0 * a)).collect();
        say(&format!("{}, seed {}: {} by validation ({} %)", c.cell, c.seeds.0, c.knob, tried.join(", ")));
    }
    if !open.is_empty() {
        say(&format!("nothing is chosen yet for {}", open.join("; ")));
    }
    Ok(chosen.into_iter().map(|c| c.dir).collect())
}

fn status(sweep: &Sweep, as_json: bool) -> Result<()> {
    let mut cells: BTreeMap<&str, [usize; 5]> = BTreeMap::new();
    let (mut order, mut failures, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    for run in &sweep.plan.runs {
        let state = sweep.state(run)?;
        let (place, word) = match &state {
            State::Done(_) => (0, "done"),
            State::Running => (1, "running"),
            State::Stopped => (2, "stopped"),
            State::Failed(why) => {
                failures.push(format!("failed: {}: {why}", sweep.name(run)));
                (3, "failed")
            }
            State::Waiting => (4, "waiting"),
        };
        if !cells.contains_key(run.cell.as_str()) {
            order.push(run.cell.as_str());
        }
        cells.entry(&run.cell).or_default()[place] += 1;
        rows.push(json!({ "run": sweep.name(run), "state": word }));
    }
    if as_json {
        return put(&json!({ "runs": rows, "skipped": sweep.plan.skipped }).to_string());
    }
    let width = order.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(4);
    put(&format!(
        "{:width$}  {:>5} {:>7} {:>7} {:>6} {:>7}",
        "cell", "done", "running", "stopped", "failed", "waiting"
    ))?;
    for name in order {
        let [done, running, stopped, failed, waiting] = cells[name];
        put(&format!("{name:width$}  {done:>5} {running:>7} {stopped:>7} {failed:>6} {waiting:>7}"))?;
    }
    failures.iter().for_each(|line| say(line));
    Ok(())
}

/// The plan: every run, its state, what it will take on this machine.
fn plan(sweep: &Sweep, a: &Arguments, cx: &Context) -> Result<()> {
    let only = wanted(sweep, a)?;
    let (mut rows, mut speeds) = (Vec::new(), pipeline::Speeds::new());
    let (mut left, mut memory, mut untold) = (0.0, 0, 0);
    let all = sweep.plan.runs.iter().enumerate();
    for (i, run) in all.filter(|(_, run)| only(&sweep.name(run))) {
        let outlook = pipeline::outlook(&run.config, &mut speeds, cx)?;
        let outlook = outlook.as_ref();
        let seconds = outlook.map(|o| o.seconds.iter().map(|(_, s)| s).sum::<f64>());
        let bytes = outlook.map(|o| o.memory.total());
        let state = sweep.state(run)?;
        if !matches!(state, State::Done(_)) {
            left += seconds.unwrap_or(0.0);
            memory = memory.max(bytes.unwrap_or(0));
            untold += usize::from(outlook.is_none_or(|o| !o.untold.is_empty()));
        }
        rows.push((i, sweep.name(run), state, seconds, bytes));
    }
    if a.output.as_json() {
        let row = |(_, name, state, seconds, bytes): &(usize, String, State, Option<f64>, Option<u64>)| json!({ "run": name, "done": matches!(state, State::Done(_)), "seconds": seconds, "bytes": bytes });
        return put(
            &json!({ "runs": rows.iter().map(row).collect::<Vec<_>>(), "skipped": sweep.plan.skipped }).to_string()
        );
    }
    for (i, name, state, seconds, bytes) in &rows {
        let cost = match (seconds, bytes) {
            (Some(s), Some(b)) => format!("{:>9}  {:>9}", super::progress::span(*s), human(*b)),
            _ => "not known until the data is read".into(),
        };
        put(&format!("{i:>4}  {name}  {cost}{}", if matches!(state, State::Done(_)) { "  done" } else { "" }))?;
    }
    let skipped =
        if sweep.plan.skipped > 0 { format!(", {} left out by sweep.skip", sweep.plan.skipped) } else { String::new() };
    say(&format!(
        "{} runs{skipped}; {} of this machine's time are left, {} at a time",
        rows.len(),
        super::progress::span(left),
        human(memory * u64::from(a.jobs))
    ));
    if untold > 0 {
        say(&format!(
            "of {untold} runs a part cannot be told beforehand, such as what a method computes beyond FedAvg's work"
        ));
    }
    Ok(())
}

/// The array script, with the memory that the largest run needs and a quarter more.
fn script(sweep: &Sweep, file: &Path, a: &Arguments, cx: &Context) -> Result<()> {
    let (mut memory, mut speeds) = (0, pipeline::Speeds::new());
    for run in &sweep.plan.runs {
        memory = memory.max(pipeline::outlook(&run.config, &mut speeds, cx)?.map_or(0, |o| o.memory.total()));
    }
    let set = a.changes.set.iter().map(|s| format!(" --set {}", super::arms::quoted(s))).collect::<String>();
    let name = file.file_stem().map_or_else(|| "sweep".into(), |s| s.to_string_lossy().into_owned());
    let command = format!("fedllava sweep {}{set}", super::arms::quoted(&file.to_string_lossy()));
    let mebibytes = (memory + memory / 4).div_ceil(1 << 20).max(1024);
    let job = slurm::Job {
        command: &command,
        runs: sweep.plan.runs.len(),
        name: &name,
        cores: cx.threads,
        memory: mebibytes,
        limit: &a.limit,
    };
    put(slurm::script(&job).trim_end())
}
