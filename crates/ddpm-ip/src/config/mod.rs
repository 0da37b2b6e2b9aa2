//! One configuration for everything a run depends on, in sections of plain keys.
//!
//! The keys are the reference's where it has them. A configuration is layered from TOML tables (see [`Layers`]) and
//! resolved once; what comes out is written into every run directory and checkpoint.

mod classes;
mod classifier;
mod keys;
mod layer;
mod network;
mod preset;
mod sample;
mod train;

pub use classes::ClassesConfig;
pub(crate) use classes::listed;
pub use classifier::ClassifierConfig;
pub use keys::{KEYS, Key};
pub use layer::{Layers, boolean};
pub(crate) use network::MOST_CLASSES;
pub use preset::{PRESETS, Preset};
pub use sample::{SampleConfig, SamplerKind};
pub use train::TrainConfig;

use crate::Device;
use crate::data::{Fit, Labels, OnBadImage};
use crate::diffusion::{Diffusion, Reverse};
pub use crate::ranks::Reduction;
pub use ddpm_math::{
    CORRECTION_FORMS, Corrections, LossKind, NoiseSchedule, Perturbation, Prediction, Respacing, Spacing, Strength,
    TimeSamplerKind, Variance,
};
pub use ddpm_net::Precision;
pub use ddpm_net::network::Pool;
use serde::{Deserialize, Serialize};

/// The most decoding threads.
const MOST_WORKERS: usize = 256;

/// A configuration that cannot be used, said for the person who wrote it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The network.
    pub model: ModelConfig,
    /// The classifier of noisy images.
    pub classifier: ClassifierConfig,
    /// The diffusion process and its loss.
    pub diffusion: DiffusionConfig,
    /// Input perturbation.
    pub perturbation: Perturbation,
    /// The training images.
    pub data: DataConfig,
    /// The classes of the training images.
    pub classes: ClassesConfig,
    /// The training run.
    pub train: TrainConfig,
    /// Sampling, also of the grids drawn during training.
    pub sample: SampleConfig,
    /// What is drawn and compared with real images during training.
    pub evaluation: EvaluationConfig,
}

/// Which network a configuration describes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// The ADM U-Net.
    #[default]
    Adm,
    /// The ADM U-Net that enlarges small images.
    Superres,
    /// The classifier of noisy images.
    Classifier,
    /// The network of ermongroup/ddim.
    Ddim,
}

/// The network, by the reference's flags.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Which network.
    pub arch: Arch,
    /// Side of the square images, in pixels.
    pub image_size: usize,
    /// Side of the small images that a super-resolution network enlarges, in pixels.
    pub small_size: usize,
    /// Channels of the images: 1 grey, 3 colour.
    pub in_channels: usize,
    /// Channels at multiplier 1.
    pub num_channels: usize,
    /// Residual blocks per level.
    pub num_res_blocks: usize,
    /// Channel multiplier of each level; empty for the reference's choice by image size.
    pub channel_mult: Vec<f64>,
    /// Image sizes at which attention follows each residual block.
    pub attention_resolutions: Vec<usize>,
    /// Attention heads, unless `num_head_channels` is given.
    pub num_heads: usize,
    /// Channels per head; -1 to count heads instead.
    pub num_head_channels: i64,
    /// Attention heads on the way up; -1 for `num_heads`.
    pub num_heads_upsample: i64,
    /// Dropout probability in the residual blocks.
    pub dropout: f64,
    /// Whether the network is given class labels.
    pub class_cond: bool,
    /// Number of classes of a class-conditional network; 0 to take it from the data.
    pub num_classes: usize,
    /// Whether the time embedding scales and shifts (rather than only shifts).
    pub use_scale_shift_norm: bool,
    /// Whether residual blocks resample (rather than plain layers).
    pub resblock_updown: bool,
    /// Whether plain resampling layers have a convolution.
    pub conv_resample: bool,
    /// Whether queries, keys and values are split before the heads.
    pub use_new_attention_order: bool,
    /// The type of activations and matrix products.
    pub precision: Precision,
    /// Whether nobody chose the precision: a new run then takes the device's, and one that goes on keeps its own.
    #[serde(skip)]
    pub auto_precision: bool,
    /// Whether blocks are computed again in the backward pass instead of kept.
    pub use_checkpoint: bool,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            arch: Arch::Adm,
            image_size: 64,
            small_size: 64,
            in_channels: 3,
            num_channels: 128,
            num_res_blocks: 2,
            channel_mult: Vec::new(),
            attention_resolutions: vec![16, 8],
            num_heads: 4,
            num_head_channels: -1,
            num_heads_upsample: -1,
            dropout: 0.0,
            class_cond: false,
            num_classes: 0,
            use_scale_shift_norm: true,
            resblock_updown: false,
            conv_resample: true,
            use_new_attention_order: false,
            precision: Precision::F32,
            auto_precision: false,
            use_checkpoint: false,
        }
    }
}

