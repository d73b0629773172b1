//! Arguments → stages → what the person sees. stdout is data, stderr is talk.

mod archive;
mod arms;
mod attribute;
mod caption;
mod captions;
mod commands;
mod completions;
mod config;
mod demo;
mod doctor;
mod explain;
mod machine;
mod man;
mod methods;
mod mllm;
mod models;
mod progress;
mod ranks;
mod report;
mod split;
mod sweep;
mod table;
mod voice;
mod watch;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::CompleteEnv;

use crate::config::foreign;
use crate::error::{Class, Error, Result};
use voice::say;

/// Multimodal-LLM-assisted federated learning on long-tailed, non-IID data.
#[derive(Parser)]
#[command(name = "fedllava", version, propagate_version = true, after_help = AFTER, styles = voice::STYLES)]
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
        after_help = "Example: fedllava evaluate configs/demo.toml --model runs/demo/fedllava/seed-7/align/model.safetensors --json"
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
    /// Many runs of one config: methods × axes × seeds.
    #[command(after_help = sweep::HELP)]
    Sweep(sweep::Arguments),
    /// Finished runs as tables and figures.
    #[command(after_help = report::REPORT_HELP)]
    Report(report::Report),
    /// One run, arm or folder of seeds over others, paired by seed, with a 95 % interval.
    #[command(after_help = report::COMPARE_HELP)]
    Compare(report::Compare),
    /// How much of a gain is the server's labels, the pool, the teacher, the federation.
    #[command(after_help = attribute::HELP)]
    Attribute(attribute::Attribute),
    /// The page of `report --format html`, live on this machine while runs train.
    #[command(after_help = "Example: fedllava watch runs/demo --port 0")]
    Watch(watch::Watch),
    /// A finished run in one file: config, split, numbers, digests, versions; neither data nor models.
    #[command(after_help = "Example: fedllava archive runs/demo/fedllava/seed-7 demo.tar.zst")]
    Archive(archive::Pack),
    /// Run an archived run again, and compare bit for bit.
    #[command(after_help = "Examples:
  fedllava reproduce demo.tar.zst
  fedllava reproduce demo.tar.zst --check")]
    Reproduce(archive::Reproduce),
    /// A run's model for others: weights, a card, the lines of PyTorch that load it.
    #[command(after_help = "Example: fedllava export runs/demo/fedllava/seed-7 --out demo-model")]
    Export(archive::ExportArguments),
    /// Go on with a stopped run, or with all arms and seeds of an experiment.
    #[command(after_help = "Examples:
  fedllava resume runs/demo
  fedllava resume runs/first/seed-7 --set federated.rounds=40")]
    Resume(arms::Resume),
    /// Describe every image of an open pool with a multimodal LLM; resumable.
    #[command(after_help = "Example: fedllava caption CONFIG --out captions --set caption.captioner.path=FOLDER")]
    Caption(caption::Caption),
    /// A multimodal LLM at work.
    Mllm(mllm::Mllm),
    /// Train the demo's CLIP and LLaVA on the procedural world.
    #[command(after_help = "Example: fedllava train-demo-models --out data/demo-clip")]
    TrainDemoModels(models::TrainDemoModels),
    /// Look at this machine: kernels, memory, GPU, caches, data sets; what is missing, and how to get it.
    #[command(after_help = "Example: fedllava doctor --json")]
    Doctor(doctor::Doctor),
    /// Write a manual page for each command.
    #[command(after_help = "Example: fedllava man pages")]
    Man(man::Man),
    /// The keys of a config: list them, show a config's, check one.
    Config(config::ConfigCommand),
    /// What a key of a config means.
    #[command(after_help = "Examples:
  fedllava explain federated.cohort
  fedllava explain fedprox
  fedllava explain fraction-train")]
    Explain(explain::Explain),
    /// Print what a shell needs to complete commands, keys after --set, and config files.
    #[command(after_help = "Example: source <(fedllava completions bash)")]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// A config with changes.
#[derive(Args, Clone)]
struct Configured {
    /// The experiment's TOML file.
    #[arg(add = completions::configs())]
    config: PathBuf,
    #[command(flatten)]
    changes: Changes,
    #[command(flatten)]
    output: report::Output,
}

/// Changes to a config.
#[derive(Args, Clone, Default)]
struct Changes {
    /// Change a key, as in --set federated.rounds=20; may be repeated. `fedllava config list` names all.
    #[arg(long = "set", value_name = "KEY=VALUE", add = completions::set())]
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
    // First of all; a process without signals can still say what it says.
    let _ = machine::signals();
    match ranks::join() {
        Ok(ranks) if ranks.rank() > 0 => ranks::assist(&ranks),
        Ok(ranks) => ranks::lead(&ranks, || command(arguments)),
        Err(e) => ExitCode::from(failed(&e)),
    }
}

/// Says an error and gives its exit code.
fn failed(e: &Error) -> u8 {
    voice::error(e);
    e.class().exit_code()
}

