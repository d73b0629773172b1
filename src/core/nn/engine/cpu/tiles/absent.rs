//! The convolutions that need Intel's matrix unit, where no processor has it.

use std::ops::Range;

use super::conv::{End, Shape, Target};
use super::map::Map;

/// No such convolution can be made.
#[derive(Debug)]
pub(super) enum Tiles {}

#[allow(missing_docs, clippy::too_many_arguments, reason = "the shape of the real one; nothing here can run")]
impl Tiles {
    pub fn new(_: Shape, _: Map, _: Map, _: Map, _: Option<Map>) -> Option<Self> {
        None
    }
    pub fn packed(&self) -> usize {
        match *self {}
    }
    pub fn packed_gradient(&self) -> usize {
        match *self {}
    }
    pub fn packed_back(&self) -> usize {
        match *self {}
    }
    pub fn scratch(&self) -> usize {
        match *self {}
    }
    pub fn images_per_pass(&self) -> usize {
        match *self {}
    }
    pub fn gradient_tiles(&self) -> usize {
        match *self {}
    }
    pub fn pack(&self, _: &[f32], _: Option<&[f32]>, _: &mut [f32]) {
        match *self {}
    }
    pub fn pack_back(&self, _: &[f32], _: &mut [f32]) {
        match *self {}
    }
    pub fn unpack(&self, _: &[f32], _: &mut [f32]) {
        match *self {}
    }
    pub unsafe fn forward(&self, _: *const f32, _: Target<'_>, _: *const f32, _: End<'_>, _: usize, _: *mut f32) {
        match *self {}
    }
    pub unsafe fn input_gradient(
        &self,
        _: usize,
        _: *const f32,
        _: Target<'_>,
        _: *const f32,
        _: End<'_>,
        _: usize,
        _: *mut f32,
    ) -> Option<usize> {
        match *self {}
    }
    pub unsafe fn weight_gradient(
        &self,
        _: *const f32,
        _: *const f32,
        _: *mut f32,
        _: Range<usize>,
        _: usize,
        _: *mut f32,
    ) {
        match *self {}
    }
}
