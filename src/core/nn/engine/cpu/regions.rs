//! One block of memory for everything that a workspace needs, cut into regions.

use memmap2::MmapMut;

use crate::error::{Error, Result};

/// Floats in a cache line; regions start on one.
const LINE: usize = 16;
/// Readable floats after each region, so that a kernel may load a little too much.
const SLACK: usize = 64;

/// A region: its index in the list of sizes.
pub(super) type Region = usize;

/// Zeroed floats; regions begin on cache-line boundaries.
pub(super) struct Regions {
    map: MmapMut,
    starts: Vec<usize>,
}

impl Regions {
    /// Regions of these sizes in floats, all zero.
    pub fn new(sizes: &[usize]) -> Result<Self> {
        let mut starts = Vec::with_capacity(sizes.len() + 1);
        let mut len = SLACK;
        for size in sizes {
            starts.push(len);
            len += (size + SLACK).next_multiple_of(LINE);
        }
        starts.push(len);
        let refused = |e| Error::environment(format!("cannot get {} MiB for the network: {e}", len >> 18));
        let map = MmapMut::map_anon(4 * len).map_err(refused)?;
        // Large pages spare most of the address translation; where they are refused, small ones do.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Regions { map, starts })
    }

    /// A handle for worker threads.
    pub fn mem(&mut self) -> Mem<'_> {
        Mem { base: self.map.as_mut_ptr().cast(), starts: &self.starts }
    }

    /// A region's values.
    pub fn values(&self, region: Region) -> &[f32] {
        &bytemuck::cast_slice(&self.map)[self.starts[region]..self.starts[region + 1]]
    }
}

/// The regions as the worker threads of one call see it.
///
/// Contract: between two barriers, what one worker writes no other worker reads or writes.
#[derive(Clone, Copy)]
pub(super) struct Mem<'a> {
    base: *mut f32,
    starts: &'a [usize],
}

// SAFETY: see the contract above, which every phase of the engine keeps by splitting its output.
unsafe impl Send for Mem<'_> {}
// SAFETY: as above.
unsafe impl Sync for Mem<'_> {}

impl<'a> Mem<'a> {
    /// First float of a region.
    pub fn ptr(&self, region: Region) -> *mut f32 {
        // SAFETY: starts lie inside the block.
        unsafe { self.base.add(self.starts[region]) }
    }

    /// `len` floats of a region from `at`, to read.
    ///
    /// # Safety
    /// Nobody writes them before the next barrier.
    pub unsafe fn get(&self, region: Region, at: usize, len: usize) -> &'a [f32] {
        self.check(region, at, len);
        // SAFETY: in bounds (checked); the caller keeps the contract.
        unsafe { std::slice::from_raw_parts(self.ptr(region).add(at), len) }
    }

    /// `len` floats of a region from `at`, to write.
    ///
    /// # Safety
    /// Nobody else touches them before the next barrier, and the caller holds no other view of them.
    pub unsafe fn get_mut(&self, region: Region, at: usize, len: usize) -> &'a mut [f32] {
        self.check(region, at, len);
        // SAFETY: in bounds (checked); the caller keeps the contract.
        unsafe { std::slice::from_raw_parts_mut(self.ptr(region).add(at), len) }
    }

    /// `len` doubles of a region from double `at`, to write.
    ///
    /// # Safety
    /// As [`Mem::get_mut`].
    pub unsafe fn doubles(&self, region: Region, at: usize, len: usize) -> &'a mut [f64] {
        self.check(region, 2 * at, 2 * len);
        // SAFETY: in bounds (checked), aligned (regions start on cache lines), any bits are doubles.
        unsafe { std::slice::from_raw_parts_mut(self.ptr(region).cast::<f64>().add(at), len) }
    }

    fn check(&self, region: Region, at: usize, len: usize) {
        assert!(self.starts[region] + at + len <= self.starts[region + 1], "region {region}: {at} + {len}");
    }
}

/// A caller's slice that several workers write in disjoint parts.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    base: *mut f32,
    len: usize,
    life: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: parts are disjoint by `part`'s contract.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    /// Takes the slice for the time of a call.
    pub fn new(slice: &'a mut [f32]) -> Self {
        Shared { base: slice.as_mut_ptr(), len: slice.len(), life: std::marker::PhantomData }
    }

    /// The part from `at`.
    ///
    /// # Safety
    /// Nobody else touches it before the next barrier.
    pub unsafe fn part(&self, at: usize, len: usize) -> &'a mut [f32] {
        assert!(at + len <= self.len, "{at} + {len} of {}", self.len);
        // SAFETY: in bounds (checked); the caller keeps parts disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(at), len) }
    }
}
