//! Memory for results and for work in progress.

#![allow(unsafe_code, reason = "memory that is written before it is read")]

use bytemuck::Pod;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

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

/// A vector of `len` values, all of which `fill` writes.
///
/// # Safety
/// `fill` writes every value.
pub(crate) unsafe fn filled<T: Pod>(len: usize, fill: impl FnOnce(Shared<T>)) -> Vec<T> {
    let mut values: Vec<MaybeUninit<T>> = Vec::with_capacity(len);
    fill(Shared { pointer: values.as_mut_ptr().cast(), len, buffer: PhantomData });
    let (pointer, capacity) = (values.as_mut_ptr(), values.capacity());
    std::mem::forget(values);
    // SAFETY: the memory is that of a vector of the same layout, and all `len` values were written (the caller's promise).
    unsafe { Vec::from_raw_parts(pointer.cast(), len, capacity) }
}

/// A line of a cache.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

/// Runs `work` with a slice of `len` values that this thread keeps for its next use. They hold what that left there, and
/// begin with a cache line.
pub(crate) fn with_scratch<T: Pod, R>(len: usize, work: impl FnOnce(&mut [T]) -> R) -> R {
    thread_local! {
        static KEPT: RefCell<Vec<Vec<CacheLine>>> = const { RefCell::new(Vec::new()) };
    }
    // Taken, not borrowed: work inside of work on the same thread gets memory of its own.
    let mut kept = KEPT.with_borrow_mut(Vec::pop).unwrap_or_default();
    let lines = (len * size_of::<T>()).div_ceil(size_of::<CacheLine>());
    if kept.len() < lines {
        kept.resize(lines, CacheLine([0; 64]));
    }
    let result = work(&mut bytemuck::cast_slice_mut(&mut kept)[..len]);
    KEPT.with_borrow_mut(|all| all.push(kept));
    result
}
