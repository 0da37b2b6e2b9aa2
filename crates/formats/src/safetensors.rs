//! Safetensors files: the length of a header, a header in JSON, and the numbers of all tensors.
//!
//! What is written here carries checksums (CRC-32, which notices every change within 32 bits in a row) in entries of text, which
//! other programs pass over: `CHECKSUMS`, one of each tensor's bytes, and `OF_HEADER`, that of the header itself while
//! this entry is zeros. What is read is compared with them. Files without them are read all the same.

use crate::{Error, Result, kind};
use bytemuck::cast_slice;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The longest header that the format allows.
const MOST_HEADER: u64 = 100_000_000;

/// The entry with the checksums of tensors, a dictionary in JSON.
const CHECKSUMS: &str = "crc32";

/// The entry with the checksum of the header, and what its place holds while that is computed.
const OF_HEADER: &str = "crc32.header";
const ZEROS: [u8; 8] = [b'0'; 8];

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
    /// Checksums of tensors by name, if the file has any.
    checksums: Option<BTreeMap<String, String>>,
    /// Where the numbers begin.
    begin: u64,
}

impl Safetensors {
    /// Reads a file's header.
    ///
    /// # Errors
    /// A file that is missing, damaged or of another kind.
    pub fn open(path: &Path) -> Result<Self> {
        let file = crate::open(path)?;
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        Self::read(file, length, path).map_err(|error| match kind::of(path) {
            Some(kind) => Error::file(path, kind.to_string()),
            None => error,
        })
    }
}

impl<R: Read + Seek> Safetensors<R> {
    /// As [`Safetensors::open`], from a reader of `length` bytes, which is called `path` in messages.
    ///
    /// # Errors
    /// Damage.
    pub fn read(mut file: R, length: u64, path: &Path) -> Result<Self> {
        let mut prefix = [0; 8];
        file.read_exact(&mut prefix).map_err(|_| damaged(path, "it is too short"))?;
        if prefix.starts_with(b"PK\x03\x04") {
            let message = "is a zip archive as PyTorch writes them, damaged or cut off: copy or download it again";
            return Err(Error::file(path, message));
        }
        let header = u64::from_le_bytes(prefix);
        if header > length - 8 || header > MOST_HEADER {
            return Err(damaged(path, "its header is longer than the file"));
        }
        let mut bytes = Vec::new();
        (&mut file).take(header).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
        let has_checksum = check_header(&mut bytes).map_err(|what| damaged(path, what))?;
        let parsed: Metadata = serde_json::from_slice(&bytes).map_err(|e| damaged(path, e))?;
        let tensors =
            parsed.offset_keys().into_iter().filter_map(|name| parsed.info(&name).cloned().map(|info| (name, info)));
        // Only the constructor checks offsets against shapes.
        let metadata = Metadata::new(parsed.metadata().clone(), tensors.collect()).map_err(|e| damaged(path, e))?;
        let begin = 8 + header;
        let expected = begin + metadata.data_len() as u64;
        if expected != length {
            return Err(damaged(path, format!("{length} bytes, expected {expected}")));
        }
        let checksums = metadata.metadata().as_ref().and_then(|text| text.get(CHECKSUMS)).filter(|_| has_checksum);
        let checksums = checksums.map(|text| serde_json::from_str(text)).transpose().map_err(|e| damaged(path, e))?;
        Ok(Self { path: path.to_path_buf(), file, metadata, checksums, begin })
    }

    /// Whether what is read is compared with checksums.
    pub fn has_checksums(&self) -> bool {
        self.checksums.is_some()
    }

    /// Reads all tensors and compares them with their checksums; says how many there are.
    ///
    /// # Errors
    /// The first that is damaged.
    pub fn verify(&mut self) -> Result<usize> {
        let names = self.metadata.offset_keys();
        for name in &names {
            self.bytes(name)?;
        }
        Ok(names.len())
    }

