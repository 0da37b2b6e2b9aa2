//! Data sets of any source behind one interface.

use super::memory::Memory;
use super::source::{Kind, square};
use super::{DataError, Fit, Labels, OnBadImage, Pixels, folder};
use crate::config::listed;
use crate::record::Record;
use crate::{Error, weights};
use ddpm_math::{Domain, Stream};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// How images are brought into shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Side of the square, in pixels.
    pub image_size: usize,
    /// Channels.
    pub channels: usize,
    /// Where a folder's labels come from.
    pub labels: Labels,
    /// How other sizes are treated.
    pub fit: Fit,
    /// Whether smaller images may be enlarged.
    pub allow_upscale: bool,
    /// Crop at random when training.
    pub random_crop: bool,
    /// Mirror at random when training.
    pub random_flip: bool,
    /// What to do with bad images.
    pub on_bad_image: OnBadImage,
    /// Turn images as their EXIF data says.
    pub exif_rotate: bool,
}

impl Options {
    /// Images as they are, cut to squares of a size as the reference cuts them: no classes, nothing at random.
    pub const fn new(image_size: usize, channels: usize) -> Self {
        Self {
            image_size,
            channels,
            labels: Labels::None,
            fit: Fit::Crop,
            allow_upscale: false,
            random_crop: false,
            random_flip: false,
            on_bad_image: OnBadImage::Fail,
            exif_rotate: false,
        }
    }
}

enum Source {
    Memory(Memory),
    Files(Vec<PathBuf>),
}

impl Source {
    /// The images of a name, and the labels that come with them.
    fn open(name: &str) -> Result<(Self, Option<Vec<u32>>), Error> {
        let (memory, labels) = match Kind::of(name)? {
            Kind::Digits => Memory::digits(),
            Kind::Idx(file) => Memory::idx(&file)?,
            Kind::Npz(file) => Memory::arrays(&file)?,
            Kind::Files(files) => return Ok((Self::Files(files), None)),
        };
        Ok((Self::Memory(memory), labels))
    }

    /// As [`Self::open`], or a single image file.
    fn open_any(name: &str) -> Result<(Self, Option<Vec<u32>>), Error> {
        let path = Path::new(name);
        if path.is_file() && folder::is_image(path) {
            return Ok((Self::Files(vec![path.into()]), None));
        }
        Self::open(name)
    }

    fn len(&self) -> usize {
        match self {
            Self::Memory(memory) => memory.len(),
            Self::Files(files) => files.len(),
        }
    }

    /// Height, width and channels of the first image.
    fn first_image_shape(&self, rotate: bool) -> Result<[usize; 3], DataError> {
        Ok(match self {
            Self::Memory(memory) => memory.image_shape(),
            Self::Files(files) => {
                let image = folder::decode(&files[0], rotate)?;
                [image.height, image.width, image.channels]
            }
        })
    }
}

/// A list of images, with labels if there are any.
pub struct Dataset {
    name: String,
    source: Source,
    labels: Option<Vec<u32>>,
    class_names: Vec<String>,
    options: Options,
}

impl Dataset {
    /// Opens `digits` (embedded), a folder of images, a folder of the MNIST family, an npz or an IDX file.
    ///
    /// # Errors
    /// What does not exist, is empty, damaged or of an unknown kind, or has channels that do not fit.
    pub fn open(name: &str, options: &Options) -> Result<Self, Error> {
        Self::from_source(Source::open(name)?, name, options)
    }

