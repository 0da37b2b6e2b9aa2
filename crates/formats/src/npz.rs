//! NumPy's npz archives: read as hostile until parsed, written streaming.

use crate::npy::Header;
use crate::{Error, MOST_EXPANSION};
use std::fs::File;
use std::io::{BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};
use zip::{CompressionMethod, ZipArchive, ZipWriter, read::ZipFile, write::SimpleFileOptions};

/// An array in C order.
#[derive(Clone, Debug, PartialEq)]
pub struct Array<T> {
    /// Length of each dimension.
    pub shape: Vec<usize>,
    /// The values, last dimension fastest.
    pub values: Vec<T>,
}

/// An open archive.
pub struct Npz {
    path: PathBuf,
    zip: ZipArchive<BufReader<File>>,
}

impl Npz {
    /// Opens an archive.
    ///
    /// # Errors
    /// A file that is missing or no zip archive.
    pub fn open(path: &Path) -> Result<Self, Error> {
        if path.is_dir() {
            return Err(Error::file(path, "is a folder: name an .npz file"));
        }
        let file = File::open(path).map_err(Error::io("read", path))?;
        let zip = ZipArchive::new(BufReader::new(file))
            .map_err(|e| Error::file(path, format!("not a readable npz archive ({e})")))?;
        Ok(Self { path: path.to_path_buf(), zip })
    }

    /// Names of the arrays.
    pub fn names(&self) -> Vec<String> {
        self.zip.file_names().flatten().filter_map(|n| n.strip_suffix(".npy").map(str::to_string)).collect()
    }

    /// The archive's comment, if it has one.
    pub fn comment(&self) -> Option<String> {
        std::str::from_utf8(self.zip.comment()).ok().filter(|text| !text.is_empty()).map(String::from)
    }

    /// Whether there is an array of that name.
    pub fn has(&self, name: &str) -> bool {
        self.zip.index_for_name(&format!("{name}.npy")).is_some()
    }

    /// An array of bytes (uint8).
    ///
    /// # Errors
    /// A missing array, another dtype, damage.
    pub fn bytes(&mut self, name: &str) -> Result<Array<u8>, Error> {
        self.read(name, BYTES, |bytes, code| (code == ('u', 1)).then_some(bytes))
    }

    /// An array of floats (float32, or float64 rounded to it).
    ///
    /// # Errors
    /// A missing array, another dtype, damage.
    pub fn floats(&mut self, name: &str) -> Result<Array<f32>, Error> {
        self.read(name, "float32 or float64", |bytes, code| match code {
            ('f', 4) => Some(decoded(&bytes, f32::from_le_bytes)),
            ('f', 8) => Some(decoded(&bytes, |b| f64::from_le_bytes(b) as f32)),
            _ => None,
        })
    }

    /// An array of doubles (float64 or float32).
    ///
    /// # Errors
    /// A missing array, another dtype, damage.
    pub fn doubles(&mut self, name: &str) -> Result<Array<f64>, Error> {
        self.read(name, "float64 or float32", |bytes, code| match code {
            ('f', 8) => Some(decoded(&bytes, f64::from_le_bytes)),
            ('f', 4) => Some(decoded(&bytes, |b| f64::from(f32::from_le_bytes(b)))),
            _ => None,
        })
    }

    /// An array of whole numbers of any integer dtype.
    ///
    /// # Errors
    /// A missing array, another dtype, damage.
    pub fn integers(&mut self, name: &str) -> Result<Array<i64>, Error> {
        self.read(name, "an integer type", |bytes, code| {
            Some(match code {
                ('i', 8) => decoded(&bytes, i64::from_le_bytes),
                ('i', 4) => decoded(&bytes, |b| i64::from(i32::from_le_bytes(b))),
                ('i', 2) => decoded(&bytes, |b| i64::from(i16::from_le_bytes(b))),
                ('i', 1) => decoded(&bytes, |b| i64::from(i8::from_le_bytes(b))),
                ('u', 8) => decoded(&bytes, |b| i64::try_from(u64::from_le_bytes(b)).unwrap_or(i64::MAX)),
                ('u', 4) => decoded(&bytes, |b| i64::from(u32::from_le_bytes(b))),
                ('u', 2) => decoded(&bytes, |b| i64::from(u16::from_le_bytes(b))),
                ('u', 1) => decoded(&bytes, |b| i64::from(u8::from_le_bytes(b))),
                _ => return None,
            })
        })
    }

