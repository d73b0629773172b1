//! What the federated loop costs besides training: by population, cohort and model size; and whether memory is flat.
//!
//! `cargo bench --bench population` prints a table; each row is a process of its own. Stage 2 runs whole: cohort draw,
//! jobs, workers, a client's copies of the model, its reply, aggregation, records, checkpoints every 10 rounds; only
//! evaluation is left out. With `steps` 0 a client trains nothing, so the time is the loop's own; with 1 it also loads
//! its two images of 1×4×4 and takes one SGD step. Two threads.
//! One row alone: `-- POPULATION COHORT HIDDEN STEPS ROUNDS`, the model being an MLP with one hidden layer.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use fedllava::data::partition::IidConfig;
use fedllava::data::{Augment, Dataset, Groups, Images, Loader, Order, PartitionConfig, Split};
use fedllava::exec::{Context, Event, Events};
use fedllava::fl::round::Federation;
use fedllava::fl::trainer::CompactTrainer;
use fedllava::fl::{AlgorithmConfig, FederatedConfig, cohort};
use fedllava::key::Key;
use fedllava::model::Head;
use fedllava::model::mlp::Mlp;
use fedllava::nn::Backend;
use fedllava::run::RunDir;
use fedllava::stage::Loaded;
use fedllava::stage::finetune::{Begin, Finetune};
use fedllava::stage::metrics::Evaluation;

const SHAPE: [usize; 3] = [1, 4, 4];
const CLASSES: usize = 10;

/// Population, cohort, hidden width, local steps, rounds.
const ROWS: [[usize; 5]; 10] = [
    [1_000_000, 1_000, 64, 0, 1_000],
    [1_000_000, 1_000, 64, 1, 200],
    [100_000, 1_000, 64, 0, 200],
    [10_000, 1_000, 64, 0, 200],
    [1_000_000, 10, 64, 0, 200],
    [1_000_000, 100, 64, 0, 200],
    [1_000_000, 10_000, 64, 0, 50],
    [1_000_000, 1_000, 512, 0, 100],
    [1_000_000, 1_000, 2_900, 0, 50],
    [1_000_000, 1_000, 40_000, 0, 12],
];

#[allow(clippy::print_stdout, reason = "its result")]
fn main() {
    let args: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    if let [population, cohort, hidden, steps, rounds] = args[..] {
        return println!("{}", row([population, cohort, hidden, steps, rounds]));
    }
    println!(
        "population  cohort  parameters  steps  rounds  us/client  ms/round  MiB after 10  at end   growth    peak"
    );
    for args in ROWS {
        let program = std::env::current_exe().expect("a path");
        let out = Command::new(program).args(args.map(|a| a.to_string())).output().expect("starts");
        print!("{}", String::from_utf8_lossy(&out.stdout));
    }
}

/// Time and resident memory after every round.
#[derive(Default)]
struct Log(Mutex<Vec<(Instant, f64)>>);

impl Events for Log {
    fn on(&self, event: Event<'_>) {
        if let (Event::Advance { .. }, Ok(mut log)) = (event, self.0.lock()) {
            log.push((Instant::now(), memory("VmRSS:")));
        }
    }
}

/// A line of /proc/self/status in MiB; NaN where there is none.
fn memory(name: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(name));
    line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok()).map_or(f64::NAN, |kib| kib / 1024.0)
}

fn images(population: usize) -> Dataset {
    let n = 2 * population;
    let pixels = (0..n * 16).map(|i| (i.wrapping_mul(2_654_435_761) >> 16) as u8).collect();
    let labels = (0..n).map(|i| (i % CLASSES) as u32).collect();
    let images = Images::new(SHAPE, pixels).expect("whole images");
    Dataset::new("tiny", images, labels, vec!["class".into(); CLASSES], Order::Original).expect("fits")
}

fn row([population, size, hidden, steps, rounds]: [usize; 5]) -> String {
    let (data, key) = (images(population), Key::from_seed(1));
    let partition = PartitionConfig::Iid(IidConfig { clients: population, seed: None });
    let kept: Vec<Vec<u32>> = vec![(0..data.len() as u32).collect()];
    let clients = partition.deal(&kept, key).expect("deals");
    drop(kept);
    let split = Split::from_lists(&data.labels, CLASSES, clients, vec![], vec![]).expect("splits");
    let augment = Augment { mean: vec![0.5], std: vec![0.25], ..Augment::default() }.without();
    let loader = Loader::new(&augment, SHAPE).expect("fits");
    let loaded = Loaded { data: &data, loader: &loader };
    let net = Arc::new(Mlp { hidden: vec![hidden] }.build(SHAPE, Head::Classes(CLASSES)).expect("builds"));
    let config = FederatedConfig { rounds, cohort: size, local_epochs: steps, ..FederatedConfig::default() };
    let algorithm = AlgorithmConfig::default();
    let trainer = CompactTrainer::new(net.clone(), Backend::Cpu, &loaded, &split.clients);
    let draw = |round: usize| Ok(cohort::by_key(key, round, population, size));
    let federation = Federation {
        algorithm: algorithm.algorithm(),
        trainer: &trainer,
        config: &config,
        clients: population,
        cohort: &draw,
        align: None,
        feedback: false,
        key,
    };
    let (log, folder) = (Arc::new(Log::default()), tempfile::tempdir().expect("a folder"));
    let cx = Context { events: log.clone(), ..Context::cpu(2) };
    let dir = RunDir::open(Path::new(folder.path()), &toml::Table::new()).expect("opens");
    let groups = Groups { many: vec![0], medium: vec![], few: vec![] };
    let evaluate = |_: &_| Ok(Evaluation::of(&[0.0; CLASSES], &[0], CLASSES, &groups).into());
    let start = net.init(key);
    let parameters = start.data().len();
    Finetune { dir: &dir, federation, layout: &net.layout, evaluate: &evaluate, validate: None, summon: &|| Ok(()) }
        .run(Some(Begin { model: start, carried: None }), &cx)
        .expect("runs");
    let log = log.0.lock().expect("no panic");
    let ((begin, early), (end, late)) = (log[9], log[log.len() - 1]);
    let round = (end - begin).as_secs_f64() / (log.len() - 10) as f64;
    format!(
        "{population:10}  {size:6}  {parameters:10}  {steps:5}  {rounds:6}  {:9.2}  {:8.2}  {early:12.1}  {late:6.1}  {:5.2} %  {:6.1}",
        1e6 * round / size as f64,
        1e3 * round,
        100.0 * (late / early - 1.0),
        memory("VmHWM:")
    )
}
