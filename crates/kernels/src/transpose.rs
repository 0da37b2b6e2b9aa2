//! Transposes.

#![allow(unsafe_code, reason = "vectors")]

use crate::simd::multiversion;

multiversion! {
    /// `to[j * to_stride + i] = from[i * stride + j]` for a matrix of `size` rows and columns. Values of `to` for columns
    /// beyond those, up to a vector more, may be overwritten by anything.
    pub(crate) fn transpose<S>(
        from: &[f32],
        stride: usize,
        size: [usize; 2],
        to: &mut [f32],
        to_stride: usize,
    ) {
        let [rows, columns] = size;
        if rows == 0 || columns == 0 {
            return;
        }
        assert!((rows - 1) * stride + columns <= from.len(), "a matrix beyond its memory");
        assert!((columns - 1) * to_stride + rows <= to.len(), "a transpose beyond its memory");
        let n = S::LANES;
        for i in (0..rows).step_by(n) {
            for j in (0..columns).step_by(n) {
                let (at, to_at) = (i * stride + j, j * to_stride + i);
                let inside = at + (n - 1) * stride + n <= from.len() && to_at + (n - 1) * to_stride + n <= to.len();
                if i + n <= rows && inside {
                    // SAFETY: all rows of the square lie in both, as was just checked.
                    unsafe { S::transpose(from.as_ptr().add(at), stride, to.as_mut_ptr().add(to_at), to_stride) };
                    continue;
                }
                for i in i..rows.min(i + n) {
                    for j in j..columns.min(j + n) {
                        to[j * to_stride + i] = from[i * stride + j];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_value_finds_its_place() {
        for [rows, columns] in [[1, 1], [3, 40], [16, 16], [33, 9], [35, 50], [0, 4]] {
            for slack in [0, 3, 700] {
                let (stride, to_stride) = (columns + 2, rows + 1);
                let from: Vec<f32> = (0..rows * stride + slack).map(|v| v as f32).collect();
                let mut to = vec![-1.0; columns * to_stride + slack];
                super::transpose(&from, stride, [rows, columns], &mut to, to_stride);
                for i in 0..rows {
                    for j in 0..columns {
                        assert_eq!(to[j * to_stride + i], from[i * stride + j], "{rows}x{columns} at {i}, {j}");
                    }
                }
            }
        }
    }
}
