//! CIFAR-10 and CIFAR-100 (Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009).
//!
//! The layout is detected in the folder: Parquet shards of the Hugging Face Hub (`train-*.parquet`, also one folder
//! deeper), Python pickles (`cifar-10-batches-py`, `cifar-100-python`), or the binary version
//! (`cifar-10-batches-bin`, `cifar-100-binary`). The last two keep the original order, which is torchvision's; of CIFAR-100
//! in Parquet it is known by the pixels whether each class is in its original order.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::census::Census;
use super::dataset::{Benchmark, Dataset, Images, Order};
use super::{hf_parquet, pickle, resolve};
use crate::error::{Error, Place, Result};
use crate::exec::Context;
use crate::fsx;

/// `data.kind = "cifar10"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cifar10Config {
    /// The folder; a relative one may lie below `$FEDLLAVA_DATA`.
    pub path: String,
}

impl Default for Cifar10Config {
    fn default() -> Self {
        Cifar10Config { path: "cifar10".into() }
    }
}

/// `data.kind = "cifar100"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cifar100Config {
    /// The folder; a relative one may lie below `$FEDLLAVA_DATA`.
    pub path: String,
    /// Which of an image's two labels is its class.
    pub labels: Cifar100Labels,
}

impl Default for Cifar100Config {
    fn default() -> Self {
        Cifar100Config { path: "cifar100".into(), labels: Cifar100Labels::Fine }
    }
}

/// The labels of CIFAR-100.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Cifar100Labels {
    /// The hundred classes.
    #[default]
    Fine,
    /// The twenty superclasses, five classes each.
    Coarse,
}

impl Cifar100Labels {
    /// Number of classes.
    pub fn classes(self) -> usize {
        self.layout().classes.len()
    }

    fn layout(self) -> &'static Layout {
        match self {
            Cifar100Labels::Fine => &CIFAR100,
            Cifar100Labels::Coarse => &CIFAR100_COARSE,
        }
    }
}

/// What differs between the data sets.
struct Layout {
    name: &'static str,
    classes: &'static [&'static str],
    column: &'static str,
    /// Folders in which the Hub's copies keep their shards.
    parquet_folders: &'static [&'static str],
    /// [`Dataset::digest_by_class`] of the training images in the original order, where it is known.
    by_class: &'static str,
    pickles: Pickles,
    binary: Binary,
}

struct Pickles {
    folder: &'static str,
    train: &'static [&'static str],
    test: &'static str,
    labels: &'static str,
    meta: &'static str,
    names: &'static str,
}

struct Binary {
    folder: &'static str,
    train: &'static [&'static str],
    test: &'static str,
    /// Label bytes before the pixels.
    label_bytes: usize,
    /// Which of them is used.
    label: usize,
}

static CIFAR10: Layout = Layout {
    name: "cifar10",
    classes: &["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    column: "label",
    parquet_folders: &["plain_text", "data"],
    by_class: "",
    pickles: Pickles {
        folder: "cifar-10-batches-py",
        train: &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"],
        test: "test_batch",
        labels: "labels",
        meta: "batches.meta",
        names: "label_names",
    },
    binary: Binary {
        folder: "cifar-10-batches-bin",
        train: &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"],
        test: "test_batch.bin",
        label_bytes: 1,
        label: 0,
    },
};

const FINE: Layout = Layout {
    name: "cifar100",
    classes: super::cifar_names::CIFAR100,
    column: "fine_label",
    parquet_folders: &["cifar100", "data"],
    by_class: "b26afbe2eeeb1bd37f5c2fbc19c9632135402bf618dc1aad682afbd06dbc3ed4",
    pickles: Pickles {
        folder: "cifar-100-python",
        train: &["train"],
        test: "test",
        labels: "fine_labels",
        meta: "meta",
        names: "fine_label_names",
    },
    binary: Binary { folder: "cifar-100-binary", train: &["train.bin"], test: "test.bin", label_bytes: 2, label: 1 },
};

static CIFAR100: Layout = FINE;

static CIFAR100_COARSE: Layout = Layout {
    name: "cifar100 superclasses",
    classes: super::cifar_names::SUPERCLASSES,
    column: "coarse_label",
    by_class: "",
    pickles: Pickles { labels: "coarse_labels", names: "coarse_label_names", ..FINE.pickles },
    binary: Binary { label: 0, ..FINE.binary },
    ..FINE
};

/// Bytes of an image, 3 · 32 · 32: red plane, green plane, blue plane.
const PIXELS: usize = 3072;

/// Reads CIFAR-10.
pub fn load10(config: &Cifar10Config, cx: &Context) -> Result<Benchmark> {
    CIFAR10.load(&resolve(&config.path)?, cx)
}

/// Reads CIFAR-100 with its fine or its coarse labels.
pub fn load100(config: &Cifar100Config, cx: &Context) -> Result<Benchmark> {
    config.labels.layout().load(&resolve(&config.path)?, cx)
}

/// How a copy of CIFAR-10 lies in `folder`, in words; none where none is there. No image is read.
pub fn layout10(folder: &Path) -> Result<Option<&'static str>> {
    Ok(CIFAR10.find(folder)?.map(|(kind, _)| kind.words()))
}

