//! Features that a metric needs all at once.

use crate::FidelityError;

/// Feature rows `[n, d]` in memory, C-order, all finite.
#[derive(Debug, Clone, Copy)]
pub struct Features<'a> {
    values: &'a [f32],
    rows: usize,
    width: usize,
}

impl<'a> Features<'a> {
    /// Values of shape `[n, d]`.
    ///
    /// # Errors
    /// When the shape does not match the number of values, and when a value is not finite.
    pub fn new(values: &'a [f32], [rows, width]: [usize; 2]) -> Result<Self, FidelityError> {
        check(values, [rows, width])?;
        Ok(Self { values, rows, width })
    }

    /// Number of rows `n`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns `d`.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Row `i`, `[d]`.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.values[i * self.width..][..self.width]
    }

    pub(crate) fn require(&self, width: usize, rows: usize) -> Result<(), FidelityError> {
        if self.width != width {
            return Err(FidelityError::WidthMismatch { expected: width, found: self.width });
        }
        if self.rows < rows {
            return Err(FidelityError::TooFewRows { needed: rows, found: self.rows });
        }
        Ok(())
    }
}

/// That a batch has its shape and finite values.
pub(crate) fn check<T: Copy + Into<f64>>(values: &[T], [rows, width]: [usize; 2]) -> Result<(), FidelityError> {
    if rows.checked_mul(width) != Some(values.len()) {
        return Err(FidelityError::ShapeMismatch { rows, width, found: values.len() });
    }
    match values.iter().position(|&value| !value.into().is_finite()) {
        Some(index) => Err(FidelityError::NonFinite { row: index / width, column: index % width }),
        None => Ok(()),
    }
}
