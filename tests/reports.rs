//! Random sets of finished runs on disk: every number of every table and figure comes out again from the files of the
//! runs that its row names, and every run is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use fedllava::report::compare::{compare, paired};
use fedllava::report::figures::curve;
use fedllava::report::figures::data::{self, Series};
use fedllava::report::side::Side;
use fedllava::report::{Contrasts, Report, Room, View};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

const CASES: u32 = 200;
const CLASSES: usize = 3;

/// A run to write: its config, its place, its numbers.
#[derive(Clone, Debug)]
struct Planned {
    alpha: u8,
    method: u8,
    arm: u8,
    seed: u64,
    copy: u8,
    stages: u8,
    missing: u8,
    rounds: usize,
    said: bool,
    numbers: Vec<u16>,
}

fn planned() -> impl Strategy<Value = Planned> {
    let config = (0..3u8, 0..3u8, 0..3u8, 1..4u64, 0..2u8);
    let inside = (1..8u8, 0..8u8, 0..13usize, any::<bool>(), prop::collection::vec(0..4u16, 40));
    (config, inside).prop_map(|((alpha, method, arm, seed, copy), (stages, missing, rounds, said, numbers))| Planned {
        alpha,
        method,
        arm,
        seed,
        copy,
        stages,
        missing,
        rounds,
        said,
        numbers,
    })
}

/// One of four numbers, so that equal ones are common.
fn share(n: u16) -> f64 {
    [0.0, 0.125, 0.4375, 0.983][n as usize % 4]
}

const STAGES: [&str; 3] = ["start", "finetune", "zeta"];

impl Planned {
    fn dir(&self) -> String {
        let Planned { copy, method, alpha, arm, seed, .. } = self;
        format!("{copy}/{method}{alpha}/arm{arm}/seed-{seed}")
    }

    fn config(&self, dir: &Path) -> String {
        let kind = ["fedavg", "fedprox", "scaffold"][self.method as usize];
        let mu = if self.method == 1 { "mu = 0.0\n" } else { "" };
        format!(
            "schema = 1\n[run]\nseed = {}\ndir = {:?}\nthreads = {}\nengine = \"cpu\"\n[partition]\nalpha = {:?}\n\
             [algorithm]\nkind = \"{kind}\"\n{mu}[federated]\nrounds = 5\n",
            self.seed,
            dir.display().to_string(),
            self.numbers[39],
            f64::from(self.alpha) / 2.0
        )
    }

    fn entry(&self, stage: usize) -> Value {
        let n = |i: usize| self.numbers[10 * stage + i];
        let matrix: Vec<Vec<u16>> = (0..CLASSES).map(|c| vec![n(c), n(c + 1), 1 + n(c + 2)]).collect();
        let mut entry = json!({ "overall": share(n(0)), "many": share(n(1)), "medium": null, "few": share(n(2)),
            "worst_class": share(n(3)), "loss": 1.5 + share(n(4)), "digest": format!("d{}", n(5) % 2),
            "per_class": (0..CLASSES).map(|c| share(n(c))).collect::<Vec<_>>(), "confusion": matrix,
            "last10": if self.rounds > 0 { json!(share(n(6))) } else { Value::Null },
            "personal": { "mean": share(n(7)) } });
        if self.said {
            let more = json!({ "label": format!("stage {stage}"), "order": 10 - stage, "oracle": n(8) == 3,
                "extras": [format!("extra {}", n(9) % 2)], "image_steps": 100 * stage, "reads": reads(stage),
                "last10_rounds": self.rounds.min(10) });
            entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        }
        if self.missing & (1 << stage) != 0 {
            entry.as_object_mut().unwrap().remove("few");
        }
        entry
    }

