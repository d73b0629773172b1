//! A network's parameters from a file that others wrote: safetensors, PyTorch's or numpy's, also under a prefix.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};

use super::Weights;
use crate::error::{Error, Place, Result};
use crate::fsx;
use crate::nn::{Layout, Params};

/// Parameters, and what of them a file gave.
pub struct Start {
    /// The parameters.
    pub params: Params,
    /// Tensors that the file does not have: they are as they were.
    pub fresh: Vec<String>,
    /// Tensors of the file that have no place.
    pub unused: Vec<String>,
    /// What was taken off in front of the file's names.
    pub prefix: String,
}

/// Most numbers of one array of an archive: 1 GiB of them.
const NUMBERS: usize = 1 << 28;

/// Arrays by name: shapes and numbers.
type Arrays = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A file's tensors.
enum Tensors {
    Weights(Weights),
    Arrays(Arrays),
}

impl Start {
    /// Takes the tensors of `start`'s layout that a file has. A prefix that all or some names have in the file
    /// (`module.`, `backbone.`) is taken off; a file of which less than half of the network comes is refused.
    pub fn read(path: &Path, start: &Params) -> Result<Start> {
        Self::take(&Tensors::open(path)?, &path.display().to_string(), start)
    }

    /// The same of a model at hand, which `place` says in errors.
    pub fn of(model: &Params, place: &str, start: &Params) -> Result<Start> {
        let entries = model.layout().entries().iter();
        let array =
            |e: &crate::nn::params::Entry| (e.name.clone(), (e.shape.clone(), model.data()[e.range()].to_vec()));
        Self::take(&Tensors::Arrays(entries.map(array).collect()), place, start)
    }

    fn take(file: &Tensors, place: &str, start: &Params) -> Result<Start> {
        let (names, layout) = (file.names(), start.layout().clone());
        let prefix = prefix(&names, &layout);
        let mut out = Start { params: start.clone(), fresh: Vec::new(), unused: Vec::new(), prefix };
        let mut used = BTreeSet::new();
        for entry in layout.entries() {
            let longer = format!("{}{}", out.prefix, entry.name);
            let Some(name) = [longer, entry.name.clone()].into_iter().find(|n| names.contains(n)) else {
                out.fresh.push(entry.name.clone());
                continue;
            };
            let values = file.values(&name, &entry.shape).at(|| place)?;
            if !values.iter().all(|v| v.is_finite()) {
                return Err(Error::data(format!("{place}: {name} holds numbers that are not finite"))
                    .hint("its training diverged: take an earlier checkpoint"));
            }
            out.params.data_mut()[entry.range()].copy_from_slice(&values);
            used.insert(name);
        }
        let all = layout.entries().len();
        if 2 * out.fresh.len() > all {
            let theirs: Vec<&String> = names.iter().take(3).collect();
            let ours: Vec<&str> = layout.entries().iter().take(3).map(|e| e.name.as_str()).collect();
            return Err(Error::data(format!("{place}: {} of {all} tensors are in it", all - out.fresh.len()))
                .hint(format!("is it another network? It has {theirs:?}, …; this one has {ours:?}, …")));
        }
        // PyTorch's counters are of no use to anybody.
        let counter = |n: &String| n.ends_with("num_batches_tracked");
        out.unused = names.into_iter().filter(|n| !used.contains(n) && !counter(n)).collect();
        Ok(out)
    }

    /// Parameters of which a file has every tensor.
    pub fn whole(path: &Path, layout: &Arc<Layout>) -> Result<Params> {
        let start = Self::read(path, &Params::zeros(layout.clone()))?;
        match start.fresh.first() {
            None => Ok(start.params),
            Some(name) => Err(Error::data(format!("{}: no tensor {name}", path.display())).hint(format!(
                "{} of {} tensors are absent: is it another network?",
                start.fresh.len(),
                layout.entries().len()
            ))),
        }
    }

