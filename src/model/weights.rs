//! Where a model's tensors come from: published files, fresh draws, or trainable variables, all by published name.
//!
//! A model's definition asks a [`Source`] for each tensor by name and shape and says how a fresh one is drawn; so the
//! same definition loads a checkpoint, starts from random weights, and trains.

mod start;
mod torch;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use candle_core::{DType, Device, Shape, Tensor, Var};
use safetensors::tensor::{Dtype, Metadata, TensorView};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result, closest};
use crate::fsx;
use crate::key::{Key, Purpose};
use crate::model::lora::Adapter;

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

    /// What is trained beside the linear layer `name` (without `.weight`) of this many inputs and outputs, if anything.
    fn adapter(&self, _name: &str, _inputs: usize, _outputs: usize) -> Result<Option<Adapter>> {
        Ok(None)
    }
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

    /// What is trained beside the linear layer that this part is.
    pub fn adapter(&self, inputs: usize, outputs: usize) -> Result<Option<Adapter>> {
        self.source.adapter(&self.prefix, inputs, outputs)
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
        let mut first = Vec::new();
        let known = file.by_ref().take(64).read_to_end(&mut first).and_then(|n| file.rewind().map(|()| n));
        let known = known.map_err(|e| Error::io("read", path, e))?;
        if let Some(what) = fsx::stand_in(&first) {
            return Err(Error::data(format!("{}: {what}, expected weights", path.display())).hint("fetch it again"));
        }
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
        convert().map_err(|e| Error::data(format!("{}: {name}: {e}", self.file_of(name).display())))
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let place = self.places.get(name).ok_or_else(|| self.missing(name))?;
        let nonsense =
            || Error::data(format!("{}: {name}: a shape of nonsense: {shape:?}", self.file_of(name).display()));
        let n = fsx::bound::volume(shape).filter(|n| *n <= place.len).ok_or_else(nonsense)?;
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

/// What to do about a folder without `config.json`, by what is there instead.
pub fn without_config(folder: &Path) -> &'static str {
    let has = |name: &str| folder.join(name).is_file();
    match () {
        () if has("adapter_config.json") => {
            "a LoRA adapter lies there: give its base model's folder, merged with it first (peft's merge_and_unload)"
        }
        () if has("open_clip_config.json") => {
            "open_clip's layout lies there: take the model as transformers has it, with config.json and model.safetensors"
        }
        () if has("params.json") => "Meta's layout lies there: take the model as transformers has it",
        () => "a model's folder has config.json, a tokenizer and weights, as the Hub has them",
    }
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
    save_in(Width::F32, tensors, path)
}

/// What a file keeps a number in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 4 bytes.
    F32,
    /// 2 bytes; numbers above 65,504 are refused.
    F16,
}

/// As [`save`], in a format of choice.
pub fn save_in<'t>(
    width: Width,
    tensors: impl IntoIterator<Item = (&'t String, &'t Tensor)>,
    path: &Path,
) -> Result<()> {
    let sorted: BTreeMap<&String, &Tensor> = tensors.into_iter().collect();
    let mut values: Vec<(&str, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, tensor) in sorted {
        let flat = tensor.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let bytes = match width {
            Width::F32 => bytemuck::cast_slice(&flat).to_vec(),
            Width::F16 => halved(&flat).ok_or_else(|| Error::data(format!("{name} does not fit into f16")))?,
        };
        values.push((name, tensor.dims().to_vec(), bytes));
    }
    let dtype = if width == Width::F32 { Dtype::F32 } else { Dtype::F16 };
    let mut views = Vec::new();
    for (name, shape, data) in &values {
        let view = TensorView::new(dtype, shape.clone(), data);
        views.push((*name, view.map_err(|e| Error::defect(format!("safetensors: {name}: {e}")))?));
    }
    let mark = [("format".to_string(), "pt".to_string())].into();
    let bytes = safetensors::serialize(views, Some(mark))
        .map_err(|e| Error::defect(format!("safetensors: {}: {e}", path.display())))?;
    fsx::write_atomic(path, &bytes)
}

/// Little-endian f16, rounded to nearest; none where a finite number would become infinite.
fn halved(values: &[f32]) -> Option<Vec<u8>> {
    let half = |v: &f32| Some(half::f16::from_f32(*v)).filter(|h| h.is_finite() || !v.is_finite());
    Some(
        values
            .iter()
            .map(half)
            .collect::<Option<Vec<_>>>()?
            .into_iter()
            .flat_map(|h| h.to_bits().to_le_bytes())
            .collect(),
    )
}