    fn write(&self, root: &Path) {
        let dir = root.join(self.dir());
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.toml"), self.config(&dir)).unwrap();
        let stages: Map<String, Value> =
            (0..3).filter(|s| self.stages & (1 << s) != 0).map(|s| (STAGES[s].to_string(), self.entry(s))).collect();
        let facts = json!({ "classes": ["a", "b", "c"], "class_counts": [9, 5 + self.numbers[38], 1], "test": "t",
            "held": { "clients": [[1, 2, 3], [self.numbers[37], 0, 1]], "server": [1, 1, 1] } });
        let eval = json!({ "stages": stages, "facts": facts });
        std::fs::write(dir.join("eval.json"), eval.to_string()).unwrap();
        let line =
            |r: usize| json!({ "stage": "finetune", "round": r, "split": "test", "accuracy": share(self.numbers[r]) });
        let lines: Vec<String> = (1..=self.rounds).map(|r| line(r).to_string()).collect();
        std::fs::write(dir.join("metrics.jsonl"), lines.join("\n")).unwrap();
    }
}

/// What a stage of this world depends on.
fn reads(stage: usize) -> &'static [&'static str] {
    [&["partition"][..], &["partition", "algorithm", "federated", "run.engine"], &["algorithm.kind"]][stage]
}

/// A run as the files say, read without the library.
struct Plain {
    keys: BTreeMap<String, String>,
    seed: u64,
    eval: Value,
    records: Vec<Value>,
}

fn plain(dir: &Path) -> Plain {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let table: toml::Table = toml::from_str(&read("config.toml")).unwrap();
    let mut keys = BTreeMap::new();
    for (section, value) in &table {
        for (key, value) in value.as_table().into_iter().flatten() {
            keys.insert(format!("{section}.{key}"), value.to_string().trim_matches('"').to_string());
        }
    }
    let seed = keys.remove("run.seed").unwrap().parse().unwrap();
    keys.retain(|key, _| !["run.dir", "run.threads"].contains(&key.as_str()));
    let records = read("metrics.jsonl").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    Plain { keys, seed, eval: serde_json::from_str(&read("eval.json")).unwrap(), records }
}

fn mean(v: &[f64]) -> f64 {
    v.iter().sum::<f64>() / v.len() as f64
}

fn deviation(v: &[f64]) -> f64 {
    (v.iter().map(|x| (x - mean(v)).powi(2)).sum::<f64>() / (v.len() as f64 - 1.0)).sqrt()
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

/// A row of the JSON with what its own files say.
struct Known {
    row: Value,
    stage: String,
    own: Vec<Plain>,
    shared: Vec<Plain>,
    dirs: Vec<PathBuf>,
}

impl Known {
    fn of(row: &Value) -> Known {
        let texts =
            |v: &Value| v.as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_string()).collect::<Vec<_>>();
        let dirs: Vec<PathBuf> = texts(&row["directories"]).iter().map(PathBuf::from).collect();
        let n = row["seeds"].as_array().unwrap().len();
        let read = |d: &[PathBuf]| d.iter().map(|d| plain(d)).collect();
        let stage = row["stage"].as_str().unwrap().to_string();
        Known { row: row.clone(), stage, own: read(&dirs[..n]), shared: read(&dirs[n..]), dirs }
    }

    fn values(&self, figure: &str) -> Vec<f64> {
        let pointer = format!("/stages/{}/{figure}", self.stage);
        self.own.iter().filter_map(|p| p.eval.pointer(&pointer)?.as_f64()).collect()
    }

    /// What a table shows of a figure, in percent.
    fn cell(&self, figure: &str, decimals: usize, deviations: bool) -> String {
        match &self.values(figure)[..] {
            [] => "–".into(),
            v if v.len() > 1 && deviations => {
                format!("{:.decimals$} ± {:.decimals$}", 100.0 * mean(v), 100.0 * deviation(v))
            }
            v => format!("{:.decimals$}", 100.0 * mean(v)),
        }
    }

    fn entry(&self) -> &Value {
        &self.own[0].eval["stages"][&self.stage]
    }

    fn read_by(&self, key: &str) -> bool {
        let reads = |p: &Plain| match p.eval["stages"][&self.stage]["reads"].as_array() {
            None => true,
            Some(parts) => parts.iter().any(|r| {
                let part = r.as_str().unwrap();
                key == part || key.starts_with(&format!("{part}."))
            }),
        };
        self.own.iter().any(reads)
    }
}

