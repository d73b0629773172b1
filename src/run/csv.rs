//! `metrics.csv`: the records as a table, one row a record, one column a name.

use std::path::Path;

use serde_json::Value;

use super::Records;
use crate::error::{Error, Result};
use crate::fsx;

/// Writes `metrics.csv` beside the `metrics.jsonl` of `dir`, where there is one. Stage, round and split come
/// first, then names as they appear; a record without a name leaves its place empty, and so does a figure that is not finite.
pub fn write(dir: &Path) -> Result<()> {
    let from = dir.join("metrics.jsonl");
    if !from.exists() {
        return Ok(());
    }
    let mut columns = Vec::new();
    Records::each(&from, |record| {
        add_columns(&mut columns, &record);
        Ok(())
    })?;
    fsx::write_atomic_with(&dir.join("metrics.csv"), |file| {
        let mut table = csv::Writer::from_writer(file);
        if !columns.is_empty() {
            table.write_record(&columns)?;
        }
        let rows = Records::each(&from, |record| {
            let row = table.write_record(columns.iter().map(|name| cell(&record[name.as_str()])));
            row.map_err(|e| Error::environment(format!("metrics.csv: {e}")))
        });
        rows.map_err(|e| std::io::Error::other(e.plain()))?;
        table.flush()
    })
}

/// Adds the names that a record brings; of the first one three that come before all.
fn add_columns(columns: &mut Vec<String>, record: &Value) {
    if columns.is_empty() {
        columns.extend(["stage", "round", "split"].map(String::from));
    }
    for name in record.as_object().into_iter().flat_map(|r| r.keys()) {
        if !columns.contains(name) {
            columns.push(name.clone());
        }
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_record_has_a_row_and_every_name_a_column() {
        let records = [
            json!({ "stage": "finetune", "round": 1, "split": "train", "loss": 1.5 }),
            json!({ "stage": "finetune", "round": 1, "split": "a \"b\", c", "accuracy": 0.25, "per_class": [0.5, 1.0] }),
            json!({ "stage": "finetune", "round": 2, "split": "train", "loss": null }),
        ];
        let want = "stage,round,split,loss,accuracy,per_class\n\
            finetune,1,train,1.5,,\n\
            finetune,1,\"a \"\"b\"\", c\",,0.25,\"[0.5,1.0]\"\n\
            finetune,2,train,,,\n";
        let dir = tempfile::tempdir().unwrap();
        let lines: String = records.iter().map(|r| format!("{r}\n")).collect();
        std::fs::write(dir.path().join("metrics.jsonl"), lines).unwrap();
        write(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("metrics.csv")).unwrap(), want);
    }
}
