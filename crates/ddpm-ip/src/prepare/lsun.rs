//! LSUN: an LMDB database per category and part, of WebP images (JPEG in older ones).

use super::maker::{Body, Maker};
use super::source::Source;
use crate::Error;
use ddpm_formats::archive::MOST_FILE_BYTES;
use ddpm_formats::lmdb::{self, Lmdb};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Training images of each category.
const COUNTS: [(&str, usize); 10] = [
    ("bedroom", 3_033_042),
    ("bridge", 818_687),
    ("church_outdoor", 126_227),
    ("classroom", 168_103),
    ("conference_room", 229_069),
    ("dining_room", 657_571),
    ("kitchen", 2_212_277),
    ("living_room", 1_315_802),
    ("restaurant", 626_331),
    ("tower", 708_264),
];

/// Images of every category's other part.
const VAL_COUNT: usize = 300;

/// A database.
pub(super) struct Lsun {
    file: PathBuf,
    db: Lmdb,
    prefix: String,
    expected: Option<usize>,
}

impl Lsun {
    /// Opens the folder of a database; its name tells how many images it has if it is the original one, such as
    /// `tower_train_lmdb`.
    pub(super) fn open(path: &Path, prefix: Option<&str>) -> Result<Self, Error> {
        let file = lmdb::data_file(path);
        let db = Lmdb::open(&file).map_err(|e| match e.kind() {
            ErrorKind::Other => Error::file(&file, format!("{e}: name the folder that the category's zip unpacks to")),
            _ => Error::io("read", &file)(e),
        })?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let category = |part: &str| name.strip_suffix(part).map(str::to_string);
        let (category, expected) = match (category("_train_lmdb"), category("_val_lmdb")) {
            (Some(category), _) => {
                let known = COUNTS.iter().find(|(name, _)| *name == category);
                (Some(category), known.map(|(_, count)| *count))
            }
            (None, Some(category)) => {
                let is_known = COUNTS.iter().any(|(name, _)| *name == category);
                (Some(category), is_known.then_some(VAL_COUNT))
            }
            (None, None) => (None, None),
        };
        let prefix = prefix.map(str::to_string).or(category).unwrap_or_else(|| "image".into());
        Ok(Self { file, db, prefix, expected })
    }
}

impl Source for Lsun {
    fn expected(&self) -> Option<usize> {
        self.expected
    }

    fn count(&self) -> Option<usize> {
        Some(self.db.count())
    }

    /// In the order of the keys, numbered from 0, as the reference's script does.
    fn feed(&self, maker: &mut Maker) -> Result<(), Error> {
        for (i, entry) in self.db.entries().enumerate() {
            let (key, value) = entry.map_err(Error::io("read", &self.file))?;
            let place = format!("the image of key {}", key.escape_ascii());
            let load = || {
                let bytes = self.db.read(value, MOST_FILE_BYTES);
                let bytes = bytes.map_err(|e| Error::file(&self.file, format!("{place} cannot be read: {e}")))?;
                Ok(Body::Encoded { bytes, place })
            };
            if maker.offer(format!("{}_{i:07}", self.prefix), None, load)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}
