//! The networks.

mod dropout;
mod embedding;
mod layers;
mod parameters;
mod unet;

pub use dropout::Dropout;
pub use embedding::timestep_embedding;
pub(crate) use parameters::host_values;
pub use parameters::{Init, Parameters, Spec};
pub use unet::Unet;
