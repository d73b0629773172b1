//! How a value lies in memory: pixels, then channels, inside a border of zeros.

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
}
