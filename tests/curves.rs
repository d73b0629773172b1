//! Accuracy against what was spent: privacy from `eval.json`, bytes from the rounds' burden, a link's key from the config.

use std::path::Path;

use fedllava::report::Report;
use fedllava::report::figures::{cost, curve};
use serde_json::json;

const ROUNDS: u64 = 4;

/// A finished run of `way` whose accuracy after each round is `reached · round / ROUNDS`.
fn run(root: &Path, name: &str, seed: u64, way: &str, facts: serde_json::Value, reached: f64) {
    let dir = root.join(name).join(format!("seed-{seed}"));
    std::fs::create_dir_all(&dir).unwrap();
    let config =
        format!("schema = 1\n[run]\nseed = {seed}\n[federated]\nrounds = {ROUNDS}\ncohort = 5\nway = [{way}]\n");
    std::fs::write(dir.join("config.toml"), config).unwrap();
    let mut eval = json!({ "stages": { "finetune": { "overall": reached, "label": "finetune", "order": 1 } },
        "facts": { "classes": ["a"], "class_counts": [9], "test": "t" } });
    eval["facts"].as_object_mut().unwrap().extend(facts.as_object().unwrap().clone());
    std::fs::write(dir.join("eval.json"), eval.to_string()).unwrap();
    let line =
        |r: u64| json!({ "stage": "finetune", "round": r, "split": "test", "accuracy": reached * r as f64 / 4.0 });
    let lines: Vec<String> = (1..=ROUNDS).map(|r| line(r).to_string()).collect();
    std::fs::write(dir.join("metrics.jsonl"), lines.join("\n")).unwrap();
}

fn report(root: &Path) -> Report {
    Report::read(&[root.to_path_buf()]).unwrap()
}

fn noise(multiplier: f64, clip: f64) -> String {
    format!("{{ kind = \"clip\", norm = {clip:?} }}, {{ kind = \"noise\", multiplier = {multiplier:?} }}")
}

/// `(x, mean, values)` of a line's points.
fn points(series: &fedllava::report::figures::data::Series) -> Vec<(f64, f64, usize)> {
    series.points.iter().map(|p| (p.x, p.of.mean().unwrap(), p.of.values.len())).collect()
}

#[test]
fn a_line_over_epsilon_joins_runs_that_differ_in_noise_and_seed_alone_and_names_those_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for (seed, more) in [(1, 0.0), (2, 0.25)] {
        run(root, "loud", seed, &noise(4.0, 1.0), json!({ "epsilon": 2.0 }), 0.25 + more);
        run(root, "soft", seed, &noise(0.5, 1.0), json!({ "epsilon": 90.5 }), 0.5 + more);
    }
    run(root, "wide", 1, &noise(0.5, 3.0), json!({ "epsilon": 90.5 }), 0.125);
    run(root, "plain", 1, "", json!({}), 0.75);
    let chart = curve::curve(&report(root), "epsilon", true).unwrap();
    let mut lines: Vec<_> = chart.series.iter().map(points).collect();
    lines.sort_by_key(Vec::len);
    assert_eq!(lines, [vec![(90.5, 12.5, 1)], vec![(2.0, 37.5, 2), (90.5, 62.5, 2)]]);
    assert!(chart.series.iter().any(|s| s.name.contains("federated.way.clip.norm = 3")), "{chart:?}");
    assert!(chart.notes.iter().any(|n| n.contains("plain")), "{:?}", chart.notes);
    assert!(curve::curve(&report(&root.join("loud")), "epsilon", true).is_err(), "one value is no curve");
}

