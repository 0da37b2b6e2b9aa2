//! Images brought into the shape that all of a set have.

use super::squash::squash;
use crate::data::{Pixels, box_crop, center_crop};

/// How images of other proportions become squares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// As the reference's loader: the shorter side is scaled to the size (by BOX, then BICUBIC), the middle is cut out.
    Crop,
    /// The image is centred on black.
    Pad,
    /// As the reference's scripts: OpenCV's bilinear `resize`, whatever becomes of the proportions.
    Squash,
}

/// What is done to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shaping {
    /// Nothing: it has the shape already.
    Exact,
    /// What the user chose.
    Fit(Fit),
    /// As the reference's LSUN script: the shorter side is scaled to the size by BOX, the middle is cut out.
    BoxCrop,
}

/// The shape of every image of a set, and how it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) channels: usize,
    /// Whether colour becomes grey where grey is asked for.
    pub(super) drops_colour: bool,
    pub(super) shaping: Shaping,
}

/// Scaling the shorter side up makes the other one longer: no photograph is more than this many times as long as wide.
const MOST_ELONGATED: usize = 64;

impl Form {
    /// Squares of colour.
    pub(super) fn square(side: usize, shaping: Shaping) -> Self {
        Self { width: side, height: side, channels: 3, drops_colour: false, shaping }
    }

    /// Values of an image.
    pub(super) fn len(&self) -> usize {
        self.width * self.height * self.channels
    }

    /// The image in this form, or what is wrong with it.
    pub(super) fn make(&self, image: Pixels) -> Result<Vec<u8>, String> {
        let (w, h) = (image.width, image.height);
        if image.channels > self.channels && !self.drops_colour {
            return Err("it is in colour, but the first image is grey: choose the channels of all images with \
                        --channels"
                .into());
        }
        let image = image.with_channels(self.channels).ok_or("its channels cannot be converted")?;
        let pixels = format!("{w}x{h} pixels");
        let made = match self.shaping {
            Shaping::Exact if (w, h) != (self.width, self.height) => {
                return Err(format!("{pixels}, expected {}x{}: --image-size makes all alike", self.width, self.height));
            }
            Shaping::Exact => image,
            Shaping::Fit(Fit::Crop) if w.min(h) < self.width => {
                return Err(format!("{pixels} are too few: use a smaller --image-size, --fit pad or --fit squash"));
            }
            Shaping::Fit(Fit::Crop) => center_crop(&image, self.width),
            Shaping::Fit(Fit::Pad) if w.max(h) > self.width => {
                return Err(format!("{pixels} are too many: use a larger --image-size, --fit crop or --fit squash"));
            }
            Shaping::Fit(Fit::Pad) => image.pad(self.width),
            Shaping::Fit(Fit::Squash) => squash(image, self.width, self.height),
            Shaping::BoxCrop if w.max(h) > MOST_ELONGATED * w.min(h) => {
                return Err(format!("{pixels} are too long and narrow"));
            }
            Shaping::BoxCrop => box_crop(image, self.width),
        };
        Ok(made.data)
    }
}
