//! Arguments → stages → what the person sees. stdout is data, stderr is talk.

mod caption;
mod captions;
mod commands;
mod demo;
mod machine;
mod methods;
mod mllm;
mod models;
mod progress;
mod report;
mod split;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::foreign;
use crate::error::{Class, Error, Result};

/// Multimodal-LLM-assisted federated learning on long-tailed, non-IID data.
#[derive(Parser)]
#[command(name = "fedllava", version, propagate_version = true, after_help = AFTER)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Show warnings and errors only.
    #[arg(short, long, global = true)]
    quiet: bool,
}

const AFTER: &str = "\
Exit codes: 0 done · 2 command line or config · 3 data · 4 machine · 70 a mistake in this program · \
75 stopped, the same command goes on.
Examples:
  fedllava demo
  fedllava run configs/cifar10-lt/first.toml --set run.seed=1
  fedllava report runs/demo";

#[derive(Subcommand)]
enum Command {
    /// All stages of a config: pretrain, finetune, align, evaluate.
    #[command(after_help = "Example: fedllava run configs/demo.toml --set federated.rounds=20")]
    Run(Configured),
    /// The three stages on a procedural world, offline (configs/demo.toml).
    #[command(after_help = "Example: fedllava demo --seeds 3")]
    Demo(demo::Demo),
    /// Stage 1: pretrain the compact model on the open pool.
    #[command(after_help = "Example: fedllava pretrain configs/cifar10-lt/first.toml")]
    Pretrain(Configured),
    /// Stage 2: federated rounds.
    #[command(after_help = "Example: fedllava finetune configs/cifar10-lt/fedavg-if100.toml --set federated.rounds=5")]
    Finetune(Configured),
    /// Stage 3: align the global model on the server's balanced set.
    #[command(after_help = "Example: fedllava align configs/cifar10-lt/first.toml")]
    Align(Configured),
    /// Judge a model file on the test set of a config.
    #[command(
        after_help = "Example: fedllava evaluate configs/demo.toml --model runs/demo/fedllava/align/model.safetensors --json"
    )]
    Evaluate(commands::Evaluate),
    /// Compute and cache what the frozen CLIP sees in the pool and in the server set.
    #[command(after_help = "Example: fedllava embed configs/demo.toml")]
    Embed(Configured),
    /// Draw who holds what; export and import splits.
    #[command(after_help = "Examples:
  fedllava split configs/cifar10-lt/fedavg-if100.toml
  fedllava split configs/cifar10-lt/fedavg-if100.toml --json
  fedllava split export configs/cifar10-lt/fedavg-if100.toml split.json
  fedllava split import configs/cifar10-lt/fedavg-if100.toml split.json")]
    Split(split::Split),
    /// List the federated methods: what each needs, what leaves the client, what it costs.
    #[command(after_help = "Examples:
  fedllava methods
  fedllava methods configs/cifar10-lt/quick.toml --json")]
    Methods(methods::Methods),
    /// Finished runs as tables and figures.
    #[command(after_help = report::REPORT_HELP)]
    Report(report::Report),
    /// One run, arm or folder of seeds over others, paired by seed, with a 95 % interval.
    #[command(after_help = report::COMPARE_HELP)]
    Compare(report::Compare),
    /// Go on with a stopped run.
    #[command(after_help = "Example: fedllava resume runs/demo")]
    Resume(commands::Resume),
    /// Describe every image of an open pool with a multimodal LLM; resumable.
    #[command(after_help = "Example: fedllava caption CONFIG --out captions --set caption.captioner.path=FOLDER")]
    Caption(caption::Caption),
    /// A multimodal LLM at work.
    Mllm(mllm::Mllm),
    /// Train the demo's CLIP and LLaVA on the procedural world.
    #[command(after_help = "Example: fedllava train-demo-models --out data/demo-clip")]
    TrainDemoModels(models::TrainDemoModels),
    /// Print a shell's completions.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// A config with changes.
#[derive(Args, Clone)]
struct Configured {
    /// The experiment's TOML file.
    config: PathBuf,
    #[command(flatten)]
    changes: Changes,
    #[command(flatten)]
    output: report::Output,
}

/// Changes to a config.
#[derive(Args, Clone, Default)]
struct Changes {
    /// Change a key, as in --set federated.rounds=20; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where candle computes: cpu, auto, cuda, cuda:1.
    #[arg(long)]
    device: Option<String>,
    /// Worker threads; 0 takes every core.
    #[arg(long)]
    threads: Option<usize>,
}

/// Runs the command line and gives the process's exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            say(&match e.class() {
                Class::Stopped => e.to_string(),
                Class::Defect => format!("error: {e}\nThis is a mistake in fedllava. Please report it."),
                _ => format!("error: {e}"),
            });
            ExitCode::from(e.class().exit_code())
        }
    }
}

fn dispatch(cli: Cli) -> Result<()> {
    let quiet = cli.quiet;
    match cli.command {
        Command::Run(e) => commands::stages(&e, crate::pipeline::Stages::All, quiet),
        Command::Pretrain(e) => commands::stages(&e, crate::pipeline::Stages::Pretrain, quiet),
        Command::Finetune(e) => commands::stages(&e, crate::pipeline::Stages::Finetune, quiet),
        Command::Align(e) => commands::stages(&e, crate::pipeline::Stages::Align, quiet),
        Command::Demo(d) => demo::demo(&d, quiet),
        Command::Evaluate(e) => commands::evaluate(&e, quiet),
        Command::Embed(e) => commands::embed(&e, quiet),
        Command::Split(s) => split::split(&s, quiet),
        Command::Methods(m) => methods::methods(&m),
        Command::Report(r) => report::report(&r),
        Command::Compare(c) => report::compare(&c),
        Command::Resume(r) => commands::resume(&r, quiet),
        Command::Caption(c) => caption::caption(&c, quiet),
        Command::Mllm(m) => mllm::mllm(&m, quiet),
        Command::TrainDemoModels(t) => models::train(&t, demo::CONFIG, quiet),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "fedllava", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// clap's message, with our name for what the person called otherwise.
fn usage(e: &clap::Error) -> ExitCode {
    let _ = e.print();
    if let (ErrorKind::UnknownArgument, Some(name)) = (e.kind(), e.get(ContextKind::InvalidArg)) {
        let asked: String = std::env::args().find(|a| a.starts_with(&name.to_string())).unwrap_or(name.to_string());
        if let Some(ours) = foreign::translate(&asked).or_else(|| foreign::translate(&name.to_string())) {
            say(&format!("hint: {ours}; set it in the config or with --set"));
        }
    }
    ExitCode::from(if e.use_stderr() { Class::Input.exit_code() } else { 0 })
}

/// A line of data.
fn put(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::environment(format!("cannot print: {e}"))),
        _ => Ok(()),
    }
}

/// A line of talk. A closed stderr must not end a run.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
