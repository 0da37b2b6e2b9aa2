//! A network with the parameters of a checkpoint.

use super::{config_of, described, list, load_network, resolve, with_classes};
use crate::Error;
use crate::config::{Config, ConfigError};
use crate::sample::Model;
use crate::train::Task;
use ddpm_net::network::Unet;
use ddpm_net::{Device, Engine, Parameters};
use std::path::{Path, PathBuf};

/// The settings that a checkpoint carries or, where it carries none, those that its names and shapes tell of its network; and
/// what is to be said of it. `network` is the one that is meant, where a file of another program holds several; empty: the
/// average. `image_size` is the side of the images where nothing in the file tells it.
///
/// # Errors
/// What cannot be read, and a `network` for a file that holds one alone.
pub fn settings_of(path: &Path, network: &str, image_size: usize) -> Result<(toml::Table, Option<String>), Error> {
    let file = resolve(path)?;
    if let Some(config) = config_of(&file)? {
        if !network.is_empty() {
            let message = format!("{} holds only one network: leave --network out", file.display());
            return Err(ConfigError(message).into());
        }
        let own = config.to_toml().parse().map_err(|_| Error::file(&file, "carries a damaged configuration"))?;
        return Ok((own, None));
    }
    if let Some(described) = described(&file, Some(image_size))? {
        return Ok((described, None));
    }
    let (tensors, remark) = list(&file, network)?;
    let Some(architecture) = crate::info::infer(&tensors) else {
        let first = tensors.first().map_or_else(String::new, |tensor| format!(", such as `{}`,", tensor.name));
        let message = format!("its {} tensors{first} match no known network: see `ddpm-ip info`", tensors.len());
        return Err(Error::file(&file, message));
    };
    let assumed = format!(
        "{} carries no settings: what its tensors do not show is assumed (--image-size, --noise-schedule, --num-head-channels, \
         --use-new-attention-order, --variance and other flags say otherwise)",
        file.display()
    );
    let said = [remark, Some(assumed)].into_iter().flatten().collect::<Vec<_>>().join("; ");
    Ok((architecture.settings(Some(image_size)), Some(said)))
}

/// A network with the parameters of a checkpoint, loaded once for any number of calls.
pub struct Loaded {
    /// The file of the parameters.
    pub file: PathBuf,
    /// The settings that it was loaded with, and its number of classes.
    pub config: Config,
    pub(crate) task: Task,
    pub(crate) parameters: Parameters,
}

impl Loaded {
    /// Loads a parameter file, the average of a checkpoint folder, or that of a run's newest checkpoint.
    ///
    /// # Errors
    /// Settings that describe no network or another one than the checkpoint's; damaged files.
    pub fn open(checkpoint: &Path, config: &Config, device: Device) -> Result<Self, Error> {
        let file = resolve(checkpoint)?;
        let config = with_classes(config, &file)?;
        let task = Task::new(&config, device)?;
        let parameters = load_network(&file, task.layout(), &config)?;
        Ok(Self { file, config, task, parameters })
    }

    /// What it runs on.
    pub fn device(&self) -> Device {
        self.task.device()
    }

    /// Number of values over all parameters.
    pub fn parameter_count(&self) -> usize {
        self.task.parameter_count()
    }

    /// Number of its classes, if it has any.
    pub fn classes(&self) -> Option<usize> {
        self.task.network().config().num_classes
    }

    /// The network that predicts noise.
    pub(crate) fn unet(&self) -> Result<&Engine<Unet>, ConfigError> {
        self.task.unet().ok_or_else(|| {
            let message = "a classifier draws no images: give the diffusion model as --checkpoint and this file as \
                           --classifier-path";
            ConfigError(message.into())
        })
    }

    /// What answers for noised images.
    ///
    /// # Errors
    /// A classifier, which does not.
    pub fn model(&self) -> Result<Model<'_>, ConfigError> {
        Ok(Model { network: self.unet()?, parameters: &self.parameters, size: [self.config.model.image_size; 2] })
    }
}
