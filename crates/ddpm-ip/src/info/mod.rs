//! What a file, data set or run is.

mod architecture;

pub use architecture::{Architecture, infer};

use crate::Error;
use crate::checkpoint::{self, Store, TensorInfo};
use crate::config::{Config, ConfigError};
use crate::data::{Dataset, contact_sheet as sheet};
use crate::file;
use crate::torch::TorchFile;
use crate::train::open_data;
use ddpm_formats::diffusers::weights_in;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::path::Path;

/// A description, for people (`Display`) and programs (`Serialize`).
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Report {
    /// A file of parameters.
    Checkpoint {
        /// The file described.
        path: String,
        /// Number of tensors.
        tensors: usize,
        /// Number of values in them.
        parameters: usize,
        /// What names and shapes tell.
        architecture: Option<Architecture>,
        /// The configuration the file carries, if any.
        config: Option<Box<Config>>,
        /// The settings that diffusers' files beside it describe, if they are there.
        described: Option<toml::Table>,
        /// Every tensor: name, shape, number type.
        shapes: Vec<(String, Vec<usize>, String)>,
        /// Which network this is, where the file holds several.
        remark: Option<String>,
    },
    /// Training images.
    Data {
        /// What it is.
        source: String,
        /// Number of images.
        images: usize,
        /// Side of an image as the network would get it.
        image_size: usize,
        /// Its channels.
        channels: usize,
        /// Images per class: name (or number) and count; empty without labels.
        classes: Vec<(String, usize)>,
        /// What is to be known of them before they are used.
        remarks: Vec<String>,
    },
    /// A run directory.
    Run {
        /// The directory.
        path: String,
        /// Steps of the checkpoints kept, oldest first.
        checkpoints: Vec<u64>,
        /// Steps done at the newest one.
        step: u64,
        /// Images seen at the newest one.
        images: u64,
        /// Training time at the newest one, in seconds.
        elapsed_secs: f64,
        /// The run's configuration.
        config: Option<Box<Config>>,
    },
}

/// Describes a checkpoint file or folder, a run directory, or else a data set as `config` would load it; a size or number
/// of channels of 0 stands for the images' own.
///
/// # Errors
/// What does not exist, is damaged or cannot be loaded as images.
pub fn describe(what: &str, config: &Config) -> Result<Report, Error> {
    let path = Path::new(what);
    if path.is_dir()
        && let Some((_, newest)) = Store::new(path).newest()?
    {
        return describe_run(path, &newest);
    }
    let is_named = |endings: &[&str]| path.extension().is_some_and(|e| endings.iter().any(|ending| e == *ending));
    if is_named(&["safetensors", "pt", "pth", "ckpt", "bin"]) || (path.is_file() && TorchFile::is_one(path)) {
        return describe_checkpoint(path, &config.sample.network);
    }
    if path.is_dir() && (path.join("model.safetensors").exists() || weights_in(path).is_some()) {
        return describe_checkpoint(&checkpoint::resolve(path)?, "");
    }
    describe_data(what, config)
}

fn describe_run(path: &Path, newest: &Path) -> Result<Report, Error> {
    let progress = checkpoint::progress(newest)?;
    Ok(Report::Run {
        path: path.display().to_string(),
        checkpoints: Store::new(path).all()?.into_iter().map(|(step, _)| step).collect(),
        step: progress.step,
        images: progress.images,
        elapsed_secs: progress.elapsed_secs,
        config: checkpoint::config_of(&checkpoint::resolve(newest)?)?.map(Box::new),
    })
}

fn describe_checkpoint(path: &Path, network: &str) -> Result<Report, Error> {
    if !path.exists() {
        return Err(Error::file(path, "there is no such file"));
    }
    let (tensors, remark) = checkpoint::list(path, network)?;
    let config = checkpoint::config_of(path)?.map(Box::new);
    Ok(Report::Checkpoint {
        path: path.display().to_string(),
        tensors: tensors.len(),
        parameters: tensors.iter().map(|t| t.shape.iter().product::<usize>()).sum(),
        architecture: infer(&tensors),
        described: if config.is_none() { checkpoint::described(path, None)? } else { None },
        config,
        remark,
        shapes: tensors.into_iter().map(|TensorInfo { name, shape, dtype }| (name, shape, dtype)).collect(),
    })
}

