//! The diffusion process on batches of images: noising, losses and reverse steps, given every draw. The functions of numbers
//! that are mapped over pixels here stand in `ddpm_math`.

mod loss;
mod reverse;

pub use ddpm_math::Terms;
pub use loss::Noised;
pub use reverse::{Clip, Reverse, StepInputs, StepOutputs, to_u8, variance};

use crate::config::{ConfigError, DiffusionConfig, SampleConfig};
use ddpm_math::{LossKind, Prediction, Respacing, Schedule, ScheduleError, Spacing, Variance};

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
    /// Whether the network is told whole timesteps alone.
    pub rounded_timesteps: bool,
}

impl Diffusion {
    /// The process of a configuration with the given timesteps kept.
    ///
    /// # Errors
    /// A respacing that is impossible.
    pub fn new(config: &DiffusionConfig, respacing: &Respacing) -> Result<Self, ConfigError> {
        Self::over(config, Schedule::new(config.noise_schedule, config.diffusion_steps, respacing))
    }

    /// The process of a configuration with the steps that its samples take.
    ///
    /// # Errors
    /// A respacing that is impossible, or none that a spacing applies to.
    pub fn for_sampling(config: &DiffusionConfig, sample: &SampleConfig) -> Result<Self, ConfigError> {
        let steps = match (&sample.timestep_respacing, sample.spacing) {
            (respacing, Spacing::Uniform) => return Self::new(config, respacing).map(|d| d.rounded(sample)),
            (Respacing::Sections(counts), _) if counts.len() == 1 => counts[0],
            (respacing, spacing) => {
                return Err(ConfigError(format!(
                    "sample.spacing = {spacing} needs a plain number of steps, such as --timestep-respacing 20, not \
                     {:?}",
                    respacing.to_string()
                )));
            }
        };
        let schedule = Schedule::spaced(config.noise_schedule, config.diffusion_steps, sample.spacing, steps);
        Self::over(config, schedule).map(|d| d.rounded(sample))
    }

    fn rounded(self, sample: &SampleConfig) -> Self {
        Self { rounded_timesteps: sample.rounded_timesteps, ..self }
    }

    fn over(config: &DiffusionConfig, schedule: Result<Schedule, ScheduleError>) -> Result<Self, ConfigError> {
        Ok(Self {
            schedule: schedule.map_err(|e| ConfigError(e.to_string()))?,
            prediction: config.prediction,
            variance: config.variance,
            loss: config.loss,
            rescale_timesteps: config.rescale_timesteps,
            rounded_timesteps: false,
        })
    }

    /// What the network is told of a time of the full process.
    pub fn model_time(&self, time: f64) -> f32 {
        // Half to even, as diffusers rounds.
        let time = if self.rounded_timesteps { time.round_ties_even() } else { time };
        self.schedule.model_time(time, self.rescale_timesteps)
    }

    /// The times that the network is given for indices `t` of this process.
    pub fn model_times(&self, t: &[usize]) -> Vec<f32> {
        t.iter().map(|&i| self.model_time(self.schedule.times[i])).collect()
    }
}