    /// As [`Self::open`], or a single image file.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_any(name: &str, options: &Options) -> Result<Self, Error> {
        Self::from_source(Source::open_any(name)?, name, options)
    }

    fn from_source((source, labels): (Source, Option<Vec<u32>>), name: &str, options: &Options) -> Result<Self, Error> {
        let (mut labels, mut class_names) = (labels, Vec::new());
        if let Source::Files(files) = &source
            && let Some((of_files, names)) = folder::classes(Path::new(name), files, options.labels)
        {
            (labels, class_names) = (Some(of_files), names);
        }
        if let (Source::Memory(_), Some(most)) = (&source, labels.iter().flatten().max()) {
            // An npz that `prepare` made tells the names.
            let names = Record::of(Path::new(name)).map(|record| record.classes).unwrap_or_default();
            class_names = if names.len() > *most as usize { names } else { Vec::new() };
        }
        let dataset = Self { name: name.to_string(), source, labels, class_names, options: *options };
        if let Source::Memory(memory) = &dataset.source {
            // All images are alike: one tells whether any fits.
            let [.., found] = memory.image_shape();
            if memory.image(0).with_channels(options.channels).is_none() {
                let source_name = dataset.name.clone();
                return Err(DataError::Channels { source_name, found, wanted: options.channels }.into());
            }
            dataset.fitted(0, None).map_err(|e| match e {
                DataError::BadImage { image, reason } => DataError::Misfit { image, reason },
                other => other,
            })?;
        }
        Ok(dataset)
    }

    /// Height and width of the first image, and 3 channels if any image is in colour, 1 if none is.
    ///
    /// # Errors
    /// As [`Self::open`], and a first image that cannot be read.
    pub fn own_shape(name: &str, exif_rotate: bool) -> Result<[usize; 3], Error> {
        let source = Source::open(name)?.0;
        let [height, width, channels] = source.first_image_shape(exif_rotate)?;
        let colour = matches!(&source, Source::Files(files) if channels == 1 && folder::look(files).colour > 0);
        Ok([height, width, if colour { 3 } else { channels }])
    }

    /// Number of images of a name, or of a single image file, and height, width and channels of the first.
    ///
    /// # Errors
    /// As [`Self::open`], and a first image that cannot be read.
    pub fn count_and_shape(name: &str) -> Result<(usize, [usize; 3]), Error> {
        let source = Source::open_any(name)?.0;
        Ok((source.len(), source.first_image_shape(false)?))
    }

    /// Number of images: at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a data set is never empty")]
    pub fn len(&self) -> usize {
        self.source.len()
    }

    /// Bytes of the images that are held in memory: all of an npz or IDX file, none of a folder.
    pub fn bytes_in_memory(&self) -> usize {
        match &self.source {
            Source::Memory(memory) => memory.bytes(),
            Source::Files(_) => 0,
        }
    }

    /// Checks that there are enough images for a batch.
    ///
    /// # Errors
    /// [`DataError::TooFew`].
    pub fn check_batch(&self, batch_size: usize) -> Result<(), DataError> {
        let images = self.len();
        if images < batch_size { Err(DataError::TooFew { images, batch_size }) } else { Ok(()) }
    }

    /// What tells data sets apart: how many images, their classes, and the values of a few.
    pub fn fingerprint(&self) -> String {
        const LOOKS: usize = 8;
        let mut hasher = Sha256::new();
        hasher.update(self.len().to_le_bytes());
        hasher.update(bytemuck::cast_slice::<u32, u8>(self.labels.as_deref().unwrap_or_default()));
        for i in (0..self.len()).step_by(self.len().div_ceil(LOOKS).max(1)) {
            // One that does not read is said when its turn comes.
            hasher.update(bytemuck::cast_slice::<f32, u8>(&self.plain_example(i).unwrap_or_default()));
        }
        weights::hex(&hasher.finalize())
    }

    /// Class of each image.
    pub fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref()
    }

    /// Names of the classes, where they have any.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// Checks that its classes, if file names or folders tell them, are such that something can be learned of them.
    ///
    /// # Errors
    /// [`DataError::NoClasses`].
    pub fn check_classes(&self) -> Result<(), DataError> {
        match &self.source {
            Source::Files(files) if !self.class_names.is_empty() => {
                let root = Path::new(&self.name);
                folder::check_classes(&self.name, root, files, self.options.labels, &self.class_names)
            }
            _ => Ok(()),
        }
    }

    /// Numbers the classes as a network does whose classes have these names; where either has no names, numbers stay.
    ///
    /// # Errors
    /// [`DataError::UnknownClass`].
    pub fn numbered_by(mut self, names: &[String]) -> Result<Self, DataError> {
        if names.is_empty() || self.class_names.is_empty() {
            return Ok(self);
        }
        let place = |class: &String| {
            names.iter().position(|name| name == class).map(|place| place as u32).ok_or_else(|| {
                DataError::UnknownClass {
                    source_name: self.name.clone(),
                    class: class.clone(),
                    known: names.join(", "),
                }
            })
        };
        let places = self.class_names.iter().map(place).collect::<Result<Vec<_>, _>>()?;
        self.labels.iter_mut().flatten().for_each(|label| *label = places[*label as usize]);
        self.class_names = names.to_vec();
        Ok(self)
    }

    /// How many images are grey and how many in colour, as they are stored; of a large folder, of some all over it.
    pub fn grey_and_colour(&self) -> (usize, usize) {
        match &self.source {
            Source::Memory(memory) if memory.image_shape()[2] == 1 => (memory.len(), 0),
            Source::Memory(memory) => (0, memory.len()),
            Source::Files(files) => {
                let looks = folder::look(files);
                (looks.images - looks.colour, looks.colour)
            }
        }
    }

    /// Which arrays of a file were taken, if not those that the reference's scripts write.
    pub fn arrays(&self) -> Option<&str> {
        match &self.source {
            Source::Memory(memory) => memory.remark(),
            Source::Files(_) => None,
        }
    }

    /// What is to be known of a folder's images before they are used.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub fn remarks(&self) -> Result<Vec<String>, Error> {
        let Source::Files(files) = &self.source else { return Ok(Vec::new()) };
        let (root, mut remarks) = (Path::new(&self.name), Vec::new());
        let looks = folder::look(files);
        let of =
            if looks.images < files.len() { format!("of {} images looked at, ", looks.images) } else { String::new() };
        if (1..looks.images).contains(&looks.colour) {
            let grey = looks.images - looks.colour;
            remarks.push(format!("{of}{grey} are grey and {} in colour: --in-channels makes all alike", looks.colour));
        }
        if looks.turned > 0 && !self.options.exif_rotate {
            remarks.push(format!(
                "{of}{} carry an EXIF orientation, which is ignored, as in the reference: --exif-rotate applies it",
                looks.turned
            ));
        }
        if self.labels.is_none()
            && let Some((_, folders)) = folder::classes(root, files, Labels::Folder)
            && (2..files.len()).contains(&folders.len())
        {
            let names = folders.iter().map(|name| if name.is_empty() { "." } else { name });
            remarks.push(format!(
                "they lie in {} folders: --labels folder makes these classes ({})",
                folders.len(),
                listed(names)
            ));
        }
        let unread = folder::unread(root)?;
        if let Some(first) = unread.first() {
            let name = first.strip_prefix(root).unwrap_or(first).display();
            remarks.push(format!("{} more files of unsupported kinds are skipped, such as {name}", unread.len()));
        }
        Ok(remarks)
    }

    /// What the data are, in a line.
    pub fn describe(&self) -> String {
        let name = &self.name;
        match &self.source {
            Source::Memory(memory) => {
                let [h, w, c] = memory.image_shape();
                let remark = memory.remark().map(|remark| format!("; {remark}")).unwrap_or_default();
                format!("{name}: {} images of {w}x{h} pixels with {c} channel(s){remark}", memory.len())
            }
            Source::Files(files) => format!("{name}: a folder of {} image files", files.len()),
        }
    }

    /// Image `i` in shape, without augmentation: `[H, W, C]`.
    ///
    /// # Errors
    /// An image that cannot be read or used.
    pub fn image(&self, i: usize) -> Result<Vec<u8>, Error> {
        Ok(self.fitted(i, None)?.data)
    }

    /// Image `i` as the network gets it in training, augmented as drawn for `position`: `[C, H, W]` in [-1, 1].
    ///
    /// # Errors
    /// An image that cannot be read or used.
    pub fn example(&self, i: usize, seed: u64, position: u64) -> Result<Vec<f32>, DataError> {
        let mut stream = Stream::new(seed, Domain::Augment, position, 0);
        let crop = self.options.random_crop.then_some(&mut stream);
        let image = self.fitted(i, crop)?;
        let mirrored = self.options.random_flip && stream.uniform() < 0.5;
        Ok(image.to_network(mirrored))
    }

    /// Image `i` as the network gets it, without augmentation: `[C, H, W]` in [-1, 1].
    ///
    /// # Errors
    /// An image that cannot be read or used.
    pub fn plain_example(&self, i: usize) -> Result<Vec<f32>, DataError> {
        Ok(self.fitted(i, None)?.to_network(false))
    }

    /// What bad images are called in messages.
    pub(super) fn image_name(&self, i: usize) -> String {
        match &self.source {
            Source::Memory(_) => format!("image {i} of {}", self.name),
            Source::Files(files) => files[i].display().to_string(),
        }
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    fn fitted(&self, i: usize, random_crop: Option<&mut Stream>) -> Result<Pixels, DataError> {
        let o = &self.options;
        let image = match &self.source {
            Source::Memory(memory) => memory.image(i),
            Source::Files(files) => folder::decode(&files[i], o.exif_rotate)?,
        };
        let found = image.channels;
        let image = image.with_channels(o.channels).ok_or_else(|| DataError::Channels {
            source_name: self.image_name(i),
            found,
            wanted: o.channels,
        })?;
        square(image, o.image_size, o.fit, o.allow_upscale, random_crop)
            .map_err(|reason| DataError::BadImage { image: self.image_name(i), reason })
    }
}
