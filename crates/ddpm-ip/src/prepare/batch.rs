//! Batches of planar 32x32 images with labels, as CIFAR-10 and downsampled ImageNet come in.

use crate::Error;
use crate::data::Pixels;
use crate::torch::{Dtype, Pickle, Value};
use ddpm_formats::archive::Archive;
use std::path::Path;

/// Pixels of a side.
pub(super) const SIDE: usize = 32;

/// Bytes of an image: a plane of each colour.
pub(super) const IMAGE_BYTES: usize = 3 * SIDE * SIDE;

/// The files of an archive (at `path`) with these names, in whatever folder, in the order of the names, each with one of the endings. Missing
/// ones are an error, unless some are there and that is enough.
///
/// # Errors
/// Names that are missing, or there twice.
pub(super) fn files(
    archive: &Archive,
    path: &Path,
    names: &[&str],
    endings: &[&str],
    some: bool,
) -> Result<Vec<usize>, Error> {
    let mut found = Vec::new();
    for name in names {
        let is_it = |file: &Path| {
            let rest = file.file_name().and_then(|f| f.to_str()).and_then(|f| f.strip_prefix(name));
            rest.is_some_and(|rest| endings.contains(&rest))
        };
        let mut files = (0..archive.files().len()).filter(|&i| is_it(&archive.files()[i]));
        match (files.next(), files.next()) {
            (Some(one), Some(other)) => {
                let (one, other) = (archive.place(one), archive.place(other));
                return Err(Error::file(path, format!("{one} and {other} are the same batch: name one folder")));
            }
            (Some(file), None) => found.push(file),
            (None, _) if some => {}
            (None, _) => {
                let message = format!(
                    "{name} is not in it: download the data set again, or use --allow-count to go on without it"
                );
                return Err(Error::file(path, message));
            }
        }
    }
    if found.is_empty() {
        return Err(Error::file(path, format!("{} is not in it, nor is any other batch", names[0])));
    }
    Ok(found)
}

/// Images of a file.
pub(super) struct Batch {
    /// `[N, 3, H, W]`.
    pub(super) pixels: Vec<u8>,
    /// A label per image.
    pub(super) labels: Vec<i64>,
}

impl Batch {
    /// The batch with labels that begin with 0, or what is wrong: another number of labels than of images, or one that
    /// does not lie in `first..first + classes`.
    pub(super) fn check_labels(mut self, first: i64, classes: usize) -> Result<Self, String> {
        let images = self.pixels.len() / IMAGE_BYTES;
        if self.labels.len() != images {
            return Err(format!("it has {} labels for {images} images", self.labels.len()));
        }
        for (i, label) in self.labels.iter_mut().enumerate() {
            let found = *label;
            *label = found.saturating_sub(first);
            if !(0..classes as i64).contains(label) {
                return Err(format!(
                    "the label of image {i} is {found}, expected {first} to {}: it is damaged",
                    first + classes as i64 - 1
                ));
            }
        }
        Ok(self)
    }

    /// The planes and the label of each image.
    pub(super) fn images(&self) -> impl Iterator<Item = (&[u8], u32)> {
        self.pixels.chunks_exact(IMAGE_BYTES).zip(self.labels.iter().map(|&label| label as u32))
    }
}

/// From planes to pixels.
pub(super) fn interleave(planes: &[u8]) -> Pixels {
    let plane = SIDE * SIDE;
    let data = (0..plane).flat_map(|i| [planes[i], planes[plane + i], planes[2 * plane + i]]).collect();
    Pixels { width: SIDE, height: SIDE, channels: 3, data }
}

/// A pickled dictionary of `data` (an array `[N, 3072]`) and `labels` (a list).
pub(super) fn read_pickle(bytes: &[u8]) -> Result<Batch, String> {
    let pickle = Pickle::read(bytes, bytes.len() as u64)?;
    let value = pickle.value();
    let get = |key: &str| value.get(key).ok_or_else(|| format!("it has no `{key}`: it is {}", value.describe()));
    let (data, labels) = (get("data")?, get("labels")?);
    let array = data.array().filter(|array| array.dtype == Dtype::U8 && has_images(array.shape));
    let array = array.ok_or_else(|| format!("its `data` is {}, expected uint8 [N, {IMAGE_BYTES}]", data.describe()))?;
    let listed: Option<Vec<i64>> = labels.items().and_then(|labels| labels.map(Value::int).collect());
    let labels = listed.ok_or_else(|| format!("its `labels` are {}, expected whole numbers", labels.describe()))?;
    Ok(Batch { pixels: array.bytes().into_owned(), labels })
}

/// Whether a shape is that of images of this size.
pub(super) fn has_images(shape: &[usize]) -> bool {
    matches!(shape, &[_, IMAGE_BYTES])
}
