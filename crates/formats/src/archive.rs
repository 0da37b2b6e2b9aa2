//! The files of a folder, a zip or a tar archive, gzipped or not.
//!
//! Names only say what a file is and in which order it comes: nothing is ever written to a name from an archive.
//! Folders and zip archives are read in the order of names, tar archives, which can only be read from front to back, in
//! their own.

use crate::{Error, MOST_EXPANSION, folder};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::ControlFlow;
use std::path::{Component, Path, PathBuf};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

/// A larger file is refused. Those of known data sets are smaller: the largest are batches of ImageNet, of 400 megabytes.
pub const MOST_FILE_BYTES: u64 = 1 << 30;

/// A tar archive's headers with longer names, or more of other things, are no honest ones.
const LONGEST_NAME: u64 = 1 << 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Folder,
    Zip,
    Tar,
    TarGz,
}

/// Some of the files of a folder or an archive.
pub struct Archive {
    path: PathBuf,
    form: Form,
    wanted: fn(&Path) -> bool,
    files: Vec<PathBuf>,
}

/// Reads the file at hand, if its contents are of interest.
pub type Load<'a> = dyn FnMut() -> Result<Vec<u8>, Error> + 'a;

/// Whether to go on with the next.
pub type Flow<E = Error> = Result<ControlFlow<()>, E>;

impl Archive {
    /// Lists the files that are `wanted`.
    ///
    /// # Errors
    /// What is missing, damaged, or of another kind.
    pub fn open(path: &Path, wanted: fn(&Path) -> bool) -> Result<Self, Error> {
        let form = Form::of(path)?;
        let mut archive = Self { path: path.to_path_buf(), form, wanted, files: Vec::new() };
        archive.files = match form {
            Form::Folder => {
                let below = |file: PathBuf| file.strip_prefix(path).map(Path::to_path_buf).unwrap_or(file);
                folder::list(path, wanted)?.into_iter().map(below).collect()
            }
            Form::Zip => archive.zip_entries(&mut archive.zip()?)?.into_iter().map(|(name, _)| name).collect(),
            Form::Tar | Form::TarGz => {
                let mut files = Vec::new();
                archive.each_of_tar::<Error>(&mut |name, _| {
                    files.push(name.to_path_buf());
                    Ok(ControlFlow::Continue(()))
                })?;
                files
            }
        };
        Ok(archive)
    }

    /// Whether this is a folder, whose files have paths of their own.
    pub fn is_folder(&self) -> bool {
        self.form == Form::Folder
    }

    /// The files' names, in the order they are read.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Where a file is, for messages.
    pub fn place(&self, file: usize) -> String {
        self.files[file].display().to_string()
    }

    /// Passes the files in order, until `visit` breaks off.
    ///
    /// # Errors
    /// Damage, and what `visit` says.
    pub fn each<E: From<Error>>(&self, visit: &mut dyn FnMut(usize, &mut Load) -> Flow<E>) -> Result<(), E> {
        match self.form {
            Form::Folder => {
                for (i, name) in self.files.iter().enumerate() {
                    if visit(i, &mut || self.load_from_folder(name))?.is_break() {
                        break;
                    }
                }
            }
            Form::Zip => {
                let mut zip = self.zip()?;
                for (i, (name, entry)) in self.zip_entries(&mut zip)?.into_iter().enumerate() {
                    self.check_unchanged(i, &name)?;
                    if visit(i, &mut || self.load_from_zip(&mut zip, entry, &name))?.is_break() {
                        break;
                    }
                }
            }
            Form::Tar | Form::TarGz => {
                let mut i = 0;
                self.each_of_tar(&mut |name, load| {
                    self.check_unchanged(i, name)?;
                    i += 1;
                    visit(i - 1, load)
                })?;
            }
        }
        Ok(())
    }

