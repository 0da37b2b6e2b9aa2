//! Training runs.

mod gradient;
mod hook;
mod log;
mod loss_scale;
mod on_gpu;
mod penalty;
mod run;
mod task;
mod trainer;

pub use hook::{CheckpointHook, GridHook, Hook, Next};
pub(crate) use hook::{Drawing, due};
pub use log::LogHook;
pub(crate) use on_gpu::pairs;
pub(crate) use run::open_data;
pub use run::{RunOptions, check_memory, memory, parameter_count, resolve, train};
pub use task::Task;
pub use trainer::{Draws, StepReport, Trainer};
