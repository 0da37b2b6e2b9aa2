//! Checkpoints: one folder per saved step, complete or not there.
//!
//! ```text
//! checkpoints/best/           with evaluation during training, the one whose samples came nearest to real images
//! checkpoints/damaged-step_001500/   one that was passed over, moved aside
//! checkpoints/step_001500/
//!     model.safetensors        the network's parameters
//!     ema_0.995.safetensors    each average of them
//!     posthoc_0.05.safetensors with --posthoc-ema each average by a power function
//!     state.safetensors        what else continues the run: moments, counters, time-sampler history
//! ```
//! Parameters have the reference's names and shapes. Every file carries the resolved configuration, so that one alone
//! is enough to sample from. A folder is written under a temporary name, synced and renamed.
//!
//! Wherever parameters are read, a file of PyTorch's does as well; it carries no configuration. So does a folder of diffusers',
//! whose `config.json` describes the network.

mod diffusers;
mod loaded;
mod place;
mod reference;
mod tensors;

pub use ddpm_formats::safetensors::TensorInfo;
pub(crate) use diffusers::{check as check_description, config_with};
pub use diffusers::{described, write as write_pipeline};
pub use loaded::{Loaded, settings_of};
pub use place::resolve;
pub use reference::{Trio, write_model, write_trio};
pub(crate) use tensors::{Tensors, load_bytes};

use crate::torch::TorchFile;
use tensors::load_for;

use crate::Error;
use crate::config::{Arch, Config, Pool, TrainConfig};
use crate::file::{create_folder, sync_folder};
use ddpm_formats::safetensors::{Safetensors, Width};
use ddpm_math::TimeSamplerState;
use ddpm_net::{Layout, Parameters};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MODEL: &str = "model.safetensors";
const STATE: &str = "state.safetensors";

/// The checkpoint whose samples came nearest to real images.
const BEST: &str = "best";

/// How the names of unfinished checkpoints begin.
const TEMPORARY: &str = ".tmp-";

/// How the names of damaged checkpoints begin that were moved aside.
const DAMAGED: &str = "damaged-";

/// How those begin that are out of the way of another that takes their place.
const OLD: &str = ".tmp-old-";

/// All that continues a run, apart from its configuration.
#[derive(Clone)]
pub struct State {
    /// Counters and small state.
    pub progress: Progress,
    /// The network's parameters.
    pub parameters: Parameters,
    /// Averages of them by rate.
    pub ema: Vec<(f64, Parameters)>,
    /// Averages of them by power functions, by length ([`ddpm_math::posthoc`]).
    pub posthoc: Vec<(f64, Parameters)>,
    /// AdamW's first and second moments.
    pub moments: [Parameters; 2],
}

impl State {
    /// The state of a run that begins with these parameters.
    pub fn new(parameters: Parameters, settings: &TrainConfig) -> Self {
        let each = |by: &[f64]| by.iter().map(|&by| (by, parameters.clone())).collect();
        Self {
            progress: Progress::default(),
            ema: each(&settings.ema_rate),
            posthoc: each(&settings.posthoc_ema),
            moments: [parameters.zeros_like(), parameters.zeros_like()],
            parameters,
        }
    }

    /// Averages and moments: of which ranks may have a part each.
    pub(crate) fn divided(&mut self) -> impl Iterator<Item = &mut Parameters> {
        let averages = self.ema.iter_mut().chain(&mut self.posthoc).map(|(_, average)| average);
        averages.chain(&mut self.moments)
    }
}

/// How far a run has come. All randomness follows from the configuration's seed and these.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: u64,
    /// Images seen: the position in the data and in every random stream.
    pub images: u64,
    /// Training time over all calls that continued the run, in seconds.
    pub elapsed_secs: f64,
    /// The loss-aware time sampler's history.
    pub time_sampler: Option<TimeSamplerState>,
    /// Updates that the optimizer has made, where they are not as many as steps: so it may be in the reference's files,
    /// and after gradients that overflowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updates: Option<u64>,
    /// log₂ of the loss scale of the next step, in f16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lg_loss_scale: Option<f64>,
    /// The GPU that made the last step, with its libraries, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
}

