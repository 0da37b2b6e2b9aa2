//! Which file a path means.

use super::{MODEL, Store, config_of, ema_name};
use crate::Error;
use crate::file::{folder_of, missing, quoted};
use std::path::{Path, PathBuf};

/// What parameters are read of.
const CHECKPOINTS: &str =
    "name a run directory, a checkpoint folder, a folder of diffusers, a .safetensors or a .pt file";

/// The parameter file meant by a path: a file itself, a checkpoint folder, or a run directory, whose newest checkpoint
/// is taken. Folders give the first average of the run's configuration, or the network itself where there is none. Of diffusers'
/// folders it is the network's parameters.
///
/// # Errors
/// A path that does not exist or holds no checkpoint.
pub fn resolve(path: &Path) -> Result<PathBuf, Error> {
    const OTHERS: [&str; 10] = ["npz", "npy", "png", "jpg", "jpeg", "toml", "json", "csv", "txt", "onnx"];
    if path.is_file() && path.to_string_lossy().ends_with(".safetensors.index.json") {
        let shards = one_of_shards(&folder_of(path).to_string_lossy());
        return Err(Error::file(path, format!("is the index of shards. {shards}")));
    }
    if path.is_file() {
        let ending = path.extension().and_then(|ending| ending.to_str()).filter(|ending| OTHERS.contains(ending));
        return ending.map_or(Ok(path.to_path_buf()), |ending| {
            let message = format!("is a .{ending} file, not a checkpoint: {CHECKPOINTS}");
            Err(Error::file(path, message))
        });
    }
    if !path.exists() {
        return Err(Error::file(path, missing(path)));
    }
    if !path.is_dir() {
        return Err(Error::file(path, format!("is not a regular file: {CHECKPOINTS}")));
    }
    let folder = match Store::new(path).newest()? {
        Some((_, newest)) => newest,
        None => path.to_path_buf(),
    };
    let model = folder.join(MODEL);
    if !model.exists()
        && let Some(weights) = ddpm_formats::diffusers::weights_in(&folder)
    {
        return Ok(weights);
    }
    if !model.exists() {
        return Err(Error::file(path, format!("holds no checkpoint: {}", instead_of_checkpoint(&folder)?)));
    }
    let rate = config_of(&model)?.and_then(|config| config.train.ema_rate.first().copied());
    let average = rate.map(|rate| folder.join(ema_name(rate))).filter(|path| path.exists());
    Ok(average.unwrap_or(model))
}

/// What to do with a folder that other programs call a checkpoint.
fn instead_of_checkpoint(folder: &Path) -> Result<String, Error> {
    let files = ddpm_formats::folder::list(folder, |_| true)?;
    let shown = quoted(&folder.to_string_lossy());
    let ends = |file: &&PathBuf, ending: &str| file.to_string_lossy().ends_with(ending);
    if files.iter().any(|file| ends(&file, ".distcp")) {
        return Ok(format!(
            "it is in parts (torch.distributed.checkpoint, as FSDP and Lightning write it). Make it one file with `python -m \
             torch.distributed.checkpoint.format_utils dcp_to_torch {shown} model.pt`"
        ));
    }
    if files.iter().any(|file| ends(&file, "zero_to_fp32.py")) {
        return Ok(format!(
            "it is DeepSpeed's. Make it one file with `python {shown}/zero_to_fp32.py {shown} model.pt`"
        ));
    }
    if files.iter().any(|file| ends(&file, ".safetensors.index.json")) {
        return Ok(format!("it is in shards. {}", one_of_shards(&folder.to_string_lossy())));
    }
    let known =
        |file: &&PathBuf| [".safetensors", ".pt", ".pth", ".ckpt", ".bin"].iter().any(|ending| ends(file, ending));
    let found: Vec<String> = files.iter().filter(known).map(|file| quoted(&file.to_string_lossy())).collect();
    Ok(if found.is_empty() { CHECKPOINTS.into() } else { format!("name one of its files: {}", found.join(", ")) })
}

/// How shards become one file.
fn one_of_shards(folder: &str) -> String {
    format!(
        "Make it one file with Python: `import glob; from safetensors.torch import load_file, save_file; save_file({{k: v for f \
         in glob.glob('{folder}/*.safetensors') for k, v in load_file(f).items()}}, 'model.safetensors')`"
    )
}