    /// Shape of an array of bytes (uint8), whose values are not read.
    ///
    /// # Errors
    /// A missing array, another dtype, a shape that the file cannot hold.
    pub fn byte_shape(&mut self, name: &str) -> Result<Vec<usize>, Error> {
        Ok(self.entry(name, BYTES)?.bytes()?.shape)
    }

    /// Passes an array of bytes on, up to `rows` of its first dimension at a time, until `take` says no.
    ///
    /// # Errors
    /// A missing array, another dtype, damage, what `take` says.
    pub fn byte_rows<E: From<Error>>(
        &mut self,
        name: &str,
        rows: usize,
        take: &mut dyn FnMut(&[u8]) -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut entry = self.entry(name, BYTES)?.bytes()?;
        let row: usize = entry.shape.iter().skip(1).product();
        let mut left = entry.shape.iter().product();
        let most = rows.saturating_mul(row).min(left);
        let mut buffer = vec![0; most];
        while left > 0 {
            let part = &mut buffer[..left.min(most)];
            entry.reader.read_exact(part).map_err(|e| entry.damaged(&format!("or cut off ({e})")))?;
            left -= part.len();
            if !take(part)? {
                return Ok(());
            }
        }
        Ok(entry.finish()?)
    }

    /// Reads an array; `parse` makes values of its bytes, little-endian, by kind and size of a value.
    fn read<T>(
        &mut self,
        name: &str,
        expected: &'static str,
        parse: impl FnOnce(Vec<u8>, (char, usize)) -> Option<Vec<T>>,
    ) -> Result<Array<T>, Error> {
        let mut entry = self.entry(name, expected)?;
        let (kind, size, big_endian) = entry.kind;
        let mut bytes = vec![0; entry.shape.iter().product::<usize>() * size];
        entry.reader.read_exact(&mut bytes).map_err(|e| entry.damaged(&format!("or cut off ({e})")))?;
        if big_endian {
            bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        let values = parse(bytes, (kind, size)).ok_or_else(|| entry.other_type())?;
        let shape = entry.shape.clone();
        entry.finish()?;
        Ok(Array { shape, values })
    }

    /// An array whose header was read, and whose claim fits what the archive really holds.
    fn entry(&mut self, name: &str, expected: &'static str) -> Result<Entry<'_>, Error> {
        let names = self.names();
        let path = &self.path;
        let fail = |message: String| Error::file(path, message);
        let entry = self.zip.by_name(&format!("{name}.npy")).map_err(|e| match e {
            zip::result::ZipError::FileNotFound => fail(format!(
                "has no array `{name}`; it holds: {}",
                if names.is_empty() { "none".into() } else { names.join(", ") }
            )),
            e => fail(format!("array `{name}` cannot be read ({e})")),
        })?;
        let most = entry.compressed_size().saturating_mul(MOST_EXPANSION).min(entry.size());
        // A header says its own length: no more is read than the entry can hold.
        let mut reader = entry.take(most);
        let header = Header::read(&mut reader).map_err(|e| fail(format!("array `{name}` is damaged ({e})")))?;
        let Some(kind) = header.kind().filter(|(_, size, _)| *size > 0) else {
            return Err(fail(format!("array `{name}` has dtype {}, expected {expected}", header.descr)));
        };
        if header.fortran && header.shape.len() > 1 {
            return Err(fail(format!("array `{name}` is in Fortran order: save it with numpy.ascontiguousarray")));
        }
        let shape = header.shape;
        let bytes = shape.iter().try_fold(kind.1 as u64, |a, &b| a.checked_mul(b as u64));
        if bytes.is_none_or(|bytes| bytes > most) {
            return Err(fail(format!(
                "array `{name}` claims the shape {shape:?}, more than the file holds: it is damaged or cut off"
            )));
        }
        Ok(Entry { path, name: name.into(), expected, shape, kind, dtype: header.descr, reader })
    }
}

/// What is asked for when bytes are.
const BYTES: &str = "uint8";

/// An array of an archive, about to be read.
struct Entry<'a> {
    path: &'a Path,
    name: String,
    expected: &'static str,
    shape: Vec<usize>,
    /// What a value is, its bytes, and whether these come the largest first.
    kind: (char, usize, bool),
    dtype: String,
    reader: std::io::Take<ZipFile<'a, BufReader<File>>>,
}

impl Entry<'_> {
    fn bytes(self) -> Result<Self, Error> {
        if matches!(self.kind, ('u', 1, _)) { Ok(self) } else { Err(self.other_type()) }
    }

