//! Images on their way to the network.
//!
//! A [`Dataset`] is a list of images behind one interface; a [`Loader`] delivers shuffled, augmented batches ahead of
//! the training. Order and augmentation follow from the seed and the position alone.

mod arrays;
mod dataset;
pub(crate) mod folder;
mod image_set;
mod loader;
mod memory;
mod pillow;
mod pixels;
mod sheet;
mod source;

pub use dataset::{Dataset, Options};
pub use image_set::{ImageSet, Shape};
pub use loader::{Batch, Loader};
pub use memory::ImageArray;
pub use pillow::center_crop;
pub(crate) use pillow::{bicubic_crop, bicubic_floats, box_crop};
pub use pixels::Pixels;
pub use sheet::{Sheet, contact_sheet};
pub(crate) use source::{empty, is_run};

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where the class labels of a folder's images come from. Labels in npz and IDX files are always taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Labels {
    /// As `Prefix` if the network has classes, else there are none.
    #[default]
    Auto,
    /// There are none.
    None,
    /// The file name up to its first `_`, as the reference does; classes are numbered in sorted order.
    Prefix,
    /// The folder an image lies in; classes are numbered in sorted order.
    Folder,
}

/// How images of another size are brought to the network's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fit {
    /// The reference's centre crop: the shorter side is scaled to the size, the middle is cut out.
    #[default]
    Crop,
    /// The image is centred on black.
    Pad,
}

/// What to do with an image that cannot be read or used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadImage {
    /// Stop.
    #[default]
    Fail,
    /// Take the next good one instead, and say so at the end.
    Skip,
}

/// Images that cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DataError {
    /// The named source does not exist.
    #[error("{}: there is no such file or folder: name `digits`, a folder of images, an npz, npy or IDX file (in training with --data-dir)", .0.display())]
    Missing(PathBuf),
    /// A folder without images.
    #[error("{}: no images in this folder or below it{advice}", folder.display())]
    Empty {
        /// The folder.
        folder: PathBuf,
        /// What it holds instead, and what to do, after a colon.
        advice: String,
    },
    /// A file of another kind.
    #[error("{}: {advice}", file.display())]
    Unknown {
        /// The file.
        file: PathBuf,
        /// What it is, and what to do.
        advice: String,
    },
    /// A run where images were meant.
    #[error("{}: this is a run directory, not images: name the images to train on or to compare", .0.display())]
    Run(PathBuf),
    /// Files whose names or folders do not tell classes.
    #[error("{source_name}: {problem}. {advice}")]
    NoClasses {
        /// Where the images are.
        source_name: String,
        /// What is wrong with their classes.
        problem: String,
        /// What to do.
        advice: String,
    },
    /// A class that the network has not.
    #[error("{source_name} has a class {class:?}, which the network does not have: its classes are {known}")]
    UnknownClass {
        /// Where the images are.
        source_name: String,
        /// The class there.
        class: String,
        /// The network's.
        known: String,
    },
    /// One image that is damaged, too small or too large.
    #[error("{image}: {reason}. --on-bad-image skip leaves such images out")]
    BadImage {
        /// File name, or number in its file.
        image: String,
        /// What is wrong.
        reason: String,
    },
    /// Images of one file that are all of the wrong size.
    #[error("{image}: {reason}")]
    Misfit {
        /// The first of them.
        image: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// No image of the set could be used.
    #[error("none of the {count} images can be used; the first failed with: {first}")]
    AllBad {
        /// Number of images.
        count: usize,
        /// Why the first failed.
        first: String,
    },
    /// Fewer images than one batch.
    #[error("{images} images are fewer than one batch of {batch_size}: use a --batch-size of at most {images}")]
    TooFew {
        /// Images there.
        images: usize,
        /// Images asked for at once.
        batch_size: usize,
    },
    /// Channels that cannot be made from those there.
    #[error(
        "{source_name} has {found} channels, --in-channels asks for {wanted}: only 1 and 3 are converted into each other"
    )]
    Channels {
        /// The data.
        source_name: String,
        /// Channels there.
        found: usize,
        /// Channels asked for.
        wanted: usize,
    },
}
