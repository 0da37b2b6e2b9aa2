//! Downsampled ImageNet of 32x32 pixels: ten batches for training and one for validation, pickled or as npz.

use super::batch::{self, Batch};
use super::maker::{Body, Maker};
use super::source::{Source, Split};
use crate::Error;
use crate::npz::Npz;
use ddpm_formats::archive::Archive;
use std::path::{Path, PathBuf};

const CLASSES: usize = 1000;

const TRAIN_BATCHES: usize = 10;
const TRAIN_COUNT: usize = 1_281_167;
const VAL_COUNT: usize = 50_000;

/// The batches of a split.
pub(super) struct ImageNet {
    path: PathBuf,
    archive: Archive,
    split: Split,
    /// Files in the archive, in the order of the batches.
    batches: Vec<usize>,
}

fn is_batch(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(".npz").unwrap_or(&name);
    name == "val_data" || name.starts_with("train_data_batch_")
}

impl ImageNet {
    /// Opens a folder of batches, or an archive of pickled ones.
    pub(super) fn open(path: &Path, split: Split, allow_count: bool) -> Result<Self, Error> {
        let archive = Archive::open(path, is_batch)?;
        let names = match split {
            Split::Train => (1..=TRAIN_BATCHES).map(|i| format!("train_data_batch_{i}")).collect(),
            Split::Test => vec!["val_data".to_string()],
        };
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let batches = batch::files(&archive, path, &names, &["", ".npz"], allow_count)?;
        Ok(Self { path: path.to_path_buf(), archive, split, batches })
    }

    fn read(&self, file: usize) -> Result<Batch, Error> {
        let name = &self.archive.files()[file];
        let batch = if name.extension().is_none_or(|e| e != "npz") {
            batch::read_pickle(&self.archive.read(file)?)
        } else if self.archive.is_folder() {
            read_npz(&self.path.join(name))?
        } else {
            Err("npz files are not read from an archive: unpack it and name the folder".into())
        };
        let batch = batch.and_then(|batch| batch.check_labels(1, CLASSES));
        batch.map_err(|reason| self.archive.unusable(file, reason).into())
    }
}

impl Source for ImageNet {
    fn expected(&self) -> Option<usize> {
        Some(if self.split == Split::Train { TRAIN_COUNT } else { VAL_COUNT })
    }

    fn files(&self) -> Vec<&Path> {
        self.batches.iter().map(|&file| self.archive.files()[file].as_path()).collect()
    }

    fn labelled(&self) -> bool {
        true
    }

    /// In the order of the batches, numbered from 1 over both splits; labels begin with 0.
    fn feed(&self, maker: &mut Maker) -> Result<(), Error> {
        let mut number = if self.split == Split::Train { 0 } else { TRAIN_COUNT };
        for &file in &self.batches {
            for (pixels, label) in self.read(file)?.images() {
                number += 1;
                let name = format!("{label:04}_{number:07}");
                if maker.offer(name, Some(label), || Ok(Body::Pixels(batch::interleave(pixels))))?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Arrays `data` and `labels`; or what is wrong with them.
fn read_npz(path: &Path) -> Result<Result<Batch, String>, Error> {
    let mut npz = Npz::open(path)?;
    let data = npz.bytes("data")?;
    if !batch::has_images(&data.shape) {
        return Ok(Err(format!("its `data` has the shape {:?}, expected [N, {}]", data.shape, batch::IMAGE_BYTES)));
    }
    Ok(Ok(Batch { pixels: data.values, labels: npz.integers("labels")?.values }))
}
