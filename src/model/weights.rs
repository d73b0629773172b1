//! Where a model's tensors come from: published files, fresh draws, or trainable variables, all by published name.
//!
//! A model's definition asks a [`Source`] for each tensor by name and shape and says how a fresh one is drawn; so the
//! same definition loads a checkpoint, starts from random weights, and trains.

mod start;
mod torch;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use candle_core::{DType, Device, Shape, Tensor, Var};
use safetensors::tensor::{Dtype, Metadata, TensorView};
use sha2::{Digest, Sha256};

use crate::error::{Error, Place, Result, closest};
use crate::fsx;
use crate::key::{Key, Purpose};

pub use start::Start;

/// How a tensor is drawn when it is not loaded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// This value everywhere.
    Constant(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
}

/// Gives tensors by name.
pub trait Source {
    /// The tensor called `name`, which must have this shape; a fresh one is drawn by `init`.
    fn tensor(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor>;
}

/// A source, and the part of the name that is already known.
#[derive(Clone)]
pub struct Scope<'a> {
    source: &'a dyn Source,
    prefix: String,
}

impl<'a> Scope<'a> {
    /// The whole of a source.
    pub fn root(source: &'a dyn Source) -> Self {
        Scope { source, prefix: String::new() }
    }

    /// The part below `name`; an empty name changes nothing.
    pub fn pp(&self, name: impl std::fmt::Display) -> Scope<'a> {
        Scope { source: self.source, prefix: self.join(&name.to_string()) }
    }

    /// The tensor `name` of this part.
    pub fn tensor(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        self.source.tensor(&self.join(name), shape, init)
    }

    fn join(&self, name: &str) -> String {
        match (self.prefix.is_empty(), name.is_empty()) {
            (true, _) => name.to_string(),
            (_, true) => self.prefix.clone(),
            _ => format!("{}.{name}", self.prefix),
        }
    }
}

/// Where one tensor lies.
struct Stored {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: u64,
    len: usize,
}

/// Published weights: one safetensors file or one of PyTorch's, or shards of either with an index.
///
/// Tensors are read one at a time from their place in the file, so memory holds only what was asked for. (Positioned
/// reads instead of a memory map: the same single copy, no `unsafe`, and a truncated file is an error, not a signal.)
pub struct Weights {
    folder: PathBuf,
    files: Vec<(PathBuf, Mutex<File>)>,
    places: BTreeMap<String, Stored>,
}

impl Weights {
    /// Opens a folder in the Hugging Face layout (`model.safetensors` or `pytorch_model.bin`, or their index with its
    /// shards), or one such file.
    pub fn open(path: &Path) -> Result<Weights> {
        if path.is_file() {
            let mut weights = Weights::empty(path.parent().unwrap_or(Path::new(".")));
            weights.add(path)?;
            return Ok(weights);
        }
        let mut weights = Weights::empty(path);
        for name in WHOLE {
            let (file, index) = (path.join(name), path.join(format!("{name}.index.json")));
            if file.is_file() {
                weights.add(&file)?;
                return Ok(weights);
            }
            if !index.is_file() {
                continue;
            }
            for shard in shards(&index)? {
                let shard = path.join(shard);
                let missing = !shard.is_file();
                weights.add(&shard).map_err(|e| match missing {
                    true => e.hint("the index names this shard; fetch it again, what is there stays"),
                    false => e,
                })?;
            }
            return Ok(weights);
        }
        Err(Error::input(format!("{}: no weights here", path.display())).hint(instead(path)))
    }

    fn empty(folder: &Path) -> Weights {
        Weights { folder: folder.to_path_buf(), files: Vec::new(), places: BTreeMap::new() }
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let mut file = fsx::open(path)?;
        let mut first = [0; 4];
        let known = file.read(&mut first).and_then(|n| file.rewind().map(|()| n));
        let known = known.map_err(|e| Error::io("read", path, e))?;
        let found = match torch::is_torch(path, &first[..known]) {
            true => torch::tensors(path)?,
            false => safe(&mut file, path)?,
        };
        for torch::Found { name, dtype, shape, start, len } in found {
            let place = Stored { file: self.files.len(), dtype, shape, start, len };
            if self.places.insert(name.clone(), place).is_some() {
                return Err(Error::data(format!("{}: {name} is in another shard too", path.display())));
            }
        }
        self.files.push((path.to_path_buf(), Mutex::new(file)));
        Ok(())
    }

