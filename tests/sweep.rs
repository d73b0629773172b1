//! Sweeps as a person meets them: a dozen runs of seconds on the procedural world.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A dozen runs of seconds.
pub const CONFIG: &str = r#"
[data]
kind = "world"
pool_images = 8
train_per_class = 24
test_per_class = 6
[longtail]
imbalance = 4
[partition]
kind = "dirichlet"
clients = 6
min_size = 2
[server_set]
per_class = 0
[validation]
per_class = 2
[model]
kind = "resnet8"
width = 4
[pretrain]
enabled = false
[align]
enabled = false
[federated]
rounds = 4
cohort = 3
local_epochs = 1
batch_size = 8
checkpoint_every = 1
[evaluate]
shots = "rank:3/4/3"
overlaps = false
[sweep]
seeds = [1, 2]
methods = ["fedavg", "fedprox"]
cross = { longtail.imbalance = [2, 4] }
skip = [{ algorithm.kind = "fedprox", longtail.imbalance = 2 }]
"#;

/// A folder with a sweep's config, and the program in it.
pub struct Desk(pub TempDir);

impl Desk {
    pub fn new(config: &str) -> Desk {
        let desk = Desk(tempfile::tempdir().unwrap());
        std::fs::write(desk.path("s.toml"), config).unwrap();
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

    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn wait_for(&self, name: &str) {
        let began = Instant::now();
        while !self.path(name).exists() {
            assert!(began.elapsed() < Duration::from_secs(180), "{name} does not come");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// `(run, state)` of every run.
    fn states(&self) -> Vec<(String, String)> {
        let status: Value = serde_json::from_str(&self.ok(&["sweep", "status", "s.toml", "--json"])).unwrap();
        let text = |v: &Value| v.as_str().unwrap().to_string();
        status["runs"].as_array().unwrap().iter().map(|r| (text(&r["run"]), text(&r["state"]))).collect()
    }

    fn digest(&self, run: &str) -> String {
        let text = std::fs::read_to_string(self.path(run).join("finetune/done.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["digest"].as_str().unwrap().to_string()
    }
}

/// What it said.
pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const FIRST: &str = "runs/s/fedavg,imbalance=2/seed-1";
const RUNS: [&str; 6] = [
    FIRST,
    "runs/s/fedavg,imbalance=2/seed-2",
    "runs/s/fedavg,imbalance=4/seed-1",
    "runs/s/fedavg,imbalance=4/seed-2",
    "runs/s/fedprox,imbalance=4/seed-1",
    "runs/s/fedprox,imbalance=4/seed-2",
];

#[test]
fn a_sweep_that_was_killed_and_run_by_two_processes_has_the_bytes_of_single_runs() {
    let desk = Desk::new(CONFIG);
    let plan = desk.run(&["sweep", "s.toml", "--plan"]);
    let lines = String::from_utf8(plan.stdout.clone()).unwrap();
    assert_eq!(lines.lines().count(), 6, "{lines}");
    assert!(err(&plan).contains("6 runs, 2 left out by sweep.skip"), "{}", err(&plan));
    let some = desk.run(&["sweep", "s.toml", "--plan", "--only", "seed-2"]);
    let some = String::from_utf8(some.stdout).unwrap();
    assert!(some.lines().count() == 3 && some.lines().all(|l| lines.contains(l) && l.contains("seed-2")), "{some}");
    assert!(!desk.path("runs").exists(), "a plan writes nothing");
    let mut child = desk.start(&["sweep", "s.toml", "--threads", "1"]);
    desk.wait_for(&format!("{FIRST}/checkpoints/round-000002"));
    child.kill().unwrap();
    child.wait().unwrap();
    let states = desk.states();
    assert_eq!(states.len(), 6);
    assert!(states.iter().all(|(_, s)| s != "running"), "a killed process holds nothing: {states:?}");
    let mut other = desk.start(&["sweep", "s.toml", "--threads", "1"]);
    let output = desk.run(&["sweep", "s.toml", "--jobs", "2", "--threads", "2"]);
    assert!(output.status.success(), "{}", err(&output));
    assert!(other.wait().unwrap().success());
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("fedprox") && table.contains("imbalance"), "{table}");
    assert!(desk.states().iter().all(|(_, s)| s == "done"));
    // The run of a sweep is the run of its own config.
    for run in RUNS {
        let config = format!("{run}/config.toml");
        desk.ok(&["run", &config, "--set", "run.dir=alone", "--threads", "1"]);
        assert_eq!(desk.digest(run), desk.digest("alone"), "{run}");
        std::fs::remove_dir_all(desk.path("alone")).unwrap();
    }
    let again = desk.run(&["sweep", "s.toml"]);
    assert!(err(&again).contains("0 runs done now, 6 before, 0 failed, of 6"), "{}", err(&again));
}

#[test]
fn a_failed_run_keeps_no_other_from_being_done_and_is_tried_again() {
    // A network whose second kind cannot be built on these images.
    let broken = CONFIG.replace("cross = { longtail.imbalance = [2, 4] }", "cross = { federated.cohort = [2, 99] }");
    let broken = broken.lines().filter(|l| !l.starts_with("skip")).collect::<Vec<_>>().join("\n");
    let desk = Desk::new(&broken);
    let output = desk.run(&["sweep", "s.toml", "--only", "fedavg"]);
    assert_eq!(output.status.code(), Some(2), "a plan with an impossible run is refused whole");
    assert!(err(&output).contains("cohort") && !desk.path("runs").exists(), "{}", err(&output));
    // What shows only while it runs: another configuration in one run's place.
    let desk = Desk::new(CONFIG);
    std::fs::write(desk.path("one.toml"), CONFIG.split("[sweep]").next().unwrap()).unwrap();
    desk.ok(&["run", "one.toml", "--set", &format!("run.dir={}", RUNS[1]), "--set", "run.seed=9"]);
    let output = desk.run(&["sweep", "s.toml", "--only", "fedavg,imbalance=2"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("1 runs done now, 0 before, 1 failed"), "{}", err(&output));
    assert!(err(&output).contains("another configuration"), "{}", err(&output));
    let refused = desk.run(&["run", "s.toml"]);
    assert!(refused.status.code() == Some(2) && err(&refused).contains("fedllava sweep s.toml"), "{}", err(&refused));
    assert_eq!(desk.states()[0].1, "done");
}

#[test]
fn recorded_runs_count_as_done_under_the_same_config_only() {
    let desk = Desk::new(CONFIG);
    desk.ok(&["sweep", "s.toml", "--only", "fedprox"]);
    let text = desk.ok(&["sweep", "s.toml", "--record", "kept"]);
    assert!(text.contains("2 records in kept; 4 runs are not finished"), "{text}");
    std::fs::remove_dir_all(desk.path("runs")).unwrap();
    let records = format!("{CONFIG}records = \"kept\"\n");
    std::fs::write(desk.path("s.toml"), &records).unwrap();
    let done = |desk: &Desk| desk.states().iter().filter(|(_, s)| s == "done").count();
    assert_eq!(done(&desk), 2);
    let table = desk.ok(&["sweep", "s.toml", "--only", "fedprox"]);
    assert!(table.contains("fedprox") && !desk.path(&format!("{}/finetune", RUNS[4])).exists(), "{table}");
    std::fs::write(desk.path("s.toml"), records.replace("batch_size = 8", "batch_size = 4")).unwrap();
    assert_eq!(done(&desk), 0, "another config has no record");
}

#[test]
fn a_knob_is_chosen_by_validation_for_each_seed_and_only_its_run_is_shown() {
    let knobs = "select_by = \"validation\"\nknobs = { federated.optimiser.lr = [0.000001, 0.1] }\n";
    let text = CONFIG
        .replace("cross = { longtail.imbalance = [2, 4] }\n", "")
        .replace("[\"fedavg\", \"fedprox\"]", "[\"fedavg\"]");
    let text: String = text.lines().filter(|l| !l.starts_with("skip")).map(|l| format!("{l}\n")).collect();
    let desk = Desk::new(&format!("{text}{knobs}"));
    let output = desk.run(&["sweep", "s.toml", "--format", "json"]);
    assert!(output.status.success(), "{}", err(&output));
    let rows: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(desk.path("runs/s/selected.json")).unwrap()).unwrap();
    assert_eq!(rows.len(), 2);
    for row in &rows {
        let tried: Vec<f64> =
            row["tried"].as_array().unwrap().iter().map(|t| t["validation"].as_f64().unwrap()).collect();
        let best = row["tried"].as_array().unwrap().iter().position(|t| t["knob"] == row["knob"]).unwrap();
        assert!(tried.iter().take(best).all(|a| *a < tried[best]) && tried.iter().all(|a| *a <= tried[best]), "{row}");
        assert!(err(&output).contains(&format!("seed {}: ", row["seed"])), "{}", err(&output));
    }
}

/// Writes an executable script.
fn script(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn the_array_script_runs_its_run_and_puts_a_stopped_one_back() {
    let desk = Desk::new(CONFIG);
    script(&desk.path("srun"), "#!/bin/bash\nexec \"$@\"\n");
    script(&desk.path("scontrol"), "#!/bin/bash\necho \"$@\" >> requeued\n");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_fedllava"), desk.path("fedllava")).unwrap();
    std::fs::write(desk.path("job.sh"), desk.ok(&["sweep", "s.toml", "--slurm", "--set", "federated.rounds=300"]))
        .unwrap();
    let task = |number: &str| {
        let path = format!("{}:{}", desk.0.path().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command.current_dir(desk.0.path()).arg("job.sh").env("PATH", path).env("SLURM_CPUS_PER_TASK", "1");
        command.env("SLURM_ARRAY_TASK_ID", number).env("SLURM_ARRAY_JOB_ID", "77").env_remove("FEDLLAVA_DATA");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let mut child = task("4").spawn().unwrap();
    desk.wait_for(&format!("{}/checkpoints", RUNS[4]));
    // srun's child is the program: the signal goes to all of the task, as Slurm sends it to srun's step.
    let pids = String::from_utf8(Command::new("pgrep").args(["-P", &child.id().to_string()]).output().unwrap().stdout)
        .unwrap();
    for pid in pids.split_whitespace() {
        assert!(Command::new("kill").args(["-USR1", pid]).status().unwrap().success());
    }
    assert_eq!(child.wait().unwrap().code(), Some(75));
    assert_eq!(std::fs::read_to_string(desk.path("requeued")).unwrap().trim(), "requeue 77_4");
    std::fs::write(desk.path("job.sh"), desk.ok(&["sweep", "s.toml", "--slurm"])).unwrap();
    std::fs::remove_dir_all(desk.path("runs")).unwrap();
    assert!(task("4").status().unwrap().success());
    let done: Vec<String> = desk.states().into_iter().filter(|(_, s)| s == "done").map(|(n, _)| n).collect();
    assert_eq!(done, ["fedprox,imbalance=4/seed-1"]);
}
