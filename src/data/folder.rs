//! A benchmark as folders: `train/<class>/<image>` and `test/<class>/<image>`.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::dataset::{Benchmark, Dataset, Order};
use super::{decode, resolve};
use crate::error::{Error, Place, Result};
use crate::exec::Context;
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

/// Reads both parts. Classes are the sorted names of the subfolders, the same in both.
pub fn load(config: &FolderConfig, cx: &Context) -> Result<Benchmark> {
    let root = resolve(&config.path)?;
    let part = |part: &str| labelled(&format!("{} {part}", config.path), &root.join(part), config.size, cx);
    Benchmark::new(part("train")?, part("test")?)
}

/// Reads one folder of class folders, files in name order within each class.
pub fn labelled(name: &str, folder: &Path, size: usize, cx: &Context) -> Result<Dataset> {
    let (mut files, mut labels, mut classes) = (Vec::new(), Vec::new(), Vec::new());
    for class in fsx::list(folder)?.into_iter().filter(|p| p.is_dir()) {
        let images: Vec<PathBuf> = fsx::list(&class)?.into_iter().filter(|p| is_image(p)).collect();
        labels.extend(std::iter::repeat_n(classes.len() as u32, images.len()));
        files.extend(images);
        classes.push(class.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default());
    }
    if files.is_empty() {
        return Err(Error::data(format!("{}: no class folder with images", folder.display()))
            .hint("expected <class>/<image>.png (or .jpg, .jpeg, .webp)"));
    }
    let side = (size > 0).then_some(size);
    let read = |i: usize| {
        let path: &PathBuf = &files[i];
        fsx::read(path).at(|| path.display().to_string())
    };
    let images = decode::all(cx, files.len(), side, read).map_err(|e| e.context(folder.display().to_string()))?;
    Dataset::new(name, images, labels, classes, Order::Original)
}

/// Whether the name ends as an image file's.
pub fn is_image(path: &Path) -> bool {
    let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    path.is_file() && matches!(ending.as_deref(), Some("png" | "jpg" | "jpeg" | "webp"))
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
        let config = FolderConfig { path: dir.path().display().to_string(), size: 0 };
        let set = load(&config, &Context::cpu(2)).unwrap();
        assert_eq!(set.train.classes, ["a", "b"]);
        assert_eq!(set.train.labels, [0, 1, 1]);
        assert_eq!((0..3).map(|i| set.train.images.get(i)[0]).collect::<Vec<_>>(), [3, 2, 1]);
        assert_eq!(set.test.images.shape(), [3, 2, 2]);
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