    /// The folder they were opened from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The files that hold tensors, for a digest.
    pub fn paths(&self) -> Vec<&Path> {
        self.files.iter().map(|(p, _)| p.as_path()).collect()
    }

    /// Every tensor's name, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.places.keys().map(String::as_str).collect()
    }

    /// The shape of a tensor, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.places.get(name).map(|p| p.shape.clone())
    }

    /// One tensor, converted to `dtype` on `device`; it must have this shape.
    pub fn get(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let found = self.shape(name).ok_or_else(|| self.missing(name))?;
        if found != shape {
            return Err(Error::data(format!(
                "{}: {name}: expected shape {shape:?}, found {found:?}",
                self.file_of(name).display()
            ))
            .hint("config.json and the weights do not belong together"));
        }
        let tensor = self.read(name, shape)?;
        let convert = || -> candle_core::Result<Tensor> { tensor.to_dtype(dtype)?.to_device(device) };
        convert().at(|| format!("{}: {name}", self.file_of(name).display()))
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let place = self.places.get(name).ok_or_else(|| self.missing(name))?;
        let n: usize = shape.iter().product();
        let shape = Shape::from(shape);
        let cpu = &Device::Cpu;
        let tensor = match place.dtype {
            Dtype::F32 => Tensor::from_vec(self.fill(place, vec![0f32; n])?, shape, cpu),
            Dtype::F64 => Tensor::from_vec(self.fill(place, vec![0f64; n])?, shape, cpu),
            Dtype::F16 => Tensor::from_vec(halves(self.fill(place, vec![0u16; n])?, half::f16::from_bits), shape, cpu),
            Dtype::BF16 => {
                Tensor::from_vec(halves(self.fill(place, vec![0u16; n])?, half::bf16::from_bits), shape, cpu)
            }
            other => {
                let path = self.file_of(name).display();
                return Err(Error::data(format!("{path}: {name}: stored as {other:?}, which is not supported"))
                    .hint("f32, f16, bf16 and f64 are; quantised weights are not read"));
            }
        };
        Ok(tensor?)
    }

    /// Reads a tensor's bytes into `values` (the file is little-endian, and so is every machine candle runs on).
    fn fill<T: bytemuck::Pod>(&self, place: &Stored, mut values: Vec<T>) -> Result<Vec<T>> {
        let (path, file) = &self.files[place.file];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        if bytes.len() != place.len {
            return Err(Error::data(format!("{}: offsets and shapes disagree", path.display())));
        }
        let mut file = file.lock().unwrap_or_else(|e| e.into_inner());
        let read = file.seek(SeekFrom::Start(place.start)).and_then(|_| file.read_exact(bytes));
        read.map_err(|e| Error::io("read", path, e))?;
        Ok(values)
    }

    fn file_of(&self, name: &str) -> &Path {
        self.places.get(name).map_or(&self.folder, |place| &self.files[place.file].0)
    }

    fn missing(&self, name: &str) -> Error {
        let error = Error::data(format!("{}: no tensor {name}", self.folder.display()));
        match closest(name, self.names()) {
            Some(near) => error.hint(format!("is it another kind of model? The nearest name is {near}")),
            None => error,
        }
    }

    /// This file as a source of frozen tensors of `dtype` on `device`.
    pub fn frozen(&self, dtype: DType, device: &Device) -> Frozen<'_> {
        Frozen { weights: self, dtype, device: device.clone() }
    }
}

fn halves<T>(bits: Vec<u16>, from: fn(u16) -> T) -> Vec<T> {
    bits.into_iter().map(from).collect()
}