/// How a copy of CIFAR-100 lies in `folder`, likewise.
pub fn layout100(folder: &Path) -> Result<Option<&'static str>> {
    Ok(CIFAR100.find(folder)?.map(|(kind, _)| kind.words()))
}

/// The forms in which the data sets are published.
#[derive(Clone, Copy)]
enum Form {
    Parquet,
    Pickles,
    Binary,
}

impl Form {
    fn words(self) -> &'static str {
        match self {
            Form::Parquet => "Parquet",
            Form::Pickles => "Python pickles",
            Form::Binary => "the binary version",
        }
    }
}

impl Layout {
    /// Which form lies in `folder`, and where in it.
    fn find(&self, folder: &Path) -> Result<Option<(Form, PathBuf)>> {
        for inner in [""].iter().chain(self.parquet_folders) {
            let place = folder.join(inner);
            if place.is_dir() && !hf_parquet::shards(&place, "train")?.is_empty() {
                return Ok(Some((Form::Parquet, place)));
            }
        }
        let Layout { pickles: p, binary: b, .. } = self;
        let places = |inner: &str| [folder.to_path_buf(), folder.join(inner)];
        let pickles = |at: &PathBuf| at.join(p.train[0]).is_file() && at.join(p.meta).is_file();
        if let Some(place) = places(p.folder).into_iter().find(pickles) {
            return Ok(Some((Form::Pickles, place)));
        }
        let binary = places(b.folder).into_iter().find(|at| at.join(b.train[0]).is_file());
        Ok(binary.map(|place| (Form::Binary, place)))
    }

    fn load(&self, folder: &Path, cx: &Context) -> Result<Benchmark> {
        match self.find(folder)? {
            Some((Form::Parquet, place)) => return self.check(self.load_parquet(&place, cx)?),
            Some((Form::Pickles, place)) => return self.check(self.load_pickles(&place)?),
            Some((Form::Binary, place)) => return self.check(self.load_binary(&place)?),
            None => {}
        }
        Err(Error::data(format!("{}: no known layout of {}", folder.display(), self.name)).hint(format!(
            "expected train-*.parquet and test-*.parquet, or {}/{}, or {}/{}",
            self.pickles.folder, self.pickles.train[0], self.binary.folder, self.binary.train[0]
        )))
    }

    fn check(&self, benchmark: Benchmark) -> Result<Benchmark> {
        let (shape, classes) = (benchmark.train.images.shape(), benchmark.train.classes.len());
        if shape == [3, 32, 32] && classes == self.classes.len() {
            return Ok(benchmark);
        }
        Err(Error::data(format!("{}: images {shape:?} of {classes} classes", self.name))
            .hint(format!("expected [3, 32, 32] and {}; another data set?", self.classes.len())))
    }

    fn load_parquet(&self, folder: &Path, cx: &Context) -> Result<Benchmark> {
        let part = |part: &str| {
            let shards = hf_parquet::shards(folder, part)?;
            if shards.is_empty() {
                return Err(Error::data(format!("{}: no {part}-*.parquet", folder.display())));
            }
            hf_parquet::read(&format!("{} {part}", self.name), &shards, self.column, self.classes, None, cx)
        };
        let mut train = part("train")?;
        if !self.by_class.is_empty() && train.digest_by_class().as_deref() == Some(self.by_class) {
            train.order = Order::Classes;
        }
        Benchmark::new(train, part("test")?)
    }

