//! Trainings, and the directories that they leave.

use crate::arguments::{Source, words};
use crate::errors::{Kind, config_error, error, raised};
use crate::model::{Model, load, written};
use crate::work::{Listener, check_process, work};
use ddpm_ip::Outcome;
use ddpm_ip::checkpoint::Store;
use ddpm_ip::data::ImageArray;
use ddpm_ip::train::{history, loss_curve};
use ddpm_ip_cli::host;
use numpy::IntoPyArray;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The images that a run was given as an array.
const IMAGES: &str = "images.npz";

/// Whether a training is running in this process.
static TRAINING: AtomicBool = AtomicBool::new(false);

/// The one training at a time.
struct Turn;

impl Turn {
    fn take(py: Python<'_>) -> PyResult<Self> {
        if TRAINING.swap(true, Ordering::Acquire) {
            let message = "another training is running in this process: wait for it, or train in a process of its own";
            return Err(error(py, Kind::Error, message));
        }
        Ok(Self)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TRAINING.store(false, Ordering::Release);
    }
}

/// Train a network, or resume a run.
///
/// preset: "digits", "cifar10", … (see presets()); without preset and data it is "digits". data: what `--data-dir` takes, a path or
/// "digits"; or images uint8 [N, H, W, C] with C 1 or 3, or [N, H, W], which the run keeps as images.npz; labels: int [N] their
/// classes. out: the run directory [default: runs/ and the preset's name, for an array runs/PRESET-array]. command: "train", "classifier-train" or
/// "super-res-train". callback: called with a dict for each event: its "event" is "started", "step", "log", "grid", "checkpoint",
/// "best", "notice" or "warning". progress: whether tqdm, where it is installed, shows how far it is. settings: flags of
/// `ddpm-ip train` with underscores, such as gamma=0.15, steps=2000, lr=1e-4, batch_size=128; settings={"sample.sampler": "ddim"} sets
/// what has no flag.
///
/// On Ctrl-C, or if the callback raises, the run saves a checkpoint first, and the same call resumes it. A process trains one run at
/// a time. The result equals that of the program with the same flags, bit for bit.
///
/// Returns the Run. Raises ConfigError, DataError, FileError; DivergedError if the loss is no longer finite.
#[pyfunction]
#[pyo3(signature = (preset = None, data = None, *, labels = None, out = None, device = "auto", command = "train",
    callback = None, progress = true, **settings))]
#[expect(clippy::too_many_arguments, reason = "keywords of Python")]
pub(crate) fn train(
    py: Python<'_>,
    preset: Option<&str>,
    data: Option<&Bound<'_, PyAny>>,
    labels: Option<&Bound<'_, PyAny>>,
    out: Option<PathBuf>,
    device: &str,
    command: &str,
    callback: Option<Bound<'_, PyAny>>,
    progress: bool,
    settings: Option<&Bound<'_, PyDict>>,
) -> PyResult<Run> {
    if !["train", "classifier-train", "super-res-train"].contains(&command) {
        let message =
            format!("there is no training command {command:?}: use train, classifier-train or super-res-train");
        return Err(config_error(py, message));
    }
    check_process(py)?;
    let _turn = Turn::take(py)?;
    let mut line: Vec<OsString> = vec!["ddpm-ip".into(), command.into(), "--json".into()];
    line.push(format!("--device={device}").into());
    line.extend(preset.map(|preset| format!("--preset={preset}").into()));
    line.extend(words(command, settings)?);
    let mut out = out;
    if labels.is_some() && data.is_none() {
        return Err(PyTypeError::new_err(
            "labels are only for images that are given as an array: give the array as data",
        ));
    }
    match data.map(|data| Source::new(data, labels)).transpose()? {
        None => {}
        Some(Source::Named(name)) => line.extend(["--data-dir".into(), name]),
        Some(Source::Given(array)) => {
            let folder = out.get_or_insert_with(|| {
                let name = preset.map_or("array".into(), |preset| format!("{preset}-array"));
                Path::new("runs").join(name)
            });
            let file = kept(py, &array, folder, &line)?;
            line.extend(["--data-dir".into(), file.into()]);
        }
    }
    line.extend(out.iter().flat_map(|out| ["--out".into(), out.clone().into()]));
    let (outcome, report) = work(py, &Listener { callback, progress }, |desk| host::call(line, desk.host()))?;
    let report = json(py, &report)?;
    let run = Run { path: report.get_item("run")?.extract()?, report: Some(report.unbind()) };
    if outcome == Outcome::Interrupted {
        return Err(error(py, Kind::Error, format!("the training of {} was stopped", run.path.display())));
    }
    Ok(run)
}

/// The file of a run's images, written where all else is known to be well.
fn kept(py: Python<'_>, array: &ImageArray, folder: &Path, line: &[OsString]) -> PyResult<PathBuf> {
    let file = folder.join(IMAGES);
    let failed = |e: ddpm_ip::Error| raised(py, &e.into());
    if file.exists() {
        if py.detach(|| array.is_in(&file)).map_err(failed)? {
            return Ok(file);
        }
        let message = format!("{} holds a run that was trained on other images: choose another out", folder.display());
        return Err(config_error(py, message));
    }
    let temporary = written(py, array)?;
    let dry = ["--dry-run".into(), "--data-dir".into(), temporary.path().into()];
    let dry: Vec<OsString> = line.iter().cloned().chain(dry).chain(["--out".into(), folder.into()]).collect();
    work(py, &Listener { callback: None, progress: false }, |desk| host::call(dry, desk.host()))?;
    py.detach(|| ddpm_ip::file::create_folder(folder).and_then(|()| array.write(&file))).map_err(failed)?;
    Ok(file)
}

