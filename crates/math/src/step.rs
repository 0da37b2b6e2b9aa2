//! Coefficients of one reverse step, from index i to i − 1 of a [`Schedule`], in f64.
//!
//! Functions of an index take one below [`Schedule::len`]. DDPM's own step needs nothing but the schedule's tables: the
//! mean from `posterior_mean_coef1` and `posterior_mean_coef2`, and noise of standard deviation e^{½ log σ²}, except at
//! i = 0.

use crate::schedule::Schedule;

/// One step of DDIM: the next x is `x_start`·x̂_0 + `eps`·ε̂ + `noise`·N(0, I).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DdimStep {
    /// What the predicted x_0 is multiplied by.
    pub x_start: f64,
    /// What the predicted ε is multiplied by.
    pub eps: f64,
    /// What fresh noise is multiplied by; 0 where the step ends at the data, and for η = 0.
    pub noise: f64,
}

impl DdimStep {
    /// The step from one ᾱ to a larger one, `prev` (Song et al. 2020, eq. 12): √ᾱ', √(1 − ᾱ' − σ²) and
    /// σ = η √((1 − ᾱ') / (1 − ᾱ)) √(1 − ᾱ / ᾱ') (eq. 16).
    ///
    /// η = 0 is deterministic, η = 1 has the variance of DDPM's posterior. An η so large that σ² exceeds 1 − ᾱ' leaves no
    /// room for ε̂, whose coefficient is then 0 rather than NaN.
    pub fn between(alpha_bar: f64, prev: f64, eta: f64) -> Self {
        let sigma = eta * ((1.0 - prev) / (1.0 - alpha_bar)).sqrt() * (1.0 - alpha_bar / prev).sqrt();
        Self { x_start: prev.sqrt(), eps: (1.0 - prev - sigma * sigma).max(0.0).sqrt(), noise: sigma }
    }
}

/// (a, b) in x̂_0 = a·x_i − b·ε̂: √(1/ᾱ_i) and √(1/ᾱ_i − 1) (Ho et al. 2020, eq. 15).
///
/// Solved for ε̂ it reads ε̂ = (a·x_i − x̂_0) / b.
pub fn x_start_from_eps(schedule: &Schedule, i: usize) -> (f64, f64) {
    (schedule.sqrt_recip_alpha_bar[i], schedule.sqrt_recipm1_alpha_bar[i])
}

/// (a, b) in x̂_0 = a·x̂_{i−1} − b·x_i: the posterior's mean solved for x_0.
pub fn x_start_from_previous(schedule: &Schedule, i: usize) -> (f64, f64) {
    let (coef1, coef2) = (schedule.posterior_mean_coef1[i], schedule.posterior_mean_coef2[i]);
    (1.0 / coef1, coef2 / coef1)
}

/// (least, greatest) log σ²_i between which a learned range interpolates: log β̃_i (clipped) and log β_i.
///
/// With the network's output v, log σ²_i = w·greatest + (1 − w)·least where w = (v + 1)/2; v is not clamped
/// (Nichol & Dhariwal 2021, eq. 15).
pub fn learned_range(schedule: &Schedule, i: usize) -> (f64, f64) {
    (schedule.posterior_log_variance_clipped[i], libm::log(schedule.betas[i]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beta::NoiseSchedule;

    fn schedule() -> Schedule {
        Schedule::new(NoiseSchedule::Cosine, 1000, &"ddim20".parse().unwrap()).unwrap()
    }

    fn ddim_step(s: &Schedule, i: usize, eta: f64) -> DdimStep {
        DdimStep::between(s.alpha_bar[i], s.alpha_bar_prev[i], eta)
    }

    fn assert_close(actual: f64, expected: f64) {
        assert!((actual - expected).abs() <= 1e-10 * expected.abs().max(1e-3), "{actual} is not {expected}");
    }

    #[test]
    fn eta_one_has_the_variance_of_the_posterior_and_eta_scales_it() {
        let s = schedule();
        for i in 0..s.len() {
            let sigma = ddim_step(&s, i, 1.0).noise;
            assert_close(sigma * sigma, s.posterior_variance[i]);
            assert_close(ddim_step(&s, i, 0.5).noise, 0.5 * sigma);
            assert_eq!(ddim_step(&s, i, 0.0).noise, 0.0);
        }
        assert_eq!(ddim_step(&s, 0, 1.0).noise, 0.0);
    }

    #[test]
    fn a_step_lands_on_the_marginal_of_the_index_before() {
        let s = schedule();
        for eta in [0.0, 0.5, 1.0] {
            for i in 0..s.len() {
                let step = ddim_step(&s, i, eta);
                assert_close(step.x_start * step.x_start, s.alpha_bar_prev[i]);
                assert_close(step.eps * step.eps + step.noise * step.noise, 1.0 - s.alpha_bar_prev[i]);
            }
        }
        assert_eq!(ddim_step(&s, 0, 1.0), DdimStep { x_start: 1.0, eps: 0.0, noise: 0.0 });
    }

    #[test]
    fn at_eta_one_the_mean_is_that_of_ddpm() {
        let s = schedule();
        for i in 1..s.len() {
            let (step, (a, b)) = (ddim_step(&s, i, 1.0), x_start_from_eps(&s, i));
            // ε̂ = (a x − x̂_0) / b in x_start·x̂_0 + eps·ε̂.
            assert_close(step.x_start - step.eps / b, s.posterior_mean_coef1[i]);
            assert_close(step.eps * a / b, s.posterior_mean_coef2[i]);
        }
    }

    #[test]
    fn an_excessive_eta_gives_no_nan() {
        let s = schedule();
        assert!((0..s.len()).all(|i| ddim_step(&s, i, 100.0).eps >= 0.0));
    }

    #[test]
    fn predictions_of_x_start_invert_what_they_come_from() {
        let s = schedule();
        let (x_start, eps) = (0.7, -1.3);
        for i in 0..s.len() {
            let x = s.sqrt_alpha_bar[i] * x_start + s.sqrt_one_minus_alpha_bar[i] * eps;
            let (a, b) = x_start_from_eps(&s, i);
            assert!((a * x - b * eps - x_start).abs() < 1e-6);
            let previous = s.posterior_mean_coef1[i] * x_start + s.posterior_mean_coef2[i] * x;
            let (a, b) = x_start_from_previous(&s, i);
            assert!((a * previous - b * x - x_start).abs() < 1e-6);
        }
    }

    #[test]
    fn the_learned_range_is_ordered() {
        let s = schedule();
        assert!((0..s.len()).all(|i| learned_range(&s, i).0 <= learned_range(&s, i).1));
    }
}
