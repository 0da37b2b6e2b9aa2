//! PyTorch's checkpoint files: read as hostile until parsed, written as `torch.save` writes them.
//!
//! A checkpoint is a pickle, a program that builds objects, and beside it the numbers of its tensors. Here the program
//! only describes: what calls would make is known for a closed list of functions, and nothing is ever called. What is
//! read of any file takes memory in proportion to its size.

mod archive;
mod calls;
mod machine;
mod op;
mod optimizer;
mod source;
mod state_dict;
mod tensor;
mod value;
mod write;

pub use optimizer::Optimizer;
pub use tensor::{Dtype, Tensor};
pub use value::{Array, Value};
pub use write::{Moment, OptimizerEntries, write_optimizer, write_state_dict};

use crate::Error;
use crate::networks::Network;
use archive::Storages;
use source::Source;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use value::{Heap, Id};

/// What is wrong with a file; [`Error::file`] puts its name before.
type Fault = String;

/// Bytes that are converted at a time.
const CHUNK: usize = 1 << 16;

/// A pickle without tensors, such as the batches of CIFAR-10.
pub struct Pickle {
    heap: Heap,
    root: Id,
}

impl Pickle {
    /// Reads a pickle of protocol 0 to 5.
    ///
    /// # Errors
    /// A file that is missing, damaged or no pickle.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = crate::open(path)?;
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        Self::read(BufReader::new(file), length).map_err(|message| Error::file(path, message))
    }

    /// As [`Self::open`], from `length` bytes of a reader.
    ///
    /// # Errors
    /// What is wrong, in words that follow a name.
    pub fn read(reader: impl std::io::BufRead, length: u64) -> Result<Self, Fault> {
        let (heap, root) = machine::load(&mut Source::new(reader, length))?;
        Ok(Self { heap, root })
    }

    /// The pickled object.
    pub fn value(&self) -> Value<'_> {
        self.heap.value(self.root)
    }
}

/// An open checkpoint. Its pickle is in memory, the numbers of its tensors are read when they are asked for.
pub struct TorchFile {
    path: PathBuf,
    pickle: Pickle,
    storages: Storages,
}

impl TorchFile {
    /// Whether a file's content, not its name, is that of a checkpoint.
    pub fn is_one(path: &Path) -> bool {
        crate::open(path).is_ok_and(archive::is_one)
    }

    /// Opens a checkpoint, written by `torch.save` in either layout.
    ///
    /// # Errors
    /// A file that is missing, damaged or no checkpoint.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = crate::open(path)?;
        let (heap, root, storages) = archive::open(file).map_err(|message| Error::file(path, message))?;
        Ok(Self { path: path.to_path_buf(), pickle: Pickle { heap, root }, storages })
    }

    /// The saved object.
    pub fn value(&self) -> Value<'_> {
        self.pickle.value()
    }

    /// The file's networks, at least one: named tensors of any dictionary, or list of dictionaries, in it, without what
    /// wraps their names. Averages come first.
    ///
    /// # Errors
    /// A file that holds something else, which the message names; names that occur twice.
    pub fn networks(&self) -> Result<Vec<Network<Tensor>>, Error> {
        state_dict::networks(self.value()).map_err(|message| Error::file(&self.path, message))
    }

    /// The tensors of the first of its [networks](Self::networks), in the file's order.
    ///
    /// # Errors
    /// As there.
    pub fn parameters(&self) -> Result<Vec<(String, Tensor)>, Error> {
        Ok(self.networks()?.swap_remove(0).tensors)
    }

    /// The state of an AdamW or Adam optimizer: the object itself, or what a dictionary has under `optimizer`,
    /// `optimizer_state_dict` or `opt`, or a list's element.
    ///
    /// # Errors
    /// A file that holds no such state, or an incomplete one.
    pub fn optimizer(&mut self) -> Result<Optimizer, Error> {
        optimizer::read(self).map_err(|message| Error::file(&self.path, message))
    }

    /// A tensor's numbers in C order, rounded to float32.
    ///
    /// # Errors
    /// A file that is damaged or cut off. Archives have checksums, which are compared when a storage is read whole; a
    /// tensor that is part of a larger storage is read without.
    pub fn floats(&mut self, tensor: &Tensor) -> Result<Vec<f32>, Error> {
        self.read(tensor, |v| v as f32).map_err(|message| Error::file(&self.path, message))
    }

    /// A tensor's numbers in C order as float64; whole numbers beyond 2^53 are rounded.
    ///
    /// # Errors
    /// As [`Self::floats`].
    pub fn doubles(&mut self, tensor: &Tensor) -> Result<Vec<f64>, Error> {
        self.read(tensor, |v| v).map_err(|message| Error::file(&self.path, message))
    }

    fn read<T: Copy>(&mut self, tensor: &Tensor, to: impl Fn(f64) -> T) -> Result<Vec<T>, Fault> {
        let (start, length) = tensor.bytes();
        if length == 0 {
            return Ok(Vec::new());
        }
        let damaged = |e| format!("is damaged or cut off ({e}): copy or download it again");
        let mut reader = self.storages.reader(tensor.key(), start, length)?;
        let mut chunk = vec![0; CHUNK];
        let mut numbers = Vec::with_capacity(length as usize / tensor.dtype().size());
        let mut left = length;
        while left > 0 {
            let size = left.min(CHUNK as u64);
            let piece = &mut chunk[..size as usize];
            reader.read_exact(piece).map_err(damaged)?;
            tensor.dtype().append(piece, &mut numbers, &to);
            left -= size;
        }
        match reader.read(&mut [0]) {
            Ok(0) => Ok(tensor.gather(numbers)),
            Ok(_) => Err("is damaged: a storage is longer than its archive says".into()),
            Err(e) => Err(damaged(e)),
        }
    }
}

#[cfg(test)]
mod tests;