/// A run directory, made by train() or `ddpm-ip train`.
///
/// Its properties read the files as they are now, so they also follow a run that another process trains. A notebook shows its loss
/// and its newest grid.
#[pyclass(module = "ddpm_ip", frozen)]
pub(crate) struct Run {
    path: PathBuf,
    report: Option<Py<PyAny>>,
}

#[pymethods]
impl Run {
    /// The run of a directory. Raises FileError where there is none.
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        if path.join("config.toml").is_file() {
            return Ok(Self { path, report: None });
        }
        let message = format!("{}: is not a run directory: it has no config.toml", path.display());
        Err(error(py, Kind::File, message))
    }

    /// Its directory.
    #[getter]
    fn path(&self) -> &PathBuf {
        &self.path
    }

    /// What train() reported: outcome, step, images, elapsed_secs, loss, images_per_sec, best, grid, checkpoint. None if
    /// this object did not train the run.
    #[getter]
    fn report(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.report.as_ref().map(|report| report.clone_ref(py))
    }

    /// All settings, as the tables of config.toml.
    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        parsed(py, &self.text(py, "config.toml")?)
    }

    /// The step of its newest checkpoint; 0 if there is none.
    #[getter]
    fn step(&self, py: Python<'_>) -> PyResult<u64> {
        let newest = Store::new(&self.path).newest().map_err(|e| raised(py, &e.into()))?;
        Ok(newest.map_or(0, |(step, _)| step))
    }

    /// The folders of its checkpoints, oldest first.
    #[getter]
    fn checkpoints(&self, py: Python<'_>) -> PyResult<Vec<PathBuf>> {
        let all = Store::new(&self.path).all().map_err(|e| raised(py, &e.into()))?;
        Ok(all.into_iter().map(|(_, path)| path).collect())
    }

    /// Its grids of samples, oldest first.
    #[getter]
    fn grids(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path.join("samples")).into_iter().flatten().filter_map(Result::ok);
        let mut grids: Vec<PathBuf> =
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "png")).collect();
        grids.sort();
        grids
    }

    /// Its log by column, each float64 with one entry per line of progress.csv: step, loss, lr, … A value that a line lacks is NaN.
    #[getter]
    fn history<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let columns = history(&self.path).map_err(|e| raised(py, &e.into()))?;
        let history = PyDict::new(py);
        for (name, values) in columns {
            history.set_item(name, values.into_pyarray(py))?;
        }
        Ok(history)
    }

    /// The results of its evaluations, oldest first: the lines of evaluations.jsonl.
    #[getter]
    fn evaluations<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        if !self.path.join("evaluations.jsonl").exists() {
            return Ok(Vec::new());
        }
        self.text(py, "evaluations.jsonl")?.lines().map(|line| json(py, line)).collect()
    }

    /// The network of its newest checkpoint; see load().
    #[pyo3(signature = (*, device = "auto", **network))]
    fn model(&self, py: Python<'_>, device: &str, network: Option<&Bound<'_, PyDict>>) -> PyResult<Model> {
        load(py, self.path.clone(), device, network)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let step = self.step(py).map_or(String::new(), |step| format!(", step {step}"));
        format!("<ddpm_ip.Run {}{step}>", self.path.display())
    }

    /// Its loss and newest grid, for notebooks.
    fn _repr_html_(&self, py: Python<'_>) -> PyResult<String> {
        let html = py.import("html")?;
        let title: String = html.call_method1("escape", (self.__repr__(py),))?.extract()?;
        // A run that has only begun has neither.
        let curve = loss_curve(&self.path).unwrap_or_default();
        let grid = match self.grids().last().and_then(|grid| fs::read(grid).ok()) {
            Some(png) => {
                let bytes = pyo3::types::PyBytes::new(py, &png);
                let encoded = py.import("base64")?.call_method1("b64encode", (bytes,))?;
                let encoded: String = encoded.call_method0("decode")?.extract()?;
                format!(
                    "<img alt=\"newest samples\" style=\"image-rendering:pixelated;height:220px\" \
                     src=\"data:image/png;base64,{encoded}\">"
                )
            }
            None => String::new(),
        };
        Ok(format!("<div><p>{title}</p>{curve}{grid}</div>"))
    }
}

impl Run {
    fn text(&self, py: Python<'_>, name: &str) -> PyResult<String> {
        let path = self.path.join(name);
        fs::read_to_string(&path).map_err(|e| error(py, Kind::File, format!("cannot read {}: {e}", path.display())))
    }
}

/// A TOML document as dictionaries.
pub(crate) fn parsed<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("tomllib")?.call_method1("loads", (text,))
}

/// A JSON document as dictionaries.
pub(crate) fn json<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("json")?.call_method1("loads", (text,))
}