/// Rows against the files: whose they are, what they say, that none is left out.
fn check_rows(view: &View, runs: &[PathBuf]) -> Vec<Known> {
    let rows: Vec<Known> = view.json["rows"].as_array().unwrap().iter().map(Known::of).collect();
    let mut placed: BTreeMap<(PathBuf, String), usize> = BTreeMap::new();
    for k in &rows {
        for dir in &k.dirs {
            *placed.entry((dir.clone(), k.stage.clone())).or_default() += 1;
            let name = dir.parent().unwrap().file_name().unwrap().to_str().unwrap();
            assert!(k.row["run"].as_str().unwrap().contains(name), "{} names {name}", k.row["run"]);
        }
        let seeds: Vec<u64> = k.own.iter().map(|p| p.seed).collect();
        assert!(seeds.windows(2).all(|w| w[0] < w[1]) && json!(seeds) == k.row["seeds"], "no seed twice");
        assert!(k.own.iter().all(|p| p.keys == k.own[0].keys), "no two configs pooled");
        for (i, shared) in k.shared.iter().enumerate() {
            let first = &k.own[i % k.own.len()];
            assert_eq!(shared.eval["stages"][&k.stage], first.eval["stages"][&k.stage], "what is shared is the same");
            assert_eq!(shared.keys.get("algorithm.kind"), first.keys.get("algorithm.kind"), "of the same method");
        }
        for (name, figure) in k.row["figures"].as_object().unwrap() {
            let values = k.values(name);
            assert_eq!(figure["values"], json!(values), "{name}");
            assert!(near(figure["mean"].as_f64().unwrap(), mean(&values)));
            assert_eq!(figure["deviation"].is_null(), values.len() < 2);
            assert!(values.len() < 2 || near(figure["deviation"].as_f64().unwrap(), deviation(&values)));
        }
        assert_eq!(k.row["figures"].get("few").is_some(), !k.values("few").is_empty());
    }
    let expected = runs.iter().flat_map(|dir| {
        let eval = plain(dir).eval;
        let stages: Vec<String> = eval["stages"].as_object().unwrap().keys().cloned().collect();
        stages.into_iter().map(move |s| ((dir.clone(), s), 1))
    });
    assert_eq!(placed, expected.collect(), "every stage of every run, once");
    rows
}

/// Seeds that are missing, keys that differ.
fn check_distinctions(rows: &[Known]) {
    let all: BTreeSet<u64> = rows.iter().flat_map(|k| k.own.iter().map(|p| p.seed)).collect();
    let keys: BTreeSet<&String> = rows.iter().flat_map(|k| k.own[0].keys.keys()).collect();
    for k in rows {
        let missing: Vec<u64> = all.iter().copied().filter(|s| k.own.iter().all(|p| p.seed != *s)).collect();
        assert_eq!(k.row["missing_seeds"], json!(missing));
        for key in keys.iter().filter(|k| **k != "algorithm.kind") {
            let readers = || rows.iter().filter(|r| r.read_by(key));
            let differs = readers().any(|r| r.own[0].keys.get(*key) != readers().next().unwrap().own[0].keys.get(*key));
            assert_eq!(k.row["differs"].get(key.as_str()).is_some(), differs, "{key}");
            if differs && k.read_by(key) {
                assert_eq!(k.row["differs"][key.as_str()], json!(k.own[0].keys.get(*key)), "{key}");
            }
        }
        if k.read_by("algorithm.kind") {
            assert_eq!(k.row["algorithm"], json!(k.own[0].keys["algorithm.kind"]));
        }
    }
}

const HEADS: [(&str, &str); 6] = [
    ("accuracy", "overall"),
    ("many", "many"),
    ("medium", "medium"),
    ("few", "few"),
    ("worst class", "worst_class"),
    ("own models", "personal/mean"),
];

