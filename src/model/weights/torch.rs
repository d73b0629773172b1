//! Where the tensors of PyTorch's files lie: the zip that `torch.save` writes since 1.6, and the row of pickles that it
//! wrote before. Nothing in them is run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::tensor::Dtype;

use crate::error::{Error, Place, Result};
use crate::fsx;
use crate::pickle::{Item, Pickle};

/// A tensor's place in its file.
pub(super) struct Found {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub start: u64,
    pub len: usize,
}

/// Most bytes of what names the tensors.
const NAMES: u64 = 1 << 27;

/// A storage: where its bytes begin, and how many there are.
type Storages = BTreeMap<String, (u64, u64)>;

/// Whether a file that begins so, or is called so, is PyTorch's.
pub(super) fn is_torch(path: &Path, first: &[u8]) -> bool {
    let called = path.extension().is_some_and(|e| ["bin", "pt", "pth", "th", "ckpt", "tar"].iter().any(|t| e == *t));
    called || first.starts_with(b"PK\x03\x04") || first.starts_with(b"\x80\x02\x8a\x0a")
}

/// The tensors of a file, named as in its `state_dict`.
pub(super) fn tensors(path: &Path) -> Result<Vec<Found>> {
    let mut file = fsx::open(path)?;
    let mut first = [0; 4];
    let read = file.read(&mut first).and_then(|_| file.rewind());
    read.map_err(|e| Error::io("read", path, e))?;
    let found = if first.starts_with(b"PK") { zipped(file) } else { legacy(file) };
    found.at(|| path.display().to_string())
}

fn damaged(what: &str) -> Error {
    Error::data(format!("not a whole PyTorch file: {what}")).hint("fetch or save it again")
}

/// The form since PyTorch 1.6: `…/data.pkl`, and a file for each storage.
fn zipped(file: File) -> Result<Vec<Found>> {
    let mut archive = zip::ZipArchive::new(file).map_err(|_| damaged("its table of contents is missing"))?;
    let names: Result<Vec<String>, _> = archive.file_names().map(|n| n.map(|n| n.into_owned())).collect();
    let names = names.map_err(|_| damaged("a name in it cannot be read"))?;
    let body = names.iter().find(|n| *n == "data.pkl" || n.ends_with("/data.pkl")).ok_or_else(|| {
        Error::data("a zip without data.pkl: no file of torch.save").hint("a TorchScript or a numpy archive?")
    })?;
    let root = body.trim_end_matches("data.pkl");
    let mut bytes = Vec::new();
    let entry = archive.by_name(body).map_err(|_| damaged("data.pkl cannot be read"))?;
    entry.take(NAMES + 1).read_to_end(&mut bytes).map_err(|_| damaged("data.pkl is cut off"))?;
    if bytes.len() as u64 > NAMES {
        return Err(fsx::bound::too_long("data.pkl", format!("unpacked more than {NAMES}"), NAMES));
    }
    let (pickle, _) = Pickle::read(&bytes)?;
    let mut storages = Storages::new();
    for name in &names {
        let Some(key) = name.strip_prefix(&format!("{root}data/")) else { continue };
        let entry = archive.by_name(name).map_err(|_| damaged(&format!("storage {key} cannot be read")))?;
        match (entry.compression(), entry.data_start()) {
            (zip::CompressionMethod::Stored, Some(start)) => storages.insert(key.to_string(), (start, entry.size())),
            _ => return Err(damaged(&format!("storage {key} is compressed"))),
        };
    }
    named(pickle.root(), &storages)
}

/// The form before: a magic number, a version, facts, the tensors, the storages' names, then each storage.
fn legacy(mut file: File) -> Result<Vec<Found>> {
    let io = |_| damaged("it is cut off");
    let length = file.metadata().map_err(io)?.len();
    let mut window = 1u64 << 24;
    let (pickle, keys, mut at) = loop {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        file.by_ref().take(window).read_to_end(&mut bytes).map_err(io)?;
        match parts(&bytes) {
            Ok(parts) => break parts,
            // The pickles may be longer than what was looked at.
            Err(_) if window < length.min(NAMES) => window = window.saturating_mul(4),
            Err(e) => return Err(e),
        }
    };
    let mut sizes = BTreeMap::new();
    for saved in pickle.saved() {
        let (key, dtype) = storage(saved)?;
        sizes.insert(key.to_string(), width(dtype));
    }
    let mut storages = Storages::new();
    for key in keys {
        let mut count = [0; 8];
        file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut count)).map_err(io)?;
        let size = sizes.get(&key).copied().ok_or_else(|| damaged(&format!("storage {key} has no type")))?;
        let bytes = u64::from_le_bytes(count).checked_mul(size).ok_or_else(|| damaged("a size is nonsense"))?;
        storages.insert(key, (at + 8, bytes));
        at = at.saturating_add(8).saturating_add(bytes);
    }
    if at > length {
        return Err(damaged("it is cut off"));
    }
    named(pickle.root(), &storages)
}

