//! Where a checkpoint keeps its pickle and the numbers of its tensors: in a zip archive, or one after the other in a
//! single file, as PyTorch did before 1.6.

use super::Fault;
use super::machine::load;
use super::source::Source;
use super::value::{Heap, Id, Value};
use crate::MOST_EXPANSION;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

/// What a file without an archive begins with: a number of ten bytes, then the version of its layout.
const MAGIC: i128 = 0x1950a86a20f9469cfc6c;
const VERSION: i64 = 1001;

/// Bytes that a compressed pickle may have: so many, and so many times those of its entry. PyTorch does not compress, and what
/// other programs compress are some hundred bytes for each tensor. In memory a long text takes several times its bytes.
const MOST_PICKLE: u64 = 2 << 20;
const MOST_PICKLE_EXPANSION: u64 = 3;

/// Bytes in which the magic number must be found.
const MOST_MAGIC: u64 = 64;

/// Where the numbers are.
pub(super) enum Storages {
    /// Entries `{folder}data/{key}`.
    Zip { zip: ZipArchive<BufReader<File>>, folder: String, length: u64 },
    /// First byte and number of bytes in the file by key.
    Legacy { file: File, places: HashMap<String, (u64, u64)> },
}

/// Whether a file is one or the other.
pub(super) fn is_one(mut file: File) -> bool {
    if is_zip(&mut file) {
        ZipArchive::new(BufReader::new(file)).is_ok_and(|zip| folder(&zip).is_some())
    } else {
        is_magic(&mut Source::new(BufReader::new(file), MOST_MAGIC))
    }
}

/// Reads the pickle, and finds out where the numbers are.
pub(super) fn open(mut file: File) -> Result<(Heap, Id, Storages), Fault> {
    let length = file.metadata().map_err(|e| format!("cannot be read ({e})"))?.len();
    if !is_zip(&mut file) {
        return open_legacy(file, length);
    }
    let mut zip = ZipArchive::new(BufReader::new(file))
        .map_err(|e| format!("is a damaged archive, or it is cut off ({e}): copy or download it again"))?;
    let folder = folder(&zip).ok_or("is not a PyTorch checkpoint: its archive has no data.pkl")?;
    check_byte_order(&mut zip, &folder, length)?;
    let (heap, root) = read_pickle(&mut zip, &format!("{folder}data.pkl"), length)?;
    Ok((heap, root, Storages::Zip { zip, folder, length }))
}

/// Whether a file begins as archives do. It is left at its start.
fn is_zip(file: &mut File) -> bool {
    let mut start = [0; 4];
    let is_zip = file.read_exact(&mut start).is_ok() && start == *b"PK\x03\x04";
    file.rewind().is_ok() && is_zip
}

/// The archive's folder with a slash; some files have none.
fn folder(zip: &ZipArchive<impl Read + Seek>) -> Option<String> {
    let mut folders = zip.file_names().flatten().filter_map(|n| n.strip_suffix("data.pkl").map(str::to_string));
    folders.find(|f| f.is_empty() || f.find('/') == Some(f.len() - 1))
}

fn check_byte_order(zip: &mut ZipArchive<BufReader<File>>, folder: &str, length: u64) -> Result<(), Fault> {
    let name = format!("{folder}byteorder");
    if zip.index_for_name(&name).is_none() {
        return Ok(());
    }
    let mut order = Vec::new();
    entry(zip, &name, length)?.0.take(8).read_to_end(&mut order).map_err(|e| format!("is damaged ({e})"))?;
    if order == b"little" { Ok(()) } else { Err(big_endian()) }
}

fn big_endian() -> Fault {
    "was saved on a big-endian machine: load it and save it again with PyTorch on this machine".into()
}

fn read_pickle(zip: &mut ZipArchive<BufReader<File>>, name: &str, length: u64) -> Result<(Heap, Id), Fault> {
    let (entry, size) = entry(zip, name, length)?;
    let is_compressed = entry.compression() != CompressionMethod::Stored;
    if is_compressed && size > MOST_PICKLE + MOST_PICKLE_EXPANSION * entry.compressed_size() {
        return Err(format!(
            "is refused: its compressed pickle would expand to {size} bytes. Load it and save it again with torch.save, which \
             does not compress"
        ));
    }
    let mut source = Source::new(BufReader::new(entry), size);
    let pickle = load(&mut source)?;
    // The checksum is compared at the end of the entry.
    source.finish()?;
    Ok(pickle)
}

