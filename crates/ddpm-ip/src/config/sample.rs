//! Settings of sampling.

use super::{ConfigError, Corrections, Respacing, Spacing, require};
use serde::{Deserialize, Serialize};

/// The family of reverse steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplerKind {
    /// Ancestral sampling (DDPM).
    #[default]
    Ddpm,
    /// DDIM with `eta`.
    Ddim,
    /// DPM-Solver++ (2M).
    #[serde(rename = "dpm-solver++")]
    DpmSolver,
    /// The same for the SDE.
    #[serde(rename = "dpm-solver++-sde")]
    DpmSolverSde,
    /// `UniPC` of order 2.
    #[serde(rename = "unipc")]
    UniPc,
    /// EDM's sampler with `churn`.
    Heun,
}

impl SamplerKind {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ddpm => "ddpm",
            Self::Ddim => "ddim",
            Self::DpmSolver => "dpm-solver++",
            Self::DpmSolverSde => "dpm-solver++-sde",
            Self::UniPc => "unipc",
            Self::Heun => "heun",
        }
    }
}

/// Sampling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// The family of reverse steps.
    pub sampler: SamplerKind,
    /// Timesteps used ("" for all).
    pub timestep_respacing: Respacing,
    /// How a plain number of steps is spaced.
    pub spacing: Spacing,
    /// Whether the network is told whole timesteps alone, as other programs do; noise levels stay between them.
    pub rounded_timesteps: bool,
    /// DDIM's η: 0 deterministic, 1 as random as DDPM.
    pub eta: f64,
    /// Heun's `S_churn`; 0 is deterministic.
    pub churn: f64,
    /// The least noise σ/α at which it churns, `S_tmin`.
    pub churn_min: f64,
    /// The most noise σ/α at which it churns, `S_tmax`; 0 for no limit.
    pub churn_max: f64,
    /// Whether predicted images are clipped to [-1, 1] at every step.
    pub clip_denoised: bool,
    /// In place of clipping at 1, clip to what this share of an image's values keep, and scale back; 0 for plain clipping.
    pub dynamic_threshold: f64,
    /// Corrections of exposure bias.
    pub correct: Corrections,
    /// What a classifier's gradient is multiplied by.
    pub classifier_scale: f64,
    /// w of guidance: how far answers are led away from those without class, or of a weaker network; 1 is none.
    pub guidance_scale: f64,
    /// The noise σ/α at which guidance acts, above the first and up to the second; empty for all.
    pub guidance_interval: Vec<f64>,
    /// Images to draw.
    pub num_samples: usize,
    /// Images drawn together.
    pub batch_size: usize,
    /// Which network is taken of a file that holds several; "" for the average or, where there is none, the first that fits.
    pub network: String,
    /// Seed: image i depends on it and on i alone.
    pub seed: u64,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            sampler: SamplerKind::Ddpm,
            timestep_respacing: Respacing::Full,
            spacing: Spacing::Uniform,
            rounded_timesteps: false,
            eta: 0.0,
            churn: 0.0,
            churn_min: 0.0,
            churn_max: 0.0,
            clip_denoised: true,
            dynamic_threshold: 0.0,
            correct: Corrections::default(),
            classifier_scale: 1.0,
            guidance_scale: 1.0,
            guidance_interval: Vec::new(),
            num_samples: 10_000,
            batch_size: 16,
            network: String::new(),
            seed: 0,
        }
    }
}

impl SampleConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        require(self.batch_size > 0, || "sample.batch_size is 0: give at least 1 image per batch".into())?;
        require(self.num_samples > 0, || "sample.num_samples is 0: ask for at least 1 image".into())?;
        require(self.eta.is_finite() && self.eta >= 0.0, || {
            format!("sample.eta = {} must be 0 (deterministic) or more", self.eta)
        })?;
        for (key, value) in [("churn", self.churn), ("churn_min", self.churn_min), ("churn_max", self.churn_max)] {
            require(value.is_finite() && value >= 0.0, || format!("sample.{key} = {value} must be 0 or more"))?;
        }
        require(self.churn == 0.0 || self.sampler == SamplerKind::Heun, || {
            "--churn is for --sampler heun: the others add noise by rules of their own".into()
        })?;
        require((0.0..=1.0).contains(&self.dynamic_threshold), || {
            format!(
                "sample.dynamic_threshold = {} is not a share of an image's values: use one such as 0.995, or 0 for \
                 plain clipping",
                self.dynamic_threshold
            )
        })?;
        for (key, value) in [("classifier_scale", self.classifier_scale), ("guidance_scale", self.guidance_scale)] {
            require(value.is_finite(), || format!("sample.{key} = {value} is not a finite number"))?;
        }
        let interval = &self.guidance_interval;
        require(interval.is_empty() || matches!(interval[..], [low, high] if low >= 0.0 && low < high), || {
            format!(
                "sample.guidance_interval = {interval:?} is not an interval of noise levels sigma/alpha: give the \
                 lower and the higher end, as in 0.2,5 or 0.2,inf"
            )
        })
    }
}
