//! Files: whole or not at all, texts and JSON, digests, locks.

pub mod bound;
mod json;
mod tree;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::error::{Error, Place, Result};

pub use json::{json, json_line, read_json};
pub use tree::{Check, Made, Met, made};

/// Reads a file; of a pipe or a device no more than [`bound::STREAM`].
pub fn read(path: &Path) -> Result<Vec<u8>> {
    read_most(path, u64::MAX)
}

/// Reads a file of at most so many bytes.
pub fn read_most(path: &Path, most: u64) -> Result<Vec<u8>> {
    let failed = |e| Error::io("read", path, e);
    let file = open(path)?;
    let facts = file.metadata().map_err(failed)?;
    let most = if facts.is_file() { most } else { most.min(bound::STREAM) };
    if facts.is_file() && facts.len() > most {
        return Err(bound::too_long(path.display(), facts.len(), most));
    }
    let mut bytes = bound::room(path, if facts.is_file() { facts.len() + 1 } else { 0 })?;
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 > most {
        true => Err(bound::too_long(path.display(), format!("more than {most}"), most)),
        false => Ok(bytes),
    }
}

/// Reads a UTF-8 text file of at most [`bound::TEXT`] bytes; a byte order mark before it is taken off.
pub fn read_text(path: &Path) -> Result<String> {
    text(read_most(path, bound::TEXT)?).at(|| path.display().to_string())
}

/// The same of what one person wrote: at most [`bound::WRITTEN`] bytes.
pub fn read_written(path: &Path) -> Result<String> {
    text(read_most(path, bound::WRITTEN)?).at(|| path.display().to_string())
}

/// What a file that begins with these bytes is, where it only stands in for another one.
pub fn stand_in(first: &[u8]) -> Option<&'static str> {
    let page: Vec<u8> = first.trim_ascii_start().iter().take(9).map(u8::to_ascii_lowercase).collect();
    match first {
        [] => Some("an empty file"),
        _ if first.starts_with(b"version https://git-lfs") => Some("a Git LFS pointer, not the file itself"),
        _ if page == b"<!doctype" || page.starts_with(b"<html") => Some("a web page, not the file itself"),
        _ => None,
    }
}

/// What a file that begins with these bytes is, where it is surely no text.
fn no_text(first: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 4] = [
        (b"\x1f\x8b", "a gzipped file"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x93NUMPY", "a numpy array"),
        (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    ];
    known.into_iter().find(|(mark, _)| first.starts_with(mark)).map(|(_, what)| what)
}

/// The text that a file's bytes are: UTF-8, byte order marks taken off, also where files were put together. What is none
/// is named by its line.
pub fn text(mut bytes: Vec<u8>) -> Result<String> {
    if let Some(what) = no_text(&bytes) {
        return Err(Error::data(format!("{what}, expected a text")));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(Error::data("UTF-16, expected UTF-8").hint("save it as UTF-8: iconv -f UTF-16 -t UTF-8"));
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    let marked = |text: String| if text.contains("\n\u{feff}") { text.replace("\n\u{feff}", "\n") } else { text };
    String::from_utf8(bytes).map(marked).map_err(|e| {
        let (at, bytes) = (e.utf8_error().valid_up_to(), e.as_bytes());
        let line = bytes[..at].iter().filter(|b| **b == b'\n').count() + 1;
        Error::data(format!("line {line}: byte {:#04x} is not UTF-8", bytes[at]))
            .hint("a text in Windows-1252? iconv -f WINDOWS-1252 -t UTF-8")
    })
}

/// Opens a file to append to; a link is refused.
pub fn append(path: &Path) -> Result<File> {
    let mut options = fs::OpenOptions::new();
    no_follow(options.create(true).append(true)).open(path).map_err(|e| Error::io("open", path, e))
}

/// How long a pipe is waited for that nobody writes to.
const WRITER: Duration = Duration::from_secs(2);

/// Opens a file for reading. A pipe whose other end nobody opens is an error, not waited for without end.
pub fn open(path: &Path) -> Result<File> {
    let failed = |e| Error::io("open", path, e);
    if !is_pipe(path) {
        return File::open(path).map_err(failed);
    }
    // Opening one blocks, and nothing but a writer ends that.
    let ((done, opened), own) = (std::sync::mpsc::channel(), path.to_path_buf());
    std::thread::Builder::new().spawn(move || done.send(File::open(own))).map_err(failed)?;
    match opened.recv_timeout(WRITER) {
        Ok(file) => file.map_err(failed),
        Err(_) => Err(Error::data(format!("{}: a pipe that nobody writes to", path.display()))),
    }
}

#[cfg(unix)]
fn is_pipe(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::metadata(path).is_ok_and(|facts| facts.file_type().is_fifo())
}

#[cfg(not(unix))]
fn is_pipe(_: &Path) -> bool {
    false
}

/// Whether an open file is what its path names: moved, removed or replaced it is not.
#[cfg(unix)]
pub fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let who = |facts: fs::Metadata| (facts.dev(), facts.ino());
    file.metadata().map(who).ok().is_some_and(|own| fs::metadata(path).map(who).ok() == Some(own))
}

/// Whether an open file is what its path names, as far as this system tells.
#[cfg(not(unix))]
pub fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// `fedllava` in the person's cache folder.
pub fn cache_dir() -> Result<PathBuf> {
    let env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || env("HOME").or_else(|| env("USERPROFILE")).map(|home| home.join(".cache"));
    let cache = env("XDG_CACHE_HOME").or_else(home);
    let cache =
        cache.ok_or_else(|| Error::environment("no cache folder of yours is known").hint("set XDG_CACHE_HOME"))?;
    Ok(cache.join("fedllava"))
}

/// Makes a directory and its parents.
pub fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io("create the folder", path, e))
}

