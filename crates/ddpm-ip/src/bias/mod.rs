//! Instruments for exposure bias: how what a network meets in sampling differs from what it was trained on.

mod curve;
mod instruments;
mod job;
mod picture;
mod readings;
mod scale;
mod words;

pub use curve::{Curve, Estimate, PerPixel, over_pixels};
pub use instruments::{LEAST_IMAGES, Subject};
pub(crate) use job::resolve_auto;
pub use job::{Entry, EsAuto, Job, Report, Suggestions, run};
pub(crate) use picture::panels;
pub use readings::{Readings, StartStep};
pub use scale::{ScaleError, find_scale};
