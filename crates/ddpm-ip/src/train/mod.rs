//! Training runs.

mod hook;
mod log;
mod run;
mod trainer;

pub use hook::{CheckpointHook, GridHook, Hook};
pub use log::LogHook;
pub(crate) use run::open_data;
pub use run::train;
pub use trainer::{Draws, StepReport, Trainer};
