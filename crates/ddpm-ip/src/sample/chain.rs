//! One batch of sampling chains.

use crate::diffusion::{Diffusion, Reverse};
use crate::model::{Parameters, Unet};
use burn::tensor::{Device, Tensor, TensorData};
use ddpm_math::{Domain, Stream};
use rayon::prelude::*;

/// Where a chain's random numbers come from.
pub trait Draws: Sync {
    /// x_T of image `image`, into `values` `[C, H, W]`.
    fn initial(&self, image: u64, values: &mut [f32]);

    /// The noise that the `k`-th step taken (from 0) adds to image `image`, into `values` `[C, H, W]`.
    fn step(&self, image: u64, k: usize, values: &mut [f32]);
}

/// Noise that depends on this seed, the image and the step alone.
pub struct Seeded(pub u64);

impl Draws for Seeded {
    fn initial(&self, image: u64, values: &mut [f32]) {
        Stream::new(self.0, Domain::Sample, image, 0).fill_normal(values);
    }

    fn step(&self, image: u64, k: usize, values: &mut [f32]) {
        Stream::new(self.0, Domain::SampleStep, image, k as u32).fill_normal(values);
    }
}

/// Everything a chain needs but its randomness.
pub struct Chain<'a> {
    /// The process, respaced to the steps to take.
    pub diffusion: &'a Diffusion,
    /// The network.
    pub network: &'a Unet,
    /// Its parameters, on a device without autodiff.
    pub parameters: &'a Parameters,
    /// The rule of the steps.
    pub reverse: Reverse,
    /// Side of the images.
    pub image_size: usize,
    /// Device of the parameters.
    pub device: &'a Device,
}

impl Chain<'_> {
    /// Draws images `images` (their numbers) with labels where the network has classes: `[N, C, H, W]`.
    ///
    /// `each` is called after every step with the number of steps taken, x̂_0 and x, and stops the chain by returning
    /// false; then there is no result.
    pub fn run(
        &self,
        images: &[u64],
        labels: Option<&[u32]>,
        draws: &dyn Draws,
        mut each: impl FnMut(usize, &Tensor<4>, &Tensor<4>) -> bool,
    ) -> Option<Tensor<4>> {
        let shape = [images.len(), self.network.config().in_channels, self.image_size, self.image_size];
        let per_image = shape[1..].iter().product();
        let draw = |fill: &(dyn Fn(u64, &mut [f32]) + Sync)| -> Tensor<4> {
            let mut values = vec![0.0; shape.iter().product()];
            values.par_chunks_mut(per_image).zip(images).for_each(|(values, &image)| fill(image, values));
            Tensor::from_data(TensorData::new(values, shape), self.device)
        };
        let mut x = draw(&|image, values| draws.initial(image, values));
        for (k, i) in (0..self.diffusion.schedule.len()).rev().enumerate() {
            let times = self.diffusion.model_times(&vec![i; images.len()]);
            let outputs = self.network.by_shard(images.len(), |part| {
                let labels = labels.map(|l| &l[part.clone()]);
                let x = x.clone().narrow(0, part.start, part.len());
                self.network.forward(self.parameters, x, &times[part], labels, None)
            });
            let output = Tensor::cat(outputs, 0);
            let noise = self.reverse.draws(i).then(|| draw(&|image, values| draws.step(image, k, values)));
            let (next, x_start) = self.reverse.step(self.diffusion, i, x, output, noise);
            x = next;
            if !each(k + 1, &x_start, &x) {
                return None;
            }
        }
        Some(x)
    }
}