/// The folder of a run's checkpoints.
#[derive(Clone)]
pub struct Store {
    folder: PathBuf,
}

fn ema_name(rate: f64) -> String {
    format!("ema_{rate}.safetensors")
}

fn posthoc_name(length: f64) -> String {
    format!("posthoc_{length}.safetensors")
}

impl Store {
    /// The store of a run directory.
    pub fn new(run: &Path) -> Self {
        Self { folder: run.join("checkpoints") }
    }

    /// Checkpoints by step, oldest first.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub fn all(&self) -> Result<Vec<(u64, PathBuf)>, Error> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("list", &self.folder)(e)),
        };
        let mut found: Vec<_> = entries
            .filter_map(Result::ok)
            .filter_map(|e| {
                let step = e.file_name().to_str()?.strip_prefix("step_")?.parse().ok()?;
                Some((step, e.path()))
            })
            .collect();
        found.sort();
        Ok(found)
    }

    /// The newest checkpoint.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub fn newest(&self) -> Result<Option<(u64, PathBuf)>, Error> {
        Ok(self.all()?.pop())
    }

    /// The newest checkpoint that is whole. Damaged ones that are newer are moved aside, to names that nothing reads, and `tell`
    /// is told of each: its folder, where it is now, and what is wrong with it.
    ///
    /// # Errors
    /// Checkpoints of which none is whole: these stay. A folder that cannot be listed.
    pub fn newest_whole(&self, tell: &mut dyn FnMut(&Path, &Path, &str)) -> Result<Option<(u64, PathBuf)>, Error> {
        let mut all = self.all()?;
        let mut damaged: Vec<(PathBuf, String)> = Vec::new();
        while let Some((step, folder)) = all.pop() {
            let Some(problem) = problem_of(&folder) else {
                for (folder, problem) in damaged {
                    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    let aside = self.folder.join(format!("{DAMAGED}{name}"));
                    if aside.exists() {
                        fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside))?;
                    }
                    fs::rename(&folder, &aside).map_err(Error::io("move aside", &folder))?;
                    tell(&folder, &aside, &problem);
                }
                return Ok(Some((step, folder)));
            };
            damaged.push((folder, problem));
        }
        match damaged.into_iter().next() {
            Some((folder, problem)) => {
                let message = format!(
                    "{problem}. No older checkpoint is intact: copy one back, or start a new run with another --out"
                );
                Err(Error::file(&folder, message))
            }
            None => Ok(None),
        }
    }

    /// Whether there is a folder of checkpoints.
    pub(crate) fn exists(&self) -> bool {
        self.folder.is_dir()
    }

    /// Saves a checkpoint.
    ///
    /// # Errors
    /// What writing says; nothing half-written is left and no older checkpoint is touched.
    pub fn save(&self, state: &State, config: &Config) -> Result<PathBuf, Error> {
        self.write(&format!("step_{:06}", state.progress.step), state, config)
    }

    /// Removes all checkpoints but the newest `keep` (none for 0), and says which.
    ///
    /// # Errors
    /// What the system says.
    pub fn keep_newest(&self, keep: usize) -> Result<Vec<PathBuf>, Error> {
        let mut all: Vec<PathBuf> = self.all()?.into_iter().map(|(_, path)| path).collect();
        all.truncate(if keep == 0 { 0 } else { all.len().saturating_sub(keep) });
        for old in &all {
            fs::remove_dir_all(old).map_err(Error::io("remove the old checkpoint", old))?;
        }
        Ok(all)
    }

    /// The step of the best checkpoint, if one is kept.
    pub fn best_step(&self) -> Option<u64> {
        // A call that was killed while replacing it has left it out of the way.
        let progress = progress(&self.folder.join(BEST)).or_else(|_| progress(&self.out_of_the_way(BEST)));
        progress.ok().map(|progress| progress.step)
    }

    /// Where the checkpoint of a name is while another takes its place.
    fn out_of_the_way(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{OLD}{name}"))
    }

    /// Brings back the checkpoint of a name that a killed call has left out of the way, or removes it if the other is there.
    fn put_back(&self, name: &str) -> Result<(), Error> {
        let (old, target) = (self.out_of_the_way(name), self.folder.join(name));
        if !old.exists() {
            return Ok(());
        }
        if target.exists() {
            return fs::remove_dir_all(&old).map_err(Error::io("remove the old checkpoint", &old));
        }
        fs::rename(&old, &target).map_err(Error::io("bring back", &target))?;
        sync_folder(&self.folder);
        Ok(())
    }

    /// Saves the best checkpoint so far in the place of the one before, apart from the others.
    ///
    /// # Errors
    /// What writing says.
    pub fn save_best(&self, state: &State, config: &Config) -> Result<PathBuf, Error> {
        self.write(BEST, state, config)
    }

    /// Writes a checkpoint of that name, in the place of an older one.
    fn write(&self, name: &str, state: &State, config: &Config) -> Result<PathBuf, Error> {
        create_folder(&self.folder)?;
        let temporary = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempdir_in(&self.folder)
            .map_err(Error::io("write into", &self.folder))?;
        let at = temporary.path();
        tensors::save(&at.join(MODEL), &[("", &state.parameters)], config, None)?;
        for (rate, ema) in &state.ema {
            tensors::save(&at.join(ema_name(*rate)), &[("", ema)], config, None)?;
        }
        for (length, average) in &state.posthoc {
            tensors::save(&at.join(posthoc_name(*length)), &[("", average)], config, None)?;
        }
        let [m, v] = &state.moments;
        tensors::save(&at.join(STATE), &[("exp_avg/", m), ("exp_avg_sq/", v)], config, Some(&state.progress))?;
        sync_folder(at);
        let target = self.folder.join(name);
        // What is replaced goes out of the way first, and is removed when the new one is there.
        self.put_back(name)?;
        let old = self.out_of_the_way(name);
        if target.exists() {
            fs::rename(&target, &old).map_err(Error::io("replace", &target))?;
        }
        fs::rename(at, &target).map_err(Error::io("write", &target))?;
        if old.exists() {
            fs::remove_dir_all(&old).map_err(Error::io("remove the old checkpoint", &old))?;
        }
        // What was renamed is no longer the temporary folder's to remove.
        let _ = temporary.keep();
        sync_folder(&self.folder);
        Ok(target)
    }

    /// Removes what a process that was killed while saving has left, and brings back what it was about to replace. Nobody may
    /// be saving.
    ///
    /// # Errors
    /// A folder that cannot be listed, or one in it that cannot be removed.
    pub fn remove_unfinished(&self) -> Result<(), Error> {
        if !self.folder.exists() {
            return Ok(());
        }
        let entries = fs::read_dir(&self.folder).map_err(Error::io("list", &self.folder))?;
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            if let Some(replaced) = name.strip_prefix(OLD) {
                self.put_back(replaced)?;
            } else if name.starts_with(TEMPORARY) {
                fs::remove_dir_all(entry.path()).map_err(Error::io("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Loads the checkpoint in `folder`. Rates without a saved average begin at the parameters, and are named in the
    /// second result.
    ///
    /// # Errors
    /// Missing or damaged files, parameters of another architecture; averages by power functions that were not kept from the
    /// beginning.
    pub fn load(folder: &Path, layout: &Arc<Layout>, settings: &TrainConfig) -> Result<(State, Vec<f64>), Error> {
        let parameters = load_for(&folder.join(MODEL), layout, "")?;
        let mut fresh = Vec::new();
        let mut ema = Vec::new();
        for &rate in &settings.ema_rate {
            let path = folder.join(ema_name(rate));
            ema.push((
                rate,
                if path.exists() {
                    load_for(&path, layout, "")?
                } else {
                    fresh.push(rate);
                    parameters.clone()
                },
            ));
        }
        let mut posthoc = Vec::new();
        for &length in &settings.posthoc_ema {
            let path = folder.join(posthoc_name(length));
            if !path.exists() {
                let message = format!(
                    "has no EMA of --posthoc-ema {length}: such EMAs must be kept from the start of a run. Leave the \
                     flag out to resume, or start a new run with another --out"
                );
                return Err(Error::file(folder, message));
            }
            posthoc.push((length, load_for(&path, layout, "")?));
        }
        let state = folder.join(STATE);
        let moments = [load_for(&state, layout, "exp_avg/")?, load_for(&state, layout, "exp_avg_sq/")?];
        let progress = progress(folder)?;
        Ok((State { progress, parameters, ema, posthoc, moments }, fresh))
    }
}

/// The checkpoint folder that a path means and a run can go on from: itself, the newest of a run directory, or the one that
/// a file lies in; none if it is something else.
///
/// # Errors
/// A folder that cannot be listed.
pub fn saved_in(path: &Path) -> Result<Option<PathBuf>, Error> {
    let newest = if path.is_dir() { Store::new(path).newest()? } else { None };
    let folder = match newest {
        Some((_, newest)) => newest,
        None if path.is_dir() => path.to_path_buf(),
        None => path.parent().unwrap_or(path).to_path_buf(),
    };
    let is_own = path.is_dir() || path.extension().is_some_and(|e| e == "safetensors");
    Ok((is_own && folder.join(MODEL).exists() && folder.join(STATE).exists()).then_some(folder))
}

/// What is wrong with a checkpoint's files, if anything is.
fn problem_of(folder: &Path) -> Option<String> {
    for needed in [MODEL, STATE] {
        if !folder.join(needed).is_file() {
            return Some(format!("it has no {needed}"));
        }
    }
    match verify(folder) {
        Ok(files) => files.into_iter().find_map(|file| file.problem),
        Err(error) => Some(error.to_string()),
    }
}

/// What [`verify`] found of a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verified {
    /// The file.
    pub file: String,
    /// Its tensors that are whole; none if one is not.
    pub tensors: Option<usize>,
    /// Whether it carries checksums, without which damage to numbers is not noticed.
    pub checksums: bool,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// Reads all files of a run's checkpoints and averages, of one checkpoint folder, or one file, and compares them with their
/// checksums.
///
/// # Errors
/// A path that is none of these, a folder that cannot be listed. What is wrong with files is in the result.
pub fn verify(path: &Path) -> Result<Vec<Verified>, Error> {
    let files = if path.is_file() {
        vec![path.to_path_buf()]
    } else {
        let store = Store::new(path);
        let folders = if store.exists() { vec![store.folder, path.join("ema")] } else { vec![path.to_path_buf()] };
        let is_own = |file: &Path| file.extension().is_some_and(|ending| ending == "safetensors");
        let list = |folder: &PathBuf| ddpm_formats::folder::list(folder, is_own);
        folders.iter().filter(|folder| folder.is_dir()).map(list).collect::<Result<Vec<_>, _>>()?.concat()
    };
    if files.is_empty() {
        return Err(Error::file(path, "holds no .safetensors files: name a run, a checkpoint folder or a file"));
    }
    Ok(files.iter().map(|file| Verified::of(file)).collect())
}

impl Verified {
    fn of(path: &Path) -> Self {
        let opened = Safetensors::open(path);
        let checksums = opened.as_ref().is_ok_and(Safetensors::has_checksums);
        let (tensors, problem) = match opened.and_then(|mut file| file.verify()) {
            Ok(tensors) => (Some(tensors), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Self { file: path.display().to_string(), tensors, checksums, problem }
    }
}

impl std::fmt::Display for Verified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.problem, self.tensors, self.checksums) {
            (Some(problem), ..) => write!(f, "DAMAGED  {problem}"),
            (None, tensors, true) => write!(f, "ok       {} ({} tensors)", self.file, tensors.unwrap_or(0)),
            (None, ..) => {
                write!(
                    f,
                    "unknown  {}: it carries no checksums (an older version or another program wrote it)",
                    self.file
                )
            }
        }
    }
}

/// Where parameters are from.
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    /// The file.
    pub file: PathBuf,
    /// Steps of training, where the file lies in a checkpoint folder.
    pub step: Option<u64>,
    /// The rate of the average, if it is one.
    pub average: Option<f64>,
}

impl Origin {
    /// What the files beside a file of parameters, and its name, tell of it.
    pub fn of(file: &Path) -> Self {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let average = name.strip_prefix("ema_").and_then(|name| name.strip_suffix(".safetensors")?.parse().ok());
        let step = file.parent().and_then(|folder| progress(folder).ok()).map(|progress| progress.step);
        Self { file: file.to_path_buf(), step, average }
    }
}

impl std::fmt::Display for Origin {
    /// In words: the run or the file, the step, the average.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(step) = self.step else { return write!(f, "{}", self.file.display()) };
        let folder = self.file.parent().unwrap_or(&self.file);
        let run = folder.parent().filter(|checkpoints| checkpoints.ends_with("checkpoints")).and_then(Path::parent);
        write!(f, "{}, step {step}", run.filter(|run| *run != Path::new("")).unwrap_or(folder).display())?;
        match self.average {
            Some(rate) => write!(f, ", average {rate}"),
            None => write!(f, ", no average"),
        }
    }
}

