//! A benchmark as folders: `train/<class>/<image>` and `test/<class>/<image>`.

use std::io::Read;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::census::{Census, Why};
use super::dataset::{Benchmark, Dataset, Order};
use super::{decode, resolve};
use crate::error::{Error, Place, Result};
use crate::exec::{Cancel, Context};
use crate::fsx;

/// `data.kind = "folder"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FolderConfig {
    /// The folder that holds `train` and `test`; a relative one may lie below `$FEDLLAVA_DATA`.
    pub path: String,
    /// Side in pixels that every image is scaled to (shorter side, middle square). 0: as they are, all of one size.
    pub size: usize,
}

impl Default for FolderConfig {
    fn default() -> Self {
        FolderConfig { path: "images".into(), size: 32 }
    }
}

/// Reads both parts. Classes are the sorted names of the subfolders, the same in both; a class may be empty in `test`.
pub fn load(config: &FolderConfig, cx: &Context) -> Result<Benchmark> {
    let root = resolve(&config.path)?;
    let part = |part: &str, gaps: bool| match root.join(part) {
        folder if folder.is_dir() => labelled(&format!("{} {part}", config.path), &folder, config.size, gaps, cx),
        folder => Err(Error::data(format!("no folder {}", folder.display()))
            .hint("expected train/<class>/<image> and test/<class>/<image>")),
    };
    Benchmark::new(part("train", false)?, part("test", true)?)
}

/// Reads one folder of class folders: images to any depth in each, in torchvision's order. `gaps`: a class may have no
/// image. A link into another class's folder, and a class that is a link to one, is passed over and counted: an image has
/// one class.
pub fn labelled(name: &str, folder: &Path, size: usize, gaps: bool, cx: &Context) -> Result<Dataset> {
    let mut census = Census::new(folder.display().to_string(), "images");
    let (mut files, mut labels, mut classes) = (Vec::new(), Vec::new(), Vec::new());
    let (mut met, within) = (fsx::Met::default(), real(folder));
    for path in fsx::list(folder)? {
        let file_name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if hidden(&file_name) {
            census.pass(Why::Hidden, file_name);
        } else if path.is_dir() && leads_inside(&path, &within) {
            census.pass(Why::Again, file_name);
        } else if path.is_dir() {
            let mut own = Census::default();
            let found = images(&path, folder, &mut met, &cx.cancel, &mut own)?;
            if found.is_empty() && !gaps {
                return Err(empty(&file_name, folder, &own));
            }
            census.add(own);
            labels.extend(std::iter::repeat_n(classes.len() as u32, found.len()));
            files.extend(found);
            classes.push(file_name);
        } else {
            let why = sort_out(&path).map_or(Why::Outside, |why| if why == Why::Ending { Why::Outside } else { why });
            census.pass(why, file_name);
        }
    }
    if files.is_empty() {
        return Err(Error::data(format!("{}: no class folder with images", folder.display()))
            .hint(format!("expected <class>/<image>; read are {}", decode::ENDINGS.join(", "))));
    }
    census.read = files.len();
    let side = (size > 0).then_some(size);
    let read = |i: usize| fsx::read(&files[i]);
    let called = |i: usize| below(&files[i], folder);
    let images = decode::all(cx, files.len(), side, called, read).at(|| folder.display().to_string())?;
    Ok(Dataset::new(name, images, labels, classes, Order::Original)?.counted(census))
}

/// A folder's real path.
fn real(folder: &Path) -> PathBuf {
    folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf())
}

/// Whether a path is a link to what has a name of its own below the folder whose real path is `root`.
fn leads_inside(path: &Path, root: &Path) -> bool {
    let lies = |real: PathBuf| {
        let below = real.strip_prefix(root).ok()?.to_path_buf();
        Some(!below.components().any(|c| hidden(&c.as_os_str().to_string_lossy())))
    };
    path.is_symlink() && path.canonicalize().ok().and_then(lies).unwrap_or(false)
}

fn empty(class: &str, folder: &Path, census: &Census) -> Error {
    let of = |why| census.passed.get(&why).map(|p| p.first.join(", "));
    let there =
        of(Why::Ending).or_else(|| of(Why::Other)).map_or("it is empty".into(), |names| format!("there are {names}"));
    Error::data(format!("{}: class {class} has no image; {there}", folder.display()))
        .hint(format!("endings that are read: {}; take the folder out if it is no class", decode::ENDINGS.join(", ")))
}

/// Image files below a folder to any depth, ordered as torchvision's `ImageFolder` orders them; whatever else is there
/// is counted by its path below `root`. `met` are the folders that are not gone into, `folder` itself aside.
pub(super) fn images(
    folder: &Path,
    root: &Path,
    met: &mut fsx::Met,
    cancel: &Cancel,
    census: &mut Census,
) -> Result<Vec<PathBuf>> {
    let (mut found, mut others) = (Vec::new(), Vec::new());
    walk(folder, root, met, cancel, census, &mut |path, why| match why {
        None => found.push(path),
        Some(why) => others.push((path, why)),
    })?;
    others.into_iter().for_each(|(path, why)| census.pass(why, below(&path, root)));
    found.sort_by(|a, b| (a.parent().map(Path::as_os_str), a).cmp(&(b.parent().map(Path::as_os_str), b)));
    Ok(found)
}