    /// What was taken, for people.
    pub fn line(&self) -> String {
        let all = self.params.layout().entries().len();
        let mut line = format!("{} of {all} tensors are taken", all - self.fresh.len());
        let several = |names: &[String]| {
            let more = if names.len() > 5 { ", …" } else { "" };
            format!("{}{more}", names[..names.len().min(5)].join(", "))
        };
        if !self.prefix.is_empty() {
            line += &format!("; {:?} in front of their names is taken off", self.prefix);
        }
        if !self.fresh.is_empty() {
            line += &format!("; {} start fresh: {}", self.fresh.len(), several(&self.fresh));
        }
        if !self.unused.is_empty() {
            line += &format!("; {} of the file have no place: {}", self.unused.len(), several(&self.unused));
        }
        line
    }
}

/// What stands in front of the layout's names in a file: the prefix under which most of them are found. An empty one
/// wins where it finds as many.
fn prefix(names: &BTreeSet<String>, layout: &Layout) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in layout.entries() {
        for name in names.iter().filter(|n| n.ends_with(&entry.name)) {
            let before = &name[..name.len() - entry.name.len()];
            if before.is_empty() || before.ends_with('.') {
                *counts.entry(before).or_default() += 1;
            }
        }
    }
    let most = counts.values().copied().max().unwrap_or(0);
    counts.into_iter().find(|(_, n)| *n == most).map(|(p, _)| p.to_string()).unwrap_or_default()
}

impl Tensors {
    fn open(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "npz") {
            return Ok(Tensors::Arrays(arrays(path)?));
        }
        Ok(Tensors::Weights(Weights::open(path)?))
    }

    fn names(&self) -> BTreeSet<String> {
        match self {
            Tensors::Weights(weights) => weights.names().into_iter().map(str::to_string).collect(),
            Tensors::Arrays(arrays) => arrays.keys().cloned().collect(),
        }
    }

    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let wrong = |found: &[usize]| {
            Error::data(format!("{name}: expected shape {shape:?}, found {found:?}"))
                .hint("is it another network, or one of another number of classes?")
        };
        match self {
            Tensors::Weights(weights) => match weights.shape(name) {
                Some(found) if found == shape => {
                    Ok(weights.get(name, shape, DType::F32, &Device::Cpu)?.flatten_all()?.to_vec1()?)
                }
                found => Err(wrong(&found.unwrap_or_default())),
            },
            Tensors::Arrays(arrays) => match arrays.get(name) {
                Some((found, values)) if found == shape => Ok(values.clone()),
                found => Err(wrong(found.map_or(&[], |(s, _)| s))),
            },
        }
    }
}

/// The arrays of an `.npz`, but for counters and other integers.
fn arrays(path: &Path) -> Result<Arrays> {
    arrays_of(path, NUMBERS)
}

