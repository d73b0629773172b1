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
    fsx::write_atomic(&dir.join("metrics.csv"), &table(&Records::read(&from)?)?)
}

fn table(records: &[Value]) -> Result<Vec<u8>> {
    if records.is_empty() {
        return Ok(Vec::new());
    }
    let mut columns = vec!["stage", "round", "split"];
    for name in records.iter().filter_map(Value::as_object).flat_map(|r| r.keys()) {
        if !columns.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    let broken = |e: csv::Error| Error::defect(format!("metrics.csv: {e}"));
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(&columns).map_err(broken)?;
    for record in records {
        table.write_record(columns.iter().map(|&name| cell(&record[name]))).map_err(broken)?;
    }
    table.into_inner().map_err(|e| Error::defect(format!("metrics.csv: {e}")))
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
        assert_eq!(String::from_utf8(table(&records).unwrap()).unwrap(), want);
    }
}
