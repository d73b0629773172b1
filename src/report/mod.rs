//! Run directories → tables and figures. Reads only what a run wrote.

pub mod contrast;
pub mod figure;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::fsx;
use crate::run::directory::read_json;

/// The stages in the order of a table.
const STAGES: [(&str, &str); 8] = [
    ("teacher", "teacher alone"),
    ("teacher clip", "CLIP alone"),
    ("teacher clip prompts", "CLIP alone, prompt ensemble"),
    ("teacher mllm", "MLLM alone, class names"),
    ("probe", "linear probe of CLIP"),
    ("pretrain", "1 pretrain (zero-shot)"),
    ("finetune", "2 finetune"),
    ("align", "3 align"),
];

/// One row: a stage of a run, over one or several seeds.
pub struct Row {
    /// Directory name of the run, its seed left out.
    pub run: String,
    /// The stage's place in [`STAGES`].
    stage: usize,
    /// Whether the teacher saw the benchmark's labels.
    pub oracle: bool,
    /// What the run had: teacher, pool, server labels.
    pub extras: String,
    /// `eval.json` entries of this stage, one per seed.
    pub entries: Vec<Value>,
    /// Images trained on up to this stage, each as often as it was seen; of the first seed.
    pub steps: u64,
}

/// The rows of all runs below the given directories, runs that differ only in their seed put together.
pub fn rows(paths: &[PathBuf]) -> Result<Vec<Row>> {
    Ok(without_copies(all_rows(paths)?))
}

/// The rows, those that arms share included.
fn all_rows(paths: &[PathBuf]) -> Result<Vec<Row>> {
    let found = directories(paths)?;
    let mut rows: Vec<Row> = Vec::new();
    let mut index: BTreeMap<(String, usize), usize> = BTreeMap::new();
    for dir in found {
        let eval = read_json(&dir.join("eval.json"))?;
        let config = identity(&dir)?;
        for (stage, (key, _)) in STAGES.iter().enumerate() {
            let entry = &eval["stages"][*key];
            // Without rounds stage 2 leaves the start model as it was.
            let untouched = *key == "finetune" && eval["facts"]["rounds"] == 0 && !eval["stages"]["align"].is_null();
            if entry.is_null() || untouched {
                continue;
            }
            let at = *index.entry((config.clone(), stage)).or_insert_with(|| {
                let facts = &eval["facts"];
                let oracle = facts["oracle"].as_bool().unwrap_or(false) && matches!(*key, "align" | "teacher");
                let (run, extras, steps) = (name_of(&dir), extras(key, facts), steps(key, facts));
                rows.push(Row { run, stage, oracle, extras, entries: Vec::new(), steps });
                rows.len() - 1
            });
            rows[at].entries.push(entry.clone());
        }
    }
    Ok(rows)
}

/// The directories of all runs below the given ones.
pub fn directories(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        let before = found.len();
        collect(path, 0, &mut found)?;
        if found.len() == before {
            return Err(Error::input(format!("{} holds no finished run (no eval.json)", path.display()))
                .hint("name a run's directory, such as runs/demo"));
        }
    }
    Ok(found)
}

/// Leaves out what several arms share: a row with the very numbers of an earlier row of the same stage.
fn without_copies(rows: Vec<Row>) -> Vec<Row> {
    let mut kept: Vec<Row> = Vec::new();
    for row in rows {
        let same = |r: &Row| r.stage == row.stage && r.entries == row.entries;
        if !kept.iter().any(same) {
            kept.push(row);
        }
    }
    kept
}

/// Images trained on before and in a stage.
fn steps(stage: &str, facts: &Value) -> u64 {
    let upto: &[&str] = match stage {
        "pretrain" => &["pretrain"],
        "finetune" => &["pretrain", "finetune"],
        "align" => &["pretrain", "finetune", "align"],
        _ => &[],
    };
    upto.iter().filter_map(|s| facts["budget"][*s].as_u64()).sum()
}

/// Finished runs at `path` or up to two folders below it (seeds, arms), in name order.
fn collect(path: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    if path.join("eval.json").exists() {
        found.push(path.to_path_buf());
    } else if depth < 3 && path.is_dir() {
        for child in children(path)? {
            collect(&child, depth + 1, found)?;
        }
    }
    Ok(())
}

/// Folders below a folder: in the order of its arms where it has some, else by name.
fn children(path: &Path) -> Result<Vec<PathBuf>> {
    let mut folders: Vec<PathBuf> = fsx::list(path)?.into_iter().filter(|p| p.is_dir()).collect();
    let file = path.join(EXPERIMENT);
    if file.exists() {
        let arms = read_json(&file)?["arms"].clone();
        let place = |p: &PathBuf| {
            let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            arms.as_array().and_then(|a| a.iter().position(|arm| *arm == json!(name))).unwrap_or(usize::MAX)
        };
        folders.sort_by_key(place);
    }
    Ok(folders)
}

/// Beside the arms of an experiment: their order, and the contrasts between them.
pub const EXPERIMENT: &str = "experiment.json";

