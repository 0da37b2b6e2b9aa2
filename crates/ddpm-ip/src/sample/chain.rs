//! One batch of sampling chains.

use super::Guide;
use crate::diffusion::{Diffusion, Reverse};
use crate::model::{Condition, Parameters, Unet};
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
    /// A classifier whose gradient leads the chain.
    pub guide: Option<&'a Guide>,
    /// Side of the images.
    pub image_size: usize,
    /// Device of the parameters.
    pub device: &'a Device,
}

impl Chain<'_> {
    /// Draws images `images` (their numbers): `[N, C, H, W]`. `labels` are their classes, where the network has classes or
    /// a classifier guides, `low_res` their small images, enlarged, where the network wants them.
    ///
    /// `each` is called after every step with the number of steps taken, x̂_0 and x, and stops the chain by returning
    /// false; then there is no result.
    pub fn run(
        &self,
        images: &[u64],
        labels: Option<&[u32]>,
        low_res: Option<Tensor<4>>,
        draws: &dyn Draws,
        mut each: impl FnMut(usize, &Tensor<4>, &Tensor<4>) -> bool,
    ) -> Option<Tensor<4>> {
        let config = self.network.config();
        let shape = [images.len(), config.in_channels, self.image_size, self.image_size];
        let per_image = shape[1..].iter().product();
        let draw = |fill: &(dyn Fn(u64, &mut [f32]) + Sync)| -> Tensor<4> {
            let mut values = vec![0.0; shape.iter().product()];
            values.par_chunks_mut(per_image).zip(images).for_each(|(values, &image)| fill(image, values));
            Tensor::from_data(TensorData::new(values, shape), self.device)
        };
        let condition = Condition { labels: config.num_classes.and(labels), low_res };
        let mut x = draw(&|image, values| draws.initial(image, values));
        for (k, i) in (0..self.diffusion.schedule.len()).rev().enumerate() {
            let times = self.diffusion.model_times(&vec![i; images.len()]);
            let outputs = self.network.shards().map(images.len(), |part| {
                let x = x.clone().narrow(0, part.start, part.len());
                self.network.forward(self.parameters, x, &times[part.clone()], condition.part(part), None)
            });
            let output = Tensor::cat(outputs, 0);
            let gradient = self.guide.zip(labels).map(|(guide, labels)| guide.gradient(x.clone(), &times, labels));
            let noise = self.reverse.draws(i).then(|| draw(&|image, values| draws.step(image, k, values)));
            let (next, x_start) = self.reverse.step(self.diffusion, i, x, output, gradient, noise);
            x = next;
            if !each(k + 1, &x_start, &x) {
                return None;
            }
        }
        Some(x)
    }
}
