//! Memory that several tasks write, and memory for work in progress.

#![allow(unsafe_code, reason = "memory that several tasks write")]

use bytemuck::Pod;
use std::any::Any;
use std::cell::RefCell;
use std::marker::PhantomData;

/// A buffer that several tasks write, each at places of its own.
pub(crate) struct Shared<'a, T> {
    pointer: *mut T,
    len: usize,
    buffer: PhantomData<&'a mut [T]>,
}

// SAFETY: tasks write at places of their own and read none (the promise of whoever uses `pointer`).
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(values: &'a mut [T]) -> Self {
        Self { pointer: values.as_mut_ptr(), len: values.len(), buffer: PhantomData }
    }

    /// The first value. To be written through by one task for each place, inside the length, and not read.
    pub(crate) fn pointer(&self) -> *mut T {
        self.pointer
    }

    /// # Panics
    /// If the buffer has fewer than `end` values.
    pub(crate) fn assert_inside(&self, end: usize) {
        assert!(end <= self.len, "{end} values in a buffer of {}", self.len);
    }
}

/// A line of a cache: what memory for kernels is best made of.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct CacheLine([u8; 64]);

impl Default for CacheLine {
    fn default() -> Self {
        Self([0; 64])
    }
}

thread_local! {
    /// What no work of this thread holds at the moment.
    static KEPT: RefCell<Vec<Vec<CacheLine>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of scratch that this thread keeps, outside of work.
#[cfg(test)]
pub(crate) fn kept_bytes() -> usize {
    KEPT.with_borrow(|all| all.iter().map(|kept| size_of_val(&kept[..])).sum())
}

/// Bytes that [`with_scratch`] takes for as many values.
pub(crate) fn scratch_bytes<T>(len: usize) -> usize {
    (len * size_of::<T>()).next_multiple_of(size_of::<CacheLine>())
}

/// Runs `work` with something that this thread keeps for its next use, as that left it.
pub(crate) fn with_kept<T: Default + 'static, R>(work: impl FnOnce(&mut T) -> R) -> R {
    thread_local! {
        static KEPT: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
    }
    // Taken, not borrowed: work inside of work on the same thread gets one of its own.
    let mut kept: Box<T> = KEPT
        .with_borrow_mut(|all| all.iter().position(|kept| kept.is::<T>()).map(|at| all.swap_remove(at)))
        .and_then(|kept| kept.downcast().ok())
        .unwrap_or_default();
    let result = work(&mut kept);
    KEPT.with_borrow_mut(|all| all.push(kept));
    result
}

/// Runs `work` with a slice of `len` values that this thread keeps for its next use. They hold what that left there, and
/// begin with a cache line.
pub(crate) fn with_scratch<T: Pod, R>(len: usize, work: impl FnOnce(&mut [T]) -> R) -> R {
    // Taken, not borrowed: work inside of work on the same thread gets memory of its own.
    let mut kept = KEPT.with_borrow_mut(Vec::pop).unwrap_or_default();
    let lines = scratch_bytes::<T>(len) / size_of::<CacheLine>();
    if kept.len() < lines {
        kept.resize(lines, CacheLine([0; 64]));
    }
    let result = work(&mut bytemuck::cast_slice_mut(&mut kept)[..len]);
    KEPT.with_borrow_mut(|all| all.push(kept));
    result
}