/// The diffusion process and its loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffusionConfig {
    /// Number of diffusion steps T.
    pub diffusion_steps: usize,
    /// How the noise grows.
    pub noise_schedule: NoiseSchedule,
    /// Timesteps kept for training ("" for all).
    pub timestep_respacing: Respacing,
    /// What the network predicts.
    pub prediction: Prediction,
    /// The variance of the reverse steps.
    pub variance: Variance,
    /// The loss.
    pub loss: LossKind,
    /// Whether the network sees times scaled to 0 … 1000.
    pub rescale_timesteps: bool,
}

impl Default for DiffusionConfig {
    fn default() -> Self {
        Self {
            diffusion_steps: 1000,
            noise_schedule: NoiseSchedule::Linear,
            timestep_respacing: Respacing::Full,
            prediction: Prediction::Epsilon,
            variance: Variance::FixedLarge,
            loss: LossKind::Mse,
            rescale_timesteps: false,
        }
    }
}

/// The training images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// `digits`, a folder of images, an npz, an IDX file or its folder.
    pub data_dir: String,
    /// Images on which a classifier is tried out during training.
    pub val_data_dir: String,
    /// Where the class labels of a folder's images come from.
    pub labels: Labels,
    /// How images of another size are brought to `image_size`.
    pub fit: Fit,
    /// Whether images smaller than `image_size` may be enlarged.
    pub allow_upscale: bool,
    /// Crop at random instead of in the centre.
    pub random_crop: bool,
    /// Mirror each image with probability 1/2.
    pub random_flip: bool,
    /// What to do with images that cannot be read.
    pub on_bad_image: OnBadImage,
    /// Turn images as their EXIF data says, which the reference ignores.
    pub exif_rotate: bool,
    /// Threads that decode ahead of the training.
    pub workers: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            data_dir: String::new(),
            val_data_dir: String::new(),
            labels: Labels::Auto,
            fit: Fit::Crop,
            allow_upscale: false,
            random_crop: false,
            random_flip: true,
            on_bad_image: OnBadImage::Fail,
            exif_rotate: false,
            workers: 1,
        }
    }
}

/// Evaluation during training, with the first average and the settings of `sample`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationConfig {
    /// Steps between evaluations, of which there is one more at the end; 0 for none at all.
    pub interval: u64,
    /// Images drawn for each.
    pub images: usize,
    /// Real images or their statistics; empty for the training images.
    pub reference: String,
    /// The feature network, as in [`crate::evaluate::Choice`]; empty for the one that fits the images.
    pub features: String,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self { interval: 0, images: 1000, reference: String::new(), features: String::new() }
    }
}

fn require(ok: bool, message: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if ok { Ok(()) } else { Err(ConfigError(message())) }
}

