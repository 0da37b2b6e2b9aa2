//! Files that other programs write, read as hostile until parsed: what is read takes memory in proportion to the file, and
//! damage is an [`Error`] that says what is wrong and what to do.
//!
//! | module | reads | writes |
//! | --- | --- | --- |
//! | [`torch`] | `torch.save`'s files of either layout, pickles without code being run | state dicts, AdamW's state |
//! | [`npz`] | NumPy's npz | npz |
//! | [`safetensors`] | safetensors | safetensors |
//! | [`idx`] | the files of the MNIST family | |
//! | [`lmdb`] | LMDB databases | |
//! | [`archive`], [`folder`] | the files of a folder, a zip or a tar archive | |
//! | [`diffusers`] | what config.json says of a UNet2DModel, names of its tensors | the same |
//! | [`networks`] | the networks among a checkpoint's tensors | |
//! | [`kind`] | what a file is that is none of these | |

#![forbid(unsafe_code)]

pub mod archive;
pub mod diffusers;
mod error;
pub mod folder;
pub mod idx;
pub mod kind;
pub mod lmdb;
pub mod networks;
mod npy;
pub mod npz;
#[cfg(test)]
mod regression;
pub mod safetensors;
mod sink;
pub mod torch;

pub use error::{Error, Result};

use std::fs::File;
use std::path::Path;

/// Opens a regular file. Opening a pipe would wait for ever.
///
/// # Errors
/// A file that is missing or of another kind.
pub fn open(path: &Path) -> Result<File> {
    match std::fs::metadata(path).map_err(Error::io("read", path))? {
        meta if meta.is_file() => File::open(path).map_err(Error::io("read", path)),
        meta if meta.is_dir() => Err(Error::file(path, "is a folder: name a file")),
        _ => Err(Error::file(path, "is not a regular file")),
    }
}

/// Deflate makes no more than about 1032 bytes of one: a larger claim is a lie.
const MOST_EXPANSION: u64 = 1100;
