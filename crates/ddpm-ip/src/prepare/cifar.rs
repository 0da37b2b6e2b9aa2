//! CIFAR-10, in its authors' binary or Python version.

use super::batch::{self, Batch};
use super::maker::{Body, Maker};
use super::source::{Source, Split};
use crate::Error;
use ddpm_formats::archive::Archive;
use std::path::Path;

/// The classes as the reference names them, in the data set's order.
const CLASSES: [&str; 10] = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// A label, then the pixels.
const RECORD_BYTES: usize = 1 + batch::IMAGE_BYTES;

const TRAIN: [&str; 5] = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"];
const TEST: [&str; 1] = ["test_batch"];

const TRAIN_COUNT: usize = 50_000;
const TEST_COUNT: usize = 10_000;

/// The batches of a split.
pub(super) struct Cifar {
    archive: Archive,
    split: Split,
    /// Files in the archive, in the order of the batches.
    batches: Vec<usize>,
}

fn is_batch(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(".bin").unwrap_or(&name);
    TRAIN.contains(&name) || TEST.contains(&name)
}

impl Cifar {
    /// Opens an archive, or the folder it unpacks to.
    pub(super) fn open(path: &Path, split: Split, allow_count: bool) -> Result<Self, Error> {
        let archive = Archive::open(path, is_batch)?;
        let names = if split == Split::Train { &TRAIN[..] } else { &TEST[..] };
        let batches = batch::files(&archive, path, names, &["", ".bin"], allow_count)?;
        Ok(Self { archive, split, batches })
    }
}

impl Source for Cifar {
    fn expected(&self) -> Option<usize> {
        Some(if self.split == Split::Train { TRAIN_COUNT } else { TEST_COUNT })
    }

    fn files(&self) -> Vec<&Path> {
        self.batches.iter().map(|&file| self.archive.files()[file].as_path()).collect()
    }

    fn labelled(&self) -> bool {
        true
    }

    /// Numbered from 1 over both splits, as the reference's script does.
    fn feed(&self, maker: &mut Maker) -> Result<(), Error> {
        let mut number = if self.split == Split::Train { 0 } else { TRAIN_COUNT };
        for &file in &self.batches {
            let bytes = self.archive.read(file)?;
            let is_binary = self.archive.files()[file].extension().is_some_and(|e| e == "bin");
            let batch = if is_binary { read_binary(&bytes) } else { batch::read_pickle(&bytes) };
            let batch = batch.and_then(|batch| batch.check_labels(0, CLASSES.len()));
            let batch = batch.map_err(|reason| self.archive.unusable(file, reason))?;
            for (pixels, label) in batch.images() {
                number += 1;
                let name = format!("{}_{number:05}", CLASSES[label as usize]);
                if maker.offer(name, Some(label), || Ok(Body::Pixels(batch::interleave(pixels))))?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Records of a label and the pixels.
fn read_binary(bytes: &[u8]) -> Result<Batch, String> {
    if !bytes.len().is_multiple_of(RECORD_BYTES) {
        return Err(format!("its {} bytes are not a whole number of images: it is cut off", bytes.len()));
    }
    let records = bytes.chunks_exact(RECORD_BYTES);
    let labels = records.clone().map(|record| i64::from(record[0])).collect();
    Ok(Batch { pixels: records.flat_map(|record| &record[1..]).copied().collect(), labels })
}
