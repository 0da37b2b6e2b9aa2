//! Training losses, given the draws and the network's output.

use super::gaussian::{discretized_log_likelihood, normal_kl};
use super::{Diffusion, mean_flat, per_image};
use burn::tensor::{Bool, Tensor, TensorData};
use ddpm_math::{Mix, Prediction, step};

/// From nats to bits.
const IN_BITS: f64 = 1.0 / std::f64::consts::LN_2;

/// Images on their way to the network, with all that the loss needs.
#[derive(Clone, Debug)]
pub struct Noised {
    /// Clean images `[N, C, H, W]` in [-1, 1].
    pub x_start: Tensor<4>,
    /// Perturbed noisy images y_t `[N, C, H, W]`, the network's input.
    pub x_t: Tensor<4>,
    /// What a network that predicts ε should answer `[N, C, H, W]`.
    pub eps: Tensor<4>,
    /// Indices of the process `[N]`.
    pub t: Vec<usize>,
    /// Per image, what separates the ε loss from the reference's: c of the equivalent form, else 0.
    pub constant: Vec<f64>,
}

/// The parts of the loss, one value per image `[N]`.
#[derive(Clone, Debug)]
pub struct Terms {
    /// What is minimised.
    pub loss: Tensor<1>,
    /// Mean squared error of the prediction, unless the loss is a pure bound.
    pub mse: Option<Tensor<1>>,
    /// The bound's term in bits per value, times `LossKind::vb_factor`, as it enters the loss; only where the variance is
    /// learned beside an MSE.
    pub vb: Option<Tensor<1>>,
}

/// Mean, log-variance and predicted clean image of a reverse step.
pub(super) struct Moments {
    pub(super) mean: Tensor<4>,
    pub(super) log_variance: Tensor<4>,
    pub(super) x_start: Tensor<4>,
}

impl Diffusion {
    /// Noises `x_start` at `t` by each image's mixture of the draws `eps` and `xi` (see `ddpm_math::perturb`): one rule
    /// for every form of input perturbation. `xi` may be left out when no image uses it.
    ///
    /// # Panics
    /// If `xi` is missing and an image's mixture needs it.
    pub fn noise(
        &self,
        x_start: Tensor<4>,
        t: &[usize],
        mixes: &[Mix],
        eps: Tensor<4>,
        xi: Option<Tensor<4>>,
    ) -> Noised {
        let device = x_start.device();
        let mut noise = eps.clone() * per_image(mixes.iter().map(|m| m.noise), &device);
        if mixes.iter().any(|m| m.xi != 0.0) {
            let xi = xi.expect("a second draw for the sampled perturbation");
            noise = noise + xi * per_image(mixes.iter().map(|m| m.xi), &device);
        }
        let s = &self.schedule;
        let x_t = x_start.clone() * per_image(t.iter().map(|&i| s.sqrt_alpha_bar[i]), &device)
            + noise * per_image(t.iter().map(|&i| s.sqrt_one_minus_alpha_bar[i]), &device);
        let separates = self.prediction == Prediction::Epsilon && !self.loss.is_vb();
        Noised {
            x_start,
            x_t,
            eps: eps * per_image(mixes.iter().map(|m| m.target), &device),
            t: t.to_vec(),
            constant: mixes.iter().map(|m| if separates { m.constant } else { 0.0 }).collect(),
        }
    }

    /// The loss of the network's `output` `[N, C or 2C, H, W]` on noised images.
    pub fn losses(&self, noised: &Noised, output: Tensor<4>) -> Terms {
        let vb_factor = self.loss.vb_factor(self.schedule.len());
        if self.loss.is_vb() {
            return Terms { loss: self.bound(noised, output, false).0 * vb_factor, mse: None, vb: None };
        }
        let channels = noised.x_start.dims()[1];
        let (prediction, vb) = if self.variance.is_learned() {
            let [n, _, h, w] = output.dims();
            let prediction = output.clone().slice([0..n, 0..channels, 0..h, 0..w]);
            let variance = output.slice([0..n, channels..2 * channels, 0..h, 0..w]);
            // The bound trains the variance and must not touch the prediction.
            let frozen = Tensor::cat(vec![prediction.clone().detach(), variance], 1);
            (prediction, Some(self.bound(noised, frozen, false).0 * vb_factor))
        } else {
            (output, None)
        };
        let target = match self.prediction {
            Prediction::Epsilon => noised.eps.clone(),
            Prediction::XStart => noised.x_start.clone(),
            Prediction::PreviousX => self.posterior_mean(noised.x_start.clone(), noised.x_t.clone(), &noised.t),
        };
        let mse = mean_flat((target - prediction).powi_scalar(2));
        let loss = match &vb {
            Some(vb) => mse.clone() + vb.clone(),
            None => mse.clone(),
        };
        let loss = match self.loss.scale(noised.x_start.dims()[1..].iter().product()) {
            1.0 => loss,
            scale => loss * scale,
        };
        Terms { loss, mse: Some(mse), vb }
    }

