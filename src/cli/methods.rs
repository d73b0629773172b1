//! `methods`: what there is, what it needs, what it costs.

use std::path::PathBuf;

use clap::Args;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde_json::{Value, json};

use super::put;
use crate::config::Config;
use crate::error::Result;
use crate::fl::{AlgorithmConfig, Needs, Sizes};
use crate::model::Head;

/// `methods`.
#[derive(Args)]
pub struct Methods {
    /// An experiment whose network, classes and local work the costs are for; without one the reference protocol's:
    /// ResNet-8 on CIFAR-10-LT.
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The reference protocol's images of a client (CIFAR-10-LT, imbalance 100, 20 clients), and its classes.
const REFERENCE: (u64, usize, [usize; 3]) = (620, 10, [3, 32, 32]);

/// Prints every method.
pub fn methods(m: &Methods) -> Result<()> {
    let config = m.config.as_ref().map_or_else(|| Ok(Config::default()), |path| Config::read(path, &[]))?;
    let (samples, classes, shape) = match &m.config {
        None => REFERENCE,
        Some(_) => sizes_of(&config)?,
    };
    let sizes = sizes(&config, samples, classes, shape)?;
    let rows: Vec<Value> = AlgorithmConfig::all().iter().map(|(kind, a)| row(kind, a, &sizes)).collect();
    if m.json {
        return put(&json!({ "sizes": sizes_json(&sizes), "methods": rows }).to_string());
    }
    put(&table(&rows))?;
    put(&format!(
        "\nNumbers down and up: of 4 bytes, for a client that takes part in a round; FedAvg's model has {}. Extra: \
         multiply-adds of network passes beside local training, of {} images in {} passes.",
        sizes.model, sizes.samples, sizes.epochs
    ))
}

/// Images of a client, classes and shape as an experiment's data have them.
fn sizes_of(config: &Config) -> Result<(u64, usize, [usize; 3])> {
    let cx = crate::exec::Context::cpu(1);
    let experiment = crate::pipeline::Experiment::open(config.clone(), &cx)?;
    let held: usize = experiment.split.clients.iter().map(Vec::len).sum();
    let train = &experiment.benchmark.train;
    let mean = held / experiment.split.clients.len().max(1);
    Ok((mean as u64, train.classes.len(), train.images.shape()))
}

fn sizes(config: &Config, samples: u64, classes: usize, shape: [usize; 3]) -> Result<Sizes> {
    let net = config.model.build(shape, Head::Classes(classes))?;
    let head = net.classifier();
    let (head, features) =
        head.map_or((0, 0), |c| (c.ranges().iter().map(|r| r.len() as u64).sum(), c.features as u64));
    let classes = classes as u64;
    Ok(Sizes {
        model: net.layout.len() as u64,
        head,
        classes,
        features,
        samples,
        held: classes,
        epochs: config.federated.local_epochs as u64,
        forward: net.multiply_adds(),
        texts: classes * features,
    })
}

fn sizes_json(s: &Sizes) -> Value {
    json!({ "model": s.model, "classifier": s.head, "classes": s.classes, "features": s.features,
        "samples": s.samples, "epochs": s.epochs, "forward_multiply_adds": s.forward })
}

/// What a method asks of a run, in words.
pub fn needs(needs: Needs) -> Vec<&'static str> {
    let all = [
        (needs.kept, "kept state"),
        (needs.server_set, "server set"),
        (needs.unlabelled, "unlabelled images"),
        (needs.teacher, "teacher on clients"),
        (needs.texts, "class texts"),
        (needs.each, "single replies"),
        (needs.plain_sgd, "plain SGD"),
    ];
    all.into_iter().filter_map(|(yes, word)| yes.then_some(word)).collect()
}

fn row(kind: &str, config: &AlgorithmConfig, sizes: &Sizes) -> Value {
    let algorithm = config.algorithm();
    let (about, cost) = (algorithm.about(), algorithm.cost(sizes));
    let local = 3 * sizes.samples * sizes.epochs * sizes.forward;
    json!({ "kind": kind, "paper": about.paper, "needs": needs(algorithm.needs()), "leaves": about.leaves,
        "down": cost.down, "up": cost.up, "extra_multiply_adds": cost.extra,
        "extra_share": cost.extra as f64 / local.max(1) as f64, "defaults": config })
}

fn table(rows: &[Value]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    // Wrapped to a terminal's width; whole lines, which are Markdown, elsewhere.
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["kind", "paper", "needs", "leaves the client beside the model", "down", "up", "extra"]);
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_string();
        let list: Vec<&str> = row["needs"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let share = row["extra_share"].as_f64().unwrap_or(0.0);
        let extra = if share > 0.0 { format!("{:.1} %", 100.0 * share) } else { "–".into() };
        let right = |v: String| Cell::new(v).set_alignment(CellAlignment::Right);
        let dash = |v: String| if v.is_empty() { "–".to_string() } else { v };
        table.add_row(vec![
            Cell::new(text("kind")),
            Cell::new(text("paper")),
            Cell::new(dash(list.join(", "))),
            Cell::new(dash(text("leaves"))),
            right(row["down"].to_string()),
            right(row["up"].to_string()),
            right(extra),
        ]);
    }
    table.to_string()
}
