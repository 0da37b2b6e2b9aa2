//! Hugging Face's diffusers: the `UNet2DModel` of a folder, alone or in a pipeline, and the process of its scheduler.
//!
//! `UNet2DModel` describes many networks. Two of them are networks of others under other names, exactly:
//!
//! | | [`Reference::Ddim`] | [`Reference::Adm`] |
//! | --- | --- | --- |
//! | `flip_sin_to_cos`, `freq_shift` | false, 1 | true, 0 |
//! | `norm_eps` | 1e-6 | 1e-5 |
//! | `downsample_padding` | 0 | 1 |
//! | `attention_head_dim` | null: one head | null or a number |
//! | `resnet_time_scale_shift` | `default` | `default`, or `scale_shift` with `attn_norm_num_groups` 32 |
//! | resampling | convolutions | convolutions or residual blocks |
//! | `num_class_embeds` | null | null or a number |
//!
//! Keys that diffusers does not know are passed over, as it does.

mod names;
mod process;
mod settings;
mod unet;

pub use names::Renamed;
pub use process::{Process, ProcessVariance};
pub use unet::{Reference, Unet};

use crate::Result;
use serde_json::{Value, json};
use settings::settings;
use std::path::{Path, PathBuf};

/// A network's settings.
pub const CONFIG: &str = "config.json";
/// What a pipeline consists of.
pub const PIPELINE: &str = "model_index.json";
/// A scheduler's settings.
pub const SCHEDULER: &str = "scheduler_config.json";
/// A network's parameters.
pub const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
/// The same as `torch.save` writes them.
const WEIGHTS_OF_TORCH: &str = "diffusion_pytorch_model.bin";

/// A parameter that every network has, and those of others have not.
pub const MARK: &str = "time_embedding.linear_1.weight";

/// The version whose files these are.
const VERSION: &str = "0.42.1";
/// The class of networks that are read.
const UNET: &str = "UNet2DModel";

/// The file of parameters that a folder means: a network's, a pipeline's, or one that diffusers' training scripts save, with
/// an average (`unet_ema`) before the network itself. None if it is none of these.
pub fn weights_in(folder: &Path) -> Option<PathBuf> {
    let candidates = [folder.to_path_buf(), folder.join("unet_ema"), folder.join("unet")];
    let files = candidates.iter().filter(|folder| folder.join(CONFIG).is_file());
    files.flat_map(|folder| [folder.join(WEIGHTS), folder.join(WEIGHTS_OF_TORCH)]).find(|file| file.is_file())
}

/// The network that the `config.json` beside a file of parameters describes; none if there is none that is diffusers'.
///
/// # Errors
/// One that describes a network that is not supported: the message names the key, its value, and what is. Damage, where the
/// file is named as diffusers names its own.
pub fn unet_of(weights: &Path) -> Result<Option<Unet>> {
    let path = weights.with_file_name(CONFIG);
    let name = weights.file_name().unwrap_or_default().to_string_lossy();
    match settings(&path) {
        Ok(Some(settings)) if settings.map.contains_key("_class_name") => Unet::from_settings(&settings).map(Some),
        Err(error) if name.starts_with("diffusion_pytorch_model") => Err(error),
        _ => Ok(None),
    }
}

/// The process that the scheduler beside a file of parameters describes, or the one of its pipeline; none if there is none.
///
/// # Errors
/// One that is not supported: the message names the key, its value, and what is. Damage.
pub fn process_of(weights: &Path) -> Result<Option<Process>> {
    let beside = weights.with_file_name(SCHEDULER);
    let folder = weights.parent().unwrap_or(Path::new(""));
    // A folder without a name is where one is, or leads upwards.
    let pipeline = match folder.file_name() {
        Some(_) => folder.parent().unwrap_or(Path::new("")).to_path_buf(),
        None => folder.join(".."),
    };
    let of_pipeline = pipeline.join("scheduler").join(SCHEDULER);
    for path in [beside, of_pipeline] {
        if let Some(settings) = settings(&path)? {
            return Process::from_settings(&settings).map(Some);
        }
    }
    Ok(None)
}

/// The content of the `model_index.json` of a pipeline of a `UNet2DModel` and a `DDPMScheduler`.
pub fn pipeline() -> Value {
    json!({
        "_class_name": "DDPMPipeline",
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", UNET],
    })
}

#[cfg(test)]
mod tests;
