//! The binary as a person meets it: small runs of all stages on the procedural world.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const CONFIG: &str = r#"
[data]
kind = "world"
pool_images = 96
train_per_class = 24
test_per_class = 6
[longtail]
imbalance = 4
[partition]
kind = "dirichlet"
clients = 6
min_size = 2
[server_set]
per_class = 2
[model]
kind = "resnet8"
width = 4
[clip]
kind = "model"
path = "CLIP"
prompts = { kind = "templates", list = ["a {c}"] }
[pool]
kind = "world"
[pretrain]
epochs = 3
batch_size = 32
[federated]
rounds = 6
cohort = 3
local_epochs = 1
batch_size = 8
checkpoint_every = 1
[align]
steps = 4
[evaluate]
shots = "rank:3/4/3"
"#;

/// A working folder with a config in it.
pub struct Desk(TempDir);

impl Desk {
    pub fn new() -> Self {
        let desk = Desk(tempfile::tempdir().unwrap());
        let clip = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo-clip");
        std::fs::write(desk.path("c.toml"), CONFIG.replace("CLIP", clip.to_str().unwrap())).unwrap();
        desk
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fedllava"));
        command.current_dir(self.0.path()).args(arguments).env_remove("FEDLLAVA_DATA");
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs and expects success; gives stdout.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.path(name)).unwrap()).unwrap()
    }

    pub fn digest(&self, run: &str, stage: &str) -> String {
        self.json(&format!("{run}/{stage}/done.json"))["digest"].as_str().unwrap().to_string()
    }
}

pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn all_stages_run_and_leave_the_files_that_scripts_read() {
    let desk = Desk::new();
    let table = desk.ok(&["run", "c.toml"]);
    assert!(table.contains("| run") && table.contains("3 align"), "{table}");
    let eval = desk.json("runs/c/seed-7/eval.json");
    for key in ["overall", "many", "medium", "few", "last10"] {
        assert!(eval[key].is_f64(), "{key}: {}", eval[key]);
    }
    assert_eq!(eval["per_class"].as_array().unwrap().len(), 10);
    let hits: u64 = eval["confusion"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|r| r.as_array().unwrap())
        .map(|n| n.as_u64().unwrap())
        .sum();
    assert_eq!(hits, 60);
    let lines = std::fs::read_to_string(desk.path("runs/c/seed-7/metrics.jsonl")).unwrap();
    let records: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let tests = records.iter().filter(|r| r["stage"] == "finetune" && r["split"] == "test").count();
    assert_eq!(tests, 6);
    for file in ["config.toml", "split.json", "manifest.json", "overlaps.json", "align/model.safetensors"] {
        assert!(desk.path("runs/c/seed-7").join(file).exists(), "{file}");
    }
    let again = desk.ok(&["run", "c.toml"]);
    assert_eq!(table, again, "a finished run prints its table again");
    assert!(desk.ok(&["report", "runs/c", "--figures", "figures"]).contains("2 finetune"));
    for name in ["rounds", "frequency", "confusion", "holders", "contact-sheet"] {
        let svg = std::fs::read_to_string(desk.path(&format!("figures/{name}.svg"))).unwrap();
        assert!(svg.contains("prefers-color-scheme:dark") && svg.trim_end().ends_with("</svg>"), "{name}");
    }
}

