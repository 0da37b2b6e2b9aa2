//! One batch of sampling chains.

use super::Guide;
use crate::diffusion::{Diffusion, Reverse, StepInputs};
use ddpm_math::{Domain, Stream};
use ddpm_net::network::{Network, Unet};
use ddpm_net::{Engine, Feed, Parameters};
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
    pub network: &'a Engine<Unet>,
    /// Its parameters.
    pub parameters: &'a Parameters,
    /// The rule of the steps.
    pub reverse: Reverse,
    /// A classifier whose gradient leads the chain.
    pub guide: Option<&'a Guide>,
    /// Side of the images.
    pub image_size: usize,
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
        low_res: Option<&[f32]>,
        draws: &dyn Draws,
        mut each: impl FnMut(usize, &[f32], &[f32]) -> bool,
    ) -> Option<Vec<f32>> {
        let config = self.network.network().config();
        let (n, size) = (images.len(), [self.image_size; 2]);
        let per_image = config.in_channels * self.image_size.pow(2);
        let draw = |fill: &(dyn Fn(u64, &mut [f32]) + Sync)| -> Vec<f32> {
            let mut values = vec![0.0; n * per_image];
            values.par_chunks_mut(per_image).zip(images).for_each(|(values, &image)| fill(image, values));
            values
        };
        let mut x = draw(&|image, values| draws.initial(image, values));
        for (k, i) in (0..self.diffusion.schedule.len()).rev().enumerate() {
            let times = self.diffusion.model_times(&vec![i; n]);
            let own_labels = config.num_classes.and(labels);
            let feed = Feed { labels: own_labels, low_res, ..Feed::new(&x, size, &times) };
            let output = self.network.forward(self.parameters, feed);
            let gradient = self.guide.zip(labels).map(|(guide, labels)| guide.gradient(&x, size, &times, labels));
            let noise =
                self.reverse.draws(self.diffusion, i).then(|| draw(&|image, values| draws.step(image, k, values)));
            let inputs = StepInputs { output: &output, guidance: gradient.as_deref(), noise: noise.as_deref() };
            let x_start = self.reverse.step(self.diffusion, i, n, &mut x, inputs);
            if !each(k + 1, &x_start, &x) {
                return None;
            }
        }
        Some(x)
    }
}