/// The first pickle is this number.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// The tensors, the storages' names in the order of the file, and where they begin.
fn parts(bytes: &[u8]) -> Result<(Pickle, Vec<String>, u64)> {
    if !bytes.get(..24.min(bytes.len())).is_some_and(|b| b.windows(10).any(|w| w == MAGIC)) {
        return Err(Error::data("a pickle, but not one of torch.save")
            .hint("save a state_dict: torch.save(model.state_dict(), …)"));
    }
    let mut at = 0;
    let mut next = || -> Result<Pickle> {
        let (pickle, length) = Pickle::read(&bytes[at..])?;
        at += length;
        Ok(pickle)
    };
    for _ in 0..3 {
        next()?;
    }
    let (body, keys) = (next()?, next()?);
    let keys = keys.root().list().unwrap_or_default();
    let keys: Option<Vec<String>> = keys.into_iter().map(|k| k.text().map(str::to_string)).collect();
    Ok((body, keys.ok_or_else(|| damaged("its storages have no names"))?, at as u64))
}

/// A storage's key and type, of `("storage", torch.FloatStorage, "0", "cpu", 12)`.
fn storage(saved: Item<'_>) -> Result<(&str, Dtype)> {
    let parts = saved.list().unwrap_or_default();
    let (Some(kind), Some(key)) = (parts.get(1).and_then(|k| k.name()), parts.get(2).and_then(|k| k.text())) else {
        return Err(damaged("a storage has no type or name"));
    };
    let dtype = match kind {
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "DoubleStorage" => Dtype::F64,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        other => return Err(Error::data(format!("storage {key} is a {other}, which is not read"))),
    };
    Ok((key, dtype))
}

fn width(dtype: Dtype) -> u64 {
    (dtype.bitsize() / 8) as u64
}

/// Keys under which training scripts put the `state_dict`.
const INSIDE: [&str; 7] = ["state_dict", "model_state_dict", "model", "net", "network", "weights", "params"];

/// The tensors of a `state_dict`, or of the one in a training script's checkpoint.
fn named(root: Item, storages: &Storages) -> Result<Vec<Found>> {
    let count = |item: &Item| item.pairs().unwrap_or_default().iter().filter(|(_, v)| rebuilt(*v).is_some()).count();
    let places: Vec<Item> = [Some(root)].into_iter().chain(INSIDE.map(|key| root.get(key))).flatten().collect();
    let dict = places.into_iter().rev().max_by_key(count).filter(|item| count(item) > 0);
    let Some(dict) = dict else {
        let keys: Vec<&str> = root.pairs().unwrap_or_default().iter().filter_map(|(k, _)| k.text()).take(10).collect();
        let what = if keys.is_empty() { root.what() } else { format!("a dictionary of {}", keys.join(", ")) };
        return Err(Error::data(format!("holds no tensors by name: {what}"))
            .hint("save a state_dict: torch.save(model.state_dict(), …)"));
    };
    let mut found = Vec::new();
    for (key, value) in dict.pairs().unwrap_or_default() {
        if let (Some(name), Some(args)) = (key.text(), rebuilt(value)) {
            found.push(place(name, &args, storages).at(|| name.to_string())?);
        }
    }
    Ok(found)
}

/// What a tensor is rebuilt from: storage, offset, size, strides, ….
fn rebuilt(mut item: Item) -> Option<Vec<Item>> {
    // A parameter is made of a tensor; one that is made of itself of nothing.
    if item.is_by("torch", "_rebuild_parameter") {
        item = item.args().first().copied()?;
    }
    let is_tensor = ["_rebuild_tensor", "_rebuild_tensor_v2"].iter().any(|name| item.is_by("torch", name));
    is_tensor.then(|| item.args())
}

fn place(name: &str, args: &[Item], storages: &Storages) -> Result<Found> {
    let [stored, offset, size, strides, ..] = args else { return Err(damaged("a tensor lacks its parts")) };
    let (key, dtype) = storage(stored.saved().ok_or_else(|| damaged("a tensor has no storage"))?)?;
    let numbers =
        |item: &Item| item.integers().ok()?.into_iter().map(|n| usize::try_from(n).ok()).collect::<Option<Vec<_>>>();
    let (Some(shape), Some(strides)) = (numbers(size), numbers(strides)) else {
        return Err(damaged("a tensor has no shape"));
    };
    if fsx::bound::volume(&shape).is_none() {
        return Err(damaged("a tensor has a shape of nonsense"));
    }
    let mut step = 1usize;
    for (n, stride) in shape.iter().zip(&strides).rev() {
        if *n > 1 && *stride != step {
            return Err(Error::data("stored transposed").hint("save the model again as safetensors"));
        }
        step = step.saturating_mul(*n);
    }
    let offset = offset.int().and_then(|n| u64::try_from(n).ok()).ok_or_else(|| damaged("a tensor has no place"))?;
    let (start, room) = *storages.get(key).ok_or_else(|| damaged(&format!("storage {key} is missing")))?;
    let (from, len) = (offset.saturating_mul(width(dtype)), (step as u64).saturating_mul(width(dtype)));
    if from.saturating_add(len) > room {
        return Err(damaged("a tensor is longer than its storage"));
    }
    Ok(Found { name: name.to_string(), dtype, shape, start: start + from, len: len as usize })
}