/// How unfinished files begin.
pub const PART: &str = ".part-";

/// Removes what a killed process left unfinished in a folder; only for who holds the folder's [`Lock`].
pub fn sweep(folder: &Path) -> Result<()> {
    for path in if folder.is_dir() { list(folder)? } else { Vec::new() } {
        if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(PART)) {
            let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            gone.map_err(|e| Error::io("remove", &path, e))?;
        }
    }
    Ok(())
}

/// Unfinished files and folders of a place that many processes write to are a killed one's after so long.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// Removes what killed processes left unfinished in a folder that has no lock, after a day.
pub fn sweep_stale(folder: &Path) -> Result<()> {
    for path in if folder.is_dir() { list(folder)? } else { Vec::new() } {
        let part = path.file_name().is_some_and(|n| n.to_string_lossy().contains(PART));
        let age = || fs::symlink_metadata(&path).ok()?.modified().ok()?.elapsed().ok();
        if part && age().is_some_and(|age| age > STALE) {
            // Another process may remove it at the same time.
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
    Ok(())
}

/// Writes a file whole or not at all: temporary sibling, fsync, rename, fsync of the folder.
pub fn write_atomic(path: &Path, contents: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(contents))
}

/// As [`write_atomic`], for contents that are streamed.
pub fn write_atomic_with(path: &Path, fill: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    let parent = parent(path);
    create_dir(parent)?;
    let write = || -> std::io::Result<()> {
        let mut file = for_all(tempfile::Builder::new().prefix(PART)).tempfile_in(parent)?;
        fill(file.as_file_mut())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        sync_dir(parent)
    };
    write().map_err(|e| Error::io("write", path, e))
}

/// Appends one line and flushes it to the operating system.
pub fn append_line(file: &mut File, path: &Path, line: &str) -> Result<()> {
    file.write_all(format!("{line}\n").as_bytes()).map_err(|e| Error::io("append to", path, e))
}

/// The entries of a folder, sorted by name.
pub fn list(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(path).map_err(|e| Error::io("list", path, e))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(|e| Error::io("list", path, e))?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Lower-case hexadecimal.
pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of some bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes))
}

/// A SHA-256 that grows with what is written.
#[derive(Clone, Default)]
pub struct Growing(Sha256);

impl Growing {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all so far, in hexadecimal.
    pub fn hex(&self) -> String {
        hex(self.0.clone().finalize())
    }
}

/// SHA-256 of several pieces, with the length of each.
pub fn proof(pieces: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for piece in pieces {
        hasher.update((piece.len() as u64).to_le_bytes());
        hasher.update(piece);
    }
    hasher.finalize().into()
}

