//! Images that are held in memory whole: the embedded digits, npz and IDX files.

use super::{Pixels, idx};
use crate::Error;
use crate::config::MOST_CLASSES;
use crate::npz::Npz;
use flate2::read::GzDecoder;
use std::io::Read;
use std::path::Path;

/// Images of one size `[N, H, W, C]`.
pub(super) struct Memory {
    shape: [usize; 4],
    data: Vec<u8>,
}

/// Images and their labels.
pub(super) type Labelled = (Memory, Option<Vec<u32>>);

impl Memory {
    pub(super) fn len(&self) -> usize {
        self.shape[0]
    }

    pub(super) fn image(&self, i: usize) -> Pixels {
        let [_, height, width, channels] = self.shape;
        let size = height * width * channels;
        Pixels { width, height, channels, data: self.data[i * size..(i + 1) * size].to_vec() }
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
        (Self { shape: [COUNT, 8, 8, 1], data }, Some(labels.iter().map(|&l| u32::from(l)).collect()))
    }

    /// `arr_0` uint8 `[N, H, W, C]` and, if there, `arr_1` `[N]`.
    pub(super) fn npz(path: &Path) -> Result<Labelled, Error> {
        let mut npz = Npz::open(path)?;
        let images = npz.bytes("arr_0")?;
        let &[n, h, w, c] = images.shape.as_slice() else {
            return Err(Error::file(path, format!("`arr_0` has shape {:?}, expected [N, H, W, C]", images.shape)));
        };
        if images.values.is_empty() {
            return Err(Error::file(path, format!("`arr_0` has shape {:?}: there is no image in it", images.shape)));
        }
        let labels = if npz.has("arr_1") {
            let labels = npz.integers("arr_1")?;
            if labels.shape != [n] {
                return Err(Error::file(
                    path,
                    format!("`arr_1` has shape {:?}, expected one label for each of the {n} images", labels.shape),
                ));
            }
            let label = |label: i64| u32::try_from(label).ok().filter(|&l| (l as usize) < MOST_CLASSES);
            let labels: Option<Vec<u32>> = labels.values.into_iter().map(label).collect();
            let wrong =
                || Error::file(path, format!("`arr_1` holds a label that is negative or not below {MOST_CLASSES}"));
            Some(labels.ok_or_else(wrong)?)
        } else {
            None
        };
        Ok((Self { shape: [n, h, w, c], data: images.values }, labels))
    }

    /// An IDX file of images.
    pub(super) fn idx(path: &Path) -> Result<Labelled, Error> {
        let ([n, h, w], data, labels) = idx::load(path)?;
        if data.is_empty() {
            return Err(Error::file(path, "there is no image in it"));
        }
        Ok((Self { shape: [n, h, w, 1], data }, labels))
    }
}
