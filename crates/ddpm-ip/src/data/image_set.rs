//! Images as they are stored, to be measured.

use super::arrays::Arrays;
use super::memory::{ImageArray, Memory};
use super::source::{Kind, square};
use super::{DataError, Fit, Labels, Pixels, folder, memory};
use crate::Error;
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// What images are brought to before they are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Side of the square, in pixels.
    pub image_size: usize,
    /// How other sizes are treated.
    pub fit: Fit,
    /// Whether smaller images may be enlarged.
    pub allow_upscale: bool,
    /// Channels, if not those that they have.
    pub channels: Option<usize>,
}

/// A set of images of one size, gone through in order. An npz and a folder are read as they are needed.
pub struct ImageSet {
    name: String,
    source: Source,
    labels: Option<Vec<u32>>,
    /// Of a folder's classes.
    class_names: Vec<String>,
    shape: Option<Shape>,
    /// Channels that they are brought to, if to others than their own.
    channels: Option<usize>,
    /// Height, width and channels as stored; of a folder those of the first image.
    stored: [usize; 3],
    /// Images in all, and those that are used.
    stored_len: usize,
    len: usize,
    exif_rotate: bool,
    remark: Option<String>,
}

enum Source {
    Npz(PathBuf),
    Memory(Memory),
    Files(Vec<PathBuf>),
}

impl ImageSet {
    /// Opens `digits` (embedded), a folder of images, a folder of the MNIST family, an npz or npy file, or an IDX file. Without
    /// `labels` there are none; else they say where a folder's come from. With `exif_rotate` images are turned as their EXIF
    /// data says.
    ///
    /// # Errors
    /// What does not exist, is empty, damaged or of an unknown kind, or does not fit the shape asked for.
    pub fn open(name: &str, shape: Option<Shape>, labels: Option<Labels>, exif_rotate: bool) -> Result<Self, Error> {
        let (mut class_names, mut remark) = (Vec::new(), None);
        let of_memory =
            |(memory, labels): memory::Labelled| (memory.image_shape(), memory.len(), labels, Source::Memory(memory));
        let (stored, stored_len, labels, source) = match Kind::of(name)? {
            Kind::Digits => of_memory(Memory::digits()),
            Kind::Idx(file) => of_memory(Memory::idx(&file)?),
            Kind::Files(files) => {
                let image = decode(&files[0], exif_rotate)?;
                let root = Path::new(name);
                let classes = labels.and_then(|labels| folder::classes(root, &files, labels));
                if let Some(((_, names), labels)) = classes.as_ref().zip(labels) {
                    folder::check_classes(name, root, &files, labels, names)?;
                }
                let labels = classes.map(|(labels, names)| {
                    class_names = names;
                    labels
                });
                ([image.height, image.width, image.channels], files.len(), labels, Source::Files(files))
            }
            Kind::Npz(path) => {
                let mut arrays = Arrays::open(&path)?;
                let [n, stored @ ..] = arrays.shape();
                let labels = if labels.is_some() { arrays.labels()? } else { None };
                remark = arrays.taken();
                (stored, n, labels, Source::Npz(path))
            }
        };
        let set = Self {
            name: name.into(),
            source,
            labels,
            class_names,
            shape,
            channels: None,
            stored,
            stored_len,
            len: stored_len,
            exif_rotate,
            remark,
        };
        set.checked()
    }

    /// Images in memory, under a name for reports. Their classes count if `labels` is set.
    ///
    /// # Errors
    /// Images that do not fit the shape asked for.
    pub fn of_array(name: &str, array: &ImageArray, shape: Option<Shape>, labels: bool) -> Result<Self, Error> {
        let (memory, own): memory::Labelled = array.clone().into();
        let (stored, stored_len) = (memory.image_shape(), memory.len());
        let set = Self {
            name: name.into(),
            source: Source::Memory(memory),
            labels: own.filter(|_| labels),
            class_names: Vec::new(),
            shape,
            channels: None,
            stored,
            stored_len,
            len: stored_len,
            exif_rotate: false,
            remark: None,
        };
        set.checked()
    }

    /// That its images fit, where one tells whether any does: all are alike but those of a folder.
    fn checked(self) -> Result<Self, Error> {
        if !matches!(self.source, Source::Files(_)) {
            let [height, width, channels] = self.stored;
            let any = Pixels { width, height, channels, data: vec![0; height * width * channels] };
            self.shaped(any, 0)?;
        }
        Ok(self)
    }

    /// The first `most` images alone, if there are more.
    #[must_use]
    pub fn take(mut self, most: usize) -> Self {
        self.len = self.stored_len.min(most.max(1));
        self
    }

    /// All images in colour (3) or in grey (1).
    #[must_use]
    pub fn with_channels(mut self, channels: usize) -> Self {
        self.channels = Some(channels);
        self
    }

