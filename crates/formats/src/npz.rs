//! NumPy's npz archives, and its npy files of a single array: read as hostile until parsed, written streaming.

use crate::npy::{self, Header};
use crate::sink::Sink;
use crate::{Error, MOST_EXPANSION, kind};
use std::fs::File;
use std::io::{BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

/// An array in C order.
#[derive(Clone, Debug, PartialEq)]
pub struct Array<T> {
    /// Length of each dimension.
    pub shape: Vec<usize>,
    /// The values, last dimension fastest.
    pub values: Vec<T>,
}

/// What is known of an array without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Length of each dimension.
    pub shape: Vec<usize>,
    /// The type as NumPy writes it, such as `<f4`.
    pub dtype: String,
}

impl Head {
    /// NumPy's letter for the kind of type: `u` and `i` for whole numbers, `f`, `b`, `U` and `S` for text, `O` for objects.
    pub fn kind(&self) -> char {
        self.dtype.chars().find(char::is_ascii_alphabetic).unwrap_or('V')
    }
}

/// An open archive, or an open npy file, whose array is called [`Npz::ONLY`].
pub struct Npz {
    path: PathBuf,
    held: Held,
}

enum Held {
    Zip(ZipArchive<BufReader<File>>),
    Npy(File),
}

/// Values of a float array that [`Npz::range`] looks at.
const MOST_LOOKED_AT: usize = 1 << 20;

/// An array whose header was read, what follows it, and how many bytes there are in all at most.
type Begun<'a> = (Header, std::io::Take<Box<dyn Read + 'a>>, u64);

impl Npz {
    /// The name of an npy file's array, which is that of the first one that `numpy.savez` gets without names.
    pub const ONLY: &str = "arr_0";

    /// Whether a file's content, not its name, is that of an archive of arrays or of one array.
    pub fn is_one(path: &Path) -> bool {
        path.is_file() && Self::open(path).is_ok_and(|npz| !npz.names().is_empty())
    }

    /// Opens an archive or an npy file.
    ///
    /// # Errors
    /// A file that is missing or neither.
    pub fn open(path: &Path) -> Result<Self, Error> {
        if path.is_dir() {
            return Err(Error::file(path, "is a folder: name an .npz file"));
        }
        let io = |e| Error::io("read", path)(e);
        let mut file = crate::open(path)?;
        let mut begin = [0; npy::MAGIC.len()];
        let is_npy = file.read_exact(&mut begin).is_ok() && begin == npy::MAGIC;
        file.rewind().map_err(io)?;
        let held = if is_npy {
            Held::Npy(file)
        } else {
            Held::Zip(ZipArchive::new(BufReader::new(file)).map_err(|e| match kind::of(path) {
                Some(kind) => Error::file(path, kind.to_string()),
                None => Error::file(
                    path,
                    format!("not a readable npz archive ({e}): it is cut off, or it is another kind of file"),
                ),
            })?)
        };
        Ok(Self { path: path.to_path_buf(), held })
    }

    /// Names of the arrays.
    pub fn names(&self) -> Vec<String> {
        match &self.held {
            Held::Zip(zip) => {
                zip.file_names().flatten().filter_map(|n| n.strip_suffix(".npy").map(str::to_string)).collect()
            }
            Held::Npy(_) => vec![Self::ONLY.into()],
        }
    }

    /// The archive's comment, if it has one.
    pub fn comment(&self) -> Option<String> {
        let Held::Zip(zip) = &self.held else { return None };
        std::str::from_utf8(zip.comment()).ok().filter(|text| !text.is_empty()).map(String::from)
    }

    /// Whether there is an array of that name.
    pub fn has(&self, name: &str) -> bool {
        match &self.held {
            Held::Zip(zip) => zip.index_for_name(&format!("{name}.npy")).is_some(),
            Held::Npy(_) => name == Self::ONLY,
        }
    }