/// Cells of a table's lines, by their heads.
fn cells(lines: &[Vec<String>]) -> Vec<BTreeMap<String, String>> {
    let mut head: Vec<String> = Vec::new();
    let mut rows = Vec::new();
    for line in lines {
        if line[0] == "run" {
            head = line.clone();
        } else {
            assert_eq!(line.len(), head.len(), "{line:?}");
            rows.push(head.iter().cloned().zip(line.iter().cloned()).collect());
        }
    }
    rows
}

/// Wide tables as Markdown and as LaTeX hold every number of every row.
fn check_tables(view: &View, rows: &[Known]) {
    // Oracles stand below the others.
    let (below, above): (Vec<&Known>, Vec<&Known>) = rows.iter().partition(|k| k.row["oracle"] == true);
    let order: Vec<&Known> = above.into_iter().chain(below).collect();
    let split = |line: &str, by: &str| line.split(by).map(|c| c.trim().to_string()).collect::<Vec<_>>();
    let markdown = view.markdown();
    let lines = markdown.lines().filter(|l| l.starts_with('|') && !l.starts_with("|--"));
    let markdown: Vec<Vec<String>> = lines.map(|l| split(l.trim_matches('|'), "|")).collect();
    let latex = view.latex();
    let lines = latex.lines().filter_map(|l| l.strip_suffix("\\\\"));
    let plain = |l: &str| l.replace("\\ensuremath{\\pm}", "±").replace("\\_", "_").replace("--", "–");
    let latex: Vec<Vec<String>> = lines.map(|l| split(&plain(l), "&")).collect();
    for table in [cells(&markdown), cells(&latex)] {
        assert_eq!(table.len(), order.len());
        for (row, k) in table.iter().zip(&order) {
            assert_eq!(row["run"], k.row["run"].as_str().unwrap());
            for (head, figure) in HEADS {
                assert_eq!(row[head], k.cell(figure, 2, true), "{head} of {}", k.row);
            }
            let last = row.iter().find(|(head, _)| head.starts_with("last")).unwrap();
            assert!(last.1.starts_with(&k.cell("last10", 2, true)), "{last:?}");
            check_rounds(last, k);
            for (key, value) in k.row["differs"].as_object().unwrap() {
                let told = value.as_str().unwrap_or(if k.read_by(key) { "–" } else { "" });
                assert_eq!(row[key], told, "{key}");
            }
        }
    }
}

/// A mean over the last rounds says how many there are.
fn check_rounds((head, cell): (&String, &String), k: &Known) {
    let counts: BTreeSet<usize> = k.own.iter().map(|p| p.records.len().min(10)).filter(|n| *n > 0).collect();
    // A stage without records of its own knows its number only where its entry says so.
    let known = k.own.iter().all(|p| p.eval["stages"][&k.stage]["last10_rounds"].is_u64()) || k.stage == "finetune";
    let (Some(least), Some(most), true) = (counts.first(), counts.last(), known) else { return };
    let said = if least == most { least.to_string() } else { format!("{least} to {most}") };
    let by_head = [format!("last {said} rounds"), format!("last {said} round")].contains(head);
    assert!(by_head || cell.ends_with(&format!("({said})")), "{head}: {cell} of {said}");
}