/// How far the run of a checkpoint folder had come.
///
/// # Errors
/// A missing or damaged state file.
pub fn progress(folder: &Path) -> Result<Progress, Error> {
    tensors::progress_of(&folder.join(STATE))
}

/// The configuration that a file carries, if it does.
///
/// # Errors
/// A damaged file.
pub fn config_of(path: &Path) -> Result<Option<Config>, Error> {
    if TorchFile::is_one(path) { Ok(None) } else { tensors::config_of(path) }
}

/// What a network of a file holds, in the file's order. Of several it is the one that is named or, for an empty name, the
/// first whose architecture is known, averages before others; the second result says so.
///
/// # Errors
/// A damaged file, or one that holds something else.
pub fn list(path: &Path, network: &str) -> Result<(Vec<TensorInfo>, Option<String>), Error> {
    let tensors = Tensors::open(path, network, &|tensors| crate::info::infer(tensors).is_some())?;
    Ok((tensors.list(), tensors.remark()))
}

/// Loads a network's parameters. Of several networks in the file it is the one that is named or, for an empty name, the first
/// that fits, averages before others.
///
/// # Errors
/// A damaged file, or one of another architecture: the message names the first tensor that differs and both shapes.
pub fn load(path: &Path, layout: &Arc<Layout>, network: &str) -> Result<Parameters, Error> {
    let fits = |tensors: &[TensorInfo]| {
        let held: Vec<_> = tensors.iter().map(|info| (info.name.as_str(), info.shape.as_slice())).collect();
        tensors::check(path, layout.specs(), "", &held).is_ok()
    };
    Tensors::open(path, network, &fits)?.load(layout)
}

