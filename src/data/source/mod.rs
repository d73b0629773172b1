//! Pictures below a folder, found by name and not opened: image files, members of tar shards, rows of Parquet files.

mod files;
mod rows;
mod shards;

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::census::{Census, Why};
use super::encoded::Encoded;
use super::{decode, folder, webdataset};
use crate::error::{Error, Result};
use crate::exec::Cancel;
use crate::fsx;
use files::Files;
use rows::Rows;
use shards::Shards;

/// How the images of a list lie below its folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// As what is there; several of the following are an error.
    #[default]
    Auto,
    /// Image files, in folders to any depth.
    Files,
    /// Tar shards: WebDataset's, or one of each class.
    Shards,
    /// Parquet files of the Hugging Face Hub, whose images have paths.
    Parquet,
}

/// Pictures that were found, by number in a fixed order: sorted paths, or shards and rows in theirs.
pub struct Found {
    /// Their names, with slashes: the path below the folder, the member's in its shard, or `image.path`.
    pub names: Vec<String>,
    /// What was seen of the folder; `read` are those that were asked for.
    pub census: Census,
    place: Box<dyn Place>,
}

/// Where one kind of source keeps its pictures.
trait Place: Send + Sync {
    /// The file's bytes.
    fn bytes(&self, index: usize) -> Result<Vec<u8>>;
    /// A number that another file in its place would hardly have: bytes, or where they lie.
    fn mark(&self, index: usize) -> Result<u64>;
}

/// The names that somebody asks for: whether a file name without its ending is one of them.
pub type Wanted<'a> = &'a dyn Fn(&str) -> bool;

impl Found {
    /// Looks for pictures below `root`; those whose names nobody wants are only counted.
    pub fn look(root: &Path, form: Form, wanted: Wanted<'_>, cancel: &Cancel) -> Result<Found> {
        let mut census = Census::new(root.display().to_string(), "images");
        let there = Listing::of(root, form, wanted, cancel, &mut census)?;
        let unasked = there.unasked;
        let kinds = [
            (Form::Files, !there.files.is_empty() || unasked > 0),
            (Form::Shards, !there.shards.is_empty()),
            (Form::Parquet, !there.tables.is_empty()),
        ];
        let form = match (form, kinds.iter().filter(|(_, some)| *some).map(|(k, _)| *k).collect::<Vec<_>>().as_slice())
        {
            (Form::Auto, [one]) => *one,
            (Form::Auto, []) => return Err(nothing(root, form, &census)),
            (Form::Auto, _) => {
                return Err(Error::input(format!(
                    "{}: image files, tar shards and Parquet files lie side by side: {}, {} and {}",
                    root.display(),
                    there.files.len() + unasked,
                    there.shards.len(),
                    there.tables.len()
                ))
                .hint("set data.images to \"files\", \"shards\" or \"parquet\""));
            }
            (chosen, _) if kinds.contains(&(chosen, true)) => chosen,
            (chosen, _) => return Err(nothing(root, chosen, &census)),
        };
        let mut names = Names { wanted, names: Vec::new(), unasked: if form == Form::Files { unasked } else { 0 } };
        let place: Box<dyn Place> = match form {
            Form::Shards => Box::new(Shards::read(there.shards, &mut names, &mut census)?),
            Form::Parquet => Box::new(Rows::read(there.tables, &mut names)?),
            _ => Box::new(Files::new(root, there.files, &mut names)),
        };
        census.read = names.names.len();
        census.pass_unnamed(Why::Unlisted, names.unasked);
        Ok(Found { names: names.names, census, place })
    }

    /// A number that another file in a picture's place would hardly have.
    pub fn mark(&self, index: usize) -> Result<u64> {
        self.place.mark(index)
    }
}

impl Encoded for Found {
    fn len(&self) -> usize {
        self.names.len()
    }

    fn name(&self, index: usize) -> String {
        self.names.get(index).cloned().unwrap_or_default()
    }

    fn bytes(&self, index: usize) -> Result<Vec<u8>> {
        self.place.bytes(index)
    }
}

fn nothing(root: &Path, form: Form, census: &Census) -> Error {
    let what = match form {
        Form::Shards => "tar shard",
        Form::Parquet => "Parquet file",
        _ => "image",
    };
    let seen = if census.passed.is_empty() { String::new() } else { format!("; {}", census.line()) };
    Error::data(format!("{}: no {what}{seen}", root.display())).hint(format!(
        "expected image files ({}), tar shards or Parquet files below data.path",
        decode::ENDINGS.join(", ")
    ))
}

/// The names that were met, in order; those that nobody wants are counted.
struct Names<'a> {
    wanted: Wanted<'a>,
    names: Vec<String>,
    unasked: usize,
}

impl Names<'_> {
    /// Whether somebody wants this name; then it is kept.
    fn take(&mut self, name: &str) -> bool {
        let name = super::captions::spelled(name);
        let wanted = (self.wanted)(stem(&name));
        match wanted {
            true => self.names.push(name.into_owned()),
            false => self.unasked += 1,
        }
        wanted
    }
}

/// The file name of a path without an image's ending.
pub fn stem(path: &str) -> &str {
    let base = path.rsplit('/').next().unwrap_or(path);
    &base[..base.len() - ending(base)]
}

/// A path without an image's ending.
pub fn without_ending(path: &str) -> &str {
    &path[..path.len() - ending(path)]
}

/// Bytes of an image's ending, its dot among them.
fn ending(path: &str) -> usize {
    let base = path.rfind('/').map_or(0, |i| i + 1);
    match path[base..].rfind('.') {
        Some(dot) if dot > 0 && decode::is_read(&path[base + dot + 1..].to_ascii_lowercase()) => {
            path.len() - base - dot
        }
        _ => 0,
    }
}

/// What lies below a folder.
#[derive(Default)]
struct Listing {
    files: Vec<PathBuf>,
    shards: Vec<PathBuf>,
    tables: Vec<PathBuf>,
    unasked: usize,
}

impl Listing {
    fn of(root: &Path, form: Form, wanted: Wanted<'_>, cancel: &Cancel, census: &mut Census) -> Result<Listing> {
        let mut there = Listing::default();
        let mut others = Census::default();
        folder::walk(root, root, &mut fsx::Met::default(), cancel, &mut others, &mut |path, why| {
            let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
            match (why, ending.as_str()) {
                (Some(_), "tar") => there.shards.push(path),
                (Some(_), _) if webdataset::is_packed(&path) => census.pass(Why::Ending, folder::below(&path, root)),
                (Some(_), "parquet") => there.tables.push(path),
                (Some(why), _) => census.pass(why, folder::below(&path, root)),
                (None, _) if matches!(form, Form::Auto | Form::Files) => {
                    let name = folder::below(&path, root);
                    match wanted(stem(&super::captions::spelled(&name))) {
                        true => there.files.push(path),
                        false => there.unasked += 1,
                    }
                }
                (None, _) => {}
            }
        })?;
        census.add(others);
        Ok(there)
    }
}
