//! A run on several processes by real `mpirun`: the bytes of one process, ranks that die or are stopped, exit codes.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::cli::Desk;

/// Three leaves of clients.
const FEDERATION: [&str; 8] = [
    "data.train_per_class=48",
    "partition.clients=44",
    "partition.min_size=1",
    "longtail.imbalance=1",
    "federated.cohort=40",
    "pretrain.enabled=false",
    "align.enabled=false",
    "run.threads=1",
];

/// A launcher, with what makes it take more processes than cores.
struct Launcher(Vec<&'static str>);

/// The launcher of this machine, where the binary can use it.
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
fn launcher() -> Option<Launcher> {
    let version = Command::new("mpirun").arg("--version").output();
    match version {
        _ if !cfg!(feature = "mpi") => eprintln!("skipped: built without the feature mpi"),
        Err(_) => eprintln!("skipped: no mpirun"),
        Ok(said) if String::from_utf8_lossy(&said.stdout).contains("Open MPI") => {
            return Some(Launcher(vec!["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]));
        }
        Ok(_) => return Some(Launcher(Vec::new())),
    }
    None
}

impl Launcher {
    fn command(&self, desk: &Desk, ranks: usize, dir: &str, set: &[&str]) -> Command {
        let mut command = Command::new("mpirun");
        command.args(&self.0).args(["-n", &ranks.to_string(), env!("CARGO_BIN_EXE_fedllava"), "run", "c.toml"]);
        let dir = format!("run.dir={dir}");
        FEDERATION.iter().chain(set).chain([&dir.as_str()]).for_each(|item| _ = command.args(["--set", *item]));
        command.current_dir(desk.path(".")).env_remove("FEDLLAVA_DATA");
        command
    }

    fn run(&self, desk: &Desk, ranks: usize, dir: &str, set: &[&str]) -> Output {
        self.command(desk, ranks, dir, set).output().unwrap()
    }

    fn ok(&self, desk: &Desk, ranks: usize, dir: &str, set: &[&str]) -> String {
        let output = self.run(desk, ranks, dir, set);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{ranks} ranks, {set:?}: {:?}\n{said}", output.status);
        said
    }

    fn start(&self, desk: &Desk, ranks: usize, dir: &str, set: &[&str]) -> Child {
        let mut command = self.command(desk, ranks, dir, set);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

/// The run alone, without a launcher.
fn alone(desk: &Desk, dir: &str, set: &[&str]) {
    let dir = format!("run.dir={dir}");
    let mut all = vec!["run", "c.toml"];
    FEDERATION.iter().chain(set).chain([&dir.as_str()]).for_each(|item| all.extend(["--set", *item]));
    desk.ok(&all);
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => files(&path, found),
            path => found.push(path),
        }
    }
}

/// Records, models and what clients keep: names and bytes.
fn left(desk: &Desk, dir: &str) -> Vec<(String, Vec<u8>)> {
    let root = desk.path(dir);
    let mut found = Vec::new();
    ["clients", "checkpoints", "finetune"].iter().for_each(|folder| files(&root.join(folder), &mut found));
    found.push(root.join("metrics.jsonl"));
    found.sort();
    let name = |path: &Path| path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
    found.iter().map(|path| (name(path), std::fs::read(path).unwrap())).collect()
}

fn same(desk: &Desk, a: &str, b: &str) {
    let (a, b) = (left(desk, a), left(desk, b));
    let names = |of: &[(String, Vec<u8>)]| of.iter().map(|f| f.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b));
    a.iter().zip(&b).for_each(|(a, b)| assert!(a.1 == b.1, "{} differs", a.0));
}

#[test]
fn a_run_on_any_number_of_processes_leaves_the_bytes_of_one() {
    let Some(mpi) = launcher() else { return };
    let desk = Desk::new();
    for (name, rounds, set) in [
        ("avg", 3, ["algorithm={kind=\"fedavg\"}", "federated.rounds=3"]),
        ("scaffold", 4, ["algorithm={kind=\"scaffold\"}", "federated.rounds=4"]),
    ] {
        alone(&desk, name, &set);
        for ranks in 1..=4 {
            let dir = format!("{name}-{ranks}");
            let said = mpi.ok(&desk, ranks, &dir, &set);
            same(&desk, &dir, name);
            assert_eq!(said.matches("  loss ").count(), rounds, "rank 0 alone speaks: {said}");
            assert_eq!(said.contains(" ranks: a round of "), ranks > 1, "{said}");
            assert_eq!(said.contains("4 ranks, and a cohort of 40 is 3 leaves"), ranks == 4, "{said}");
        }
    }
}

#[test]
fn what_clients_keep_for_themselves_alignment_and_updates_on_their_way_go_with_ranks() {
    let Some(mpi) = launcher() else { return };
    let desk = Desk::new();
    let way = "federated.way=[{kind=\"clip\"},{kind=\"compress\",share=0.1},{kind=\"robust\",rule=\"norm-bound\"}]";
    for (name, set) in [
        ("local", ["federated.mode=\"local\"", "federated.rounds=2"]),
        ("way", [way, "federated.rounds=3"]),
        ("align", ["align={enabled=true,when=\"every-round\",steps=2}", "federated.rounds=2"]),
    ] {
        alone(&desk, name, &set);
        let dir = format!("{name}-2");
        mpi.ok(&desk, 2, &dir, &set);
        same(&desk, &dir, name);
        let read = |dir: &str| std::fs::read(desk.path(dir).join("personal.json")).ok();
        assert!(read(&dir) == read(name) && read(name).is_some() == (name == "local"));
    }
}

/// The process of a rank of the run in `dir`.
fn process(rank: usize, dir: &Path) -> Option<u32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        let read = |what: &str| std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
        let environ = read("environ");
        let says = |name: &str| environ.split(|b| *b == 0).any(|v| v == format!("{name}={rank}").as_bytes());
        let here = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| dir.starts_with(cwd));
        here && (says("OMPI_COMM_WORLD_RANK") || says("PMI_RANK"))
    })
}