/// SHA-256 of a file, in hexadecimal: what `sha256sum` prints.
pub fn sha256_file(path: &Path) -> Result<String> {
    let mut file = open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(|e| Error::io("read", path, e))? {
            0 => return Ok(hex(hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// SHA-256 of a file's first `length` bytes, or of all where it has fewer; of no byte no file is needed.
pub fn sha256_first(path: &Path, length: u64) -> Result<String> {
    if length == 0 {
        return Ok(sha256(&[]));
    }
    let (mut file, mut hasher, mut buffer) = (open(path)?.take(length), Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).map_err(|e| Error::io("read", path, e))? {
            0 => return Ok(hex(hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// An exclusive lock on a folder, held until dropped.
#[allow(dead_code, reason = "the open files are the lock")]
pub struct Lock(File, Option<File>);

impl Lock {
    /// Takes the lock of a folder, or says that another process has it.
    pub fn take(folder: &Path) -> Result<Lock> {
        create_dir(folder)?;
        let taken = || {
            Error::environment(format!("{} is in use by another process", folder.display()))
                .hint("wait for it, or choose another directory with --set run.dir=…")
        };
        let mut lock = Self::try_file(&folder.join(".lock"))?.ok_or_else(taken)?;
        // The folder itself too, where the file system can: the file may be deleted while its holder lives.
        let own = open(folder)?;
        match own.try_lock() {
            Err(fs::TryLockError::WouldBlock) => return Err(taken()),
            held => lock.1 = held.is_ok().then_some(own),
        }
        Ok(lock)
    }

    /// Whether a folder's lock could be taken for all that its disk and its permissions say.
    pub fn possible(folder: &Path) -> bool {
        use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        let opened = no_follow(fs::OpenOptions::new().create(true).append(true)).open(folder.join(".lock"));
        !opened.is_err_and(|e| matches!(e.kind(), PermissionDenied | ReadOnlyFilesystem))
    }

    /// Takes this file as a lock; none where a living process has it. A link is refused.
    pub fn try_file(path: &Path) -> Result<Option<Lock>> {
        let file = append(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file, None))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(e)) => Err(Error::io("lock", path, e)),
        }
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

#[cfg(unix)]
fn sync_dir(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(not(unix))]
fn sync_dir(_: &Path) -> std::io::Result<()> {
    Ok(())
}

/// Temporary files are private by default; results are for whom the umask says.
#[cfg(unix)]
fn for_all<'b, 'p, 's>(builder: &'b mut tempfile::Builder<'p, 's>) -> &'b mut tempfile::Builder<'p, 's> {
    use std::os::unix::fs::PermissionsExt;
    builder.permissions(fs::Permissions::from_mode(0o666))
}

#[cfg(not(unix))]
fn for_all<'b, 'p, 's>(builder: &'b mut tempfile::Builder<'p, 's>) -> &'b mut tempfile::Builder<'p, 's> {
    builder
}

/// A link in a run's directory could lead a write anywhere.
#[cfg(unix)]
fn no_follow(options: &mut fs::OpenOptions) -> &mut fs::OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    options.custom_flags(libc::O_NOFOLLOW)
}

#[cfg(not(unix))]
fn no_follow(options: &mut fs::OpenOptions) -> &mut fs::OpenOptions {
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_atomic(&path, b"old").unwrap();
        let failed = write_atomic_with(&path, |f| {
            f.write_all(b"half")?;
            Err(std::io::Error::other("disk full"))
        });
        assert!(failed.unwrap_err().to_string().contains("disk full"));
        assert_eq!(read(&path).unwrap(), b"old");
        assert_eq!(list(dir.path()).unwrap(), vec![path]);
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_read_where_somebody_writes_and_not_waited_for_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        if !std::process::Command::new("mkfifo").arg(&path).status().is_ok_and(|status| status.success()) {
            return;
        }
        let writer = std::thread::spawn({
            let path = path.clone();
            move || fs::write(path, b"said").unwrap()
        });
        assert_eq!(read(&path).unwrap(), b"said");
        writer.join().unwrap();
        assert!(open(&path).unwrap_err().to_string().contains("nobody writes"));
    }

    #[test]
    fn what_is_longer_than_its_bound_is_refused_and_a_device_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_atomic(&path, b"12345").unwrap();
        assert_eq!(read_most(&path, 5).unwrap(), b"12345");
        let e = read_most(&path, 4).unwrap_err().to_string();
        assert!(e.contains("a.txt: 5 bytes, the most that is read is 4"), "{e}");
        if Path::new("/dev/zero").exists() {
            let e = read_written(Path::new("/dev/zero")).unwrap_err().to_string();
            assert!(e.contains("/dev/zero: more than 16777216 bytes"), "{e}");
        }
    }

    #[test]
    fn a_mark_before_a_text_is_taken_off_and_other_encodings_are_named_by_line() {
        assert_eq!(text(b"\xef\xbb\xbfa\nb".to_vec()).unwrap(), "a\nb");
        let e = text(b"fine\na dog\x92s ball".to_vec()).unwrap_err().to_string();
        assert!(e.contains("line 2: byte 0x92 is not UTF-8") && e.contains("WINDOWS-1252"), "{e}");
        assert!(text(b"\xff\xfea\0".to_vec()).unwrap_err().to_string().contains("UTF-16"));
    }

    #[test]
    fn what_killed_processes_left_goes_after_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in [".part-old", "ab.part-7-0", ".part-new", "kept"] {
            fs::write(at(name), "x").unwrap();
        }
        let old = std::time::SystemTime::now() - 2 * STALE;
        for name in [".part-old", "ab.part-7-0", "kept"] {
            File::options().append(true).open(at(name)).unwrap().set_modified(old).unwrap();
        }
        sweep_stale(dir.path()).unwrap();
        assert_eq!(list(dir.path()).unwrap(), [at(".part-new"), at("kept")]);
    }

    #[test]
    fn a_second_lock_is_refused_until_the_first_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap();
        assert!(Lock::take(dir.path()).is_err());
        drop(first);
        assert!(Lock::take(dir.path()).is_ok());
    }

    /// FIPS 180-2, appendix B.1.
    #[test]
    fn sha256_gives_the_published_digest() {
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
