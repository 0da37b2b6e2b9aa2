//! The process of a `scheduler_config.json`.

use super::VERSION;
use super::settings::{Settings, settings};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;

/// Schedulers of the variance-preserving process.
const SCHEDULERS: [&str; 5] =
    ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"];

/// The process of a scheduler.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// Its class.
    pub class: String,
    /// Timesteps.
    pub steps: usize,
    /// A squared cosine, or β linear in t.
    pub cosine: bool,
    /// The network predicts the image, or the noise.
    pub predicts_image: bool,
    /// The variance of the reverse steps, where the scheduler has one.
    pub variance: Option<ProcessVariance>,
    /// Whether predicted images are clipped to [-1, 1], where the scheduler says it.
    pub clip: Option<bool>,
}

/// The variance of the reverse steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessVariance {
    /// The posterior's.
    FixedSmall,
    /// β.
    FixedLarge,
    /// Learned, between the two.
    LearnedRange,
}

impl Process {
    /// The process that a `scheduler_config.json` describes.
    ///
    /// # Errors
    /// Damage, or a process that is not supported: the message names the key, its value, and what is.
    pub fn read(path: &Path) -> Result<Self> {
        let found = settings(path)?.ok_or_else(|| Error::file(path, "there is no such file"))?;
        Self::from_settings(&found)
    }

    pub(super) fn from_settings(s: &Settings) -> Result<Self> {
        let class = s.text("_class_name", "")?;
        if !SCHEDULERS.contains(&class) {
            return Err(s.refuse("_class_name", &format!("{} are", SCHEDULERS.join(", "))));
        }
        let steps = s.count("num_train_timesteps", 1000, 1 << 20)?;
        s.only("trained_betas", &[Value::Null])?;
        let cosine = match s.text("beta_schedule", "linear")? {
            "linear" => false,
            "squaredcos_cap_v2" => true,
            _ => return Err(s.refuse("beta_schedule", "\"linear\" or \"squaredcos_cap_v2\" is")),
        };
        if !cosine {
            let [start, end] = linear(steps);
            for (key, default, supported) in [("beta_start", 1e-4, start), ("beta_end", 0.02, end)] {
                if (s.number(key, default)? - supported).abs() > 1e-6 * supported {
                    let message = format!("{supported} with `num_train_timesteps` {steps} is");
                    return Err(s.refuse(key, &message));
                }
            }
        }
        s.only("rescale_betas_zero_snr", &[json!(false)])?;
        s.only("thresholding", &[json!(false)])?;
        let predicts_image = match s.text("prediction_type", "epsilon")? {
            "epsilon" => false,
            "sample" => true,
            _ => return Err(s.refuse("prediction_type", "\"epsilon\" or \"sample\" is")),
        };
        let variance = match (class, s.text("variance_type", "fixed_small")?) {
            ("DDPMScheduler", "fixed_small" | "fixed_small_log") => Some(ProcessVariance::FixedSmall),
            ("DDPMScheduler", "fixed_large") => Some(ProcessVariance::FixedLarge),
            ("DDPMScheduler", "learned_range") => Some(ProcessVariance::LearnedRange),
            ("DDPMScheduler", _) => {
                let supported = "\"fixed_small\", \"fixed_large\" or \"learned_range\" is";
                return Err(s.refuse("variance_type", supported));
            }
            _ => None,
        };
        let clip = match class {
            "DDPMScheduler" | "DDIMScheduler" => Some(s.is("clip_sample", true)?),
            _ => None,
        };
        if clip == Some(true) {
            s.only("clip_sample_range", &[json!(1)])?;
        }
        Ok(Self { class: class.into(), steps, cosine, predicts_image, variance, clip })
    }

    /// The content of a `scheduler_config.json`, of a `DDPMScheduler`.
    pub fn to_json(&self) -> Value {
        let [start, end] = linear(self.steps);
        json!({
            "_class_name": "DDPMScheduler",
            "_diffusers_version": VERSION,
            "beta_end": end,
            "beta_schedule": if self.cosine { "squaredcos_cap_v2" } else { "linear" },
            "beta_start": start,
            "clip_sample": self.clip.unwrap_or(true),
            "clip_sample_range": 1.0,
            "num_train_timesteps": self.steps,
            "prediction_type": if self.predicts_image { "sample" } else { "epsilon" },
            "rescale_betas_zero_snr": false,
            "steps_offset": 0,
            "thresholding": false,
            "timestep_spacing": "leading",
            "trained_betas": null,
            "variance_type": match self.variance {
                Some(ProcessVariance::FixedLarge) => "fixed_large",
                Some(ProcessVariance::LearnedRange) => "learned_range",
                _ => "fixed_small",
            },
        })
    }
}

/// The first and the last β of a linear schedule.
fn linear(steps: usize) -> [f64; 2] {
    [1e-4, 0.02].map(|beta| beta * 1000.0 / steps as f64)
}
