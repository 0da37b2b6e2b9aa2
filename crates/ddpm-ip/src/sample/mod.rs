//! Sampling: chains from noise to images, and files of them.

mod chain;
mod given;
mod guide;
mod job;
mod small;

pub use chain::{Chain, Draws, Seeded};
pub use given::GivenNoise;
pub use guide::Guide;
pub(crate) use job::random_labels;
pub use job::{GuideJob, Job, run};
pub use small::SmallImages;
