//! The networks.

mod classifier;
mod ddim;
mod embedding;
mod layers;
pub mod low_res;
mod parameters;
mod shards;
mod trunk;
mod unet;

pub use classifier::Classifier;
pub use embedding::timestep_embedding;
pub use layers::RunPosition;
pub(crate) use parameters::host_values;
pub use parameters::{Init, Parameters, Spec};
pub(crate) use shards::Shards;
pub use unet::Unet;

use burn::tensor::Tensor;
use std::ops::Range;

/// What a network is given beside noisy images and times.
#[derive(Clone, Debug, Default)]
pub struct Condition<'a> {
    /// Labels `[N]`, for a class-conditional network.
    pub labels: Option<&'a [u32]>,
    /// Small images `[N, C, H, W]`, enlarged to the network's size (see [`low_res`]), for one of super-resolution.
    pub low_res: Option<Tensor<4>>,
}

impl<'a> Condition<'a> {
    /// Labels alone, if there are any.
    pub fn labels(labels: Option<&'a [u32]>) -> Self {
        Self { labels, low_res: None }
    }

    /// The part for some of the images.
    #[must_use]
    pub fn part(&self, images: Range<usize>) -> Self {
        Self {
            labels: self.labels.map(|l| &l[images.clone()]),
            low_res: self.low_res.as_ref().map(|x| x.clone().narrow(0, images.start, images.len())),
        }
    }
}
