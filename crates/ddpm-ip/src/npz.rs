//! NumPy's npz archives: read as hostile until parsed, written streaming.

use crate::Error;
use npyz::{Deserialize, NpyFile, NpyHeader, TypeChar, WriterBuilder};
use std::fs::File;
use std::io::{BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};
use zip::{CompressionMethod, ZipArchive, ZipWriter, read::ZipFile, write::SimpleFileOptions};

/// Deflate makes no more than about 1032 bytes of one: a larger claim is a lie.
const MOST_EXPANSION: u64 = 1100;

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
        let file = File::open(path).map_err(Error::io("read", path))?;
        let zip = ZipArchive::new(BufReader::new(file))
            .map_err(|e| Error::file(path, format!("not a readable npz archive ({e})")))?;
        Ok(Self { path: path.to_path_buf(), zip })
    }

    /// Names of the arrays.
    pub fn names(&self) -> Vec<String> {
        self.zip.file_names().flatten().filter_map(|n| n.strip_suffix(".npy").map(str::to_string)).collect()
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
        self.read(name, BYTES, |file, code| (code == (TypeChar::Uint, 1)).then(|| file.into_vec::<u8>()))
    }

    /// An array of floats (float32, or float64 rounded to it).
    ///
    /// # Errors
    /// A missing array, another dtype, damage.
    pub fn floats(&mut self, name: &str) -> Result<Array<f32>, Error> {
        self.read(name, "float32 or float64", |file, code| match code {
            (TypeChar::Float, 4) => Some(file.into_vec::<f32>()),
            (TypeChar::Float, 8) => Some(convert::<f64, f32>(file, |v| v as f32)),
            _ => None,
        })
    }

    /// An array of doubles (float64 or float32).
    ///
    /// # Errors
    /// A missing array, another dtype, damage.
    pub fn doubles(&mut self, name: &str) -> Result<Array<f64>, Error> {
        self.read(name, "float64 or float32", |file, code| match code {
            (TypeChar::Float, 8) => Some(file.into_vec::<f64>()),
            (TypeChar::Float, 4) => Some(convert::<f32, f64>(file, f64::from)),
            _ => None,
        })
    }

    /// An array of whole numbers of any integer dtype.
    ///
    /// # Errors
    /// A missing array, another dtype, damage.
    pub fn integers(&mut self, name: &str) -> Result<Array<i64>, Error> {
        self.read(name, "an integer type", |file, code| {
            Some(match code {
                (TypeChar::Int, 8) => file.into_vec::<i64>(),
                (TypeChar::Int, 4) => convert::<i32, i64>(file, i64::from),
                (TypeChar::Int, 2) => convert::<i16, i64>(file, i64::from),
                (TypeChar::Int, 1) => convert::<i8, i64>(file, i64::from),
                (TypeChar::Uint, 8) => convert::<u64, i64>(file, |v| i64::try_from(v).unwrap_or(i64::MAX)),
                (TypeChar::Uint, 4) => convert::<u32, i64>(file, i64::from),
                (TypeChar::Uint, 2) => convert::<u16, i64>(file, i64::from),
                (TypeChar::Uint, 1) => convert::<u8, i64>(file, i64::from),
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
    pub fn byte_rows(
        &mut self,
        name: &str,
        rows: usize,
        take: &mut dyn FnMut(&[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
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
        entry.finish()
    }

    /// Reads an array.
    fn read<T>(
        &mut self,
        name: &str,
        expected: &'static str,
        parse: impl FnOnce(NpyFile<&mut dyn Read>, (TypeChar, u64)) -> Option<std::io::Result<Vec<T>>>,
    ) -> Result<Array<T>, Error> {
        let mut entry = self.entry(name, expected)?;
        let header = entry.header.clone();
        let values = parse(NpyFile::with_header(header, &mut entry.reader), entry.code)
            .ok_or_else(|| entry.other_type())?
            .map_err(|e| entry.damaged(&format!("or cut off ({e})")))?;
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
        let header = NpyHeader::from_reader(&mut reader as &mut dyn Read)
            .map_err(|e| fail(format!("array `{name}` is damaged ({e})")))?;
        let npyz::DType::Plain(dtype) = header.dtype() else {
            return Err(fail(format!("array `{name}` is a record array, expected {expected}")));
        };
        if header.order() != npyz::Order::C && header.shape().len() > 1 {
            return Err(fail(format!("array `{name}` is in Fortran order: save it with numpy.ascontiguousarray")));
        }
        let shape: Vec<usize> = header.shape().iter().map(|&n| usize::try_from(n).unwrap_or(usize::MAX)).collect();
        let count = shape.iter().try_fold(1u64, |a, &b| a.checked_mul(b as u64));
        let bytes = count.and_then(|n| n.checked_mul(dtype.size_field()));
        if bytes.is_none_or(|bytes| bytes > most) {
            return Err(fail(format!(
                "array `{name}` claims the shape {shape:?}, more than the file holds: it is damaged or cut off"
            )));
        }
        let code = (dtype.type_char(), dtype.size_field());
        Ok(Entry { path, name: name.into(), expected, shape, code, dtype: dtype.to_string(), header, reader })
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
    code: (TypeChar, u64),
    dtype: String,
    header: NpyHeader,
    reader: std::io::Take<ZipFile<'a, BufReader<File>>>,
}

impl Entry<'_> {
    fn bytes(self) -> Result<Self, Error> {
        if self.code == (TypeChar::Uint, 1) { Ok(self) } else { Err(self.other_type()) }
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

fn convert<A: Deserialize, B>(file: NpyFile<&mut dyn Read>, f: impl Fn(A) -> B) -> std::io::Result<Vec<B>> {
    file.data::<A>().map_err(std::io::Error::other)?.map(|v| v.map(&f)).collect()
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
    pub fn array<T: npyz::AutoSerialize>(
        &mut self,
        name: &str,
        shape: &[usize],
        fill: impl FnOnce(&mut dyn FnMut(&[T]) -> std::io::Result<()>) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
        self.0.start_file(format!("{name}.npy"), options)?;
        let shape: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
        let mut writer = npyz::WriteOptions::<T>::new().default_dtype().shape(&shape).writer(&mut self.0).begin_nd()?;
        fill(&mut |values| values.iter().try_for_each(|v| writer.push(v)))?;
        writer.finish()
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// What writing says.
    pub fn finish(self) -> std::io::Result<()> {
        self.0.finish().map(drop).map_err(Into::into)
    }
}