/// The same, with at most so many numbers: all headers are read before any of them.
fn arrays_of(path: &Path, most: usize) -> Result<Arrays> {
    let broken = || Error::data(format!("{}: not a whole .npz file", path.display()));
    let mut archive = zip::ZipArchive::new(BufReader::new(fsx::open(path)?)).map_err(|_| broken())?;
    let (mut found, mut left) = (Vec::new(), most);
    for i in 0..archive.len() {
        let file = archive.by_index(i).map_err(|_| broken())?;
        let full = file.name().map_err(|_| broken())?.into_owned();
        let Some(name) = full.strip_suffix(".npy").map(str::to_string) else { continue };
        let array = fsx::bound::npy(file).and_then(npyz::NpyFile::new).map_err(|_| broken())?;
        let shape: Vec<usize> = array.shape().iter().map(|&d| d as usize).collect();
        if array.order() != npyz::Order::C && shape.len() > 1 {
            return Err(Error::data(format!("{}: {name}: in Fortran order", path.display()))
                .hint("save it from np.ascontiguousarray"));
        }
        let Some(rest) = fsx::bound::volume(&shape).and_then(|n| left.checked_sub(n)) else {
            return Err(Error::data(format!(
                "{}: {name} of shape {shape:?}: the most numbers read, of all arrays together, are {most}",
                path.display()
            )));
        };
        left = rest;
        found.push((i, name, shape));
    }
    let mut arrays = BTreeMap::new();
    for (i, name, shape) in found {
        let file = archive.by_index(i).map_err(|_| broken())?;
        let array = fsx::bound::npy(file).and_then(npyz::NpyFile::new).map_err(|_| broken())?;
        let kind = array.dtype().descr();
        let values: Vec<f32> = match kind.trim_matches('\'').trim_start_matches(['<', '=']) {
            "f4" => array.into_vec().map_err(|_| broken())?,
            "f8" => array.into_vec::<f64>().map_err(|_| broken())?.into_iter().map(|v| v as f32).collect(),
            other if other.starts_with('f') => {
                return Err(Error::data(format!(
                    "{}: {name}: numbers of type {other}, f4 and f8 are read",
                    path.display()
                )));
            }
            _ => continue,
        };
        arrays.insert(name, (shape, values));
    }
    Ok(arrays)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Role;
    use safetensors::tensor::{Dtype, TensorView};

    fn layout() -> Arc<Layout> {
        let mut layout = Layout::default();
        for (name, shape) in
            [("conv.weight", vec![2, 3]), ("bn.weight", vec![2]), ("head.weight", vec![2]), ("head.bias", vec![1])]
        {
            layout.push(name, &shape, Role::Weight).unwrap();
        }
        Arc::new(layout)
    }

    /// A file of f32 tensors, all of them counting up, under these names.
    fn file(name: &str, tensors: &[(&str, Vec<usize>)]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let view = |shape: &Vec<usize>| {
            TensorView::new(Dtype::F32, shape.clone(), &data[..4 * shape.iter().product::<usize>()]).unwrap()
        };
        let views = tensors.iter().map(|(n, shape)| (*n, view(shape)));
        let path = dir.path().join(name);
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        (dir, path)
    }

    #[test]
    fn a_prefix_of_all_or_of_some_names_is_taken_off_and_said() {
        let start = Params::zeros(layout());
        let all = [
            ("module.conv.weight", vec![2, 3]),
            ("module.bn.weight", vec![2]),
            ("module.head.weight", vec![2]),
            ("module.head.bias", vec![1]),
        ];
        let (_dir, path) = file("a.safetensors", &all);
        let got = Start::read(&path, &start).unwrap();
        assert_eq!(got.params.get("conv.weight").unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!((got.prefix.as_str(), got.fresh.len(), got.unused.len()), ("module.", 0, 0));
        assert!(Start::whole(&path, &layout()).is_ok());
        let body = [
            ("backbone.conv.weight", vec![2, 3]),
            ("backbone.bn.weight", vec![2]),
            ("head.bias", vec![1]),
            ("fc", vec![1]),
            ("bn.num_batches_tracked", vec![1]),
        ];
        let (_dir, path) = file("b.safetensors", &body);
        let got = Start::read(&path, &start).unwrap();
        assert_eq!(
            got.line(),
            "3 of 4 tensors are taken; \"backbone.\" in front of their names is taken off; 1 start fresh: head.weight; 1 of the file have no place: fc"
        );
        assert!(Start::whole(&path, &layout()).unwrap_err().to_string().contains("no tensor head.weight"));
    }

    #[test]
    fn nothing_in_common_and_other_shapes_are_refused() {
        let start = Params::zeros(layout());
        let (_dir, path) = file("a.safetensors", &[("stem.0.weight", vec![2]), ("head.bias", vec![1])]);
        let e = Start::read(&path, &start).err().unwrap().to_string();
        assert!(
            e.contains("1 of 4 tensors are in it") && e.contains("stem.0.weight") && e.contains("conv.weight"),
            "{e}"
        );
        let (_dir, path) = file("b.safetensors", &[("conv.weight", vec![3, 2]), ("bn.weight", vec![2])]);
        let e = Start::read(&path, &start).err().unwrap().to_string();
        assert!(e.contains("conv.weight: expected shape [2, 3], found [3, 2]"), "{e}");
    }

    #[test]
    fn numbers_that_are_none_and_files_that_stand_in_for_weights_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let bytes = f32::NAN.to_le_bytes();
        let names = ["conv.weight", "bn.weight", "head.weight", "head.bias"];
        let data: Vec<Vec<u8>> = [6, 2, 2, 1].map(|n| bytes.repeat(n)).into();
        let shapes = [vec![2, 3], vec![2], vec![2], vec![1]];
        let views =
            names.iter().zip(shapes).zip(&data).map(|((n, s), d)| (*n, TensorView::new(Dtype::F32, s, d).unwrap()));
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        let refused = || Start::whole(&path, &layout()).unwrap_err().to_string();
        assert!(refused().contains("conv.weight holds numbers that are not finite"), "{}", refused());
        for (text, what) in
            [("", "an empty file"), ("version https://git-lfs.github.com/spec/v1\n", "Git LFS"), ("<html>", "web page")]
        {
            std::fs::write(&path, text).unwrap();
            assert!(refused().contains(what), "{}", refused());
        }
    }

    /// An archive as numpy's `savez` (stored) or `savez_compressed` writes it.
    fn npz(path: &Path, arrays: &[(&str, &[u64], &[f32])], method: zip::CompressionMethod) {
        use npyz::WriterBuilder;
        let mut archive = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
        for (name, shape, values) in arrays {
            let options = zip::write::SimpleFileOptions::default().compression_method(method);
            archive.start_file(format!("{name}.npy"), options).unwrap();
            let mut bytes = Vec::new();
            let mut writer =
                npyz::WriteOptions::new().default_dtype().shape(shape).writer(&mut bytes).begin_nd().unwrap();
            writer.extend(values.iter().copied()).unwrap();
            writer.finish().unwrap();
            std::io::Write::write_all(&mut archive, &bytes).unwrap();
        }
        archive.finish().unwrap();
    }

    #[test]
    fn an_archive_of_arrays_is_read_by_name_compressed_or_not() {
        use zip::CompressionMethod::{Deflated, Stored};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npz");
        let mut layout = Layout::default();
        layout.push("fc.weight", &[2, 3], Role::Weight).unwrap();
        layout.push("fc.bias", &[2], Role::Weight).unwrap();
        let layout = Arc::new(layout);
        let (w, b): (&[f32], &[f32]) = (&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[7.0, 8.0]);
        for method in [Stored, Deflated] {
            npz(&path, &[("fc.bias", &[2], b), ("fc.weight", &[2, 3], w)], method);
            assert_eq!(Start::whole(&path, &layout).unwrap().data(), [w, b].concat());
        }
        npz(&path, &[("fc.bias", &[2], b), ("fc.weight", &[3, 2], w)], Stored);
        let e = Start::whole(&path, &layout).unwrap_err().to_string();
        assert!(e.contains("fc.weight: expected shape [2, 3]"), "{e}");
        npz(&path, &[("fc.bias", &[2], b)], Stored);
        assert!(Start::whole(&path, &layout).unwrap_err().to_string().contains("fc.weight"));
        std::fs::write(&path, b"junk").unwrap();
        assert!(Start::whole(&path, &layout).is_err());
    }

    /// Rows of no numbers take nothing, whatever their shape says.
    #[test]
    fn arrays_that_are_small_enough_alone_are_refused_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npz");
        npz(
            &path,
            &[("a", &[2], &[1.0, 2.0]), ("b", &[0, 1 << 40], &[]), ("c", &[2], &[3.0, 4.0])],
            zip::CompressionMethod::Stored,
        );
        assert_eq!(arrays_of(&path, 4).unwrap().len(), 3);
        let e = arrays_of(&path, 3).err().unwrap().to_string();
        assert!(e.contains("c of shape [2]") && e.contains("are 3"), "{e}");
    }
}
