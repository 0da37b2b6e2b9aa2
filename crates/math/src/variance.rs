//! What the network's outputs mean, and which loss scores them.
//!
//! Each `from_flags` reads the reference's switches, so that its command lines keep their meaning.

use crate::name::named_enum;

named_enum! {
    /// Where the variance of p(x_{t−1} | x_t) comes from.
    pub enum Variance as "variance" {
        /// σ²_t = β̃_t, the posterior's variance: optimal if x_0 is a single point (Ho et al. 2020, section 3.2).
        FixedSmall = "fixed-small",
        /// σ²_t = β_t: optimal if x_0 is standard normal. The reference's choice where nothing is learned.
        #[default]
        FixedLarge = "fixed-large",
        /// The network's second half of the channels is log σ²_t.
        Learned = "learned",
        /// The second half of the channels, v in [−1, 1], mixes log β̃_t and log β_t
        /// (Nichol & Dhariwal 2021, eq. 15 with (v + 1)/2 as weight).
        LearnedRange = "learned-range",
    }
}

impl Variance {
    /// Whether the network has twice the channels, the second half for the variance.
    pub const fn is_learned(self) -> bool {
        matches!(self, Self::Learned | Self::LearnedRange)
    }

    /// The variance for the reference's `learn_sigma` and `sigma_small`.
    pub const fn from_flags(learn_sigma: bool, sigma_small: bool) -> Self {
        match (learn_sigma, sigma_small) {
            (true, _) => Self::LearnedRange,
            (false, true) => Self::FixedSmall,
            (false, false) => Self::FixedLarge,
        }
    }
}

named_enum! {
    /// What the network predicts.
    pub enum Prediction as "prediction" {
        /// The noise ε.
        #[default]
        Epsilon = "epsilon",
        /// The clean image x_0.
        XStart = "x-start",
        /// The mean of the step before, x_{t−1}.
        PreviousX = "previous-x",
    }
}

impl Prediction {
    /// The prediction for the reference's `predict_xstart`.
    pub const fn from_flags(predict_xstart: bool) -> Self {
        if predict_xstart { Self::XStart } else { Self::Epsilon }
    }
}

named_enum! {
    /// Which loss is trained on. "VB" is the term of the variational bound at t, in bits per dimension.
    pub enum LossKind as "loss" {
        /// Mean squared error, plus the VB term where the variance is learned.
        #[default]
        Mse = "mse",
        /// Mean squared error, plus VB · T/1000 where the variance is learned: the hybrid loss of
        /// Nichol & Dhariwal 2021, eq. 16.
        RescaledMse = "rescaled-mse",
        /// `Mse` times the number of values in an image: a sum of squares, as Ho et al. 2020 and ermongroup/ddim have it.
        SumMse = "sum-mse",
        /// The VB term alone.
        Kl = "kl",
        /// VB · T: its mean over uniform t estimates the whole bound.
        RescaledKl = "rescaled-kl",
    }
}

impl LossKind {
    /// Whether the loss is the variational bound, without any squared error.
    pub const fn is_vb(self) -> bool {
        matches!(self, Self::Kl | Self::RescaledKl)
    }

    /// The loss for the reference's `use_kl` and `rescale_learned_sigmas`.
    pub const fn from_flags(use_kl: bool, rescale_learned_sigmas: bool) -> Self {
        match (use_kl, rescale_learned_sigmas) {
            (true, _) => Self::RescaledKl,
            (false, true) => Self::RescaledMse,
            (false, false) => Self::Mse,
        }
    }

    /// What the whole loss is multiplied by, for images of `values` numbers.
    pub const fn scale(self, values: usize) -> f64 {
        if matches!(self, Self::SumMse) { values as f64 } else { 1.0 }
    }

    /// What the VB term is multiplied by in this loss, for a schedule of `steps` timesteps.
    pub const fn vb_factor(self, steps: usize) -> f64 {
        match self {
            Self::Mse | Self::SumMse | Self::Kl => 1.0,
            Self::RescaledMse => steps as f64 / 1000.0,
            Self::RescaledKl => steps as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_references_flags_keep_their_meaning() {
        assert_eq!(Variance::from_flags(true, true), Variance::LearnedRange);
        assert_eq!(Variance::from_flags(false, true), Variance::FixedSmall);
        assert_eq!(Variance::from_flags(false, false), Variance::default());
        assert_eq!(Prediction::from_flags(false), Prediction::default());
        assert_eq!(Prediction::from_flags(true), Prediction::XStart);
        assert_eq!(LossKind::from_flags(true, true), LossKind::RescaledKl);
        assert_eq!(LossKind::from_flags(false, true), LossKind::RescaledMse);
        assert_eq!(LossKind::from_flags(false, false), LossKind::default());
    }

    #[test]
    fn predicates_pick_the_right_variants() {
        assert_eq!(Variance::ALL.iter().filter(|v| v.is_learned()).count(), 2);
        assert!(Variance::Learned.is_learned() && Variance::LearnedRange.is_learned());
        assert_eq!(LossKind::ALL.iter().filter(|l| l.is_vb()).count(), 2);
        assert!(LossKind::Kl.is_vb() && LossKind::RescaledKl.is_vb());
    }

    #[test]
    fn the_bound_is_scaled_by_the_number_of_steps() {
        let factors =
            [LossKind::Mse, LossKind::RescaledMse, LossKind::Kl, LossKind::RescaledKl].map(|l| l.vb_factor(250));
        assert_eq!(factors, [1.0, 0.25, 1.0, 250.0]);
    }
}
