//! A convolution for the matrix unit: its windows, and its weights in the unit's order.

mod gradient;
mod layout;
mod windowed;

use std::ops::Range;

use super::conv::{End, Shape, Target, phase_taps};
use super::map::Map;
use crate::nn::kernels::amx::{DEPTH, SIDE, TILE, split};
use gradient::OverPixels;
use layout::Windows;
use windowed::Windowed;

/// The three products of a convolution.
#[derive(Debug)]
pub(super) struct Tiles {
    shape: Shape,
    x: Map,
    gy: Map,
    forward: Windowed,
    /// One for each remainder of an input pixel, with the window's place of each tap; none where no window reaches.
    backward: Vec<Option<(Windowed, Vec<usize>)>>,
    gradient: OverPixels,
}

impl Tiles {
    /// Lays out a convolution between these maps; none where the unit would idle.
    pub fn new(shape: Shape, x: Map, y: Map, gy: Map, gx: Option<Map>) -> Option<Self> {
        // With sixteen channels a tile is half empty, and AVX-512 as fast.
        let whole = |channels: usize| channels.is_multiple_of(DEPTH);
        if shape.groups != 1 || !whole(shape.inputs) || !whole(shape.outputs) {
            return None;
        }
        let corner = x.border - shape.padding;
        let taps = (0..shape.kernel).flat_map(|ky| (0..shape.kernel).map(move |kx| (ky, kx))).collect();
        let windows = Windows { map: x, corner: (corner, corner), taps, step: shape.stride, out: (y.h, y.w) };
        let mut backward = Vec::new();
        for phase in gx.iter().flat_map(|gx| shape.phases(gx)) {
            let gx = gx?;
            backward.push(match phase_windows(&shape, &gy, &gx, phase) {
                Some((windows, places)) => Some((Windowed::new(&windows, gx.cp)?, places)),
                None => None,
            });
        }
        let forward = Windowed::new(&windows, y.cp)?;
        let gradient = OverPixels::new(&windows, gy.cp)?;
        Some(Tiles { shape, x, gy, forward, backward, gradient })
    }

    fn sides(&self) -> impl Iterator<Item = &Windowed> {
        self.backward.iter().flatten().map(|b| &b.0)
    }

    /// Floats of the split weights.
    pub fn packed(&self) -> usize {
        self.forward.packed()
    }

    /// Floats of the packed weight gradient.
    pub fn packed_gradient(&self) -> usize {
        self.gradient.packed()
    }

    /// Floats of the split weights for the input's gradient.
    pub fn packed_back(&self) -> usize {
        self.sides().map(Windowed::packed).sum()
    }

    /// Floats of scratch that a worker needs.
    pub fn scratch(&self) -> usize {
        let sides = self.sides().chain([&self.forward]).map(Windowed::scratch);
        sides.max().unwrap_or(0).max(self.gradient.scratch())
    }

    /// Images that share a pass over the weights, a multiple of those whose pixels take turns.
    pub fn images_per_pass(&self) -> usize {
        let sides = self.sides().chain([&self.forward]).map(Windowed::pass);
        sides.max().unwrap_or(1).max(self.gradient.turns())
    }

    /// Weights of the gradient that workers share.
    pub fn gradient_tiles(&self) -> usize {
        self.gradient.tiles()
    }

    /// Splits weights `(out, in, k, k)`, each output's times its `scale` if there is one.
    pub fn pack(&self, weight: &[f32], scale: Option<&[f32]>, to: &mut [f32]) {
        let area = self.shape.kernel * self.shape.kernel;
        let rows = self.shape.inputs * area;
        let mut turned = vec![0.0; rows * SIDE];
        for lane in (0..self.shape.outputs).step_by(SIDE) {
            // SAFETY: sixteen whole outputs; the machine has the unit, so AVX-512.
            unsafe { split::columns(&weight[lane * rows..][..SIDE * rows], rows, &mut turned) }
            if let Some(scale) = scale {
                let scale = &scale[lane..lane + SIDE];
                turned.chunks_exact_mut(SIDE).for_each(|row| row.iter_mut().zip(scale).for_each(|(w, s)| *w *= s));
            }
            self.forward.pack(lane, |tap, channel| turned[(channel * area + tap) * SIDE..].as_ptr(), to);
        }
    }

