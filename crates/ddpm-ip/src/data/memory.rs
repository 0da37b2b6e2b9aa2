//! Images that are held in memory whole: the embedded digits, npz and IDX files.

use super::Pixels;
use super::arrays::Arrays;
use crate::Error;
use ddpm_formats::idx;
use flate2::read::GzDecoder;
use std::io::Read;
use std::path::Path;

/// Images of one size `[N, H, W, C]`.
pub(super) struct Memory {
    shape: [usize; 4],
    data: Vec<u8>,
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
        let data = grey.iter().map(|&g| ((u32::from(g) * 255 + 8) / 16) as u8).collect();
        (Self { shape: [COUNT, 8, 8, 1], data, remark: None }, Some(labels.iter().map(|&l| u32::from(l)).collect()))
    }

    /// The images of an npz or npy file, and the labels if it has any.
    pub(super) fn arrays(path: &Path) -> Result<Labelled, Error> {
        let mut arrays = Arrays::open(path)?;
        let labels = arrays.labels()?;
        Ok((Self { shape: arrays.shape(), data: arrays.images()?, remark: arrays.taken() }, labels))
    }

    /// An IDX file of images.
    pub(super) fn idx(path: &Path) -> Result<Labelled, Error> {
        let ([n, h, w], data, labels) = idx::load(path)?;
        if data.is_empty() {
            return Err(Error::file(path, "there is no image in it"));
        }
        Ok((Self { shape: [n, h, w, 1], data, remark: None }, labels))
    }
}