/// Runs the command line and gives the exit code.
fn command(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let here = std::env::current_dir().ok();
    let asked = CompleteEnv::with_factory(Cli::command).var(completions::ASKED);
    match asked.try_complete(arguments.clone(), here.as_deref()) {
        Ok(false) => {}
        Ok(true) => return 0,
        Err(e) => return usage(&e),
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    dispatch(cli).map_or_else(|e| failed(&e), |()| 0)
}

fn dispatch(cli: Cli) -> Result<()> {
    let quiet = cli.quiet;
    voice::hush(quiet);
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
        Command::Sweep(a) => sweep::sweep(&a, quiet),
        Command::Report(r) => report::report(&r),
        Command::Compare(c) => report::compare(&c),
        Command::Attribute(a) => attribute::attribute(&a),
        Command::Watch(w) => watch::watch(&w),
        Command::Archive(a) => archive::archive(&a),
        Command::Reproduce(r) => archive::reproduce(&r, quiet),
        Command::Export(e) => archive::export(&e),
        Command::Resume(r) => arms::resume(&r, quiet),
        Command::Config(c) => config::config(&c),
        Command::Explain(e) => explain::explain(&e),
        Command::Caption(c) => caption::caption(&c, quiet),
        Command::Mllm(m) => mllm::mllm(&m, quiet),
        Command::TrainDemoModels(t) => models::train(&t, demo::CONFIG, quiet),
        Command::Doctor(d) => doctor::doctor(&d),
        Command::Man(m) => man::man(&m, Cli::command()),
        Command::Completions { shell } => completions::print(shell),
    }
}

/// clap's message, with our name for what the person called otherwise.
fn usage(e: &clap::Error) -> u8 {
    let _ = e.print();
    if let (ErrorKind::UnknownArgument, Some(name)) = (e.kind(), e.get(ContextKind::InvalidArg)) {
        let asked: String = std::env::args().find(|a| a.starts_with(&name.to_string())).unwrap_or(name.to_string());
        if let Some(ours) = foreign::translate(&asked).or_else(|| foreign::translate(&name.to_string())) {
            voice::hint(&format!("{ours}; set it in the config or with --set"));
        }
    }
    if e.use_stderr() { Class::Input.exit_code() } else { 0 }
}

/// A line of data.
fn put(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::environment(format!("cannot print: {e}"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::report::keys::list_of;

    /// The command lines that the help of a command and of those below it shows.
    fn examples(command: &clap::Command, found: &mut Vec<String>) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let shown = help.split("Example").skip(1).flat_map(str::lines);
        let lines = shown.filter_map(|l| l.find("fedllava ").map(|i| l[i..].trim().trim_end_matches(')').to_string()));
        found.extend(lines);
        command.get_subcommands().for_each(|c| examples(c, found));
    }

    #[test]
    fn every_example_in_the_help_is_a_command_line_and_a_config_that_can_be_read() {
        let mut found = Vec::new();
        examples(&Cli::command(), &mut found);
        assert!(found.len() > 20, "{found:?}");
        for line in found {
            let line = line.replace("CONFIG", "configs/demo.toml");
            // What stands in quotes is one word.
            let parts = line.split('"').enumerate();
            let words: Vec<&str> = parts
                .flat_map(|(i, part)| if i % 2 == 0 { part.split_whitespace().collect() } else { vec![part] })
                .collect();
            Cli::try_parse_from(&words).unwrap_or_else(|e| panic!("{line}: {e}"));
            let sets = words.windows(2).filter(|w| w[0] == "--set").map(|w| w[1].to_string()).collect::<Vec<_>>();
            for config in words.iter().filter(|w| w.ends_with(".toml")) {
                Config::read(std::path::Path::new(config), &sets).unwrap_or_else(|e| panic!("{line}: {e}"));
            }
        }
    }

    /// The string literals of a source file, its tests left out.
    fn strings(source: &str) -> Vec<String> {
        let code = source.split("#[cfg(test)]").next().unwrap();
        let lines: Vec<&str> = code.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
        let text: Vec<char> = lines.join("\n").replace("'\"'", "").chars().collect();
        let (mut found, mut open, mut i) = (Vec::new(), None, 0);
        while i < text.len() {
            match (text[i], open) {
                ('\\', Some(_)) => i += 1,
                ('"', None) => open = Some(i + 1),
                ('"', Some(start)) => {
                    found.push(text[start..i].iter().collect());
                    open = None;
                }
                _ => {}
            }
            i += 1;
        }
        found
    }

    fn sources(folder: &std::path::Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }

    #[test]
    fn every_key_and_every_command_that_a_message_names_exists() {
        let (mut files, mut keys, mut commands) = (Vec::new(), 0, 0);
        sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
        let (leaves, sections) = (crate::config::tree::leaves(), crate::config::tree::sections());
        let exists = |key: &str| {
            list_of(key).is_some() || leaves.iter().any(|l| l.path == key || l.path.starts_with(&format!("{key}.")))
        };
        let known = Cli::command();
        // Tensors of published models begin with `model.`.
        for file in files.into_iter().filter(|f| !f.to_string_lossy().contains("src/model/")) {
            for text in strings(&std::fs::read_to_string(&file).unwrap()) {
                let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "._".contains(c)));
                for word in words.map(|w| w.trim_end_matches('.')) {
                    let Some((section, rest)) = word.split_once('.') else { continue };
                    // Names of files.
                    let other = ["safetensors", "json", "jsonl", "npy", "pkl", "toml", "txt", "rs", "svg"]
                        .iter()
                        .any(|e| rest.ends_with(e));
                    if sections.iter().any(|k| k.name == section) && !rest.is_empty() && !other {
                        assert!(exists(word), "{}: `{word}` in {text:?} is no key", file.display());
                        keys += 1;
                    }
                }
                for rest in text.split("`fedllava ").skip(1) {
                    let name = rest.split([' ', '`']).next().unwrap();
                    assert!(known.find_subcommand(name).is_some(), "{}: no command {name}: {text:?}", file.display());
                    commands += 1;
                }
            }
        }
        assert!(keys > 60 && commands > 3, "{keys} keys, {commands} commands");
    }
}
