//! Images that are held in memory whole: the embedded digits, npz and IDX files.

use super::Pixels;
use crate::Error;
use crate::config::MOST_CLASSES;
use crate::npz::Npz;
use ddpm_formats::idx;
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

    /// Bytes of all images.
    pub(super) fn bytes(&self) -> usize {
        self.data.len()
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
        let shape = image_shape(path, &images.shape)?;
        let labels = labels(path, &mut npz, shape[0])?;
        Ok((Self { shape, data: images.values }, labels))
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

/// The sizes `[N, H, W, C]` of an npz's images.
pub(super) fn image_shape(path: &Path, shape: &[usize]) -> Result<[usize; 4], Error> {
    let &[n, h, w, c] = shape else {
        return Err(Error::file(path, format!("`arr_0` has shape {shape:?}, expected [N, H, W, C]")));
    };
    if n * h * w * c == 0 {
        return Err(Error::file(path, format!("`arr_0` has shape {shape:?}: there is no image in it")));
    }
    Ok([n, h, w, c])
}

/// The labels `arr_1` of an npz's `n` images, if it has any.
pub(super) fn labels(path: &Path, npz: &mut Npz, n: usize) -> Result<Option<Vec<u32>>, Error> {
    if !npz.has("arr_1") {
        return Ok(None);
    }
    let labels = npz.integers("arr_1")?;
    if labels.shape != [n] {
        let message = format!("`arr_1` has shape {:?}, expected one label for each of the {n} images", labels.shape);
        return Err(Error::file(path, message));
    }
    let label = |label: i64| u32::try_from(label).ok().filter(|&l| (l as usize) < MOST_CLASSES);
    let labels: Option<Vec<u32>> = labels.values.into_iter().map(label).collect();
    let wrong = || Error::file(path, format!("`arr_1` holds a label that is negative or not below {MOST_CLASSES}"));
    labels.map(Some).ok_or_else(wrong)
}
