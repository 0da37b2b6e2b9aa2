//! What a finished npz says of how it was made: a line of JSON in the archive's comment, which other programs pass over.

use crate::config::ConfigError;
use crate::npz::Npz;
use crate::weights;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How an npz was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Differs between two files whose content could.
    identity: String,
    /// Entries in it.
    pub(crate) count: usize,
    /// What it holds, in words.
    what: String,
    /// What was found beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) report: Option<serde_json::Value>,
    /// Names of the classes of its images, by their numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) classes: Vec<String>,
}

impl Record {
    /// Of `count` entries made by what `identity` says in full and `what` in words.
    pub(crate) fn new(identity: &str, count: usize, what: String) -> Self {
        Self { identity: weights::hash(identity.as_bytes()), count, what, report: None, classes: Vec::new() }
    }

    /// What a file says of how it was made.
    pub(crate) fn of(file: &Path) -> Option<Self> {
        let text = Npz::open(file).ok().and_then(|npz| npz.comment());
        text.and_then(|text| serde_json::from_str(&text).ok())
    }

    /// As it is written.
    pub(crate) fn line(&self) -> String {
        serde_json::to_string(self).expect("text and numbers are JSON")
    }

    /// The record of a file that holds the same already, or the beginning of it; none where there is no file.
    ///
    /// # Errors
    /// A file that holds something else, with what can be done `instead`.
    pub(crate) fn found_at(&self, out: &Path, instead: &str) -> Result<Option<Self>, ConfigError> {
        if !out.exists() {
            return Ok(None);
        }
        let refuse = |what: &str| Err(ConfigError(format!("{} {what}. {instead}", out.display())));
        match Self::of(out) {
            Some(found) if found.identity != self.identity || found.count > self.count => {
                refuse(&format!("holds {}", found.what))
            }
            Some(found) => Ok(Some(found)),
            None => refuse("exists, but does not say how it was made"),
        }
    }
}
