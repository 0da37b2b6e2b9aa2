//! The Fréchet distance between two Gaussians, called FID when the features are those of Inception.

use faer::{Mat, MatRef, Side};

use crate::features::check;
use crate::moments::BLOCK_ROWS;
use crate::{Features, FidelityError, Moments};
use ddpm_math::{Domain, philox::permutation};

/// Mean and covariance of features: what a Fréchet distance knows of a set.
#[derive(Debug, Clone, PartialEq)]
pub struct Gaussian {
    /// `[d]`
    mean: Vec<f64>,
    /// `[d, d]`, symmetric.
    covariance: Vec<f64>,
}

/// By how much the two halves of a covariance may differ, relative to its largest entry: files hold what was summed in f32.
const ASYMMETRY: f64 = 1e-4;

impl Gaussian {
    /// A mean `[d]` and a covariance `[d, d]`, of which the mean of both halves is taken.
    ///
    /// # Errors
    /// When the lengths do not fit, a value is not finite, or the matrix is not that of a covariance.
    pub fn new(mean: Vec<f64>, covariance: Vec<f64>) -> Result<Self, FidelityError> {
        let d = mean.len();
        check(&mean, [1, d])?;
        check(&covariance, [d, d])?;
        let mut covariance = covariance;
        let largest = covariance.iter().fold(0.0_f64, |a, v| a.max(v.abs()));
        for i in 0..d {
            for j in 0..=i {
                let (low, high) = (covariance[i * d + j], covariance[j * d + i]);
                if (low - high).abs() > ASYMMETRY * largest || covariance[i * d + i] < 0.0 {
                    return Err(FidelityError::NoCovariance { row: i, column: j });
                }
                let mean = f64::midpoint(low, high);
                (covariance[i * d + j], covariance[j * d + i]) = (mean, mean);
            }
        }
        Ok(Self { mean, covariance })
    }

    /// Of moments, which have symmetric and finite ones.
    pub(crate) fn of_moments(mean: Vec<f64>, covariance: Vec<f64>) -> Self {
        Self { mean, covariance }
    }

    /// Number of columns `d`.
    pub fn width(&self) -> usize {
        self.mean.len()
    }

    /// The mean, `[d]`.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// The covariance, `[d, d]`.
    pub fn covariance(&self) -> &[f64] {
        &self.covariance
    }

    fn matrix(&self) -> MatRef<'_, f64> {
        MatRef::from_column_major_slice(&self.covariance, self.width(), self.width())
    }
}

/// The squared Fréchet (2-Wasserstein) distance between two Gaussians,
///
/// ```text
/// ‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁^½ Σ₂ Σ₁^½)^½
/// ```
///
/// (Dowson & Landau 1982, "The Fréchet distance between multivariate normal distributions"; proposed for generated
/// images by Heusel et al. 2017, arXiv 1706.08500). The matrix below the root is symmetric and has the eigenvalues of
/// the `Σ₁ Σ₂` in those papers, so two symmetric eigendecompositions give the last trace where a root of the product
/// itself loses digits, or needs an offset, when a covariance is singular. Eigenvalues that rounding made negative count
/// as zero, and so does a negative distance.
///
/// The root turns the rounding of an eigenvalue near zero into about `1e-8` of the largest one. With covariances of
/// deficient rank (fewer rows than columns) expect an error near `1e-7` of the traces, otherwise far less.
///
/// Takes `O(d³)` time and a few `[d, d]` matrices of `f64`.
///
/// # Errors
/// When the widths differ, and when the numbers are too large or the eigenvalues do not converge.
pub fn frechet_distance(a: &Gaussian, b: &Gaussian) -> Result<f64, FidelityError> {
    distance(a, &root(a)?, b)
}

/// The distance of a Gaussian, whose [`root`] is known, from another.
fn distance(a: &Gaussian, root: &Mat<f64>, b: &Gaussian) -> Result<f64, FidelityError> {
    let width = a.width();
    if b.width() != width {
        return Err(FidelityError::WidthMismatch { expected: width, found: b.width() });
    }
    let between_means: f64 = a.mean.iter().zip(&b.mean).map(|(a, b)| (a - b).powi(2)).sum();
    let traces: f64 = (0..width).map(|i| a.covariance[i * width + i] + b.covariance[i * width + i]).sum();
    let distance = between_means + traces - 2.0 * trace_of_root(root, b.matrix())?;
    // Not `max` alone, which would turn NaN into 0.
    if distance.is_finite() { Ok(distance.max(0.0)) } else { Err(FidelityError::Overflow) }
}