/// `config` for a data set, with the images' own size and channels where it says 0.
fn data_config(what: &str, config: &Config) -> Result<Config, Error> {
    let mut config = config.clone();
    config.data.data_dir = what.to_string();
    let model = &mut config.model;
    if model.image_size == 0 || model.in_channels == 0 {
        let [height, width, channels] = Dataset::own_shape(what, config.data.exif_rotate)?;
        model.image_size = if model.image_size == 0 { height.min(width) } else { model.image_size };
        model.in_channels = if model.in_channels == 0 { channels } else { model.in_channels };
    }
    Ok(config)
}

fn describe_data(what: &str, config: &Config) -> Result<Report, Error> {
    let config = &data_config(what, config)?;
    let data = open_data(config)?;
    let mut counts = BTreeMap::<u32, usize>::new();
    for &label in data.labels().unwrap_or_default() {
        *counts.entry(label).or_default() += 1;
    }
    let name = |label: u32| data.class_names().get(label as usize).cloned().unwrap_or_else(|| label.to_string());
    let classes = counts.into_iter().map(|(label, count)| (name(label), count)).collect();
    Ok(Report::Data {
        source: data.describe(),
        images: data.len(),
        image_size: config.model.image_size,
        channels: config.model.in_channels,
        classes,
        remarks: data.remarks()?,
    })
}

/// Writes a PNG of the first `count` images of a data set as `config` would load it.
///
/// # Errors
/// Images that cannot be loaded, failing writes.
pub fn contact_sheet(what: &str, config: &Config, out: &Path, count: usize) -> Result<(), Error> {
    let real = |path: &Path| path.canonicalize().ok();
    if real(out).zip(real(Path::new(what))).is_some_and(|(out, data)| out.starts_with(data)) {
        let message = format!("{} is one of the files of {what} and would be lost: name another file", out.display());
        return Err(ConfigError(message).into());
    }
    file::check_kind(out, "PNG", file::PNG)?;
    let config = &data_config(what, config)?;
    let data = open_data(config)?;
    let count = count.min(data.len());
    let images = (0..count).map(|i| data.image(i)).collect::<Result<Vec<_>, _>>()?.concat();
    sheet(&images, count, config.model.image_size, config.model.in_channels).save(out)
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Checkpoint { path, tensors, parameters, architecture, config, described, shapes, remark } => {
                writeln!(f, "checkpoint {path}\n{parameters} parameters in {tensors} tensors\n")?;
                if let Some(remark) = remark {
                    writeln!(f, "{remark}\n")?;
                }
                let width = shapes.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
                for (name, shape, dtype) in shapes {
                    writeln!(f, "  {name:width$}  {dtype}  {shape:?}")?;
                }
                match architecture {
                    Some(a) => writeln!(f, "\nFrom names and shapes:\n{a}")?,
                    None => writeln!(f, "\nIts tensor names match no known network.")?,
                }
                if let Some(classes) = config.as_ref().and_then(|config| config.classes.describe()) {
                    writeln!(f, "\nclasses: {classes}")?;
                }
                match (config, described) {
                    (Some(config), _) => write!(f, "\nIt carries its configuration:\n\n{}", config.to_toml()),
                    (None, Some(described)) => write!(
                        f,
                        "\nIt is a UNet2DModel of diffusers, here with the reference's names. The files beside it give these \
                         settings:\n\n{described}"
                    ),
                    (None, None) => {
                        write!(f, "\nIt carries no configuration: give the network flags to the commands that use it.")
                    }
                }
            }
            Self::Data { source, images, image_size, channels, classes, remarks } => {
                write!(f, "{source}\n{images} images, as {image_size}x{image_size} with {channels} channel(s)")?;
                if classes.is_empty() {
                    write!(f, ", without labels")?;
                } else {
                    write!(f, ", {} classes:", classes.len())?;
                    classes.iter().try_for_each(|(name, count)| write!(f, "\n  {name}: {count}"))?;
                }
                remarks.iter().try_for_each(|remark| write!(f, "\n{remark}"))
            }
            Self::Run { path, checkpoints, step, images, elapsed_secs, config } => {
                writeln!(f, "run {path}\n{step} steps, {images} images, {elapsed_secs:.0} s of training")?;
                writeln!(f, "checkpoints at {checkpoints:?}")?;
                if let Some(classes) = config.as_ref().and_then(|config| config.classes.describe()) {
                    writeln!(f, "classes: {classes}")?;
                }
                match config {
                    Some(config) => write!(f, "\n{}", config.to_toml()),
                    None => Ok(()),
                }
            }
        }
    }
}
