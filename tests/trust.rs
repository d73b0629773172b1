//! `archive`, `reproduce`, `export`, `attribute`, `watch`, on runs of seconds.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use serde_json::Value;

use crate::sweep::{CONFIG, Desk, err};

/// One run with two judged rounds.
fn one() -> String {
    CONFIG.split("[sweep]").next().unwrap().replace("rounds = 4", "rounds = 2")
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn an_archived_run_comes_out_again_bit_for_bit_on_another_number_of_threads() {
    let desk = Desk::new(&one());
    let run = "runs/s/seed-7";
    desk.ok(&["run", "s.toml", "--threads", "1"]);
    desk.ok(&["archive", run, "a.tar.zst"]);
    assert!(std::fs::metadata(desk.path("a.tar.zst")).unwrap().len() < 100_000);
    let again = desk.run(&["archive", run, "a.tar.zst"]);
    assert!(again.status.code() == Some(2) && err(&again).contains("is there already"), "{}", err(&again));
    let whole = desk.ok(&["reproduce", "a.tar.zst", "--check"]);
    assert!(whole.contains("whole: ") && !desk.path("runs/reproduced").exists(), "{whole}");
    let text = desk.ok(&["reproduce", "a.tar.zst", "--threads", "3"]);
    for name in ["split.json", "finetune/done.json", "metrics.jsonl", "eval.json"] {
        assert!(text.contains(name), "{name}: {text}");
    }
    // A run whose record says another number than its config gives is found out, by the place.
    let records = desk.path(run).join("metrics.jsonl");
    let lines = std::fs::read_to_string(&records).unwrap();
    let at = lines.lines().position(|l| l.contains("\"test\"") && l.contains("\"round\":2")).unwrap();
    let other =
        |(i, l): (usize, &str)| if i == at { l.replace("\"accuracy\":0.", "\"accuracy\":0.9") } else { l.into() };
    let changed: String = lines.lines().enumerate().map(|line| other(line) + "\n").collect();
    assert_ne!(changed, lines);
    std::fs::write(&records, changed).unwrap();
    let sealed = desk.run(&["archive", run, "b.tar.zst"]);
    assert!(sealed.status.code() == Some(3) && !desk.path("b.tar.zst").exists(), "{}", err(&sealed));
    std::fs::remove_file(desk.path(run).join("metrics.seal")).unwrap();
    desk.ok(&["archive", run, "b.tar.zst"]);
    let output = desk.run(&["reproduce", "b.tar.zst"]);
    assert_eq!(output.status.code(), Some(3));
    let said = err(&output);
    let place = format!("metrics.jsonl differs first: record {} (finetune, round 2, test): accuracy", at + 1);
    assert!(said.contains(&place), "{said}");
}

#[test]
fn an_export_is_the_judged_model_with_its_card_and_what_is_none_is_refused() {
    let desk = Desk::new(&one());
    let run = "runs/s/seed-7";
    let before = desk.run(&["export", run]);
    assert!(before.status.code() == Some(2) && err(&before).contains("no finished run"), "{}", err(&before));
    desk.ok(&["run", "s.toml"]);
    let names = desk.ok(&["export", run, "--out", "model"]);
    assert_eq!(names.lines().count(), 3, "{names}");
    let eval = json(&std::fs::read_to_string(desk.path(run).join("eval.json")).unwrap());
    let entry = &eval["stages"]["finetune"];
    let card = std::fs::read_to_string(desk.path("model/README.md")).unwrap();
    let percent = format!("| accuracy | {:.1} |", 100.0 * entry["overall"].as_f64().unwrap());
    for part in
        [percent.as_str(), entry["digest"].as_str().unwrap(), "fedavg on world", "def model(x):", "One seed (7)"]
    {
        assert!(card.contains(part), "{part}: {card}");
    }
    let judged = ["evaluate", "s.toml", "--model", "model/model.safetensors", "--json"];
    assert_eq!(json(&desk.ok(&judged))["overall"], entry["overall"], "the exported file is the judged model");
    let twice = desk.run(&["export", run, "--out", "model"]);
    assert!(err(&twice).contains("is there already"), "{}", err(&twice));
    let stage = desk.run(&["export", run, "--stage", "align", "--out", "other"]);
    assert!(err(&stage).contains("no classifier of align; there are: finetune"), "{}", err(&stage));
    // A file that is not the judged model is not given out as it.
    std::fs::write(desk.path(run).join("finetune/model.safetensors"), "no").unwrap();
    assert!(!desk.run(&["export", run, "--out", "third"]).status.success() && !desk.path("third").exists());
}

/// The demo's method, tiny, with and without its parts.
const PARTS: &str = r#"
[data]
kind = "world"
pool_images = 40
train_per_class = 24
test_per_class = 6
[longtail]
imbalance = 4
[partition]
kind = "dirichlet"
clients = 4
min_size = 2
[server_set]
per_class = 2
[model]
kind = "resnet8"
width = 4
[clip]
kind = "model"
path = "data/demo-clip"
[pool]
kind = "world"
[pretrain]
batch_size = 16
epochs = 1
[align]
steps = 4
[federated]
rounds = 1
cohort = 2
local_epochs = 1
batch_size = 8
[evaluate]
shots = "rank:3/4/3"
overlaps = false
[[arms]]
name = "whole"
[[arms]]
name = "scratch"
set = { pretrain.enabled = false }
[[arms]]
name = "ce-only"
set = { align.beta = 0.0 }
[[arms]]
name = "no-rounds"
set = { federated.rounds = 0 }
"#;

#[test]
fn a_gain_is_shared_out_among_the_arms_and_what_is_missing_is_named() {
    let desk = Desk::new(PARTS);
    desk.ok(&["run", "s.toml"]);
    let said = json(&desk.ok(&["attribute", "runs/s", "--format", "json"]));
    let overall = |arm: &str, stage: &str| {
        let text = std::fs::read_to_string(desk.path(&format!("runs/s/{arm}/seed-7/eval.json"))).unwrap();
        json(&text)["stages"][stage]["overall"].as_f64().unwrap()
    };
    assert_eq!(said["of"], "whole");
    let share = |name: &str| said["shares"].as_array().unwrap().iter().find(|s| s["part"] == name).unwrap().clone();
    for (name, arm, stage) in [
        ("all parts, over plain federated learning", "scratch", "finetune"),
        ("pool (stage 1)", "scratch", "align"),
        ("teacher", "ce-only", "align"),
        ("federation (stage 2)", "no-rounds", "align"),
    ] {
        let points = 100.0 * (overall("whole", "align") - overall(arm, stage));
        assert!((share(name)["mean"].as_f64().unwrap() - points).abs() < 1e-9, "{name}: {}", share(name));
    }
    let missing = share("server's labels");
    assert!(missing["mean"].is_null() && missing["to_make"].as_str().unwrap().contains("align.cross_entropy=false"));
    let table = desk.ok(&["attribute", "runs/s"]);
    assert!(table.contains("Missing: server's labels. To make it: fedllava run"), "{table}");
    let e = desk.run(&["attribute", "runs/s/scratch"]);
    assert!(err(&e).contains("no run here has a pool"), "{}", err(&e));
}

/// What a page answers to one request.
fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_run_can_be_watched_and_nothing_but_watched() {
    let desk = Desk::new(&one());
    let nowhere = desk.run(&["watch", "runs/s"]);
    assert!(err(&nowhere).contains("does not exist"), "{}", err(&nowhere));
    desk.ok(&["run", "s.toml"]);
    // As it was after its first round, with a record that is being written.
    let run = desk.path("runs/s/seed-7");
    ["eval.json", "metrics.seal"].iter().for_each(|name| std::fs::remove_file(run.join(name)).unwrap());
    let records = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let first: Vec<&str> = records.lines().filter(|l| l.contains("\"round\":1,")).collect();
    std::fs::write(run.join("metrics.jsonl"), format!("{}\n{{\"stage\":\"fine", first.join("\n"))).unwrap();
    let mut child =
        desk.command(&["watch", "runs/s", "--port", "0"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("http://").unwrap().trim_end_matches('/').to_string();
    let get = |path: &str, host: &str| ask(&address, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    let page = get("/", &address);
    let accuracy = first.iter().map(|l| json(l)).find(|r| r["split"] == "test").unwrap()["accuracy"].as_f64().unwrap();
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("round 1 of 2"), "{page}");
    assert!(page.contains(&format!(">{:.2}</a>", 100.0 * accuracy)) && page.contains("id=\"figure-rounds\""));
    assert!(page.contains("id=\"reload\"") && page.contains("unfinished"), "it says that it is not the end");
    assert!(get("/other", &address).starts_with("HTTP/1.1 404"));
    assert!(get("/", "elsewhere.example").starts_with("HTTP/1.1 403"), "another site's name");
    let post = ask(&address, &format!("POST / HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n"));
    assert!(post.starts_with("HTTP/1.1 405"), "{post}");
    assert!(address.starts_with("127.0.0.1:"));
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
}