impl Config {
    /// Decides what nobody chose as it is in the run that goes on: the precisions, which else fit the device (bf16 on a GPU
    /// and f32 on the processor), how many checkpoints are kept, and when averages by power functions are saved, else every
    /// 64th of the steps.
    pub fn settle(&mut self, device: Device, before: Option<&Self>) {
        // What the gradient penalty differentiates is lost in fewer bits.
        let fitting =
            if device == Device::Cpu || self.train.gradient_penalty > 0.0 { Precision::F32 } else { Precision::Bf16 };
        if std::mem::take(&mut self.model.auto_precision) {
            self.model.precision = before.map_or(fitting, |before| before.model.precision);
        }
        if std::mem::take(&mut self.classifier.auto_precision) {
            self.classifier.precision = before.map_or(fitting, |before| before.classifier.precision);
        }
        if !self.train.posthoc_ema.is_empty() && self.train.posthoc_ema_interval == 0 {
            let of_steps = || self.train.last_step().unwrap_or(0).div_ceil(64);
            let known = before.map(|before| before.train.posthoc_ema_interval).filter(|&interval| interval > 0);
            self.train.posthoc_ema_interval = known.unwrap_or_else(of_steps);
        }
        if let (true, Some(before)) = (std::mem::take(&mut self.train.auto_keep), before) {
            self.train.keep_checkpoints = before.train.keep_checkpoints;
        }
    }

    /// A resolved configuration from one TOML table.
    ///
    /// # Errors
    /// Unknown keys and values of the wrong type.
    pub fn from_table(table: toml::Table) -> Result<Self, ConfigError> {
        table.try_into().map_err(|e: toml::de::Error| ConfigError(e.message().to_string()))
    }

