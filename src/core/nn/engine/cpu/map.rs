//! How a value lies in memory: pixels, then channels, inside a border of zeros.

use crate::nn::kernels::simd::{Simd, per_isa};

/// One value per sample, `(C, H, W)`, stored `[H + 2b][W + 2b][stride]`; vectors are `1 × 1` pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Map {
    /// Channels.
    pub c: usize,
    /// Floats a pixel: channels rounded up to sixteen (the rest stay zero), or exactly the channels of raw images.
    pub cp: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Border on every side.
    pub border: usize,
}

impl Map {
    /// A per-sample shape with channels rounded up to sixteen.
    pub fn new(shape: &[usize], border: usize) -> Self {
        let (c, h, w) = match shape {
            &[c, h, w] => (c, h, w),
            other => (other.iter().product(), 1, 1),
        };
        Map { c, cp: c.next_multiple_of(16), h, w, border }
    }

    /// Pixels without the border.
    pub fn pixels(&self) -> usize {
        self.h * self.w
    }

    /// Floats of a row, border included.
    pub fn row(&self) -> usize {
        (self.w + 2 * self.border) * self.cp
    }

    /// Floats of a sample, border included.
    pub fn image(&self) -> usize {
        (self.h + 2 * self.border) * self.row()
    }

    /// The first channel of pixel `(y, x)` in a sample.
    pub fn at(&self, y: usize, x: usize) -> usize {
        (y + self.border) * self.row() + (x + self.border) * self.cp
    }

    /// Lines of pixels without a gap, and the pixels of each.
    fn lines(&self) -> (usize, usize) {
        if self.border == 0 { (1, self.pixels()) } else { (self.h, self.w) }
    }

    /// The place of every pixel in a sample, row by row.
    pub fn places(&self) -> Vec<u32> {
        (0..self.h).flat_map(|y| (0..self.w).map(move |x| self.at(y, x) as u32)).collect()
    }

    /// Copies a sample from row-major `(C, H, W)`.
    pub fn pack(&self, from: &[f32], to: &mut [f32]) {
        for y in 0..self.h {
            let row = &mut to[self.at(y, 0)..][..self.w * self.cp];
            for c in 0..self.c {
                let line = &from[(c * self.h + y) * self.w..][..self.w];
                for (pixel, &value) in row.chunks_exact_mut(self.cp).zip(line) {
                    pixel[c] = value;
                }
            }
        }
    }

    /// Copies a sample to row-major `(C, H, W)`.
    pub fn unpack(&self, from: &[f32], to: &mut [f32]) {
        for y in 0..self.h {
            let row = &from[self.at(y, 0)..][..self.w * self.cp];
            for c in 0..self.c {
                let line = &mut to[(c * self.h + y) * self.w..][..self.w];
                for (pixel, value) in row.chunks_exact(self.cp).zip(line) {
                    *value = pixel[c];
                }
            }
        }
    }

    /// Adds row-major `(C, H, W)` to a sample.
    pub fn add(&self, from: &[f32], to: &mut [f32]) {
        for y in 0..self.h {
            let row = &mut to[self.at(y, 0)..][..self.w * self.cp];
            for c in 0..self.c {
                let line = &from[(c * self.h + y) * self.w..][..self.w];
                for (pixel, &value) in row.chunks_exact_mut(self.cp).zip(line) {
                    pixel[c] += value;
                }
            }
        }
    }
}

per_isa! {
    /// [`Map::pack`] by squares of sixteen channels and pixels.
    pack = pack_body(map: &Map, from: &[f32], to: &mut [f32])
}

#[inline(always)]
unsafe fn pack_body<S: Simd>(map: &Map, from: &[f32], to: &mut [f32]) {
    let (plane, (lines, width)) = (map.pixels(), map.lines());
    assert!(from.len() >= map.c * plane && to.len() >= map.image());
    for y in 0..lines {
        for c in (0..map.c).step_by(16) {
            let whole = if map.c - c < 16 { 0 } else { width / 16 * 16 };
            let (from, to) = (&from[c * plane + y * width..], &mut to[map.at(y, 0) + c..]);
            for x in (0..whole).step_by(16) {
                // SAFETY: sixteen channels of sixteen pixels of a line, in planes of `from` and pixels of `to`.
                unsafe { S::turn(from.as_ptr().add(x), plane, to.as_mut_ptr().add(x * map.cp), map.cp) }
            }
            for (x, k) in (whole..width).flat_map(|x| (0..16.min(map.c - c)).map(move |k| (x, k))) {
                to[x * map.cp + k] = from[k * plane + x];
            }
        }
    }
}

per_isa! {
    /// [`Map::unpack`] by squares of sixteen channels and pixels.
    unpack = unpack_body(map: &Map, from: &[f32], to: &mut [f32])
}

#[inline(always)]
unsafe fn unpack_body<S: Simd>(map: &Map, from: &[f32], to: &mut [f32]) {
    let (plane, (lines, width)) = (map.pixels(), map.lines());
    assert!(from.len() >= map.image() && to.len() >= map.c * plane);
    for y in 0..lines {
        for c in (0..map.c).step_by(16) {
            let whole = if map.c - c < 16 { 0 } else { width / 16 * 16 };
            let (from, to) = (&from[map.at(y, 0) + c..], &mut to[c * plane + y * width..]);
            for x in (0..whole).step_by(16) {
                // SAFETY: as in `pack_body`.
                unsafe { S::turn(from.as_ptr().add(x * map.cp), map.cp, to.as_mut_ptr().add(x), plane) }
            }
            for (k, x) in (0..16.min(map.c - c)).flat_map(|k| (whole..width).map(move |x| (k, x))) {
                to[k * plane + x] = from[x * map.cp + k];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked_and_the_border_stays_zero() {
        let map = Map::new(&[3, 2, 4], 2);
        let from: Vec<f32> = (1..=24).map(|v| v as f32).collect();
        let mut inside = vec![0.0; map.image()];
        map.pack(&from, &mut inside);
        assert_eq!(inside.iter().filter(|v| **v != 0.0).count(), 24);
        assert_eq!(inside[map.at(1, 3) + 2], 24.0);
        let mut back = vec![0.0; 24];
        map.unpack(&inside, &mut back);
        assert_eq!(back, from);
        map.add(&from, &mut inside);
        map.unpack(&inside, &mut back);
        assert_eq!(back[5], 2.0 * from[5]);
    }

    #[test]
    fn squares_are_packed_and_unpacked_as_single_values_are() {
        let shapes = [([20, 3, 18], 1), ([32, 5, 7], 0), ([5, 4, 16], 0), ([16, 1, 33], 2)];
        let raw = Map { cp: 20, ..Map::new(&[20, 4, 9], 0) };
        for map in shapes.map(|(shape, border)| Map::new(&shape, border)).into_iter().chain([raw]) {
            let from: Vec<f32> = (1..=map.c * map.pixels()).map(|v| v as f32).collect();
            let mut want = vec![-1.0; map.image()];
            map.pack(&from, &mut want);
            for isa in crate::nn::kernels::Isa::available() {
                let (mut got, mut back) = (vec![-1.0; map.image()], vec![0.0; from.len()]);
                // SAFETY: the instruction set is one of this machine's.
                unsafe {
                    pack(isa, &map, &from, &mut got);
                    unpack(isa, &map, &got, &mut back);
                }
                assert!(got == want && back == from, "{isa}, {map:?}");
            }
        }
    }
}
