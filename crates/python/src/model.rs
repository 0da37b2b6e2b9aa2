//! Networks with parameters.

use crate::arguments::{floats, images, labels, path, times, words};
use crate::errors::{Kind, config_error, error, raised};
use crate::work::{Desk, Listener, check_process, log, work};
use ddpm_ip::Device;
use ddpm_ip::checkpoint::{Loaded, Origin};
use ddpm_ip::predict::{Input, call};
use ddpm_ip::sample::{Drawn, draw};
use ddpm_ip_cli::{host, sampling};
use numpy::{IntoPyArray, PyArray1, PyArrayDyn, PyArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyType};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Load a network with its parameters.
///
/// path: a run directory (the average of its newest checkpoint), a checkpoint folder, a .safetensors or a PyTorch file; whatever
/// `ddpm-ip sample --checkpoint` takes. device: "cpu", "cuda", "cuda:1", … or "auto". network: settings that cannot be read
/// from the file, as flags of `ddpm-ip sample` with underscores, such as noise_schedule="cosine" or num_head_channels=32;
/// network="ema" chooses one of several networks in a file.
///
/// Raises FileError if the file is damaged or no checkpoint, ConfigError if the settings contradict it.
#[pyfunction]
#[pyo3(signature = (path, *, device = "auto", **network))]
pub(crate) fn load(
    py: Python<'_>,
    path: PathBuf,
    device: &str,
    network: Option<&Bound<'_, PyDict>>,
) -> PyResult<Model> {
    let mut line = vec!["ddpm-ip".into(), "sample".into(), "--checkpoint".into(), path.into(), "--device".into()];
    line.push(device.into());
    line.extend(words("sample", network)?);
    let (loaded, remarks) = work(py, &Listener { callback: None, progress: false }, |desk| {
        let load = || {
            let (job, remarks, device) = sampling(line, None)?;
            Ok((Loaded::open(&job.checkpoint, &job.config, device)?, remarks))
        };
        Ok(host::serve(desk.host(), load)?.0)
    })?;
    for remark in remarks {
        log(py, "info", &remark)?;
    }
    Ok(Model { file: loaded.file.clone(), loaded: Mutex::new(Some(Arc::new(loaded))) })
}

/// A network with parameters, made by load().
///
/// Call it on noised images to get its prediction; sample() draws images. Several threads may use it at the same time. close()
/// frees its memory, as does the end of a `with` block.
#[pyclass(module = "ddpm_ip", frozen)]
pub(crate) struct Model {
    file: PathBuf,
    loaded: Mutex<Option<Arc<Loaded>>>,
}

impl Model {
    fn loaded(&self, py: Python<'_>) -> PyResult<Arc<Loaded>> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.clone().ok_or_else(|| {
            error(py, Kind::Error, format!("the model of {} is closed: load it again", self.file.display()))
        })
    }
}

