//! The scale of ε at which sampling has the norms of training.

use crate::diffusion::Reverse;
use crate::sample::{Chain, Subjects, Walk};

/// Between these the scale is looked for.
const BOUNDS: [f64; 2] = [0.95, 1.1];

/// How near it is found.
const TOLERANCE: f64 = 1e-4;

/// Why there is no scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScaleError {
    /// The chains were stopped.
    Stopped,
    /// Other corrections give the network other inputs than training does, whose norms do not compare.
    Moved,
    /// The norms are on one side at both ends: the mean logarithm of sampled over training norm there.
    NoRoot([f64; 2]),
}

impl std::fmt::Display for ScaleError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stopped => f.write_str("stopped"),
            Self::Moved => f.write_str(
                "shift, time-shift and ideal-ip call the network at other inputs than training, where the norms of \
                 epsilon cannot be compared: leave one of them out",
            ),
            Self::NoRoot([low, high]) => write!(
                f,
                "no scale of epsilon between {} and {} gives sampling the norms of training: the mean logarithm of their \
                 ratio is {low:.4} and {high:.4} there",
                BOUNDS[0], BOUNDS[1]
            ),
        }
    }
}

/// Mean ‖ε_θ‖₂ at every level, from the data's end on, over chains of batches of subjects; none if `go_on` says so.
pub(super) fn sampled_norms(chain: &Chain, subjects: &[Subjects], go_on: &mut dyn FnMut() -> bool) -> Option<Vec<f64>> {
    let mut sums = vec![0.0; chain.diffusion.schedule.len()];
    let mut count = 0;
    for subjects in subjects {
        let n = subjects.images.len();
        let mut walk = Walk::new(chain, *subjects);
        while let Some(taken) = walk.step() {
            let [eps, _] = chain.diffusion.read(chain.reverse.clip, &taken.stage, n, &taken.x, &taken.output);
            let norm = |eps: &[f32]| eps.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            sums[taken.stage.index] += eps.chunks_exact(eps.len() / n).map(norm).sum::<f64>();
            if !go_on() {
                return None;
            }
        }
        count += n;
    }
    Some(sums.into_iter().map(|sum| sum / count as f64).collect())
}

/// The mean over levels of log(sampled norm / training norm).
fn mean_gap(sampled: &[f64], training: &[f64]) -> f64 {
    gaps(sampled, training).sum::<f64>() / sampled.len() as f64
}

/// The largest |log(sampled norm / training norm)|.
pub(super) fn largest_gap(sampled: &[f64], training: &[f64]) -> f64 {
    gaps(sampled, training).fold(0.0, |most, gap| f64::max(most, gap.abs()))
}

fn gaps(sampled: &[f64], training: &[f64]) -> impl Iterator<Item = f64> {
    sampled.iter().zip(training).map(|(s, t)| (s / t).ln())
}

/// The b in [0.95, 1.1] at which chains with `es:b` have the norms `training` of ε, in the mean of the logarithm over all
/// levels. Not the ratio of norms itself: scaling ε once changes all that follows.
///
/// # Errors
/// No such b.
pub fn find_scale(
    chain: &Chain,
    subjects: &[Subjects],
    training: &[f64],
    go_on: &mut dyn FnMut() -> bool,
) -> Result<f64, ScaleError> {
    if chain.reverse.corrections.move_calls() {
        return Err(ScaleError::Moved);
    }
    let mut gap = |b: f64| {
        let reverse = Reverse { corrections: chain.reverse.corrections.with_scale(b), ..chain.reverse.clone() };
        let norms = sampled_norms(&Chain { reverse: &reverse, ..*chain }, subjects, go_on);
        norms.map(|norms| mean_gap(&norms, training)).ok_or(ScaleError::Stopped)
    };
    // Regula falsi with the end that stays halved (the Illinois algorithm): the root lies between a and b.
    let ([mut a, mut b], [mut at_a, mut at_b]) = (BOUNDS, [gap(BOUNDS[0])?, gap(BOUNDS[1])?]);
    if at_a.is_nan() || at_b.is_nan() || at_a * at_b > 0.0 {
        return Err(ScaleError::NoRoot([at_a, at_b]));
    }
    loop {
        let next = b - at_b * (b - a) / (at_b - at_a);
        if (next - b).abs() < TOLERANCE || at_b == 0.0 {
            return Ok(if at_b == 0.0 { b } else { next });
        }
        let at_next = gap(next)?;
        if at_next.is_nan() {
            return Err(ScaleError::NoRoot([at_a, at_b]));
        }
        if at_next * at_b < 0.0 {
            (a, at_a) = (b, at_b);
        } else {
            at_a *= 0.5;
        }
        (b, at_b) = (next, at_next);
    }
}
