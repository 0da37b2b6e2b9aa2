//! Sampling: chains from noise to images, and files of them.

mod chain;
mod given;
mod guidance;
mod guide;
mod job;
mod on_gpu;
mod predictor;
mod small;

pub use chain::{Chain, Draws, Seeded, Subjects, Taken, Walk};
pub use given::GivenNoise;
pub use guidance::{Guidance, Weak};
pub use guide::Guide;
pub(crate) use job::random_labels;
pub use job::{GuideJob, Job, run};
pub use predictor::{Model, Predictor};
pub use small::SmallImages;
