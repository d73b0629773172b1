//! The `table` section: how finished runs become the rows and columns of one table.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tree::leaves;
use crate::error::{Error, Result, closest};

/// What runs are told apart by, besides keys of the config.
const COORDINATES: [&str; 4] = ["cell", "arm", "method", "stage"];

/// The `table` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TableConfig {
    /// What stands above the table.
    pub title: String,
    /// What makes a row: `cell` (all that the sweep varies but the seeds), `arm`, `method`, `stage`, or keys such as
    /// `longtail.imbalance`.
    pub rows: Vec<String>,
    /// What makes a column, in the same words; none gives one column.
    pub columns: Vec<String>,
    /// What stands in a cell: `last10` (the mean of the last ten rounds), `last` (the last round), `selected` (the round
    /// with the highest accuracy on the validation set), or a figure of `eval.json` such as `few`. Several stand beside
    /// each other.
    pub numbers: Vec<String>,
    /// The stage that is looked at, by its key in `eval.json`; empty for each run's last stage with a model.
    pub stage: String,
    /// Rows under a head; rows of no group stand first.
    pub groups: Vec<TableGroup>,
    /// Whether published numbers (`data/published.toml`) stand beside ours, with the difference, where data set,
    /// imbalance and method are the same.
    pub published: bool,
}

/// Rows under a head.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TableGroup {
    /// The head.
    pub title: String,
    /// Names of rows; parts of a name are joined by `/`.
    pub rows: Vec<String>,
}

impl Default for TableConfig {
    fn default() -> Self {
        TableConfig {
            title: String::new(),
            rows: vec!["cell".into()],
            columns: Vec::new(),
            numbers: vec!["last10".into()],
            stage: String::new(),
            groups: Vec::new(),
            published: false,
        }
    }
}

impl TableConfig {
    /// Refuses what no run can be told apart by, and a row in two groups.
    pub(super) fn check(&self) -> Result<()> {
        for (key, list) in [("rows", &self.rows), ("columns", &self.columns)] {
            for (i, name) in list.iter().enumerate() {
                coordinate(key, name)?;
                if list[..i].contains(name) {
                    return Err(Error::input(format!("table.{key} names {name} twice")));
                }
            }
        }
        if let Some(both) = self.rows.iter().find(|r| self.columns.contains(r)) {
            return Err(Error::input(format!("table: {both} makes both rows and columns")));
        }
        for (key, empty) in [("rows", self.rows.is_empty()), ("numbers", self.numbers.is_empty())] {
            if empty {
                return Err(Error::input(format!("table.{key} is empty"))
                    .hint(format!("without the key it is {:?}", if key == "rows" { "cell" } else { "last10" })));
            }
        }
        let mut grouped = self.groups.iter().flat_map(|g| &g.rows).collect::<Vec<_>>();
        grouped.sort_unstable();
        match grouped.windows(2).find(|w| w[0] == w[1]) {
            Some(w) => Err(Error::input(format!("table.groups: {} stands in two groups", w[0]))),
            None => Ok(()),
        }
    }
}

fn coordinate(list: &str, name: &str) -> Result<()> {
    let keys = leaves();
    let mut known = COORDINATES.into_iter().chain(keys.iter().map(|leaf| leaf.path.as_str()));
    if known.clone().any(|k| k == name) {
        return Ok(());
    }
    let e = Error::input(format!(
        "table.{list}: runs are not told apart by `{name}`; valid: {}, and every key of a config",
        COORDINATES.join(", ")
    ));
    Err(match closest(name, &mut known) {
        Some(near) => e.hint(format!("did you mean `{near}`?")),
        None => e.hint("`fedllava config list` prints all keys"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    fn message(text: &str) -> String {
        Config::from_table(toml::from_str(text).unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn a_table_without_keys_has_a_row_a_cell_and_is_written_back_only_where_it_was_written() {
        let config =
            Config::from_table(toml::from_str("[table]\ncolumns = [\"longtail.imbalance\"]").unwrap()).unwrap();
        let table = config.table.clone().unwrap();
        assert_eq!((table.rows, table.numbers), (vec!["cell".to_string()], vec!["last10".to_string()]));
        assert_eq!(Config::from_table(config.to_table().unwrap()).unwrap(), config);
        assert!(!Config::default().to_table().unwrap().contains_key("table"));
    }

    #[test]
    fn what_cannot_be_a_table_is_refused() {
        assert!(message("[table]\nrows = [\"methods\"]").contains("did you mean `method`?"));
        assert!(message("[table]\ncolumns = [\"longtail.imbalence\"]").contains("did you mean `longtail.imbalance`?"));
        assert!(message("[table]\nrows = [\"arm\"]\ncolumns = [\"arm\"]").contains("both rows and columns"));
        assert!(message("[table]\nnumbers = []").contains("table.numbers is empty"));
        let twice = "[table]\ngroups = [{ title = \"a\", rows = [\"x\"] }, { title = \"b\", rows = [\"x\"] }]";
        assert!(message(twice).contains("x stands in two groups"));
        assert!(message("[table]\nrow = [\"arm\"]").contains("did you mean `rows`?"));
    }
}