/// As [`load`], for the network of a configuration: where the file was made with other settings, these are named.
///
/// # Errors
/// As [`load`].
pub fn load_network(path: &Path, layout: &Arc<Layout>, config: &Config) -> Result<Parameters, Error> {
    check_description(path, config)?;
    load(path, layout, &config.sample.network)
        .map_err(|error| contradiction(path, layout, config, &error).unwrap_or(error))
}

/// Why a file's parameters are not those of a configuration's network, in settings, if that is why they are not.
fn contradiction(path: &Path, layout: &Layout, config: &Config, error: &Error) -> Option<Error> {
    let Error::File { message, .. } = error else { return None };
    let own = if let Some(own) = config_of(path).ok()? {
        own
    } else if let Some(own) = config_with(path, config).ok()? {
        own
    } else {
        let inferred = crate::info::infer(&list(path, &config.sample.network).ok()?.0)?;
        let mut layers = crate::config::Layers::default();
        layers.add(config.to_toml().parse().ok()?).ok()?;
        layers.add(inferred.settings(Some(config.model.image_size))).ok()?;
        layers.resolve().ok()?
    };
    let theirs = crate::train::Task::new(&own, ddpm_net::Device::default()).ok()?;
    if theirs.specs() == layout.specs() {
        return None;
    }
    let section = if config.model.arch == Arch::Classifier { "classifier." } else { "model." };
    let shapes = |key: &str| {
        let speed = ["model.precision", "model.use_checkpoint", "model.dropout", "classifier.precision"];
        (key.starts_with(section) && !speed.contains(&key)) || ["diffusion.variance", "model.arch"].contains(&key)
    };
    let differs: Vec<String> = config
        .changes_from(&own)
        .into_iter()
        // The number of classes follows.
        .filter(|(key, ..)| {
            shapes(key) && (key != "model.num_classes" || config.model.class_cond == own.model.class_cond)
        })
        .map(|(key, now, before)| {
            let flag = crate::config::KEYS.iter().find(|k| k.path() == key).map_or(key, |k| format!("--{}", k.flag()));
            format!("{flag} {} (not {})", before.trim_matches('"'), now.trim_matches('"'))
        })
        .collect();
    let them = if differs.len() == 1 { "this flag" } else { "these flags" };
    (!differs.is_empty())
        .then(|| Error::file(path, format!("was made with {}: leave {them} out. It {message}", differs.join(", "))))
}

