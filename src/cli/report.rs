//! `report` and `compare`, and how every command shows finished runs.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::{put, say, table};
use crate::config::Config;
use crate::data::DataConfig;
use crate::data::world::{World, contact_sheet};
use crate::error::{Error, Result};
use crate::fsx;
use crate::key::{Key, Purpose};
use crate::report::compare::{self, Side};
use crate::report::page::html;
use crate::report::pivot::Pivot;
use crate::report::{Contrasts, Report as Runs, Room, View, figures as drawing};

/// What `report --help` says at its end.
pub const REPORT_HELP: &str = "\
Runs are one row where their configs are equal but for the seed; a row says every key that differs from other rows.
A terminal gets a table that fits, a pipe gets Markdown. JSON and CSV hold shares in [0, 1], tables percent.

JSON (one schema, for one run as for many):
  { \"schema\": 1,
    \"rows\": [ { \"run\", \"directories\", \"stage\", \"label\", \"oracle\", \"extras\", \"algorithm\",
                \"differs\": { key: value or null }, \"seeds\", \"missing_seeds\", \"image_steps\",
                \"last_rounds\": [least, most] or null,
                \"figures\": { name: { \"mean\", \"deviation\", \"values\": [a seed each] } } } ],
    \"contrasts\": [ { \"name\", \"of\", \"over\", \"below\", \"seeds\", \"differences\", \"mean\", \"interval\" } ],
    \"notes\": [...], \"unfinished\": [ { \"directory\", \"state\" } ] }
With --per-class: rows of { \"run\", \"stage\", \"label\", \"seeds\", \"classes\": [ { \"class\", \"images\", \"groups\",
\"mean\", \"deviation\", \"values\" } ] }; with --per-client: rows of { \"run\", \"directory\", \"seed\", \"stage\", \"label\",
\"clients\": [ { \"client\", \"images\", \"classes\", \"global\", \"own\" } ] }.

A config (configs/tables has some) gives its [table]: rows, columns, missing runs, differences between rows, published
numbers; JSON: { \"schema\", \"title\", \"rows\", \"columns\", \"cells\": [ { \"row\", \"column\", \"number\", \"seeds\",
\"values\", \"mean\", \"deviation\", \"planned\", \"missing\", \"directories\", \"oracle\", \"extras\", \"published\" } ],
\"contrasts\", \"notes\" }.

--figures DIR --curve KEY draws accuracy against a key, where runs differ in it (configs/curves has such experiments), or
against what was spent (bytes, upload, work, seconds, epsilon; configs/way). Keys that move along with it stand behind
commas, as in --curve partition.clients,federated.cohort; else each of their values has lines of its own. A link of federated.way is named by its kind,
as in federated.way.attack.attackers.

Examples:
  fedllava report runs/demo
  fedllava report runs/demo --format latex
  fedllava report runs/demo --per-class
  fedllava report runs/demo --per-client --format csv
  fedllava report runs/demo --figures figures
  fedllava report configs/demo-controls.toml --format latex
  fedllava report runs/demo --format html > demo.html";

/// What `compare --help` says at its end.
pub const COMPARE_HELP: &str = "\
A side is a run, a folder of seeds, or FOLDER/ARM for an arm's runs below a folder; :STAGE behind it chooses a stage, else
it is the last one with a model. The first side is set over each of the others; differences are paired by seed.

Examples:
  fedllava compare runs/demo/fedllava runs/demo/scratch
  fedllava compare runs/demo/fedllava runs/demo/fedllava:pretrain
  fedllava compare runs/demo/fedllava runs/demo/scratch --figure few --format json";

/// How results are printed.
#[derive(Args, Clone, Default)]
pub struct Output {
    /// How to print: a table as wide as the terminal, or text for other programs [default: table on a terminal, else
    /// markdown].
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Print JSON: the same as --format json.
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Every column, however wide.
    #[arg(long)]
    wide: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Markdown,
    Latex,
    Csv,
    Json,
    /// One page with everything, for a browser (`fedllava report` alone).
    Html,
}

/// Characters in a line where a table is asked for and no terminal says.
const WIDTH: usize = 100;

impl Output {
    /// Whether JSON is asked for.
    pub fn as_json(&self) -> bool {
        self.json || self.format == Some(Format::Json)
    }

    fn format(&self) -> Format {
        let usual = if std::io::stdout().is_terminal() { Format::Table } else { Format::Markdown };
        if self.json { Format::Json } else { self.format.unwrap_or(usual) }
    }

    /// The room for a table: the terminal's width, or what COLUMNS says.
    fn room(&self) -> Room {
        let columns = || std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok()).unwrap_or(WIDTH);
        let terminal = terminal_size::terminal_size_of(std::io::stdout()).map(|(w, _)| usize::from(w.0));
        let width = (self.format() == Format::Table).then(|| terminal.filter(|w| *w > 0).unwrap_or_else(columns));
        Room { width: width.map(|w| w.max(20)), wide: self.wide }
    }

    /// Prints a view.
    pub fn print(&self, view: impl FnOnce(Room) -> Result<View>) -> Result<()> {
        let room = self.room();
        if self.format() == Format::Html {
            return Err(
                Error::input("--format html is a page of finished runs").hint("fedllava report RUNS --format html")
            );
        }
        let view = view(room)?;
        put(&match self.format() {
            Format::Table => view.terminal(room),
            Format::Markdown => view.markdown(),
            Format::Latex => view.latex(),
            Format::Csv => view.csv()?,
            Format::Json | Format::Html => view.json.to_string(),
        })
    }
}

/// Prints finished runs.
pub fn show(paths: &[PathBuf], output: &Output) -> Result<()> {
    let runs = read(paths)?;
    let contrasts = Contrasts::of(&runs)?;
    output.print(|room| Ok(runs.summary(&contrasts, room)))
}

/// The runs below some paths; what a table lacks is said.
pub fn read(paths: &[PathBuf]) -> Result<Runs> {
    let runs = Runs::read(paths)?;
    runs.found.talk().iter().for_each(|line| say(line));
    Ok(runs)
}

/// `report`.
#[derive(Args)]
pub struct Report {
    /// Run directories, directories of runs, or one config with a sweep or arms.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// With a config: change a key, as in --set sweep.records=DIR; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", add = super::completions::set())]
    set: Vec<String>,
    #[command(flatten)]
    output: Output,
    /// Accuracy of each class, with its training images and its group.
    #[arg(long, conflicts_with = "per_client")]
    per_class: bool,
    /// Each client's images, classes and accuracy.
    #[arg(long)]
    per_client: bool,
    /// Draw figures (SVG) into this folder.
    #[arg(long, value_name = "DIR")]
    figures: Option<PathBuf>,
    /// With --figures: draw accuracy against this key of the configs, such as partition.alpha (other keys that move along
    /// with it stand behind commas); against epsilon; or, of each round, against bytes, upload (what clients send), work
    /// or seconds.
    #[arg(long, value_name = "KEY[,KEY…]", requires = "figures")]
    curve: Option<String>,
    /// With --curve: steps of equal ratio are equally long.
    #[arg(long, requires = "curve")]
    log: bool,
}

/// Prints the tables, and draws the figures.
pub fn report(r: &Report) -> Result<()> {
    let (paths, table) = asked(r)?;
    if r.output.format() == Format::Html {
        return page(r, &paths, table.as_ref());
    }
    let by_run = r.per_class || r.per_client || r.figures.is_some();
    if let Some(table) = table.filter(|_| !by_run) {
        return r.output.print(|room| Ok(table.view(room)));
    }
    let runs = read(&paths)?;
    match (&r.figures, &r.curve) {
        (Some(folder), Some(key)) => {
            let axis = key.split(',').next().unwrap_or_default().trim();
            let path = folder.join(format!("{}.svg", axis.replace('.', "-")));
            fsx::write_atomic(&path, drawing::against(&runs, key, r.log)?.as_bytes())?;
            say(&path.display().to_string());
        }
        (Some(folder), None) => draw(&runs, folder)?,
        _ => {}
    }
    let contrasts = Contrasts::of(&runs)?;
    r.output.print(|room| match (r.per_class, r.per_client) {
        (true, _) => runs.per_class(room),
        (_, true) => runs.per_client(room),
        _ => Ok(runs.summary(&contrasts, room)),
    })
}

/// Prints the page.
fn page(r: &Report, paths: &[PathBuf], table: Option<&Pivot>) -> Result<()> {
    if r.per_class || r.per_client || r.figures.is_some() {
        return Err(Error::input("--format html has the figures, every class and every client in it")
            .hint("leave --per-class, --per-client and --figures away"));
    }
    let runs = read(paths)?;
    let room = Room { width: None, wide: r.output.wide };
    let names: Vec<String> = r.runs.iter().map(|p| p.display().to_string()).collect();
    let (title, view) = match table {
        Some(t) => (t.asked.title.clone(), t.view(room)),
        None => (String::new(), runs.summary(&Contrasts::of(&runs)?, room)),
    };
    let title = if title.is_empty() { names.join(", ") } else { title };
    put(&html(&title, &view, &runs, false)?)
}

/// The directories of the runs that are asked for; the table of a config that has one.
fn asked(r: &Report) -> Result<(Vec<PathBuf>, Option<Pivot>)> {
    let is_config = |p: &PathBuf| p.extension().is_some_and(|e| e == "toml");
    let [file] = r.runs.iter().filter(|p| is_config(p)).collect::<Vec<_>>()[..] else {
        return match (r.set.is_empty(), r.runs.iter().any(is_config)) {
            (true, false) => Ok((r.runs.clone(), None)),
            (false, false) => Err(Error::input("--set changes a config, and only directories are named")),
            _ => Err(Error::input("report takes one config")),
        };
    };
    if r.runs.len() > 1 {
        return Err(Error::input(format!("{}: a config stands alone", file.display()))
            .hint("its sweep or its arms say which runs there are"));
    }
    let config = Config::read(file, &r.set)?;
    if !config.sweeps() && config.arms.is_empty() {
        return Err(table::nothing(file));
    }
    let sweep = table::sweep_of(&config)?;
    let pivot = table::of(&config, &sweep)?;
    Ok((sweep.done()?, pivot))
}

/// Draws the figures of finished runs.
pub fn figures(paths: &[PathBuf], folder: &Path) -> Result<()> {
    draw(&Runs::read(paths)?, folder)
}

/// Pictures of a contact sheet and how many stand in a row.
const SHEET: (usize, usize) = (40, 8);

/// Draws figures, and of the procedural world a contact sheet too.
fn draw(runs: &Runs, folder: &Path) -> Result<()> {
    for (name, svg) in drawing::all(runs)? {
        let path = folder.join(format!("{name}.svg"));
        fsx::write_atomic(&path, svg.as_bytes())?;
        say(&path.display().to_string());
    }
    let config = Config::read(&runs.run(0).dir.join("config.toml"), &[])?;
    if let DataConfig::World(world) = config.data {
        let key = Key::from_seed(world.pool_seed).fold(Purpose::World, 0);
        let sheet = contact_sheet(&World::new(world, key)?.pool(SHEET.0), SHEET.1)?;
        let path = folder.join("contact-sheet.svg");
        fsx::write_atomic(&path, sheet.svg.as_bytes())?;
        say(&path.display().to_string());
    }
    Ok(())
}

/// `compare`.
#[derive(Args)]
pub struct Compare {
    /// Two or more runs, arms or folders of seeds.
    #[arg(required = true, num_args = 2.., value_name = "RUN")]
    sides: Vec<String>,
    /// Which figure of eval.json decides [default: last10 where both sides have ten rounds, else overall].
    #[arg(long, visible_alias = "metric", value_name = "NAME")]
    figure: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// Prints differences, and a sentence each.
pub fn compare(c: &Compare) -> Result<()> {
    let mut sides = Vec::new();
    for argument in &c.sides {
        let (side, talk) = Side::named(argument)?;
        talk.iter().for_each(|line| say(line));
        sides.push(side);
    }
    c.output.print(|room| compare::compare(&sides, c.figure.as_deref(), room))
}
