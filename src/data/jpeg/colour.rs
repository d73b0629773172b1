//! Colour differences to the size of the brightness, and both to RGB, as libjpeg-turbo does it (its "fancy" upsampling: a
//! triangle filter), to the bit.

use crate::nn::kernels::Isa;

/// A component's samples: rows `stride` bytes apart, from row `top` and column `left` of `height` by `width` on.
#[derive(Default)]
pub(super) struct Plane {
    pub samples: Vec<u8>,
    pub stride: usize,
    pub top: usize,
    pub left: usize,
    pub height: usize,
    pub width: usize,
}

impl Plane {
    /// Samples of row `y` from column `left` on; rows outside of the picture are its outermost.
    pub fn row(&self, y: isize) -> &[u8] {
        let y = y.clamp(0, self.height as isize - 1) as usize - self.top;
        &self.samples[y * self.stride..][..self.stride]
    }
}

/// A worker's memory for a row.
#[derive(Default)]
pub(super) struct Row {
    sums: Vec<u16>,
    wide: Vec<u8>,
}

impl Row {
    /// Columns `from..to` of row `y` of the picture, a plane with half as many samples across, and down where `down` is 2.
    #[inline(always)]
    pub fn spread(&mut self, plane: &Plane, y: usize, down: usize, from: usize, to: usize) -> &[u8] {
        let (first, last) = ((from / 2).saturating_sub(1), ((to - 1) / 2 + 1).min(plane.width - 1));
        let span = first - plane.left..last - plane.left + 1;
        self.sums.clear();
        // One more on each side, so that the outermost samples have neighbours.
        self.sums.push(0);
        let (scale, even, odd) = if down == 2 {
            let near = (y / 2) as isize;
            let far = if y.is_multiple_of(2) { near - 1 } else { near + 1 };
            let (near, far) = (&plane.row(near)[span.clone()], &plane.row(far)[span]);
            self.sums.extend(near.iter().zip(far).map(|(n, f)| 3 * u16::from(*n) + u16::from(*f)));
            (4, 8, 7)
        } else {
            self.sums.extend(plane.row(y as isize)[span].iter().map(|v| u16::from(*v)));
            (2, 1, 2)
        };
        self.sums[0] = self.sums[1];
        self.sums.push(self.sums[self.sums.len() - 1]);
        self.wide.resize(2 * (last - first + 1), 0);
        let (before, rest) = (&self.sums[..], &self.sums[1..]);
        let after = &self.sums[2..];
        for (((out, b), v), a) in self.wide.as_chunks_mut::<2>().0.iter_mut().zip(before).zip(rest).zip(after) {
            *out = [((3 * v + b + even) >> scale) as u8, ((3 * v + a + odd) >> scale) as u8];
        }
        &self.wide[from - 2 * first..to - 2 * first]
    }
}

/// Brightness and colour differences of a row to RGB, `(width, 3)`.
pub(super) fn rgb(isa: Isa, y: &[u8], cb: &[u8], cr: &[u8], out: &mut [[u8; 3]]) {
    #[cfg(target_arch = "x86_64")]
    if isa > Isa::Portable {
        // SAFETY: every instruction set above the portable one of x86-64 has AVX2.
        let done = unsafe { super::avx2::rgb(y, cb, cr, out) };
        return rgb_one_by_one(&y[done..], &cb[done..], &cr[done..], &mut out[done..]);
    }
    let _ = isa;
    rgb_one_by_one(y, cb, cr, out);
}

fn rgb_one_by_one(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [[u8; 3]]) {
    for (((out, y), cb), cr) in out.iter_mut().zip(y).zip(cb).zip(cr) {
        let (y, cb, cr) = (i16::from(*y), i16::from(*cb) - 128, i16::from(*cr) - 128);
        // 1.402, 0.34414, 0.71414 and 1.772 in 16 bits of fraction, rounded, in halves that 16-bit products give.
        let high = |a: i16, b: i16| ((i32::from(2 * a) * i32::from(b)) >> 16) as i16;
        let red = y + cr + ((high(cr, 26345) + 1) >> 1);
        let blue = y + 2 * cb + ((high(cb, -14942) + 1) >> 1);
        let mixed = i32::from(cb) * -22554 + i32::from(cr) * 18734 + 32768;
        let green = y - cr + (mixed >> 16) as i16;
        *out = [red, green, blue].map(|v| v.clamp(0, 255) as u8);
    }
}
