//! The embedded feature network for small grey images.

use crate::config::Config;
use crate::data::{Pixels, center_crop};
use crate::{Error, checkpoint};
use ddpm_net::network::{Classifier, Network, NetworkConfig, Recorded};
use ddpm_net::{Device, Engine, Feed, Graph, Layout, Parameters, linear};
use rayon::prelude::*;
use std::path::Path;
use std::sync::Arc;

/// Side of the images that the network sees.
const SIZE: usize = 32;

/// A classifier of handwritten digits and of Fashion-MNIST's clothes, without noise; `assets/README.md` says how it was
/// trained and how good it is.
pub(super) struct Grey {
    network: Engine<Features>,
    parameters: Parameters,
}

/// The classifier without its last layer.
struct Features(Classifier);

impl Network for Features {
    fn layout(&self) -> &Arc<Layout> {
        self.0.layout()
    }

    fn config(&self) -> &NetworkConfig {
        self.0.config()
    }

    fn record(&self, graph: &mut Graph, n: usize, size: [usize; 2], _: bool) -> Recorded {
        self.0.record_features(graph, n, size)
    }
}

impl Grey {
    /// Its name; another number for other weights.
    pub(super) const NAME: &str = "ddpm-ip-grey-1";
    /// Columns of its features: the mean over all positions of each of its last channels.
    pub(super) const WIDTH: usize = 64;
    /// Ten digits, then ten kinds of clothes.
    pub(super) const CLASSES: usize = 20;

    pub(super) fn load(device: Device) -> Result<Self, Error> {
        let bytes = include_bytes!("../../assets/grey-1.safetensors");
        let config = Config::from_toml(include_str!("../../assets/grey-1.toml"))?;
        let network = Classifier::new(config.classifier_network()?);
        let parameters = checkpoint::load_bytes(bytes, Path::new("the embedded grey network"), network.layout())?;
        Ok(Self { network: Engine::new(Features(network), device), parameters })
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
        let (values, times) = (values.concat(), vec![0.0; n]);
        self.network.forward(&self.parameters, Feed::new(&values, [SIZE; 2], &times))
    }

    /// `[n, CLASSES]` of features.
    pub(super) fn logits(&self, features: &[f32]) -> Vec<f32> {
        let place = self.network.network().0.last_layer().expect("the embedded network has an adaptive head");
        let (weight, bias) = (self.parameters.get(place), self.parameters.get(place + 1));
        linear(features, weight, Some(bias), [Self::WIDTH, Self::CLASSES])
    }
}