    /// Shape and type of an array, which need not be one that is read.
    ///
    /// # Errors
    /// A missing array, damage.
    pub fn head(&mut self, name: &str) -> Result<Head, Error> {
        let Header { descr, shape, .. } = self.header(name)?.0;
        Ok(Head { shape, dtype: descr })
    }

    /// The least and the largest of an array of floats, of a large one among its first million values; both NaN if one of
    /// these is.
    ///
    /// # Errors
    /// A missing array, another dtype, damage.
    pub fn range(&mut self, name: &str) -> Result<[f64; 2], Error> {
        let mut entry = self.entry(name, FLOATS)?;
        let (_, size, big_endian) = entry.kind;
        let mut bytes = vec![0; entry.count().min(MOST_LOOKED_AT) * size];
        entry.fill(&mut bytes)?;
        let values = floats(little_endian(bytes, size, big_endian), entry.kind).ok_or_else(|| entry.other_type())?;
        if values.iter().any(|v| v.is_nan()) {
            return Ok([f64::NAN; 2]);
        }
        Ok(values.iter().fold([f64::INFINITY, f64::NEG_INFINITY], |[least, most], &v| [least.min(v), most.max(v)]))
    }

    /// An array of bytes: uint8, or whole numbers of another type from 0 to 255.
    ///
    /// # Errors
    /// A missing array, another dtype, other numbers, damage.
    pub fn bytes(&mut self, name: &str) -> Result<Array<u8>, Error> {
        let entry = self.entry(name, BYTES)?.whole()?;
        let shape = entry.shape.clone();
        Ok(Array { shape, values: entry.all_bytes()? })
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
        self.read(name, "float64 or float32", |bytes, (kind, size)| {
            (size > 2).then_some(bytes).and_then(|bytes| floats(bytes, (kind, size, false)))
        })
    }

    /// An array of whole numbers of any integer dtype.
    ///
    /// # Errors
    /// A missing array, another dtype, damage.
    pub fn integers(&mut self, name: &str) -> Result<Array<i64>, Error> {
        self.read(name, "an integer type", |bytes, (kind, size)| integers(&bytes, kind, size))
    }