#[pymethods]
impl Model {
    /// The network's prediction for noised images.
    ///
    /// x: floats [N, C, H, W], images in [-1, 1] with their noise. t: [N] times as the network was told them in training, from 0 to
    /// T - 1. y: [N] classes, for a network with classes. low_res: floats [N, C, h, h], for one that enlarges images. Returns
    /// float32 [N, C or 2C, H, W]: the prediction and, where the variance is learned, its channels. A classifier's logits are
    /// [N, classes]. Other floats are cast to float32.
    ///
    /// Raises ConfigError for arrays of the wrong type, shape or range, and for NaN.
    #[pyo3(signature = (x, t, y = None, *, low_res = None))]
    fn __call__<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        t: &Bound<'py, PyAny>,
        y: Option<&Bound<'py, PyAny>>,
        low_res: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        check_process(py)?;
        let loaded = self.loaded(py)?;
        let input = Input {
            x: floats("x", x)?,
            t: times(t)?,
            y: y.map(|y| labels("y", y)).transpose()?,
            low_res: low_res.map(|small| floats("low_res", small)).transpose()?,
        };
        let answer =
            work(py, &Listener { callback: None, progress: false }, |_| Ok(Device::guard(|| call(&loaded, &input))??))?;
        answer.values.into_pyarray(py).reshape(answer.shape)
    }

    /// Draw images.
    ///
    /// n: how many. seed: image i depends on the seed and i alone. sampler: "ddpm", "ddim", "dpm-solver++", "dpm-solver++-sde",
    /// "unipc" or "heun". steps: of the chain, such as 20 (all T if not given). classes: numbers or names, taken in turn.
    /// correct: corrections of exposure bias, such as "es:1.01", one or a list. callback: called with a dict for each event.
    /// progress: whether tqdm, where it is installed, shows how far it is. settings: all other flags of `ddpm-ip sample` with
    /// underscores, such as guidance_scale=2.0, eta=1.0, batch_size=100 or base_samples=…, small images uint8 [n, h, h, C] or a
    /// path. Returns uint8 [n, H, W, C], the bytes that `ddpm-ip sample` writes; with labels=True also the classes int64 [n],
    /// or None.
    ///
    /// Raises ConfigError for settings that cannot be used.
    #[pyo3(signature = (n, *, seed = 0, sampler = None, steps = None, classes = None, correct = None, labels = false,
        callback = None, progress = true, **settings))]
    #[expect(clippy::too_many_arguments, reason = "keywords of Python")]
    fn sample<'py>(
        &self,
        py: Python<'py>,
        n: usize,
        seed: u64,
        sampler: Option<&Bound<'py, PyAny>>,
        steps: Option<&Bound<'py, PyAny>>,
        classes: Option<&Bound<'py, PyAny>>,
        correct: Option<&Bound<'py, PyAny>>,
        labels: bool,
        callback: Option<Bound<'py, PyAny>>,
        progress: bool,
        settings: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let loaded = self.loaded(py)?;
        let given = settings.map_or_else(|| Ok(PyDict::new(py)), PyDictMethods::copy)?;
        for name in ["checkpoint", "out", "grid", "overwrite", "device"] {
            if given.contains(name)? {
                return Err(PyTypeError::new_err(format!("sample() has no argument {name}: it returns the images")));
            }
        }
        for (name, value) in
            [("sampler", sampler), ("timestep_respacing", steps), ("classes", classes), ("correct", correct)]
        {
            if let Some(value) = value {
                given.set_item(name, value)?;
            }
        }
        // Small images may be an array.
        let kept = match given.get_item("base_samples")?.filter(|small| path(small).is_none()) {
            Some(small) => {
                let file = written(py, &images(&small, None)?)?;
                given.set_item("base_samples", file.path())?;
                Some(file)
            }
            None => None,
        };
        let mut line: Vec<OsString> = vec!["ddpm-ip".into(), "sample".into(), "--checkpoint".into()];
        line.push(self.file.clone().into());
        line.extend([format!("--num-samples={n}").into(), format!("--seed={seed}").into()]);
        line.extend(words("sample", Some(&given))?);
        let own: toml::Table =
            loaded.config.to_toml().parse().map_err(|e: toml::de::Error| config_error(py, e.to_string()))?;
        let (job, remarks, _) = sampling(line, Some(own)).map_err(|e| raised(py, &e))?;
        for remark in remarks {
            log(py, "info", &remark)?;
        }
        let before = &loaded.config;
        if (&job.config.model, &job.config.diffusion.variance) != (&before.model, &before.diffusion.variance) {
            let message = "these settings describe another network than the loaded one: give them to load()";
            return Err(config_error(py, message));
        }
        let drawn = work(py, &Listener { callback, progress }, |desk: Desk| {
            let mut emit = |event| desk.tell(event);
            Ok(Device::guard(|| draw(&loaded, &job.config, &job.order, &desk.stop, &mut emit))??)
        })?;
        drop(kept);
        let Some(Drawn { images, shape, labels: own }) = drawn else {
            return Err(error(py, Kind::Error, "sampling was stopped"));
        };
        let images = images.into_pyarray(py).reshape(shape)?;
        if !labels {
            return Ok(images.into_any());
        }
        let own = own.map(|own| PyArray1::from_iter(py, own.into_iter().map(i64::from)));
        Ok((images, own).into_pyobject(py)?.into_any())
    }

    /// The file of the parameters.
    #[getter]
    fn file(&self) -> &PathBuf {
        &self.file
    }

    /// All settings, as the tables of config.toml.
    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        crate::run::parsed(py, &self.loaded(py)?.config.to_toml())
    }

    /// Height, width and channels of its images.
    #[getter]
    fn image_shape(&self, py: Python<'_>) -> PyResult<(usize, usize, usize)> {
        let model = &self.loaded(py)?.config.model;
        Ok((model.image_size, model.image_size, model.in_channels))
    }

    /// Number of classes, or None.
    #[getter]
    fn classes(&self, py: Python<'_>) -> PyResult<Option<usize>> {
        Ok(self.loaded(py)?.classes())
    }

    /// Number of values over all parameters.
    #[getter]
    fn parameters(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.loaded(py)?.parameter_count())
    }

    /// The training step of its parameters, or None if the file does not say.
    #[getter]
    fn step(&self) -> Option<u64> {
        Origin::of(&self.file).step
    }

    /// Free its memory. It cannot be used afterwards.
    fn close(&self) {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn __enter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    #[pyo3(signature = (_kind, _value, _traceback))]
    fn __exit__(
        &self,
        _kind: Option<&Bound<'_, PyType>>,
        _value: Option<&Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) {
        self.close();
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        match self.loaded(py) {
            Ok(loaded) => {
                let (model, n) = (&loaded.config.model, loaded.parameter_count());
                let (size, channels) = (model.image_size, model.in_channels);
                format!("<ddpm_ip.Model of {}: {size}x{size}x{channels}, {n} parameters>", Origin::of(&self.file))
            }
            Err(_) => format!("<ddpm_ip.Model of {}, closed>", self.file.display()),
        }
    }
}

/// Images in a file that goes with its handle.
pub(crate) fn written(py: Python<'_>, images: &ddpm_ip::data::ImageArray) -> PyResult<tempfile::NamedTempFile> {
    let file = tempfile::Builder::new().suffix(".npz").tempfile();
    let file = file.map_err(|e| error(py, Kind::File, format!("no temporary file can be made: {e}")))?;
    py.detach(|| images.write(file.path())).map_err(|e| raised(py, &e.into()))?;
    Ok(file)
}
