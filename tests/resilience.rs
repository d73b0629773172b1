//! Signals from the first moment on, limits of the system, a disk that cannot be written to, and a process that ends
//! between a stage and its place in the cache.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::sweep::{CONFIG, Desk, err};

/// One run of seconds.
fn one() -> String {
    CONFIG.split("[sweep]").next().unwrap().replace("rounds = 4", "rounds = 2").replace("width = 4", "width = 2")
}

/// Whether a signal is in a mask of a process (`SigCgt:`, `SigIgn:`), as Linux's table has it; none once it is gone.
fn is_in(mask: &str, pid: u32, signal: u32) -> Option<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(mask))?;
    Some(u64::from_str_radix(line.trim(), 16).ok()? >> (signal - 1) & 1 == 1)
}

/// Whether a process hears a signal, or has it ignored; none once it is gone.
fn hears(pid: u32, signal: u32) -> Option<bool> {
    Some(is_in("SigCgt:", pid, signal)? || is_in("SigIgn:", pid, signal)?)
}

/// Sends a signal the moment that it is heard; gives the exit code.
fn at_once(mut child: Child, name: &str, number: u32) -> Option<i32> {
    let began = Instant::now();
    while hears(child.id(), number) == Some(false) {
        assert!(began.elapsed() < Duration::from_secs(60), "{name} is never heard");
    }
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
    child.wait().unwrap().code()
}

/// What comes before, the system's and the loader's work, is nobody's to change: about a millisecond.
#[test]
fn from_the_moment_that_a_signal_is_heard_no_process_dies_of_it() {
    let desk = Desk::new(&one());
    for (name, number) in [("-TERM", 15), ("-INT", 2), ("-HUP", 1), ("-USR1", 10)] {
        // `nohup` has a process ignore SIGHUP, a shell's `&` SIGINT, and so have its children: until they ask for it.
        let ignored = is_in("SigIgn:", std::process::id(), number).unwrap();
        for i in 0..15 {
            let dir = format!("run.dir=r{number}-{i}");
            let mut command = desk.command(&["run", "s.toml", "--set", &dir]);
            let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let code = at_once(child, name, number);
            assert!(code == Some(75) || ignored && code == Some(0), "{name}, try {i}: {code:?}");
        }
    }
}

fn shell(desk: &Desk, limit: &str, arguments: &str) -> Output {
    let line = format!("{limit}; exec {:?} {arguments}", env!("CARGO_BIN_EXE_fedllava"));
    Command::new("sh").args(["-c", &line]).current_dir(desk.0.path()).output().unwrap()
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false if path.ends_with("times.jsonl") => {}
                false => {
                    found.push((path.strip_prefix(dir).unwrap().display().to_string(), std::fs::read(&path).unwrap()))
                }
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_with_the_files_name_and_the_same_command_ends_with_the_same_bytes() {
    let desk = Desk::new(&one());
    desk.ok(&["run", "s.toml", "--set", "run.dir=whole"]);
    let mut hit = 0;
    // In blocks of 512 bytes.
    for blocks in [0, 1, 4, 8, 16, 20] {
        let (dir, arguments) = (format!("cut{blocks}"), format!("run s.toml --set run.dir=cut{blocks}"));
        let output = shell(&desk, &format!("ulimit -f {blocks}"), &arguments);
        if !output.status.success() {
            let said = err(&output);
            assert!(output.status.code() == Some(4) && said.contains("File too large"), "{blocks}: {said}");
            assert!(said.contains(&dir) || said.contains("runs/cache"), "{blocks}: no file is named: {said}");
            hit += 1;
        }
        desk.ok(&["run", "s.toml", "--set", &format!("run.dir={dir}")]);
        let [own, whole] = [dir.as_str(), "whole"].map(|d| files(&desk.path(d)));
        for (mine, other) in own.iter().zip(&whole) {
            let free = ["config.toml", "manifest.json"].contains(&mine.0.as_str());
            assert!(mine.0 == other.0 && (free || mine.1 == other.1), "{blocks}: {} or {} differs", mine.0, other.0);
        }
        assert_eq!(own.len(), whole.len());
    }
    assert!(hit >= 4, "{hit}");
}

/// A folder that is mounted onto itself without leave to write.
struct ReadOnly<'a>(&'a Path);

