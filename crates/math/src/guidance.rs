//! Guidance by a weaker answer: classifier-free guidance and autoguidance.
//!
//! A network's answer D is led away from a weaker one D', of the same network that is not told the class (Ho & Salimans
//! 2022, arXiv 2207.12598), or of an inferior network (Karras et al. 2024, arXiv 2406.02507):
//!
//! D_w = D' + w (D − D') = D + (w − 1) (D − D')
//!
//! w = 1 is no guidance. (Ho & Salimans write 1 + w for it.) The rule is linear and its weights sum to 1, so it is the same
//! for every [`Prediction`](crate::Prediction): ε, x_0 and the mean of the step before depend on each other linearly.
//!
//! It may act at some noise levels alone (Kynkäänniemi et al. 2024, arXiv 2404.07724): where there is much noise it costs
//! variety, and where there is little it changes nothing.

use crate::Level;

/// How far an answer is led away from a weaker one, and where.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    /// w.
    pub scale: f64,
    /// The noise σ/α at which it acts: above the first and up to the second.
    pub interval: [f64; 2],
}

impl Guidance {
    /// Whether it acts on x at this noise level.
    pub fn acts_at(&self, level: Level) -> bool {
        let [low, high] = self.interval;
        let noise = level.sigma() / level.alpha();
        low < noise && noise <= high
    }

    /// D_w of an answer `strong` and a weaker one. Where both are the same it is `strong`, to the last bit.
    pub fn answer(&self, strong: f32, weak: f32) -> f32 {
        strong + (self.scale - 1.0) as f32 * (strong - weak)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NoiseSchedule, Respacing, Schedule};

    #[test]
    fn answers_are_led_away_by_w_less_1_times_their_difference() {
        let guided = |scale: f64, strong, weak| Guidance { scale, interval: [0.0, f64::INFINITY] }.answer(strong, weak);
        assert_eq!(guided(3.0, 0.5, 0.25), 1.0);
        assert_eq!(guided(1.0, 0.3, -7.0), 0.3);
        assert_eq!(guided(0.0, 0.75, -7.0), -7.0);
        assert_eq!(guided(2.7, 0.1, 0.1), 0.1);
    }

    #[test]
    fn an_interval_is_open_below_and_closed_above() {
        let schedule = Schedule::new(NoiseSchedule::Cosine, 1000, &Respacing::Full).unwrap();
        let level = |t| schedule.level(t);
        let noise = |t| level(t).sigma() / level(t).alpha();
        let guidance = Guidance { scale: 2.0, interval: [noise(200), noise(700)] };
        let acting: Vec<usize> = (0..1000).filter(|&t| guidance.acts_at(level(t))).collect();
        assert_eq!((acting[0], acting[acting.len() - 1], acting.len()), (201, 700, 500));
        let everywhere = Guidance { scale: 2.0, interval: [0.0, f64::INFINITY] };
        // The cosine schedule ends in next to pure noise.
        assert!((0..1000).all(|t| everywhere.acts_at(level(t))));
        // Pure noise is a level, too.
        assert!(everywhere.acts_at(Level { time: 999.0, alpha_bar: 0.0 }));
    }
}
