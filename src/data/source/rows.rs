//! Rows of Parquet files in the layout of the Hugging Face Hub: a struct `image` or `img` of `bytes` and `path`.

use std::path::PathBuf;
use std::sync::Arc;

use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::ReaderProperties;
use parquet::file::reader::{FileReader, RowGroupReader};
use parquet::file::serialized_reader::SerializedRowGroupReader;

use super::{Names, Place};
use crate::data::hf_parquet::{column, damaged, open, whole};
use crate::error::{Error, Place as _, Result};
use crate::exec;
use crate::fsx;

pub(super) struct Rows {
    tables: Vec<Table>,
    /// Table, row group and row in it of each picture.
    rows: Vec<(u32, u32, u32)>,
}

/// One file: its footer, and the column of the images.
struct Table {
    path: PathBuf,
    footer: ParquetMetaData,
    column: usize,
}

impl Rows {
    /// Reads the footers and the paths of all rows.
    pub fn read(mut tables: Vec<PathBuf>, names: &mut Names<'_>) -> Result<Rows> {
        tables.sort();
        let mut all = Rows { tables: Vec::new(), rows: Vec::new() };
        for path in tables {
            exec::tamed(|| all.add(path.clone(), names)).flatten().at(|| path.display().to_string())?;
        }
        Ok(all)
    }

    fn add(&mut self, path: PathBuf, names: &mut Names<'_>) -> Result<()> {
        let reader = open(&path)?;
        let (bytes, paths) =
            (column(&reader, &["img.bytes", "image.bytes"])?, column(&reader, &["img.path", "image.path"])?);
        for g in 0..reader.num_row_groups() {
            let group = reader.get_row_group(g).map_err(damaged)?;
            let count = group.metadata().num_rows() as usize;
            let told = byte_arrays(&*group, paths, 0, count)?;
            whole(told.len(), count).map_err(|e| {
                Error::data(format!("row group {g}: {}", e.message()))
                    .hint("a list finds its images by name: `image.path` must be there in every row")
            })?;
            for (row, name) in told.iter().enumerate() {
                if names.take(&hub_name(&String::from_utf8_lossy(name.data()))) {
                    self.rows.push((self.tables.len() as u32, g as u32, row as u32));
                }
            }
        }
        self.tables.push(Table { path, footer: reader.metadata().clone(), column: bytes });
        Ok(())
    }

    fn row(&self, index: usize) -> Result<(&Table, usize, usize)> {
        let (table, group, row) = self.rows.get(index).ok_or_else(|| Error::defect(format!("no row {index}")))?;
        Ok((&self.tables[*table as usize], *group as usize, *row as usize))
    }
}

impl Place for Rows {
    /// Reads one row: pages before it are passed over unread.
    fn bytes(&self, index: usize) -> Result<Vec<u8>> {
        let (table, group, row) = self.row(index)?;
        let place = || format!("{}: row group {group}, row {row}", table.path.display());
        // A file of its own: threads would share one file's position.
        let file = Arc::new(fsx::open(&table.path)?);
        let (metadata, pages) = (table.footer.row_group(group), table.footer.page_index_for_row_group(group));
        let properties = Arc::new(ReaderProperties::builder().build());
        let reader = SerializedRowGroupReader::new(file, metadata, pages, properties).map_err(damaged).at(place)?;
        let found = exec::tamed(|| byte_arrays(&reader, table.column, row, 1)).flatten().at(place)?;
        match found.as_slice() {
            [one] => Ok(one.data().to_vec()),
            _ => Err(Error::data("no image in this row")).at(place),
        }
    }

    fn mark(&self, index: usize) -> Result<u64> {
        let (table, group, _) = self.row(index)?;
        Ok(table.footer.row_group(group).column(table.column).compressed_size() as u64)
    }
}

/// `count` values of a column of bytes from row `first` on, those that are null left out.
fn byte_arrays(group: &dyn RowGroupReader, column: usize, first: usize, count: usize) -> Result<Vec<ByteArray>> {
    let ColumnReader::ByteArrayColumnReader(mut reader) = group.get_column_reader(column).map_err(damaged)? else {
        return Err(Error::data("the column does not hold bytes"));
    };
    let mut values = Vec::new();
    reader.skip_records(first).map_err(damaged)?;
    reader.read_records(count, Some(&mut Vec::new()), None, &mut values).map_err(damaged)?;
    Ok(values)
}

/// `n01440764_10026_n01440764.JPEG`, as the Hub's ImageNet calls an image, without the class that was put behind it.
fn hub_name(name: &str) -> String {
    let (stem, ending) = (super::without_ending(name), &name[super::without_ending(name).len()..]);
    match stem.rsplit_once("_n") {
        Some((own, wnid)) if wnid.len() == 8 && wnid.bytes().all(|b| b.is_ascii_digit()) => format!("{own}{ending}"),
        _ => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::hub_name;

    #[test]
    fn names_of_the_hubs_imagenet_are_imagenets() {
        assert_eq!(hub_name("n01440764_10026_n01440764.JPEG"), "n01440764_10026.JPEG");
        assert_eq!(hub_name("ILSVRC2012_val_00000293_n01665541.JPEG"), "ILSVRC2012_val_00000293.JPEG");
        assert_eq!(hub_name("n01440764_10026.JPEG"), "n01440764_10026.JPEG");
        assert_eq!(hub_name("train/a_n123.jpg"), "train/a_n123.jpg");
    }
}
