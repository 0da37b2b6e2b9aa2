//! Training losses, given the draws and the network's output.

use super::Diffusion;
use ddpm_math::{BoundTerms, ImageBound, ImageLoss, Mix, Prediction, Terms};
use rayon::prelude::*;
use std::ops::Range;

/// Images on their way to the network, with all that the loss needs.
#[derive(Clone, Debug)]
pub struct Noised {
    /// Clean images `[N, C, H, W]` in [-1, 1].
    pub x_start: Vec<f32>,
    /// Perturbed noisy images y_t `[N, C, H, W]`, the network's input.
    pub x_t: Vec<f32>,
    /// What a network that predicts ε should answer `[N, C, H, W]`.
    pub eps: Vec<f32>,
    /// Indices of the process `[N]`.
    pub t: Vec<usize>,
    /// Per image, what separates the ε loss from the reference's: c of the equivalent form, else 0.
    pub constant: Vec<f64>,
}

impl Noised {
    /// Values of an image.
    fn per_image(&self) -> usize {
        self.x_start.len() / self.t.len()
    }

    /// Clean image, noisy image and noise of image `i`.
    fn image(&self, i: usize) -> [&[f32]; 3] {
        let place = i * self.per_image()..(i + 1) * self.per_image();
        [&self.x_start, &self.x_t, &self.eps].map(|values| &values[place.clone()])
    }
}

impl Diffusion {
    /// Noises `x_start` `[N, C, H, W]` at `t` by each image's mixture of the draws `eps` and `xi`, shaped as it (see
    /// `ddpm_math::perturb`): one rule for every form of input perturbation. `xi` may be left out when no image uses it.
    ///
    /// # Panics
    /// If `xi` is missing and an image's mixture needs it, or there is no image.
    pub fn noise(&self, x_start: &[f32], t: &[usize], mixes: &[Mix], eps: &[f32], xi: Option<&[f32]>) -> Noised {
        let (s, per_image) = (&self.schedule, x_start.len() / t.len());
        let (mut x_t, mut target) = (vec![0.0; x_start.len()], vec![0.0; x_start.len()]);
        let images = x_t.par_chunks_mut(per_image).zip(target.par_chunks_mut(per_image));
        images.enumerate().for_each(|(i, (x_t, target))| {
            let place = i * per_image..(i + 1) * per_image;
            let (x_start, eps) = (&x_start[place.clone()], &eps[place.clone()]);
            let mix = &mixes[i];
            let (signal, noise) = (s.sqrt_alpha_bar[t[i]] as f32, s.sqrt_one_minus_alpha_bar[t[i]] as f32);
            let [of_eps, of_xi, of_target] = [mix.noise, mix.xi, mix.target].map(|v| v as f32);
            for (target, eps) in target.iter_mut().zip(eps) {
                *target = eps * of_target;
            }
            if of_xi == 0.0 {
                for ((x_t, x), eps) in x_t.iter_mut().zip(x_start).zip(eps) {
                    *x_t = x * signal + eps * of_eps * noise;
                }
                return;
            }
            let xi = &xi.expect("a second draw for the sampled perturbation")[place];
            for (((x_t, x), eps), xi) in x_t.iter_mut().zip(x_start).zip(eps).zip(xi) {
                *x_t = x * signal + (eps * of_eps + xi * of_xi) * noise;
            }
        });
        let separates = self.prediction == Prediction::Epsilon && !self.loss.is_vb();
        Noised {
            x_start: x_start.to_vec(),
            x_t,
            eps: target,
            t: t.to_vec(),
            constant: mixes.iter().map(|m| if separates { m.constant } else { 0.0 }).collect(),
        }
    }

    /// The losses of some of the images from the network's `output` for them, `[n, C or 2C, H, W]`. Where `grad` is given,
    /// shaped as `output`, it becomes the derivative of Σ weight·loss; `weights` are those of the images.
    ///
    /// # Panics
    /// If the sizes do not fit.
    pub fn losses(
        &self,
        noised: &Noised,
        images: Range<usize>,
        output: &[f32],
        weights: &[f64],
        grad: Option<&mut [f32]>,
    ) -> Vec<Terms> {
        let per_output = output.len() / images.len();
        let evaluate = |(i, output): (usize, &[f32]), grad| {
            let loss = ImageLoss::<f32>::new(
                &self.schedule,
                self.prediction,
                self.variance,
                self.loss,
                noised.t[images.start + i],
            );
            let [x_start, x_t, eps] = noised.image(images.start + i);
            loss.evaluate(x_start, x_t, eps, output, weights[i], grad)
        };
        let outputs = output.par_chunks(per_output).enumerate();
        match grad {
            Some(grad) => {
                let pairs = outputs.zip(grad.par_chunks_mut(per_output));
                pairs.map(|(output, grad)| evaluate(output, Some(grad))).collect()
            }
            None => outputs.map(|output| evaluate(output, None)).collect(),
        }
    }

    /// The terms of the variational bound of each image and the errors of the prediction, from the network's `output`
    /// `[N, C or 2C, H, W]`. Both look at the perturbed x_t, as the reference does.
    pub(crate) fn bound(&self, noised: &Noised, output: &[f32], clip: bool) -> Vec<BoundTerms> {
        let per_output = output.len() / noised.t.len();
        let evaluate = |(i, output)| {
            let bound = ImageBound::<f32>::new(&self.schedule, self.prediction, self.variance, noised.t[i]);
            let [x_start, x_t, eps] = noised.image(i);
            bound.evaluate(x_start, x_t, eps, output, clip)
        };
        output.par_chunks(per_output).enumerate().map(evaluate).collect()
    }
}