    fn load_pickles(&self, folder: &Path) -> Result<Benchmark> {
        let p = &self.pickles;
        let meta = folder.join(p.meta);
        let classes = pickle::Batch::read(&meta)?.names(p.names).at(|| meta.display().to_string())?;
        let part = |part: &str, files: &[&str]| {
            let (mut pixels, mut labels) = (Vec::new(), Vec::new());
            for path in files.iter().map(|f| folder.join(f)) {
                let place = || path.display().to_string();
                let batch = pickle::Batch::read(&path)?;
                pixels.extend(batch.rows("data", PIXELS).at(place)?);
                labels.extend(batch.labels(p.labels).at(place)?);
            }
            self.dataset(part, folder, pixels, labels, classes.clone())
        };
        Benchmark::new(part("train", p.train)?, part("test", &[p.test])?)
    }

    fn load_binary(&self, folder: &Path) -> Result<Benchmark> {
        let b = &self.binary;
        let part = |part: &str, files: &[&str]| {
            let (mut pixels, mut labels) = (Vec::new(), Vec::new());
            for path in files.iter().map(|f| folder.join(f)) {
                self.read_binary(&path, &mut pixels, &mut labels)?;
            }
            self.dataset(part, folder, pixels, labels, self.classes.iter().map(ToString::to_string).collect())
        };
        Benchmark::new(part("train", b.train)?, part("test", &[b.test])?)
    }

    fn read_binary(&self, path: &Path, pixels: &mut Vec<u8>, labels: &mut Vec<u32>) -> Result<()> {
        let (bytes, record) = (fsx::read(path)?, self.binary.label_bytes + PIXELS);
        if bytes.len() % record != 0 {
            return Err(Error::data(format!(
                "{}: {} bytes are not whole records of {record}",
                path.display(),
                bytes.len()
            )));
        }
        for row in bytes.chunks_exact(record) {
            let (label, image) = row.split_at(self.binary.label_bytes);
            labels.push(u32::from(label[self.binary.label]));
            pixels.extend_from_slice(image);
        }
        Ok(())
    }

    fn dataset(
        &self,
        part: &str,
        folder: &Path,
        pixels: Vec<u8>,
        labels: Vec<u32>,
        classes: Vec<String>,
    ) -> Result<Dataset> {
        let images = Images::new([3, 32, 32], pixels)?;
        let name = format!("{} {part}", self.name);
        let mut census = Census::new(format!("{name} ({})", folder.display()), "images");
        census.read = labels.len();
        Ok(Dataset::new(name, images, labels, classes, Order::Original)?.counted(census))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// Small files in the real layouts, written by `tests/golden/data/make.py`, which also says what is in them.
    fn golden() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data")
    }

