//! The networks: descriptions that know the places of their parameters and record themselves into a graph.

mod classifier;
mod ddim;
mod embedding;
mod layers;
mod trunk;
mod unet;

pub use classifier::Classifier;
pub use embedding::timestep_embedding;
pub use unet::Unet;

use crate::graph::{Graph, Value};
use crate::kind::{Precision, Shape};
use crate::state::{Layout, Spec};
use ddpm_kernels::HeadOrder;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Groups of every normalisation, as in the reference.
pub const NORM_GROUPS: usize = 32;

/// A network that can record itself into a graph.
pub trait Network: Send + Sync {
    /// Its parameters.
    fn layout(&self) -> &Arc<Layout>;

    /// What its trunk is built from.
    fn config(&self) -> &NetworkConfig;

    /// Records it for `n` images of `size` rows and columns. In `training` there is dropout.
    fn record(&self, graph: &mut Graph, n: usize, size: [usize; 2], training: bool) -> Recorded;

    /// Its parameters: names, shapes and beginnings, in order.
    fn specs(&self) -> &[Spec] {
        self.layout().specs()
    }

    /// Number of values over all parameters.
    fn parameter_count(&self) -> usize {
        self.layout().len()
    }
}

/// Where a recorded network takes what it is given, and where its output is.
#[derive(Clone, Copy, Debug)]
pub struct Recorded {
    /// Noisy images, planes `[N, C, H, W]`.
    pub images: Value,
    /// Small images, enlarged to the size of the others, for a network of super-resolution.
    pub low_res: Option<Value>,
    /// The sinusoids of the times `[N, model_channels]`.
    pub times: Value,
    /// Planes in f32, or rows of logits.
    pub output: Value,
}

/// What the U-Net is built from.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConfig {
    /// Whose names and details the layers have.
    pub family: Family,
    /// Channels of the images.
    pub in_channels: usize,
    /// Whether an enlarged small image enters beside the noisy one.
    pub low_res: bool,
    /// Channels of the output: twice the input's if the variance is learned.
    pub out_channels: usize,
    /// Channels of the time embedding's sinusoids.
    pub model_channels: usize,
    /// Channels of each level.
    pub level_channels: Vec<usize>,
    /// Residual blocks per level.
    pub num_res_blocks: usize,
    /// Downsampling factors at which there is attention.
    pub attention_factors: Vec<usize>,
    /// How heads are counted on the way down and in the middle.
    pub heads: Heads,
    /// How heads are counted on the way up.
    pub heads_up: Heads,
    /// Layout of queries, keys and values.
    pub head_order: HeadOrder,
    /// Dropout probability.
    pub dropout: f64,
    /// Classes, if the network is given labels.
    pub num_classes: Option<usize>,
    /// Scale and shift, or shift alone.
    pub scale_shift_norm: bool,
    /// Residual resampling blocks, or plain layers.
    pub resblock_updown: bool,
    /// A convolution in plain resampling layers.
    pub conv_resample: bool,
    /// The type of activations and matrix products.
    pub precision: Precision,
    /// Blocks are computed again in the backward pass.
    pub use_checkpoint: bool,
}

impl NetworkConfig {
    /// Channels that enter the first layer.
    pub fn input_channels(&self) -> usize {
        if self.low_res { 2 * self.in_channels } else { self.in_channels }
    }

    /// Whether there is attention at a level.
    pub fn attends(&self, level: usize) -> bool {
        self.attention_factors.contains(&(1 << level))
    }
}

/// Whose names and details a network's layers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// openai/guided-diffusion.
    Adm,
    /// ermongroup/ddim: layers that shift only, one attention head, ε of 1e-6 in normalisations, nothing begins as zero.
    Ddim,
}

/// How attention heads are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heads {
    /// A number of heads.
    Count(usize),
    /// A number of channels per head.
    Channels(usize),
}

impl Heads {
    /// Heads for a layer of `channels` channels.
    pub fn count(self, channels: usize) -> usize {
        match self {
            Self::Count(n) => n,
            Self::Channels(per_head) => channels / per_head,
        }
    }

    /// Whether the channels of a layer come out even.
    pub fn divides(self, channels: usize) -> bool {
        let (Self::Count(n) | Self::Channels(n)) = self;
        n > 0 && channels.is_multiple_of(n)
    }
}

/// What a classifier is built from.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassifierNetwork {
    /// Its first half; `out_channels` are the classes.
    pub network: NetworkConfig,
    /// Its head.
    pub pool: Pool,
    /// Side of the images where the head is.
    pub bottom_size: usize,
}

/// How a classifier comes from features to logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// Attention of the mean over all positions.
    #[default]
    Attention,
    /// Mean of every channel.
    Adaptive,
    /// Means of every block's channels, two linear maps.
    Spatial,
    /// The same with a normalisation between the maps.
    SpatialV2,
}

/// The inputs of a network: images, perhaps small ones beside them, and times.
fn inputs(graph: &mut Graph, config: &NetworkConfig, n: usize, [h, w]: [usize; 2]) -> (Value, Option<Value>, Value) {
    let planes = Shape { n, h, w, c: config.in_channels };
    let images = graph.input(planes, Precision::F32);
    let low_res = config.low_res.then(|| graph.input(planes, Precision::F32));
    let times = graph.input(Shape::rows(n, config.model_channels), Precision::F32);
    (images, low_res, times)
}
