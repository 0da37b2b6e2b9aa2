//! Matrix products with a packed right-hand side: the inner loop of convolutions and attention.
//!
//! A panel holds [`panel_columns`] columns, cell by cell. A product of rows with a panel keeps a tile of the
//! result in registers and goes through the summed dimension once, in order: a row's values depend neither on how many
//! rows there are nor on who computes them.

#![allow(unsafe_code, reason = "vectors and unchecked indices in the innermost loops")]
#![expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]

use crate::element::Element;
use crate::simd::{Simd, multiversion};

/// The left-hand side: the cell `k` of row `r` begins at `data[r * row_stride + k * cell_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a, E> {
    pub(crate) data: &'a [E],
    pub(crate) rows: usize,
    pub(crate) cells: usize,
    pub(crate) row_stride: usize,
    pub(crate) cell_stride: usize,
}

/// A panel: the cell `k` of its columns begins at `data[k * stride]`, column by column.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a, E> {
    pub(crate) data: &'a [E],
    pub(crate) stride: usize,
}

impl<'a, E: Element> Panel<'a, E> {
    /// One whose cells follow each other.
    pub(crate) fn packed(data: &'a [E]) -> Self {
        Self { data, stride: panel_columns() * E::STEP }
    }
}

multiversion! {
    /// Columns of a panel: two vectors.
    pub(crate) fn panel_columns<S>() -> usize {
        2 * S::LANES
    }
}

/// `dst = rows · panel`, or `dst += rows · panel` with `accumulate`: a row of `dst` has `dst_stride` values, of which a
/// panel's columns are written.
pub(crate) fn product<E: Element>(dst: &mut [f32], dst_stride: usize, lhs: Left<E>, panel: Panel<E>, accumulate: bool) {
    #[cfg(target_arch = "x86_64")]
    if E::STEP == 2 && crate::Isa::has_tiles() {
        return crate::amx::product(dst, dst_stride, lhs, panel, accumulate);
    }
    vector_product(dst, dst_stride, lhs, panel, accumulate);
}

multiversion! {
    /// [`product`] in vectors.
    fn vector_product<S, E: Element>(
        dst: &mut [f32],
        dst_stride: usize,
        lhs: Left<E>,
        panel: Panel<E>,
        accumulate: bool,
    ) {
        let columns = 2 * S::LANES;
        if lhs.rows == 0 {
            return;
        }
        assert!(lhs.cells > 0, "a product of nothing");
        assert!((lhs.cells - 1) * panel.stride + columns * E::STEP <= panel.data.len(), "a panel is too short");
        assert!(columns <= dst_stride && (lhs.rows - 1) * dst_stride + columns <= dst.len(), "product out of bounds");
        let last = (lhs.rows - 1) * lhs.row_stride + (lhs.cells - 1) * lhs.cell_stride;
        assert!(last + E::STEP <= lhs.data.len(), "matrix view reaches past its data");
        let mut row = 0;
        while row < lhs.rows {
            // SAFETY: the rows below are rows of `lhs` and `dst`, which were checked above to lie inside their slices
            // for all cells and columns, as was the panel.
            unsafe {
                let a = lhs.data.as_ptr().add(row * lhs.row_stride);
                let c = dst.as_mut_ptr().add(row * dst_stride);
                let run = Run { a, lhs: &lhs, panel, c, dst_stride, accumulate };
                row += match lhs.rows - row {
                    left if left >= S::ROWS => match S::ROWS {
                        12 => run.tile::<S, 12>(),
                        6 => run.tile::<S, 6>(),
                        _ => run.tile::<S, 4>(),
                    },
                    left if left >= 4 => run.tile::<S, 4>(),
                    _ => run.tile::<S, 1>(),
                };
            }
        }
    }
}

/// One tile's operands.
struct Run<'a, E> {
    a: *const E,
    lhs: &'a Left<'a, E>,
    panel: Panel<'a, E>,
    c: *mut f32,
    dst_stride: usize,
    accumulate: bool,
}

impl<E: Element> Run<'_, E> {
    /// Computes M rows and returns M.
    ///
    /// # Safety
    /// The machine has the instruction set, `a` has M rows, and panel and `c` are valid for a panel's columns.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize>(&self) -> usize {
        let Left { cells, row_stride, cell_stride, .. } = *self.lhs;
        // SAFETY: all offsets stay inside what the caller has checked.
        unsafe {
            let mut sums = [[S::splat(0.0); 2]; M];
            let (mut a, mut b) = (self.a, self.panel.data.as_ptr());
            for _ in 0..cells {
                let right = [S::load(b.cast()), S::load(b.add(S::LANES * E::STEP).cast())];
                for (r, sums) in sums.iter_mut().enumerate() {
                    let left = S::splat(a.add(r * row_stride).cast::<f32>().read_unaligned());
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = E::dot::<S>(left, right, *sum);
                    }
                }
                a = a.wrapping_add(cell_stride);
                b = b.wrapping_add(self.panel.stride);
            }
            for (r, sums) in sums.into_iter().enumerate() {
                for (i, sum) in sums.into_iter().enumerate() {
                    let to = self.c.add(r * self.dst_stride + i * S::LANES);
                    S::store(to, if self.accumulate { S::add(S::load(to), sum) } else { sum });
                }
            }
        }
        M
    }
}
