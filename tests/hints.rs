//! What a hint recommends works: the command is mended as it says, and run.

use crate::cli::{Desk, err};

/// A wrong `--set` item, and the right one by its hint's own words.
const WRONG: [&str; 14] = [
    "federated.round=3",
    "federated.Rounds=3",
    "rounds=3",
    "federated.lr=0.1",
    "align.lr=0.1",
    "num_online_clients=3",
    "federated.fraction-train=3",
    "algorithm.kind=FedAvg",
    "algorithm.kind=fedprx",
    "algorithm=FedProx",
    "algorithm.mu=0.1",
    "federated.rounds=3.0",
    "align.enabled=True",
    "evaluate.overlap=false",
];

/// The items that a hint makes of a wrong one.
fn mended(item: &str, hint: &str) -> Vec<String> {
    let (key, value) = item.split_once('=').unwrap();
    let word = |text: &str| text.split([' ', ',', '`']).find(|w| !w.is_empty()).unwrap().to_string();
    if let Some((_, rest)) = hint.split_once("is here ") {
        return vec![format!("{}={value}", word(rest))];
    }
    if let Some((_, rest)) = hint.split_once("did you mean `") {
        let name = word(rest);
        return match (hint_is_value(item), name.contains('.'), key.rsplit_once('.')) {
            (true, ..) => vec![format!("{key}={name}")],
            (_, false, Some((section, _))) => vec![format!("{section}.{name}={value}")],
            _ => vec![format!("{name}={value}")],
        };
    }
    if let Some((_, rest)) = hint.split_once("set ") {
        return vec![word(rest), item.to_string()];
    }
    let (_, rest) = hint.split_once("write ").unwrap_or_else(|| panic!("{hint} cannot be followed"));
    match rest.split_once(" = ") {
        Some((key, value)) => vec![format!("{key}={}", value.trim_matches('"'))],
        None => vec![format!("{key}={}", word(rest))],
    }
}

/// Whether the mistake is in the value.
fn hint_is_value(item: &str) -> bool {
    item.starts_with("algorithm.kind=")
}

fn hint(text: &str) -> &str {
    text.lines().find_map(|l| l.strip_prefix("hint: ")).unwrap_or_else(|| panic!("no hint in\n{text}"))
}

#[test]
fn a_mistyped_set_is_mended_by_its_hint() {
    let desk = Desk::new();
    for item in WRONG {
        let output = desk.run(&["config", "show", "c.toml", "--set", item]);
        assert_eq!(output.status.code(), Some(2), "{item} was taken");
        let text = err(&output);
        assert!(text.contains("  --set ") && text.contains('^'), "{item}: {text}");
        let items = mended(item, hint(&text));
        let arguments: Vec<&str> = items.iter().flat_map(|i| ["--set", i.as_str()]).collect();
        desk.ok(&[&["config", "show", "c.toml"], &arguments[..]].concat());
    }
}

#[test]
fn commands_that_hints_name_are_run() {
    let desk = Desk::new();
    let plain = ["--set", "pretrain.enabled=false", "--set", "align.enabled=false", "--set", "federated.rounds=1"];
    // Another configuration in the directory: another directory.
    desk.ok(&[&["finetune", "c.toml"], &plain[..]].concat());
    let other = desk.run(&[&["finetune", "c.toml", "--set", "federated.cohort=2"], &plain[..]].concat());
    let (text, set) = (err(&other), "run.dir=runs/another");
    assert!(hint(&text).contains(&format!("--set {set}")), "{text}");
    desk.ok(&[&["finetune", "c.toml", "--set", "federated.cohort=2", "--set", set], &plain[..]].concat());
    // No run there: a run's directory.
    let none = desk.run(&["resume", "runs/nothing"]);
    assert!(hint(&err(&none)).contains("runs/"), "{}", err(&none));
    desk.ok(&["resume", "runs/c"]);
    // An unknown key.
    let unknown = desk.run(&["explain", "cohort"]);
    assert!(hint(&err(&unknown)).contains("`federated.cohort`"), "{}", err(&unknown));
    assert!(desk.ok(&["explain", "federated.cohort"]).contains("num_online_clients (CReFF)"));
    let lost = desk.run(&["explain", "zzzzzz"]);
    assert!(hint(&err(&lost)).contains("`fedllava config list`"), "{}", err(&lost));
    desk.ok(&["config", "list"]);
    // A split file: what `split import` prints is a config.
    desk.ok(&["split", "export", "c.toml", "split.json", "--set", "federated.rounds=2"]);
    let file = "partition={kind=\"file\", path=\"split.json\"}";
    let split = ["finetune", "c.toml", "--set", file, "--set", "run.dir=runs/split", "--set", "pretrain.enabled=false"];
    let (short, set) = (desk.run(&split), "federated.rounds=2");
    assert!(hint(&err(&short)).contains(set), "{}", err(&short));
    assert!(desk.run(&[&split[..], &["--set", set]].concat()).status.success());
}

