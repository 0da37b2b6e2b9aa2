//! Rows of values to cells along them, as products read what is summed over rows.

#![allow(unsafe_code, reason = "vectors")]

use crate::element::Element;
use crate::simd::{Simd, each_vector, multiversion};

multiversion! {
    /// Rows to cells along them: `width` values from `offset` on of every row of `stride`, as
    /// `[panel][row / STEP][column][STEP]` with zeros beyond the last row and column.
    pub(crate) fn pair_rows<S, E: Element>(
        rows: &[E],
        stride: usize,
        offset: usize,
        width: usize,
        columns: usize,
        out: &mut [E],
    ) {
        let (count, cells) = (rows.len() / stride, (rows.len() / stride).div_ceil(E::STEP));
        assert!(offset + width <= stride, "columns beyond their rows");
        // After the last row of an odd number.
        let zeros = vec![E::default(); if count.is_multiple_of(E::STEP) { 0 } else { width }];
        for cell in 0..cells {
            let [first, last] = [cell * E::STEP, cell * E::STEP + E::STEP - 1].map(|row| row * stride + offset);
            let second = if last < rows.len() { &rows[last..][..width] } else { &zeros };
            let out = &mut out[cell * columns * E::STEP..];
            pair_row::<S, E>(&rows[first..][..width], second, columns, out, cells * columns * E::STEP);
        }
    }
}

multiversion! {
    /// [`pair_rows`] of whole rows that lie anywhere, an even number of them. Panels begin `panel` values apart.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn pair_slices<S, E: Element>(rows: &[&[E]], columns: usize, out: &mut [E], panel: usize) {
        for (cell, rows) in rows.chunks_exact(E::STEP).enumerate() {
            let out = &mut out[cell * columns * E::STEP..];
            pair_row::<S, E>(rows[0], rows[E::STEP - 1], columns, out, panel);
        }
    }
}

/// Two rows of [`pair_rows`], to a cell of each panel: they begin `panel` values apart in `out`.
#[expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]
#[inline(always)]
fn pair_row<S: Simd, E: Element>(first: &[E], second: &[E], columns: usize, out: &mut [E], panel: usize) {
    let width = first.len();
    assert_eq!(second.len(), width, "rows of another width");
    for p in 0..width.div_ceil(columns) {
        let own = columns.min(width - p * columns);
        let (cell, beyond) = out[p * panel..][..columns * E::STEP].split_at_mut(own * E::STEP);
        // SAFETY: the vectors lie in these columns of both rows, and in the cell; the machine has the instruction set.
        unsafe {
            let [first, second] = [first, second].map(|row| row.as_ptr().add(p * columns));
            let to = cell.as_mut_ptr();
            each_vector!(S, own, j => pair_vector::<E>(to.add(j * E::STEP), first.add(j), second.add(j)));
        }
        beyond.fill(E::default());
    }
}

/// # Safety
/// As [`pair`](crate::element::Vectors::pair).
#[expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]
#[inline(always)]
unsafe fn pair_vector<S: Simd, E: Element>(to: *mut E, first: *const E, second: *const E) {
    // SAFETY: the caller's promise.
    unsafe { E::pair::<S>(to, first, second) }
}