    /// A tensor's number type and bytes.
    fn bytes(&mut self, name: &str) -> Result<(Dtype, Vec<u8>)> {
        let path = &self.path;
        let info = self.metadata.info(name).ok_or_else(|| damaged(path, format!("`{name}` is missing")))?;
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0; to - from];
        self.file.seek(SeekFrom::Start(self.begin + from as u64)).map_err(Error::io("read", path))?;
        self.file.read_exact(&mut bytes).map_err(Error::io("read", path))?;
        if let Some(checksums) = &self.checksums
            && checksums.get(name).is_none_or(|checksum| *checksum != hex(&bytes))
        {
            let message = format!("`{name}` is damaged: its checksum does not match. Use another copy of the file");
            return Err(Error::file(path, message));
        }
        Ok((info.dtype, bytes))
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

    /// A tensor's numbers, rounded to float32.
    ///
    /// # Errors
    /// One that is not there, damaged, or of other numbers than F64, F32, F16 and BF16.
    pub fn floats(&mut self, name: &str) -> Result<Vec<f32>> {
        let (dtype, bytes) = self.bytes(name)?;
        let pairs = || bytes.as_chunks::<2>().0.iter();
        Ok(match dtype {
            Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
            Dtype::F16 => pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            other => {
                let message = format!("`{name}` is {other:?}, but only F64, F32, F16 and BF16 are supported");
                return Err(Error::file(&self.path, message));
            }
        })
    }
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::file(path, format!("not a complete safetensors file ({what}): copy it again, or use another"))
}

/// A tensor to write: name, shape, values.
pub type Tensor<'a> = (String, &'a [usize], &'a [f32]);

/// In which type numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// F32.
    Single,
    /// F16. What is beyond its range becomes the largest number that it has.
    Half,
}

/// A checksum as it is written.
fn hex(bytes: &[u8]) -> String {
    format!("{:08x}", crc32fast::hash(bytes))
}

/// Where a header has the digits of its own checksum. In texts of it a quote has a backslash before it.
fn place_of_checksum(header: &[u8]) -> Option<Range<usize>> {
    let key = format!("\"{OF_HEADER}\":\"");
    let begin = header.windows(key.len()).position(|bytes| bytes == key.as_bytes())? + key.len();
    Some(begin..begin + ZEROS.len()).filter(|place| place.end <= header.len())
}

/// Compares a header with its checksum, and says whether it has one; else what is wrong.
fn check_header(header: &mut [u8]) -> std::result::Result<bool, String> {
    let key = format!("\"{CHECKSUMS}\":");
    let Some(place) = place_of_checksum(header) else {
        let half = header.windows(key.len()).any(|bytes| bytes == key.as_bytes());
        return if half { Err("its header is damaged".into()) } else { Ok(false) };
    };
    let mut checksum = ZEROS;
    checksum.swap_with_slice(&mut header[place]);
    if hex(header).as_bytes() == checksum { Ok(true) } else { Err("its header is damaged".into()) }
}

/// Writes tensors and entries of text, with their checksums.
///
/// # Errors
/// What writing says.
pub fn write(
    w: &mut dyn Write,
    tensors: &mut [Tensor],
    text: &BTreeMap<&str, String>,
    width: Width,
) -> std::io::Result<()> {
    let (dtype, size) = match width {
        Width::Single => ("F32", 4),
        Width::Half => ("F16", 2),
    };
    // The format's own order.
    tensors.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    let checksums: BTreeMap<&str, String> =
        tensors.par_iter().map(|(name, _, values)| (name.as_str(), hex(&little_endian(values, width)))).collect();
    let mut text = text.clone();
    text.insert(CHECKSUMS, serde_json::to_string(&checksums)?);
    text.insert(OF_HEADER, String::from_utf8_lossy(&ZEROS).into_owned());
    let mut header = Map::from_iter([("__metadata__".to_string(), json!(text))]);
    let mut end = 0;
    for (name, shape, values) in tensors.iter() {
        let offsets = [end, end + size * values.len()];
        end = offsets[1];
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
    }
    let mut header = serde_json::to_vec(&Value::Object(header))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let checksum = hex(&header);
    if let Some(place) = place_of_checksum(&header) {
        header[place].copy_from_slice(checksum.as_bytes());
    }
    w.write_all(&(header.len() as u64).to_le_bytes())?;
    w.write_all(&header)?;
    tensors.iter().try_for_each(|(.., values)| w.write_all(&little_endian(values, width)))
}

