//! How far a statistic of a sample may be off.
//!
//! A statistic that is no mean has its standard error from the jackknife: items are cut into groups, and the statistic is
//! computed once without each of them. Where it follows from sums, those without a group are all sums minus the group's.
//!
//! ```
//! use ddpm_math::{jackknife_error, jackknife_groups};
//!
//! let values = [1.0_f64, 4.0, 2.0, 8.0, 5.0, 7.0];
//! let groups = jackknife_groups(values.len(), 3);
//! let ratios: Vec<f64> = groups
//!     .map(|group| {
//!         let left = values[..group.start].iter().chain(&values[group.end..]);
//!         left.clone().map(|value| value * value).sum::<f64>() / left.sum::<f64>()
//!     })
//!     .collect();
//! assert!(jackknife_error(&ratios).is_some_and(|error| error > 0.5 && error < 1.0));
//! ```

use std::ops::Range;

/// Cuts 0..`n` into at most `most` consecutive groups, whose sizes differ by at most one. None is empty.
pub fn jackknife_groups(n: usize, most: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    let groups = n.min(most);
    // The first ones take what does not divide.
    let start = move |group: usize| group * (n / groups) + group.min(n % groups);
    (0..groups).map(move |group| start(group)..start(group + 1))
}

/// The standard error of a statistic of which `leave_one_out` has the values θ_g without each of G groups of equal size:
/// √((G − 1)/G · Σ (θ_g − θ̄)²), where θ̄ is their mean (Efron, *The jackknife, the bootstrap and other resampling plans*,
/// 1982, ch. 3).
///
/// In the statistic's unit. `None` for fewer than two groups. It fits smooth statistics, as functions of means are, and not
/// medians.
pub fn jackknife_error(leave_one_out: &[f64]) -> Option<f64> {
    let (_, squares) = mean_and_squares(leave_one_out)?;
    let groups = leave_one_out.len() as f64;
    Some(((groups - 1.0) / groups * squares).sqrt())
}

/// Mean and standard error of the mean, √(Σ (v − v̄)² / (N (N − 1))), in the values' unit.
///
/// `None` for fewer than two values.
pub fn mean_and_error(values: &[f64]) -> Option<(f64, f64)> {
    let (mean, squares) = mean_and_squares(values)?;
    let n = values.len() as f64;
    Some((mean, (squares / (n * (n - 1.0))).sqrt()))
}

/// Mean of at least two values, and the sum of their squared distances from it.
fn mean_and_squares(values: &[f64]) -> Option<(f64, f64)> {
    if values.len() < 2 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    Some((mean, values.iter().map(|value| (value - mean) * (value - mean)).sum()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::{Domain, Stream};

    fn normals(n: usize) -> Vec<f64> {
        let mut values = vec![0.0_f32; n];
        Stream::new(11, Domain::Noise, 0, 0).fill_normal(&mut values);
        values.into_iter().map(f64::from).collect()
    }

    #[test]
    fn groups_are_consecutive_and_alike() {
        let cut = |n, most| jackknife_groups(n, most).collect::<Vec<_>>();
        assert_eq!(cut(10, 4), [0..3, 3..6, 6..8, 8..10]);
        assert_eq!(cut(6, 3), [0..2, 2..4, 4..6]);
        assert_eq!(cut(2, 5), [0..1, 1..2]);
        assert!(cut(0, 5).is_empty() && cut(5, 0).is_empty());
    }

    #[test]
    fn the_error_of_a_mean_is_the_classical_one() {
        let (mean, error) = mean_and_error(&[2.0, 4.0, 4.0, 6.0]).unwrap();
        assert_eq!(mean, 4.0);
        // Variance 8/3 over four values.
        assert!((error - (2.0_f64 / 3.0).sqrt()).abs() < 1e-15);

        let values = normals(50);
        let sum: f64 = values.iter().sum();
        let without: Vec<f64> = values.iter().map(|value| (sum - value) / 49.0).collect();
        let (_, classical) = mean_and_error(&values).unwrap();
        assert!((jackknife_error(&without).unwrap() / classical - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_error_of_a_standard_deviation_is_near_its_theory() {
        let values = normals(20_000);
        let sums = |values: &[f64]| [values.len() as f64, values.iter().sum(), values.iter().map(|v| v * v).sum()];
        let all = sums(&values);
        let without: Vec<f64> = jackknife_groups(values.len(), 400)
            .map(|group| {
                let group = sums(&values[group]);
                let [n, sum, squares] = [0, 1, 2].map(|i| all[i] - group[i]);
                (squares / n - (sum / n).powi(2)).sqrt()
            })
            .collect();
        let theory = 1.0 / (2.0 * values.len() as f64).sqrt();
        let error = jackknife_error(&without).unwrap();
        assert!((error / theory - 1.0).abs() < 0.15, "{error} and {theory}");
    }

    #[test]
    fn one_value_has_no_error() {
        assert_eq!((jackknife_error(&[]), jackknife_error(&[1.0])), (None, None));
        assert_eq!((mean_and_error(&[]), mean_and_error(&[1.0])), (None, None));
        assert_eq!(mean_and_error(&[1.5, 1.5]), Some((1.5, 0.0)));
    }
}
