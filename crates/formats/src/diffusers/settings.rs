//! Files of settings.

use crate::{Error, Result};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The longest file of settings that is read, in bytes.
pub(super) const MOST_SETTINGS: u64 = 1 << 20;

/// An object of a file, and how to speak of it.
pub(super) struct Settings<'a> {
    pub(super) path: &'a Path,
    pub(super) map: Map<String, Value>,
}

impl Settings<'_> {
    /// Nothing for null, as if there were no such key.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn refuse(&self, key: &str, supported: &str) -> Error {
        let value = self.map.get(key).unwrap_or(&Value::Null);
        Error::file(self.path, format!("`{key}` is {value}, which is not supported: {supported}"))
    }

    pub(super) fn count(&self, key: &str, default: usize, most: usize) -> Result<usize> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let count = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=most).contains(n));
        count.ok_or_else(|| self.refuse(key, &format!("a whole number from 1 to {most} is")))
    }

    pub(super) fn number(&self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_f64().ok_or_else(|| self.refuse(key, "a number is"))
    }

    pub(super) fn is(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.refuse(key, "true or false is"))
    }

    pub(super) fn text<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_str().ok_or_else(|| self.refuse(key, "a text is"))
    }

    pub(super) fn texts(&self, key: &str) -> Result<Vec<&str>> {
        let list = self.get(key).and_then(Value::as_array);
        let list = list.and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        list.ok_or_else(|| self.refuse(key, "a list of names of blocks is"))
    }

    /// That a key is one of these values, the first of which it is where it is missing.
    pub(super) fn only(&self, key: &str, supported: &[Value]) -> Result<()> {
        let value = self.map.get(key).or(supported.first()).unwrap_or(&Value::Null);
        let same = |other: &Value| match (value.as_f64(), other.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-6 * b.abs(),
            _ => value == other,
        };
        if supported.iter().any(same) {
            return Ok(());
        }
        let words: Vec<String> = supported.iter().map(ToString::to_string).collect();
        Err(self.refuse(key, &format!("{} is", words.join(" or "))))
    }
}

/// The object that a file of settings holds; none if there is no such file.
pub(super) fn settings(path: &Path) -> Result<Option<Settings<'_>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    let mut text = Vec::new();
    file.take(MOST_SETTINGS + 1).read_to_end(&mut text).map_err(Error::io("read", path))?;
    if text.len() as u64 > MOST_SETTINGS {
        return Err(Error::file(path, "is too large for a settings file: use the network's own"));
    }
    match serde_json::from_slice(&text) {
        Ok(Value::Object(map)) => Ok(Some(Settings { path, map })),
        Ok(_) => Err(Error::file(path, "is not a JSON object: copy or download it again")),
        Err(error) => Err(Error::file(path, format!("is not valid JSON ({error}): copy or download it again"))),
    }
}