#[test]
fn a_curve_over_bytes_has_each_round_at_what_the_cohort_sent_until_then() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let burden = |up: f64| json!({ "burden": { "bytes_down": 1e6, "bytes_up": up, "multiply_adds": 0.0 } });
    run(root, "plain", 1, "", burden(1e6), 0.5);
    run(root, "short", 1, "{ kind = \"compress\", codec = \"sign\" }", burden(0.2e6), 0.25);
    let charts = cost::costs(&report(root)).unwrap();
    let names: Vec<&str> = charts.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["bytes"], "no work and no seconds are recorded");
    let chart = &charts[0].1;
    assert!(chart.x.starts_with("MB"), "{}", chart.x);
    let wanted = |a_client: f64, reached: f64| -> Vec<(f64, f64, usize)> {
        (1..=4).map(|r| (5.0 * a_client * f64::from(r), 100.0 * reached * f64::from(r) / 4.0, 1)).collect()
    };
    let near = |a: &[(f64, f64, usize)], b: Vec<(f64, f64, usize)>| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a.0 - b.0).abs() < 1e-9 && (a.1 - b.1).abs() < 1e-9)
    };
    let lines: Vec<_> = chart.series.iter().map(points).collect();
    assert!(lines.iter().any(|l| near(l, wanted(2.0, 0.5))), "{lines:?}");
    assert!(lines.iter().any(|l| near(l, wanted(1.2, 0.25))), "{lines:?}");
    let up = cost::cost(&report(root), "upload").unwrap().unwrap();
    let lines: Vec<_> = up.series.iter().map(points).collect();
    assert!(lines.iter().any(|l| near(l, wanted(1.0, 0.5))) && lines.iter().any(|l| near(l, wanted(0.2, 0.25))));
    assert!(
        cost::cost(&report(root), "seconds").unwrap().is_none() && cost::cost(&report(root), "x").unwrap().is_none()
    );
}

#[test]
fn attackers_are_a_key_of_their_link_and_a_link_that_is_not_there_is_not_named() {
    let dir = tempfile::tempdir().unwrap();
    let attack = |n: u32| format!("{{ kind = \"attack\", attackers = {n} }}");
    for n in [0, 2, 6] {
        run(dir.path(), &format!("mean-{n}"), 1, &attack(n), json!({}), 0.75 - 0.125 * f64::from(n));
        let robust = format!("{}, {{ kind = \"robust\", rule = \"median\" }}", attack(n));
        run(dir.path(), &format!("median-{n}"), 1, &robust, json!({}), 0.5);
    }
    let chart = curve::curve(&report(dir.path()), "federated.way.attack.attackers", false).unwrap();
    let plain = chart.series.iter().find(|s| !s.name.contains("robust")).unwrap();
    assert!(!plain.name.contains('–'), "{}", plain.name);
    let mut lines: Vec<_> = chart.series.iter().map(points).collect();
    lines.sort_by(|a, b| a[0].1.total_cmp(&b[0].1));
    assert_eq!(lines[0], [(0.0, 50.0, 1), (2.0, 50.0, 1), (6.0, 50.0, 1)]);
    assert_eq!(lines[1], [(0.0, 75.0, 1), (2.0, 50.0, 1), (6.0, 0.0, 1)]);
    let error = curve::curve(&report(dir.path()), "federated.way.attack.atackers", false).unwrap_err();
    assert!(format!("{error:?}").contains("federated.way.attack.attackers"), "{error:?}");
}

#[test]
fn keys_that_move_along_share_a_line_and_one_that_does_not_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (name, attackers, kind, reached) in [("none", 0, "zero", 0.75), ("three", 3, "sign-flip", 0.5)] {
        let way = format!("{{ kind = \"attack\", attackers = {attackers}, how = \"{kind}\" }}");
        run(dir.path(), name, 1, &way, json!({}), reached);
    }
    let (axis, along) = ("federated.way.attack.attackers", "federated.way.attack.how");
    let apart = curve::curve(&report(dir.path()), axis, false).unwrap();
    assert_eq!(apart.series.len(), 2);
    let chart = curve::curve(&report(dir.path()), &format!("{axis},{along}"), false).unwrap();
    assert_eq!(points(&chart.series[0]), [(0.0, 75.0, 1), (3.0, 50.0, 1)]);
    assert!(
        chart.notes.iter().any(|n| n == &format!("{along} moves along: zero at 0, sign-flip at 3.")),
        "{:?}",
        chart.notes
    );
    run(dir.path(), "other", 1, "{ kind = \"attack\", attackers = 3, how = \"noise\" }", json!({}), 0.5);
    let error = curve::curve(&report(dir.path()), &format!("{axis},{along}"), false).unwrap_err();
    assert!(error.to_string().contains("at 3 it is noise, sign-flip"), "{error}");
    let error = curve::curve(&report(dir.path()), &format!("{axis},federated.cohrt"), false).unwrap_err();
    assert!(format!("{error:?}").contains("federated.cohort"), "{error:?}");
}