    fn other_type(&self) -> Error {
        Error::file(self.path, format!("array `{}` has dtype {}, expected {}", self.name, self.dtype, self.expected))
    }

    fn damaged(&self, how: &str) -> Error {
        Error::file(self.path, format!("array `{}` is damaged {how}", self.name))
    }

    /// That nothing is left. The checksum is compared at the end of the entry.
    fn finish(mut self) -> Result<(), Error> {
        match self.reader.get_mut().read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => {
                let (name, shape) = (&self.name, &self.shape);
                let message = format!("array `{name}` holds more than its shape {shape:?} says: it is damaged");
                Err(Error::file(self.path, message))
            }
            Err(e) => Err(self.damaged(&format!("({e})"))),
        }
    }
}

/// Values of `N` bytes each.
fn decoded<const N: usize, T>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|bytes| value(*bytes)).collect()
}

/// A type of numbers that arrays are written of.
pub trait Number: bytemuck::Pod {
    /// NumPy's name for it in this machine's order of bytes.
    const DESCR: &str;
}

/// What NumPy calls numbers that begin with their smallest byte, or with their largest.
const fn descr(little: &'static str, big: &'static str) -> &'static str {
    if cfg!(target_endian = "little") { little } else { big }
}

impl Number for u8 {
    const DESCR: &str = "|u1";
}
impl Number for i64 {
    const DESCR: &str = descr("<i8", ">i8");
}
impl Number for f32 {
    const DESCR: &str = descr("<f4", ">f4");
}
impl Number for f64 {
    const DESCR: &str = descr("<f8", ">f8");
}

/// Writes an archive, array by array, without compression as `numpy.savez` does.
pub struct NpzWriter<W: Write + Seek>(ZipWriter<W>);

impl<W: Write + Seek> NpzWriter<W> {
    /// Begins an archive.
    pub fn new(writer: W) -> Self {
        Self(ZipWriter::new(writer))
    }

    /// Adds an array whose values are written by `fill`, which must write as many as the shape says.
    ///
    /// # Errors
    /// What writing says, or a wrong number of values.
    pub fn array<T: Number>(
        &mut self,
        name: &str,
        shape: &[usize],
        fill: impl FnOnce(&mut dyn FnMut(&[T]) -> std::io::Result<()>) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
        self.0.start_file(format!("{name}.npy"), options)?;
        Header::write(&mut self.0, T::DESCR, shape)?;
        let mut left: usize = shape.iter().product();
        fill(&mut |values| {
            let other = || std::io::Error::other("more values than the array's shape says");
            left = left.checked_sub(values.len()).ok_or_else(other)?;
            self.0.write_all(bytemuck::cast_slice(values))
        })?;
        if left > 0 {
            return Err(std::io::Error::other(format!("{left} values fewer than the array's shape says")));
        }
        Ok(())
    }

    /// Ends the archive with a comment, which is no array.
    ///
    /// # Errors
    /// What writing says.
    pub fn finish_with(mut self, comment: &str) -> std::io::Result<()> {
        self.0.set_comment(comment)?;
        self.finish()
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// What writing says.
    pub fn finish(self) -> std::io::Result<()> {
        self.0.finish().map(drop).map_err(Into::into)
    }
}
