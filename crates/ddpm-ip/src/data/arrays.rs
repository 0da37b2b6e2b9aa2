//! Which arrays of an npz or npy file are images and labels, and the line of NumPy that makes others such.

use crate::Error;
use crate::config::MOST_CLASSES;
use crate::npz::{Head, Npz};
use std::path::{Path, PathBuf};

/// The names that `numpy.savez` gives to arrays without one, which the reference's scripts use.
const IMAGES: &str = Npz::ONLY;
const LABELS: &str = "arr_1";

/// What people call labels, where several arrays have one value per image.
const CALLED_LABELS: [&str; 6] = ["labels", "label", "y", "targets", "target", "classes"];

/// More channels are taken for a side of the images.
const MOST_CHANNELS: usize = 4;

/// Images, and labels if there are any.
pub(super) struct Arrays {
    path: PathBuf,
    npz: Npz,
    images: String,
    labels: Option<String>,
    shape: [usize; 4],
}

impl Arrays {
    /// Finds the images: `arr_0`, or the only array that can be some.
    ///
    /// # Errors
    /// A file that is damaged, or has no images, or arrays that are images only after a line of NumPy, which is said.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let mut npz = Npz::open(path)?;
        let names = npz.names();
        let heads = if npz.has(IMAGES) { Vec::new() } else { heads(&mut npz, &names)? };
        let (images, head) = match heads.as_slice() {
            [] if npz.has(IMAGES) => (IMAGES.to_string(), npz.head(IMAGES)?),
            [(name, head)] => (name.clone(), head.clone()),
            [] if names.len() == 1 => (names[0].clone(), npz.head(&names[0])?),
            [] => {
                let held = if names.is_empty() { "none".into() } else { names.join(", ") };
                return Err(Error::file(path, format!("has no array `{IMAGES}` of images; it holds: {held}")));
            }
            several => {
                let listed: Vec<String> =
                    several.iter().map(|(name, head)| format!("`{name}` {:?}", head.shape)).collect();
                let line = numpy(path, &several[0].0, "", None);
                let message =
                    format!("has several arrays that could be images, {}: save one, as with {line}", listed.join(", "));
                return Err(Error::file(path, message));
            }
        };
        let labels = labels_beside(&mut npz, &names, &images, head.shape.first().copied().unwrap_or(0))?;
        let convert = |what: String, expression: &str| {
            let line = numpy(path, &images, expression, labels.as_deref());
            Error::file(path, format!("`{images}` {what}: convert it with {line}"))
        };
        if head.kind() == 'O' {
            return Err(convert("holds Python objects".into(), "np.stack(x).astype(np.uint8)"));
        }
        let shape = image_shape(path, &images, &head.shape, &convert)?;
        match head.kind() {
            'u' | 'i' => {}
            'f' => {
                let expression = match npz.range(&images)? {
                    [least, most] if !(least.is_finite() && most.is_finite()) => {
                        let message =
                            format!("`{images}` holds floats that are not finite: find out why before you convert it");
                        return Err(Error::file(path, message));
                    }
                    [least, most] if (-1.5..0.0).contains(&least) && most <= 1.5 => {
                        "((x + 1) * 127.5).round().clip(0, 255).astype(np.uint8)"
                    }
                    [least, most] if least >= 0.0 && most <= 1.0 => "(x * 255).round().astype(np.uint8)",
                    [least, most] if least >= 0.0 && most <= 255.0 => "x.round().astype(np.uint8)",
                    _ => "((x - x.min()) / (x.max() - x.min()) * 255).round().astype(np.uint8)",
                };
                return Err(convert(format!("holds floats ({})", head.dtype), expression));
            }
            'b' => return Err(convert("holds booleans".into(), "x.astype(np.uint8) * 255")),
            _ => return Err(Error::file(path, format!("`{images}` has dtype {}, expected uint8", head.dtype))),
        }
        Ok(Self { path: path.into(), npz, images, labels, shape })
    }

    /// The sizes `[N, H, W, C]`.
    pub(super) fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Which arrays were taken, if not those that the reference's scripts write.
    pub(super) fn taken(&self) -> Option<String> {
        let labels = self.labels.as_deref();
        if self.images == IMAGES && labels.is_none_or(|labels| labels == LABELS) {
            return None;
        }
        Some(match labels {
            Some(labels) => format!("images are its array `{}`, labels `{labels}`", self.images),
            None => format!("images are its array `{}`", self.images),
        })
    }

    /// All images.
    ///
    /// # Errors
    /// Numbers that are no bytes, damage.
    pub(super) fn images(&mut self) -> Result<Vec<u8>, Error> {
        let images = self.images.clone();
        Ok(self.npz.bytes(&images).map_err(|e| self.deeper(e))?.values)
    }

    /// Passes images on, up to `rows` at a time, until `take` says no.
    ///
    /// # Errors
    /// As [`Self::images`], and what `take` says.
    pub(super) fn rows(
        &mut self,
        rows: usize,
        take: &mut dyn FnMut(&[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let images = self.images.clone();
        self.npz.byte_rows(&images, rows, take).map_err(|e| self.deeper(e))
    }

    /// Of whole numbers that are no bytes: the line that makes them such.
    fn deeper(&self, error: impl Into<Error>) -> Error {
        match error.into() {
            Error::File { path, message } if message.contains("expected whole numbers from 0 to 255") => {
                let line =
                    numpy(&path, &self.images, "(x / x.max() * 255).round().astype(np.uint8)", self.labels.as_deref());
                Error::File { path, message: format!("{message}: convert it with {line}") }
            }
            other => other,
        }
    }

    /// The labels, if there are any.
    ///
    /// # Errors
    /// Others than one whole number for each image, with the line of NumPy that makes them such.
    pub(super) fn labels(&mut self) -> Result<Option<Vec<u32>>, Error> {
        let Some(name) = self.labels.clone() else { return Ok(None) };
        let (path, n) = (&self.path, self.shape[0]);
        let Head { shape, dtype } = self.npz.head(&name)?;
        let convert = |what: &str, expression: &str| {
            let file = python(path);
            let pickled = if dtype.contains('O') { ", allow_pickle=True" } else { "" };
            let message = format!(
                "`{name}` {what}: convert it with `import numpy as np; z = np.load({file}{pickled}); y = z['{name}']; \
                 np.savez('converted.npz', arr_0=z['{}'], arr_1={expression})`",
                self.images
            );
            Error::file(path, message)
        };
        match (shape.as_slice(), dtype.trim_start_matches(['<', '>', '|', '=']).chars().next()) {
            ([rows], Some('U' | 'S' | 'O')) if *rows == n => {
                return Err(convert("holds names", "np.unique(y, return_inverse=True)[1]"));
            }
            ([rows, classes], _) if *rows == n && *classes > 1 => return Err(convert("is one-hot", "y.argmax(1)")),
            ([rows] | [rows, 1], Some('f')) if *rows == n => return Err(convert("holds floats", "y.astype(int)")),
            ([rows] | [rows, 1], _) if *rows == n => {}
            _ => {
                let message = format!("`{name}` has shape {shape:?}, expected one label for each of the {n} images");
                return Err(Error::file(path, message));
            }
        }
        let label = |label: i64| u32::try_from(label).ok().filter(|&l| (l as usize) < MOST_CLASSES);
        let labels: Option<Vec<u32>> = self.npz.integers(&name)?.values.into_iter().map(label).collect();
        let wrong =
            || Error::file(path, format!("`{name}` holds a label that is negative or not below {MOST_CLASSES}"));
        labels.map(Some).ok_or_else(wrong)
    }
}

/// The arrays that could be images by their shape.
fn heads(npz: &mut Npz, names: &[String]) -> Result<Vec<(String, Head)>, Error> {
    let mut found = Vec::new();
    for name in names {
        let head = npz.head(name)?;
        if head.shape.len() > 2 {
            found.push((name.clone(), head));
        }
    }
    Ok(found)
}

/// The name of the labels of `n` images: `arr_1`, or the only other array with a row for each.
fn labels_beside(npz: &mut Npz, names: &[String], images: &str, n: usize) -> Result<Option<String>, Error> {
    if images == IMAGES && npz.has(LABELS) {
        return Ok(Some(LABELS.into()));
    }
    let mut found = Vec::new();
    for name in names.iter().filter(|name| *name != images) {
        let shape = npz.head(name)?.shape;
        if shape.len() < 3 && shape.first() == Some(&n) {
            found.push(name.clone());
        }
    }
    let called = found.iter().position(|name| CALLED_LABELS.contains(&name.to_lowercase().as_str()));
    Ok(match (called, found.len()) {
        (Some(at), _) => Some(found.swap_remove(at)),
        (None, 1) => found.pop(),
        _ => None,
    })
}

/// The sizes `[N, H, W, C]` of images; `[N, H, W]` are grey.
fn image_shape(
    path: &Path,
    name: &str,
    shape: &[usize],
    convert: &dyn Fn(String, &str) -> Error,
) -> Result<[usize; 4], Error> {
    if shape.contains(&0) {
        return Err(Error::file(path, format!("`{name}` has shape {shape:?}: there is no image in it")));
    }
    let other = |what: &str, expression: &str| Err(convert(format!("has shape {shape:?}, {what}"), expression));
    match *shape {
        [n, h, w, c] if c <= MOST_CHANNELS => Ok([n, h, w, c]),
        [_, c, ..] if shape.len() == 4 && c <= MOST_CHANNELS => {
            other("channels first; channels last is needed", "x.transpose(0, 2, 3, 1)")
        }
        [_, _, c, _] if c <= MOST_CHANNELS => other("images last, as MATLAB has it", "x.transpose(3, 0, 1, 2)"),
        [h, w, c] if c <= MOST_CHANNELS && h != c && w != c => other("one image", "x[None]"),
        [n, h, w] => Ok([n, h, w, 1]),
        [_, values] => {
            let side = |values: usize| Some(values.isqrt()).filter(|side| side * side == values);
            match (side(values), side(values / 3).filter(|_| values.is_multiple_of(3))) {
                (Some(side), _) => other("an image in each row", &format!("x.reshape(-1, {side}, {side}, 1)")),
                (None, Some(side)) => {
                    other("an image in each row", &format!("x.reshape(-1, 3, {side}, {side}).transpose(0, 2, 3, 1)"))
                }
                (None, None) => Err(Error::file(path, format!("`{name}` has shape {shape:?}, expected [N, H, W, C]"))),
            }
        }
        _ => Err(Error::file(path, format!("`{name}` has shape {shape:?}, expected [N, H, W, C]"))),
    }
}

/// A file's name as Python writes it.
fn python(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\\', r"\\").replace('\'', r"\'"))
}

/// The line of NumPy that saves an `expression` in the array `x` of that name as images.
fn numpy(path: &Path, name: &str, expression: &str, labels: Option<&str>) -> String {
    let file = python(path);
    let expression = if expression.is_empty() { "x" } else { expression };
    let pickled = if expression.starts_with("np.stack") { ", allow_pickle=True" } else { "" };
    let is_npy = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("npy"));
    let load = if is_npy {
        format!("x = np.load({file}{pickled})")
    } else {
        format!("z = np.load({file}{pickled}); x = z['{name}']")
    };
    let labels = labels.map(|labels| format!(", arr_1=z['{labels}']")).unwrap_or_default();
    format!("`import numpy as np; {load}; np.savez('converted.npz', arr_0={expression}{labels})`")
}