    /// Passes an array of bytes, as [`Self::bytes`] has it, on, up to `rows` of its first dimension at a time, until `take`
    /// says no. One in Fortran order is read whole first.
    ///
    /// # Errors
    /// A missing array, another dtype, other numbers, damage, what `take` says.
    pub fn byte_rows<E: From<Error>>(
        &mut self,
        name: &str,
        rows: usize,
        take: &mut dyn FnMut(&[u8]) -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut entry = self.entry(name, BYTES)?.whole()?;
        let mut left = entry.count();
        // Where there are no values, lengths may be of any size.
        let row: usize = if left == 0 { 0 } else { entry.shape.iter().skip(1).product() };
        let most = rows.saturating_mul(row).min(left);
        if entry.fortran {
            for part in entry.all_bytes()?.chunks(most.max(1)) {
                if !take(part)? {
                    break;
                }
            }
            return Ok(());
        }
        let size = entry.kind.1;
        while left > 0 {
            let mut part = vec![0; left.min(most) * size];
            entry.fill(&mut part)?;
            left -= part.len() / size;
            if !take(&entry.to_bytes(part)?)? {
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
        let (kind, size, _) = entry.kind;
        let bytes = entry.all()?;
        let values = parse(bytes, (kind, size)).ok_or_else(|| entry.other_type())?;
        let shape = entry.shape.clone();
        entry.finish()?;
        Ok(Array { shape, values })
    }

    /// Reads an array's header.
    fn header(&mut self, name: &str) -> Result<Begun<'_>, Error> {
        let names = self.names();
        let path = &self.path;
        let fail = |message: String| Error::file(path, message);
        let missing = || {
            let held = if names.is_empty() { "none".into() } else { names.join(", ") };
            fail(format!("has no array `{name}`; it holds: {held}"))
        };
        let unread = |why: &str| {
            fail(format!(
                "array `{name}` is compressed in a way that is not supported ({why}): save it again with `np.savez`"
            ))
        };
        let (reader, most): (Box<dyn Read>, u64) = match &mut self.held {
            Held::Zip(zip) => {
                let entry = zip.by_name(&format!("{name}.npy")).map_err(|e| match e {
                    ZipError::FileNotFound => missing(),
                    ZipError::UnsupportedArchive(why) => unread(why),
                    e => fail(format!("array `{name}` cannot be read ({e})")),
                })?;
                if !matches!(entry.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
                    return Err(unread(&entry.compression().to_string()));
                }
                let most = entry.compressed_size().saturating_mul(MOST_EXPANSION).min(entry.size());
                (Box::new(entry), most)
            }
            Held::Npy(file) if name == Self::ONLY => {
                file.rewind().map_err(Error::io("read", path))?;
                let length = file.metadata().map_err(Error::io("read", path))?.len();
                (Box::new(BufReader::new(file)), length)
            }
            Held::Npy(_) => return Err(missing()),
        };
        // A header says its own length: no more is read than the entry can hold.
        let mut reader = reader.take(most);
        let header =
            Header::read(&mut reader).map_err(|e| fail(format!("array `{name}` is damaged or cut off ({e})")))?;
        Ok((header, reader, most))
    }

    /// An array whose header was read, and whose claim fits what the archive really holds.
    fn entry(&mut self, name: &str, expected: &'static str) -> Result<Entry<'_>, Error> {
        let path = self.path.clone();
        let (header, reader, most) = self.header(name)?;
        let fail = |message: String| Error::file(&path, message);
        let Some(kind) = header.kind().filter(|(_, size, _)| *size > 0) else {
            return Err(fail(format!("array `{name}` has dtype {}, expected {expected}", header.descr)));
        };
        let Header { shape, descr, fortran } = header;
        let bytes = shape.iter().try_fold(kind.1 as u64, |a, &b| a.checked_mul(b as u64));
        if bytes.is_none_or(|bytes| bytes > most) {
            return Err(fail(format!(
                "array `{name}` claims the shape {shape:?}, more than the file holds: it is damaged or cut off"
            )));
        }
        let fortran = fortran && shape.len() > 1;
        Ok(Entry { path, name: name.into(), expected, shape, fortran, kind, dtype: descr, reader })
    }
}

/// What is asked for when bytes are, or floats.
const BYTES: &str = "uint8";
const FLOATS: &str = "floats";

/// An array of an archive, about to be read.
struct Entry<'a> {
    path: PathBuf,
    name: String,
    expected: &'static str,
    shape: Vec<usize>,
    /// Whether the first of several dimensions is the fastest.
    fortran: bool,
    /// What a value is, its bytes, and whether these come the largest first.
    kind: (char, usize, bool),
    dtype: String,
    reader: std::io::Take<Box<dyn Read + 'a>>,
}

impl Entry<'_> {
    /// That it is one of whole numbers.
    fn whole(self) -> Result<Self, Error> {
        if matches!(self.kind, ('u' | 'i', 1 | 2 | 4 | 8, _)) { Ok(self) } else { Err(self.other_type()) }
    }

    /// Number of values.
    fn count(&self) -> usize {
        self.shape.iter().product()
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.reader.read_exact(bytes).map_err(|e| self.damaged(&format!("or cut off ({e})")))
    }

    /// All values as little-endian bytes in C order.
    fn all(&mut self) -> Result<Vec<u8>, Error> {
        let (_, size, big_endian) = self.kind;
        let mut bytes = vec![0; self.count() * size];
        self.fill(&mut bytes)?;
        let bytes = little_endian(bytes, size, big_endian);
        Ok(if self.fortran { npy::c_order(&bytes, &self.shape, size) } else { bytes })
    }

