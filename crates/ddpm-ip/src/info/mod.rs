//! What a file, data set or run is.

mod architecture;

pub use architecture::{Architecture, infer};

use crate::Error;
use crate::checkpoint::{self, Store, TensorInfo};
use crate::config::Config;
use crate::data::contact_sheet as sheet;
use crate::train::open_data;
use serde::Serialize;
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
        /// Every tensor: name, shape, number type.
        shapes: Vec<(String, Vec<usize>, String)>,
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

/// Describes a checkpoint file or folder, a run directory, or else a data set as `config` would load it.
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
    let is_checkpoint = |p: &Path| p.extension().is_some_and(|e| e == "safetensors");
    if is_checkpoint(path) {
        return describe_checkpoint(path);
    }
    if path.is_dir() && path.join("model.safetensors").exists() {
        return describe_checkpoint(&checkpoint::resolve(path)?);
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

fn describe_checkpoint(path: &Path) -> Result<Report, Error> {
    if !path.exists() {
        return Err(Error::file(path, "there is no such file"));
    }
    let tensors = checkpoint::list(path)?;
    Ok(Report::Checkpoint {
        path: path.display().to_string(),
        tensors: tensors.len(),
        parameters: tensors.iter().map(|t| t.shape.iter().product::<usize>()).sum(),
        architecture: infer(&tensors),
        config: checkpoint::config_of(path)?.map(Box::new),
        shapes: tensors.into_iter().map(|TensorInfo { name, shape, dtype }| (name, shape, dtype)).collect(),
    })
}

fn data_config(what: &str, config: &Config) -> Config {
    let mut config = config.clone();
    config.data.data_dir = what.to_string();
    config
}

fn describe_data(what: &str, config: &Config) -> Result<Report, Error> {
    let data = open_data(&data_config(what, config))?;
    let names = data.class_names();
    let mut classes: Vec<(String, usize)> = names.iter().map(|n| (n.clone(), 0)).collect();
    for &label in data.labels().unwrap_or_default() {
        let label = label as usize;
        for i in classes.len()..=label {
            classes.push((i.to_string(), 0));
        }
        classes[label].1 += 1;
    }
    Ok(Report::Data {
        source: data.describe(),
        images: data.len(),
        image_size: config.model.image_size,
        channels: config.model.in_channels,
        classes,
    })
}

/// Writes a PNG of the first `count` images of a data set as `config` would load it.
///
/// # Errors
/// Images that cannot be loaded, failing writes.
pub fn contact_sheet(what: &str, config: &Config, out: &Path, count: usize) -> Result<(), Error> {
    let data = open_data(&data_config(what, config))?;
    let count = count.min(data.len());
    let images = (0..count).map(|i| data.image(i)).collect::<Result<Vec<_>, _>>()?.concat();
    sheet(&images, count, config.model.image_size, config.model.in_channels).save(out)
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Checkpoint { path, tensors, parameters, architecture, config, shapes } => {
                writeln!(f, "checkpoint {path}\n{parameters} parameters in {tensors} tensors\n")?;
                let width = shapes.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
                for (name, shape, dtype) in shapes {
                    writeln!(f, "  {name:width$}  {dtype}  {shape:?}")?;
                }
                match architecture {
                    Some(a) => writeln!(f, "\nFrom names and shapes:\n{a}")?,
                    None => writeln!(f, "\nIts names are not those of an ADM U-Net.")?,
                }
                match config {
                    Some(config) => write!(f, "\nIt carries its configuration:\n\n{}", config.to_toml()),
                    None => write!(f, "\nIt carries no configuration: give the network flags where it is used."),
                }
            }
            Self::Data { source, images, image_size, channels, classes } => {
                write!(f, "{source}\n{images} images, as {image_size}x{image_size} with {channels} channel(s)")?;
                if classes.is_empty() {
                    return write!(f, ", without labels");
                }
                write!(f, ", {} classes:", classes.len())?;
                classes.iter().try_for_each(|(name, count)| write!(f, "\n  {name}: {count}"))
            }
            Self::Run { path, checkpoints, step, images, elapsed_secs, config } => {
                writeln!(f, "run {path}\n{step} steps, {images} images, {elapsed_secs:.0} s of training")?;
                writeln!(f, "checkpoints at {checkpoints:?}")?;
                match config {
                    Some(config) => write!(f, "\n{}", config.to_toml()),
                    None => Ok(()),
                }
            }
        }
    }
}