    /// What it was opened by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of images: at least 1.
    #[expect(clippy::len_without_is_empty, reason = "an image set is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Height, width and channels of every image.
    pub fn image_shape(&self) -> [usize; 3] {
        let [height, width, stored] = self.stored;
        let channels = self.channels.or(self.shape.and_then(|shape| shape.channels)).unwrap_or(stored);
        self.shape.map_or([height, width, channels], |shape| [shape.image_size, shape.image_size, channels])
    }

    /// What is to be known of them before they are used.
    pub fn remark(&self) -> Option<&str> {
        self.remark.as_deref()
    }

    /// Class of each image.
    pub fn labels(&self) -> Option<&[u32]> {
        self.labels.as_ref().map(|labels| &labels[..self.len])
    }

    /// Names of the classes, where they have any.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// Passes the images from number `first` on to `take`, up to `batch` at a time, as `[n, H, W, C]`, until it says no.
    ///
    /// # Errors
    /// Images that cannot be read, or are of other sizes than the first; what `take` says.
    pub fn batches(
        &self,
        first: usize,
        batch: usize,
        take: &mut dyn FnMut(&[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        if let Source::Npz(path) = &self.source {
            let [height, width, channels] = self.stored;
            let bytes = height * width * channels;
            let mut at = 0;
            return Arrays::open(path)?.rows(batch, &mut |rows| {
                let (begin, end) = (at, at + rows.len() / bytes);
                at = end;
                // Of a file that is wanted to its end the checksum is compared there.
                let on = end < self.len || self.len == self.stored_len;
                // Rows before the first are read over.
                let wanted = first.clamp(begin, end)..self.len.clamp(begin, end);
                if wanted.is_empty() {
                    return Ok(on);
                }
                let rows = &rows[(wanted.start - begin) * bytes..(wanted.end - begin) * bytes];
                if self.shape.is_none() && self.channels.is_none() {
                    return Ok(take(rows)? && on);
                }
                let image = |(i, row): (usize, &[u8])| {
                    self.shaped(Pixels { width, height, channels, data: row.to_vec() }, wanted.start + i)
                };
                let images = rows.par_chunks(bytes).enumerate().map(image).collect::<Result<Vec<_>, _>>()?;
                Ok(take(&images.concat())? && on)
            });
        }
        for from in (first..self.len).step_by(batch) {
            let images = (from..self.len.min(from + batch)).into_par_iter().map(|i| {
                let image = match &self.source {
                    Source::Files(files) => decode(&files[i], self.exif_rotate)?,
                    Source::Memory(memory) => memory.image(i),
                    Source::Npz(_) => unreachable!("read above"),
                };
                Ok(self.shaped(image, i)?)
            });
            let images = images.collect::<Result<Vec<_>, Error>>()?.concat();
            if !take(&images)? {
                break;
            }
        }
        Ok(())
    }

    /// Some images, in the order of their numbers.
    ///
    /// # Errors
    /// As [`Self::batches`].
    pub fn images(&self, wanted: &std::collections::BTreeSet<usize>) -> Result<Vec<Vec<u8>>, Error> {
        let size: usize = self.image_shape().iter().product();
        let (mut at, mut found) = (0, Vec::new());
        self.batches(0, 256, &mut |images| {
            for image in images.chunks_exact(size) {
                if wanted.contains(&at) {
                    found.push(image.to_vec());
                }
                at += 1;
            }
            Ok(found.len() < wanted.len())
        })?;
        Ok(found)
    }

    /// Image `i` in the shape of all.
    fn shaped(&self, image: Pixels, i: usize) -> Result<Vec<u8>, DataError> {
        let name = match &self.source {
            Source::Files(files) => files[i].display().to_string(),
            _ => format!("the images of {}", self.name),
        };
        let bad = |reason: String| Err(DataError::Misfit { image: name.clone(), reason });
        let (w, h) = (image.width, image.height);
        let [height, width, _] = self.stored;
        let [.., channels] = self.image_shape();
        let found = image.channels;
        let Some(image) = image.with_channels(channels) else {
            return bad(format!("{found} channels, but {channels} are wanted"));
        };
        if found > channels && self.channels.is_none() && self.shape.is_none_or(|shape| shape.channels.is_none()) {
            return bad(
                "in colour, but the first image of the folder is grey: make them alike with `ddpm-ip prepare images`"
                    .into(),
            );
        }
        match self.shape {
            Some(Shape { image_size, fit, allow_upscale, .. }) => {
                square(image, image_size, fit, allow_upscale, None).map(|image| image.data).or_else(bad)
            }
            None if [h, w] != [height, width] => bad(format!(
                "{w}x{h} pixels, but the first image of the folder has {width}x{height}: bring them to one size with \
                 --image-size"
            )),
            None => Ok(image.data),
        }
    }
}

/// A file that cannot be read is the file's fault, and nothing is gone on without.
fn decode(path: &Path, rotate: bool) -> Result<Pixels, Error> {
    folder::decode(path, rotate).map_err(|e| match e {
        DataError::BadImage { reason, .. } => Error::file(path, reason),
        other => other.into(),
    })
}
