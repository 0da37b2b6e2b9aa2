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