    fn expected(part: &str) -> Vec<(u32, u32, u64)> {
        let text = std::fs::read_to_string(golden().join("expected.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        serde_json::from_value(json[part].clone()).unwrap()
    }

    /// (fine label, first pixel's red, sum of all bytes weighted by position) of each image.
    fn seen(set: &Dataset) -> Vec<(u32, u32, u64)> {
        let of = |i: usize| {
            let image = set.images.get(i);
            let weighted = image.iter().enumerate().map(|(at, &v)| (at as u64 + 1) * u64::from(v)).sum();
            (set.labels[i], u32::from(image[0]), weighted)
        };
        (0..set.len()).map(of).collect()
    }

    #[test]
    fn every_layout_gives_the_same_images_and_says_whether_it_keeps_the_order() {
        let cx = Context::cpu(2);
        for (folder, order) in [
            ("cifar100-parquet", Order::Unknown),
            ("cifar-100-python", Order::Original),
            ("cifar-100-binary", Order::Original),
        ] {
            let set = CIFAR100.load(&golden().join(folder), &cx).unwrap();
            assert_eq!(seen(&set.train), expected("cifar100_train"), "{folder}");
            assert_eq!(seen(&set.test), expected("cifar100_test"), "{folder}");
            assert_eq!((set.train.order, set.train.classes[23].as_str()), (order, "cloud"));
        }
        for folder in ["cifar-10-batches-py", "cifar-10-batches-bin"] {
            let set = CIFAR10.load(&golden().join(folder), &cx).unwrap();
            assert_eq!(seen(&set.train), expected("cifar10_train"), "{folder}");
            assert_eq!((set.train.order, set.test.len()), (Order::Original, 2));
        }
    }

    #[test]
    fn batches_dumped_again_in_other_protocols_and_with_arrays_are_the_same() {
        let (cx, plain) =
            (Context::cpu(1), CIFAR10.load(&golden().join("cifar-10-batches-py"), &Context::cpu(1)).unwrap());
        for folder in ["protocol-5", "arrays", "arrays-5"] {
            let set = CIFAR10.load(&golden().join("cifar-10-again").join(folder), &cx).unwrap();
            assert_eq!(
                (set.train.digest, set.test.digest),
                (plain.train.digest.clone(), plain.test.digest.clone()),
                "{folder}"
            );
            assert_eq!((set.train.census.read, set.test.census.lost()), (5, 0));
        }
    }

    #[test]
    fn every_compression_of_parquet_is_read() {
        for how in ["gzip", "brotli", "lz4", "zstd", "snappy", "none"] {
            let shards = [golden().join(format!("compressions/{how}.parquet"))];
            let set = hf_parquet::read("one", &shards, "fine_label", CIFAR100.classes, None, &Context::cpu(1)).unwrap();
            assert_eq!(seen(&set), expected("cifar100_test"), "{how}");
        }
    }

    #[test]
    fn pfllibs_clients_are_found_by_their_pixels_and_test_images_stay_out() {
        let set = CIFAR10.load(&golden().join("cifar-10-batches-py"), &Context::cpu(1)).unwrap();
        let (split, census) = super::super::pfllib::import(&golden().join("pfllib"), &set).unwrap();
        assert_eq!(split.clients, [vec![3, 0], vec![1]]);
        assert_eq!((census.read, census.passed(super::super::Why::Test)), (3, 1));
        let e = super::super::pfllib::import(&golden(), &set).unwrap_err().to_string();
        assert!(e.contains("expected train/0.npz"), "{e}");
    }

    #[test]
    fn a_folder_with_nothing_known_says_what_was_expected() {
        let empty = tempfile::tempdir().unwrap();
        let e = CIFAR10.load(empty.path(), &Context::cpu(1)).unwrap_err().to_string();
        assert!(e.contains("train-*.parquet") && e.contains("cifar-10-batches-py"), "{e}");
    }

    #[test]
    fn a_missing_shard_and_a_cut_file_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let source = golden().join("cifar100-parquet");
        let name = "train-00000-of-00002.parquet";
        std::fs::copy(source.join(name), dir.path().join(name)).unwrap();
        let e = CIFAR100.load(dir.path(), &Context::cpu(1)).unwrap_err().to_string();
        assert!(e.contains("1 of 2 train shards"), "{e}");
        let bytes = std::fs::read(source.join(name)).unwrap();
        std::fs::write(dir.path().join("train.parquet"), &bytes[..bytes.len() / 2]).unwrap();
        std::fs::remove_file(dir.path().join(name)).unwrap();
        let e = CIFAR100.load(dir.path(), &Context::cpu(1)).unwrap_err().to_string();
        assert!(e.contains("train.parquet") && e.contains("Parquet"), "{e}");
        std::fs::remove_file(dir.path().join("train.parquet")).unwrap();
        std::fs::write(dir.path().join("train.bin"), vec![0; 5000]).unwrap();
        let e = CIFAR100.load(dir.path(), &Context::cpu(1)).unwrap_err().to_string();
        assert!(e.contains("5000 bytes are not whole records of 3074"), "{e}");
    }

    /// Every file cut short or with a few bytes changed: an error, or other pixels, but never a panic.
    #[test]
    fn damaged_files_never_panic() {
        let (cx, mut refused) = (Context::cpu(1), 0);
        for folder in ["cifar100-parquet", "cifar-100-python", "cifar-100-binary"] {
            let dir = tempfile::tempdir().unwrap();
            let files = fsx::list(&golden().join(folder)).unwrap();
            let copies: Vec<PathBuf> = files.iter().map(|f| dir.path().join(f.file_name().unwrap())).collect();
            for (f, c) in files.iter().zip(&copies) {
                std::fs::copy(f, c).unwrap();
            }
            let mut rng = crate::key::Key::from_seed(3).rng();
            for (file, copy) in files.iter().zip(&copies) {
                let whole = std::fs::read(file).unwrap();
                for round in 0..60 {
                    let mut bytes = whole.clone();
                    // Structure sits at both ends.
                    let span = [bytes.len(), 400.min(bytes.len())][round % 2];
                    for _ in 0..3 {
                        let at = if round % 4 == 1 { rng.below(span) } else { bytes.len() - 1 - rng.below(span) };
                        bytes[at] = rng.u32() as u8;
                    }
                    if round % 5 == 0 {
                        bytes.truncate(rng.below(whole.len()));
                    }
                    std::fs::write(copy, bytes).unwrap();
                    refused += usize::from(CIFAR100.load(dir.path(), &cx).is_err());
                }
                std::fs::write(copy, whole).unwrap();
            }
        }
        assert!(refused > 100, "{refused}");
    }

    #[test]
    fn every_layout_gives_the_superclasses_too() {
        let cx = Context::cpu(1);
        for folder in ["cifar100-parquet", "cifar-100-binary"] {
            let path = golden().join(folder).display().to_string();
            let set = load100(&Cifar100Config { path, labels: Cifar100Labels::Coarse }, &cx).unwrap();
            assert_eq!(set.train.labels, [11, 15, 4], "{folder}");
            assert_eq!(set.train.classes.len(), 20, "{folder}");
        }
        // The small pickles have no names of superclasses.
        let batch = pickle::Batch::read(&golden().join("cifar-100-python/train")).unwrap();
        assert_eq!(batch.labels(CIFAR100_COARSE.pickles.labels).unwrap(), [11, 15, 4]);
    }

    /// Counts of clients × classes as the reference code draws them, and five classes in each superclass.
    #[test]
    fn the_real_cifar_100_has_each_class_in_its_original_order_and_gives_the_published_splits_when_it_is_there() {
        use super::super::*;
        let Some(root) = real_data() else { return };
        let set = CIFAR100.load(&root.join("cifar100"), &Context::cpu(2)).unwrap();
        assert_eq!((set.train.order, set.test.order), (Order::Classes, Order::Unknown));
        assert_eq!((set.train.class_counts(), set.test.class_counts()), (vec![500; 100], vec![100; 100]));
        for (mean, want) in set.train.images.held().unwrap().channel_means().iter().zip([0.50708, 0.48655, 0.44092]) {
            assert!((mean - want).abs() < 1e-4, "{mean}");
        }
        for (imbalance, want) in [(100.0, "4e2f99681080"), (50.0, "90c8d5ffef6f"), (10.0, "17e60a973bef")] {
            let tail = LongTailConfig { imbalance, ..Default::default() };
            let none = ServerSetConfig { per_class: Some(0), ..Default::default() };
            let key = crate::key::Key::from_seed(7);
            let (cut, validation) = (PartitionConfig::default(), ValidationConfig::default());
            let split = Split::draw(&set.train.labels, 100, &tail, &cut, &none, &validation, key).unwrap();
            assert_eq!(split.counts_sha1()[..12], *want, "imbalance {imbalance}");
        }
        let shards = hf_parquet::shards(&root.join("cifar100"), "test").unwrap();
        let coarse = hf_parquet::read("coarse", &shards, "coarse_label", &[], None, &Context::cpu(2)).unwrap();
        assert_eq!((coarse.classes.len(), coarse.class_counts()), (20, vec![500; 20]));
        let pairs: std::collections::BTreeSet<(u32, u32)> =
            set.test.labels.iter().copied().zip(coarse.labels.iter().copied()).collect();
        assert_eq!(pairs.len(), 100, "every class lies in one superclass");
        assert_eq!(coarse.classes[4], "fruit_and_vegetables");
        assert!(pairs.contains(&(0, 4)), "an apple is a fruit");
    }

    #[test]
    fn the_real_cifar_10_is_read_when_it_is_there() {
        let Some(root) = super::super::real_data() else { return };
        let set = CIFAR10.load(&root.join("cifar10"), &Context::cpu(2)).unwrap();
        assert_eq!((set.train.class_counts(), set.test.class_counts()), (vec![5000; 10], vec![1000; 10]));
        for (mean, want) in set.train.images.held().unwrap().channel_means().iter().zip([0.4914, 0.4822, 0.4465]) {
            assert!((mean - want).abs() < 1e-4, "{mean}");
        }
    }
}