/// The distance that infinitely many samples would have, and its standard error: the estimate from n rows is too large by
/// about `c / n` (Chong & Forsyth 2020, arXiv 1911.07023), so distances of random subsets of `points` sizes, from a tenth
/// of the rows to all, are extrapolated by least squares in `1 / n`.
///
/// # Errors
/// As [`frechet_distance`]; when there are fewer than three points, or fewer than 20 rows.
pub fn extrapolated_frechet_distance(
    reference: &Gaussian,
    sample: Features,
    points: usize,
    seed: u64,
) -> Result<[f64; 2], FidelityError> {
    sample.require(reference.width(), 20)?;
    if points < 3 {
        return Err(FidelityError::TooFewRows { needed: 3, found: points });
    }
    let root = root(reference)?;
    let all = sample.rows();
    let least = all.div_ceil(10);
    let (mut x, mut y) = (Vec::with_capacity(points), Vec::with_capacity(points));
    for i in 0..points {
        let rows = least + (all - least) * i / (points - 1);
        let order = permutation(seed, Domain::Subset, i as u64, all);
        let mut moments = Moments::new(sample.width());
        for chosen in order[..rows].chunks(BLOCK_ROWS) {
            let block: Vec<f32> = chosen.iter().flat_map(|&row| sample.row(row as usize)).copied().collect();
            moments.push(&block, [chosen.len(), sample.width()])?;
        }
        x.push(1.0 / rows as f64);
        y.push(distance(reference, &root, &moments.gaussian()?)?);
    }
    Ok(intercept(&x, &y))
}

/// The intercept of the line of least squares, and its standard error.
fn intercept(x: &[f64], y: &[f64]) -> [f64; 2] {
    let n = x.len() as f64;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / n;
    let (x_mean, y_mean) = (mean(x), mean(y));
    let spread: f64 = x.iter().map(|x| (x - x_mean).powi(2)).sum();
    let slope = x.iter().zip(y).map(|(x, y)| (x - x_mean) * (y - y_mean)).sum::<f64>() / spread;
    let intercept = y_mean - slope * x_mean;
    let residual: f64 = x.iter().zip(y).map(|(x, y)| (y - intercept - slope * x).powi(2)).sum();
    let variance = residual / (n - 2.0) * (1.0 / n + x_mean * x_mean / spread);
    [intercept, variance.sqrt()]
}

/// `Q Λ^½` of a covariance `Q Λ Qᵀ`.
fn root(of: &Gaussian) -> Result<Mat<f64>, FidelityError> {
    let matrix = of.matrix();
    if matrix.nrows() == 0 {
        return Ok(Mat::new()); // faer's decompositions want at least one row
    }
    let eigen = matrix.self_adjoint_eigen(Side::Lower).map_err(|_| FidelityError::NoConvergence)?;
    let (vectors, values) = (eigen.U(), eigen.S());
    Ok(Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| vectors[(i, j)] * values[j].max(0.0).sqrt()))
}

/// `tr (A^½ B A^½)^½` of symmetric positive semidefinite matrices: with A = Q Λ Qᵀ, the matrix (Q Λ^½)ᵀ B (Q Λ^½) has the
/// eigenvalues of A^½ B A^½ for one product less.
fn trace_of_root(root: &Mat<f64>, b: MatRef<'_, f64>) -> Result<f64, FidelityError> {
    if b.nrows() == 0 {
        return Ok(0.0);
    }
    let inner = root.transpose() * (b * root);
    if !inner.is_all_finite() {
        return Err(FidelityError::Overflow);
    }
    let values = inner.self_adjoint_eigenvalues(Side::Lower).map_err(|_| FidelityError::NoConvergence)?;
    Ok(values.iter().map(|value| value.max(0.0).sqrt()).sum())
}
