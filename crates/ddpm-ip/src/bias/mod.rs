//! Instruments for exposure bias: how what a network meets in sampling differs from what it was trained on.

mod curve;
mod instruments;
mod scale;

pub use curve::{Curve, Estimate, PerPixel, over_pixels};
pub use instruments::{Ends, LEAST_IMAGES, Readings, StartStep, Subject};
pub use scale::{Norms, ScaleError, find_scale};