#[test]
fn a_shared_stage_has_the_bytes_of_one_that_was_run() {
    let desk = Desk::new();
    let set =
        |dir: &str, share: bool| [format!("run.dir={dir}"), format!("run.share={share}"), "align.when=end".into()];
    for (dir, share, beta) in [("own", false, "1.0"), ("first", true, "1.0"), ("second", true, "0.0")] {
        let [dir, share, when] = set(dir, share);
        let beta = format!("align.beta={beta}");
        desk.ok(&[
            "run",
            "c.toml",
            "--set",
            &dir,
            "--set",
            &share,
            "--set",
            &when,
            "--set",
            "align.weight.kind=constant",
            "--set",
            &beta,
        ]);
    }
    for stage in ["pretrain", "finetune", "align"] {
        assert_eq!(desk.digest("own", stage), desk.digest("first", stage), "{stage}");
    }
    assert_eq!(desk.digest("own", "finetune"), desk.digest("second", "finetune"));
    assert_ne!(desk.digest("own", "align"), desk.digest("second", "align"));
    let records = |run: &str| {
        let text = std::fs::read_to_string(desk.path(run).join("metrics.jsonl")).unwrap();
        text.lines().filter(|l| !l.contains("\"align\"")).map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(records("own"), records("second"));
    assert!(desk.path("first/checkpoints").exists() && !desk.path("second/checkpoints").exists());
}

#[test]
fn results_do_not_depend_on_threads_but_on_the_seed() {
    let desk = Desk::new();
    for (dir, set) in [("a", "run.threads=1"), ("b", "run.threads=3"), ("c", "run.seed=8")] {
        desk.ok(&["run", "c.toml", "--set", set, "--set", &format!("run.dir={dir}")]);
    }
    for stage in ["pretrain", "finetune", "align"] {
        assert_eq!(desk.digest("a", stage), desk.digest("b", stage), "{stage}");
        assert_ne!(desk.digest("a", stage), desk.digest("c", stage), "{stage}");
    }
    assert_ne!(desk.json("a/eval.json")["confusion"], desk.json("c/eval.json")["confusion"]);
}

#[test]
fn stages_one_by_one_give_what_run_gives() {
    let desk = Desk::new();
    desk.ok(&["run", "c.toml", "--set", "run.dir=whole"]);
    for stage in ["pretrain", "finetune", "align"] {
        desk.ok(&[stage, "c.toml", "--set", "run.dir=parts"]);
    }
    for stage in ["pretrain", "finetune", "align"] {
        assert_eq!(desk.digest("whole", stage), desk.digest("parts", stage), "{stage}");
    }
    let early = desk.run(&["finetune", "c.toml", "--set", "run.dir=none"]);
    assert_eq!(early.status.code(), Some(2));
    assert!(err(&early).contains("fedllava pretrain"), "{}", err(&early));
}

#[test]
fn zero_rounds_are_server_only() {
    let desk = Desk::new();
    for (dir, when) in [("end", "end"), ("round", "every-round")] {
        let set = [format!("run.dir={dir}"), format!("align.when={when}")];
        desk.ok(&["run", "c.toml", "--set", "federated.rounds=0", "--set", &set[0], "--set", &set[1]]);
    }
    assert_eq!(desk.digest("end", "align"), desk.digest("round", "align"));
    let eval = desk.json("end/eval.json");
    assert_ne!(eval["stages"]["finetune"]["digest"], eval["stages"]["align"]["digest"]);
    assert!(eval["last10"].is_null());
}

/// Kills the run once `file` is there, and gives whether it was still running then.
fn kill_at(desk: &Desk, arguments: &[&str], file: &str) -> bool {
    let mut child = desk.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while !desk.path(file).exists() && began.elapsed() < Duration::from_secs(120) {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    running
}

#[test]
fn a_run_killed_in_any_stage_ends_with_the_undisturbed_digests() {
    let desk = Desk::new();
    let more = ["--set", "federated.rounds=12", "--set", "pretrain.epochs=6"];
    let arguments = |dir: &'static str| -> Vec<&'static str> {
        let mut all = vec!["run", "c.toml", "--set", dir];
        all.extend(more);
        all
    };
    desk.ok(&arguments("run.dir=calm"));
    let whole = arguments("run.dir=torn");
    let killed = [
        kill_at(&desk, &whole, "torn/pretrain/checkpoints/round-000002"),
        kill_at(&desk, &whole, "torn/checkpoints/round-000003"),
        kill_at(&desk, &whole, "torn/finetune/done.json"),
    ];
    assert!(killed[0] && killed[1], "the run was too quick to be killed: {killed:?}");
    desk.ok(&whole);
    for stage in ["pretrain", "finetune", "align"] {
        assert_eq!(desk.digest("calm", stage), desk.digest("torn", stage), "{stage}");
    }
    let records = |run: &str| std::fs::read_to_string(desk.path(run).join("metrics.jsonl")).unwrap();
    assert_eq!(records("calm"), records("torn"));
}

#[test]
fn the_best_round_by_validation_is_exported_also_by_a_run_that_was_killed() {
    let desk = Desk::new();
    let best = ["validation.per_class=3", "federated.export=best", "federated.rounds=12"];
    let arguments = |dir: &'static str| -> Vec<&'static str> {
        let changes = best.iter().copied().chain([dir]);
        ["run", "c.toml"].into_iter().chain(changes.flat_map(|change| ["--set", change])).collect()
    };
    desk.ok(&arguments("run.dir=calm"));
    assert!(kill_at(&desk, &arguments("run.dir=torn"), "torn/checkpoints/round-000007"), "the run was too quick");
    desk.ok(&arguments("run.dir=torn"));
    let text = std::fs::read_to_string(desk.path("calm/metrics.jsonl")).unwrap();
    assert_eq!(text, std::fs::read_to_string(desk.path("torn/metrics.jsonl")).unwrap());
    let records: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let eval = desk.json("calm/eval.json");
    for stage in ["finetune", "align"] {
        assert_eq!(desk.digest("calm", stage), desk.digest("torn", stage), "{stage}");
        let of = |r: &&Value| r["stage"] == stage && r["split"] == "validation";
        let judged: Vec<f64> = records.iter().filter(of).map(|r| r["accuracy"].as_f64().unwrap()).collect();
        assert_eq!(judged.len(), 12);
        let highest = judged.iter().copied().fold(0.0, f64::max);
        let first = 1 + judged.iter().position(|a| *a == highest).unwrap();
        assert_eq!(desk.json(&format!("calm/{stage}/done.json"))["facts"]["exported"], first, "{stage}: {judged:?}");
        assert_eq!(eval["stages"][stage]["validation"]["overall"].as_f64(), Some(highest), "{stage}");
    }
    let output = desk.run(&["run", "c.toml", "--set", "federated.export=best", "--set", "run.dir=none"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("validation.per_class"), "{}", err(&output));
}

#[cfg(unix)]
#[test]
fn a_signal_stops_cleanly_and_says_how_to_go_on() {
    let desk = Desk::new();
    let mut child = desk
        .command(&["run", "c.toml", "--set", "federated.rounds=100000", "--set", "federated.eval_every=1000"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while !desk.path("runs/c/seed-7/checkpoints").exists() && began.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-USR1", &pid]).status().unwrap().success());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(75));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut text).unwrap();
    assert!(text.contains("fedllava resume runs/c/seed-7"), "{text}");
    assert_eq!(desk.json("runs/c/seed-7/manifest.json")["state"], "stopped");
}

#[test]
fn without_the_demos_clip_there_is_an_error_and_no_table() {
    let desk = Desk::new();
    let output = desk.run(&["run", "c.toml", "--set", "clip.path=data/nowhere"]);
    assert_ne!(output.status.code(), Some(0));
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(err(&output).contains("data/nowhere"), "{}", err(&output));
}

#[test]
fn typos_and_names_from_other_tools_are_answered() {
    let desk = Desk::new();
    let typo = desk.run(&["run", "c.toml", "--set", "federated.round=3"]);
    assert_eq!(typo.status.code(), Some(2));
    assert!(err(&typo).contains("did you mean `rounds`?"), "{}", err(&typo));
    let pfllib = desk.run(&["run", "c.toml", "-jr", "0.4"]);
    assert_eq!(pfllib.status.code(), Some(2));
    assert!(err(&pfllib).contains("federated.cohort"), "{}", err(&pfllib));
    let cuda = desk.run(&["run", "c.toml", "--device", "cuda:7"]);
    assert_eq!(cuda.status.code(), Some(4));
}

#[test]
fn another_configuration_in_the_same_directory_is_refused() {
    let desk = Desk::new();
    desk.ok(&["split", "c.toml"]);
    desk.ok(&["pretrain", "c.toml"]);
    let output = desk.run(&["run", "c.toml", "--set", "federated.cohort=2"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("federated.cohort: 3 there, 2 asked"), "{}", err(&output));
    desk.ok(&["run", "c.toml", "--set", "run.seed=8"]);
}

#[test]
fn an_exported_split_runs_to_the_same_model() {
    let desk = Desk::new();
    let drawn: Value = serde_json::from_str(&desk.ok(&["split", "c.toml", "--json"])).unwrap();
    assert_eq!(drawn["counts"].as_array().unwrap().len(), 6);
    desk.ok(&["split", "export", "c.toml", "split.json"]);
    let toml = desk.ok(&["split", "import", "c.toml", "split.json"]);
    assert!(toml.contains("kind = \"file\""), "{toml}");
    let plain = ["--set", "pretrain.enabled=false", "--set", "align.enabled=false"];
    let mut own = vec!["finetune", "c.toml", "--set", "run.dir=own"];
    own.extend(plain);
    desk.ok(&own);
    let file = r#"partition={kind="file", path="split.json", clients=6}"#;
    let mut theirs = vec!["finetune", "c.toml", "--set", "run.dir=theirs", "--set", file];
    theirs.extend(plain);
    desk.ok(&theirs);
    assert_eq!(desk.digest("own", "finetune"), desk.digest("theirs", "finetune"));
}

#[test]
fn reports_of_one_run_and_of_many_have_one_schema_and_compare_ends_in_a_sentence() {
    let desk = Desk::new();
    for (arm, kind) in [("a", "fedavg\""), ("b", "fedprox\", mu = 0.0")] {
        for seed in ["1", "2"] {
            let set = [
                format!("run.dir=r/{arm}/seed-{seed}"),
                format!("run.seed={seed}"),
                format!("algorithm={{kind=\"{kind}}}"),
            ];
            let mut arguments =
                vec!["run", "c.toml", "--set", "pretrain.enabled=false", "--set", "align.enabled=false"];
            set.iter().for_each(|s| arguments.extend(["--set", s]));
            desk.ok(&arguments);
        }
    }
    let json = |arguments: &[&str]| serde_json::from_str::<Value>(&desk.ok(arguments)).unwrap();
    let (many, one) = (json(&["report", "r", "--json"]), json(&["report", "r/a/seed-1", "--format", "json"]));
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!((keys(&many), keys(&many["rows"][0])), (keys(&one), keys(&one["rows"][0])));
    let rows = many["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "equal numbers of another method stay a row");
    assert_eq!(rows[0]["figures"]["overall"], rows[1]["figures"]["overall"], "FedProx with mu = 0 is FedAvg");
    assert_eq!(
        (rows[1]["differs"]["algorithm.mu"].as_str(), &rows[0]["last_rounds"][0]),
        (Some("0.0"), &Value::from(6))
    );
    let table = desk.ok(&["report", "r", "--wide"]);
    assert!(table.contains("last 6 rounds") && table.contains("algorithm.mu") && table.contains("fedprox"), "{table}");
    let said = desk.ok(&["compare", "r/b", "r/a"]);
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("b over a by 0.0 ± 0.0 points of accuracy (final model), 2 seeds"), "{said}");
    assert!(last.ends_with("so this may be noise.") && said.contains("test images of its own"), "{said}");
    assert!(desk.ok(&["report", "r", "--format", "latex"]).contains("\\toprule"));
    assert!(desk.ok(&["report", "r", "--format", "csv"]).starts_with("run,stage,"));
    assert!(desk.ok(&["report", "r", "--per-class"]).contains("| many"));
    assert!(desk.ok(&["report", "r/a", "--per-client"]).contains("label distribution"));
    desk.ok(&["report", "r", "--figures", "f", "--curve", "run.seed"]);
    let typo = desk.run(&["report", "r", "--figures", "f", "--curve", "algorithm.mi"]);
    assert!(typo.status.code() == Some(2) && err(&typo).contains("did you mean `algorithm.mu`?"), "{}", err(&typo));
    std::fs::remove_file(desk.path("r/a/seed-2/eval.json")).unwrap();
    let lacking = desk.run(&["report", "r"]);
    assert!(err(&lacking).contains("unfinished runs: 1: r/a/seed-2"), "{}", err(&lacking));
    assert!(String::from_utf8_lossy(&lacking.stdout).contains("Seed 2 missing: a"), "a missing seed is named");
}
