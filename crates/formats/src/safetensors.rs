//! Safetensors files: the length of a header, a header in JSON, and the numbers of all tensors.

use crate::{Error, Result};
use bytemuck::cast_slice;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The longest header that the format allows.
const MOST_HEADER: u64 = 100_000_000;

/// Name, shape and number type of one tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Number type as the format spells it, such as `F32`.
    pub dtype: String,
}

/// An open file. Its header is in memory, numbers are read when they are asked for.
pub struct Safetensors<R = File> {
    path: PathBuf,
    file: R,
    metadata: Metadata,
    /// Where the numbers begin.
    begin: u64,
}

impl Safetensors {
    /// Reads a file's header.
    ///
    /// # Errors
    /// A file that is missing, damaged or of another kind.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        Self::read(file, length, path)
    }
}

impl<R: Read + Seek> Safetensors<R> {
    /// As [`Safetensors::open`], from a reader of `length` bytes, which is called `path` in messages.
    ///
    /// # Errors
    /// Damage.
    pub fn read(mut file: R, length: u64, path: &Path) -> Result<Self> {
        let mut prefix = [0; 8];
        file.read_exact(&mut prefix).map_err(|e| damaged(path, e))?;
        let header = u64::from_le_bytes(prefix);
        if header > length - 8 || header > MOST_HEADER {
            return Err(damaged(path, "its header is longer than the file"));
        }
        let mut bytes = Vec::new();
        (&mut file).take(header).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
        let parsed: Metadata = serde_json::from_slice(&bytes).map_err(|e| damaged(path, e))?;
        let tensors =
            parsed.offset_keys().into_iter().filter_map(|name| parsed.info(&name).cloned().map(|info| (name, info)));
        // Only the constructor checks offsets against shapes.
        let metadata = Metadata::new(parsed.metadata().clone(), tensors.collect()).map_err(|e| damaged(path, e))?;
        let begin = 8 + header;
        let expected = begin + metadata.data_len() as u64;
        if expected != length {
            return Err(damaged(path, format!("{length} bytes, {expected} expected")));
        }
        Ok(Self { path: path.to_path_buf(), file, metadata, begin })
    }

    /// An entry of text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.metadata.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// What it holds, in the order of its bytes.
    pub fn tensors(&self) -> Vec<TensorInfo> {
        let info = |name: String| {
            let info = self.metadata.info(&name)?;
            Some(TensorInfo { shape: info.shape.clone(), dtype: format!("{:?}", info.dtype), name })
        };
        self.metadata.offset_keys().into_iter().filter_map(info).collect()
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.metadata.info(name).map(|info| info.shape.as_slice())
    }

    /// A tensor's numbers as float32.
    ///
    /// # Errors
    /// One that is not there, damaged, or of other numbers than F32, F16 and BF16.
    pub fn floats(&mut self, name: &str) -> Result<Vec<f32>> {
        let path = &self.path;
        let info = self.metadata.info(name).ok_or_else(|| damaged(path, format!("`{name}` is gone")))?;
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0; to - from];
        self.file.seek(SeekFrom::Start(self.begin + from as u64)).map_err(Error::io("read", path))?;
        self.file.read_exact(&mut bytes).map_err(Error::io("read", path))?;
        let pairs = || bytes.as_chunks::<2>().0.iter();
        Ok(match info.dtype {
            Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            other => {
                let message = format!("`{name}` is {other:?}; only F32, F16 and BF16 are read");
                return Err(Error::file(path, message));
            }
        })
    }
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::file(path, format!("not a whole safetensors file ({what}): copy it again, or take another"))
}

/// A tensor to write: name, shape, values.
pub type Tensor<'a> = (String, &'a [usize], &'a [f32]);

/// Writes tensors and entries of text.
///
/// # Errors
/// What writing says.
pub fn write(w: &mut dyn Write, tensors: &mut [Tensor], text: &BTreeMap<&str, String>) -> std::io::Result<()> {
    // The format's own order.
    tensors.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    let mut header = Map::from_iter([("__metadata__".to_string(), json!(text))]);
    let mut end = 0;
    for (name, shape, values) in tensors.iter() {
        let offsets = [end, end + size_of_val(*values)];
        end = offsets[1];
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": offsets}));
    }
    let mut header = serde_json::to_vec(&Value::Object(header))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    w.write_all(&(header.len() as u64).to_le_bytes())?;
    w.write_all(&header)?;
    tensors.iter().try_for_each(|(.., values)| write_values(w, values))
}

/// Writes values as little-endian bytes.
fn write_values(w: &mut dyn Write, values: &[f32]) -> std::io::Result<()> {
    if cfg!(target_endian = "little") {
        return w.write_all(cast_slice(values));
    }
    values.iter().try_for_each(|v| w.write_all(&v.to_le_bytes()))
}
