//! Folders: walks that see each real directory once, and digests of all that lies in one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{hex, list, open, sha256_file};
use crate::error::{Error, Result};

/// Asked at every step of what may take long: an error ends it.
pub type Check<'a> = &'a dyn Fn() -> Result<()>;

/// Directories that were met, by what they are and not by their names: a link leads into each only once.
#[derive(Default)]
pub struct Met(BTreeSet<(u64, u64)>);

impl Met {
    /// Whether this directory is met for the first time.
    pub fn first(&mut self, folder: &Path) -> Result<bool> {
        Ok(identity(folder)?.is_none_or(|identity| self.0.insert(identity)))
    }
}

#[cfg(unix)]
fn identity(folder: &Path) -> Result<Option<(u64, u64)>> {
    use std::os::unix::fs::MetadataExt;
    let facts = fs::metadata(folder).map_err(|e| Error::io("look at", folder, e))?;
    Ok(Some((facts.dev(), facts.ino())))
}

#[cfg(not(unix))]
fn identity(folder: &Path) -> Result<Option<(u64, u64)>> {
    // Without numbers of directories their real paths tell them apart.
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    fs::canonicalize(folder).map_err(|e| Error::io("look at", folder, e))?.hash(&mut hasher);
    Ok(Some((0, hasher.finish())))
}

/// The digest of a file, or of all files below a folder but for hidden ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// SHA-256.
    pub digest: String,
    /// What it is a digest of.
    pub covers: &'static str,
}

/// Up to so many bytes all of them are digested (4 GiB: three seconds where the processor knows SHA-256).
const WHOLE: u64 = 1 << 32;
/// Up to so many files pieces of each.
const FILES: usize = 20_000;
/// Bytes of a piece.
const PIECE: u64 = 1 << 16;

/// Digests a file or a folder: every byte up to 4 GiB; above it names, sizes and three pieces of each file, and of more
/// than 20,000 files names and sizes alone.
pub fn made(path: &Path, check: Check<'_>) -> Result<Made> {
    let mut files = Vec::new();
    match path.is_dir() {
        true => collect(path, String::new(), &mut Met::default(), &mut files, check)?,
        false => files.push((String::new(), path.to_path_buf(), length(path)?)),
    }
    let total = files.iter().map(|f| f.2).fold(0, u64::saturating_add);
    let covers = match () {
        () if total <= WHOLE => "every byte",
        () if files.len() <= FILES => "names, sizes, and three pieces of 64 KiB of each file",
        () => "names and sizes",
    };
    let mut all = Sha256::new();
    for (name, path, length) in &files {
        check()?;
        all.update(format!("{name}\n{length}\n"));
        match covers {
            "every byte" => all.update(sha256_file(path)?),
            "names and sizes" => {}
            _ => pieces(path, *length, &mut all)?,
        }
    }
    Ok(Made { digest: hex(all.finalize()), covers })
}

/// Of a file; a pipe or a device, which may have no end, has no digest.
fn length(path: &Path) -> Result<u64> {
    let facts = fs::metadata(path).map_err(|e| Error::io("look at", path, e))?;
    match facts.is_file() {
        true => Ok(facts.len()),
        false => Err(Error::data(format!("{} is neither a file nor a folder", path.display()))),
    }
}

fn collect(
    folder: &Path,
    name: String,
    met: &mut Met,
    files: &mut Vec<(String, PathBuf, u64)>,
    check: Check<'_>,
) -> Result<()> {
    check()?;
    if !met.first(folder)? {
        return Ok(());
    }
    for path in list(folder)? {
        let own = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let below = if name.is_empty() { own.clone() } else { format!("{name}/{own}") };
        match () {
            () if own.starts_with('.') => {}
            () if path.is_dir() => collect(&path, below, met, files, check)?,
            // A link to nothing is nothing.
            () if !path.exists() => {}
            () => {
                let n = length(&path)?;
                files.push((below, path, n));
            }
        }
    }
    Ok(())
}

/// The first, middle and last piece of a file.
fn pieces(path: &Path, length: u64, all: &mut Sha256) -> Result<()> {
    let mut file: File = open(path)?;
    for at in [0, (length / 2).saturating_sub(PIECE / 2), length.saturating_sub(PIECE)] {
        let mut piece = Vec::new();
        let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.by_ref().take(PIECE).read_to_end(&mut piece));
        read.map_err(|e| Error::io("read", path, e))?;
        all.update(piece);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_sees_every_byte_and_name_and_no_hidden_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("a")).unwrap();
        fs::write(at("a/x"), "one").unwrap();
        fs::write(at("y"), "two").unwrap();
        let digest = || made(dir.path(), &|| Ok(())).unwrap().digest;
        let first = digest();
        fs::write(at(".hidden"), "three").unwrap();
        assert_eq!(digest(), first);
        fs::write(at("a/x"), "onE").unwrap();
        assert_ne!(digest(), first);
        fs::write(at("a/x"), "one").unwrap();
        assert_eq!(digest(), first);
        fs::rename(at("y"), at("z")).unwrap();
        assert_ne!(digest(), first);
        assert!(made(dir.path(), &|| Err(Error::stopped())).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn what_has_no_end_has_no_digest() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("x")).unwrap();
        for path in [dir.path(), Path::new("/dev/zero")] {
            assert!(made(path, &|| Ok(())).unwrap_err().to_string().contains("neither a file nor a folder"));
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_to_folders_above_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x"), "one").unwrap();
        for name in ["l", "m"] {
            std::os::unix::fs::symlink(".", dir.path().join(name)).unwrap();
        }
        std::os::unix::fs::symlink("nowhere", dir.path().join("n")).unwrap();
        let mut files = Vec::new();
        collect(dir.path(), String::new(), &mut Met::default(), &mut files, &|| Ok(())).unwrap();
        assert_eq!(files.len(), 1);
    }
}