/// Files that hold a whole model, the preferred first; each may have an index of shards instead.
const WHOLE: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// What to do about a folder without weights, by what is there instead.
fn instead(folder: &Path) -> String {
    let names: Vec<String> = fsx::list(folder)
        .unwrap_or_default()
        .iter()
        .filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned()))
        .collect();
    let has = |what: &dyn Fn(&str) -> bool| names.iter().find(|n| what(n)).cloned();
    if let Some(name) = has(&|n| n.starts_with("adapter_model")) {
        return format!("{name} is a LoRA adapter: merge it into its base model first (peft's merge_and_unload)");
    }
    if let Some(name) =
        has(&|n| n.ends_with(".gguf") || n.ends_with(".h5") || n.ends_with(".msgpack") || n.ends_with(".onnx"))
    {
        return format!("{name} is of a form that is not read: take the model's safetensors or .bin");
    }
    if let Some(name) = has(&|n| n.ends_with(".safetensors") || n.ends_with(".bin")) {
        return format!(
            "{name} is there: is it open_clip's or another layout? Expected {}, or its index",
            WHOLE.join(" or ")
        );
    }
    format!("expected {}, or an index with its shards", WHOLE.join(" or "))
}

/// Refuses a `config.json` whose weights are quantised.
pub fn refuse_quantised(config: &serde_json::Value) -> Result<()> {
    let section = |at: Option<&serde_json::Value>| at?.get("quantization_config").filter(|q| !q.is_null()).cloned();
    let Some(how) = section(Some(config)).or_else(|| section(config.get("text_config"))) else { return Ok(()) };
    let bits = ["load_in_4bit", "load_in_8bit"].into_iter().find(|b| how[*b] == true).map(|b| &b[8..12]);
    let method = how["quant_method"].as_str().unwrap_or("an unnamed method");
    let bits = bits.map(str::to_string).or_else(|| how["bits"].as_u64().map(|b| format!("{b}bit"))).unwrap_or_default();
    Err(Error::data(format!("quantised weights ({method} {bits}), which are not read").replace(" )", ")"))
        .hint("take the same model in f16, bf16 or f32; --dtype bf16 halves the memory"))
}

/// The tensors of a safetensors file.
fn safe(file: &mut File, path: &Path) -> Result<Vec<torch::Found>> {
    let (metadata, data) = header(file, path)?;
    let found = metadata.tensors().into_iter().map(|(name, info)| {
        let (from, to) = info.data_offsets;
        torch::Found { name, dtype: info.dtype, shape: info.shape.clone(), start: data + from as u64, len: to - from }
    });
    Ok(found.collect())
}

/// The header of a safetensors file and where its data begins; the file must be as long as the header says.
fn header(file: &mut File, path: &Path) -> Result<(Metadata, u64)> {
    let bad = |why: String| Error::data(format!("{}: not a whole safetensors file: {why}", path.display()));
    let length = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
    let mut size = [0u8; 8];
    file.read_exact(&mut size).map_err(|e| Error::io("read", path, e))?;
    let size = u64::from_le_bytes(size);
    if size > 100_000_000 || size + 8 > length {
        return Err(bad(format!("a header of {size} bytes in a file of {length}")));
    }
    let mut json = vec![0u8; size as usize];
    file.read_exact(&mut json).map_err(|e| Error::io("read", path, e))?;
    let metadata: Metadata =
        serde_json::from_slice(&json).map_err(|_| bad("its header is no table of tensors".into()))?;
    let end = metadata.tensors().values().map(|i| i.data_offsets.1).max().unwrap_or(0) as u64;
    let sound = metadata.tensors().values().all(|i| i.data_offsets.0 <= i.data_offsets.1);
    match size.checked_add(8).and_then(|data| data.checked_add(end)) {
        Some(want) if sound && want == length => Ok((metadata, size + 8)),
        _ => Err(bad(format!("{} bytes of tensors announced, {} there", end, length - size - 8))),
    }
}

/// The file names in an index, each once, sorted. A name that leaves the folder is refused.
fn shards(index: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let parsed: Index = fsx::read_json(index)?;
    let names: std::collections::BTreeSet<String> = parsed.weight_map.into_values().collect();
    match names.iter().find(|n| n.contains(['/', '\\']) || n.starts_with('.')) {
        Some(n) => Err(Error::data(format!("{}: {n:?} is not a file beside it", index.display()))),
        None => Ok(names.into_iter().collect()),
    }
}

