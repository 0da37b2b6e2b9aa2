//! The Fréchet distance between two Gaussians, called FID when the features are those of Inception.

use faer::{Mat, MatRef, Side};

use crate::{FidelityError, Moments};

/// The squared Fréchet (2-Wasserstein) distance between Gaussians with the given moments,
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
/// When the widths differ, when either side has seen fewer than two rows, and when the numbers are too large or the
/// eigenvalues do not converge.
pub fn frechet_distance(a: &Moments, b: &Moments) -> Result<f64, FidelityError> {
    let width = a.width();
    if b.width() != width {
        return Err(FidelityError::WidthMismatch { expected: width, found: b.width() });
    }
    let (covariance_a, covariance_b) = (a.covariance()?, b.covariance()?);
    let covariance_a = MatRef::from_column_major_slice(&covariance_a, width, width);
    let covariance_b = MatRef::from_column_major_slice(&covariance_b, width, width);

    let between_means: f64 = a.mean()?.iter().zip(b.mean()?).map(|(a, b)| (a - b).powi(2)).sum();
    let traces: f64 = (0..width).map(|i| covariance_a[(i, i)] + covariance_b[(i, i)]).sum();
    let distance = between_means + traces - 2.0 * trace_of_root(covariance_a, covariance_b)?;
    // Not `max` alone, which would turn NaN into 0.
    if distance.is_finite() { Ok(distance.max(0.0)) } else { Err(FidelityError::Overflow) }
}

/// `tr (A^½ B A^½)^½` of symmetric positive semidefinite matrices.
fn trace_of_root(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Result<f64, FidelityError> {
    if a.nrows() == 0 {
        return Ok(0.0); // faer's decompositions want at least one row
    }
    let eigen = a.self_adjoint_eigen(Side::Lower).map_err(|_| FidelityError::NoConvergence)?;
    let (vectors, values) = (eigen.U(), eigen.S());
    // With A = Q Λ Qᵀ, the matrix (Q Λ^½)ᵀ B (Q Λ^½) has the eigenvalues of A^½ B A^½ for one product less.
    let root = Mat::from_fn(a.nrows(), a.ncols(), |i, j| vectors[(i, j)] * values[j].max(0.0).sqrt());
    let inner = root.transpose() * (b * &root);
    if !inner.is_all_finite() {
        return Err(FidelityError::Overflow);
    }
    let values = inner.self_adjoint_eigenvalues(Side::Lower).map_err(|_| FidelityError::NoConvergence)?;
    Ok(values.iter().map(|value| value.max(0.0).sqrt()).sum())
}
