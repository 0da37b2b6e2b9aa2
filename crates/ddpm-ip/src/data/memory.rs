//! Images that are held in memory whole: the embedded digits, npz and IDX files.

use super::Pixels;
use super::arrays::Arrays;
use crate::Error;
use crate::config::ConfigError;
use crate::file::write_atomic;
use crate::npz::NpzWriter;
use ddpm_formats::idx;
use flate2::read::GzDecoder;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// Images of one size, in memory.
#[derive(Clone)]
pub struct ImageArray {
    shape: [usize; 4],
    bytes: Arc<Vec<u8>>,
    labels: Option<Vec<u32>>,
}

impl ImageArray {
    /// Images `[N, H, W, C]`, and the class of each if they have any.
    ///
    /// # Errors
    /// No images, a shape that is not that of the bytes, other channels than 1 or 3, and not as many classes as images.
    pub fn new(shape: [usize; 4], bytes: Vec<u8>, labels: Option<Vec<u32>>) -> Result<Self, ConfigError> {
        let wrong = |message: String| Err(ConfigError(message));
        let [n, h, w, c] = shape;
        if ![1, 3].contains(&c) {
            let moved = if [1, 3].contains(&h) {
                ": move the channels to the end with images.transpose(0, 2, 3, 1)"
            } else {
                ""
            };
            return wrong(format!("images of shape {shape:?} have {c} channels, expected [N, H, W, 1 or 3]{moved}"));
        }
        if bytes.is_empty() || n * h * w * c != bytes.len() {
            return wrong(format!(
                "images of shape {shape:?} have {} bytes: give as many as the shape says, and at least one image",
                bytes.len()
            ));
        }
        if let Some(labels) = labels.as_ref().filter(|labels| labels.len() != n) {
            return wrong(format!("{} labels for {n} images", labels.len()));
        }
        Ok(Self { shape, bytes: Arc::new(bytes), labels })
    }

    /// `[N, H, W, C]`.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Writes an npz that every command takes for images: `arr_0` and, if there are classes, `arr_1`.
    ///
    /// # Errors
    /// What writing says.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        write_atomic(path, |w| {
            let mut npz = NpzWriter::new(w);
            npz.array::<u8>("arr_0", &self.shape, |push| push(&self.bytes))?;
            if let Some(labels) = &self.labels {
                let labels: Vec<i64> = labels.iter().map(|&label| label.into()).collect();
                npz.array::<i64>("arr_1", &[labels.len()], |push| push(&labels))?;
            }
            npz.finish()
        })
    }

    /// Whether the file holds these images and classes.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn is_in(&self, path: &Path) -> Result<bool, Error> {
        let (there, labels) = Memory::arrays(path)?;
        Ok(there.shape == self.shape && there.data == self.bytes && labels == self.labels)
    }
}

impl std::fmt::Debug for ImageArray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ImageArray {:?}", self.shape)
    }
}

impl From<ImageArray> for Labelled {
    fn from(array: ImageArray) -> Self {
        (Memory { shape: array.shape, data: array.bytes, remark: None }, array.labels)
    }
}

/// Images of one size `[N, H, W, C]`.
pub(super) struct Memory {
    shape: [usize; 4],
    data: Arc<Vec<u8>>,
    /// What is to be known of them.
    remark: Option<String>,
}

/// Images and their labels.
pub(super) type Labelled = (Memory, Option<Vec<u32>>);

impl Memory {
    pub(super) fn len(&self) -> usize {
        self.shape[0]
    }

    /// Bytes of all images.
    pub(super) fn bytes(&self) -> usize {
        self.data.len()
    }

    pub(super) fn image(&self, i: usize) -> Pixels {
        let [_, height, width, channels] = self.shape;
        let size = height * width * channels;
        Pixels { width, height, channels, data: self.data[i * size..(i + 1) * size].to_vec() }
    }

    /// What is to be known of them before they are used.
    pub(super) fn remark(&self) -> Option<&str> {
        self.remark.as_deref()
    }

    /// Height, width and channels of every image.
    pub(super) fn image_shape(&self) -> [usize; 3] {
        [self.shape[1], self.shape[2], self.shape[3]]
    }

    /// The embedded digits; see `assets/README.md` for source, licence and format.
    pub(super) fn digits() -> Labelled {
        const COUNT: usize = 1797;
        let packed: &[u8] = include_bytes!("../../assets/digits.bin.gz");
        let mut bytes = Vec::with_capacity(COUNT * 65);
        GzDecoder::new(packed).read_to_end(&mut bytes).expect("the embedded file is whole");
        let (labels, grey) = bytes.split_at(COUNT);
        // 17 grey levels over the range of a byte.
        let data = Arc::new(grey.iter().map(|&g| ((u32::from(g) * 255 + 8) / 16) as u8).collect());
        (Self { shape: [COUNT, 8, 8, 1], data, remark: None }, Some(labels.iter().map(|&l| u32::from(l)).collect()))
    }

    /// The images of an npz or npy file, and the labels if it has any.
    pub(super) fn arrays(path: &Path) -> Result<Labelled, Error> {
        let mut arrays = Arrays::open(path)?;
        let labels = arrays.labels()?;
        Ok((Self { shape: arrays.shape(), data: Arc::new(arrays.images()?), remark: arrays.taken() }, labels))
    }

    /// An IDX file of images.
    pub(super) fn idx(path: &Path) -> Result<Labelled, Error> {
        let ([n, h, w], data, labels) = idx::load(path)?;
        if data.is_empty() {
            return Err(Error::file(path, "there is no image in it"));
        }
        Ok((Self { shape: [n, h, w, 1], data: Arc::new(data), remark: None }, labels))
    }
}