/// Hands every file below a folder to `meet`, with the reason where it is no image that is read; hidden ones, and
/// folders that were met before or are met by their own names (links to others below `root`), are counted by their path
/// below `root`.
pub(super) fn walk(
    folder: &Path,
    root: &Path,
    met: &mut fsx::Met,
    cancel: &Cancel,
    census: &mut Census,
    meet: &mut dyn FnMut(PathBuf, Option<Why>),
) -> Result<()> {
    let within = real(root);
    met.first(folder)?;
    let mut ahead = fsx::list(folder)?;
    ahead.reverse();
    while let Some(path) = ahead.pop() {
        cancel.check()?;
        if path.file_name().is_some_and(|n| hidden(&n.to_string_lossy())) {
            census.pass(Why::Hidden, below(&path, root));
        } else if !path.is_dir() {
            let why = sort_out(&path);
            meet(path, why);
        } else if !leads_inside(&path, &within) && met.first(&path)? {
            ahead.extend(fsx::list(&path)?.into_iter().rev());
        } else {
            census.pass(Why::Again, below(&path, root));
        }
    }
    Ok(())
}

/// A path below a folder, with slashes.
pub(super) fn below(path: &Path, root: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    below.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// Names that begin with a dot, and what macOS and network storage leave in folders.
pub(super) fn hidden(name: &str) -> bool {
    name.starts_with('.') || ["__MACOSX", "@eaDir"].contains(&name)
}

/// Why a file is not read, if it is not.
fn sort_out(path: &Path) -> Option<Why> {
    // Reading a pipe or a device may never end, whatever its name.
    if std::fs::metadata(path).is_ok_and(|facts| !facts.is_file()) {
        return Some(Why::Other);
    }
    let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    if path.metadata().is_ok_and(|facts| !facts.is_file()) {
        return Some(Why::Other); // a pipe would never end
    }
    if decode::is_read(&ending) {
        return None;
    }
    let mut first = Vec::new();
    let read = fsx::open(path).map(|file| file.take(64).read_to_end(&mut first));
    let foreign = decode::is_foreign(&ending, if read.is_ok() { &first } else { &[] });
    Some(if foreign { Why::Ending } else { Why::Other })
}

#[cfg(test)]
mod tests {
    use super::super::decode::tests::png;
    use super::*;

    #[test]
    fn classes_are_the_sorted_folders_and_files_follow_their_names() {
        let dir = tempfile::tempdir().unwrap();
        for (path, v) in
            [("train/b/2.png", 1), ("train/b/1.png", 2), ("train/a/9.png", 3), ("test/a/x.png", 4), ("test/b/y.png", 5)]
        {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, png(2, 2, |_, _| [v; 3])).unwrap();
        }
        std::fs::write(dir.path().join("train/b/notes.txt"), "no image").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("train/a/endless.png")).unwrap();
        let config = FolderConfig { path: dir.path().display().to_string(), size: 0 };
        let set = load(&config, &Context::cpu(2)).unwrap();
        assert_eq!(set.train.classes, ["a", "b"]);
        assert_eq!(set.train.labels, [0, 1, 1]);
        assert_eq!((0..3).map(|i| set.train.images.get(i)[0]).collect::<Vec<_>>(), [3, 2, 1]);
        assert_eq!(set.test.images.shape(), [3, 2, 2]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_folder_above_is_met_once_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/1.png"), png(1, 1, |_, _| [0; 3])).unwrap();
        for name in ["l", "a/m"] {
            std::os::unix::fs::symlink(dir.path(), dir.path().join(name)).unwrap();
        }
        let mut census = Census::default();
        let walk = |cancel: &Cancel, census: &mut Census| {
            images(dir.path(), dir.path(), &mut fsx::Met::default(), cancel, census)
        };
        let found = walk(&Cancel::default(), &mut census).unwrap();
        assert_eq!((found.len(), census.passed(Why::Again)), (1, 2));
        let stopped = Cancel::default();
        stopped.stop();
        assert!(walk(&stopped, &mut census).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn links_between_class_folders_are_counted_and_give_no_image_two_classes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (class, v) in [("set/a", 1), ("set/b/deep", 2), ("elsewhere", 3)] {
            std::fs::create_dir_all(at(class)).unwrap();
            std::fs::write(at(class).join("1.png"), png(1, 1, |_, _| [v; 3])).unwrap();
        }
        // Links of each class into the other, a class by a second name, and one that lies elsewhere, twice.
        for (to, link) in [
            ("../b/deep", "a/more"),
            ("../a", "b/more"),
            ("b", "d"),
            ("../elsewhere", "e"),
            ("../../elsewhere", "e2/z"),
        ] {
            std::fs::create_dir_all(at("set").join(link).parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(to, at("set").join(link)).unwrap();
        }
        let set = labelled("links", &at("set"), 0, true, &Context::cpu(1)).unwrap();
        assert_eq!((set.classes.join(" "), set.labels.as_slice()), ("a b e e2".into(), [0, 1, 2].as_slice()));
        let line = set.census.line();
        assert!(line.contains("4 folders met before (a/more, b/more, d, …)"), "{line}");
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_in_a_class_folder_is_no_image() {
        let dir = tempfile::tempdir().unwrap();
        let (class, pipe) = (dir.path().join("a"), dir.path().join("a/p.png"));
        std::fs::create_dir(&class).unwrap();
        std::fs::write(class.join("1.png"), png(1, 1, |_, _| [0; 3])).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let set = labelled("set", dir.path(), 0, true, &Context::cpu(1)).unwrap();
        assert_eq!((set.len(), set.census.passed(Why::Other)), (1, 1));
    }

    #[test]
    fn a_class_that_only_one_part_has_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["train/a/1.png", "train/b/1.png", "test/a/1.png"] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, png(1, 1, |_, _| [0; 3])).unwrap();
        }
        let config = FolderConfig { path: dir.path().display().to_string(), size: 0 };
        assert!(load(&config, &Context::cpu(1)).unwrap_err().to_string().contains("classes a, b"));
    }
}