/// Narrow tables: as wide as they may be, every row's accuracy in them, constants told rightly.
fn check_narrow(report: &Report, rows: &[Known]) {
    let room = Room { width: Some(60), wide: false };
    let text = report.summary(&Contrasts::default(), room).terminal(room);
    assert!(text.lines().all(|l| l.chars().count() <= 60), "{text}");
    let (below, above): (Vec<&Known>, Vec<&Known>) = rows.iter().partition(|k| k.row["oracle"] == true);
    let tables = report.summary(&Contrasts::default(), room).tables;
    let told = tables.iter().flat_map(|t| {
        let at = t.columns.iter().position(|c| c.head == "accuracy").unwrap();
        t.rows.iter().map(move |r| r[at].clone())
    });
    let told: Vec<String> = told.collect();
    assert_eq!(told.len(), rows.len());
    for (cell, k) in told.iter().zip(above.into_iter().chain(below)) {
        assert!([1, 2].map(|d| k.cell("overall", d, true)).contains(cell) && text.contains(cell.as_str()), "{cell}");
    }
    for view in [report.summary(&Contrasts::default(), room), report.summary(&Contrasts::default(), Room::default())] {
        for table in view.tables.iter().filter(|_| rows.iter().all(|k| k.row["oracle"] == false)) {
            for said in table.notes.iter().filter_map(|n| n.strip_prefix("In all rows: ")?.strip_suffix('.')) {
                for (head, figure) in HEADS.iter().filter(|(_, f)| *f != "personal/mean") {
                    let Some(value) = said.split(" · ").find_map(|p| p.strip_prefix(&format!("{head} "))) else {
                        continue;
                    };
                    let same = |k: &Known| {
                        [(1, true), (1, false), (2, true)]
                            .map(|(d, s)| k.cell(figure, d, s))
                            .contains(&value.to_string())
                    };
                    assert!(rows.iter().all(same), "{said}");
                }
            }
        }
    }
}

/// The sheet holds the JSON's numbers.
fn check_sheet(view: &View, rows: &[Known]) {
    let text = view.csv().unwrap();
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let head = reader.headers().unwrap().clone();
    assert_eq!(head.iter().collect::<BTreeSet<_>>().len(), head.len(), "no head twice: {head:?}");
    let records: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!(records.len(), rows.len());
    for (record, k) in records.iter().zip(rows) {
        let cell = |name: &str| &record[head.iter().position(|h| h == name).unwrap_or_else(|| panic!("{name}"))];
        assert_eq!(cell("run"), k.row["run"].as_str().unwrap());
        for figure in ["overall", "many", "few", "last10", "loss", "personal/mean"] {
            let values = k.values(figure);
            let found = head.iter().any(|h| h == figure);
            assert!(found || values.is_empty());
            if found {
                assert_eq!(cell(figure).is_empty(), values.is_empty());
                assert!(values.is_empty() || near(cell(figure).parse().unwrap(), mean(&values)));
                let sd = cell(&format!("{figure}_sd"));
                assert!(values.len() < 2 && sd.is_empty() || near(sd.parse().unwrap(), deviation(&values)));
            }
        }
    }
}

fn check_views(report: &Report, rows: &[Known]) {
    let view = report.per_class(Room::default()).unwrap();
    let told = view.json["rows"].as_array().unwrap();
    assert_eq!(told.len(), rows.len());
    for (row, k) in told.iter().zip(rows) {
        for c in 0..CLASSES {
            assert_eq!(row["classes"][c]["values"], json!(k.values(&format!("per_class/{c}"))));
            let images: Vec<f64> = k.own.iter().filter_map(|p| p.eval["facts"]["class_counts"][c].as_f64()).collect();
            assert!(near(row["classes"][c]["images"].as_f64().unwrap(), mean(&images)));
        }
    }
    let view = report.per_client(Room::default()).unwrap();
    let told = view.json["rows"].as_array().unwrap();
    assert_eq!(told.len(), report.found.runs.len(), "every run");
    for row in told {
        let run = plain(Path::new(row["directory"].as_str().unwrap()));
        let accuracy = &run.eval["stages"][row["stage"].as_str().unwrap()]["per_class"];
        for (client, counts) in
            row["clients"].as_array().unwrap().iter().zip(run.eval["facts"]["held"]["clients"].as_array().unwrap())
        {
            let n = |c: usize| counts[c].as_f64().unwrap();
            let all: f64 = (0..CLASSES).map(n).sum();
            let hits: f64 = (0..CLASSES).map(|c| n(c) * accuracy[c].as_f64().unwrap()).sum();
            assert!(near(client["global"].as_f64().unwrap(), hits / all) && client["images"].as_f64() == Some(all));
        }
    }
}

