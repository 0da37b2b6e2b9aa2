//! Whether numbers are draws of a normal distribution: the test of Shapiro and Wilk.
//!
//! W is the squared correlation of the sorted values with weights near the values expected of a normal sample; it is 1
//! where they fit exactly. Weights, and the distribution of W under normality, are the approximations of Royston,
//! *Remark AS R94: a remark on algorithm AS 181: the W-test for normality* (Applied Statistics 44, 1995), made for 3 to
//! 5000 values. Polynomials are written with the constant first.

use std::f64::consts::{FRAC_1_SQRT_2, PI, TAU};

/// The most values the approximations are made for.
const MOST: usize = 5000;
/// What is added to the greatest expected value, of all scaled to length 1, for the greatest weight; in 1/√n.
const FIRST_WEIGHT: [f64; 6] = [0.0, 0.221157, -0.147981, -2.07119, 4.434685, -2.706056];
/// The same for the second greatest one, if there are more than five values.
const SECOND_WEIGHT: [f64; 6] = [0.0, 0.042981, -0.293762, -1.752461, 5.682633, -3.582633];
/// Up to this many values −ln(γ − ln(1 − W)) is taken as normal, beyond it ln(1 − W).
const SMALL: usize = 11;
/// γ, and mean and log standard deviation of what is taken as normal, in n.
const GAMMA: [f64; 2] = [-2.273, 0.459];
const SMALL_MEAN: [f64; 4] = [0.544, -0.39978, 0.025054, -6.714e-4];
const SMALL_LOG_SD: [f64; 4] = [1.3822, -0.77857, 0.062767, -0.0020322];
/// Mean and log standard deviation for more than [`SMALL`] values, in ln n.
const MEAN: [f64; 4] = [-1.5861, -0.31082, -0.083751, 0.0038915];
const LOG_SD: [f64; 3] = [-0.4803, -0.082676, 0.0030302];

/// Outcome of the test of Shapiro and Wilk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShapiroWilk {
    /// The statistic W, at most 1; the less, the further from normal.
    pub w: f64,
    /// The probability of so small a W if the values are normal.
    pub p: f64,
}

/// The test of Shapiro and Wilk for samples of one size, whose weights are computed once.
#[derive(Clone, Debug)]
pub struct Normality {
    n: usize,
    /// Weights of the upper half, the greatest first; those of the lower half are their negatives. The squares of all n
    /// sum to 1.
    weights: Vec<f64>,
}

impl Normality {
    /// The test for samples of `n` values; `None` unless 3 ≤ `n` ≤ 5000.
    pub fn new(n: usize) -> Option<Self> {
        if !(3..=MOST).contains(&n) {
            return None;
        }
        if n == 3 {
            return Some(Self { n, weights: vec![FRAC_1_SQRT_2] });
        }
        // The expected greatest values of a normal sample (Blom), with the greatest first.
        let expected: Vec<f64> = (0..n / 2).map(|i| -lower_quantile((i as f64 + 0.625) / (n as f64 + 0.25))).collect();
        let squares = |values: &[f64]| 2.0 * values.iter().map(|value| value * value).sum::<f64>();
        let length = squares(&expected).sqrt();
        let u = 1.0 / (n as f64).sqrt();
        let mut weights = vec![expected[0] / length + polynomial(&FIRST_WEIGHT, u)];
        if n > 5 {
            weights.push(expected[1] / length + polynomial(&SECOND_WEIGHT, u));
        }
        // The others keep their proportions.
        let rest = &expected[weights.len()..];
        let scale = ((1.0 - squares(&weights)) / squares(rest)).sqrt();
        weights.extend(rest.iter().map(|value| scale * value));
        Some(Self { n, weights })
    }

    /// Tests a sample, which is left sorted. `None` if all values are equal, one is not finite, or they are more than
    /// f64's range apart.
    ///
    /// # Panics
    /// If there are not as many values as [`new`](Self::new) was told.
    pub fn test(&self, values: &mut [f64]) -> Option<ShapiroWilk> {
        assert_eq!(values.len(), self.n, "the weights are for samples of another size");
        // Infinities and NaN come first or last in this order.
        values.sort_unstable_by(f64::total_cmp);
        let n = self.n as f64;
        let (least, range) = (values[0], values[self.n - 1] - values[0]);
        if !(range > 0.0 && range.is_finite()) {
            return None;
        }
        // Between 0 and 1, squares keep their digits.
        let scaled = |value: &f64| (value - least) / range;
        let mean = values.iter().map(scaled).sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (scaled(value) - mean) * (scaled(value) - mean)).sum();
        let pairs = values.iter().zip(values.iter().rev()).zip(&self.weights);
        let weighted: f64 = pairs.map(|((low, high), weight)| weight * (scaled(high) - scaled(low))).sum();
        // 1 − W by factors: W is often close to 1.
        let length = squares.sqrt();
        let off = ((length - weighted) * (length + weighted) / squares).max(0.0);
        let w = 1.0 - off;
        Some(ShapiroWilk { w, p: self.probability(w, off) })
    }

    /// The probability of a statistic below `w`, where `off` is 1 − `w`, under normality.
    fn probability(&self, w: f64, off: f64) -> f64 {
        let n = self.n as f64;
        if self.n == 3 {
            // Exact (Shapiro & Wilk 1965); W is at least 3/4.
            return 1.0 - 6.0 / PI * libm::acos(w.sqrt());
        }
        let y = libm::log(off);
        let (y, mean, log_sd) = if self.n <= SMALL {
            // y stays below γ, which is positive but for n = 4, where W is at least 0.62.
            let y = -libm::log(polynomial(&GAMMA, n) - y);
            (y, polynomial(&SMALL_MEAN, n), polynomial(&SMALL_LOG_SD, n))
        } else {
            let log_n = libm::log(n);
            (y, polynomial(&MEAN, log_n), polynomial(&LOG_SD, log_n))
        };
        upper_tail((y - mean) / libm::exp(log_sd))
    }
}

/// c_0 + c_1 x + c_2 x² + …
fn polynomial(coefficients: &[f64], x: f64) -> f64 {
    coefficients.iter().rev().fold(0.0, |sum, coefficient| sum * x + coefficient)
}

/// The probability of a standard normal number above `x`.
fn upper_tail(x: f64) -> f64 {
    0.5 * libm::erfc(x * FRAC_1_SQRT_2)
}

/// The number that a standard normal one is below with probability `p`, 0 < `p` ≤ ½.
///
/// Newton's method. The distribution function is convex below 0, so from there the steps go down towards the root
/// and, but for rounding, never past it.
fn lower_quantile(p: f64) -> f64 {
    let mut x = 0.0;
    loop {
        let step = (upper_tail(-x) - p) * TAU.sqrt() * libm::exp(0.5 * x * x);
        x -= step;
        // Each step's error is about the square of the one before.
        if step.abs() < 1e-8 {
            return x;
        }
    }
}

#[cfg(test)]
#[path = "normality_tests.rs"]
mod tests;