    /// All whole numbers as bytes in C order.
    fn all_bytes(mut self) -> Result<Vec<u8>, Error> {
        let (kind, size, _) = self.kind;
        let bytes = self.all()?;
        self.kind = (kind, size, false);
        let bytes = self.to_bytes(bytes)?;
        self.finish()?;
        Ok(bytes)
    }

    /// Whole numbers in the file's order of bytes, as bytes.
    fn to_bytes(&self, numbers: Vec<u8>) -> Result<Vec<u8>, Error> {
        let (kind, size, big_endian) = self.kind;
        if (kind, size) == ('u', 1) {
            return Ok(numbers);
        }
        let numbers = integers(&little_endian(numbers, size, big_endian), kind, size).unwrap_or_default();
        let to_byte = |number: i64| {
            u8::try_from(number).map_err(|_| {
                let message = format!("array `{}` holds {number}, expected whole numbers from 0 to 255", self.name);
                Error::file(&self.path, message)
            })
        };
        numbers.into_iter().map(to_byte).collect()
    }

    fn other_type(&self) -> Error {
        Error::file(&self.path, format!("array `{}` has dtype {}, expected {}", self.name, self.dtype, self.expected))
    }

    fn damaged(&self, how: &str) -> Error {
        Error::file(&self.path, format!("array `{}` is damaged {how}", self.name))
    }

    /// That nothing is left. The checksum is compared at the end of the entry.
    fn finish(mut self) -> Result<(), Error> {
        match self.reader.get_mut().read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => {
                let (name, shape) = (&self.name, &self.shape);
                let message = format!("array `{name}` holds more than its shape {shape:?} needs: it is damaged");
                Err(Error::file(&self.path, message))
            }
            Err(e) => Err(self.damaged(&format!("({e})"))),
        }
    }
}

/// Numbers of `size` bytes in the order of bytes of most machines.
fn little_endian(mut bytes: Vec<u8>, size: usize, big_endian: bool) -> Vec<u8> {
    if big_endian {
        bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    }
    bytes
}

/// Floats of any size.
fn floats(bytes: Vec<u8>, (kind, size, _): (char, usize, bool)) -> Option<Vec<f64>> {
    match (kind, size) {
        ('f', 8) => Some(decoded(&bytes, f64::from_le_bytes)),
        ('f', 4) => Some(decoded(&bytes, |b| f64::from(f32::from_le_bytes(b)))),
        ('f', 2) => Some(decoded(&bytes, |b| half::f16::from_le_bytes(b).to_f64())),
        _ => None,
    }
}

/// Whole numbers, and truth values, of any size.
fn integers(bytes: &[u8], kind: char, size: usize) -> Option<Vec<i64>> {
    Some(match (kind, size) {
        ('i', 8) => decoded(bytes, i64::from_le_bytes),
        ('i', 4) => decoded(bytes, |b| i64::from(i32::from_le_bytes(b))),
        ('i', 2) => decoded(bytes, |b| i64::from(i16::from_le_bytes(b))),
        ('i', 1) => decoded(bytes, |b| i64::from(i8::from_le_bytes(b))),
        ('u', 8) => decoded(bytes, |b| i64::try_from(u64::from_le_bytes(b)).unwrap_or(i64::MAX)),
        ('u', 4) => decoded(bytes, |b| i64::from(u32::from_le_bytes(b))),
        ('u', 2) => decoded(bytes, |b| i64::from(u16::from_le_bytes(b))),
        ('u' | 'b', 1) => decoded(bytes, |b| i64::from(u8::from_le_bytes(b))),
        _ => return None,
    })
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
pub struct NpzWriter<W: Write + Seek>(ZipWriter<Sink<W>>);

impl<W: Write + Seek> NpzWriter<W> {
    /// Begins an archive.
    pub fn new(writer: W) -> Self {
        Self(ZipWriter::new(Sink::new(writer)))
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
