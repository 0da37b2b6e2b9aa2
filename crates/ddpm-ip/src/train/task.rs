//! What is trained.

use crate::config::{Arch, Config, ConfigError, Precision};
use ddpm_net::network::{Classifier, Network, Unet};
use ddpm_net::{Device, Engine, Feed, Layout, Shards, Spec};
use std::sync::Arc;

/// A network and what it learns.
pub enum Task {
    /// To predict the noise of images.
    Diffusion(Engine<Unet>),
    /// To tell the classes of noised images.
    Classifier(Engine<Classifier>),
}

impl From<Unet> for Task {
    fn from(network: Unet) -> Self {
        Self::Diffusion(Engine::new(network, Device::default()))
    }
}

impl From<Classifier> for Task {
    fn from(network: Classifier) -> Self {
        Self::Classifier(Engine::new(network, Device::default()))
    }
}

impl Task {
    /// What a configuration trains.
    ///
    /// # Errors
    /// Flags that describe no network.
    pub fn new(config: &Config, device: Device) -> Result<Self, ConfigError> {
        Ok(match config.model.arch {
            Arch::Classifier => Self::Classifier(Engine::new(Classifier::new(config.classifier_network()?), device)),
            _ => Self::Diffusion(Engine::new(Unet::new(config.model.network(config.diffusion.variance)?), device)),
        })
    }

    /// The network.
    pub fn network(&self) -> &dyn Network {
        match self {
            Self::Diffusion(engine) => engine.network(),
            Self::Classifier(engine) => engine.network(),
        }
    }

    /// The network's parameters.
    pub fn layout(&self) -> &Arc<Layout> {
        self.network().layout()
    }

    /// Their names and shapes.
    pub fn specs(&self) -> &[Spec] {
        self.layout().specs()
    }

    /// Number of values over all parameters.
    pub fn parameter_count(&self) -> usize {
        self.layout().len()
    }

    /// What it computes in.
    pub(super) fn precision(&self, config: &Config) -> Precision {
        let asked = match self {
            Self::Diffusion(_) => config.model.precision,
            Self::Classifier(_) => config.classifier.precision,
        };
        if self.device() == Device::Cpu && crate::has_tiles() { asked } else { asked.kept() }
    }

    /// The device that it runs on.
    pub(crate) fn device(&self) -> Device {
        match self {
            Self::Diffusion(engine) => engine.device(),
            Self::Classifier(engine) => engine.device(),
        }
    }

    pub(crate) fn shards(&self) -> Shards {
        match self {
            Self::Diffusion(engine) => engine.shards(),
            Self::Classifier(engine) => engine.shards(),
        }
    }

    /// The network that predicts noise, if it is one.
    pub(crate) fn unet(&self) -> Option<&Engine<Unet>> {
        match self {
            Self::Diffusion(engine) => Some(engine),
            Self::Classifier(_) => None,
        }
    }

    /// The output for a batch.
    pub(crate) fn forward(&self, parameters: &ddpm_net::Parameters, feed: Feed) -> Vec<f32> {
        match self {
            Self::Diffusion(engine) => engine.forward(parameters, feed),
            Self::Classifier(engine) => engine.forward(parameters, feed),
        }
    }
}
