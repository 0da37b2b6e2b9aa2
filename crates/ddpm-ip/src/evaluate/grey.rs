//! The embedded feature network for small grey images.

use crate::config::Config;
use crate::data::{Pixels, center_crop};
use crate::model::{Classifier, Parameters, host_values};
use crate::{Error, checkpoint};
use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;
use std::path::Path;

/// Side of the images that the network sees.
const SIZE: usize = 32;

const ADAPTIVE: &str = "the embedded network has an adaptive head";

/// A classifier of handwritten digits and of Fashion-MNIST's clothes, without noise; `assets/README.md` says how it was
/// trained and how good it is.
pub(super) struct Grey {
    network: Classifier,
    parameters: Parameters,
}

impl Grey {
    /// Its name; another number for other weights.
    pub(super) const NAME: &str = "ddpm-ip-grey-1";
    /// Columns of its features: the mean over all positions of each of its last channels.
    pub(super) const WIDTH: usize = 64;
    /// Ten digits, then ten kinds of clothes.
    pub(super) const CLASSES: usize = 20;

    pub(super) fn load(device: &Device) -> Result<Self, Error> {
        let bytes = include_bytes!("../../assets/grey-1.safetensors");
        let config = Config::from_toml(include_str!("../../assets/grey-1.toml"))?;
        let network = Classifier::new(crate::config::ClassifierNetwork::new(&config)?);
        let parameters =
            checkpoint::load_bytes(bytes, Path::new("the embedded grey network"), network.specs(), device)?;
        Ok(Self { network, parameters })
    }

    /// `[n, WIDTH]` of images `[n, H, W, C]`.
    pub(super) fn features(&self, images: &[u8], [n, height, width, channels]: [usize; 4]) -> Vec<f32> {
        let image = |data: &[u8]| {
            let image = Pixels { width, height, channels, data: data.to_vec() };
            let grey = image.with_channels(1).expect("grey and colour become grey");
            let shaped = if [height, width] == [SIZE; 2] { grey } else { center_crop(&grey, SIZE) };
            shaped.to_network(false)
        };
        let values: Vec<Vec<f32>> = images.par_chunks_exact(height * width * channels).map(image).collect();
        let x = |part: std::ops::Range<usize>| {
            let shape = [part.len(), 1, SIZE, SIZE];
            Tensor::<4>::from_data(TensorData::new(values[part].concat(), shape), &self.parameters.0[0].device())
        };
        let parts = self.network.shards().map(n, |part| {
            let times = vec![0.0; part.len()];
            host_values(self.network.features(&self.parameters, x(part), &times).expect(ADAPTIVE))
        });
        parts.concat()
    }

    /// `[n, CLASSES]` of features.
    pub(super) fn logits(&self, features: &[f32]) -> Vec<f32> {
        let n = features.len() / Self::WIDTH;
        let rows = TensorData::new(features.to_vec(), [n, Self::WIDTH]);
        let rows = Tensor::from_data(rows, &self.parameters.0[0].device());
        host_values(self.network.logits(&self.parameters, rows).expect(ADAPTIVE))
    }
}