/// Whether a folder has its weights: one file, or every shard that an index names.
pub fn complete(folder: &Path) -> bool {
    let whole = |name: &str| {
        let all = |names: Vec<String>| names.iter().all(|name| folder.join(name).is_file());
        folder.join(name).is_file() || shards(&folder.join(format!("{name}.index.json"))).is_ok_and(all)
    };
    WHOLE.iter().any(|name| whole(name))
}

/// Loaded tensors that do not train.
pub struct Frozen<'a> {
    weights: &'a Weights,
    dtype: DType,
    device: Device,
}

impl Source for Frozen<'_> {
    fn tensor(&self, name: &str, shape: &[usize], _: Init) -> Result<Tensor> {
        self.weights.get(name, shape, self.dtype, &self.device)
    }
}

/// Tensors that train: f32 variables by name, in sorted order, loaded or drawn when a model first asks for them.
pub struct Trainable<'a> {
    from: Option<&'a Weights>,
    key: Key,
    device: Device,
    vars: RefCell<BTreeMap<String, Var>>,
}

impl<'a> Trainable<'a> {
    /// Fresh tensors: each is drawn from its own key, `key` and a digest of its name, so no order matters.
    pub fn fresh(key: Key, device: &Device) -> Self {
        Trainable { from: None, key, device: device.clone(), vars: RefCell::default() }
    }

    /// Tensors loaded from a file.
    pub fn load(weights: &'a Weights, device: &Device) -> Self {
        let key = Key::from_seed(0);
        Trainable { from: Some(weights), key, device: device.clone(), vars: RefCell::default() }
    }

    /// The variables a model has asked for, sorted by name.
    pub fn into_vars(self) -> BTreeMap<String, Var> {
        self.vars.into_inner()
    }
}

impl Source for Trainable<'_> {
    fn tensor(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        if let Some(var) = self.vars.borrow().get(name) {
            return Ok(var.as_tensor().clone());
        }
        let start = match self.from {
            Some(weights) => weights.get(name, shape, DType::F32, &self.device)?,
            None => draw(self.key, name, shape, init)?.to_device(&self.device)?,
        };
        let var = Var::from_tensor(&start)?;
        let tensor = var.as_tensor().clone();
        self.vars.borrow_mut().insert(name.to_string(), var);
        Ok(tensor)
    }
}

