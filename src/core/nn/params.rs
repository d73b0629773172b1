//! Parameters are values, and flat: a [`Layout`] of names, shapes and roles, and one slice of f32.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result, closest};
use crate::fsx::{self, bound};

/// State as named parameter vectors: what a server, a client or an optimiser keeps, ready for a checkpoint.
pub type Named = BTreeMap<String, Params>;

/// Places in the flat slice.
pub type Ranges = Vec<std::ops::Range<usize>>;

/// What a tensor is to an optimiser and to aggregation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Trained by gradients.
    Weight,
    /// Batch-norm running statistics: values, never steps.
    Buffer,
}

/// One tensor's place in the flat slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// PyTorch's `state_dict` name.
    pub name: String,
    /// PyTorch's shape.
    pub shape: Vec<usize>,
    /// First element in the slice.
    pub offset: usize,
    /// Weight or buffer.
    pub role: Role,
}

impl Entry {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its elements in the flat slice.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// Names, shapes, roles and offsets, in PyTorch's `state_dict` order (`num_batches_tracked` left out).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    entries: Vec<Entry>,
    index: BTreeMap<String, usize>,
    len: usize,
}

/// Most numbers of a layout: 4 TiB of them.
const MOST: usize = 1 << 40;

impl Layout {
    /// Appends a tensor and returns its index. Names are unique.
    pub fn push(&mut self, name: impl Into<String>, shape: &[usize], role: Role) -> Result<usize> {
        let name = name.into();
        let end = bound::volume(shape).and_then(|n| self.len.checked_add(n));
        if end.is_none_or(|end| end > MOST) {
            return Err(Error::input(format!("{name} of shape {shape:?} is larger than any memory")));
        }
        let entry = Entry { name, shape: shape.to_vec(), offset: self.len, role };
        let id = self.entries.len();
        if self.index.insert(entry.name.clone(), id).is_some() {
            return Err(Error::defect(format!("two tensors are called {}", entry.name)));
        }
        self.len += entry.len();
        self.entries.push(entry);
        Ok(id)
    }

    /// All tensors in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.index.get(name).map(|&i| &self.entries[i])
    }

    /// Elements of all tensors, buffers included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Elements of the weights: what papers count as parameters.
    pub fn weights(&self) -> usize {
        self.entries.iter().filter(|e| e.role == Role::Weight).map(Entry::len).sum()
    }

    /// The ranges of one role, neighbours merged.
    pub fn ranges(&self, role: Role) -> Vec<std::ops::Range<usize>> {
        let mut ranges: Vec<std::ops::Range<usize>> = Vec::new();
        for entry in self.entries.iter().filter(|e| e.role == role) {
            match ranges.last_mut() {
                Some(last) if last.end == entry.offset => last.end = entry.range().end,
                _ => ranges.push(entry.range()),
            }
        }
        ranges
    }
}

/// A model's parameters: a shared layout and one shared slice; cloning is free, changing copies.
#[derive(Clone)]
pub struct Params {
    layout: Arc<Layout>,
    data: Arc<[f32]>,
}

impl Params {
    /// Puts a layout and its data together.
    pub fn new(layout: Arc<Layout>, data: impl Into<Arc<[f32]>>) -> Result<Self> {
        let data = data.into();
        if data.len() != layout.len() {
            return Err(Error::defect(format!(
                "parameters: layout of {} elements, data of {}",
                layout.len(),
                data.len()
            )));
        }
        Ok(Params { layout, data })
    }

    /// All zeros.
    pub fn zeros(layout: Arc<Layout>) -> Self {
        let data = vec![0.0; layout.len()].into();
        Params { layout, data }
    }

    /// One tensor by itself, `(shape…)`, as a layout of one entry.
    pub fn tensor(name: impl Into<String>, shape: &[usize], data: impl Into<Arc<[f32]>>) -> Result<Self> {
        let mut layout = Layout::default();
        layout.push(name, shape, Role::Weight)?;
        Self::new(Arc::new(layout), data)
    }

    /// Names, shapes, roles.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The flat slice.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The flat slice to write to; copied first if shared.
    pub fn data_mut(&mut self) -> &mut [f32] {
        Arc::make_mut(&mut self.data)
    }

    /// The elements of the tensor called `name`.
    pub fn get(&self, name: &str) -> Result<&[f32]> {
        match self.layout.get(name) {
            Some(entry) => Ok(&self.data[entry.range()]),
            None => Err(missing(name, &self.layout)),
        }
    }

    /// A copy with the tensors of `part`, which must be this layout's by name and shape, in place of its own.
    pub fn patched(&self, part: &Params) -> Result<Self> {
        let mut out = self.clone();
        for entry in part.layout.entries() {
            let own = self.layout.get(&entry.name).ok_or_else(|| missing(&entry.name, &self.layout))?;
            if own.shape != entry.shape {
                let (name, want, found) = (&entry.name, &own.shape, &entry.shape);
                return Err(Error::defect(format!("patch: {name}: expected {want:?}, found {found:?}")));
            }
            out.data_mut()[own.range()].copy_from_slice(&part.data[entry.range()]);
        }
        Ok(out)
    }

