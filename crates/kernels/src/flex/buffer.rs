//! Output buffers that tasks fill together.

#![allow(unsafe_code, reason = "memory that is written before it is read")]

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

impl<T> Shared<'_, T> {
    /// The first value. To be written through by one task for each place, inside the length.
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
pub(crate) fn filled<T: bytemuck::Pod>(len: usize, fill: impl FnOnce(Shared<T>)) -> Vec<T> {
    let mut values = vec![T::zeroed(); len];
    fill(Shared { pointer: values.as_mut_ptr(), len, buffer: PhantomData });
    values
}
