//! Samples beside the real images nearest to them, to see whether they were copied.

use crate::Error;
use crate::config::ConfigError;
use crate::data::{ImageSet, contact_sheet};
use fidelity::Features;
use rayon::prelude::*;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The most samples on a sheet: four pairs in each of eight rows.
const MOST_SAMPLES: usize = 32;

/// A sheet and what is on it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Neighbours {
    /// The PNG: the first samples, each to the left of the reference image nearest to it.
    pub sheet: PathBuf,
    /// Number of the nearest reference image of each, and the distance of their features.
    pub nearest: Vec<(usize, f64)>,
}

/// That a sheet of such images can be drawn.
pub(super) fn check(path: &Path, drawn: &ImageSet) -> Result<(), ConfigError> {
    let [height, width, _] = drawn.image_shape();
    if height != width {
        return Err(ConfigError(format!("--neighbours shows square images, not {width}x{height} pixels")));
    }
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")) {
        return Err(ConfigError(format!(
            "--neighbours {} is not the name of a picture: end it in .png",
            path.display()
        )));
    }
    Ok(())
}

/// Draws the sheet of reference and samples.
pub(super) fn draw(path: &Path, sides: [(Features, &ImageSet); 2]) -> Result<Neighbours, Error> {
    let [(reference, real), (samples, drawn)] = sides;
    let [_, width, channels] = drawn.image_shape();
    // Rows of a sheet are as many as its columns: pairs stay together where that is an even number.
    let half = (MOST_SAMPLES.min(samples.rows()) / 2).isqrt().max(1);
    let count = (2 * half * half).min(samples.rows());
    let nearest: Vec<(usize, f64)> = (0..count).into_par_iter().map(|i| nearest(samples.row(i), reference)).collect();
    let shown = drawn.images(&(0..count).collect())?;
    let wanted = nearest.iter().map(|&(i, _)| i).collect();
    let of_reference = real.images(&wanted)?;
    let numbers: Vec<usize> = wanted.into_iter().collect();
    let mut pairs = Vec::new();
    for (image, (number, _)) in shown.iter().zip(&nearest) {
        let place = numbers.binary_search(number).unwrap_or_default();
        pairs.extend(image.iter().chain(&of_reference[place]));
    }
    contact_sheet(&pairs, 2 * count, width, channels).save(path)?;
    Ok(Neighbours { sheet: path.to_path_buf(), nearest })
}

/// Number and distance of the row nearest to `to`.
fn nearest(to: &[f32], rows: Features) -> (usize, f64) {
    let distance = |i: usize| -> f64 { rows.row(i).iter().zip(to).map(|(a, b)| f64::from(a - b).powi(2)).sum() };
    let all = (0..rows.rows()).map(|i| (i, distance(i)));
    let (i, square) = all.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default();
    (i, square.sqrt())
}