/// Values as little-endian bytes.
fn little_endian(values: &[f32], width: Width) -> Cow<'_, [u8]> {
    if width == Width::Half {
        let most = f16::MAX.to_f32();
        return values.iter().flat_map(|v| f16::from_f32(v.clamp(-most, most)).to_le_bytes()).collect();
    }
    if cfg!(target_endian = "little") {
        return cast_slice(values).into();
    }
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn written() -> Vec<u8> {
        let (a, b) = (vec![1.0f32, -2.5, 3.25, 0.0, 9.0, 1e-20], vec![7.0f32]);
        let mut tensors = [("b".to_string(), &[1][..], &b[..]), ("a.weight".to_string(), &[2, 3][..], &a[..])];
        let text = BTreeMap::from([("config", "a = \"crc32.header\":\"1\"".to_string())]);
        let mut bytes = Vec::new();
        write(&mut bytes, &mut tensors, &text, Width::Single).unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Safetensors<Cursor<&[u8]>>> {
        Safetensors::read(Cursor::new(bytes), bytes.len() as u64, Path::new("x"))
    }

    #[test]
    fn what_is_written_is_read_by_any_reader() {
        let bytes = written();
        let mut file = read(&bytes).unwrap();
        assert_eq!(file.floats("a.weight").unwrap(), [1.0, -2.5, 3.25, 0.0, 9.0, 1e-20]);
        assert_eq!((file.verify().unwrap(), file.has_checksums(), file.shape("b").unwrap()), (2, true, &[1][..]));
        assert_eq!(file.text("config").unwrap(), "a = \"crc32.header\":\"1\"");
        let other = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(other.tensor("b").unwrap().data(), 7.0f32.to_le_bytes());
        assert_eq!(written(), bytes);
    }

    #[test]
    fn halves_are_written_within_their_range() {
        let values = [0.5, -1e9, 2e-8, 65504.0, 1.0 + 1.0 / 4096.0];
        let mut tensors = [("w".to_string(), &[5][..], &values[..])];
        let mut bytes = Vec::new();
        write(&mut bytes, &mut tensors, &BTreeMap::new(), Width::Half).unwrap();
        let mut file = read(&bytes).unwrap();
        assert_eq!(file.floats("w").unwrap(), [0.5, -65504.0, 0.0, 65504.0, 1.0]);
        assert_eq!((file.verify().unwrap(), file.tensors()[0].dtype.as_str()), (1, "F16"));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = written();
        let numbers = bytes.len() - 28;
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let error = read(&damaged).and_then(|mut file| file.verify()).expect_err(&format!("bit {bit}")).to_string();
            if bit / 8 >= numbers {
                let name = if bit / 8 < numbers + 24 { "`a.weight` is damaged" } else { "`b` is damaged" };
                assert!(error.contains(name), "{error}");
            }
        }
        for cut in 0..bytes.len() {
            assert!(read(&bytes[..cut]).is_err(), "cut off after {cut}");
        }
    }

    #[test]
    fn files_without_checksums_are_read() {
        let tensor = safetensors::tensor::TensorView::new(Dtype::F32, vec![1], &[0, 0, 128, 63]).unwrap();
        let bytes = safetensors::serialize([("w", tensor)], None).unwrap();
        let mut file = read(&bytes).unwrap();
        assert_eq!((file.floats("w").unwrap(), file.has_checksums()), (vec![1.0], false));
    }
}
