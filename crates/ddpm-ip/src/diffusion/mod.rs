//! The diffusion process on tensors: noising, losses and reverse steps, given every draw.

mod gaussian;
mod loss;
mod reverse;

pub use loss::{Noised, Terms};
pub use reverse::{Reverse, to_u8};

use crate::config::{ConfigError, DiffusionConfig};
use burn::tensor::{Device, Tensor, TensorData};
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

/// One value per image as `[N, 1, 1, 1]`, rounded to f32 at the end as the reference does.
fn per_image(values: impl IntoIterator<Item = f64>, device: &Device) -> Tensor<4> {
    let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n, 1, 1, 1]), device)
}

/// The mean of each image's values: `[N, C, H, W]` to `[N]`.
fn mean_flat(x: Tensor<4>) -> Tensor<1> {
    let [n, c, h, w] = x.dims();
    x.reshape([n, c * h * w]).mean_dim(1).reshape([n])
}