/// Commands whose examples need neither data, a network nor a finished run. What the others' help shows is held against
/// the command line and the configs by a test beside the commands.
const LIGHT: [&str; 6] = ["config", "explain", "completions", "methods", "doctor", "help"];

/// The command lines that the help of a command and of those below it shows.
fn examples(desk: &Desk, command: &[&str], found: &mut Vec<String>) {
    let help = desk.ok(&[command, &["--help"]].concat());
    let shown = help.split("Example").skip(1).flat_map(str::lines);
    found.extend(shown.filter_map(|l| l.find("fedllava ").map(|i| l[i..].trim().trim_end_matches(')').to_string())));
    let below = help.split("Commands:\n").nth(1).unwrap_or_default().split("\n\n").next().unwrap_or_default();
    let names = below.lines().filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    for name in names.filter_map(|l| l.split_whitespace().next()).filter(|n| *n != "help") {
        examples(desk, &[command, &[name]].concat(), found);
    }
}

#[test]
fn examples_that_need_no_data_are_run() {
    let (desk, mut found) = (Desk::new(), Vec::new());
    examples(&desk, &[], &mut found);
    let light: Vec<&String> = found.iter().filter(|l| LIGHT.iter().any(|n| l[9..].starts_with(n))).collect();
    assert!(found.len() > 30 && light.len() > 8, "{found:?}");
    for line in light.into_iter().filter(|l| !l.contains("cifar")) {
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        let output = desk.command(&words).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{line}: {}", err(&output));
    }
}

/// What a shell is offered for the last of these words.
fn offered(desk: &Desk, words: &[&str]) -> Vec<String> {
    let mut command = desk.command(&[]);
    command.env("COMPLETE", "bash").env("_CLAP_IFS", "\n").env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string());
    let output = command.arg("--").args(words).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(String::from).collect()
}

#[test]
fn a_shell_is_offered_keys_kinds_and_config_files() {
    let desk = Desk::new();
    let after_set = |word: &str| offered(&desk, &["fedllava", "run", "c.toml", "--set", word]);
    assert_eq!(after_set("federated.ro"), ["federated.rounds="]);
    assert_eq!(after_set("algorithm.kind=fedp"), ["algorithm.kind=fedprox"]);
    assert_eq!(after_set("federated.mode=").len(), 3);
    std::fs::write(desk.path("notes.txt"), "").unwrap();
    let files = offered(&desk, &["fedllava", "run", ""]);
    assert!(files.contains(&"c.toml".into()) && !files.contains(&"notes.txt".into()), "{files:?}");
    assert!(desk.ok(&["completions", "bash"]).contains("COMP_WORDBREAKS"));
}

#[test]
fn a_config_is_shown_checked_and_explained() {
    let desk = Desk::new();
    let shown = desk.ok(&["config", "show", "c.toml", "--set", "federated.rounds=2"]);
    std::fs::write(desk.path("again.toml"), &shown).unwrap();
    assert!(shown.contains("# --set federated.rounds=2") && shown.contains("# c.toml:") && shown.contains("# default"));
    let again = desk.ok(&["config", "show", "again.toml"]);
    let values =
        |text: &str| text.lines().map(|l| l.split("  #").next().unwrap().trim().to_string()).collect::<Vec<_>>();
    assert_eq!(values(&shown), values(&again), "what is shown is a config that says the same");
    let checked = desk.ok(&["config", "check", "c.toml"]);
    assert!(checked.contains("c.toml: valid") && checked.contains("memory about") && checked.contains("time about"));
    let missing = desk.run(&["config", "check", "c.toml", "--set", "finetune.from=nowhere"]);
    assert_eq!(missing.status.code(), Some(2), "{}", err(&missing));
    let schema: serde_json::Value = serde_json::from_str(&desk.ok(&["config", "schema"])).unwrap();
    assert!(schema["properties"]["federated"].is_object());
    assert!(desk.ok(&["config", "list", "federated"]).contains("Communication rounds"));
    assert!(desk.ok(&["explain", "algorithm.kind"]).contains("fedprox: A proximal term"));
}