    /// Splits weights for the input's gradient.
    pub fn pack_back(&self, weight: &[f32], to: &mut [f32]) {
        let (inputs, outputs) = (self.shape.inputs, self.shape.outputs);
        let area = self.shape.kernel * self.shape.kernel;
        // The last rows of a turn may be too many; the next turn writes over them.
        let mut turned = vec![0.0; outputs * area * SIDE + TILE];
        for lane in (0..inputs).step_by(SIDE) {
            for output in 0..outputs {
                let (from, to) = (&weight[(output * inputs + lane) * area..], &mut turned[output * area * SIDE..]);
                // SAFETY: the machine has the unit, so AVX-512.
                unsafe { split::windows(from, area, to) }
            }
            let mut rest = &mut *to;
            for (side, places) in self.backward.iter().flatten() {
                side.pack(lane, |tap, output| turned[(output * area + places[tap]) * SIDE..].as_ptr(), rest);
                rest = &mut rest[side.packed()..];
            }
        }
    }

    /// Writes a packed gradient into `grad`, all of the convolution's weights.
    pub fn unpack(&self, from: &[f32], grad: &mut [f32]) {
        let area = self.shape.kernel * self.shape.kernel;
        for (lane, grad) in grad.chunks_exact_mut(self.shape.inputs * area).enumerate() {
            for (group, grad) in grad.chunks_exact_mut(SIDE * area).enumerate() {
                for tap in 0..area {
                    let sums = &from[self.gradient.row(lane, group * SIDE, tap)..][..SIDE];
                    grad[tap..].iter_mut().step_by(area).zip(sums).for_each(|(grad, sum)| *grad = *sum);
                }
            }
        }
    }

    /// The output of `images` images.
    ///
    /// # Safety
    /// As `Conv::forward`.
    pub unsafe fn forward(
        &self,
        x: *const f32,
        y: Target<'_>,
        w: *const f32,
        end: End<'_>,
        images: usize,
        scratch: *mut f32,
    ) {
        // SAFETY: passed on.
        unsafe { self.forward.run((x, &self.x), y, w, end, images, scratch) }
    }

    /// One phase of the input's gradient; `None` if no window reaches its pixels, else its weights' floats.
    ///
    /// # Safety
    /// As `Conv::input_gradient`, from this phase's weights on.
    #[allow(clippy::too_many_arguments, reason = "kernels take their operands one by one")]
    pub unsafe fn input_gradient(
        &self,
        phase: usize,
        gy: *const f32,
        gx: Target<'_>,
        w: *const f32,
        end: End<'_>,
        images: usize,
        scratch: *mut f32,
    ) -> Option<usize> {
        let (side, _) = self.backward.get(phase)?.as_ref()?;
        // SAFETY: passed on.
        unsafe { side.run((gy, &self.gy), gx, w, end, images, scratch) }
        Some(side.packed())
    }

    /// Adds the packed weight gradient over `images` images, these tiles of it.
    ///
    /// # Safety
    /// As `Conv::weight_gradient`.
    pub unsafe fn weight_gradient(
        &self,
        x: *const f32,
        gy: *const f32,
        sums: *mut f32,
        tiles: Range<usize>,
        images: usize,
        scratch: *mut f32,
    ) {
        // SAFETY: passed on.
        unsafe { self.gradient.run((x, &self.x), (gy, &self.gy), sums, tiles, images, scratch) }
    }
}

/// The windows that the input pixels of a phase are summed over, and each tap's place in a weight's window.
fn phase_windows(shape: &Shape, gy: &Map, gx: &Map, (py, px): (usize, usize)) -> Option<(Windows, Vec<usize>)> {
    let [rows, columns] = [py, px].map(|phase| phase_taps(shape, phase));
    let first = |taps: &[(usize, isize)]| taps.iter().map(|t| t.1).min();
    let (y, x) = (first(&rows)?, first(&columns)?);
    let (mut taps, mut places) = (Vec::new(), Vec::new());
    for &(ky, dy) in &rows {
        for &(kx, dx) in &columns {
            taps.push(((dy - y) as usize, (dx - x) as usize));
            places.push(ky * shape.kernel + kx);
        }
    }
    let corner = |first: isize| (gy.border as isize + first) as usize;
    let out = [(py, gx.h), (px, gx.w)].map(|(phase, side)| (side - phase).div_ceil(shape.stride));
    let windows = Windows { map: *gy, corner: (corner(y), corner(x)), taps, step: 1, out: (out[0], out[1]) };
    Some((windows, places))
}
