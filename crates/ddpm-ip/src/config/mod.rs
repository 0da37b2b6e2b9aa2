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

pub use classes::ClassesConfig;
pub(crate) use classes::listed;
pub use classifier::ClassifierConfig;
pub use keys::{KEYS, Key};
pub use layer::{Layers, boolean};
pub(crate) use network::MOST_CLASSES;
pub use preset::{PRESETS, Preset};

use crate::Device;
use crate::data::{Fit, Labels, OnBadImage};
use crate::diffusion::{Diffusion, Reverse};
pub use crate::ranks::Reduction;
use ddpm_math::posthoc;
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

/// The training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer steps to train for; 0 for no limit.
    pub steps: u64,
    /// Time to train for, evaluations not counted, such as "20m" or "1h 30m"; "" for no limit.
    pub duration: String,
    /// A checkpoint whose parameters a new run begins with.
    pub init_from: String,
    /// The reference's `model*.pt` from which a new run goes on, with the averages and the optimizer beside it.
    pub resume_checkpoint: String,
    /// Images per optimizer step.
    pub batch_size: usize,
    /// Images per forward pass, accumulated to `batch_size`; -1 for the whole batch.
    pub microbatch: i64,
    /// In which order processes that share the run add up a step's gradient.
    pub reduction: Reduction,
    /// Whether each of several processes keeps moments and averages of a part of the parameters alone, and updates that part.
    pub shard_optimizer: bool,
    /// Learning rate.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay rates of AdamW's moments.
    pub adam_betas: [f64; 2],
    /// AdamW's ε.
    pub adam_eps: f64,
    /// Steps over which the learning rate rises from 0.
    pub lr_warmup_steps: u64,
    /// Steps over which the learning rate falls to 0, which ends the run; 0 for a constant rate.
    pub lr_anneal_steps: u64,
    /// Rates of the weight averages.
    pub ema_rate: Vec<f64>,
    /// Whether averages follow the parameters more closely at first, so that they do not hold the random beginning: after
    /// n updates at a rate of at most (1 + n) / (10 + n), as TensorFlow's `ExponentialMovingAverage` with `num_updates`.
    pub ema_warmup: bool,
    /// Lengths σ_rel of averages by power functions, from which averages of other lengths can be made afterwards; none, or two
    /// and more.
    pub posthoc_ema: Vec<f64>,
    /// Steps between savings of these averages; 0 for a 64th of the steps.
    pub posthoc_ema_interval: u64,
    /// Largest norm of the gradient; 0 for no limit.
    pub grad_clip: f64,
    /// λ of the gradient penalty λ·E‖∂f/∂x v‖² over random directions v, an ablation; 0 for none.
    pub gradient_penalty: f64,
    /// Probability that a network with classes is not told an image's class: what classifier-free guidance needs.
    pub label_dropout: f64,
    /// What log₂ of the loss scale grows by with every step, in f16.
    pub fp16_scale_growth: f64,
    /// How timesteps are drawn.
    pub schedule_sampler: TimeSamplerKind,
    /// Seed of everything random.
    pub seed: u64,
    /// Steps between lines in the logs.
    pub log_interval: u64,
    /// Steps between trials of a classifier on the images of `data.val_data_dir`.
    pub eval_interval: u64,
    /// Steps between checkpoints; 0 for the last alone.
    pub save_interval: u64,
    /// Checkpoints kept, newest first; 0 for all.
    pub keep_checkpoints: usize,
    /// Whether nobody chose how many are kept: a run that goes on then keeps as many as it did.
    #[serde(skip)]
    pub auto_keep: bool,
    /// Steps between sample grids; 0 for the last alone.
    pub grid_interval: u64,
    /// Images in a sample grid; 0 for no grids.
    pub grid_images: usize,
    /// Steps of `UniPC` with which grids are drawn; 0 for the settings of `sample`.
    pub grid_steps: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 0,
            duration: String::new(),
            init_from: String::new(),
            resume_checkpoint: String::new(),
            batch_size: 1,
            microbatch: -1,
            reduction: Reduction::Exact,
            shard_optimizer: false,
            lr: 1e-4,
            weight_decay: 0.0,
            adam_betas: [0.9, 0.999],
            adam_eps: 1e-8,
            lr_warmup_steps: 0,
            lr_anneal_steps: 0,
            ema_rate: vec![0.9999],
            ema_warmup: false,
            posthoc_ema: Vec::new(),
            posthoc_ema_interval: 0,
            grad_clip: 0.0,
            gradient_penalty: 0.0,
            label_dropout: 0.0,
            fp16_scale_growth: 1e-3,
            schedule_sampler: TimeSamplerKind::Uniform,
            seed: 0,
            log_interval: 100,
            eval_interval: 5,
            save_interval: 10_000,
            keep_checkpoints: 3,
            auto_keep: false,
            grid_interval: 10_000,
            grid_images: 64,
            grid_steps: 0,
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
            let diffusion =
                diffusion.map_err(|e| ConfigError(format!("{section}.timestep_respacing = \"{respacing}\": {e}")))?;
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