    /// The configuration as TOML, every key present.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration is always representable as TOML")
    }

    /// The configuration from TOML text.
    ///
    /// # Errors
    /// No TOML, unknown keys and values of the wrong type.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|e| ConfigError(e.to_string().trim_end().to_string()))
    }

    /// The settings that differ from those of `before`: key, value now, value before.
    pub fn changes_from(&self, before: &Self) -> Vec<(String, String, String)> {
        let table = |c: &Self| -> toml::Table { c.to_toml().parse().unwrap_or_default() };
        let (before, now) = (table(before), table(self));
        let both = KEYS.iter().map(|k| (k.path(), &now[k.section][k.name], &before[k.section][k.name]));
        both.filter(|(_, now, before)| now != before)
            .map(|(key, now, before)| (key, now.to_string(), before.to_string()))
            .collect()
    }

    /// Checks everything that can be checked before work begins.
    ///
    /// # Errors
    /// The first setting that cannot be used, and what to write instead.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match self.model.arch {
            Arch::Classifier => drop(self.classifier_network()?),
            _ => drop(self.model.network(self.diffusion.variance)?),
        }
        self.perturbation.validate().map_err(|e| ConfigError(e.to_string()))?;
        require((1..=MOST_WORKERS).contains(&self.data.workers), || {
            format!("data.workers = {}: use 1 to {MOST_WORKERS} decoding threads", self.data.workers)
        })?;
        require(!self.data.random_crop || self.data.fit == Fit::Crop, || {
            "--random-crop does nothing with --fit pad: use one of them".into()
        })?;
        for (section, respacing, diffusion) in [
            (
                "diffusion",
                &self.diffusion.timestep_respacing,
                Diffusion::new(&self.diffusion, &self.diffusion.timestep_respacing),
            ),
            ("sample", &self.sample.timestep_respacing, Diffusion::for_sampling(&self.diffusion, &self.sample)),
        ] {
            let diffusion = diffusion.map_err(|e| {
                let key = format!("{section}.timestep_respacing");
                ConfigError(format!("{key} = \"{respacing}\": {e} (--set {key}=…)"))
            })?;
            require(
                self.diffusion.prediction != Prediction::Epsilon || !diffusion.schedule.ends_in_pure_noise(),
                || {
                    format!(
                        "the {} noise schedule over {} steps ends in pure noise, where the image cannot be computed from a \
                     predicted epsilon: use more --diffusion-steps, --noise-schedule cosine or --prediction x-start",
                        self.diffusion.noise_schedule, self.diffusion.diffusion_steps
                    )
                },
            )?;
        }
        require(self.evaluation.images > 1, || {
            format!("evaluation.images = {}: a distribution needs at least 2", self.evaluation.images)
        })?;
        require(self.evaluation.interval == 0 || matches!(self.model.arch, Arch::Adm | Arch::Ddim), || {
            "--evaluation-interval is for networks that draw whole images: --arch adm or ddim".into()
        })?;
        let penalised = self.train.gradient_penalty > 0.0;
        require(!penalised || self.model.arch != Arch::Classifier, || {
            "--gradient-penalty is for networks that predict noise, not for classifiers".into()
        })?;
        require(!penalised || self.model.precision == Precision::F32, || {
            format!(
                "--gradient-penalty needs --precision f32: it takes the difference of two outputs that are nearly the same, \
                 which is mostly rounding in {}",
                self.model.precision.name()
            )
        })?;
        require(
            self.train.label_dropout == 0.0 || self.model.class_cond && self.model.arch != Arch::Classifier,
            || "--label-dropout is for networks with classes: add --class-cond, or leave it out".into(),
        )?;
        self.train.validate()?;
        self.sample.validate()?;
        self.validate_sampler()
    }

    /// Checks that all timesteps at which the network is to be used are among those that `diffusion.timestep_respacing` has
    /// kept for its training.
    ///
    /// # Errors
    /// Others, with what would do.
    pub fn check_timesteps(&self) -> Result<(), ConfigError> {
        let kept = &self.diffusion.timestep_respacing;
        let trained = Diffusion::new(&self.diffusion, kept)?.schedule;
        if trained.len() == self.diffusion.diffusion_steps {
            return Ok(());
        }
        let schedule = Diffusion::for_sampling(&self.diffusion, &self.sample)?.schedule;
        let stages = Reverse::new(&self.sample).rule.stages(&schedule, schedule.len() - 1);
        let is_trained = |time: f64| trained.times.iter().any(|t| (t - time).abs() < 1e-9);
        if stages.iter().all(|stage| is_trained(stage.level.time)) {
            return Ok(());
        }
        Err(ConfigError(format!(
            "the network was trained at only {} of {} timesteps (--timestep-respacing {kept}), but this would use it \
             at others: use --timestep-respacing {kept} here, too, or --untrained-timesteps to use them anyway",
            trained.len(),
            self.diffusion.diffusion_steps
        )))
    }

    /// Checks that the network knows images without class, from which classifier-free guidance leads away.
    ///
    /// # Errors
    /// Another network, with what would do.
    pub(crate) fn check_guidance(&self, settings: &SampleConfig) -> Result<(), ConfigError> {
        let scale = settings.guidance_scale;
        require(self.model.class_cond, || {
            format!(
                "--guidance-scale {scale} guides towards classes, but the network has none: for autoguidance, name a \
                 weaker network with --guide-with CHECKPOINT"
            )
        })?;
        require(self.train.label_dropout > 0.0, || {
            format!(
                "--guidance-scale {scale} needs a network that was also trained without labels, but by its settings \
                 this one was not: train it with --label-dropout 0.1, or name a weaker network with --guide-with \
                 CHECKPOINT. If another program trained it with label dropout, add --set train.label_dropout=0.1"
            )
        })
    }

    /// Checks that the sampler and its corrections work with the network and the process.
    fn validate_sampler(&self) -> Result<(), ConfigError> {
        let (sample, prediction) = (&self.sample, self.diffusion.prediction);
        let schedule = Diffusion::for_sampling(&self.diffusion, sample)?.schedule;
        let reverse = Reverse::new(sample);
        require(sample.sampler != SamplerKind::Heun || !schedule.ends_in_pure_noise(), || {
            "the heun sampler cannot begin at pure noise, where sigma/alpha is infinite: use another --sampler, or more \
             --diffusion-steps"
                .into()
        })?;
        require(
            prediction != Prediction::PreviousX || !(sample.sampler == SamplerKind::Heun && sample.churn > 0.0),
            || {
                "--churn calls the network between timesteps, which is not possible with --prediction previous-x: \
                 use --churn 0"
                    .into()
            },
        )?;
        let checked = reverse.corrections.check(reverse.rule, prediction, &schedule, self.model.image_size);
        checked.map_err(|e| ConfigError(e.to_string()))
    }
}