fn draw(key: Key, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = match init {
        Init::Constant(value) => vec![value as f32; n],
        Init::Normal(std) => {
            let digest = Sha256::digest(name.as_bytes());
            let id = digest.iter().take(8).fold(0u64, |id, b| id << 8 | u64::from(*b));
            let mut rng = key.fold(Purpose::Item, id).rng();
            (0..n).map(|_| (rng.normal() * std) as f32).collect()
        }
    };
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// Writes tensors under their names as f32 safetensors, whole or not at all, with PyTorch's `format` mark.
pub fn save<'t>(tensors: impl IntoIterator<Item = (&'t String, &'t Tensor)>, path: &Path) -> Result<()> {
    let sorted: BTreeMap<&String, &Tensor> = tensors.into_iter().collect();
    let mut values: Vec<(&str, Vec<usize>, Vec<f32>)> = Vec::new();
    for (name, tensor) in sorted {
        let flat = tensor.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?;
        values.push((name, tensor.dims().to_vec(), flat.to_vec1()?));
    }
    let mut views = Vec::new();
    for (name, shape, data) in &values {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(data));
        views.push((*name, view.map_err(|e| Error::defect(format!("safetensors: {name}: {e}")))?));
    }
    let mark = [("format".to_string(), "pt".to_string())].into();
    let bytes = safetensors::serialize(views, Some(mark))
        .map_err(|e| Error::defect(format!("safetensors: {}: {e}", path.display())))?;
    fsx::write_atomic(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: &Device = &Device::Cpu;

    fn file(dir: &Path, name: &str, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> PathBuf {
        let views = tensors.iter().map(|(n, d, s, b)| (*n, TensorView::new(*d, s.clone(), b).unwrap()));
        let path = dir.join(name);
        fsx::write_atomic(&path, &safetensors::serialize(views, None).unwrap()).unwrap();
        path
    }

    fn bytes<T: bytemuck::Pod>(values: &[T]) -> Vec<u8> {
        bytemuck::cast_slice(values).to_vec()
    }

    #[test]
    fn every_stored_type_is_converted_to_the_one_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let values = [1.5f32, -2.0, 0.25];
        let half: Vec<u16> = values.iter().map(|v| half::f16::from_f32(*v).to_bits()).collect();
        let brain: Vec<u16> = values.iter().map(|v| half::bf16::from_f32(*v).to_bits()).collect();
        let tensors = [
            ("a", Dtype::F32, vec![3], bytes(&values)),
            ("b", Dtype::F16, vec![3], bytes(&half)),
            ("c", Dtype::BF16, vec![3], bytes(&brain)),
            ("d", Dtype::F64, vec![3], bytes(&values.map(f64::from))),
        ];
        let weights = Weights::open(&file(dir.path(), "x.safetensors", &tensors)).unwrap();
        assert_eq!(weights.names(), ["a", "b", "c", "d"]);
        for name in weights.names() {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let got = weights.get(name, &[3], dtype, CPU).unwrap();
                assert_eq!(got.dtype(), dtype);
                assert_eq!(got.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap(), values, "{name}");
            }
        }
    }

    #[test]
    fn errors_name_the_tensor_the_file_and_both_shapes() {
        let dir = tempfile::tempdir().unwrap();
        let tensors = [
            ("layer.weight", Dtype::F32, vec![2, 2], bytes(&[0f32; 4])),
            ("layer.count", Dtype::I64, vec![1], bytes(&[7i64])),
        ];
        let weights = Weights::open(&file(dir.path(), "x.safetensors", &tensors)).unwrap();
        let error = |name: &str, shape: &[usize]| weights.get(name, shape, DType::F32, CPU).unwrap_err().to_string();
        let shapes = error("layer.weight", &[2, 3]);
        assert!(["x.safetensors", "layer.weight", "[2, 3]", "[2, 2]"].iter().all(|t| shapes.contains(t)), "{shapes}");
        assert!(error("layer.weigth", &[2, 2]).contains("layer.weight"));
        assert!(error("layer.count", &[1]).contains("I64"));
    }

    #[test]
    fn truncated_longer_and_foreign_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "x.safetensors", &[("a", Dtype::F32, vec![8], bytes(&[1f32; 8]))]);
        let whole = fsx::read(&path).unwrap();
        let longer = [&whole[..], &[0]].concat();
        let cut = whole.len() - 1;
        for bad in [&whole[..cut], &whole[..20], &whole[..4], &longer[..], b"not a model at all", &[255; 64]] {
            std::fs::write(&path, bad).unwrap();
            assert!(Weights::open(&path).is_err(), "{} bytes", bad.len());
        }
        std::fs::write(&path, &whole).unwrap();
        assert!(Weights::open(&path).is_ok());
        assert!(Weights::open(dir.path()).err().unwrap().to_string().contains("no weights here"));
    }

    #[test]
    fn shards_are_read_together_and_an_index_cannot_leave_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        file(dir.path(), "m-1.safetensors", &[("a", Dtype::F32, vec![1], bytes(&[1f32]))]);
        file(dir.path(), "m-2.safetensors", &[("b", Dtype::F32, vec![1], bytes(&[2f32]))]);
        let index = dir.path().join("model.safetensors.index.json");
        std::fs::write(&index, r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#).unwrap();
        let weights = Weights::open(dir.path()).unwrap();
        assert_eq!(weights.get("b", &[1], DType::F32, CPU).unwrap().to_vec1::<f32>().unwrap(), [2.0]);
        assert_eq!(weights.paths().len(), 2);
        assert!(complete(dir.path()));
        std::fs::write(&index, r#"{"weight_map": {"a": "../m-1.safetensors"}}"#).unwrap();
        assert!(Weights::open(dir.path()).is_err() && !complete(dir.path()));
    }

    /// Written by `torch.save`: see the golden script of CLIP.
    #[test]
    fn a_pytorch_pickle_is_read_by_the_same_names() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/clip/pickle/pytorch_model.bin");
        let weights = Weights::open(path.parent().unwrap()).unwrap();
        assert_eq!(weights.names(), ["a.weight", "b"]);
        let a = weights.get("a.weight", &[2, 3], DType::F32, CPU).unwrap();
        assert_eq!(a.to_vec2::<f32>().unwrap(), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
        assert_eq!(weights.get("b", &[2], DType::F32, CPU).unwrap().to_vec1::<f32>().unwrap(), [0.5, -0.5]);
    }

    fn pickles() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/clip/pickle")
    }

    /// `tests/golden/clip/pickle/make.py`.
    #[test]
    fn every_form_of_torch_save_gives_the_same_tensors() {
        for (file, prefix, b) in
            [("legacy.th", "", [0.5, -0.5]), ("script.pth.tar", "module.", [0.5, -0.5]), ("views.pt", "", [6.0, 7.0])]
        {
            let weights = Weights::open(&pickles().join(file)).unwrap();
            assert_eq!(weights.names(), [format!("{prefix}a.weight"), format!("{prefix}b")], "{file}");
            let a = weights.get(&format!("{prefix}a.weight"), &[2, 3], DType::F32, CPU).unwrap();
            assert_eq!(a.to_vec2::<f32>().unwrap(), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], "{file}");
            let got = weights.get(&format!("{prefix}b"), &[2], DType::F32, CPU).unwrap();
            assert_eq!(got.to_vec1::<f32>().unwrap(), b, "{file}");
        }
        let e = Weights::open(&pickles().join("transposed.pt")).err().unwrap().to_string();
        assert!(e.contains("transposed.pt") && e.contains("stored transposed"), "{e}");
    }

    #[test]
    fn damaged_files_of_torch_are_refused_and_never_panic() {
        let dir = tempfile::tempdir().unwrap();
        let mut rng = Key::from_seed(2).rng();
        for file in ["legacy.th", "script.pth.tar", "views.pt"] {
            let (whole, path) = (fsx::read(&pickles().join(file)).unwrap(), dir.path().join(file));
            for round in 0..300 {
                let mut bytes = whole.clone();
                let at = rng.below(bytes.len());
                bytes[at] = rng.u32() as u8;
                if round % 3 == 0 {
                    bytes.truncate(rng.below(whole.len()));
                }
                std::fs::write(&path, bytes).unwrap();
                if let Ok(weights) = Weights::open(&path) {
                    for name in weights.names() {
                        drop(weights.get(name, &weights.shape(name).unwrap(), DType::F32, CPU));
                    }
                }
            }
            for cut in [0, 4, whole.len() / 2, whole.len() - 1] {
                std::fs::write(&path, &whole[..cut]).unwrap();
                assert!(Weights::open(&path).is_err(), "{file} cut at {cut}");
            }
        }
    }

    #[test]
    fn shards_of_bin_files_are_read_by_their_index() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(pickles().join("legacy.th"), dir.path().join("pytorch_model-00001-of-00001.bin")).unwrap();
        let index = r#"{"weight_map": {"a.weight": "pytorch_model-00001-of-00001.bin", "b": "pytorch_model-00001-of-00001.bin"}}"#;
        std::fs::write(dir.path().join("pytorch_model.bin.index.json"), index).unwrap();
        assert!(complete(dir.path()));
        assert_eq!(Weights::open(dir.path()).unwrap().names(), ["a.weight", "b"]);
        std::fs::remove_file(dir.path().join("pytorch_model.bin.index.json")).unwrap();
        let e = Weights::open(dir.path()).err().unwrap().to_string();
        assert!(e.contains("pytorch_model-00001-of-00001.bin is there"), "{e}");
    }

    #[test]
    fn a_fresh_tensor_depends_on_its_name_and_key_alone() {
        let draws = |names: &[&str], seed| {
            let source = Trainable::fresh(Key::from_seed(seed), CPU);
            for name in names {
                Scope::root(&source).pp("x").tensor(name, &[4], Init::Normal(1.0)).unwrap();
            }
            let values = |v: Var| v.to_vec1::<f32>().unwrap();
            source.into_vars().into_iter().map(|(k, v)| (k, values(v))).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(draws(&["a", "b"], 1), draws(&["b", "a"], 1));
        assert_ne!(draws(&["a", "b"], 1), draws(&["a", "b"], 2));
        assert_ne!(draws(&["a", "b"], 1)["x.a"], draws(&["a", "b"], 1)["x.b"]);
    }
}