/// Writes parameters alone, with the configuration.
///
/// # Errors
/// What writing says.
pub fn write_parameters(path: &Path, parameters: &Parameters, config: &Config) -> Result<(), Error> {
    tensors::save(path, &[("", parameters)], config, None)
}

/// Writes parameters in half precision; what is beyond its range becomes the largest number that it has.
///
/// # Errors
/// What writing says.
pub(crate) fn write_half(
    path: &Path,
    parameters: &Parameters,
    config: &Config,
    progress: Option<&Progress>,
) -> Result<(), Error> {
    tensors::save_as(path, &[("", parameters)], config, progress, Width::Half)
}

/// How far the run was that wrote a file with its progress.
///
/// # Errors
/// A damaged file, or one without.
pub(crate) fn progress_in(file: &Path) -> Result<Progress, Error> {
    tensors::progress_of(file)
}

/// `config` with the number of classes that the file's network has, where the configuration leaves it open.
///
/// # Errors
/// A damaged file.
pub fn with_classes(config: &Config, file: &Path) -> Result<Config, Error> {
    let network = &config.sample.network;
    let mut config = config.clone();
    let dim = |wanted: &dyn Fn(&str) -> bool| -> Result<usize, Error> {
        let found = list(file, network)?.0.into_iter().find(|t| wanted(&t.name));
        Ok(found.and_then(|t| t.shape.first().copied()).unwrap_or(0))
    };
    if config.model.class_cond && config.model.num_classes == 0 {
        config.model.num_classes = dim(&|name| name == "label_emb.weight")?;
    }
    if config.model.arch == Arch::Classifier && config.classifier.num_classes == 0 {
        let last = match config.classifier.pool {
            Pool::Attention => "out.2.c_proj.bias",
            Pool::Adaptive | Pool::SpatialV2 => "out.3.bias",
            Pool::Spatial => "out.2.bias",
        };
        config.classifier.num_classes = dim(&|name| name == last)?;
    }
    Ok(config)
}
