//! The safetensors files of a checkpoint.

use super::Progress;
use crate::Error;
use crate::config::Config;
use crate::file::write_atomic;
use crate::torch::{self, TorchFile};
use ddpm_formats::diffusers::{self, Renamed, Unet};
use ddpm_formats::networks;
use ddpm_formats::safetensors::{self, Safetensors, Tensor, TensorInfo, Width};
use ddpm_net::{Layout, Parameters, Spec};
use std::collections::{BTreeMap, HashMap, HashSet};
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
    save_as(path, lists, config, progress, Width::Single)
}

/// The same in f32 or f16.
pub(super) fn save_as(
    path: &Path,
    lists: &[(&str, &Parameters)],
    config: &Config,
    progress: Option<&Progress>,
    width: Width,
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
    write_atomic(path, |w| safetensors::write(w, &mut tensors, &text, width))
}

/// Opens a file of a checkpoint. Of one in a run the message says how to go on without it.
fn open(path: &Path) -> Result<Safetensors, Error> {
    let in_run = path.parent().and_then(Path::file_name).is_some_and(|f| f.to_string_lossy().starts_with("step_"));
    Safetensors::open(path).map_err(|error| match error.into() {
        Error::File { path, message } if in_run => Error::File {
            path,
            message: format!("{message}; to resume from an older checkpoint, remove its step_ folder"),
        },
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

/// Loads the parameters whose names begin with `prefix`, tensor by tensor into their place.
///
/// # Errors
/// A damaged file, or one of another architecture: the message names the first tensor that differs and both shapes.
pub(super) fn load_for(path: &Path, layout: &Arc<Layout>, prefix: &str) -> Result<Parameters, Error> {
    let mut file = open(path)?;
    let held = file.tensors();
    let held: Vec<_> = held.iter().map(|info| (info.name.as_str(), info.shape.as_slice())).collect();
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
pub(super) fn check(path: &Path, specs: &[Spec], prefix: &str, held: &[(&str, &[usize])]) -> Result<(), Error> {
    let other = |message: String| {
        Error::file(
            path,
            format!("is of another architecture: {message}. Check the network flags against `ddpm-ip info`"),
        )
    };
    let shapes: HashMap<&str, &[usize]> = held.iter().copied().collect();
    let needed: HashSet<String> = specs.iter().map(|spec| format!("{prefix}{}", spec.name)).collect();
    for spec in specs {
        let name = format!("{prefix}{}", spec.name);
        match shapes.get(name.as_str()) {
            None => {
                let left = held.iter().map(|(name, _)| *name).filter(|held| !needed.contains(*held));
                let nearest = nearest(&name, left)
                    .map(|nearest| format!("; the nearest that it has is `{nearest}` (shape {:?})", shapes[nearest]));
                let nearest = nearest.unwrap_or_default();
                return Err(other(format!("it has no tensor `{name}` (shape {:?}){nearest}", spec.shape)));
            }
            Some(shape) if *shape != spec.shape => {
                return Err(other(format!("`{name}` has shape {shape:?}, but the network needs {:?}", spec.shape)));
            }
            Some(_) => {}
        }
    }
    match held.iter().find(|(name, _)| prefix.is_empty() && !needed.contains(*name)) {
        Some((name, _)) => {
            let nearest = nearest(name, needed.iter().map(String::as_str));
            let nearest = nearest.map(|nearest| format!("; the network's nearest is `{nearest}`")).unwrap_or_default();
            Err(other(format!("the network has no place for its tensor `{name}`{nearest}")))
        }
        None => Ok(()),
    }
}

/// The name that is spelled most like another; of several the first in order.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names.min_by_key(|other| (strsim::osa_distance(name, other), *other))
}

/// Values that are numbers.
pub(super) fn finite(path: &Path, name: &str, values: Vec<f32>) -> Result<Vec<f32>, Error> {
    if values.iter().all(|v| v.is_finite()) {
        return Ok(values);
    }
    Err(Error::file(path, format!("`{name}` holds values that are not finite: use another checkpoint")))
}

/// The tensors of a network in a file of any program.
pub(crate) struct Tensors {
    path: PathBuf,
    held: Held,
    /// The network's tensors, and what each is in the file.
    chosen: Vec<(TensorInfo, Place)>,
    /// Names of the file's networks, and which was taken.
    networks: Vec<String>,
    taken: usize,
}

enum Held {
    Safetensors(Safetensors),
    Torch(TorchFile),
}

#[derive(Clone)]
enum Place {
    Name(String),
    Torch(torch::Tensor),
    /// The tensors that are its rows, in turn.
    Rows(Vec<Place>),
}

impl Tensors {
    /// Opens a safetensors file or one of PyTorch's. Of several networks it takes the one that is named, or else the first
    /// that `fits`, averages before others.
    ///
    /// # Errors
    /// A file that is missing, damaged or of another kind; a name that it has not.
    pub(crate) fn open(path: &Path, network: &str, fits: &dyn Fn(&[TensorInfo]) -> bool) -> Result<Self, Error> {
        let (held, found) = if TorchFile::is_one(path) {
            let file = TorchFile::open(path)?;
            let place = |(name, tensor): (String, torch::Tensor)| {
                let (shape, dtype) = (tensor.shape().to_vec(), format!("{:?}", tensor.dtype()).to_uppercase());
                (TensorInfo { name, shape, dtype }, Place::Torch(tensor))
            };
            let networks = file.networks()?.into_iter();
            let found = networks.map(|n| (n.name, n.tensors.into_iter().map(place).collect())).collect();
            (Held::Torch(file), found)
        } else {
            let file = open(path)?;
            let tensors = file.tensors().into_iter();
            let found: Vec<(String, Vec<_>)> = if file.text(CONFIG).is_some() {
                // One of this program's.
                vec![(String::new(), tensors.map(|info| (info.clone(), Place::Name(info.name))).collect())]
            } else {
                let place = |(name, info): (String, TensorInfo)| {
                    let place = Place::Name(info.name.clone());
                    (TensorInfo { name, ..info }, place)
                };
                let networks = networks::split("", tensors.map(|info| (info.name.clone(), info)).collect()).into_iter();
                networks.map(|n| (n.name, n.tensors.into_iter().map(place).collect())).collect()
            };
            (Held::Safetensors(file), found)
        };
        let is_own = matches!(&held, Held::Safetensors(file) if file.text(CONFIG).is_some());
        let found = match diffusers::unet_of(path) {
            Ok(Some(unet)) if !is_own => found
                .into_iter()
                .map(|(name, tensors)| Ok((name, under_names_of_reference(path, &unet, tensors)?)))
                .collect::<Result<_, Error>>()?,
            Err(error) if !is_own => return Err(error.into()),
            _ => found,
        };
        if found.iter().flat_map(|(_, tensors)| tensors).any(|(info, _)| info.name == diffusers::MARK) {
            let config = path.with_file_name(diffusers::CONFIG);
            let message =
                format!("has the tensor names of diffusers, and diffusers' {} is needed beside it", config.display());
            return Err(Error::file(path, message));
        }
        let names: Vec<String> = found.iter().map(|(name, _)| name.clone()).collect();
        let is_one = |(_, tensors): &(String, Vec<(TensorInfo, Place)>)| {
            fits(&tensors.iter().map(|(info, _)| info.clone()).collect::<Vec<_>>())
        };
        let taken = match (network, &held) {
            ("", _) => found.iter().position(is_one).unwrap_or(0),
            // A run that began with a network of a file remembers its name.
            (_, Held::Safetensors(file)) if file.text(CONFIG).is_some() => 0,
            (wanted, _) => names.iter().position(|name| name == wanted).ok_or_else(|| {
                let held: Vec<&str> = names.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
                let message = if held.is_empty() {
                    "holds only one network: leave --network out".into()
                } else {
                    format!("has no network `{wanted}`: it holds {}", held.join(", "))
                };
                Error::file(path, message)
            })?,
        };
        let tensors = found.into_iter().nth(taken).map(|(_, tensors)| tensors).unwrap_or_default();
        Ok(Self { path: path.to_path_buf(), held, chosen: tensors, networks: names, taken })
    }

    /// What the network's tensors are, in the file's order.
    pub(crate) fn list(&self) -> Vec<TensorInfo> {
        self.chosen.iter().map(|(info, _)| info.clone()).collect()
    }

    /// Which network was taken, where the file holds several.
    pub(super) fn remark(&self) -> Option<String> {
        let called = |name: &str| if name.is_empty() { "all tensors together".into() } else { format!("`{name}`") };
        let others = self.networks.iter().enumerate().filter(|(i, name)| *i != self.taken && !name.is_empty());
        let others: Vec<String> = others.map(|(_, name)| format!("`{name}`")).collect();
        (!others.is_empty()).then(|| {
            format!(
                "{} holds several networks: {} is used; --network chooses another ({})",
                self.path.display(),
                called(&self.networks[self.taken]),
                others.join(", ")
            )
        })
    }

    /// All parameters of a layout.
    ///
    /// # Errors
    /// Damage, or another architecture: the message names the first tensor that differs and both shapes.
    pub(super) fn load(&mut self, layout: &Arc<Layout>) -> Result<Parameters, Error> {
        let held: Vec<_> = self.chosen.iter().map(|(info, _)| (info.name.as_str(), info.shape.as_slice())).collect();
        check(&self.path, layout.specs(), "", &held)?;
        let mut parameters = Parameters::zeros(layout);
        for (place, spec) in layout.specs().iter().enumerate() {
            parameters.get_mut(place).copy_from_slice(&self.floats(&spec.name, &spec.shape)?);
        }
        Ok(parameters)
    }

    /// The numbers of a tensor of this name and shape.
    ///
    /// # Errors
    /// A file that has none, or damage.
    pub(crate) fn floats(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let path = &self.path;
        let found = self.chosen.iter().find(|(info, _)| info.name == name);
        let Some((_, place)) = found.filter(|(info, _)| info.shape == shape) else {
            let has = found.map_or("has no such tensor".into(), |(info, _)| format!("has shape {:?}", info.shape));
            let message = format!("is of another network: `{name}` of shape {shape:?} is needed, the file {has}");
            return Err(Error::file(path, message));
        };
        let values = self.held.floats(place)?;
        finite(path, name, values)
    }
}

impl Held {
    fn floats(&mut self, place: &Place) -> Result<Vec<f32>, Error> {
        Ok(match (self, place) {
            (Self::Torch(file), Place::Torch(tensor)) => file.floats(tensor)?,
            (Self::Safetensors(file), Place::Name(name)) => file.floats(name)?,
            (held, Place::Rows(parts)) => {
                parts.iter().map(|part| held.floats(part)).collect::<Result<Vec<_>, _>>()?.concat()
            }
            _ => unreachable!("each kind of file has its kind of place"),
        })
    }
}

/// The tensors of a `UNet2DModel` as the reference's.
fn under_names_of_reference(
    path: &Path,
    unet: &Unet,
    tensors: Vec<(TensorInfo, Place)>,
) -> Result<Vec<(TensorInfo, Place)>, Error> {
    let tensors = tensors.into_iter().map(|(info, place)| (info.name.clone(), (info, place))).collect();
    let one = |(entry, parts): (Renamed, Vec<(TensorInfo, Place)>)| {
        let (infos, places): (Vec<TensorInfo>, Vec<Place>) = parts.into_iter().unzip();
        let TensorInfo { mut shape, dtype, .. } = infos[0].clone();
        if infos.iter().any(|info| info.shape != shape) {
            let message = format!("has `{}` of different shapes", entry.own.join("` and `"));
            return Err(Error::file(path, message));
        }
        if let Some(rows) = shape.first_mut() {
            *rows *= infos.len();
        }
        shape.extend(std::iter::repeat_n(1, entry.ones));
        Ok((TensorInfo { name: entry.reference, shape, dtype }, Place::Rows(places)))
    };
    unet.rename(path, tensors)?.into_iter().map(one).collect()
}
