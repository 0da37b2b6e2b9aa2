//! Memory for plans, kept and lent out.
//!
//! All plans of a process take their memory from one pool: a step frees and takes the same gigabyte again, and handing
//! pages back to the system costs a fault for each.

use bytemuck::Pod;
use ddpm_kernels::CacheLine;
use std::sync::{Mutex, PoisonError};

static POOL: Mutex<Vec<Vec<CacheLine>>> = Mutex::new(Vec::new());

/// Memory that goes back to the pool in the end. It holds what its last user left there.
#[derive(Debug)]
pub(crate) struct Lease(Vec<CacheLine>);

impl Lease {
    /// At least so many bytes, beginning with a cache line.
    pub(crate) fn new(bytes: usize) -> Self {
        let lines = bytes.div_ceil(size_of::<CacheLine>());
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = pool.iter().enumerate().filter(|(_, memory)| memory.len() >= lines);
        let best = fitting.min_by_key(|(_, memory)| memory.len()).map(|(at, _)| at);
        // What is too small for this may be for the next as well: its memory is given up for the larger.
        let at = best.or_else(|| pool.iter().enumerate().max_by_key(|(_, memory)| memory.len()).map(|(at, _)| at));
        let mut memory = at.map(|at| pool.swap_remove(at)).unwrap_or_default();
        drop(pool);
        if memory.len() < lines {
            drop(std::mem::take(&mut memory));
            memory = vec![CacheLine::default(); lines];
        }
        let mut lease = Self(memory);
        if cfg!(test) {
            // Not a number in any precision: nothing may be read before it is written.
            lease.bytes().fill(0xff);
        }
        lease
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    /// The first values.
    pub(crate) fn values<T: Pod>(&mut self, count: usize) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.0)[..count]
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        POOL.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.0));
    }
}
