//! More rounds go on where a finished run stopped, and what starts badly leaves nothing behind.

use std::path::Path;

use serde_json::Value;

use crate::cli::{Desk, err};

/// Every file below a folder that equal runs share, with its bytes.
fn bytes(folder: &Path) -> Vec<(String, Vec<u8>)> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<(String, Vec<u8>)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if path.is_dir() {
                walk(root, &path, found);
            } else if !["times.jsonl", "manifest.json", ".lock", "config.toml"].contains(&name.as_str()) {
                found.push((name, std::fs::read(&path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found);
    found.sort();
    found
}

/// Runs with `short` rounds, then `long`, and the same at once: the same files.
fn extends(desk: &Desk, name: &str, set: &[&str]) {
    let run = |dir: &str, rounds: usize| {
        let (dir, rounds) = (format!("run.dir={dir}"), format!("federated.rounds={rounds}"));
        let mut all = vec!["run", "c.toml", "--set", &dir, "--set", &rounds];
        set.iter().for_each(|item| all.extend(["--set", item]));
        desk.ok(&all);
    };
    let (grown, whole) = (format!("{name}-grown"), format!("{name}-whole"));
    run(&grown, 12);
    let before = bytes(&desk.path(&grown));
    run(&grown, 24);
    run(&whole, 24);
    let (grown, whole) = (bytes(&desk.path(&grown)), bytes(&desk.path(&whole)));
    assert_ne!(before, grown);
    let names = |all: &[(String, Vec<u8>)]| all.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&grown), names(&whole), "{name}");
    for (a, b) in grown.iter().zip(&whole) {
        assert!(
            a == b,
            "{name}: {} differs:\n{}\n{}",
            a.0,
            String::from_utf8_lossy(&a.1),
            String::from_utf8_lossy(&b.1)
        );
    }
}

#[test]
fn a_finished_run_goes_on_with_more_rounds_to_the_bytes_of_a_longer_one() {
    let desk = Desk::new();
    let sparse = ["federated.eval_every=5", "federated.checkpoint_every=5"];
    extends(&desk, "end", &[&sparse[..], &["align.when=end", "pretrain.epochs=1"]].concat());
    extends(
        &desk,
        "every",
        &[&sparse[..], &["align.when=every-round", "align.feedback=true", "pretrain.enabled=false"]].concat(),
    );
    let scaffold = ["algorithm.kind=scaffold", "pretrain.enabled=false", "align.enabled=false"];
    extends(&desk, "scaffold", &[&sparse[..], &scaffold].concat());
    let local = ["federated.mode=local", "pretrain.enabled=false", "align.enabled=false"];
    extends(&desk, "local", &local);
}

#[test]
fn what_was_done_by_the_number_of_rounds_is_named_and_nothing_is_touched() {
    let desk = Desk::new();
    let plain = ["--set", "pretrain.enabled=false", "--set", "align.enabled=false", "--set", "algorithm.kind=ccvr"];
    let run = |rounds: &str, more: &[&str]| {
        desk.run(
            &[&["finetune", "c.toml", "--set", rounds, "--set", "federated.eval_every=5"], &plain[..], more].concat(),
        )
    };
    assert!(run("federated.rounds=2", &[]).status.success());
    let before = bytes(&desk.path("runs/c/seed-7"));
    let longer = run("federated.rounds=4", &[]);
    assert_eq!(longer.status.code(), Some(2));
    assert!(err(&longer).contains("federated.rounds cannot grow"), "{}", err(&longer));
    assert_eq!(before, bytes(&desk.path("runs/c/seed-7")));
    assert_eq!(desk.json("runs/c/seed-7/manifest.json")["state"], "done");
    assert!(run("federated.rounds=2", &[]).status.success(), "it is still the run that it was");
    assert!(run("federated.rounds=1", &[]).status.code() == Some(2), "fewer rounds are another run");
}

#[test]
fn a_run_that_exported_its_best_round_grows_only_where_every_round_was_judged() {
    let desk = Desk::new();
    let best = ["federated.export=best", "validation.per_class=2", "pretrain.enabled=false", "align.enabled=false"];
    extends(&desk, "best", &[&best[..], &["federated.eval_every=1"]].concat());
    let run = |rounds: &str| {
        let mut all = vec!["finetune", "c.toml", "--set", rounds, "--set", "federated.eval_every=5"];
        best.iter().for_each(|item| all.extend(["--set", item]));
        desk.run(&all)
    };
    assert!(run("federated.rounds=2").status.success());
    let before = bytes(&desk.path("runs/c/seed-7"));
    let longer = run("federated.rounds=4");
    assert_eq!(longer.status.code(), Some(2), "{}", err(&longer));
    assert!(err(&longer).contains("cannot grow: federated.export"), "{}", err(&longer));
    assert_eq!(before, bytes(&desk.path("runs/c/seed-7")));
}

