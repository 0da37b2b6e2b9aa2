//! Mean and covariance of features that arrive in batches.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, MatMut, MatRef, Par};

use crate::features::check;
use crate::{FidelityError, Gaussian};

/// Rows that are centred and multiplied at once; bounds the memory that a large batch takes.
pub(crate) const BLOCK_ROWS: usize = 512;

/// Running mean and covariance of feature rows `[n, d]`, kept in `f64`.
///
/// Rows are centred on the mean of their own block before they are multiplied, and blocks are merged by the pairwise
/// update of Chan, Golub & LeVeque (1979), so a mean far from zero costs no digits. With the scatter
/// `M = Σᵢ (xᵢ − μ)(xᵢ − μ)ᵀ` and `δ = μ_b − μ_a`:
///
/// ```text
/// n = n_a + n_b      μ = μ_a + δ n_b / n      M = M_a + M_b + δ δᵀ n_a n_b / n
/// ```
///
/// The result depends on the division into batches only by rounding.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    width: usize,
    count: usize,
    /// `[d]`
    mean: Vec<f64>,
    /// `[d, d]`, column-major; only the lower triangle is kept up to date.
    scatter: Vec<f64>,
}

impl Moments {
    /// Moments of no rows yet, for features of `width` columns.
    pub fn new(width: usize) -> Self {
        Self { width, count: 0, mean: vec![0.0; width], scatter: vec![0.0; width * width] }
    }

    /// Adds a batch of `f32` or `f64` features of shape `[n, d]`, C-order. A batch of no rows changes nothing.
    ///
    /// # Errors
    /// When the shape has another width than these moments or does not match the number of values, and when a value
    /// is not finite. The moments are then as they were before.
    pub fn push<T: Copy + Into<f64>>(&mut self, features: &[T], shape: [usize; 2]) -> Result<(), FidelityError> {
        let [rows, width] = shape;
        if width != self.width {
            return Err(FidelityError::WidthMismatch { expected: self.width, found: width });
        }
        check(features, shape)?;
        if width == 0 {
            self.count += rows;
            return Ok(());
        }
        for block in features.chunks(BLOCK_ROWS * width) {
            self.push_block(block);
        }
        Ok(())
    }

    /// Adds the rows that another accumulator has seen, as if they had been pushed here.
    ///
    /// # Errors
    /// When the widths differ.
    pub fn merge(&mut self, other: &Self) -> Result<(), FidelityError> {
        if other.width != self.width {
            return Err(FidelityError::WidthMismatch { expected: self.width, found: other.width });
        }
        if other.count > 0 {
            let between = self.merge_mean(other.count, &other.mean);
            for (scatter, added) in self.scatter.iter_mut().zip(&other.scatter) {
                *scatter += added;
            }
            self.add_product(&between, 1);
        }
        Ok(())
    }

    /// Number of columns `d`.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows seen.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The mean, `[d]`.
    ///
    /// # Errors
    /// When no row was seen.
    pub fn mean(&self) -> Result<&[f64], FidelityError> {
        self.require_rows(1)?;
        Ok(&self.mean)
    }

    /// The unbiased covariance `M / (n − 1)`, `[d, d]`, exactly symmetric; what `numpy.cov(features, rowvar=False)`
    /// gives.
    ///
    /// # Errors
    /// When fewer than two rows were seen, and when the features are so large that the covariance is not finite.
    pub fn covariance(&self) -> Result<Vec<f64>, FidelityError> {
        self.require_rows(2)?;
        let divisor = (self.count - 1) as f64;
        let mut covariance = vec![0.0; self.scatter.len()];
        for column in 0..self.width {
            for row in column..self.width {
                let value = self.scatter[column * self.width + row] / divisor;
                if !value.is_finite() {
                    return Err(FidelityError::Overflow);
                }
                covariance[column * self.width + row] = value;
                covariance[row * self.width + column] = value;
            }
        }
        Ok(covariance)
    }

    /// Mean and covariance, as distances want them.
    ///
    /// # Errors
    /// As [`Self::covariance`].
    pub fn gaussian(&self) -> Result<Gaussian, FidelityError> {
        Ok(Gaussian::of_moments(self.mean()?.to_vec(), self.covariance()?))
    }

    fn require_rows(&self, needed: usize) -> Result<(), FidelityError> {
        if self.count < needed { Err(FidelityError::TooFewRows { needed, found: self.count }) } else { Ok(()) }
    }

    /// Adds whole rows, at least one, that are known to be finite.
    fn push_block<T: Copy + Into<f64>>(&mut self, block: &[T]) {
        let rows = block.len() / self.width;
        let mut mean = vec![0.0; self.width];
        for row in block.chunks_exact(self.width) {
            for (sum, &value) in mean.iter_mut().zip(row) {
                *sum += value.into();
            }
        }
        for sum in &mut mean {
            *sum /= rows as f64;
        }
        let mut centred = Vec::with_capacity(block.len() + self.width);
        for row in block.chunks_exact(self.width) {
            centred.extend(row.iter().zip(&mean).map(|(&value, mean)| value.into() - mean));
        }
        // The term between the two means is one more row of the same product.
        centred.extend(self.merge_mean(rows, &mean));
        self.add_product(&centred, rows + 1);
    }

    /// Updates count and mean, and returns the row `δ √(n_a n_b / n)` whose outer product the scatter is to gain.
    fn merge_mean(&mut self, count: usize, mean: &[f64]) -> Vec<f64> {
        let (before, added) = (self.count as f64, count as f64);
        let total = before + added;
        self.count += count;
        let root_weight = (before / total * added).sqrt();
        let update = |(ours, theirs): (&mut f64, &f64)| {
            let delta = theirs - *ours;
            *ours += delta * (added / total);
            delta * root_weight
        };
        self.mean.iter_mut().zip(mean).map(update).collect()
    }

    /// Adds `XᵀX` for `X` of shape `[rows, d]`, C-order, to the lower triangle of the scatter.
    fn add_product(&mut self, x: &[f64], rows: usize) {
        // Rows in C-order are the columns of the transpose in column-major order.
        let transposed = MatRef::from_column_major_slice(x, self.width, rows);
        triangular::matmul(
            MatMut::from_column_major_slice_mut(&mut self.scatter, self.width, self.width),
            BlockStructure::TriangularLower,
            Accum::Add,
            transposed,
            BlockStructure::Rectangular,
            transposed.transpose(),
            BlockStructure::Rectangular,
            1.0,
            Par::Seq,
        );
    }
}
