//! The numbers of a tensor that lies on a CPU in f32, without a copy.

use std::ops::Deref;

use candle_core::{CpuStorage, DType, Storage, Tensor};

use crate::error::{Error, Result};

/// A tensor's storage, held for reading.
pub struct View<'a> {
    /// A read lock whose type candle does not name.
    guard: Box<dyn Deref<Target = Storage> + Sync + 'a>,
    from: usize,
    until: usize,
}

impl<'a> View<'a> {
    /// The values of a contiguous tensor, in order.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (guard, layout) = tensor.storage_and_layout();
        let Some((from, until)) = layout.contiguous_offsets() else {
            return Err(Error::defect(format!("a view of {layout:?}, which is not contiguous")));
        };
        View { guard: Box::new(guard), from, until }.checked()
    }

    /// The values from a tensor's first on to the end of its storage; the tensor's strides find its elements.
    pub fn strided(tensor: &'a Tensor) -> Result<Self> {
        let (guard, layout) = tensor.storage_and_layout();
        let from = layout.start_offset();
        View { guard: Box::new(guard), from, until: usize::MAX }.checked()
    }

    fn checked(mut self) -> Result<Self> {
        match &**self.guard {
            Storage::Cpu(CpuStorage::F32(values)) => {
                self.until = self.until.min(values.len());
                self.from = self.from.min(self.until);
                Ok(self)
            }
            _ => Err(Error::defect("a view of a tensor that is not f32 on a CPU")),
        }
    }
}

impl Deref for View<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &**self.guard {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.from..self.until],
            _ => &[],
        }
    }
}

/// Whether plain slices may stand for these tensors: f32 on a CPU, and no graph is recorded.
pub fn plain(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.dtype() == DType::F32 && t.device().is_cpu() && !t.track_op())
}
