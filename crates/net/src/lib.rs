//! Networks that are planned once and then run.
//!
//! A network of this kind does the same few hundred operations on the same sizes millions of times. So all that can be known
//! before the first step is decided then: a [`Network`](network::Network) records itself into a [`Graph`] for one size of
//! batch, the backward pass is added to it as further operations, and a [`Plan`] gives each value a place in one block of
//! memory. A step is then a list to walk down. The [`Engine`] keeps the plans of a network and runs batches on them. It
//! knows no diffusion: what a loss makes of outputs is a function of the caller's.
//!
//! ```
//! use ddpm_net::network::{Family, Heads, NetworkConfig, Network, Unet};
//! use ddpm_net::{Device, Engine, Feed, Parameters, Precision};
//!
//! let network = Unet::new(NetworkConfig {
//!     family: Family::Adm,
//!     in_channels: 1,
//!     low_res: false,
//!     out_channels: 1,
//!     model_channels: 32,
//!     level_channels: vec![32],
//!     num_res_blocks: 1,
//!     attention_factors: vec![],
//!     heads: Heads::Count(1),
//!     heads_up: Heads::Count(1),
//!     head_order: ddpm_kernels::HeadOrder::QkvFirst,
//!     dropout: 0.0,
//!     num_classes: None,
//!     scale_shift_norm: true,
//!     resblock_updown: false,
//!     conv_resample: true,
//!     precision: Precision::F32,
//!     use_checkpoint: false,
//! });
//! let parameters = Parameters::initial(network.layout(), 0);
//! let engine = Engine::new(network, Device::Cpu);
//! let (images, times) = (vec![0.5; 2 * 16], [10.0, 900.0]);
//! let feed = Feed::new(&images, [4, 4], &times);
//! assert_eq!(engine.forward(&parameters, feed).len(), 2 * 16);
//! // The gradient of Σ output.
//! let (mut gradient, _) = engine.gradient(&parameters, feed, true, |_, _, grad| grad.fill(1.0));
//! assert!(gradient.values().iter().any(|&g| g != 0.0));
//! ```

mod arena;
mod backward;
mod device;
mod engine;
mod graph;
mod kind;
mod linear;
pub mod network;
pub mod op;
mod packed;
mod plan;
mod recompute;
mod shards;
mod state;
#[cfg(test)]
mod tests;
mod values;

pub use ddpm_cuda::{self as gpu, Chip, Gpu};
pub use device::{
    Clip, Device, DeviceError, GPU_AVERAGES, GRAIN, Norm, RunPosition, Squares, accumulate, done, update,
};
pub use engine::{Engine, Feed, NO_CLASS, Parts, PlanMemory, Purpose};
pub use graph::{Graph, Value};
pub use kind::{Precision, Shape};
pub use linear::linear;
pub use plan::{GradientPlace, Plan, Plans};
pub use shards::{Accumulator, Gradient, Shards, add_partial_sums, partial_sums};
pub use state::{Init, Layout, Parameters, Spec};
