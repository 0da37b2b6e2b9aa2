//! The library's errors as exceptions, with the same texts.

use ddpm_ip::Error;
use ddpm_ip::config::ConfigError;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};

/// Exceptions of the module: name, doc, and whether it is a `ValueError`, too. The first is the base of the others.
const KINDS: [(&str, &str, bool); 6] = [
    ("Error", "Anything that goes wrong in ddpm_ip.", false),
    ("ConfigError", "Settings or arguments that cannot be used.", true),
    ("DataError", "Images that cannot be used.", true),
    ("FileError", "A file that is damaged, of another kind, or cannot be read or written.", false),
    ("DeviceError", "A GPU that failed or has too little memory.", false),
    ("DivergedError", "A training whose loss or gradient is no longer finite.", false),
];

/// Which exception.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Error,
    Config,
    Data,
    File,
    Device,
    Diverged,
}

static TYPES: PyOnceLock<Vec<Py<PyType>>> = PyOnceLock::new();

fn types(py: Python<'_>) -> PyResult<&Vec<Py<PyType>>> {
    TYPES.get_or_try_init(py, || {
        let mut types: Vec<Py<PyType>> = Vec::new();
        for (name, doc, is_value_error) in KINDS {
            let bases = match types.first() {
                None => vec![py.get_type::<PyException>()],
                Some(base) => vec![base.bind(py).clone()],
            };
            let value_error = is_value_error.then(|| py.get_type::<PyValueError>());
            let bases = PyTuple::new(py, bases.into_iter().chain(value_error).collect::<Vec<_>>())?;
            let body = PyDict::new(py);
            body.set_item("__module__", "ddpm_ip")?;
            body.set_item("__doc__", doc)?;
            types.push(py.get_type::<PyType>().call1((name, bases, body))?.cast_into()?.unbind());
        }
        Ok(types)
    })
}

/// Adds the exceptions to the module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    for class in types(module.py())? {
        let class = class.bind(module.py());
        module.add(class.name()?, class)?;
    }
    Ok(())
}

/// An exception of a kind.
pub(crate) fn error(py: Python<'_>, kind: Kind, text: impl Into<String>) -> PyErr {
    match types(py) {
        Ok(types) => PyErr::from_type(types[kind as usize].bind(py).clone(), (text.into(),)),
        Err(error) => error,
    }
}

/// An argument that cannot be used.
pub(crate) fn config_error(py: Python<'_>, text: impl Into<String>) -> PyErr {
    error(py, Kind::Config, text)
}

/// What the library or the program said.
pub(crate) fn raised(py: Python<'_>, failure: &anyhow::Error) -> PyErr {
    let kind = match failure.downcast_ref::<Error>() {
        Some(Error::Config(_)) => Kind::Config,
        Some(Error::Data(_)) => Kind::Data,
        Some(Error::File { .. } | Error::Fetch { .. } | Error::Io { .. }) => Kind::File,
        Some(Error::Device(_)) => Kind::Device,
        Some(Error::Diverged { .. }) => Kind::Diverged,
        None if failure.is::<ConfigError>() => Kind::Config,
        None if failure.is::<ddpm_ip::net::DeviceError>() => Kind::Device,
        Some(Error::Rank { .. } | Error::Meeting(_) | Error::Over | Error::Gone { .. }) | None => Kind::Error,
    };
    error(py, kind, format!("{failure:#}"))
}