#[test]
fn a_failed_start_leaves_nothing_and_the_corrected_command_runs() {
    let desk = Desk::new();
    let folder = "data={kind=\"folder\", path=\"nowhere\"}";
    for wrong in
        [folder, "federated.local_epochs=0", "pool={kind=\"folder\", path=\"nowhere\"}", "finetune.from=nowhere"]
    {
        let output = desk.run(&["run", "c.toml", "--set", wrong]);
        assert_eq!(output.status.code(), Some(2), "{wrong}: {}", err(&output));
        assert!(!desk.path("runs").exists(), "{wrong} left a directory");
    }
    let output = desk.run(&["run", "c.toml", "--set", folder, "--set", "pretrain.enabled=false"]);
    assert!(
        err(&output).contains("data.path: nowhere does not exist") && err(&output).contains("^^^"),
        "{}",
        err(&output)
    );
    // A mistake that only reading finds: the shots do not fit the classes.
    let output = desk.run(&["run", "c.toml", "--set", "evaluate.shots=rank:1/1/1"]);
    assert_ne!(output.status.code(), Some(0));
    assert!(!desk.path("runs").exists(), "{}", err(&output));
    desk.ok(&["run", "c.toml", "--set", "federated.rounds=1"]);
}

#[test]
fn an_experiment_goes_on_as_a_whole_with_its_arms_and_seeds() {
    let desk = Desk::new();
    let text = std::fs::read_to_string(desk.path("c.toml")).unwrap();
    let arms = "[[arms]]\nname = \"a\"\n[[arms]]\nname = \"b\"\nset = { federated.cohort = 2 }\n";
    std::fs::write(desk.path("e.toml"), text + arms).unwrap();
    let quick = ["--set", "federated.rounds=1", "--set", "pretrain.enabled=false", "--set", "align.enabled=false"];
    for seed in ["run.seed=7", "run.seed=8"] {
        desk.ok(&[&["run", "e.toml", "--set", seed], &quick[..]].concat());
    }
    let digests = |desk: &Desk| {
        ["a", "b"].map(|arm| ["7", "8"].map(|s| desk.digest(&format!("runs/e/{arm}/seed-{s}"), "finetune")))
    };
    let before = digests(&desk);
    assert_eq!(desk.json("runs/e/experiment.json")["seeds"], serde_json::json!([7, 8]));
    // Of two seeds begun at once the file may know one; the folders know both.
    std::fs::write(desk.path("runs/e/experiment.json"), r#"{ "arms": ["a", "b"], "seeds": [8] }"#).unwrap();
    std::fs::remove_dir_all(desk.path("runs/e/b")).unwrap();
    std::fs::remove_file(desk.path("runs/e/a/seed-8/eval.json")).unwrap();
    desk.ok(&["resume", "runs/e"]);
    assert_eq!(before, digests(&desk));
    assert!(desk.path("runs/e/a/seed-8/eval.json").exists());
    let broken = desk.run(&["run", "e.toml", "--set", "finetune.from=nowhere", "--set", "run.dir=runs/new"]);
    assert!(!broken.status.success() && !desk.path("runs/new").exists(), "{}", err(&broken));
}

#[test]
fn a_seed_of_its_own_fixes_the_split_while_the_run_s_moves_everything_else() {
    let desk = Desk::new();
    let split = |set: &[&str]| -> Value {
        let items: Vec<&str> = set.iter().flat_map(|s| ["--set", *s]).collect();
        serde_json::from_str(&desk.ok(&[&["split", "c.toml", "--json"], &items[..]].concat())).unwrap()
    };
    let (plain, same) = (split(&[]), split(&["run.split_seed=7"]));
    assert_eq!(plain, same, "without one it follows run.seed");
    assert_eq!(split(&["run.seed=8", "run.split_seed=7"]), plain);
    assert_ne!(split(&["run.seed=8"]), plain);
    assert_ne!(split(&["run.split_seed=8"]), plain);
    let plain = ["--set", "pretrain.enabled=false", "--set", "align.enabled=false", "--set", "run.split_seed=7"];
    for seed in ["run.seed=7", "run.seed=8"] {
        desk.ok(&[&["finetune", "c.toml", "--set", seed, "--set", "federated.rounds=1"], &plain[..]].concat());
    }
    assert_ne!(desk.digest("runs/c/seed-7", "finetune"), desk.digest("runs/c/seed-8", "finetune"));
}

#[test]
fn a_run_that_an_earlier_version_began_is_gone_on_with() {
    let desk = Desk::new();
    desk.ok(&["pretrain", "c.toml"]);
    let file = desk.path("runs/c/seed-7/config.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let old: String = text.lines().filter(|l| !l.starts_with("tau_norm")).map(|l| format!("{l}\n")).collect();
    assert_ne!(old, text);
    std::fs::write(&file, old).unwrap();
    desk.ok(&["run", "c.toml"]);
}
