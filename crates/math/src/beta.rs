//! The named noise schedules: how much noise each of T steps adds.

use std::f64::consts::PI;

use crate::name::named_enum;

named_enum! {
    /// A family of schedules whose shape does not depend on the number of steps.
    pub enum NoiseSchedule as "noise schedule" {
        /// β_t linear in t (Ho et al. 2020), scaled by 1000/T so that any T adds about the same noise in all.
        #[default]
        Linear = "linear",
        /// ᾱ_t a squared cosine (Nichol & Dhariwal 2021, eq. 17).
        Cosine = "cosine",
    }
}

/// β_0 … β_{T−1} of a schedule with T = `steps`.
///
/// - Linear: from 10⁻⁴·1000/T to 0.02·1000/T. Fewer than 20 steps would need β > 1, which
///   [`Schedule::new`](crate::Schedule::new) refuses.
/// - Cosine: β_t = min(1 − g((t+1)/T) / g(t/T), 0.999) with g(u) = cos²((u + 0.008)/1.008 · π/2).
pub fn betas(schedule: NoiseSchedule, steps: usize) -> Vec<f64> {
    match schedule {
        NoiseSchedule::Linear => linear_betas(steps),
        NoiseSchedule::Cosine => cosine_betas(steps),
    }
}

fn linear_betas(steps: usize) -> Vec<f64> {
    let scale = 1000.0 / steps as f64;
    let (start, end) = (scale * 0.0001, scale * 0.02);
    let gap = (end - start) / steps.saturating_sub(1).max(1) as f64;
    let mut betas: Vec<f64> = (0..steps).map(|t| t as f64 * gap + start).collect();
    // The end is hit exactly, not up to rounding; a single step is the start.
    if let [_, .., last] = betas.as_mut_slice() {
        *last = end;
    }
    betas
}

fn cosine_betas(steps: usize) -> Vec<f64> {
    // Keeps the last steps away from β = 1, where x_t would hold no signal at all.
    const MAX_BETA: f64 = 0.999;
    let signal = |boundary: usize| {
        let u = boundary as f64 / steps as f64;
        // The order of operations is that of the reference, (u' · π) / 2, for equality to the last digit.
        let cos = libm::cos((u + 0.008) / 1.008 * PI / 2.0);
        cos * cos
    };
    (0..steps).map(|t| (1.0 - signal(t + 1) / signal(t)).min(MAX_BETA)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_has_the_published_ends_at_a_thousand_steps() {
        let betas = betas(NoiseSchedule::Linear, 1000);
        assert_eq!((betas.len(), betas[0], betas[999]), (1000, 0.0001, 0.02));
        assert!(betas.is_sorted());
    }

    #[test]
    fn cosine_follows_its_closed_form_until_the_cap() {
        let steps = 4000;
        let g = |u: f64| ((u + 0.008) / 1.008 * PI / 2.0).cos().powi(2);
        let betas = betas(NoiseSchedule::Cosine, steps);
        let mut alpha_bar = 1.0;
        for (t, beta) in betas.iter().enumerate().take(3900) {
            alpha_bar *= 1.0 - beta;
            let expected = g((t + 1) as f64 / steps as f64) / g(0.0);
            assert!((alpha_bar / expected - 1.0).abs() < 1e-9, "t = {t}");
        }
        assert_eq!(betas[steps - 1], 0.999);
    }

    #[test]
    fn both_keep_their_total_noise_when_the_step_count_changes() {
        for schedule in [NoiseSchedule::Linear, NoiseSchedule::Cosine] {
            let halfway = |steps| betas(schedule, steps)[..steps / 2].iter().map(|b| 1.0 - b).product::<f64>();
            assert!((halfway(1000) / halfway(4000) - 1.0).abs() < 0.01, "{schedule}");
        }
    }

    #[test]
    fn tiny_step_counts_are_no_trouble() {
        for schedule in [NoiseSchedule::Linear, NoiseSchedule::Cosine] {
            for steps in 0..4 {
                assert_eq!(betas(schedule, steps).len(), steps);
            }
        }
        assert_eq!(betas(NoiseSchedule::Linear, 1), [0.1]);
    }

    #[test]
    fn linear_ends_exactly_where_it_should_for_any_step_count() {
        for steps in 2..500 {
            assert_eq!(betas(NoiseSchedule::Linear, steps).last(), Some(&(1000.0 / steps as f64 * 0.02)));
        }
    }
}
