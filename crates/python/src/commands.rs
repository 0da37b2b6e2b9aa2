//! The program's other commands as functions.

use crate::arguments::{Source, path, words};
use crate::errors::{Kind, config_error, error, raised};
use crate::model::written;
use crate::run::json;
use crate::work::{Listener, work};
use ddpm_ip::Device;
use ddpm_ip::evaluate;
use ddpm_ip_cli::evaluation;
use ddpm_ip_cli::host::{self, Named};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use std::ffi::OsString;

/// Compare samples with real images: FID, sFID, Inception Score, precision, recall and KID.
///
/// reference, samples: each images uint8 [N, H, W, C] with C 1 or 3, or [N, H, W]; or what `ddpm-ip evaluate` takes: a folder, an
/// .npz, "digits", a run directory, a file of statistics. reference_labels, labels: int [N], the classes of arrays, for
/// per_class=True. settings: flags of `ddpm-ip evaluate` with underscores, such as features="grey", metrics="fid", num_images=1000,
/// extrapolate=True. Features are cached by the content of the images, for arrays as for files.
///
/// Returns a dict: fid, fid_parts, sfid, inception_score [mean, deviation], precision, recall, kid [mean, deviation], features,
/// resize, and dicts about reference and samples. What was not computed is None.
/// Raises ConfigError, DataError, FileError.
#[pyfunction]
#[pyo3(name = "evaluate", signature = (reference, samples, *, reference_labels = None, labels = None, device = "auto",
    callback = None, progress = true, **settings))]
#[expect(clippy::too_many_arguments, reason = "keywords of Python")]
pub(crate) fn compare<'py>(
    py: Python<'py>,
    reference: &Bound<'py, PyAny>,
    samples: &Bound<'py, PyAny>,
    reference_labels: Option<&Bound<'py, PyAny>>,
    labels: Option<&Bound<'py, PyAny>>,
    device: &str,
    callback: Option<Bound<'py, PyAny>>,
    progress: bool,
    settings: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let mut line: Vec<OsString> = vec!["ddpm-ip".into(), "evaluate".into(), format!("--device={device}").into()];
    line.extend(words("evaluate", settings)?);
    line.push("--".into());
    let mut given = Vec::new();
    for (side, labels) in [(reference, reference_labels), (samples, labels)] {
        let (name, array) = match Source::new(side, labels)? {
            Source::Named(name) => (name, None),
            Source::Given(array) => ("array".into(), Some(array)),
        };
        line.push(name);
        given.push(array);
    }
    let (mut job, device) = evaluation(line).map_err(|e| raised(py, &e))?;
    for (side, array) in [&mut job.reference, &mut job.samples].into_iter().zip(given) {
        if let Some(array) = array {
            *side = evaluate::Source::Given(array);
        }
    }
    let report = work(py, &Listener { callback, progress }, |desk| {
        let mut emit = |event| desk.tell(event);
        let (_, report) = Device::guard(|| evaluate::evaluate(&job, device, &desk.stop, &mut emit))??;
        Ok(report.as_ref().map(serde_json::to_string).transpose()?)
    })?;
    json(py, &report.ok_or_else(|| error(py, Kind::Error, "the comparison was stopped"))?)
}

/// Measure exposure bias: how the inputs of a network in sampling differ from those in training.
///
/// checkpoints: one path or several, what load() takes. data: images as in train() [default: those of the run]. out: a folder for
/// bias.json, bias.npz and bias.svg [default: none are kept]. settings: flags of `ddpm-ip bias` with underscores, such as
/// sampler="ddim", timestep_respacing=20, num_samples=512, correct="es:1.01".
///
/// Returns the content of bias.json as a dict: for each of "checkpoints" its "readings", curves over the timesteps with "value" and
/// "error", and its "suggestions". Raises ConfigError, DataError, FileError.
#[pyfunction]
#[pyo3(signature = (checkpoints, data = None, *, labels = None, out = None, device = "auto", callback = None,
    progress = true, **settings))]
