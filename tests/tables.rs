//! `[table]` and the page, on a sweep whose runs take seconds: every number comes out again from the runs' own files.

use std::path::Path;

use serde_json::Value;

use crate::sweep::{CONFIG, Desk, err};

/// The sweep's own table, and what was published of it.
const TABLE: &str = r#"
[table]
title = "a first table"
rows = ["method"]
columns = ["longtail.imbalance"]
numbers = ["last10", "few", "selected"]
groups = [{ title = "near FedAvg", rows = ["fedprox"] }]
[[contrasts]]
name = "FedProx over FedAvg"
of = "fedprox"
over = "fedavg"
"#;

fn config() -> String {
    format!("{CONFIG}{TABLE}").replace("batch_size = 8", "batch_size = 8\neval_every = 1")
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn eval(desk: &Desk, run: &str) -> Value {
    json(&std::fs::read_to_string(desk.path(run).join("eval.json")).unwrap())["stages"]["finetune"].clone()
}

fn mean(v: &[f64]) -> f64 {
    v.iter().sum::<f64>() / v.len() as f64
}

fn deviation(v: &[f64]) -> f64 {
    (v.iter().map(|x| (x - mean(v)).powi(2)).sum::<f64>() / (v.len() as f64 - 1.0)).sqrt()
}

fn cell<'v>(table: &'v Value, method: &str, imbalance: &str, number: &str) -> Option<&'v Value> {
    table["cells"].as_array().unwrap().iter().find(|c| {
        c["row"][0] == method && c["column"][0].as_str().unwrap().starts_with(imbalance) && c["number"] == number
    })
}

