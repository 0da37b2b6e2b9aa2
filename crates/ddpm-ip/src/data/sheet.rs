//! Sheets of images: sample grids and contact sheets.

use crate::Error;
use crate::file::write_atomic;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use std::path::Path;

/// Pixels of the line between images, and its grey.
const GAP: usize = 2;
const GAP_GREY: u8 = 40;

/// Images smaller than this are enlarged by a whole factor.
const LEAST_SIDE: usize = 48;

/// An 8-bit picture, grey or RGB.
pub struct Sheet {
    width: usize,
    height: usize,
    channels: usize,
    data: Vec<u8>,
}

/// Arranges `count` square images `[H, W, C]` of side `size` in rows, as nearly square as whole rows allow; each is
/// enlarged to a size that can be seen. Of other than 1 or 3 channels the first is shown.
pub fn contact_sheet(images: &[u8], count: usize, size: usize, channels: usize) -> Sheet {
    let columns = ((count as f64).sqrt().ceil() as usize).max(1);
    let scale = LEAST_SIDE.div_ceil(size).max(1);
    let (cell, shown) = (size * scale + GAP, if channels == 3 { 3 } else { 1 });
    let (width, height) = (columns * cell + GAP, count.div_ceil(columns) * cell + GAP);
    let mut data = vec![GAP_GREY; width * height * shown];
    for (i, image) in images.chunks_exact(size * size * channels).take(count).enumerate() {
        let (left, top) = (i % columns * cell + GAP, i / columns * cell + GAP);
        for y in 0..size * scale {
            for x in 0..size * scale {
                let from = (y / scale * size + x / scale) * channels;
                let to = ((top + y) * width + left + x) * shown;
                data[to..to + shown].copy_from_slice(&image[from..from + shown]);
            }
        }
    }
    Sheet { width, height, channels: shown, data }
}

impl Sheet {
    /// Writes a PNG.
    ///
    /// # Errors
    /// What writing says.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        write_atomic(path, |w| self.write(w))
    }

    /// The bytes of a PNG.
    pub(crate) fn png(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&mut bytes).expect("memory takes what is written");
        bytes
    }

    fn write(&self, w: impl std::io::Write) -> std::io::Result<()> {
        let colour = if self.channels == 3 { ExtendedColorType::Rgb8 } else { ExtendedColorType::L8 };
        let encoder = PngEncoder::new(w);
        encoder.write_image(&self.data, self.width as u32, self.height as u32, colour).map_err(std::io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_stand_in_rows_with_gaps() {
        let images: Vec<u8> = (0..5u8).flat_map(|i| vec![i + 100; 48 * 48]).collect();
        let sheet = contact_sheet(&images, 5, 48, 1);
        assert_eq!((sheet.width, sheet.height), (3 * 50 + 2, 2 * 50 + 2));
        let at = |x: usize, y: usize| sheet.data[y * sheet.width + x];
        assert_eq!((at(0, 0), at(2, 2), at(52, 2), at(2, 52)), (GAP_GREY, 100, 101, 103));
        assert_eq!(at(150, 101), GAP_GREY);
    }
}
