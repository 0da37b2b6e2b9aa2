//! LMDB databases, read only.
//!
//! The C library maps the file into memory and believes what it finds there: a file that is cut off ends the program with
//! a bus error. This reads pages as they are needed and checks every position, so a damaged file is an error like any
//! other. It needs no lock file, and so no right to write.
//!
//! The format is version 1 of 64-bit little-endian machines (LMDB 0.9): pages of a B+ tree whose nodes hold a key and a
//! value, or the number of the page where a long value begins. Two meta pages take turns; the newer one counts.

use std::fs::File;
use std::io::{Error, Read, Result, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAGIC: u32 = 0xBEEF_C0DE;
const VERSION: u32 = 1;

/// Length of the header that every page begins with.
const PAGE_HEADER: usize = 16;
/// Where a page's flags are, and the end of the list of its nodes' positions.
const FLAGS: usize = 10;
const LOWER: usize = 12;

/// Flags of a page.
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const OVERFLOW: u16 = 4;
const META: u16 = 8;

/// Length of what stands before a node's key.
const NODE_HEADER: usize = 8;
/// Flag of a node whose value lies on pages of its own; all other flags belong to databases in databases.
const LONG: u16 = 1;

/// Positions in a meta page: the two databases' descriptions, and fields of such a description.
const FREE_DB: usize = PAGE_HEADER + 24;
const MAIN_DB: usize = FREE_DB + 48;
const TRANSACTION: usize = MAIN_DB + 48 + 8;
const META_BYTES: usize = TRANSACTION + 8;
const DB_FLAGS: usize = 4;
const DB_DEPTH: usize = 6;
const DB_ENTRIES: usize = 32;
const DB_ROOT: usize = 40;

/// The library's own limit to the height of a tree.
const MOST_DEPTH: u16 = 32;

/// A database.
pub struct Lmdb {
    file: File,
    pages: u64,
    page_bytes: usize,
    depth: u16,
    root: u64,
    entries: u64,
}

/// A value that can be read.
pub enum Value {
    /// It lies in its node.
    Short(Vec<u8>),
    /// It lies on pages from this one on.
    Long {
        /// The first of them.
        page: u64,
        /// The value's length.
        bytes: usize,
    },
}

/// The data file at a path: the path itself, or `data.mdb` in a folder.
pub fn data_file(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("data.mdb") } else { path.to_path_buf() }
}

impl Lmdb {
    /// Opens a data file.
    ///
    /// # Errors
    /// A file that is missing, or no database that is known.
    pub fn open(path: &Path) -> Result<Self> {
        if !std::fs::metadata(path)?.is_file() {
            return Err(Error::other("not a regular file"));
        }
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let meta = |file: &mut File, at: u64| -> Result<[u8; META_BYTES]> {
            let mut meta = [0; META_BYTES];
            file.seek(SeekFrom::Start(at))?;
            file.read_exact(&mut meta)?;
            let found = (u32_at(&meta, PAGE_HEADER)?, u32_at(&meta, PAGE_HEADER + 4)?, u16_at(&meta, FLAGS)? & META);
            if found == (MAGIC, VERSION, META) { Ok(meta) } else { Err(Error::other("not an LMDB database")) }
        };
        let first = meta(&mut file, 0)?;
        let page_bytes = u32_at(&first, FREE_DB)? as usize;
        if !page_bytes.is_power_of_two() || !(512..=1 << 16).contains(&page_bytes) {
            return Err(damaged(format!("it claims a page size of {page_bytes} bytes")));
        }
        let second = meta(&mut file, page_bytes as u64)?;
        let is_newer = u64_at(&second, TRANSACTION)? > u64_at(&first, TRANSACTION)?;
        let meta = if is_newer { second } else { first };
        let (flags, depth) = (u16_at(&meta, MAIN_DB + DB_FLAGS)?, u16_at(&meta, MAIN_DB + DB_DEPTH)?);
        if flags != 0 || depth > MOST_DEPTH {
            return Err(Error::other(format!("an unknown kind of LMDB database (flags {flags}, depth {depth})")));
        }
        let (entries, root) = (u64_at(&meta, MAIN_DB + DB_ENTRIES)?, u64_at(&meta, MAIN_DB + DB_ROOT)?);
        if entries > length {
            return Err(damaged(format!("it claims {entries} entries, more than it has bytes")));
        }
        Ok(Self { file, pages: length / page_bytes as u64, page_bytes, depth, root, entries })
    }

    /// How many entries it says it has.
    pub fn count(&self) -> usize {
        usize::try_from(self.entries).unwrap_or(usize::MAX)
    }

