//! Divergence and likelihood of Gaussians on tensors; the scalar forms are in `ddpm_math::gaussian`.

use burn::tensor::Tensor;

/// KL(N(mean1, e^logvar1) ‖ N(mean2, e^logvar2)) in nats, value by value.
pub(super) fn normal_kl(mean1: Tensor<4>, logvar1: Tensor<4>, mean2: Tensor<4>, logvar2: Tensor<4>) -> Tensor<4> {
    let squared = (mean1 - mean2).powi_scalar(2) * logvar2.clone().neg().exp();
    (logvar2.clone() - logvar1.clone() - 1.0 + (logvar1 - logvar2).exp() + squared) * 0.5
}

/// The tanh approximation of the standard normal's distribution function that the reference uses.
fn approx_standard_normal_cdf(x: Tensor<4>) -> Tensor<4> {
    let cubic = x.clone().powi_scalar(3) * 0.044715;
    (((x + cubic) * (2.0 / std::f64::consts::PI).sqrt()).tanh() + 1.0) * 0.5
}

/// Log-probability in nats of 8-bit values `x` in [-1, 1] under a Gaussian integrated over each value's bin.
pub(super) fn discretized_log_likelihood(x: Tensor<4>, mean: Tensor<4>, log_scale: Tensor<4>) -> Tensor<4> {
    const LEAST: f64 = 1e-12;
    let centred = x.clone() - mean;
    let inverse = log_scale.neg().exp();
    let above = approx_standard_normal_cdf(inverse.clone() * (centred.clone() + 1.0 / 255.0));
    let below = approx_standard_normal_cdf(inverse * (centred - 1.0 / 255.0));
    let inside = (above.clone() - below.clone()).clamp_min(LEAST).log();
    let at_black = above.clamp_min(LEAST).log();
    let at_white = (below.neg() + 1.0).clamp_min(LEAST).log();
    let (black, white) = (x.clone().lower_scalar(-0.999), x.greater_scalar(0.999));
    inside.mask_where(white, at_white).mask_where(black, at_black)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};
    use ddpm_math::gaussian;

    fn row(values: &[f32]) -> Tensor<4> {
        Tensor::from_data(TensorData::new(values.to_vec(), [1, 1, 1, values.len()]), &Device::flex())
    }

    fn assert_close(actual: Tensor<4>, expected: impl Iterator<Item = f64>, tolerance: f64) {
        for (a, e) in actual.into_data().try_to_vec::<f32>().unwrap().into_iter().zip(expected) {
            assert!((f64::from(a) - e).abs() <= tolerance * (1.0 + e.abs()), "{a} is not {e}");
        }
    }

    #[test]
    fn the_divergence_is_the_scalar_one() {
        let (m1, v1) = ([0.0, 0.5, -1.0, 0.3], [0.0, -2.0, 1.0, -5.0]);
        let (m2, v2) = ([0.0, 0.4, 1.0, 0.2], [0.0, -2.5, 0.5, -4.0]);
        let expected = (0..4).map(|i| {
            let [m1, v1, m2, v2] = [m1[i], v1[i], m2[i], v2[i]].map(|v: f32| f64::from(v));
            gaussian::normal_kl(m1, v1, m2, v2)
        });
        assert_close(normal_kl(row(&m1), row(&v1), row(&m2), row(&v2)), expected, 1e-5);
    }

    #[test]
    fn the_likelihood_is_the_scalar_one_at_black_white_and_between() {
        let x = [-1.0, -0.2, 0.003_921_569, 0.6, 1.0];
        let (mean, log_scale) = ([-0.9, -0.1, 0.0, -1.0, 0.8], [-1.0, -3.0, -4.0, -4.0, 0.5]);
        let expected = (0..5).map(|i| {
            let [x, mean, scale] = [x[i], mean[i], log_scale[i]].map(|v: f32| f64::from(v));
            gaussian::discretized_gaussian_log_likelihood(x, mean, scale)
        });
        assert_close(discretized_log_likelihood(row(&x), row(&mean), row(&log_scale)), expected, 2e-3);
    }
}