#[expect(clippy::too_many_arguments, reason = "keywords of Python")]
pub(crate) fn bias<'py>(
    py: Python<'py>,
    checkpoints: &Bound<'py, PyAny>,
    data: Option<&Bound<'py, PyAny>>,
    labels: Option<&Bound<'py, PyAny>>,
    out: Option<std::path::PathBuf>,
    device: &str,
    callback: Option<Bound<'py, PyAny>>,
    progress: bool,
    settings: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let mut line: Vec<OsString> = vec!["ddpm-ip".into(), "bias".into(), "--json".into()];
    line.push(format!("--device={device}").into());
    let all = match path(checkpoints) {
        Some(one) => vec![one],
        None => checkpoints.extract::<Vec<std::path::PathBuf>>()?.into_iter().map(Into::into).collect(),
    };
    for checkpoint in all {
        line.extend(["--checkpoint".into(), checkpoint]);
    }
    let file = match data.map(|data| Source::new(data, labels)).transpose()? {
        None => None,
        Some(Source::Named(name)) => {
            line.extend(["--data-dir".into(), name]);
            None
        }
        Some(Source::Given(array)) => {
            let file = written(py, &array)?;
            line.extend(["--data-dir".into(), file.path().into()]);
            Some(file)
        }
    };
    let temporary = if let Some(out) = out {
        line.extend(["--out".into(), out.into()]);
        None
    } else {
        let folder = tempfile::tempdir();
        let folder = folder.map_err(|e| error(py, Kind::File, format!("no temporary folder can be made: {e}")))?;
        line.extend(["--out".into(), folder.path().into()]);
        Some(folder)
    };
    line.extend(words("bias", settings)?);
    let (_, report) = work(py, &Listener { callback, progress }, |desk| host::call(line, desk.host()))?;
    drop((file, temporary));
    json(py, &report)
}

/// Run any command of the program, such as command("prepare", "cifar10", "cifar-10-python.tar.gz", out="cifar10.npz").
///
/// words: as on the command line. flags: with underscores; a list where there are several values. Returns the report that the
/// command prints with --json, as dicts and lists, or its text if it has no --json. Raises the same exceptions as the other functions.
#[pyfunction]
#[pyo3(signature = (name, *words, callback = None, progress = true, **flags))]
pub(crate) fn command<'py>(
    py: Python<'py>,
    name: &str,
    words: &Bound<'py, PyTuple>,
    callback: Option<Bound<'py, PyAny>>,
    progress: bool,
    flags: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let mut line: Vec<OsString> = vec!["ddpm-ip".into(), name.into()];
    let reports = Named::find(name).map_err(|e| config_error(py, e.0))?.has("json");
    if reports {
        line.push("--json".into());
    }
    for word in words {
        line.push(path(&word).map_or_else(|| word.str().map(|w| w.to_string().into()), Ok)?);
    }
    line.extend(crate::arguments::words(name, flags)?);
    let (_, report) = work(py, &Listener { callback, progress }, |desk| host::call(line, desk.host()))?;
    if reports { json(py, &report) } else { Ok(pyo3::types::PyString::new(py, &report).into_any()) }
}

/// The recipes that train() can begin from, as dicts.
#[pyfunction]
pub(crate) fn presets(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    command(py, "presets", &PyTuple::empty(py), None, false, None)
}

/// The devices of this machine, a line of text for each. If a GPU cannot be used, a line says what is missing and what installs it.
#[pyfunction]
pub(crate) fn devices(py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
    let lines = py.detach(ddpm_ip::devices).map_err(|e| config_error(py, e.0))?;
    PyList::new(py, lines)
}

/// The program ddpm-ip, on the words of sys.argv. Returns its exit code.
#[pyfunction]
pub(crate) fn main(py: Python<'_>) -> PyResult<u8> {
    let words: Vec<OsString> = py.import("sys")?.getattr("argv")?.extract()?;
    Ok(py.detach(|| ddpm_ip_cli::main(words)))
}
