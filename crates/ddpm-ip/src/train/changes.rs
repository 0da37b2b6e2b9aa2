//! What a run that is there and what would be trained have not in common.

use super::Task;
use crate::checkpoint::{self, Store};
use crate::config::{Arch, Config, ConfigError};
use crate::file::quoted;
use crate::{Device, Error};
use std::path::Path;

/// Settings that do not change what a network learns from a step.
const HARMLESS: [&str; 15] = [
    "train.steps",
    "train.duration",
    "train.init_from",
    "train.resume_checkpoint",
    "train.shard_optimizer",
    "train.log_interval",
    "train.eval_interval",
    "data.val_data_dir",
    "train.save_interval",
    "train.keep_checkpoints",
    "train.posthoc_ema_interval",
    "train.grid_interval",
    "train.grid_images",
    "data.workers",
    "data.on_bad_image",
];

/// Which settings differ from those a checkpoint was made with, in words.
pub(super) fn changes(before: &Config, config: &Config) -> Vec<String> {
    // Runs of older programs have not kept their classes.
    let kept = |key: &str, before: &str| !key.starts_with("classes.") || before != "[]";
    let matter = |key: &str| !HARMLESS.contains(&key) && !key.starts_with("sample.") && !key.starts_with("evaluation.");
    let changes = config.changes_from(before).into_iter().filter(|(key, _, before)| matter(key) && kept(key, before));
    changes.map(|(key, now, before)| format!("{key} is {now} now; the checkpoint was made with {before}")).collect()
}

/// In what a run that is there differs from what would be trained, in words; nothing where there is none.
pub(crate) fn changes_of_run(dir: &Path, config: &Config, device: Device) -> Result<Vec<String>, Error> {
    let Some((step, folder)) = Store::new(dir).newest()? else { return Ok(Vec::new()) };
    let Some(before) = checkpoint::config_of(&checkpoint::resolve(&folder)?)? else { return Ok(Vec::new()) };
    let mut config = config.clone();
    config.settle(device, Some(&before));
    let mut all = changes(&before, &config);
    if let Some(last) = config.train.last_step().filter(|last| *last < step) {
        all.push(format!("training ends at step {last} now; the checkpoint is of step {step}"));
    }
    Ok(all)
}

/// Refuses to begin where a run is that began elsewhere.
pub(super) fn check_beginning(config: &Config, before: &Config, dir: &Path, step: u64) -> Result<(), ConfigError> {
    let (now, then) = (&config.train, &before.train);
    for (flag, now, then) in [
        ("--resume-checkpoint", &now.resume_checkpoint, &then.resume_checkpoint),
        ("--init-from", &now.init_from, &then.init_from),
    ] {
        if !now.is_empty() && now != then {
            return Err(ConfigError(format!(
                "{} holds a run at step {step}, but {flag} starts another: choose another --out",
                dir.display()
            )));
        }
    }
    Ok(())
}

/// The command that goes on with a run.
pub(super) fn command(run: &Config, dir: &Path) -> String {
    let name = match run.model.arch {
        Arch::Classifier => "classifier-train",
        Arch::Superres => "super-res-train",
        Arch::Adm | Arch::Ddim => "train",
    };
    let (settings, dir) = (dir.join("config.toml").display().to_string(), dir.display().to_string());
    format!("ddpm-ip {name} --config {} --out {}", quoted(&settings), quoted(&dir))
}

/// Why a checkpoint cannot be gone on from, where that is because the run is of another network.
pub(super) fn another_run(error: Error, dir: &Path, step: u64, before: &Config, now: &Task) -> Error {
    let Error::File { message, .. } = &error else { return error };
    let is_other = Task::new(before, Device::default()).is_ok_and(|task| task.specs() != now.specs());
    if !is_other {
        return error;
    }
    let (model, data) = (&before.model, &before.data.data_dir);
    let what = match model.arch {
        Arch::Classifier => "a classifier",
        Arch::Superres => "a super-resolution network",
        Arch::Adm | Arch::Ddim => "a network",
    };
    let message = format!(
        "holds a run of another network at step {step}: {what} for images of {0}x{0} pixels with {1} channel(s), \
         trained on {data}. `{2}` resumes it; choose another --out to train this one. (Its checkpoint {message})",
        model.image_size,
        model.in_channels,
        command(before, dir)
    );
    Error::file(dir, message)
}
