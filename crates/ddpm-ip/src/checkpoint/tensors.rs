//! The safetensors files of a checkpoint.

use super::Progress;
use crate::Error;
use crate::config::Config;
use crate::file::write_atomic;
use crate::torch::{self, TorchFile};
use ddpm_formats::safetensors::{self, Safetensors, Tensor, TensorInfo};
use ddpm_net::{Layout, Parameters, Spec};
use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Keys of the files' entries of text.
const CONFIG: &str = "ddpm_ip.config";
const PROGRESS: &str = "ddpm_ip.progress";

/// Saves lists of parameters, the names of each list after its prefix.
pub(super) fn save(
    path: &Path,
    lists: &[(&str, &Parameters)],
    config: &Config,
    progress: Option<&Progress>,
) -> Result<(), Error> {
    let mut text = BTreeMap::from([(CONFIG, config.to_toml())]);
    if let Some(progress) = progress {
        let json = serde_json::to_string(progress).map_err(|e| Error::file(path, e.to_string()))?;
        text.insert(PROGRESS, json);
    }
    let named = |prefix: &str, (spec, values)| -> Tensor {
        let spec: &Spec = spec;
        (format!("{prefix}{}", spec.name), &spec.shape, values)
    };
    let mut tensors: Vec<Tensor> =
        lists.iter().flat_map(|(prefix, list)| list.iter().map(move |entry| named(prefix, entry))).collect();
    write_atomic(path, |w| safetensors::write(w, &mut tensors, &text))
}

/// Opens a file of a checkpoint. Of one in a run the message says how to go on without it.
fn open(path: &Path) -> Result<Safetensors, Error> {
    let in_run = path.parent().and_then(Path::file_name).is_some_and(|f| f.to_string_lossy().starts_with("step_"));
    Safetensors::open(path).map_err(|error| match error.into() {
        Error::File { path, message } if in_run => {
            Error::File { path, message: format!("{message}; to go on from an older one, remove its step_ folder") }
        }
        other => other,
    })
}

/// The configuration that a checkpoint file carries, if it is one of this program's.
///
/// # Errors
/// A damaged file.
pub(super) fn config_of(path: &Path) -> Result<Option<Config>, Error> {
    let file = open(path)?;
    let Some(toml) = file.text(CONFIG) else { return Ok(None) };
    Config::from_toml(toml).map(Some).map_err(|e| Error::file(path, format!("its configuration is damaged: {e}")))
}

pub(super) fn progress_of(path: &Path) -> Result<Progress, Error> {
    let file = open(path)?;
    let json = file.text(PROGRESS).ok_or_else(|| Error::file(path, "holds no training state"))?;
    serde_json::from_str(json).map_err(|e| Error::file(path, format!("its training state is damaged: {e}")))
}

/// What a file holds, in the order of its bytes.
///
/// # Errors
/// A damaged file.
pub(super) fn list(path: &Path) -> Result<Vec<TensorInfo>, Error> {
    Ok(open(path)?.tensors())
}

/// Loads the parameters whose names begin with `prefix`, tensor by tensor into their place.
///
/// # Errors
/// A damaged file, or one of another architecture: the message names the first tensor that differs and both shapes.
pub(super) fn load_for(path: &Path, layout: &Arc<Layout>, prefix: &str) -> Result<Parameters, Error> {
    let mut file = open(path)?;
    let held = file.tensors().into_iter().map(|t| (t.name, t.shape)).collect::<Vec<_>>();
    check(path, layout.specs(), prefix, &held)?;
    let mut parameters = Parameters::zeros(layout);
    for (place, spec) in layout.specs().iter().enumerate() {
        let name = format!("{prefix}{}", spec.name);
        let values = finite(path, &name, file.floats(&name)?)?;
        parameters.get_mut(place).copy_from_slice(&values);
    }
    Ok(parameters)
}

/// Parameters from the content of a file that is called `path` in messages.
///
/// # Errors
/// Damage, missing tensors.
pub(crate) fn load_bytes(bytes: &[u8], path: &Path, layout: &Arc<Layout>) -> Result<Parameters, Error> {
    let mut file = Safetensors::read(Cursor::new(bytes), bytes.len() as u64, path)?;
    let mut values = Vec::with_capacity(layout.len());
    for spec in layout.specs() {
        values.extend(finite(path, &spec.name, file.floats(&spec.name)?)?);
    }
    Ok(Parameters::new(Arc::clone(layout), values))
}

/// Whether a file's tensors, names and shapes, are a network's.
pub(super) fn check(path: &Path, specs: &[Spec], prefix: &str, held: &[(String, Vec<usize>)]) -> Result<(), Error> {
    let other = |message: String| {
        Error::file(
            path,
            format!("is of another architecture: {message}. Check the network flags against `ddpm-ip info`"),
        )
    };
    let shapes: HashMap<&str, &[usize]> = held.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    for spec in specs {
        let name = format!("{prefix}{}", spec.name);
        match shapes.get(name.as_str()) {
            None => return Err(other(format!("it has no tensor `{name}` (shape {:?})", spec.shape))),
            Some(shape) if *shape != spec.shape => {
                return Err(other(format!("`{name}` has shape {shape:?}, the network needs {:?}", spec.shape)));
            }
            Some(_) => {}
        }
    }
    let known: std::collections::HashSet<_> = specs.iter().map(|s| s.name.as_str()).collect();
    match held.iter().find(|(name, _)| prefix.is_empty() && !known.contains(name.as_str())) {
        Some((name, _)) => Err(other(format!("the network has no place for its tensor `{name}`"))),
        None => Ok(()),
    }
}

/// Values that are numbers.
pub(super) fn finite(path: &Path, name: &str, values: Vec<f32>) -> Result<Vec<f32>, Error> {
    if values.iter().all(|v| v.is_finite()) {
        return Ok(values);
    }
    Err(Error::file(path, format!("`{name}` holds values that are not finite: take another checkpoint")))
}

/// Tensors of a file that are asked for by name, whatever else it holds.
pub(crate) struct Tensors {
    path: PathBuf,
    held: Held,
}

enum Held {
    Safetensors(Safetensors),
    Torch(TorchFile, HashMap<String, torch::Tensor>),
}

impl Tensors {
    /// Opens a safetensors file or one of PyTorch's.
    ///
    /// # Errors
    /// A file that is missing, damaged or of another kind.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let held = if TorchFile::is_one(path) {
            let file = TorchFile::open(path)?;
            let tensors = file.parameters()?.into_iter().collect();
            Held::Torch(file, tensors)
        } else {
            Held::Safetensors(Safetensors::open(path)?)
        };
        Ok(Self { path: path.to_path_buf(), held })
    }

    /// The numbers of a tensor of this name and shape.
    ///
    /// # Errors
    /// A file that has none, or damage.
    pub(crate) fn floats(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let path = &self.path;
        let other = |found: Option<&[usize]>| {
            let has = found.map_or("has no such tensor".into(), |found| format!("has shape {found:?}"));
            let message = format!("is of another network: `{name}` of shape {shape:?} is needed, the file {has}");
            Error::file(path, message)
        };
        let values = match &mut self.held {
            Held::Torch(file, tensors) => match tensors.get(name) {
                Some(tensor) if tensor.shape() == shape => file.floats(tensor)?,
                found => return Err(other(found.map(torch::Tensor::shape))),
            },
            Held::Safetensors(file) => match file.shape(name) {
                Some(found) if found == shape => file.floats(name)?,
                found => return Err(other(found)),
            },
        };
        finite(path, name, values)
    }
}
