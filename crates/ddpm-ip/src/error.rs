//! What can go wrong, in words for the person at the keyboard.

use crate::config::ConfigError;
use crate::data::DataError;
use std::path::{Path, PathBuf};

/// Any failure of the library's work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The training images cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file given by the user is damaged, or is not what it should be.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        message: String,
    },
    /// A file on the network cannot be had.
    #[error("cannot fetch {url}: {message}")]
    Fetch {
        /// Where it should be.
        url: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// Reading or writing failed.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        /// What was tried, such as "read".
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A device failed.
    #[error(transparent)]
    Device(#[from] ddpm_net::DeviceError),
    /// Another process of the run ended.
    #[error("rank {rank} on {host}: {message}")]
    Rank {
        /// Which.
        rank: usize,
        /// The machine that it is on.
        host: String,
        /// Why.
        message: String,
    },
    /// The processes of a run did not find each other.
    #[error("the processes of the run did not meet: {0}. MASTER_ADDR and DDPM_IP_PORT say where rank 0 is")]
    Meeting(std::io::Error),
    /// Rank 0 has nothing left to do: no mistake, but the end of the others' work.
    #[error("the work is done")]
    Over,
    /// Another process of the run cannot be reached.
    #[error("rank {rank} has lost the other processes: {cause}")]
    Gone {
        /// This process.
        rank: usize,
        /// What the link said.
        cause: std::io::Error,
    },
    /// Training met a loss or gradient that is not finite.
    #[error(
        "training diverged at step {step}: the {what} is not finite. {}Try a lower --lr or --grad-clip 1.",
        match last_good { Some(p) => format!("The last good checkpoint is {}. ", p.display()), None => String::new() }
    )]
    Diverged {
        /// The step at which it was seen.
        step: u64,
        /// "loss" or "gradient".
        what: &'static str,
        /// The newest checkpoint from before, if there is one.
        last_good: Option<PathBuf>,
    },
}

impl Error {
    /// Damage or a mismatch in a file.
    pub fn file(path: &Path, message: impl Into<String>) -> Self {
        Self::File { path: path.to_path_buf(), message: message.into() }
    }

    /// For `map_err` on reading and writing.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |cause| Self::Io { action, path, cause }
    }
}

impl From<ddpm_formats::Error> for Error {
    fn from(error: ddpm_formats::Error) -> Self {
        match error {
            ddpm_formats::Error::File { path, message } => Self::File { path, message },
            ddpm_formats::Error::Io { action, path, cause } => Self::Io { action, path, cause },
        }
    }
}
