//! What the binary carries with it: the configs, the demo's models and captions, the prompts. A copied binary runs the
//! demo in an empty folder; where the same path is on disk, the disk wins.

use std::io::{Cursor, Read};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use crate::error::{Error, Result};
use crate::fsx;

/// What `build.rs` packed.
static ARCHIVE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shipped.zip"));

/// Names and contents.
type Files = Vec<(String, Vec<u8>)>;

/// The path itself where it is on disk; else, where the binary carries it, a copy in the person's cache folder.
pub fn found(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    Ok(unpacked(path)?.unwrap_or_else(|| path.to_path_buf()))
}

/// A copy, in the person's cache folder, of a file or folder that the binary carries; none of what it does not carry.
/// A copy that is there is compared byte by byte, and written anew where it differs.
pub fn unpacked(path: &Path) -> Result<Option<PathBuf>> {
    let name = plain(path);
    let files = files(&name)?;
    if files.is_empty() {
        return Ok(None);
    }
    unpack_below(&cache()?, &name, &files).map(Some)
}

/// A text file from disk, or the one that the binary carries under this name.
pub fn read_text(path: &Path) -> Result<String> {
    if !path.exists()
        && let [(name, bytes)] = files(&plain(path))?.as_slice()
    {
        return String::from_utf8(bytes.clone()).map_err(|_| Error::data(format!("{name} is no text")));
    }
    fsx::read_written(path)
}

/// What the binary carries at `name` or below it (everything, where it is empty), in order.
fn files(name: &str) -> Result<Files> {
    let broken = |e: &dyn std::fmt::Display| Error::defect(format!("the files in the program: {e}"));
    let mut archive = ZipArchive::new(Cursor::new(ARCHIVE)).map_err(|e| broken(&e))?;
    let below = |file: &str| {
        name.is_empty() || file.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let mut names = Vec::new();
    for i in 0..archive.len() {
        let file = archive.by_index_raw(i).map_err(|e| broken(&e))?;
        names.push(file.name().map_err(|e| broken(&e))?.into_owned());
    }
    names.retain(|file| below(file));
    names.sort();
    let mut all = Vec::new();
    for file in names {
        let mut bytes = Vec::new();
        archive.by_name(&file).map_err(|e| broken(&e))?.read_to_end(&mut bytes).map_err(|e| broken(&e))?;
        all.push((file, bytes));
    }
    Ok(all)
}

/// Writes what is missing or differs below a folder that names the contents, so that versions do not meet.
fn unpack_below(cache: &Path, name: &str, files: &[(String, Vec<u8>)]) -> Result<PathBuf> {
    let mut hasher = Sha256::new();
    for (file, bytes) in files {
        hasher.update(file.as_bytes());
        hasher.update(Sha256::digest(bytes));
    }
    let root = cache.join(&fsx::hex(hasher.finalize())[..16]);
    for (file, bytes) in files {
        let path = root.join(file);
        if !path.exists() || fsx::read(&path)? != *bytes {
            fsx::write_atomic(&path, bytes)?;
        }
    }
    Ok(root.join(name))
}

/// `fedllava/shipped` in the person's cache folder: where copies lie.
pub fn cache() -> Result<PathBuf> {
    Ok(fsx::cache_dir()?.join("shipped"))
}

/// `configs/curves/../demo.toml` as `configs/demo.toml`; nothing where it is absolute or leaves its root.
fn plain(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name.to_string_lossy().into_owned()),
            Component::CurDir => {}
            Component::ParentDir if parts.pop().is_some() => {}
            _ => return ABSENT.into(),
        }
    }
    if parts.is_empty() { ABSENT.into() } else { parts.join("/") }
}

/// A name that nothing has.
const ABSENT: &str = "/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_carries_what_the_checkout_has() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let carried: Vec<String> = files("").unwrap().into_iter().map(|(name, _)| name).collect();
        for name in ["configs/demo.toml", "configs/curves/alpha.toml", "data/demo-clip/model.safetensors"] {
            assert!(carried.contains(&name.to_string()), "{name}: {carried:?}");
        }
        for (name, bytes) in files("").unwrap() {
            assert_eq!(fsx::read(&root.join(&name)).unwrap(), bytes, "{name}: build again");
        }
        for folder in ["configs", "data/demo-clip", "data/demo-llava", "data/demo-mllm", "data/prompts"] {
            for path in fsx::list(&root.join(folder)).unwrap() {
                let name = plain(path.strip_prefix(root).unwrap());
                assert!(!files(&name).unwrap().is_empty(), "{name} is not carried");
            }
        }
    }

    #[test]
    fn a_copy_is_whole_and_a_changed_one_is_written_anew() {
        let cache = tempfile::tempdir().unwrap();
        let carried = files("data/prompts").unwrap();
        let folder = unpack_below(cache.path(), "data/prompts", &carried).unwrap();
        assert!(folder.ends_with("data/prompts") && fsx::list(&folder).unwrap().len() == carried.len());
        let short = folder.join("short.txt");
        std::fs::write(&short, "something else").unwrap();
        assert_eq!(unpack_below(cache.path(), "data/prompts", &carried).unwrap(), folder);
        assert_eq!(fsx::read(&short).unwrap(), include_bytes!("../data/prompts/short.txt"));
    }

    #[test]
    fn a_name_is_found_by_its_parts_and_no_other_is() {
        assert_eq!(plain(Path::new("configs/curves/../demo.toml")), "configs/demo.toml");
        assert_eq!(files(&plain(Path::new("./data/demo-captions.jsonl"))).unwrap().len(), 1);
        assert!(read_text(Path::new("configs/curves/../demo.toml")).unwrap().contains("[federated]"));
        for other in ["data/demo", "data/demo-clip-2", "/data/demo-clip", "../data/demo-clip", "", ".", "nowhere"] {
            assert!(files(&plain(Path::new(other))).unwrap().is_empty(), "{other}");
        }
    }
}
