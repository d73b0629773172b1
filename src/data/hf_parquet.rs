//! Image data sets in the Parquet layout of the Hugging Face Hub.
//!
//! Shards `train-00000-of-00002.parquet`, … and `test-…`, read in name order; a struct column `img` or `image` with
//! `bytes` (PNG, JPEG or WebP) and `path`; integer labels; class names in the `huggingface` entry of the file's
//! metadata where they are known.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use parquet::basic::Compression;
use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};

use super::census::Census;
use super::dataset::{Dataset, Order};
use super::decode;
use crate::error::{Error, Place, Result};
use crate::exec::{self, Context};
use crate::fsx;

/// Shards of `part` (`train`, `test`) in `folder`, sorted; `part-*.parquet` or `part.parquet`.
pub fn shards(folder: &Path, part: &str) -> Result<Vec<PathBuf>> {
    let is_shard = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        let rest = name.strip_prefix(part).and_then(|n| n.strip_suffix(".parquet"));
        rest.is_some_and(|r| r.is_empty() || r.starts_with('-'))
    };
    let shards: Vec<PathBuf> = fsx::list(folder)?.into_iter().filter(is_shard).collect();
    if let Some(total) = shards.first().and_then(|p| stated_shards(p))
        && total != shards.len()
    {
        return Err(Error::data(format!("{}: {} of {total} {part} shards are there", folder.display(), shards.len()))
            .hint("fetch the missing ones; their names say which"));
    }
    Ok(shards)
}

/// The total in `train-00000-of-00002.parquet`.
fn stated_shards(path: &Path) -> Option<usize> {
    path.file_stem()?.to_str()?.rsplit_once("-of-")?.1.parse().ok()
}

/// Reads one part of a data set. `label` names the label column; `fallback` are class names for files without any.
pub fn read(
    name: &str,
    shards: &[PathBuf],
    label: &str,
    fallback: &[&str],
    side: Option<usize>,
    cx: &Context,
) -> Result<Dataset> {
    let (mut files, mut labels, mut classes) = (Vec::new(), Vec::new(), None);
    for shard in shards {
        let place = || shard.display().to_string();
        let reader = open(shard).at(place)?;
        exec::tamed(|| read_shard(&reader, label, &mut files, &mut labels)).flatten().at(place)?;
        if classes.is_none() {
            classes = class_names(&reader, label);
        }
    }
    let row = |i: usize| format!("row {i}");
    let images = decode::all(cx, files.len(), side, row, |i| Ok(files[i].data())).at(|| name.to_string())?;
    let classes = classes.unwrap_or_else(|| fallback.iter().map(ToString::to_string).collect());
    let folder = shards.first().and_then(|s| s.parent()).map(|f| f.display().to_string()).unwrap_or_default();
    let mut census = Census::new(format!("{name} ({} Parquet files in {folder})", shards.len()), "images");
    census.read = files.len();
    Ok(Dataset::new(name, images, labels, classes, Order::Unknown)?.counted(census))
}

/// Opens a file for its footer.
pub(super) fn open(path: &Path) -> Result<SerializedFileReader<File>> {
    let (mut file, mut first) = (fsx::open(path)?, Vec::new());
    let read = file.by_ref().take(64).read_to_end(&mut first).and_then(|_| file.rewind());
    read.map_err(|e| Error::io("read", path, e))?;
    match fsx::stand_in(&first) {
        Some(what) => Err(Error::data(format!("{what}, expected Parquet")).hint("fetch it again")),
        None => exec::tamed(|| SerializedFileReader::new(file))?.map_err(damaged),
    }
}

pub(super) fn damaged(_: parquet::errors::ParquetError) -> Error {
    Error::data("cannot be read as Parquet: damaged, cut off, or another format").hint("fetch the file again")
}

fn read_shard<R: FileReader>(reader: &R, label: &str, files: &mut Vec<ByteArray>, labels: &mut Vec<u32>) -> Result<()> {
    let images = column(reader, &["img.bytes", "image.bytes", "img", "image"])?;
    let labelled = column(reader, &[label])?;
    for g in 0..reader.num_row_groups() {
        let group = reader.get_row_group(g).map_err(damaged)?;
        read_files(&*group, images, files).at(|| format!("row group {g}, the images"))?;
        read_labels(&*group, labelled, labels).at(|| format!("row group {g}, {label}"))?;
    }
    Ok(())
}

/// The number of the first column that has one of these names, in a compression that is read.
pub(super) fn column<R: FileReader>(reader: &R, wanted: &[&str]) -> Result<usize> {
    let schema = reader.metadata().file_metadata().schema_descr();
    let columns: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
    let found = columns
        .iter()
        .position(|c| wanted.contains(&c.as_str()))
        .ok_or_else(|| Error::data(format!("no column {}; there are {}", wanted.join(" or "), columns.join(", "))))?;
    let packed = |g: usize| reader.metadata().row_group(g).column(found).compression() == Compression::LZO;
    match (0..reader.num_row_groups()).any(packed) {
        true => Err(Error::data(format!("{} is compressed with LZO, which is not read", columns[found]))
            .hint("write it again with zstd or snappy")),
        false => Ok(found),
    }
}

fn read_files(group: &dyn RowGroupReader, column: usize, files: &mut Vec<ByteArray>) -> Result<()> {
    let rows = group.metadata().num_rows() as usize;
    match group.get_column_reader(column).map_err(damaged)? {
        ColumnReader::ByteArrayColumnReader(mut c) => {
            let before = files.len();
            c.read_records(rows, Some(&mut Vec::new()), None, files).map_err(damaged)?;
            whole(files.len() - before, rows)
        }
        _ => Err(Error::data("the column does not hold bytes")),
    }
}

fn read_labels(group: &dyn RowGroupReader, column: usize, labels: &mut Vec<u32>) -> Result<()> {
    let rows = group.metadata().num_rows() as usize;
    let values: Vec<i64> = match group.get_column_reader(column).map_err(damaged)? {
        ColumnReader::Int64ColumnReader(mut c) => {
            let mut values = Vec::new();
            c.read_records(rows, Some(&mut Vec::new()), None, &mut values).map_err(damaged)?;
            values
        }
        ColumnReader::Int32ColumnReader(mut c) => {
            let mut values = Vec::new();
            c.read_records(rows, Some(&mut Vec::new()), None, &mut values).map_err(damaged)?;
            values.into_iter().map(i64::from).collect()
        }
        _ => return Err(Error::data("the column does not hold integers")),
    };
    whole(values.len(), rows)?;
    for value in values {
        labels.push(u32::try_from(value).map_err(|_| Error::data(format!("label {value} is no class")))?);
    }
    Ok(())
}

pub(super) fn whole(found: usize, rows: usize) -> Result<()> {
    if found == rows { Ok(()) } else { Err(Error::data(format!("{found} values in {rows} rows: some are null"))) }
}

/// Class names of the `ClassLabel` feature `label` in the `huggingface` metadata.
fn class_names<R: FileReader>(reader: &R, label: &str) -> Option<Vec<String>> {
    let entries = reader.metadata().file_metadata().key_value_metadata()?;
    let text = entries.iter().find(|e| e.key == "huggingface")?.value.as_ref()?;
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    let names = json.get("info")?.get("features")?.get(label)?.get("names")?.as_array()?;
    names.iter().map(|n| n.as_str().map(str::to_string)).collect()
}
