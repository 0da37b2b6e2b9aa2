//! Sampling: chains from noise to images, and files of them.

mod chain;
mod draw;
mod given;
mod guidance;
mod guide;
mod job;
mod on_gpu;
mod predictor;
mod small;

pub use chain::{Chain, Draws, Seeded, Subjects, Taken, Walk};
pub(crate) use draw::random_labels;
pub use draw::{Drawn, GuideJob, Order, draw};
pub use given::GivenNoise;
pub use guidance::{Guidance, Weak};
pub use guide::Guide;
pub use job::{Job, run};
pub use predictor::{Model, Predictor};
pub use small::SmallImages;