/// An entry and its size, which is at most what its bytes can expand to.
fn entry<'a>(
    zip: &'a mut ZipArchive<BufReader<File>>,
    name: &str,
    length: u64,
) -> Result<(zip::read::ZipFile<'a, BufReader<File>>, u64), Fault> {
    let entry = zip.by_name(name).map_err(|e| match e {
        ZipError::FileNotFound => format!("is damaged: its archive has no {name}"),
        e => format!("is damaged: its entry {name} cannot be read ({e})"),
    })?;
    let expansion = if entry.compression() == CompressionMethod::Stored { 1 } else { MOST_EXPANSION };
    let size = entry.size();
    if size > entry.compressed_size().min(length).saturating_mul(expansion) {
        return Err(format!("is damaged or cut off: its entry {name} claims {size} bytes"));
    }
    Ok((entry, size))
}

fn is_magic(source: &mut Source<impl BufRead>) -> bool {
    load(source).is_ok_and(|(heap, root)| heap.value(root).is_int(MAGIC))
}

fn open_legacy(mut file: File, length: u64) -> Result<(Heap, Id, Storages), Fault> {
    let mut source = Source::new(BufReader::new(&file), length);
    if !is_magic(&mut source) {
        return Err("is not a PyTorch checkpoint, or it is cut off".into());
    }
    let (heap, version) = load(&mut source)?;
    if heap.value(version).int() != Some(VERSION) {
        return Err(format!(
            "has PyTorch's old file layout in another version than {VERSION}: load it and save it again in PyTorch"
        ));
    }
    let (heap, system) = load(&mut source)?;
    if heap.value(system).get("little_endian").and_then(Value::bool) == Some(false) {
        return Err(big_endian());
    }
    let (heap, root) = load(&mut source)?;
    let (key_heap, keys) = load(&mut source)?;
    let position = length - source.left();
    let places = find_storages(&mut file, position, length, &heap, key_heap.value(keys))?;
    Ok((heap, root, Storages::Legacy { file, places }))
}

/// Goes from storage to storage: each is its number of elements and then these.
fn find_storages(
    file: &mut File,
    mut position: u64,
    length: u64,
    heap: &Heap,
    keys: Value,
) -> Result<HashMap<String, (u64, u64)>, Fault> {
    let cut_off = || "is cut off: copy or download it again".to_string();
    let sizes: HashMap<&str, usize> = heap.storages().map(|s| (s.key.as_str(), s.dtype.size())).collect();
    let mut places = HashMap::new();
    for key in keys.items().ok_or("is damaged: it has no list of storages")? {
        let key = key.name().ok_or("is damaged: it has a storage without a name")?;
        let size = *sizes.get(key.as_str()).ok_or(
            "has tensors of an unsupported type, such as quantised ones: load it in PyTorch and save only its \
             weights",
        )?;
        let mut elements = [0; 8];
        file.seek(SeekFrom::Start(position)).and_then(|_| file.read_exact(&mut elements)).map_err(|_| cut_off())?;
        let start = position + elements.len() as u64;
        let bytes = u64::from_le_bytes(elements).checked_mul(size as u64);
        let bytes = bytes.filter(|&b| b <= length.saturating_sub(start)).ok_or_else(cut_off)?;
        places.insert(key, (start, bytes));
        position = start + bytes;
    }
    Ok(places)
}

impl Storages {
    /// A reader of `length` bytes of a storage from `start` on, which are known to be there if the file is whole. At
    /// the end of a whole zip entry its checksum is compared; of a part of one, only that part is read.
    pub(super) fn reader(&mut self, key: &str, start: u64, length: u64) -> Result<Box<dyn Read + '_>, Fault> {
        let damaged = |e: &dyn std::fmt::Display| format!("is damaged: its storage {key} cannot be read ({e})");
        let check = |held: u64| match start.checked_add(length) {
            Some(end) if end <= held => Ok(()),
            _ => Err(format!("is damaged: its storage {key} has {held} bytes, too few for its tensors")),
        };
        match self {
            Self::Legacy { file, places } => {
                let &(first, held) = places.get(key).ok_or_else(|| damaged(&"it is not there"))?;
                check(held)?;
                file.seek(SeekFrom::Start(first + start)).map_err(|e| damaged(&e))?;
                Ok(Box::new(file.take(length)))
            }
            Self::Zip { zip, folder, length: file_length } => {
                let name = format!("{folder}data/{key}");
                let (found, held) = entry(zip, &name, *file_length)?;
                let stored = found.compression() == CompressionMethod::Stored;
                drop(found);
                check(held)?;
                if stored && length < held {
                    let mut part = zip.by_name_seek(&name).map_err(|e| damaged(&e))?;
                    part.seek(SeekFrom::Start(start)).map_err(|e| damaged(&e))?;
                    return Ok(Box::new(part.take(length)));
                }
                let mut whole = zip.by_name(&name).map_err(|e| damaged(&e))?;
                std::io::copy(&mut (&mut whole).take(start), &mut std::io::sink()).map_err(|e| damaged(&e))?;
                if length < held { Ok(Box::new(whole.take(length))) } else { Ok(Box::new(whole)) }
            }
        }
    }
}
