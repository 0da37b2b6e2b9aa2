//! What every data set offers.

use super::maker::Maker;
use crate::Error;
use std::path::Path;

/// Which part of a data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Split {
    /// The images to train on.
    #[default]
    Train,
    /// The others, for testing or validation.
    Test,
}

/// Images in their makers' form.
pub(super) trait Source {
    /// How many images the data set is known to have.
    fn expected(&self) -> Option<usize>;

    /// How many images there are, where that can be told without reading them.
    fn count(&self) -> Option<usize> {
        None
    }

    /// The files that hold the images, in their order. One that is mended is still the same; another one is not.
    fn files(&self) -> Vec<&Path> {
        Vec::new()
    }

    /// Whether every image has a label.
    fn labelled(&self) -> bool {
        false
    }

    /// Names of the classes, by their numbers, where labels have some.
    fn classes(&self) -> &[String] {
        &[]
    }

    /// Offers all images, in an order that is always the same, until the maker breaks off.
    fn feed(&self, maker: &mut Maker) -> Result<(), Error>;
}