impl TrainConfig {
    /// The time limit, if any.
    ///
    /// # Errors
    /// Text that is no duration.
    pub fn time_limit(&self) -> Result<Option<std::time::Duration>, ConfigError> {
        if self.duration.is_empty() {
            return Ok(None);
        }
        humantime::parse_duration(&self.duration).map(Some).map_err(|e| {
            ConfigError(format!(
                "train.duration = {:?} is not a duration ({e}): write it like 90s, 20m or 2h",
                self.duration
            ))
        })
    }

    /// The step at which training ends, if steps decide.
    pub fn last_step(&self) -> Option<u64> {
        [self.steps, self.lr_anneal_steps].into_iter().filter(|&n| n > 0).min()
    }

    /// Images per forward pass.
    pub fn microbatch_size(&self) -> usize {
        usize::try_from(self.microbatch).ok().filter(|&n| n > 0).map_or(self.batch_size, |n| n.min(self.batch_size))
    }

    fn validate(&self) -> Result<(), ConfigError> {
        require(self.time_limit()?.is_none_or(|limit| !limit.is_zero()), || {
            format!("train.duration = {:?} leaves no time to train", self.duration)
        })?;
        require(self.init_from.is_empty() || self.resume_checkpoint.is_empty(), || {
            "--init-from starts a new run and --resume-checkpoint resumes one: use only one of them".into()
        })?;
        require(self.microbatch == -1 || self.microbatch > 0, || {
            format!(
                "train.microbatch = {} is not a number of images: give 1 or more, or -1 for the whole batch",
                self.microbatch
            )
        })?;
        require(self.batch_size > 0, || "train.batch_size is 0: give at least 1 image per step".into())?;
        let positive = |key: &str, v: f64| {
            require(v.is_finite() && v > 0.0, || format!("train.{key} = {v} is not a positive number"))
        };
        let not_negative = |key: &str, v: f64| {
            require(v.is_finite() && v >= 0.0, || format!("train.{key} = {v} is negative or not a number"))
        };
        positive("lr", self.lr)?;
        positive("adam_eps", self.adam_eps)?;
        not_negative("weight_decay", self.weight_decay)?;
        not_negative("grad_clip", self.grad_clip)?;
        not_negative("gradient_penalty", self.gradient_penalty)?;
        not_negative("fp16_scale_growth", self.fp16_scale_growth)?;
        require((0.0..1.0).contains(&self.label_dropout), || {
            format!("train.label_dropout = {} is not a probability below 1: use one such as 0.1", self.label_dropout)
        })?;
        for rate in self.ema_rate.iter().chain(&self.adam_betas) {
            require((0.0..1.0).contains(rate), || {
                format!("a decay rate of {rate} (train.ema_rate or train.adam_betas) is outside [0, 1)")
            })?;
        }
        let mut rates = self.ema_rate.clone();
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        require(rates.len() == self.ema_rate.len(), || "train.ema_rate names the same rate twice".into())?;
        let lengths = &self.posthoc_ema;
        require(lengths.iter().all(|&length| length > 0.0 && length <= posthoc::LONGEST), || {
            format!(
                "train.posthoc_ema = {lengths:?}: lengths are shares of the training above 0 and up to {:.4}, such as 0.05,0.1",
                posthoc::LONGEST
            )
        })?;
        let differ = lengths.iter().enumerate().all(|(i, length)| !lengths[..i].contains(length));
        require(lengths.len() != 1 && differ, || {
            format!("train.posthoc_ema = {lengths:?}: give two lengths or more that differ, such as 0.05,0.1")
        })?;
        require(lengths.is_empty() || self.posthoc_ema_interval > 0 || self.last_step().is_some(), || {
            "--posthoc-ema saves its EMAs every 64th of the steps, but --steps is not given: add \
             --posthoc-ema-interval STEPS"
                .into()
        })?;
        require(self.eval_interval > 0, || "train.eval_interval is 0: give the steps between evaluations".into())?;
        require(self.log_interval > 0, || "train.log_interval is 0: give the steps between log lines".into())
    }
}

impl SampleConfig {
    fn validate(&self) -> Result<(), ConfigError> {
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
