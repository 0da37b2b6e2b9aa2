//! The networks.

mod embedding;
mod layers;
mod parameters;
mod unet;

pub use embedding::timestep_embedding;
pub use layers::RunPosition;
pub(crate) use parameters::host_values;
pub use parameters::{Init, Parameters, Spec};
pub use unet::Unet;
