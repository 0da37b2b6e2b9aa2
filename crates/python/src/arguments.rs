//! What Python gives: words of a command line, and arrays.

use crate::errors::config_error;
use ddpm_ip::data::ImageArray;
use ddpm_ip::npz::Array;
use ddpm_ip_cli::host::Named;
use numpy::{PyArrayDyn, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyString};
use std::ffi::OsString;

/// The words of keyword arguments, as flags of a command.
pub(crate) fn words(command: &str, given: Option<&Bound<'_, PyDict>>) -> PyResult<Vec<OsString>> {
    let mut words = Vec::new();
    let Some(given) = given else { return Ok(words) };
    let command = Named::find(command).map_err(|e| config_error(given.py(), e.0))?;
    for (name, value) in given {
        let name: String = name.extract()?;
        if value.is_none() {
            continue;
        }
        if name == "settings" {
            let Ok(settings) = value.cast::<PyDict>() else {
                return Err(PyTypeError::new_err("settings must be a dict of section.key: value"));
            };
            for (key, value) in settings {
                words.extend(["--set".into(), format!("{}={}", text(&key)?, values(&value)?.join(",")).into()]);
            }
            continue;
        }
        words.extend(command.words(&name, &values(&value)?));
    }
    Ok(words)
}

/// A value, or each of several, as a command line has it.
fn values(value: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    let is_one = value.cast::<PyString>().is_ok() || value.cast::<PyDict>().is_ok();
    match value.try_iter() {
        Ok(entries) if !is_one => entries.map(|entry| text(&entry?)).collect(),
        _ => Ok(vec![text(value)?]),
    }
}

fn text(value: &Bound<'_, PyAny>) -> PyResult<String> {
    if let Ok(truth) = value.cast::<PyBool>() {
        return Ok(if truth.is_true() { "true" } else { "false" }.into());
    }
    if value.cast::<PyDict>().is_ok() {
        return Err(PyTypeError::new_err("a dict cannot be the value of a setting"));
    }
    value.str()?.extract()
}

/// A path, or something else, such as an array.
pub(crate) fn path(value: &Bound<'_, PyAny>) -> Option<OsString> {
    value.extract::<std::path::PathBuf>().ok().map(Into::into)
}

fn as_array<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    value.py().import("numpy")?.call_method1("asarray", (value,))
}

/// An array in one piece, of a type of NumPy's.
fn in_one_piece<'py, T: numpy::Element>(array: &Bound<'py, PyAny>, dtype: &str) -> PyResult<Bound<'py, PyArrayDyn<T>>> {
    let whole = array.py().import("numpy")?.call_method1("ascontiguousarray", (array, dtype))?;
    Ok(whole.cast_into()?)
}

/// The kind of an array's entries, as NumPy writes it: `f`, `u`, `i`, `b`, …
fn kind(array: &Bound<'_, PyAny>) -> PyResult<char> {
    array.getattr("dtype")?.getattr("kind")?.extract()
}

fn described(array: &Bound<'_, PyAny>) -> PyResult<String> {
    let (dtype, shape) = (array.getattr("dtype")?.str()?, array.getattr("shape")?.str()?);
    Ok(format!("{dtype} {shape}"))
}

/// Numbers with a point, as f32.
pub(crate) fn floats(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Array<f32>> {
    let array = as_array(value)?;
    if kind(&array)? != 'f' {
        let message = format!(
            "`{name}` is an array {}: give floats, images as x / 127.5 - 1 in numpy.float32",
            described(&array)?
        );
        return Err(config_error(value.py(), message));
    }
    let array: Bound<'_, PyArrayDyn<f32>> = in_one_piece(&array, "float32")?;
    Ok(Array { shape: array.shape().to_vec(), values: array.to_vec()? })
}

/// Times: numbers of any type, `[N]`.
pub(crate) fn times(value: &Bound<'_, PyAny>) -> PyResult<Vec<f32>> {
    let array = as_array(value)?;
    let shape: Vec<usize> = array.getattr("shape")?.extract()?;
    if !"fiu".contains(kind(&array)?) || shape.len() != 1 {
        let message = format!("`t` is an array {}: give one number for each image, [N]", described(&array)?);
        return Err(config_error(value.py(), message));
    }
    Ok(in_one_piece::<f32>(&array, "float32")?.to_vec()?)
}

/// Whole numbers `[N]`.
pub(crate) fn labels(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<i64>> {
    let array = as_array(value)?;
    let shape: Vec<usize> = array.getattr("shape")?.extract()?;
    if !"iu".contains(kind(&array)?) || shape.len() != 1 {
        let one_hot = if shape.len() == 2 { ", of one-hot ones labels.argmax(1)" } else { "" };
        let message =
            format!("`{name}` is an array {}: give one whole number for each image, [N]{one_hot}", described(&array)?);
        return Err(config_error(value.py(), message));
    }
    Ok(in_one_piece::<i64>(&array, "int64")?.to_vec()?)
}

/// Where images are.
pub(crate) enum Source {
    /// Under a name that the program takes.
    Named(OsString),
    /// In an array.
    Given(ImageArray),
}

impl Source {
    /// A name, or an array of images with their classes.
    pub(crate) fn new(value: &Bound<'_, PyAny>, of_images: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        match (path(value), of_images) {
            (None, of_images) => images(value, of_images).map(Self::Given),
            (Some(name), None) => Ok(Self::Named(name)),
            (Some(_), Some(_)) => {
                let message = "labels are only for images that are given as an array: other images have labels of \
                               their own";
                Err(PyTypeError::new_err(message))
            }
        }
    }
}

/// Images: bytes `[N, H, W, C]` or `[N, H, W]`, and their classes.
pub(crate) fn images(value: &Bound<'_, PyAny>, of_images: Option<&Bound<'_, PyAny>>) -> PyResult<ImageArray> {
    let py = value.py();
    let array = as_array(value)?;
    let dtype: String = array.getattr("dtype")?.str()?.extract()?;
    if dtype != "uint8" {
        let mended = match kind(&array)? {
            'f' => "give bytes, of values from -1 to 1 as ((x + 1) * 127.5).round().clip(0, 255).astype(numpy.uint8)",
            'O' | 'U' | 'S' => "give a path, or an array of bytes [N, H, W, C]",
            _ => "give bytes from 0 to 255, as x.astype(numpy.uint8) where they are that",
        };
        return Err(config_error(py, format!("images are an array {}: {mended}", described(&array)?)));
    }
    let array: Bound<'_, PyArrayDyn<u8>> = in_one_piece(&array, "uint8")?;
    let shape = match *array.shape() {
        [n, h, w] => [n, h, w, 1],
        [n, h, w, c] => [n, h, w, c],
        ref other => return Err(config_error(py, format!("images have shape {other:?}, expected [N, H, W, C]"))),
    };
    let classes = of_images.map(|given| labels("labels", given)).transpose()?;
    let classes = classes.map(|labels| {
        let small = |label: &i64| u32::try_from(*label).ok();
        labels.iter().map(small).collect::<Option<Vec<u32>>>()
    });
    let classes = match classes {
        Some(None) => return Err(config_error(py, "`labels` holds a negative number, or one beyond 32 bits")),
        Some(found) => found,
        None => None,
    };
    ImageArray::new(shape, array.to_vec()?, classes).map_err(|e| config_error(py, e.0))
}
