//! The classifier of noisy images, by the reference's flags.

use super::{Config, ConfigError, ModelConfig, Pool, Precision};
use ddpm_math::Variance;
use ddpm_net::network::{ClassifierNetwork, Heads};
use serde::{Deserialize, Serialize};

/// The classifier and its training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassifierConfig {
    /// Channels at multiplier 1.
    pub width: usize,
    /// Residual blocks per level.
    pub depth: usize,
    /// Channel multiplier of each level; empty for the reference's choice by image size.
    pub channel_mult: Vec<f64>,
    /// Image sizes at which attention follows each residual block.
    pub attention_resolutions: Vec<usize>,
    /// Channels per attention head.
    pub num_head_channels: usize,
    /// Whether the time embedding scales and shifts (rather than only shifts).
    pub use_scale_shift_norm: bool,
    /// Whether residual blocks resample (rather than plain layers).
    pub resblock_updown: bool,
    /// The head.
    pub pool: Pool,
    /// Number of classes; 0 to take it from the data.
    pub num_classes: usize,
    /// The type of activations and matrix products.
    pub precision: Precision,
    /// Whether nobody chose the precision: a new run then takes the device's, and one that goes on keeps its own.
    #[serde(skip)]
    pub auto_precision: bool,
    /// Whether it is trained on noised images.
    pub noised: bool,
}

impl Default for ClassifierConfig {
    fn default() -> Self {
        Self {
            width: 128,
            depth: 2,
            channel_mult: Vec::new(),
            attention_resolutions: vec![32, 16, 8],
            num_head_channels: 64,
            use_scale_shift_norm: true,
            resblock_updown: true,
            pool: Pool::Attention,
            num_classes: 0,
            precision: Precision::F32,
            auto_precision: false,
            noised: true,
        }
    }
}

impl Config {
    /// The classifier that it describes.
    ///
    /// # Errors
    /// Flags that describe no network: each with the flag and what would do.
    pub fn classifier_network(&self) -> Result<ClassifierNetwork, ConfigError> {
        let (m, c) = (&self.model, &self.classifier);
        let as_model = ModelConfig {
            image_size: m.image_size,
            in_channels: m.in_channels,
            num_channels: c.width,
            num_res_blocks: c.depth,
            channel_mult: c.channel_mult.clone(),
            attention_resolutions: c.attention_resolutions.clone(),
            num_head_channels: i64::try_from(c.num_head_channels).unwrap_or(i64::MAX),
            num_classes: c.num_classes,
            use_scale_shift_norm: c.use_scale_shift_norm,
            resblock_updown: c.resblock_updown,
            precision: c.precision,
            ..ModelConfig::default()
        };
        let mut network = as_model
            .network(Variance::FixedLarge)
            .map_err(|e| ConfigError(format!("the classifier: {}", in_its_words(&e.0))))?;
        network.out_channels = c.num_classes;
        network.heads = Heads::Channels(c.num_head_channels);
        let bottom_size = m.image_size >> (network.level_channels.len() - 1);
        Ok(ClassifierNetwork { network, pool: c.pool, bottom_size })
    }
}

/// A message about the U-Net's flags, with the classifier's instead.
fn in_its_words(message: &str) -> String {
    [
        ("model.num_channels", "classifier.width"),
        ("--num-channels", "--classifier-width"),
        ("model.num_res_blocks", "classifier.depth"),
        ("--num-res-blocks", "--classifier-depth"),
        ("model.channel_mult", "classifier.channel_mult"),
        ("--channel-mult", "--classifier-channel-mult"),
        ("model.attention_resolutions", "classifier.attention_resolutions"),
        ("model.num_head_channels", "classifier.num_head_channels"),
        ("model.num_classes", "classifier.num_classes"),
    ]
    .iter()
    .fold(message.to_string(), |text, (model, own)| text.replace(model, own))
}
