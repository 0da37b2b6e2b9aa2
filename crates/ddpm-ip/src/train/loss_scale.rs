//! The loss scale of f16: gradients of activations are too small for it unless the loss is multiplied by something large.
//!
//! As in the reference's `MixedPrecisionTrainer` it grows a little with every step and is halved where the gradient
//! overflows, and that step changes nothing. Unlike there it has a floor: where a gradient overflows that is not scaled at
//! all, the run has diverged.

/// log₂ of the scale that a run begins with.
pub(super) const INITIAL: f64 = 20.0;

/// The least that its logarithm becomes.
const FLOOR: f64 = 0.0;

/// The scale after a step with the scale `lg`, or nothing if there is no lower one to try.
pub(super) fn after(lg: f64, overflowed: bool, growth: f64) -> Option<f64> {
    if overflowed { Some(lg - 1.0).filter(|lg| *lg >= FLOOR) } else { Some(lg + growth) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_is_halved_and_stops_at_the_floor() {
        assert_eq!(after(INITIAL, false, 1e-3), Some(20.001));
        assert_eq!(after(INITIAL, true, 1e-3), Some(19.0));
        assert_eq!((after(1.0, true, 1e-3), after(0.5, true, 1e-3)), (Some(0.0), None));
    }
}
