//! One step of a sampling chain.

use super::Diffusion;
use crate::config::SamplerKind;
use ddpm_math::{ReverseStep, Rule};
use rayon::prelude::*;

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

/// What a reverse step takes beside the images.
#[derive(Clone, Copy, Debug)]
pub struct StepInputs<'a> {
    /// The network's output `[N, C or 2C, H, W]`.
    pub output: &'a [f32],
    /// The gradient of a classifier's log-probability `[N, C, H, W]`.
    pub guidance: Option<&'a [f32]>,
    /// A standard normal draw `[N, C, H, W]`, needed where [`Reverse::draws`] says so.
    pub noise: Option<&'a [f32]>,
}

impl Reverse {
    fn rule(&self) -> Rule {
        match self.sampler {
            SamplerKind::Ddpm => Rule::Ddpm,
            SamplerKind::Ddim => Rule::Ddim { eta: self.eta },
        }
    }

    fn at(&self, diffusion: &Diffusion, i: usize) -> ReverseStep<f32> {
        let Diffusion { schedule, prediction, variance, .. } = diffusion;
        ReverseStep::new(schedule, *prediction, *variance, self.rule(), self.clip_denoised, i)
    }

    /// Whether a step from index `i` adds noise.
    pub fn draws(&self, diffusion: &Diffusion, i: usize) -> bool {
        self.at(diffusion, i).draws()
    }

    /// From x_t, `n` images `[N, C, H, W]`, at index `i` to x_{t−1} in the place of x_t and the predicted x_0 as the result. The
    /// formulas stand in `ddpm_math::reverse`.
    pub fn step(&self, diffusion: &Diffusion, i: usize, n: usize, x: &mut [f32], inputs: StepInputs) -> Vec<f32> {
        let StepInputs { output, guidance, noise } = inputs;
        let step = self.at(diffusion, i);
        let (per_image, per_output) = (x.len() / n, output.len() / n);
        let mut predicted = vec![0.0; x.len()];
        let images = x.par_chunks_mut(per_image).zip(predicted.par_chunks_mut(per_image));
        images.zip(output.par_chunks(per_output)).enumerate().for_each(|(image, ((x, predicted), output))| {
            let place = image * per_image..(image + 1) * per_image;
            let guidance = guidance.map(|all| &all[place.clone()]);
            let noise = noise.map(|all| &all[place]);
            // A network without a learned variance has no second half.
            let values = if per_output > per_image { &output[per_image..] } else { output };
            for (at, (x, predicted)) in x.iter_mut().zip(predicted).enumerate() {
                let guide = guidance.map_or(0.0, |guidance| guidance[at]);
                let noise = noise.map_or(0.0, |noise| noise[at]);
                (*x, *predicted) = step.step(*x, output[at], values[at], guide, guidance.is_some(), noise);
            }
        });
        predicted
    }
}

/// Images in [-1, 1] `[N, C, H, W]` of `channels` channels and `pixels` pixels as bytes `[N, H, W, C]`: (x + 1)·127.5, clamped
/// and cut off as the reference does.
pub fn to_u8(x: &[f32], channels: usize, pixels: usize) -> Vec<u8> {
    let byte = |v: f32| ((v + 1.0) * 127.5).clamp(0.0, 255.0) as u8;
    let image = |image: &[f32], bytes: &mut Vec<u8>| {
        for pixel in 0..pixels {
            bytes.extend((0..channels).map(|c| byte(image[c * pixels + pixel])));
        }
    };
    let mut bytes = Vec::with_capacity(x.len());
    x.chunks_exact(channels * pixels).for_each(|planes| image(planes, &mut bytes));
    bytes
}