/// Test accuracy in the round with the highest validation accuracy, read from the records alone.
fn selected(desk: &Desk, run: &str) -> f64 {
    let text = std::fs::read_to_string(desk.path(run).join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(json).collect();
    let of = |split: &str| {
        let wanted = |r: &&Value| r["split"] == split && r["stage"] == "finetune" && r["round"].as_u64() > Some(0);
        lines.iter().filter(wanted).map(|r| r["accuracy"].as_f64().unwrap()).collect::<Vec<f64>>()
    };
    let (validation, test) = (of("validation"), of("test"));
    assert_eq!((validation.len(), test.len()), (4, 4));
    let best = validation.iter().copied().fold(f64::MIN, f64::max);
    test[validation.iter().position(|a| *a == best).unwrap()]
}

#[test]
fn a_table_shows_every_cell_says_what_is_missing_and_pairs_by_seed() {
    let desk = Desk::new(&config());
    let none = json(&desk.ok(&["report", "s.toml", "--format", "json"]));
    assert_eq!(cell(&none, "fedavg", "4", "last10").unwrap()["missing"].as_array().unwrap().len(), 2, "{none}");
    desk.ok(&["sweep", "s.toml", "--only", "seed-1", "--only", "fedavg"]);
    let table = json(&desk.ok(&["report", "s.toml", "--format", "json"]));
    for (imbalance, number) in [("2", "last10"), ("4", "last10"), ("2", "few"), ("4", "selected")] {
        let runs = [1, 2].map(|seed| format!("runs/s/fedavg,imbalance={imbalance}/seed-{seed}"));
        let values: Vec<f64> = match number {
            "selected" => runs.iter().map(|r| selected(&desk, r)).collect(),
            _ => runs.iter().map(|r| eval(&desk, r)[number].as_f64().unwrap()).collect(),
        };
        let cell = cell(&table, "fedavg", imbalance, number).unwrap();
        assert_eq!(cell["values"], serde_json::json!(values), "{number}");
        assert!((cell["mean"].as_f64().unwrap() - mean(&values)).abs() < 1e-12);
        assert!((cell["deviation"].as_f64().unwrap() - deviation(&values)).abs() < 1e-12);
        assert_eq!(cell["directories"], serde_json::json!(runs));
    }
    assert!(cell(&table, "fedprox", "2", "last10").is_none(), "a rule left it out");
    let half = cell(&table, "fedprox", "4", "last10").unwrap();
    assert_eq!((half["planned"].as_u64(), half["missing"][0]["seed"].as_u64()), (Some(2), Some(2)));
    let [contrast] = &table["contrasts"].as_array().unwrap()[..] else { panic!("{}", table["contrasts"]) };
    let last = |method: &str| eval(&desk, &format!("runs/s/{method},imbalance=4/seed-1"))["last10"].as_f64().unwrap();
    let points = 100.0 * (last("fedprox") - last("fedavg"));
    assert!(
        (contrast["differences"][0].as_f64().unwrap() - points).abs() < 1e-9
            && contrast["seeds"] == serde_json::json!([1])
    );
    formats(&desk, &table);
}

/// Every other form holds the same numbers.
fn formats(desk: &Desk, table: &Value) {
    let markdown = desk.ok(&["report", "s.toml", "--format", "markdown"]);
    let latex = desk.ok(&["report", "s.toml", "--format", "latex"]);
    let csv = desk.ok(&["report", "s.toml", "--format", "csv"]);
    let terminal = desk.ok(&["report", "s.toml", "--format", "table", "--wide"]);
    for cell in table["cells"].as_array().unwrap() {
        let values: Vec<f64> = cell["values"].as_array().unwrap().iter().map(|v| 100.0 * v.as_f64().unwrap()).collect();
        let (full, missing) = (values.len() > 1, cell["missing"].as_array().unwrap().len());
        let text = match full {
            true => format!("{:.2} ± {:.2}", mean(&values), deviation(&values)),
            false => format!("{:.2}", values[0]),
        };
        let text = if missing > 0 { format!("{text} ({} of {})", values.len(), values.len() + missing) } else { text };
        assert!(markdown.contains(&text) && terminal.contains(&text), "{text}: {markdown}");
        assert!(latex.contains(&text.replace('±', "\\ensuremath{\\pm}")), "{text}: {latex}");
        assert!(csv.contains(&cell["mean"].to_string()), "{csv}");
    }
    for part in
        ["a first table", "near FedAvg:", "Missing, not run: fedprox, imbalance 4", "not planned", "last 4 rounds"]
    {
        let part = if part == "last 4 rounds" { "last judged rounds (4 rounds)" } else { part };
        assert!(markdown.contains(part), "{part}: {markdown}");
    }
}

#[test]
fn records_make_a_table_in_pieces_and_a_changed_one_is_refused() {
    let desk = Desk::new(&config());
    desk.ok(&["sweep", "s.toml", "--only", "fedprox"]);
    desk.ok(&["sweep", "s.toml", "--record", "kept"]);
    let before = desk.ok(&["report", "s.toml", "--format", "json"]);
    std::fs::remove_dir_all(desk.path("runs")).unwrap();
    let set = ["report", "s.toml", "--set", "sweep.records=kept", "--format", "json"];
    let after = desk.ok(&set);
    let values = |text: &str| cell(&json(text), "fedprox", "4", "selected").unwrap()["values"].clone();
    assert_eq!(values(&before), values(&after), "the choice by validation needs the rounds");
    assert!(
        desk.ok(&["report", "s.toml", "--set", "sweep.records=kept", "--format", "html"])
            .contains("id=\"figure-rounds\"")
    );
    let file = desk.path("kept/fedprox,imbalance=4/seed-1/eval.json");
    let text = std::fs::read_to_string(&file).unwrap().replace("\"overall\": 0.", "\"overall\": 0.9");
    std::fs::write(&file, text).unwrap();
    let output = desk.run(&set);
    assert_eq!(output.status.code(), Some(3));
    assert!(err(&output).contains("eval.json is not what record.json says"), "{}", err(&output));
}

#[test]
fn the_page_is_whole_by_itself_and_holds_every_number_and_every_run() {
    let desk = Desk::new(&config());
    desk.ok(&["sweep", "s.toml"]);
    let page = desk.ok(&["report", "s.toml", "--format", "html"]);
    for outside in ["src=\"", "href=\"http", "url(", "@import", "fetch("] {
        assert!(!page.contains(outside), "{outside}");
    }
    let table = json(&desk.ok(&["report", "s.toml", "--format", "json"]));
    for cell in table["cells"].as_array().unwrap() {
        let values: Vec<f64> = cell["values"].as_array().unwrap().iter().map(|v| 100.0 * v.as_f64().unwrap()).collect();
        let text = format!(">{:.2} ± {:.2}</a>", mean(&values), deviation(&values));
        assert!(page.contains(&text), "{text}");
    }
    // What a program reads off the page is what `--format json` prints.
    let own = page.split("id=\"numbers\">").nth(1).unwrap().split("</script>").next().unwrap();
    assert_eq!(json(&own.replace("\\u003c", "<")), table);
    for name in ["rounds", "confusion", "frequency", "holders", "bytes", "work", "seconds", "clients"] {
        assert!(page.contains(&format!("id=\"figure-{name}\"")), "{name}");
        assert!(page.contains(&format!("href=\"#figure-{name}\"")), "{name}");
    }
    for run in ["fedavg,imbalance=2/seed-1", "fedprox,imbalance=4/seed-2"] {
        assert!(page.contains(&format!("fedllava run runs/s/{run}/config.toml")), "{run}");
        let config = std::fs::read_to_string(desk.path("runs/s/fedavg,imbalance=2/seed-1/config.toml")).unwrap();
        assert!(config.lines().all(|l| page.contains(&l.replace('"', "&#34;"))), "its config");
        let manifest = json(&std::fs::read_to_string(desk.path(&format!("runs/s/{run}/manifest.json"))).unwrap());
        assert!(page.contains(manifest["split"]["digest"].as_str().unwrap()), "its manifest");
        let worst = eval(&desk, &format!("runs/s/{run}"))["worst_class"].as_f64().unwrap();
        assert!(page.contains(&format!("data-value=\"{worst}\"")), "its numbers");
    }
    anchors(&page);
    let tags = page.split("<td").skip(1).chain(page.split("<th").skip(1));
    assert!(tags.clone().count() > 100 && page.contains("<td class=\"number\" data-value="), "cells that sort");
    for tag in tags {
        assert!([">", " ", "ead>"].iter().any(|begin| tag.starts_with(begin)), "<td or <th{}", &tag[..20]);
    }
    let plain = desk.ok(&["report", "runs/s", "--format", "html"]);
    assert!(plain.contains("id=\"figure-confusion\"") && plain.contains("imbalance"), "a page of directories alone");
    anchors(&plain);
    let refused = desk.run(&["report", "s.toml", "--format", "html", "--per-class"]);
    assert!(refused.status.code() == Some(2) && err(&refused).contains("leave --per-class"), "{}", err(&refused));
}

/// Every link of a page leads to a place in it, and no place has two names.
fn anchors(page: &str) {
    let after =
        |mark: &str| page.split(mark).skip(1).map(|r| r.split('"').next().unwrap().to_string()).collect::<Vec<_>>();
    let (links, mut places) = (after("href=\"#"), after(" id=\""));
    assert!(links.len() > 10, "{links:?}");
    for link in links {
        assert!(places.contains(&link), "#{link} leads nowhere");
    }
    places.sort();
    assert!(places.windows(2).all(|w| w[0] != w[1]), "{places:?}");
}

#[test]
fn what_cannot_be_shown_is_said_before_anything_is_read() {
    let desk = Desk::new(&config().replace("\"few\"", "\"fewer\""));
    desk.ok(&["sweep", "s.toml", "--only", "fedprox", "--format", "json", "--set", "table.numbers=['last10']"]);
    let output = desk.run(&["report", "s.toml"]);
    assert!(output.status.code() == Some(2) && err(&output).contains("no run has `fewer`"), "{}", err(&output));
    std::fs::write(desk.path("plain.toml"), "").unwrap();
    let output = desk.run(&["report", "plain.toml"]);
    assert!(err(&output).contains("no [sweep] and no arms"), "{}", err(&output));
    let output = desk.run(&["report", "s.toml", "runs"]);
    assert!(err(&output).contains("a config stands alone"), "{}", err(&output));
    let output = desk.run(&["report", "runs", "--set", "run.seed=1"]);
    assert!(err(&output).contains("only directories are named"), "{}", err(&output));
}

#[test]
fn the_shipped_tables_can_be_planned() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tables");
    let paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(paths.len() >= 4, "{paths:?}");
    for path in paths {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let config = fedllava::config::Config::read(&path, &[]).unwrap();
        let plan = config.plan().unwrap();
        let table = config.table.unwrap();
        let rows: Vec<&str> =
            plan.runs.iter().map(|r| if r.arm.is_empty() { &r.cell } else { &r.arm }.as_str()).collect();
        assert!(plan.runs.len() >= 6, "{name}: {}", plan.runs.len());
        let named =
            table.groups.iter().flat_map(|g| &g.rows).chain(config.contrasts.iter().flat_map(|c| [&c.of, &c.over]));
        for row in named {
            assert!(rows.contains(&row.as_str()), "{name}: no row {row}");
        }
        let kinds: Vec<String> = fedllava::fl::AlgorithmConfig::all().iter().map(|(n, _)| n.to_string()).collect();
        if !name.starts_with("cifar100-lt-quick") {
            for kind in kinds {
                assert!(rows.contains(&kind.as_str()), "{name}: no row of {kind}");
            }
        }
    }
}
