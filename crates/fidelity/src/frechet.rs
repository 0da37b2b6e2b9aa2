//! The Fréchet distance between two Gaussians, called FID when the features are those of Inception.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt_pivoting::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::{Mat, MatRef, Par, Side, Spec};

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

/// The most of a covariance's trace that its factor may leave out: files hold what was summed in f32.
const MOST_LEFT_OUT: f64 = 1e-3;

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

/// A Fréchet distance and its two parts. Negative values, which are rounding, count as zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrechetParts {
    /// What [`frechet_distance`] gives: the sum of the parts, but for rounding.
    pub distance: f64,
    /// ‖μ₁ − μ₂‖²
    pub means: f64,
    /// tr Σ₁ + tr Σ₂ − 2 tr (Σ₁^½ Σ₂ Σ₁^½)^½, which does not depend on the means.
    pub covariances: f64,
}

/// The squared Fréchet (2-Wasserstein) distance between two Gaussians,
///
/// ```text
/// ‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁^½ Σ₂ Σ₁^½)^½
/// ```
///
/// (Dowson & Landau 1982, "The Fréchet distance between multivariate normal distributions"; proposed for generated
/// images by Heusel et al. 2017, arXiv 1706.08500). With `Σ₁ = F₁F₁ᵀ` and `Σ₂ = F₂F₂ᵀ` the last trace is the sum of the singular
/// values of `F₁ᵀF₂`, whose squares are the eigenvalues of the `Σ₁ Σ₂` in those papers. The factors are Cholesky's with pivots
/// and have as many columns as the covariance has rank, so that singular covariances (fewer images than features) cost less
/// and need no offset. A negative distance counts as zero.
///
/// The singular values are roots of eigenvalues, which lose digits where they are small: with full rank the trace is exact to
/// about `1e-9`, with fewer rows than columns to about `1e-7`.
///
/// Takes `O(d³)` time and a few `[d, d]` matrices of `f64`.
///
/// # Errors
/// When the widths differ, and when the numbers are too large or the eigenvalues do not converge.
pub fn frechet_distance(a: &Gaussian, b: &Gaussian) -> Result<f64, FidelityError> {
    Ok(frechet_parts(a, b)?.distance)
}

/// A [`frechet_distance`], and how much of it comes from the means and how much from the covariances.
///
/// # Errors
/// As [`frechet_distance`].
pub fn frechet_parts(a: &Gaussian, b: &Gaussian) -> Result<FrechetParts, FidelityError> {
    if b.width() != a.width() {
        return Err(FidelityError::WidthMismatch { expected: a.width(), found: b.width() });
    }
    parts(a, &factor(a)?, b)
}

/// The distance of a Gaussian, whose [`factor`] is known, from another of its width.
fn parts(a: &Gaussian, of_a: &Mat<f64>, b: &Gaussian) -> Result<FrechetParts, FidelityError> {
    let width = a.width();
    let means: f64 = a.mean.iter().zip(&b.mean).map(|(a, b)| (a - b).powi(2)).sum();
    let traces: f64 = (0..width).map(|i| a.covariance[i * width + i] + b.covariance[i * width + i]).sum();
    let root = sum_of_singular_values(of_a, &factor(b)?)?;
    let (distance, covariances) = (means + traces - 2.0 * root, traces - 2.0 * root);
    // Not `max` alone, which would turn NaN into 0.
    if distance.is_finite() {
        Ok(FrechetParts { distance: distance.max(0.0), means, covariances: covariances.max(0.0) })
    } else {
        Err(FidelityError::Overflow)
    }
}

/// Rows that an extrapolation needs.
pub const LEAST_EXTRAPOLATED: usize = 20;

/// The distance that infinitely many samples would have, and its standard error: the estimate from n rows is too large by
/// about `c / n` (Chong & Forsyth 2020, arXiv 1911.07023), so distances of random subsets of `points` sizes, from a tenth
/// of the rows to all, are extrapolated by least squares in `1 / n`.
///
/// # Errors
/// As [`frechet_distance`]; when there are fewer than three points, or fewer than [`LEAST_EXTRAPOLATED`] rows.
pub fn extrapolated_frechet_distance(
    reference: &Gaussian,
    sample: Features,
    points: usize,
    seed: u64,
) -> Result<[f64; 2], FidelityError> {
    sample.require(reference.width(), LEAST_EXTRAPOLATED)?;
    if points < 3 {
        return Err(FidelityError::TooFewRows { needed: 3, found: points });
    }
    let factor = factor(reference)?;
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
        y.push(parts(reference, &factor, &moments.gaussian()?)?.distance);
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

/// F `[d, rank]` of a covariance FFᵀ.
fn factor(of: &Gaussian) -> Result<Mat<f64>, FidelityError> {
    let d = of.width();
    if of.covariance.iter().all(|&v| v == 0.0) {
        return Ok(Mat::zeros(d, 0));
    }
    let mut lower = of.matrix().to_owned();
    let (mut order, mut place) = (vec![0_usize; d], vec![0_usize; d]);
    let settings = Spec::default();
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<usize, f64>(d, Par::Seq, settings));
    let stack = MemStack::new(&mut memory);
    let (found, _) = cholesky_in_place(lower.as_mut(), &mut order, &mut place, Par::Seq, stack, settings)
        .map_err(|_| FidelityError::Overflow)?;
    // The factor leaves out rounding alone; of a matrix that is no covariance it leaves out more.
    let trace: f64 = (0..d).map(|i| of.covariance[i * d + i]).sum();
    let found_trace: f64 = (0..found.rank).map(|j| (j..d).map(|i| lower[(i, j)].powi(2)).sum::<f64>()).sum();
    if (trace - found_trace).abs() > MOST_LEFT_OUT * trace {
        return Err(FidelityError::Indefinite);
    }
    // Row i of the factor is row place[i] of the lower triangle that was found.
    let value = |i: usize, j: usize| if place[i] >= j { lower[(place[i], j)] } else { 0.0 };
    Ok(Mat::from_fn(d, found.rank, value))
}

/// Σ of the singular values of AᵀB, by the eigenvalues of the smaller of its squares.
fn sum_of_singular_values(a: &Mat<f64>, b: &Mat<f64>) -> Result<f64, FidelityError> {
    let product = a.transpose() * b;
    if product.nrows() == 0 || product.ncols() == 0 {
        return Ok(0.0); // faer's decompositions want at least one row
    }
    let square = if product.nrows() <= product.ncols() {
        &product * product.transpose()
    } else {
        product.transpose() * &product
    };
    if !square.is_all_finite() {
        return Err(FidelityError::Overflow);
    }
    let values = square.self_adjoint_eigenvalues(Side::Lower).map_err(|_| FidelityError::NoConvergence)?;
    Ok(values.iter().map(|value| value.max(0.0).sqrt()).sum())
}
