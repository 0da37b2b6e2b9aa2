//! Training runs.

mod calls;
mod changes;
mod curve;
mod gradient;
mod hook;
mod log;
mod loss_scale;
mod on_gpu;
mod penalty;
mod remarks;
mod run;
mod task;
mod together;
mod trainer;
mod watch;

pub use calls::{Call, Ending, calls};
pub(crate) use changes::changes_of_run;
pub use curve::{history, loss_curve};
pub use hook::{CheckpointHook, GridHook, Hook, Next};
pub(crate) use hook::{Drawing, due};
pub use log::LogHook;
pub(crate) use on_gpu::pairs;
pub use remarks::remarks;
pub use run::{RunOptions, check_memory, memory, parameter_count, resolve, train};
pub(crate) use run::{open_data, open_data_of_network};
pub use task::Task;
pub use trainer::{Draws, StepReport, Trainer};
