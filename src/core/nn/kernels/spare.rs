//! Memory that a thread keeps for its next kernel: fresh memory costs a page fault a page.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Most buffers that a thread keeps.
const KEPT: usize = 8;

thread_local! {
    static KEEP: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Values that begin on a cache line: a register then never reads from two. What they hold at first is any number.
#[derive(Debug)]
pub struct Spare {
    values: Vec<f32>,
    from: usize,
    len: usize,
}

impl Spare {
    /// `len` values, from a buffer that this thread has put back where one is large enough.
    pub fn take(len: usize) -> Self {
        let need = len + 16;
        let kept = KEEP.with_borrow_mut(|kept| {
            let fits = (0..kept.len()).filter(|&i| kept[i].len() >= need).min_by_key(|&i| kept[i].len());
            fits.map(|i| kept.swap_remove(i))
        });
        let values = kept.unwrap_or_else(|| vec![0.0f32; need]);
        let from = values.as_ptr().align_offset(64).min(16);
        Spare { values, from, len }
    }
}

impl Deref for Spare {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.from..self.from + self.len]
    }
}

impl DerefMut for Spare {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.from..self.from + self.len]
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        // A thread that ends has no place for it any more.
        let _ = KEEP.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            kept.push(values);
            if kept.len() > KEPT {
                let least = (0..kept.len()).min_by_key(|&i| kept[i].len()).unwrap_or(0);
                kept.swap_remove(least);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_put_back_serves_again_and_begins_on_a_cache_line() {
        let mut one = Spare::take(1000);
        one.fill(3.0);
        let (at, two) = (one.as_ptr(), Spare::take(1000));
        assert_ne!(at, two.as_ptr());
        drop(one);
        let again = Spare::take(900);
        assert_eq!((again.as_ptr(), again.len()), (at, 900));
        assert!([&again, &two].iter().all(|s| s.as_ptr().align_offset(64) == 0));
    }
}
