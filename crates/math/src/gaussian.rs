//! Gaussian terms of the variational bound, in nats (divide by ln 2 for bits).

use std::f64::consts::FRAC_2_PI;

/// Pixel values are 256 levels 2/255 apart on [−1, 1]; a level owns this much to either side.
pub(crate) const HALF_LEVEL: f64 = 1.0 / 255.0;
/// Probabilities are clamped to this before their logarithm is taken.
pub(crate) const MIN_PROBABILITY: f64 = 1e-12;
/// Beyond ±this, a value is the first or the last level.
pub(crate) const EDGE: f64 = 0.999;

/// KL(N(mean1, e^logvar1) ‖ N(mean2, e^logvar2)) in nats:
/// ½ (−1 + logvar2 − logvar1 + e^{logvar1 − logvar2} + (mean1 − mean2)² e^{−logvar2}).
///
/// The first terms are computed as e^d − 1 − d, so that equal Gaussians are at exactly 0 and close ones keep their digits.
pub fn normal_kl(mean1: f64, logvar1: f64, mean2: f64, logvar2: f64) -> f64 {
    let distance = mean1 - mean2;
    let difference = logvar1 - logvar2;
    0.5 * (libm::expm1(difference) - difference + distance * distance * libm::exp(-logvar2))
}

/// Φ(x), the standard normal's distribution function, in the approximation ½ (1 + tanh(√(2/π) (x + 0.044715 x³))).
///
/// It is off by up to 3·10⁻⁴, and kept because published likelihoods were computed with it.
pub fn approx_standard_normal_cdf(x: f64) -> f64 {
    0.5 * (1.0 + libm::tanh(FRAC_2_PI.sqrt() * (x + 0.044715 * (x * x * x))))
}

/// log P(x) in nats, where x is one of the 256 pixel levels on [−1, 1] and P integrates N(mean, e^{2·log_scale}) over
/// the level's interval x ± 1/255 (Ho et al. 2020, eq. 13).
///
/// The first level (x < −0.999) reaches down to −∞ and the last (x > 0.999) up to ∞. Probabilities below 10⁻¹² count
/// as 10⁻¹².
pub fn discretized_gaussian_log_likelihood(x: f64, mean: f64, log_scale: f64) -> f64 {
    let inverse_scale = libm::exp(-log_scale);
    let cdf = |boundary: f64| approx_standard_normal_cdf(inverse_scale * boundary);
    let centered = x - mean;
    let probability = if x < -EDGE {
        cdf(centered + HALF_LEVEL)
    } else if x > EDGE {
        1.0 - cdf(centered - HALF_LEVEL)
    } else {
        cdf(centered + HALF_LEVEL) - cdf(centered - HALF_LEVEL)
    };
    libm::log(probability.max(MIN_PROBABILITY))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn level(index: usize) -> f64 {
        index as f64 / 127.5 - 1.0
    }

    #[test]
    fn the_divergence_has_its_textbook_values() {
        assert_eq!(normal_kl(0.0, 0.0, 1.0, 0.0), 0.5);
        // Standard deviations 1 and 2: ln 2 + 1/8 − 1/2.
        let expected = 2.0_f64.ln() + 0.125 - 0.5;
        assert!((normal_kl(0.3, 0.0, 0.3, 4.0_f64.ln()) - expected).abs() < 1e-15);
        // The distance counts in units of the second one's variance.
        assert!((normal_kl(1.3, 0.0, 0.3, 4.0_f64.ln()) - expected - 0.125).abs() < 1e-15);
        assert!((normal_kl(0.0, 0.0, 0.0, 1.0) - normal_kl(0.0, 1.0, 0.0, 0.0)).abs() > 0.1, "it is not symmetric");
    }

    #[test]
    fn the_approximate_distribution_function_is_close_to_the_true_one() {
        for i in -600..=600 {
            let x = f64::from(i) / 100.0;
            let exact = 0.5 * libm::erfc(-x / 2.0_f64.sqrt());
            assert!((approx_standard_normal_cdf(x) - exact).abs() < 3.5e-4, "x = {x}");
        }
    }

    #[test]
    fn edges_are_open_and_tails_are_clamped() {
        // A mean far outside puts all its mass on the edge level.
        assert_eq!(discretized_gaussian_log_likelihood(-1.0, -9.0, 0.0), 0.0);
        assert_eq!(discretized_gaussian_log_likelihood(1.0, 9.0, 0.0), 0.0);
        for (x, mean) in [(1.0, -9.0), (-1.0, 9.0), (0.0, 9.0)] {
            assert_eq!(discretized_gaussian_log_likelihood(x, mean, -3.0), 1e-12_f64.ln());
        }
        // Between ±0.999 an interval is closed on both sides, however close to the edge.
        let narrow = |x: f64| discretized_gaussian_log_likelihood(x, 5.0_f64.copysign(x), -2.0);
        assert!(narrow(0.998) < -20.0 && narrow(-0.998) < -20.0);
    }

    proptest! {
        #[test]
        fn the_divergence_is_never_negative(m1 in -3.0_f64..3.0, v1 in -6.0_f64..3.0, m2 in -3.0..3.0, v2 in -6.0..3.0) {
            let divergence = normal_kl(m1, v1, m2, v2);
            prop_assert!(divergence >= 0.0);
            if (m1 - m2).abs() > 1e-3 || (v1 - v2).abs() > 1e-3 {
                prop_assert!(divergence > 0.0);
            }
            prop_assert_eq!(normal_kl(m1, v1, m1, v1), 0.0);
        }

        #[test]
        fn the_probabilities_of_all_levels_sum_to_one(mean in -1.5..1.5, log_scale in -5.0..1.0) {
            let total: f64 = (0..256).map(|i| discretized_gaussian_log_likelihood(level(i), mean, log_scale).exp()).sum();
            prop_assert!((total - 1.0).abs() < 1e-9, "{}", total);
        }
    }
}