fn points(series: &Series) -> Vec<(f64, Vec<f64>)> {
    series.points.iter().map(|p| (p.x, p.of.values.clone())).collect()
}

fn check_figures(report: &Report, rows: &[Known]) {
    let rounds = data::rounds(report).unwrap();
    let mut wanted = Vec::new();
    for k in rows.iter().filter(|k| k.stage == "finetune") {
        let common = k.own.iter().map(|p| p.records.len()).min().unwrap();
        let value = |r: usize| k.own.iter().map(|p| 100.0 * p.records[r - 1]["accuracy"].as_f64().unwrap()).collect();
        let points: Vec<(f64, Vec<f64>)> = (1..=common).map(|r| (r as f64, value(r))).collect();
        wanted.extend((common > 0).then_some(points));
    }
    let drawn: Vec<_> = rounds.iter().flat_map(|c| &c.series).map(points).collect();
    assert_eq!(drawn, wanted, "accuracy against rounds");
    let squares = data::squares(report);
    assert_eq!(squares.len(), rows.len());
    for (square, k) in squares.iter().zip(rows) {
        for i in 0..CLASSES {
            let sums: Vec<f64> = (0..CLASSES).map(|j| k.values(&format!("confusion/{i}/{j}")).iter().sum()).collect();
            let total: f64 = sums.iter().sum();
            assert!((0..CLASSES).all(|j| near(square.shares[i][j], sums[j] / total)));
        }
    }
    let chart = data::frequency(report).unwrap();
    for (series, k) in chart.series.iter().zip(rows) {
        let mut drawn: Vec<f64> = series.points.iter().map(|p| p.of.mean().unwrap()).collect();
        let mut wanted: Vec<f64> = (0..CLASSES).map(|c| 100.0 * mean(&k.values(&format!("per_class/{c}")))).collect();
        drawn.sort_by(f64::total_cmp);
        wanted.sort_by(f64::total_cmp);
        assert!(drawn.iter().zip(&wanted).all(|(a, b)| near(*a, *b)) && drawn.len() == CLASSES);
    }
    let held: usize = data::holdings(report).iter().map(|h| h.runs.len()).sum();
    assert_eq!(held, report.found.runs.len(), "every run's split");
    check_curve(report);
}

/// A line holds runs of one config but for the key; a point the values of the runs there; every run is on a line.
fn check_curve(report: &Report) {
    let Ok(chart) = curve::curve(report, "partition.alpha", false) else {
        let values: BTreeSet<&str> = report
            .found
            .runs
            .iter()
            .map(|r| r.dir.parent().unwrap().parent().unwrap().to_str().unwrap())
            .map(|d| &d[d.len() - 1..])
            .collect();
        assert!(values.len() < 2, "{values:?}");
        return;
    };
    let mut placed: BTreeMap<(usize, String), usize> = BTreeMap::new();
    for series in &chart.series {
        let mut at: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let mut rests = BTreeSet::new();
        for &i in &series.runs {
            *placed.entry((i, series.stage.clone())).or_default() += 1;
            let mut run = plain(&report.run(i).dir);
            let x = run.keys.remove("partition.alpha").unwrap();
            rests.insert(run.keys);
            at.entry(x).or_default().push(100.0 * run.eval["stages"][&series.stage]["overall"].as_f64().unwrap());
        }
        assert_eq!(rests.len(), 1, "one config but for the key");
        let wanted: Vec<(f64, Vec<f64>)> = at.into_iter().map(|(x, v)| (x.parse().unwrap(), v)).collect();
        assert_eq!(points(series), wanted);
    }
    let runs = report.found.runs.iter().enumerate();
    let expected = runs.flat_map(|(i, r)| r.stages.iter().map(move |s| ((i, s.name.clone()), 1)));
    assert_eq!(placed, expected.collect(), "every stage of every run is on one line");
}

