//! A benchmark that lies once in a machine's memory: the first process there reads it and puts the pixels into a file
//! without a name, which the others map. Nothing is left behind, however a process ends.

use std::fs::File;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Benchmark, Census, Dataset, Images, Order, Pictures};
use crate::error::{Error, Place, Result};

/// What another process of the machine needs to see the same benchmark.
#[derive(Debug, Serialize, Deserialize)]
pub struct Notice {
    /// Training, test and, where there is one, validation set.
    sets: Vec<Set>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Set {
    name: String,
    shape: [usize; 3],
    labels: Vec<u32>,
    classes: Vec<String>,
    order: Order,
    digest: String,
    /// The open file, as other processes reach it.
    file: PathBuf,
}

/// Keeps the files of a shared benchmark.
pub struct Shared {
    /// For the others.
    pub notice: Notice,
    _files: Vec<File>,
}

impl Benchmark {
    /// Moves the pixels to where other processes of this machine see them, as long as this one keeps what it gets; nothing
    /// where images lie in files of their own, which the system's cache shares anyway. (Linux alone.)
    pub fn share(&mut self) -> Result<Option<Shared>> {
        let mut sets: Vec<&mut Dataset> = vec![&mut self.train, &mut self.test];
        sets.extend(self.val.as_mut());
        if !cfg!(target_os = "linux") || sets.iter().any(|set| set.images.held().is_none()) {
            return Ok(None);
        }
        let (mut told, mut files) = (Vec::new(), Vec::new());
        for set in sets {
            let Pictures::Held(images) = &set.images else { continue };
            let (images, file) = images.shared().at(|| set.name.clone())?;
            told.push(Set {
                name: set.name.clone(),
                shape: images.shape(),
                labels: set.labels.clone(),
                classes: set.classes.clone(),
                order: set.order,
                digest: set.digest.clone(),
                file: reached(&file)?,
            });
            set.images = images.into();
            files.push(file);
        }
        Ok(Some(Shared { notice: Notice { sets: told }, _files: files }))
    }
}

impl Notice {
    /// The benchmark, its pixels where the first process put them. What its readers saw is told there.
    pub fn open(self) -> Result<Benchmark> {
        let open = |set: Set| -> Result<Dataset> {
            let file = File::open(&set.file).map_err(|e| Error::io("open", &set.file, e))?;
            let Set { name, shape, labels, classes, order, digest, .. } = set;
            let images = Images::mapped(shape, &file).at(|| name.clone())?;
            if images.len() != labels.len() {
                return Err(Error::defect(format!("{name}: {} images for {} labels", images.len(), labels.len())));
            }
            Ok(Dataset { name, images: images.into(), labels, classes, order, digest, census: Census::default() })
        };
        let mut sets = self.sets.into_iter().map(open);
        let mut next = || sets.next().unwrap_or_else(|| Err(Error::defect("shared benchmark: a set is missing")));
        let mut benchmark = Benchmark::new(next()?, next()?)?;
        benchmark.val = sets.next().transpose()?;
        Ok(benchmark)
    }
}

/// The path by which other processes of this user open a file that this one has open.
#[cfg(unix)]
fn reached(file: &File) -> Result<PathBuf> {
    use std::os::fd::AsRawFd;
    Ok(PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())))
}

#[cfg(not(unix))]
fn reached(_: &File) -> Result<PathBuf> {
    Err(Error::defect("shared benchmark: not on this system"))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_shared_benchmark_is_the_same_and_its_pixels_are_mapped() {
        let set = |name: &str, n: u32| {
            let pixels = (0..n * 12).map(|i| (i * 7 % 251) as u8).collect();
            let labels = (0..n).map(|i| i % 3).collect();
            let classes = ["a", "b", "c"].map(String::from).to_vec();
            Dataset::new(name, Images::new([3, 2, 2], pixels).unwrap(), labels, classes, Order::Original).unwrap()
        };
        let mut own = Benchmark::new(set("train", 9), set("test", 4)).unwrap();
        own.val = Some(set("val", 2));
        let before = own.clone();
        let shared = own.share().unwrap().unwrap();
        let text = serde_json::to_string(&shared.notice).unwrap();
        let other = serde_json::from_str::<Notice>(&text).unwrap().open().unwrap();
        for sets in [(&other.train, &before.train), (&other.test, &before.test), (&own.train, &before.train)] {
            assert_eq!(sets.0.images.held(), sets.1.images.held());
            assert_eq!(
                (&sets.0.labels, &sets.0.digest, &sets.0.classes),
                (&sets.1.labels, &sets.1.digest, &sets.1.classes)
            );
        }
        assert_eq!(other.val.unwrap().len(), 2);
        drop(shared);
        assert_eq!(other.train.images.held(), before.train.images.held(), "what is mapped stays");
        assert!(serde_json::from_str::<Notice>(&text).unwrap().open().is_err(), "and nothing is left behind");
    }
}
