//! The safetensors files of a checkpoint.

use super::Progress;
use crate::Error;
use crate::config::Config;
use crate::file::write_atomic;
use crate::torch::{self, TorchFile};
use ddpm_net::{Layout, Parameters, Spec};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorView};
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Keys of the file's text entries.
const CONFIG: &str = "ddpm_ip.config";
const PROGRESS: &str = "ddpm_ip.progress";

/// The largest header that the format allows.
const MOST_HEADER: u64 = 100_000_000;

/// Saves lists of parameters, the names of each list after its prefix.
pub(super) fn save(
    path: &Path,
    lists: &[(&str, &Parameters)],
    config: &Config,
    progress: Option<&Progress>,
) -> Result<(), Error> {
    save_as(path, lists, config, progress, Dtype::F32)
}

/// The same in f32 or f16. What is beyond the range of f16 becomes the largest number that it has.
pub(super) fn save_as(
    path: &Path,
    lists: &[(&str, &Parameters)],
    config: &Config,
    progress: Option<&Progress>,
    dtype: Dtype,
) -> Result<(), Error> {
    let mut text = HashMap::from([(CONFIG.to_string(), config.to_toml())]);
    if let Some(progress) = progress {
        let json = serde_json::to_string(progress).map_err(|e| Error::file(path, e.to_string()))?;
        text.insert(PROGRESS.to_string(), json);
    }
    let mut tensors: Vec<(String, &Spec, &[f32])> = lists
        .iter()
        .flat_map(|(prefix, list)| {
            list.iter().map(move |(spec, values)| (format!("{prefix}{}", spec.name), spec, values))
        })
        .collect();
    // The format's own order.
    tensors.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    let mut end = 0;
    let info = tensors.iter().map(|(name, spec, values)| {
        let data_offsets = (end, end + values.len() * dtype.bitsize() / 8);
        end = data_offsets.1;
        (name.clone(), safetensors::tensor::TensorInfo { dtype, shape: spec.shape.clone(), data_offsets })
    });
    let metadata = Metadata::new(Some(text), info.collect()).map_err(|e| Error::file(path, e.to_string()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| Error::file(path, e.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    write_atomic(path, |w| {
        w.write_all(&(header.len() as u64).to_le_bytes())?;
        w.write_all(&header)?;
        tensors.iter().try_for_each(|(.., values)| match dtype {
            Dtype::F16 => write_halves(w, values),
            _ => write_values(w, values),
        })
    })
}

/// Writes values as little-endian bytes.
fn write_values(w: &mut dyn Write, values: &[f32]) -> std::io::Result<()> {
    if cfg!(target_endian = "little") {
        return w.write_all(bytemuck::cast_slice(values));
    }
    values.iter().try_for_each(|v| w.write_all(&v.to_le_bytes()))
}

/// Writes values as f16.
fn write_halves(w: &mut dyn Write, values: &[f32]) -> std::io::Result<()> {
    const MOST: f32 = 65504.0;
    let half = |v: &f32| half::f16::from_f32(v.clamp(-MOST, MOST)).to_le_bytes();
    values.chunks(1 << 16).try_for_each(|values| w.write_all(&values.iter().flat_map(half).collect::<Vec<_>>()))
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::file(
        path,
        format!(
            "not a whole safetensors file ({what}): copy it again, or remove its step_ folder to go on from an older one"
        ),
    )
}

/// Reads the file's description without its numbers.
fn metadata(path: &Path) -> Result<Metadata, Error> {
    let file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let mut prefix = [0; 8];
    (&file).read_exact(&mut prefix).map_err(|e| damaged(path, e))?;
    let header = u64::from_le_bytes(prefix);
    if header > length - 8 || header > MOST_HEADER {
        return Err(damaged(path, "its header is longer than the file"));
    }
    let mut bytes = Vec::new();
    file.take(header).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    let parsed: Metadata = serde_json::from_slice(&bytes).map_err(|e| damaged(path, e))?;
    let tensors =
        parsed.offset_keys().into_iter().filter_map(|name| parsed.info(&name).cloned().map(|info| (name, info)));
    // Only the constructor checks offsets against shapes.
    let metadata = Metadata::new(parsed.metadata().clone(), tensors.collect()).map_err(|e| damaged(path, e))?;
    if 8 + header + metadata.data_len() as u64 != length {
        return Err(damaged(path, format!("{length} bytes, {} expected", 8 + header + metadata.data_len() as u64)));
    }
    Ok(metadata)
}

fn text(path: &Path, key: &str) -> Result<Option<String>, Error> {
    Ok(metadata(path)?.metadata().as_ref().and_then(|m| m.get(key).cloned()))
}

/// The configuration that a checkpoint file carries, if it is one of this program's.
///
/// # Errors
/// A damaged file.
pub(super) fn config_of(path: &Path) -> Result<Option<Config>, Error> {
    let Some(toml) = text(path, CONFIG)? else { return Ok(None) };
    Config::from_toml(&toml).map(Some).map_err(|e| Error::file(path, format!("its configuration is damaged: {e}")))
}

pub(super) fn progress_of(path: &Path) -> Result<Progress, Error> {
    let json = text(path, PROGRESS)?.ok_or_else(|| Error::file(path, "holds no training state"))?;
    serde_json::from_str(&json).map_err(|e| Error::file(path, format!("its training state is damaged: {e}")))
}

/// Name, shape and number type of one tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Number type as the format spells it, such as `F32`.
    pub dtype: String,
}

/// What a file holds, in the order of its bytes.
///
/// # Errors
/// A damaged file.
pub(super) fn list(path: &Path) -> Result<Vec<TensorInfo>, Error> {
    let metadata = metadata(path)?;
    Ok(metadata
        .offset_keys()
        .into_iter()
        .filter_map(|name| {
            let info = metadata.info(&name)?;
            Some(TensorInfo { shape: info.shape.clone(), dtype: format!("{:?}", info.dtype), name })
        })
        .collect())
}

/// A tensor's numbers as float32, if they are of a type that holds such.
fn floats(view: &TensorView) -> Option<Vec<f32>> {
    let pairs = || view.data().chunks_exact(2).map(|b| [b[0], b[1]]);
    Some(match view.dtype() {
        Dtype::F32 => view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => pairs().map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => pairs().map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        _ => return None,
    })
}

/// Loads the parameters whose names begin with `prefix`, tensor by tensor into their place.
///
/// # Errors
/// A damaged file, or one of another architecture: the message names the first tensor that differs and both shapes.
pub(super) fn load_for(path: &Path, layout: &Arc<Layout>, prefix: &str) -> Result<Parameters, Error> {
    let metadata = metadata(path)?;
    let held = list(path)?.into_iter().map(|t| (t.name, t.shape)).collect::<Vec<_>>();
    check(path, layout.specs(), prefix, &held)?;
    let mut file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let begin = length - metadata.data_len() as u64;
    let mut parameters = Parameters::zeros(layout);
    let mut bytes = Vec::new();
    for (place, spec) in layout.specs().iter().enumerate() {
        let name = format!("{prefix}{}", spec.name);
        let info = metadata.info(&name).ok_or_else(|| damaged(path, format!("`{name}` is gone")))?;
        let (from, to) = info.data_offsets;
        bytes.resize(to - from, 0);
        file.seek(SeekFrom::Start(begin + from as u64)).map_err(Error::io("read", path))?;
        file.read_exact(&mut bytes).map_err(Error::io("read", path))?;
        let view = TensorView::new(info.dtype, info.shape.clone(), &bytes).map_err(|e| damaged(path, e))?;
        let values = finite(path, &name, floats(&view).ok_or_else(|| unread(path, &name, info.dtype))?)?;
        parameters.get_mut(place).copy_from_slice(&values);
    }
    Ok(parameters)
}

/// Numbers of a type that is not read.
fn unread(path: &Path, name: &str, dtype: Dtype) -> Error {
    Error::file(path, format!("`{name}` is {dtype:?}; only F32, F16 and BF16 are read"))
}

/// Parameters from the content of a file that is called `path` in messages.
///
/// # Errors
/// Damage, missing tensors.
pub(crate) fn load_bytes(bytes: &[u8], path: &Path, layout: &Arc<Layout>) -> Result<Parameters, Error> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| damaged(path, e))?;
    let mut values = Vec::with_capacity(layout.len());
    for spec in layout.specs() {
        let view = file.tensor(&spec.name).map_err(|e| damaged(path, e))?;
        let found = floats(&view).ok_or_else(|| unread(path, &spec.name, view.dtype()))?;
        values.extend(finite(path, &spec.name, found)?);
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
    Safetensors { metadata: Metadata, numbers: Vec<u8> },
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
            let metadata = metadata(path)?;
            let mut numbers = std::fs::read(path).map_err(Error::io("read", path))?;
            numbers.drain(..numbers.len() - metadata.data_len());
            Held::Safetensors { metadata, numbers }
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
            Held::Safetensors { metadata, numbers } => match metadata.info(name) {
                Some(info) if info.shape == shape => {
                    let (from, to) = info.data_offsets;
                    let view = TensorView::new(info.dtype, info.shape.clone(), &numbers[from..to])
                        .map_err(|e| damaged(path, e))?;
                    floats(&view).ok_or_else(|| unread(path, name, info.dtype))?
                }
                found => return Err(other(found.map(|info| info.shape.as_slice()))),
            },
        };
        finite(path, name, values)
    }
}
