//! Settings of a training run.

use super::{ConfigError, Reduction, TimeSamplerKind, require};
use ddpm_math::posthoc;
use serde::{Deserialize, Serialize};

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

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
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