    /// The tensors at these ranges of the slice (whole tensors), under their own names: what [`Params::patched`] takes.
    pub fn part(&self, ranges: &[std::ops::Range<usize>]) -> Result<Self> {
        let (mut layout, mut data) = (Layout::default(), Vec::new());
        for entry in self.layout.entries() {
            if ranges.iter().any(|r| r.start <= entry.offset && entry.range().end <= r.end) {
                layout.push(entry.name.as_str(), &entry.shape, entry.role)?;
                data.extend_from_slice(&self.data[entry.range()]);
            }
        }
        Self::new(Arc::new(layout), data)
    }

    /// SHA-256 over names, shapes and little-endian bytes, in layout order.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        for entry in self.layout.entries() {
            hasher.update(format!("{} {:?}\n", entry.name, entry.shape).as_bytes());
            hasher.update(bytemuck::cast_slice(&self.data[entry.range()]));
        }
        fsx::hex(hasher.finalize())
    }

    /// Writes a safetensors file, whole or not at all.
    pub fn save(&self, path: &Path, metadata: &BTreeMap<String, String>) -> Result<()> {
        let views: Result<Vec<_>> = self
            .layout
            .entries()
            .iter()
            .map(|e| {
                let bytes = bytemuck::cast_slice(&self.data[e.range()]);
                let view = TensorView::new(Dtype::F32, e.shape.clone(), bytes);
                Ok((e.name.as_str(), view.map_err(|x| Error::defect(format!("safetensors: {}: {x}", e.name)))?))
            })
            .collect();
        let metadata = metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let bytes = safetensors::serialize(views?, Some(metadata))
            .map_err(|e| Error::defect(format!("safetensors: {}: {e}", path.display())))?;
        fsx::write_atomic(path, &bytes)
    }

    /// Reads a safetensors file that must hold every tensor of `layout` in its shape (others are ignored).
    pub fn load(path: &Path, layout: &Arc<Layout>) -> Result<Self> {
        let (params, absent) = Self::load_partial(path, &Params::zeros(layout.clone()))?;
        match absent.first() {
            None => Ok(params),
            Some(name) => Err(Error::data(format!("{}: no tensor {name}", path.display())).hint(format!(
                "{} of {} tensors are absent: is it another network?",
                absent.len(),
                layout.entries().len()
            ))),
        }
    }

    /// Reads the tensors of `start`'s layout that the file has; the rest stay as in `start` and are named.
    fn load_partial(path: &Path, start: &Params) -> Result<(Self, Vec<String>)> {
        let bytes = fsx::read(path)?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|e| Error::data(format!("{}: not a safetensors file: {e}", path.display())))?;
        let mut params = start.clone();
        let layout = params.layout.clone();
        let mut absent = Vec::new();
        for entry in layout.entries() {
            let Ok(view) = file.tensor(&entry.name) else {
                absent.push(entry.name.clone());
                continue;
            };
            if view.shape() != entry.shape || view.dtype() != Dtype::F32 {
                return Err(Error::data(format!(
                    "{}: {}: expected f32 {:?}, found {:?} {:?}",
                    path.display(),
                    entry.name,
                    entry.shape,
                    view.dtype(),
                    view.shape()
                )));
            }
            let target = &mut params.data_mut()[entry.range()];
            bytemuck::cast_slice_mut::<f32, u8>(target).copy_from_slice(view.data());
        }
        Ok((params, absent))
    }
}

impl std::fmt::Debug for Params {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Params({} tensors, {} elements)", self.layout.entries().len(), self.data.len())
    }
}

fn missing(name: &str, layout: &Layout) -> Error {
    let error = Error::defect(format!("no tensor is called {name}"));
    match closest(name, layout.entries().iter().map(|e| e.name.as_str())) {
        Some(near) => error.hint(format!("did you mean {near}?")),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Arc<Layout> {
        let mut layout = Layout::default();
        layout.push("conv.weight", &[2, 3], Role::Weight).unwrap();
        layout.push("bn.running_mean", &[2], Role::Buffer).unwrap();
        layout.push("fc.weight", &[4], Role::Weight).unwrap();
        layout.push("fc.bias", &[1], Role::Weight).unwrap();
        Arc::new(layout)
    }

    #[test]
    fn ranges_of_a_role_are_merged() {
        assert_eq!(layout().ranges(Role::Weight), vec![0..6, 8..13]);
        assert_eq!(layout().ranges(Role::Buffer), vec![6..8]);
        assert_eq!(layout().weights(), 11);
    }

    #[test]
    fn a_saved_model_is_read_back_to_the_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let data: Vec<f32> = (0..13).map(|i| (i as f32).sqrt()).collect();
        let params = Params::new(layout(), data).unwrap();
        params.save(&path, &BTreeMap::new()).unwrap();
        let back = Params::load(&path, &layout()).unwrap();
        assert_eq!(back.data(), params.data());
        assert_eq!(back.digest(), params.digest());
    }

    #[test]
    fn a_missing_tensor_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        Params::zeros(layout()).save(&path, &BTreeMap::new()).unwrap();
        let mut other = (*layout()).clone();
        other.push("mlp.weight", &[1], Role::Weight).unwrap();
        let e = Params::load(&path, &Arc::new(other)).unwrap_err();
        assert!(e.to_string().contains("mlp.weight"), "{e}");
    }
}
