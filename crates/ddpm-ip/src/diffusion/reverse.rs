//! One step of a sampling chain.

use super::{Diffusion, per_image};
use crate::config::SamplerKind;
use crate::model::host_values;
use burn::tensor::Tensor;
use ddpm_math::step::ddim_step;

/// The rule of the reverse steps.
#[derive(Clone, Copy, Debug)]
pub struct Reverse {
    /// DDPM or DDIM.
    pub sampler: SamplerKind,
    /// DDIM's η.
    pub eta: f64,
    /// Whether predicted images are clipped to [-1, 1].
    pub clip_denoised: bool,
}

impl Reverse {
    /// Whether a step from index `i` adds noise.
    pub fn draws(&self, i: usize) -> bool {
        i > 0 && (self.sampler == SamplerKind::Ddpm || self.eta > 0.0)
    }

    /// From x_t `[N, C, H, W]` at index `i` and the network's output `[N, C or 2C, H, W]` to (x_{t−1}, predicted x_0), as
    /// DDPM (Ho et al. 2020, algorithm 2) or DDIM (Song et al. 2020, eq. 12) step. `noise` `[N, C, H, W]` is a standard
    /// normal draw, needed where [`draws`](Self::draws) says so. `guidance` `[N, C, H, W]` is the gradient of a classifier's
    /// log-probability: it moves DDPM's mean by variance times itself, and is added to the score of DDIM (Dhariwal &
    /// Nichol, arXiv 2105.05233, algorithms 1 and 2), where the prediction of x_0 is not clipped again.
    pub fn step(
        &self,
        diffusion: &Diffusion,
        i: usize,
        x: Tensor<4>,
        output: Tensor<4>,
        guidance: Option<Tensor<4>>,
        noise: Option<Tensor<4>>,
    ) -> (Tensor<4>, Tensor<4>) {
        let t = vec![i; x.dims()[0]];
        let p = diffusion.moments(x.clone(), &t, output, self.clip_denoised);
        let noise = noise.filter(|_| self.draws(i));
        let s = &diffusion.schedule;
        let (mean, sigma, x_start) = match self.sampler {
            SamplerKind::Ddpm => {
                let mean = match guidance {
                    Some(gradient) => p.mean + p.log_variance.clone().exp() * gradient,
                    None => p.mean,
                };
                (mean, (p.log_variance * 0.5).exp(), p.x_start)
            }
            SamplerKind::Ddim => {
                let each = |v: f64| per_image([v], &x.device());
                let (a, b) = (each(s.sqrt_recip_alpha_bar[i]), each(s.sqrt_recipm1_alpha_bar[i]));
                // ε again from the (perhaps clipped) prediction: arXiv 2010.02502, equation 12.
                let mut eps = (x.clone() * a.clone() - p.x_start.clone()) / b.clone();
                let mut x_start = p.x_start;
                if let Some(gradient) = guidance {
                    eps = eps - gradient * each(s.sqrt_one_minus_alpha_bar[i]);
                    x_start = x.clone() * a - eps.clone() * b;
                }
                let step = ddim_step(s, i, self.eta);
                let mean = x_start.clone() * each(step.x_start) + eps * each(step.eps);
                (mean, each(step.noise).expand(x.shape()), x_start)
            }
        };
        let next = match noise {
            Some(noise) => mean + sigma * noise,
            None => mean,
        };
        (next, x_start)
    }
}

/// Images in [-1, 1] `[N, C, H, W]` as bytes `[N, H, W, C]`: (x + 1)·127.5, clamped and cut off as the reference does.
pub fn to_u8(x: Tensor<4>) -> Vec<u8> {
    host_values(x.permute([0, 2, 3, 1])).into_iter().map(|v| ((v + 1.0) * 127.5).clamp(0.0, 255.0) as u8).collect()
}
