//! From one kind of checkpoint to another.

use crate::checkpoint::{self, Loaded, Store, Trio, write_model, write_trio};
use crate::config::{Config, ConfigError};
use crate::event::{Emit, Event};
use crate::train::Task;
use crate::{Error, torch};
use ddpm_net::Device;
use std::path::{Path, PathBuf};

/// Whether a path ends in one of these.
fn ends(path: &Path, endings: &[&str]) -> bool {
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| endings.contains(&e))
}

/// Converts a checkpoint; returns what was written. By the ending of `output`:
///
/// - `.pt` or `.pth`: the parameters as `torch.save(model.state_dict())` writes them, with the reference's names;
/// - `.safetensors`: the parameters with `config`;
/// - a folder, from a run or checkpoint folder: the reference's `model*.pt`, `ema_*.pt` and `opt*.pt`;
/// - a folder, from the reference's `model*.pt`: a run directory that goes on from it and the files beside it.
///
/// # Errors
/// Settings that describe another network, damaged files, failing reads or writes, an output that exists.
pub fn convert(input: &Path, output: &Path, config: &Config, emit: &mut Emit) -> Result<Vec<PathBuf>, Error> {
    check_new(output)?;
    if ends(output, &["pt", "pth", "safetensors"]) {
        let Loaded { parameters, config, .. } = Loaded::open(input, config, Device::default())?;
        if ends(output, &["safetensors"]) {
            checkpoint::write_parameters(output, &parameters, &config)?;
        } else {
            write_model(output, &parameters)?;
        }
        return Ok(vec![output.to_path_buf()]);
    }
    if output.extension().is_some() && !output.is_dir() {
        let message = format!(
            "{} is not a known kind of checkpoint: end it in .safetensors, .pt or .pth, or name a folder",
            output.display()
        );
        return Err(ConfigError(message).into());
    }
    let described =
        checkpoint::resolve(input).is_ok_and(|file| matches!(checkpoint::described(&file, None), Ok(Some(_))));
    if described {
        let message = format!("{} holds only a network: end OUT in .safetensors, .pt or .pth", input.display());
        return Err(ConfigError(message).into());
    }
    if input.is_file() && torch::TorchFile::is_one(input) {
        return to_run(input, output, config, emit);
    }
    if input.is_file() {
        let message = format!(
            "{} holds only parameters: end OUT in .pt, or name a run or checkpoint folder to write model, EMAs and \
             optimizer",
            input.display()
        );
        return Err(ConfigError(message).into());
    }
    let folder = match Store::new(input).newest()? {
        Some((_, newest)) => newest,
        None => input.to_path_buf(),
    };
    let file = checkpoint::resolve(&folder)?;
    let config = checkpoint::with_classes(config, &file)?;
    let task = Task::new(&config, Device::default())?;
    let (state, fresh) = Store::load(&folder, task.layout(), &config.train)?;
    if let Some(rate) = fresh.first() {
        return Err(Error::file(&folder, format!("has no EMA of rate {rate}, which its settings name")));
    }
    if state.progress.time_sampler.is_some() {
        emit(Event::Warning(
            "the reference's files have no place for the time sampler's history: it is left out".into(),
        ));
    }
    if !state.posthoc.is_empty() {
        emit(Event::Warning(
            "the reference's files have no place for the EMAs of --posthoc-ema: they are left out".into(),
        ));
    }
    write_trio(output, &state, &config.train)
}

fn check_new(output: &Path) -> Result<(), ConfigError> {
    let message = || format!("{} exists: choose another name or remove it", output.display());
    if output.exists() && !output.is_dir() { Err(ConfigError(message())) } else { Ok(()) }
}

/// Writes the parameters that sampling would take, a run's first average, in half precision: a file of half the size that
/// commands read as one in f32. Returns its path.
///
/// # Errors
/// As [`convert`], and a name that does not end in `.safetensors`.
pub fn to_half(input: &Path, output: &Path, config: &Config, _: &mut Emit) -> Result<Vec<PathBuf>, Error> {
    check_new(output)?;
    if !ends(output, &["safetensors"]) {
        return Err(ConfigError(format!("{}: with --to f16, end OUT in .safetensors", output.display())).into());
    }
    let Loaded { parameters, config, .. } = Loaded::open(input, config, Device::default())?;
    checkpoint::write_half(output, &parameters, &config, None)?;
    Ok(vec![output.to_path_buf()])
}

/// Writes the parameters that sampling would take, a run's first average, as a folder that diffusers'
/// `DDPMPipeline.from_pretrained` loads; returns its files.
///
/// # Errors
/// As [`convert`]; a network or process that diffusers has no place for.
pub fn to_diffusers(input: &Path, output: &Path, config: &Config, emit: &mut Emit) -> Result<Vec<PathBuf>, Error> {
    let Loaded { parameters, config, .. } = Loaded::open(input, config, Device::default())?;
    let written = checkpoint::write_pipeline(output, &parameters, &config)?;
    if config.model.class_cond {
        emit(Event::Warning(
            "DDPMPipeline gives its network no classes: call the network itself, as in unet(x, t, class_labels=y)"
                .into(),
        ));
    }
    Ok(written)
}

/// A run directory that goes on from the reference's files.
fn to_run(model: &Path, output: &Path, config: &Config, emit: &mut Emit) -> Result<Vec<PathBuf>, Error> {
    let store = Store::new(output);
    if store.newest()?.is_some() {
        return Err(ConfigError(format!("{} holds a run already: choose another folder", output.display())).into());
    }
    let config = checkpoint::with_classes(config, model)?;
    let task = Task::new(&config, Device::default())?;
    let (rates, batch_size) = (&config.train.ema_rate, config.train.batch_size);
    let (state, remarks) = Trio::new(model)?.load(task.layout(), rates, batch_size)?;
    for remark in remarks {
        emit(Event::Warning(remark));
    }
    Ok(vec![store.save(&state, &config)?])
}