    /// All entries, in the order of their keys.
    pub fn entries(&self) -> Entries<'_> {
        Entries { db: self, way: Vec::new(), left: self.entries, begun: false }
    }

    /// Reads a value of at most `most` bytes.
    ///
    /// # Errors
    /// Damage.
    pub fn read(&self, value: Value, most: u64) -> Result<Vec<u8>> {
        match value {
            Value::Short(bytes) => Ok(bytes),
            Value::Long { page, bytes } => {
                let end = page
                    .checked_mul(self.page_bytes as u64)
                    .and_then(|at| at.checked_add((PAGE_HEADER + bytes) as u64));
                if end.is_none_or(|end| end > self.pages * self.page_bytes as u64) || bytes as u64 > most {
                    return Err(damaged(format!("{bytes} bytes on page {page} and after are missing: it is cut off")));
                }
                let mut data = vec![0; PAGE_HEADER + bytes];
                self.read_at(page * self.page_bytes as u64, &mut data)?;
                if u16_at(&data, FLAGS)? & OVERFLOW == 0 {
                    return Err(damaged(format!("page {page} is not what it should be")));
                }
                data.drain(..PAGE_HEADER);
                Ok(data)
            }
        }
    }

    fn page(&self, page: u64) -> Result<Vec<u8>> {
        if page >= self.pages {
            return Err(damaged(format!("page {page} of {} is missing: it is cut off", self.pages)));
        }
        let mut data = vec![0; self.page_bytes];
        self.read_at(page * self.page_bytes as u64, &mut data)?;
        Ok(data)
    }

    fn read_at(&self, at: u64, data: &mut [u8]) -> Result<()> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(data)
    }
}

/// Goes through the entries of a database. Each level of the tree is one lower than the one above, and no more entries
/// are passed than there are, so it ends even where pages contain each other.
pub struct Entries<'a> {
    db: &'a Lmdb,
    /// The pages from the root to the one at hand, and the position in each of the next node's position.
    way: Vec<(Vec<u8>, usize)>,
    left: u64,
    begun: bool,
}

/// A node's key and value, or the page below it.
enum Node {
    Entry(Vec<u8>, Value),
    Below(u64),
}

impl Entries<'_> {
    fn enter(&mut self, page: u64) -> Result<()> {
        let data = self.db.page(page)?;
        let kind = u16_at(&data, FLAGS)? & (BRANCH | LEAF | OVERFLOW | META);
        let height = usize::from(self.db.depth).saturating_sub(self.way.len());
        let expected = if height == 1 { LEAF } else { BRANCH };
        if height == 0 || kind != expected || usize::from(u16_at(&data, LOWER)?) <= PAGE_HEADER {
            return Err(damaged(format!("page {page} is not what it should be")));
        }
        self.way.push((data, PAGE_HEADER));
        Ok(())
    }

    /// The next node of the lowest page that has one left.
    fn node(&mut self) -> Result<Option<Node>> {
        loop {
            let Some((page, at)) = self.way.last_mut() else { return Ok(None) };
            if *at < usize::from(u16_at(page, LOWER)?) {
                let node = slice(page, usize::from(u16_at(page, *at)?)..page.len())?;
                *at += 2;
                return parse(node, u16_at(page, FLAGS)? & BRANCH != 0).map(Some);
            }
            self.way.pop();
        }
    }

    fn advance(&mut self) -> Result<Option<(Vec<u8>, Value)>> {
        if !std::mem::replace(&mut self.begun, true) && self.left > 0 {
            self.enter(self.db.root)?;
        }
        loop {
            match self.node()? {
                Some(Node::Below(page)) => self.enter(page)?,
                Some(Node::Entry(key, value)) => {
                    self.left =
                        self.left.checked_sub(1).ok_or_else(|| damaged("it has more entries than it claims"))?;
                    return Ok(Some((key, value)));
                }
                None if self.left > 0 => return Err(damaged(format!("{} entries are missing", self.left))),
                None => return Ok(None),
            }
        }
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<(Vec<u8>, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance().transpose();
        if matches!(next, Some(Err(_))) {
            // After an error there is nothing more.
            (self.left, self.way) = (0, Vec::new());
        }
        next
    }
}

/// A node of a branch or a leaf.
fn parse(node: &[u8], is_branch: bool) -> Result<Node> {
    let (low, high, flags) = (u16_at(node, 0)?, u16_at(node, 2)?, u16_at(node, 4)?);
    let low = u64::from(low) | u64::from(high) << 16;
    if is_branch {
        return Ok(Node::Below(low | u64::from(flags) << 32));
    }
    let key_end = NODE_HEADER + usize::from(u16_at(node, 6)?);
    let key = slice(node, NODE_HEADER..key_end)?.to_vec();
    Ok(Node::Entry(key, value(node, key_end, flags, low as usize)?))
}

/// The value of a leaf's node.
fn value(node: &[u8], at: usize, flags: u16, bytes: usize) -> Result<Value> {
    match flags {
        0 => Ok(Value::Short(slice(node, at..at + bytes)?.to_vec())),
        LONG => Ok(Value::Long { page: u64_at(node, at)?, bytes }),
        _ => Err(Error::other("an unknown kind of LMDB database (it contains other databases)")),
    }
}

fn damaged(what: impl Into<String>) -> Error {
    Error::other(format!("the LMDB database is damaged: {}", what.into()))
}

fn slice(data: &[u8], range: Range<usize>) -> Result<&[u8]> {
    let message = || damaged(format!("bytes {} to {} of a page are said to be in use", range.start, range.end));
    data.get(range.clone()).ok_or_else(message)
}

fn array_at<const N: usize>(data: &[u8], at: usize) -> Result<[u8; N]> {
    let mut array = [0; N];
    array.copy_from_slice(slice(data, at..at + N)?);
    Ok(array)
}

fn u16_at(data: &[u8], at: usize) -> Result<u16> {
    array_at(data, at).map(u16::from_le_bytes)
}

fn u32_at(data: &[u8], at: usize) -> Result<u32> {
    array_at(data, at).map(u32::from_le_bytes)
}

fn u64_at(data: &[u8], at: usize) -> Result<u64> {
    array_at(data, at).map(u64::from_le_bytes)
}
