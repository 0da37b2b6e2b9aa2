//! A safe face for the `gemm` crate: bounds are checked once per product.

#![allow(unsafe_code, reason = "calling the gemm crate")]

/// A strided view of a matrix in a slice: element (r, c) is `data[r * row_stride + c * col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix that fills `data`.
    pub(crate) fn row_major(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The transpose, without moving data.
    pub(crate) fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    fn assert_in_bounds(&self) {
        let last = (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride;
        assert!(last < self.data.len(), "matrix view reaches past its data");
    }
}

/// `dst = lhs · rhs`, or `dst += lhs · rhs` with `accumulate`; `dst` is row-major with `row_stride` values between rows.
///
/// Runs on the calling thread: the callers split their work into tiles whose shapes do not depend on the number of
/// threads or on the batch size, so that every value is summed in the same order whatever those are.
pub(crate) fn matmul(dst: &mut [f32], row_stride: usize, lhs: Mat, rhs: Mat, accumulate: bool) {
    let (m, n, k) = (lhs.rows, rhs.cols, lhs.cols);
    assert_eq!(k, rhs.rows, "inner dimensions of a product differ");
    if m == 0 || n == 0 {
        return;
    }
    assert!(k > 0 && n <= row_stride && (m - 1) * row_stride + n <= dst.len(), "matrix product out of bounds");
    lhs.assert_in_bounds();
    rhs.assert_in_bounds();
    // SAFETY: all three views were checked above to lie inside their slices, `dst` is exclusively borrowed and cannot
    // overlap the shared borrows, and f32 is one of the types the crate dispatches on.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            row_stride as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
