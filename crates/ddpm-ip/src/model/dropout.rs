//! Dropout whose masks follow from the run's seed and an image's place in it.

use burn::tensor::{Device, Tensor, TensorData};
use ddpm_math::{Domain, Stream};
use rayon::prelude::*;

/// The draw of one batch's masks. An image's mask depends on the seed, its position in the run and the layer: not on
/// batch size, microbatches or threads.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// The run's seed.
    pub seed: u64,
    /// Images the run has seen before this batch's first.
    pub position: u64,
}

impl Dropout {
    /// Zeros with the given probability, else 1/(1 − probability), shaped `[N, H, W, C]`.
    pub(crate) fn mask(&self, shape: [usize; 4], probability: f64, layer: u32, device: &Device) -> Tensor<4> {
        let per_image = shape[1..].iter().product();
        let keep = (1.0 / (1.0 - probability)) as f32;
        let threshold = (probability * f64::from(u32::MAX)) as u32;
        let mut mask = vec![0.0; shape.iter().product()];
        mask.par_chunks_mut(per_image).enumerate().for_each(|(i, mask)| {
            let mut stream = Stream::new(self.seed, Domain::Dropout, self.position + i as u64, layer);
            mask.fill_with(|| if stream.next_u32() < threshold { 0.0 } else { keep });
        });
        Tensor::from_data(TensorData::new(mask, shape), device)
    }
}