fn signal(pid: u32, signal: i32) {
    // SAFETY: kill takes two numbers and touches no memory of this process.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
}

/// Waits for the run to have done a few of its rounds.
fn under_way(desk: &Desk, dir: &str, child: &mut Child) {
    let (records, began) = (desk.path(dir).join("metrics.jsonl"), Instant::now());
    let rounds = || std::fs::read_to_string(&records).unwrap_or_default().matches("\"train\"").count();
    while rounds() < 2 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before its second round");
        if began.elapsed() > Duration::from_secs(600) {
            child.kill().unwrap();
            panic!("no second round");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn after_the_death_of_a_rank_and_after_a_stop_another_number_of_ranks_goes_on_to_the_same_bytes() {
    let Some(mpi) = launcher() else { return };
    let desk = Desk::new();
    let set = ["algorithm={kind=\"scaffold\"}", "federated.rounds=12", "federated.local_epochs=4"];
    alone(&desk, "whole", &set);
    let mut child = mpi.start(&desk, 3, "broken", &set);
    under_way(&desk, "broken", &mut child);
    signal(process(2, &std::fs::canonicalize(desk.path(".")).unwrap()).expect("rank 2 runs"), libc::SIGKILL);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).to_lowercase()
        + &String::from_utf8_lossy(&output.stdout).to_lowercase();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("rank 2") || said.contains("exit code: 9"), "{said}");
    assert!(!desk.path("broken/eval.json").exists(), "it was killed on its way");

    let mut child = mpi.start(&desk, 2, "broken", &set);
    under_way(&desk, "broken", &mut child);
    std::thread::sleep(Duration::from_millis(300));
    signal(child.id(), libc::SIGTERM);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("stopped on request"), "{said}");
    assert_eq!(desk.json("broken/manifest.json")["state"], "stopped", "{said}");

    mpi.ok(&desk, 4, "broken", &set);
    same(&desk, "broken", "whole");
    mpi.ok(&desk, 2, "broken", &set);
    assert_eq!(desk.json("broken/manifest.json")["state"], "done");
}

#[test]
fn processes_that_cannot_hear_each_other_do_not_do_one_run_each() {
    let desk = Desk::new();
    // What a launcher of another MPI says, and the one that this binary was built with does not confirm.
    let output = desk.command(&["run", "c.toml"]).env("PMI_SIZE", "3").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("started 3 processes, which cannot hear each other"), "{said}");
    assert!(!desk.path("runs").exists());
}

#[test]
fn what_fails_on_any_rank_ends_all_with_its_exit_code() {
    let Some(mpi) = launcher() else { return };
    let desk = Desk::new();
    let code = |set: &[&str]| {
        let output = mpi.run(&desk, 2, "fails", set);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (exit, said) = code(&["federated.rounds=nonsense"]);
    assert_eq!((exit, said.matches("error:").count()), (Some(2), 1), "{said}");
    let (exit, said) = code(&["federated.optimiser={kind=\"sgd\",lr=1e30}"]);
    assert_eq!((exit, said.matches("error:").count()), (Some(2), 1), "{said}");
    assert!(said.contains("training diverged"), "{said}");
    std::fs::write(desk.path("bad.safetensors"), "{").unwrap();
    let (exit, said) = code(&["finetune.from=bad.safetensors"]);
    assert_eq!((exit, said.matches("error:").count()), (Some(3), 1), "{said}");
}