impl<'a> ReadOnly<'a> {
    fn new(path: &'a Path) -> Option<Self> {
        let mount =
            |args: &[&str]| Command::new("mount").args(args).arg(path).output().is_ok_and(|o| o.status.success());
        let text = path.to_str().unwrap();
        if !mount(&["--bind", text]) {
            return None;
        }
        let own = ReadOnly(path);
        mount(&["-o", "remount,bind,ro"]).then_some(own)
    }
}

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
fn a_finished_run_on_a_disk_that_cannot_be_written_to_is_shown_and_another_is_refused() {
    let arms = one() + "[[arms]]\nname = \"a\"\n[[arms]]\nname = \"b\"\nset = { federated.rounds = 1 }\n";
    let desk = Desk::new(&one());
    std::fs::write(desk.path("arms.toml"), arms).unwrap();
    let shown = desk.ok(&["run", "s.toml", "--set", "run.dir=d/r"]);
    let of_arms = desk.ok(&["run", "arms.toml", "--set", "run.dir=d/arms"]);
    let folder = desk.path("d");
    let Some(_mounted) = ReadOnly::new(&folder) else {
        return eprintln!("skipped: nothing may be mounted here");
    };
    assert_eq!(desk.ok(&["run", "s.toml", "--set", "run.dir=d/r"]), shown);
    assert_eq!(desk.ok(&["run", "arms.toml", "--set", "run.dir=d/arms"]), of_arms);
    assert_eq!(desk.ok(&["resume", "d/r"]), shown);
    let other = desk.run(&["run", "s.toml", "--set", "run.dir=d/r", "--set", "run.seed=9"]);
    assert!(other.status.code() == Some(2) && err(&other).contains("run.seed: 7 there, 9 asked"), "{}", err(&other));
    let new = desk.run(&["run", "s.toml", "--set", "run.dir=d/new"]);
    assert!(new.status.code() == Some(4) && err(&new).contains("d/new"), "{}", err(&new));
}

/// As a process leaves it that is killed when `finetune` is done and not yet in the cache.
#[test]
fn a_stage_whose_process_was_killed_before_it_was_kept_is_kept_by_the_next_one() {
    let desk = Desk::new(&one());
    let run = || desk.ok(&["run", "s.toml", "--set", "run.dir=r", "--set", "run.share=true", "--set", "run.cache=c"]);
    run();
    let kept =
        || std::fs::read_dir(desk.path("c/finetune")).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
    let [name]: [std::ffi::OsString; 1] = kept().try_into().unwrap();
    let (before, name) = (files(&desk.path("c")), name.into_string().unwrap());
    let back_to = |mark: &str| {
        std::fs::remove_dir_all(desk.path("c/finetune").join(&name)).unwrap();
        std::fs::remove_file(desk.path("r/eval.json")).unwrap();
        std::fs::write(desk.path("r/.keep-finetune"), mark).unwrap();
    };
    back_to(&name);
    run();
    assert_eq!(files(&desk.path("c")), before);
    assert!(!desk.path("r/.keep-finetune").exists());
    // What another program, or this one with other inputs, began is not kept as this one's.
    back_to("000000000000000000000000");
    run();
    assert!(kept().is_empty() && !desk.path("r/.keep-finetune").exists());
}

#[test]
fn a_run_whose_folder_is_moved_while_it_goes_on_ends_and_makes_no_half_of_it_and_the_moved_one_goes_on() {
    let desk = Desk::new(&one().replace("rounds = 2", "rounds = 60"));
    desk.ok(&["run", "s.toml", "--set", "run.dir=whole"]);
    let child = desk.command(&["run", "s.toml", "--set", "run.dir=r"]).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while std::fs::read_dir(desk.path("r/checkpoints")).map_or(0, Iterator::count) < 2 {
        assert!(began.elapsed() < Duration::from_secs(180), "no second checkpoint");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::fs::rename(desk.path("r"), desk.path("moved")).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", err(&output));
    assert!(err(&output).contains("moved or removed while the run went on"), "{}", err(&output));
    assert!(!desk.path("r/eval.json").exists() && !desk.path("r/manifest.json").exists());
    desk.ok(&["run", "s.toml", "--set", "run.dir=moved"]);
    let of = |dir: &str| std::fs::read(desk.path(dir).join("finetune/model.safetensors")).unwrap();
    assert_eq!(of("moved"), of("whole"));
}

/// The weight of the text is 0 at first: without λ the first step has no gradient.
#[test]
fn pretraining_without_the_image_term_runs_and_without_either_term_is_refused() {
    let desk = crate::cli::Desk::new();
    let run = |more: &[&str]| {
        let all = ["pretrain", "c.toml", "--set", "pretrain.epochs=1", "--set", "pretrain.lambda=0", "--set"];
        desk.run(&[&all[..], more].concat())
    };
    let alone = run(&["run.dir=a"]);
    assert!(alone.status.success(), "{}", err(&alone));
    let none = run(&["run.dir=b", "--set", "pretrain.text=false"]);
    assert!(none.status.code() == Some(2) && err(&none).contains("nothing would be learned"), "{}", err(&none));
}