    /// Reads one file.
    ///
    /// # Errors
    /// Damage.
    pub fn read(&self, file: usize) -> Result<Vec<u8>, Error> {
        let mut found = Vec::new();
        self.each::<Error>(&mut |i, load| {
            if i < file {
                return Ok(ControlFlow::Continue(()));
            }
            found = load()?;
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    /// A file whose contents cannot be used.
    pub fn unusable(&self, file: usize, reason: impl std::fmt::Display) -> Error {
        Error::file(&self.path, format!("{}: {reason}", self.place(file)))
    }

    /// Whether an archive's file is one of those wanted.
    fn takes(&self, name: &Path) -> bool {
        !folder::is_hidden(name) && (self.wanted)(name)
    }

    fn check_unchanged(&self, i: usize, name: &Path) -> Result<(), Error> {
        if self.files.get(i).is_some_and(|listed| listed == name) {
            return Ok(());
        }
        Err(Error::file(&self.path, "changed while it was read: start again"))
    }

    fn damaged(&self, name: &Path, what: impl std::fmt::Display) -> Error {
        Error::file(&self.path, format!("{}: cannot be read ({what}); download the archive again", name.display()))
    }

    fn load_from_folder(&self, name: &Path) -> Result<Vec<u8>, Error> {
        let path = self.path.join(name);
        read_bounded(crate::open(&path)?, MOST_FILE_BYTES).map_err(|e| self.damaged(name, e))
    }

    fn zip(&self) -> Result<ZipArchive<BufReader<File>>, Error> {
        let file = crate::open(&self.path)?;
        ZipArchive::new(BufReader::new(file))
            .map_err(|e| Error::file(&self.path, format!("not a complete zip archive ({e}): download it again")))
    }

    /// Names and places of the wanted files, sorted by name.
    fn zip_entries(&self, zip: &mut ZipArchive<BufReader<File>>) -> Result<Vec<(PathBuf, usize)>, Error> {
        let mut entries = Vec::new();
        for i in 0..zip.len() {
            let entry = zip.by_index_raw(i).map_err(|e| self.damaged(Path::new(&format!("entry {i}")), e))?;
            let name = plain(Path::new(&*entry.name().unwrap_or_default()));
            if entry.is_file() && self.takes(&name) {
                entries.push((name, i));
            }
        }
        entries.sort();
        Ok(entries)
    }

    fn load_from_zip(
        &self,
        zip: &mut ZipArchive<BufReader<File>>,
        entry: usize,
        name: &Path,
    ) -> Result<Vec<u8>, Error> {
        let unread = |why: &str| {
            let message = format!(
                "{}: is compressed in a way that is not supported ({why}): unpack the archive and name the folder",
                name.display()
            );
            Error::file(&self.path, message)
        };
        let entry = zip.by_index(entry).map_err(|e| match e {
            ZipError::UnsupportedArchive(why) => unread(why),
            e => self.damaged(name, e),
        })?;
        if !matches!(entry.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
            return Err(unread(&entry.compression().to_string()));
        }
        let most = entry.compressed_size().saturating_mul(MOST_EXPANSION).min(entry.size()).min(MOST_FILE_BYTES);
        read_bounded(entry, most).map_err(|e| self.damaged(name, e))
    }

    fn each_of_tar<E: From<Error>>(&self, visit: &mut dyn FnMut(&Path, &mut Load) -> Flow<E>) -> Result<(), E> {
        let damaged = |e| Error::file(&self.path, format!("not a complete tar archive ({e}): download it again"));
        let file = crate::open(&self.path)?;
        let length = file.metadata().map_err(Error::io("read", &self.path))?.len();
        let (reader, most): (Box<dyn Read>, u64) = match self.form {
            Form::TarGz => (Box::new(MultiGzDecoder::new(BufReader::new(file))), length.saturating_mul(MOST_EXPANSION)),
            _ => (Box::new(BufReader::new(file)), length),
        };
        let mut tar = tar::Archive::new(reader.take(most));
        let mut long_name = None;
        // Raw entries, because the crate reads names of any length into memory.
        for entry in tar.entries().map_err(damaged)?.raw(true) {
            let mut entry = entry.map_err(damaged)?;
            let kind = entry.header().entry_type();
            if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
                let bytes = read_bounded(&mut entry, LONGEST_NAME).map_err(damaged)?;
                long_name = if kind.is_gnu_longname() { Some(bytes) } else { pax_name(&bytes).or(long_name) };
                continue;
            }
            let name = match long_name.take() {
                Some(long) => plain(Path::new(String::from_utf8_lossy(&long).trim_end_matches('\0'))),
                None => plain(&entry.path().map_err(damaged)?),
            };
            if kind.is_dir() || !self.takes(&name) {
                continue;
            }
            if !kind.is_file() {
                let message = format!(
                    "{} is a link or not a regular file: unpack the archive and name the folder",
                    name.display()
                );
                return Err(Error::file(&self.path, message).into());
            }
            let most = entry.size().min(most).min(MOST_FILE_BYTES);
            let mut load = || {
                let bytes = read_bounded(&mut entry, most).map_err(|e| self.damaged(&name, e))?;
                let whole = bytes.len() as u64 == most;
                whole.then_some(bytes).ok_or_else(|| self.damaged(&name, "it is cut off"))
            };
            if visit(&name, &mut load)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Form {
    /// What lies at a path, told from its first bytes.
    fn of(path: &Path) -> Result<Self, Error> {
        let meta = std::fs::metadata(path).map_err(Error::io("read", path))?;
        if meta.is_dir() {
            return Ok(Self::Folder);
        }
        let unknown = || {
            let kind = crate::kind::of(path).map(|kind| format!(", but {}: {}", kind.what, kind.advice));
            Error::file(
                path,
                format!("is neither a folder nor a zip, tar or tar.gz archive{}", kind.unwrap_or_default()),
            )
        };
        if !meta.is_file() {
            return Err(unknown());
        }
        let file = crate::open(path)?;
        let begin = read_bounded(file.take(512), 512).map_err(Error::io("read", path))?;
        match &begin[..] {
            [b'P', b'K', 3 | 5, 4 | 6, ..] => Ok(Self::Zip),
            [0x1f, 0x8b, ..] => Ok(Self::TarGz),
            header if header.get(257..262) == Some(b"ustar") => Ok(Self::Tar),
            _ => Err(unknown()),
        }
    }
}

/// A name without what leads elsewhere: roots, drives and `..`.
fn plain(name: &Path) -> PathBuf {
    name.components().filter(|c| matches!(c, Component::Normal(_))).collect()
}

/// The name that an extended header gives the file after it.
fn pax_name(header: &[u8]) -> Option<Vec<u8>> {
    let mut records = tar::PaxExtensions::new(header).filter_map(Result::ok);
    records.find(|record| record.key_bytes() == b"path").map(|record| record.value_bytes().to_vec())
}

/// All of `reader`, which is an error if that is more than `most` bytes.
fn read_bounded(reader: impl Read, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(std::io::Error::other(format!("it holds more than {most} bytes")));
    }
    Ok(bytes)
}
