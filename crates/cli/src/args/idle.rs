//! Flags that were written and do nothing beside the others.

use super::given;
use clap::ArgMatches;
use ddpm_ip::config::{Arch, Config, Key, Precision, Strength};
use std::path::Path;

/// A key, when it does nothing, and what it is for.
type Idle = (&'static str, fn(&Config) -> bool, &'static str);

const IDLE: &[Idle] = &[
    ("model.num_classes", |c| !c.model.class_cond, "networks with classes (--class-cond true)"),
    ("model.small_size", |c| c.model.arch != Arch::Superres, "super-resolution (super-res-train)"),
    ("model.num_heads", |c| c.model.num_head_channels > 0, "networks without --num-head-channels"),
    ("perturbation.gamma_start", |c| !varies(c), "--perturbation-strength linear and cosine"),
    ("perturbation.cutoff", |c| !varies(c), "--perturbation-strength linear and cosine"),
    ("perturbation.decay_steps", |c| c.perturbation.strength != Strength::Decay, "--perturbation-strength decay"),
    ("perturbation.probability", |c| c.perturbation.strength != Strength::Switched, "--perturbation-strength switched"),
    ("data.val_data_dir", |c| c.model.arch != Arch::Classifier, "classifiers (classifier-train)"),
    ("train.eval_interval", |c| c.data.val_data_dir.is_empty(), "evaluations of a classifier on --val-data-dir"),
    ("data.labels", has_own_labels, "folders of images, and this data carries its own labels"),
    ("model.precision", |c| c.model.precision == Precision::Bf16x3 && !ddpm_ip::has_tiles(), TILES),
    ("classifier.precision", |c| c.classifier.precision == Precision::Bf16x3 && !ddpm_ip::has_tiles(), TILES),
    ("train.fp16_scale_growth", |c| c.model.precision != Precision::F16, "--precision f16"),
    ("train.ema_warmup", |c| c.train.ema_rate.is_empty(), "runs with EMAs (--ema-rate)"),
    ("train.posthoc_ema_interval", |c| c.train.posthoc_ema.is_empty(), "--posthoc-ema"),
    ("train.grid_interval", |c| c.train.grid_images == 0, "grids (--grid-images)"),
    ("train.grid_steps", |c| c.train.grid_images == 0, "grids (--grid-images)"),
    ("evaluation.images", |c| c.evaluation.interval == 0, "--evaluation-interval"),
    ("evaluation.reference", |c| c.evaluation.interval == 0, "--evaluation-interval"),
    ("evaluation.features", |c| c.evaluation.interval == 0, "--evaluation-interval"),
    ("sample.guidance_interval", |c| c.sample.guidance_scale == 1.0, "--guidance-scale"),
    ("sample.churn_min", |c| c.sample.churn == 0.0, "--churn"),
    ("sample.churn_max", |c| c.sample.churn == 0.0, "--churn"),
];

const TILES: &str = "CPUs with AMX, as bf16x3; others compute in f32";

/// Whether γ varies with t.
fn varies(config: &Config) -> bool {
    matches!(config.perturbation.strength, Strength::Linear | Strength::Cosine)
}

fn has_own_labels(config: &Config) -> bool {
    let data = config.data.data_dir.as_str();
    data == "digits" || Path::new(data).is_file()
}

/// What is to be said of such flags among those of `keys`: those that were written with another value than their default.
pub(super) fn remarks(keys: &[&Key], matches: &ArgMatches, config: &Config) -> Vec<String> {
    let changed = config.changes_from(&Config::default());
    let idle = |key: &&&Key| {
        let path = key.path();
        let (_, is_idle, purpose) = IDLE.iter().find(|(idle, ..)| *idle == path)?;
        let is_written = given(matches, &path).is_some() && changed.iter().any(|(changed, ..)| *changed == path);
        (is_written && is_idle(config)).then(|| format!("--{} does nothing here: it is for {purpose}", key.flag()))
    };
    keys.iter().filter_map(|key| idle(&key)).collect()
}
