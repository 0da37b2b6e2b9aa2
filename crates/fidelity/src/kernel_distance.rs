//! The kernel distance, called KID when the features are those of Inception.

use crate::inception_score::mean_and_deviation;
use crate::{Features, FidelityError};
use ddpm_math::{Domain, philox::permutation};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;

/// How the kernel distance is estimated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subsets {
    /// Number of subsets.
    pub count: usize,
    /// Rows of each, of both sides; fewer where a side has fewer.
    pub size: usize,
    /// Seed of their choice.
    pub seed: u64,
}

impl Default for Subsets {
    /// 100 subsets of 1000 rows, as torch-fidelity has them.
    fn default() -> Self {
        Self { count: 100, size: 1000, seed: 0 }
    }
}

/// The squared maximum mean discrepancy under the cubic kernel `(x·y / d + 1)³` (Bińkowski et al. 2018, arXiv
/// 1801.01401), as the mean of unbiased estimates on random subsets, and the standard deviation of those. Being unbiased,
/// an estimate may be negative.
///
/// Which rows are in a subset depends on the seed and the number of rows alone; the result does not depend on the number
/// of threads.
///
/// # Errors
/// When the widths differ, or a side or the subsets have fewer than two rows.
pub fn kernel_distance(reference: Features, sample: Features, subsets: Subsets) -> Result<[f64; 2], FidelityError> {
    reference.require(reference.width(), 2)?;
    sample.require(reference.width(), 2)?;
    let size = subsets.size.min(reference.rows()).min(sample.rows());
    if size < 2 || subsets.count == 0 {
        return Err(FidelityError::TooFewRows { needed: 2, found: size.min(subsets.count) });
    }
    let estimate = |i: usize| {
        let chosen = |features: Features, side: u64| {
            let order = permutation(subsets.seed, Domain::Subset, 2 * i as u64 + side, features.rows());
            let width = features.width();
            Mat::from_fn(width, size, |c, r| f64::from(features.row(order[r] as usize)[c]))
        };
        discrepancy(chosen(reference, 0).as_ref(), chosen(sample, 1).as_ref())
    };
    let estimates: Vec<f64> = (0..subsets.count).into_par_iter().map(estimate).collect();
    let [mean, deviation] = mean_and_deviation(&estimates);
    if mean.is_finite() { Ok([mean, deviation]) } else { Err(FidelityError::Overflow) }
}

/// The unbiased estimate for rows that are the columns of `[d, n]`.
fn discrepancy(a: MatRef<f64>, b: MatRef<f64>) -> f64 {
    let (d, n) = (a.nrows() as f64, a.ncols());
    let sum = |x: MatRef<f64>, y: MatRef<f64>, diagonal: bool| -> f64 {
        let mut products = Mat::<f64>::zeros(n, n);
        matmul(products.as_mut(), Accum::Replace, x.transpose(), y, 1.0 / d, Par::Seq);
        let kernel = |i: usize, j: usize| (products[(i, j)] + 1.0).powi(3);
        (0..n)
            .flat_map(|j| (0..n).map(move |i| (i, j)))
            .filter(|(i, j)| diagonal || i != j)
            .map(|(i, j)| kernel(i, j))
            .sum()
    };
    let pairs = (n * (n - 1)) as f64;
    (sum(a, a, false) + sum(b, b, false)) / pairs - 2.0 * sum(a, b, true) / (n * n) as f64
}
