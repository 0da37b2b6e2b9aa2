//! Sampling: chains from noise to images, and files of them.

mod chain;
mod given;
mod job;
mod partial;

pub use chain::{Chain, Draws, Seeded};
pub use given::GivenNoise;
pub use job::{Job, run};
