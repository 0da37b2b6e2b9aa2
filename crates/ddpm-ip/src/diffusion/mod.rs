//! The diffusion process on batches of images: noising, losses and reverse steps, given every draw. The functions of numbers
//! that are mapped over pixels here stand in `ddpm_math`.

mod loss;
mod reverse;

pub use ddpm_math::Terms;
pub use loss::Noised;
pub use reverse::{Reverse, StepInputs, to_u8};

use crate::config::{ConfigError, DiffusionConfig};
use ddpm_math::{LossKind, Prediction, Respacing, Schedule, Variance};

/// A diffusion process with its way of predicting and its loss.
#[derive(Clone, Debug)]
pub struct Diffusion {
    /// All tables, over the timesteps kept.
    pub schedule: Schedule,
    /// What the network predicts.
    pub prediction: Prediction,
    /// The variance of the reverse steps.
    pub variance: Variance,
    /// The loss.
    pub loss: LossKind,
    /// Whether the network sees times scaled to 0 … 1000.
    pub rescale_timesteps: bool,
}

impl Diffusion {
    /// The process of a configuration with the given timesteps kept.
    ///
    /// # Errors
    /// A respacing that is impossible.
    pub fn new(config: &DiffusionConfig, respacing: &Respacing) -> Result<Self, ConfigError> {
        Ok(Self {
            schedule: Schedule::new(config.noise_schedule, config.diffusion_steps, respacing)
                .map_err(|e| ConfigError(e.to_string()))?,
            prediction: config.prediction,
            variance: config.variance,
            loss: config.loss,
            rescale_timesteps: config.rescale_timesteps,
        })
    }

    /// The times that the network is given for indices `t` of this process.
    pub fn model_times(&self, t: &[usize]) -> Vec<f32> {
        t.iter().map(|&i| self.schedule.model_timestep(i, self.rescale_timesteps)).collect()
    }
}