    /// A term of the variational bound per image, in bits per value, and the predicted clean images: the decoder's
    /// likelihood at t = 0, else the divergence of the reverse step from the posterior. Both look at the perturbed x_t, as
    /// the reference does.
    pub(crate) fn bound(&self, noised: &Noised, output: Tensor<4>, clip: bool) -> (Tensor<1>, Tensor<4>) {
        let device = output.device();
        let Noised { x_start, x_t, t, .. } = noised;
        let true_mean = self.posterior_mean(x_start.clone(), x_t.clone(), t);
        let true_logvar = per_image(t.iter().map(|&i| self.schedule.posterior_log_variance_clipped[i]), &device)
            .expand(x_start.shape());
        let p = self.moments(x_t.clone(), t, output, clip);
        let kl = normal_kl(true_mean, true_logvar, p.mean.clone(), p.log_variance.clone());
        let kl = mean_flat(kl) * IN_BITS;
        if !t.contains(&0) {
            return (kl, p.x_start);
        }
        let decoder = discretized_log_likelihood(x_start.clone(), p.mean, p.log_variance * 0.5);
        let decoder = mean_flat(decoder) * -IN_BITS;
        let first: Vec<bool> = t.iter().map(|&i| i == 0).collect();
        let first = Tensor::<1, Bool>::from_data(TensorData::new(first, [t.len()]), &device);
        (kl.mask_where(first, decoder), p.x_start)
    }

    /// The term of the bound that no network changes, per image in bits per value: the divergence of q(x_T | x_0) from the
    /// standard normal.
    pub(crate) fn prior_bound(&self, x_start: Tensor<4>) -> Tensor<1> {
        let (s, device) = (&self.schedule, x_start.device());
        let last = s.len() - 1;
        let (shape, zero) = (x_start.shape(), x_start.zeros_like());
        let log_variance = per_image([s.log_one_minus_alpha_bar[last]], &device).expand(shape);
        mean_flat(normal_kl(x_start * s.sqrt_alpha_bar[last], log_variance, zero.clone(), zero)) * IN_BITS
    }

    /// The mean square error per image of the clean images predicted, and of the noise they imply.
    pub(crate) fn square_errors(&self, noised: &Noised, x_start: Tensor<4>) -> [Tensor<1>; 2] {
        let (s, device) = (&self.schedule, x_start.device());
        let each = |table: &[f64]| per_image(noised.t.iter().map(|&i| table[i]), &device);
        let eps =
            (noised.x_t.clone() * each(&s.sqrt_recip_alpha_bar) - x_start.clone()) / each(&s.sqrt_recipm1_alpha_bar);
        [x_start - noised.x_start.clone(), eps - noised.eps.clone()].map(|error| mean_flat(error.powi_scalar(2)))
    }

    /// Mean of q(x_{t−1} | x_t, x_0).
    pub(super) fn posterior_mean(&self, x_start: Tensor<4>, x_t: Tensor<4>, t: &[usize]) -> Tensor<4> {
        let (device, s) = (x_t.device(), &self.schedule);
        x_start * per_image(t.iter().map(|&i| s.posterior_mean_coef1[i]), &device)
            + x_t * per_image(t.iter().map(|&i| s.posterior_mean_coef2[i]), &device)
    }

    /// The reverse step p(x_{t−1} | x_t) that the network's output describes.
    pub(super) fn moments(&self, x_t: Tensor<4>, t: &[usize], output: Tensor<4>, clip: bool) -> Moments {
        let (device, s) = (x_t.device(), &self.schedule);
        let [n, channels, h, w] = x_t.dims();
        let each = |table: &dyn Fn(usize) -> f64| per_image(t.iter().map(|&i| table(i)), &device);
        let (prediction, log_variance) = if self.variance.is_learned() {
            let prediction = output.clone().slice([0..n, 0..channels, 0..h, 0..w]);
            let values = output.slice([0..n, channels..2 * channels, 0..h, 0..w]);
            let log_variance = if self.variance == ddpm_math::Variance::LearnedRange {
                let greatest = (values + 1.0) * 0.5;
                greatest.clone() * each(&|i| step::learned_range(s, i).1)
                    + (greatest.neg() + 1.0) * each(&|i| step::learned_range(s, i).0)
            } else {
                values
            };
            (prediction, log_variance)
        } else {
            let table = s.fixed_log_variance(self.variance == ddpm_math::Variance::FixedLarge);
            (output, each(&|i| table[i]).expand([n, channels, h, w]))
        };
        let x_start = match self.prediction {
            Prediction::XStart => prediction.clone(),
            Prediction::Epsilon => {
                x_t.clone() * each(&|i| step::x_start_from_eps(s, i).0)
                    - prediction.clone() * each(&|i| step::x_start_from_eps(s, i).1)
            }
            Prediction::PreviousX => {
                prediction.clone() * each(&|i| step::x_start_from_previous(s, i).0)
                    - x_t.clone() * each(&|i| step::x_start_from_previous(s, i).1)
            }
        };
        let x_start = if clip { x_start.clamp(-1.0, 1.0) } else { x_start };
        let mean = match self.prediction {
            Prediction::PreviousX => prediction,
            _ => self.posterior_mean(x_start.clone(), x_t, t),
        };
        Moments { mean, log_variance, x_start }
    }
}
