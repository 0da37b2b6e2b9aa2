//! Training runs.

mod hook;
mod log;
mod run;
mod trainer;

pub use hook::{CheckpointHook, GridHook, Hook, Next};
pub use log::LogHook;
pub(crate) use run::open_data;
pub use run::{resolve, train};
pub use trainer::{Draws, StepReport, Trainer};
