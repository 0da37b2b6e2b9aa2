//! Numbers with their errors, and statistics over images, pixel by pixel.

use ddpm_math::{jackknife_error, jackknife_groups, mean_and_error};
use rayon::prelude::*;
use serde::{Deserialize, Deserializer, Serialize};
use std::ops::Range;

/// A number that is this many of its errors from another is taken to differ.
pub(super) const SIGNIFICANT: f64 = 3.0;

/// Into how many groups the images are cut for the errors.
const GROUPS: usize = 20;

/// A number with its standard error over the images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The number; NaN where it could not be measured.
    pub value: f64,
    /// Its standard error; NaN where there is none.
    pub error: f64,
}

impl Estimate {
    /// What could not be measured.
    pub const NONE: Self = Self { value: f64::NAN, error: f64::NAN };

    /// The mean of numbers of single images.
    pub fn mean(values: &[f64]) -> Self {
        mean_and_error(values).map_or(Self::NONE, |(value, error)| Self { value, error })
    }

    /// Its ratio to another, of other images.
    #[must_use]
    pub fn over(self, other: Self) -> Self {
        let value = self.value / other.value;
        Self { value, error: value.abs() * (self.error / self.value).hypot(other.error / other.value) }
    }

    /// Less a number.
    #[must_use]
    pub fn less(self, number: f64) -> Self {
        Self { value: self.value - number, ..self }
    }

    /// How many errors it is away from another number.
    pub fn deviations_from(self, other: f64) -> f64 {
        (self.value - other) / self.error
    }
}

/// A number at each noise level, with errors. What could not be measured is NaN, and null in JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// The numbers, from the data's end on.
    #[serde(deserialize_with = "numbers")]
    pub value: Vec<f64>,
    /// Their standard errors over the images.
    #[serde(deserialize_with = "numbers")]
    pub error: Vec<f64>,
}

/// Numbers of JSON, in which one that could not be measured is null.
pub(super) fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let values = Vec::<Option<f64>>::deserialize(deserializer)?;
    Ok(values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect())
}

/// A number of JSON, as [`numbers`].
pub(super) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// A number of JSON and its error, as [`numbers`].
pub(super) fn pair<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[f64; 2], D::Error> {
    Ok(<[Option<f64>; 2]>::deserialize(deserializer)?.map(|value| value.unwrap_or(f64::NAN)))
}

impl FromIterator<Estimate> for Curve {
    fn from_iter<I: IntoIterator<Item = Estimate>>(estimates: I) -> Self {
        let (value, error) = estimates.into_iter().map(|e| (e.value, e.error)).unzip();
        Self { value, error }
    }
}

impl Curve {
    /// The number at a level.
    pub fn at(&self, i: usize) -> Estimate {
        Estimate { value: self.value[i], error: self.error[i] }
    }

    /// Number of levels.
    pub fn len(&self) -> usize {
        self.value.len()
    }

    /// Whether there is no level.
    pub fn is_empty(&self) -> bool {
        self.value.is_empty()
    }
}

/// Mean and variance of every pixel over images, and over the images without each group of them.
pub struct PerPixel {
    groups: Vec<Sums>,
}

#[derive(Clone)]
struct Sums {
    count: f64,
    sum: Vec<f64>,
    squares: Vec<f64>,
}

impl PerPixel {
    /// Of `rows` `[N, d]`.
    pub fn new(rows: &[f32], d: usize) -> Self {
        let n = rows.len() / d;
        let groups: Vec<Range<usize>> = jackknife_groups(n, GROUPS).collect();
        let sums = |images: &Range<usize>| {
            let mut sums = Sums { count: images.len() as f64, sum: vec![0.0; d], squares: vec![0.0; d] };
            for row in rows[images.start * d..images.end * d].chunks_exact(d) {
                for ((sum, squares), &v) in sums.sum.iter_mut().zip(&mut sums.squares).zip(row) {
                    *sum += f64::from(v);
                    *squares += f64::from(v).powi(2);
                }
            }
            sums
        };
        Self { groups: groups.par_iter().map(sums).collect() }
    }

    /// A statistic of all pixels' means and unbiased variances, with its jackknife error.
    pub fn estimate(&self, statistic: impl Fn(&[[f64; 2]]) -> f64 + Sync) -> Estimate {
        let d = self.groups.first().map_or(0, |g| g.sum.len());
        let mut all = Sums { count: 0.0, sum: vec![0.0; d], squares: vec![0.0; d] };
        for group in &self.groups {
            all.count += group.count;
            all.sum.iter_mut().zip(&group.sum).for_each(|(all, v)| *all += v);
            all.squares.iter_mut().zip(&group.squares).for_each(|(all, v)| *all += v);
        }
        let without = |left_out: Option<&Sums>| -> f64 {
            let n = all.count - left_out.map_or(0.0, |g| g.count);
            let moments: Vec<[f64; 2]> = (0..d)
                .map(|p| {
                    let [sum, squares] = left_out.map_or([0.0; 2], |g| [g.sum[p], g.squares[p]]);
                    let mean = (all.sum[p] - sum) / n;
                    [mean, ((all.squares[p] - squares) / n - mean * mean).max(0.0) * n / (n - 1.0)]
                })
                .collect();
            statistic(&moments)
        };
        let value = without(None);
        let left_out: Vec<f64> = self.groups.par_iter().map(|group| without(Some(group))).collect();
        Estimate { value, error: jackknife_error(&left_out).unwrap_or(f64::NAN) }
    }
}

/// The mean over pixels of a function of each one's mean and variance.
pub fn over_pixels(moments: &[[f64; 2]], of_pixel: impl Fn(usize, f64, f64) -> f64) -> f64 {
    let values = moments.iter().enumerate().map(|(p, &[mean, variance])| of_pixel(p, mean, variance));
    values.sum::<f64>() / moments.len() as f64
}