/// The half width of Student's 95 % interval, from a table of its 97.5 % quantile.
fn half(v: &[f64]) -> f64 {
    let quantile = [12.7062, 4.3027, 3.1824][v.len() - 2];
    quantile * deviation(v) / (v.len() as f64).sqrt()
}

/// Two rows next to each other, compared: every number again from the files, paired by seed, and the sentence's sign.
fn check_compare(report: &Report, rows: &[Known]) {
    let side = |k: &Known| {
        let of = |dir: &PathBuf| report.found.runs.iter().find(|r| r.dir == *dir).unwrap().clone();
        Side {
            name: k.row["run"].as_str().unwrap().into(),
            stage: k.stage.clone(),
            runs: k.dirs[..k.own.len()].iter().map(of).collect(),
        }
    };
    for pair in rows.windows(2) {
        let sides = [side(&pair[0]), side(&pair[1])];
        let values = |k: &Known, name: &str| -> BTreeMap<u64, f64> {
            let at = format!("/stages/{}/{name}", k.stage);
            k.own.iter().filter_map(|p| Some((p.seed, 100.0 * p.eval.pointer(&at)?.as_f64()?))).collect()
        };
        let [a, b] = [&pair[0], &pair[1]].map(|k| values(k, "overall"));
        let seeds: Vec<u64> = a.keys().copied().filter(|s| b.contains_key(s)).collect();
        let Ok(view) = compare(&sides, Some("overall"), Room::default()) else {
            assert!(seeds.is_empty(), "refused with seeds in common: {seeds:?}");
            continue;
        };
        let told = &view.json["comparisons"][0];
        assert_eq!(told["seeds"], json!(seeds));
        for (name, figure) in told["figures"].as_object().unwrap() {
            let [a, b] = [&pair[0], &pair[1]].map(|k| values(k, name));
            let both: Vec<f64> = a.iter().filter_map(|(s, v)| Some(v - b.get(s)?)).collect();
            assert_eq!(figure["differences"], json!(both), "{name}");
            assert!(near(figure["mean"].as_f64().unwrap(), mean(&both)));
            assert_eq!(figure["interval"].is_null(), both.len() < 2);
            if both.len() > 1 {
                let bound = |i: usize| figure["interval"][i].as_f64().unwrap();
                assert!((bound(1) - mean(&both) - half(&both)).abs() < 1e-3 * (1.0 + half(&both)), "{name}");
                assert!((mean(&both) - bound(0) - half(&both)).abs() < 1e-3 * (1.0 + half(&both)), "{name}");
            }
            assert_eq!(paired(&sides[0], &sides[1], name).seeds.len(), both.len());
        }
        let by = format!(" by {:.1}", mean(&seeds.iter().map(|s| a[s] - b[s]).collect::<Vec<_>>()).abs());
        assert!(view.closing[0].contains(&by), "{} {by}", view.closing[0]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_number_comes_out_again_from_the_runs_that_its_row_names(plans in prop::collection::vec(planned(), 1..12)) {
        let root = tempfile::tempdir().unwrap();
        plans.iter().for_each(|p| p.write(root.path()));
        let runs: BTreeSet<PathBuf> = plans.iter().map(|p| root.path().join(p.dir())).collect();
        let runs: Vec<PathBuf> = runs.into_iter().collect();
        let report = Report::read(&[root.path().to_path_buf()]).unwrap();
        let wide = Room { width: None, wide: true };
        let view = report.summary(&Contrasts::of(&report).unwrap(), wide);
        let rows = check_rows(&view, &runs);
        check_distinctions(&rows);
        check_tables(&view, &rows);
        check_narrow(&report, &rows);
        check_sheet(&view, &rows);
        check_views(&report, &rows);
        check_figures(&report, &rows);
        check_compare(&report, &rows);
        for (name, svg) in fedllava::report::figures::all(&report).unwrap() {
            prop_assert!(svg.contains("prefers-color-scheme:dark") && svg.trim_end().ends_with("</svg>"), "{}", name);
        }
        prop_assert!(rows.iter().all(|k| k.entry().is_object()));
    }
}