/// What makes two runs the same experiment: their configuration without seed, place and machine.
fn identity(dir: &Path) -> Result<String> {
    let path = dir.join("config.toml");
    let mut table: toml::Table = toml::from_str(&fsx::read_text(&path)?)
        .map_err(|e| Error::data(format!("{}: {}", path.display(), e.message())))?;
    if let Some(toml::Value::Table(run)) = table.get_mut("run") {
        run.clear();
    }
    Ok(format!("{}\n{table}", name_of(dir)))
}

/// The run's directory name; a folder `seed-3` belongs to what is above it.
fn name_of(dir: &Path) -> String {
    let parts = dir.iter().rev().map(|p| p.to_string_lossy());
    parts.into_iter().find(|p| !p.starts_with("seed-")).map_or_else(|| "run".into(), |p| p.into_owned())
}

fn extras(stage: &str, facts: &Value) -> String {
    let mut extras = Vec::new();
    if !matches!(stage, "teacher" | "probe") && facts["pretrained"].as_bool() == Some(true) {
        let labels = facts["supervised"].as_bool() == Some(true);
        extras.push(if labels { "pool with labels" } else { "pool" }.to_string());
    }
    if matches!(stage, "align" | "probe") {
        extras.push(format!("{} server labels", facts["server_labels"]));
    }
    if matches!(stage, "align" | "teacher")
        && let Some(teacher) = facts["teacher"].as_str()
    {
        extras.push(format!("teacher {teacher}"));
    }
    extras.join(", ")
}

/// The figures of a table, by their key in `eval.json`.
const FIGURES: [(&str, &str); 6] = [
    ("overall", "accuracy"),
    ("many", "many"),
    ("medium", "medium"),
    ("few", "few"),
    ("worst_class", "worst class"),
    ("last10", "last 10 rounds"),
];

/// The rows as a Markdown table, accuracies in percent, mean ± deviation over seeds; oracles stand apart.
pub fn markdown(rows: &[Row]) -> String {
    let (oracles, honest): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|r| r.oracle);
    let mut text = String::new();
    if !honest.is_empty() {
        text.push_str(&table(&honest));
    }
    if !oracles.is_empty() {
        text.push_str("\nOracle rows: the teacher was trained on the benchmark's own labels.\n\n");
        text.push_str(&table(&oracles));
    }
    text
}

fn table(rows: &[&Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let mut header = vec!["run".to_string(), "stage".to_string()];
    header.extend(FIGURES.iter().map(|(_, name)| (*name).to_string()));
    header.extend(["image-steps", "seeds", "extras"].map(String::from));
    table.set_header(header);
    for row in rows {
        let mut cells = vec![row.run.clone(), STAGES[row.stage].1.to_string()];
        cells.extend(FIGURES.iter().map(|(key, _)| cell(&row.entries, key)));
        let steps = if row.steps == 0 { "–".into() } else { format!("{:.1}k", row.steps as f64 / 1000.0) };
        cells.extend([steps, row.entries.len().to_string(), row.extras.clone()]);
        table.add_row(cells);
    }
    for column in 2..2 + FIGURES.len() + 2 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{table}\n")
}

/// Percent with two decimals, a deviation where there are several seeds, a dash where there is no number.
fn cell(entries: &[Value], key: &str) -> String {
    let values: Vec<f64> = entries.iter().filter_map(|e| e[key].as_f64()).map(|v| 100.0 * v).collect();
    let n = values.len() as f64;
    if values.is_empty() {
        return "–".into();
    }
    let mean = values.iter().sum::<f64>() / n;
    if values.len() == 1 {
        return format!("{mean:.2}");
    }
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    format!("{mean:.2} ± {:.2}", variance.sqrt())
}

/// The rows as JSON, accuracies as shares, one list entry a row with all its seeds.
pub fn to_json(rows: &[Row]) -> Value {
    let row = |r: &Row| json!({ "run": r.run, "stage": STAGES[r.stage].0, "oracle": r.oracle, "extras": r.extras, "seeds": r.entries });
    Value::Array(rows.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, seed: u64, overall: f64) {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("config.toml"), format!("[run]\nseed = {seed}\n")).unwrap();
        let eval = json!({ "stages": { "finetune": { "overall": overall, "few": null } },
            "facts": { "pretrained": false } });
        std::fs::write(dir.join("eval.json"), eval.to_string()).unwrap();
    }

    #[test]
    fn seeds_of_one_experiment_become_one_row_with_a_deviation() {
        let root = tempfile::tempdir().unwrap();
        write(&root.path().join("seed-1/scratch"), 1, 0.50);
        write(&root.path().join("seed-2/scratch"), 2, 0.60);
        let rows = rows(&[root.path().to_path_buf()]).unwrap();
        assert_eq!(rows.len(), 1);
        let text = markdown(&rows);
        assert!(text.contains("55.00 ± 7.07") && text.contains('–') && text.contains("scratch"), "{text}");
    }

    #[test]
    fn an_empty_folder_is_an_error_not_a_table() {
        let root = tempfile::tempdir().unwrap();
        assert!(rows(&[root.path().to_path_buf()]).is_err());
    }
}
