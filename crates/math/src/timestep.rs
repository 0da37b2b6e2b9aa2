//! Which timestep each training image gets, and the weight that keeps the loss unbiased.
//!
//! A draw of t with probability p_t is scored with weight 1/(T p_t), so that every sampler estimates the same mean over
//! uniform t (Nichol & Dhariwal 2021, section 3.3). Drawing t where the loss is large makes that estimate less noisy,
//! which matters for the variational bound.

use serde::{Deserialize, Serialize};

use crate::name::named_enum;
use crate::philox::{Domain, Stream};

/// How many losses are remembered per timestep.
const HISTORY_PER_STEP: usize = 10;
/// The share of draws that stays uniform, so that no timestep is ever forgotten.
const UNIFORM_SHARE: f64 = 0.001;

named_enum! {
    /// A distribution over the timesteps.
    pub enum TimeSamplerKind as "time sampler" {
        /// All alike.
        #[default]
        Uniform = "uniform",
        /// p_t ∝ √(mean of the last ten squared losses at t), once all timesteps have that many.
        LossSecondMoment = "loss-second-moment",
        /// All alike, in pairs of t and T − 1 − t, as ermongroup/ddim draws them.
        Antithetic = "antithetic",
    }
}

/// A distribution over the timesteps 0..T, and what it has learned.
#[derive(Debug, Clone, PartialEq)]
pub struct TimeSampler {
    steps: usize,
    /// Whether every second image of a run mirrors the timestep of the one before.
    paired: bool,
    /// Absent where losses do not matter.
    memory: Option<Memory>,
}

#[derive(Debug, Clone, PartialEq)]
struct Memory {
    state: TimeSamplerState,
    /// Follows from `state`; kept because a draw must not cost ten operations per timestep.
    weights: Vec<f64>,
}

/// What the loss-aware sampler remembers, for checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeSamplerState {
    /// The last losses of each timestep, oldest first: `[steps, 10]`, row by row, zeros where nothing is known yet.
    pub history: Vec<f64>,
    /// How many losses of each timestep are known, 0 to 10: `[steps]`.
    pub counts: Vec<u32>,
}

/// Why a remembered state does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimeSamplerError {
    /// The state is of a process with another number of timesteps.
    #[error(
        "the saved time-sampler state is for {saved} timesteps, but this run has {steps}: resume with the same \
         number of diffusion steps"
    )]
    StepsDiffer {
        /// Timesteps of the state.
        saved: usize,
        /// Timesteps of the sampler.
        steps: usize,
    },
    /// The state contradicts itself.
    #[error("the saved time-sampler state is damaged ({reason}): resume from another checkpoint")]
    Damaged {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The uniform sampler was given a memory.
    #[error("the saved time-sampler state is of loss-second-moment, but this run draws timesteps uniformly")]
    NotLossAware,
}

impl TimeSampler {
    /// A sampler of 0..`steps` that has seen no losses yet. `steps` must be positive.
    pub fn new(kind: TimeSamplerKind, steps: usize) -> Self {
        debug_assert!(steps > 0, "there must be a timestep to draw");
        let memory = match kind {
            TimeSamplerKind::Uniform | TimeSamplerKind::Antithetic => None,
            TimeSamplerKind::LossSecondMoment => Some(Memory {
                state: TimeSamplerState { history: vec![0.0; steps * HISTORY_PER_STEP], counts: vec![0; steps] },
                weights: vec![1.0; steps],
            }),
        };
        Self { steps, paired: kind == TimeSamplerKind::Antithetic, memory }
    }

    /// The timestep, and its importance weight, of the image at a position of a run: from the seed and the position alone.
    pub fn draw(&self, seed: u64, position: u64) -> (usize, f64) {
        if !self.paired {
            return self.sample(&mut Stream::new(seed, Domain::Time, position, 0));
        }
        let (t, weight) = self.sample(&mut Stream::new(seed, Domain::Time, position / 2, 0));
        (if position.is_multiple_of(2) { t } else { self.steps - 1 - t }, weight)
    }

    /// Positive weights in proportion to p_t, one per timestep: all 1 until the sampler has learned something, and of
    /// sum 1 from then on.
    pub fn weights(&self) -> Vec<f64> {
        match &self.memory {
            None => vec![1.0; self.steps],
            Some(memory) => memory.weights.clone(),
        }
    }

    /// Draws a timestep and its importance weight 1/(T p_t), by inverting the distribution at one uniform number.
    pub fn sample(&self, stream: &mut Stream) -> (usize, f64) {
        let u = stream.uniform();
        let steps = self.steps as f64;
        let Some(memory) = &self.memory else {
            // u < 1, but the product may still round up to T.
            return (((u * steps) as usize).min(self.steps.saturating_sub(1)), 1.0);
        };
        let total: f64 = memory.weights.iter().sum();
        let threshold = u * total;
        let mut cumulative = 0.0;
        let drawn = memory.weights.iter().position(|weight| {
            cumulative += weight;
            cumulative > threshold
        });
        // Rounding may leave the threshold just above the sum.
        let t = drawn.unwrap_or(self.steps.saturating_sub(1));
        (t, total / (steps * memory.weights[t]))
    }

    /// Tells the sampler the losses that were observed, `losses[k]` at timestep `ts[k]`, in order.
    ///
    /// The losses are per image, before they are multiplied by the importance weight. A loss that is not finite is left
    /// out, since one alone would spoil the distribution for good. The uniform sampler ignores all of it.
    pub fn update(&mut self, ts: &[usize], losses: &[f64]) {
        debug_assert_eq!(ts.len(), losses.len(), "one loss per timestep");
        let Some(memory) = &mut self.memory else { return };
        let state = &mut memory.state;
        for (&t, &loss) in ts.iter().zip(losses).filter(|(_, loss)| loss.is_finite()) {
            debug_assert!(t < self.steps, "timestep {t} of {}", self.steps);
            let (Some(count), Some(row)) =
                (state.counts.get_mut(t), state.history.chunks_exact_mut(HISTORY_PER_STEP).nth(t))
            else {
                continue;
            };
            if let Some(slot) = row.get_mut(*count as usize) {
                *slot = loss;
                *count += 1;
            } else {
                row.rotate_left(1);
                row[HISTORY_PER_STEP - 1] = loss;
            }
        }
        memory.weights = state.weights();
    }

    /// What must be saved to continue later; nothing for the uniform sampler.
    pub fn state(&self) -> Option<&TimeSamplerState> {
        self.memory.as_ref().map(|memory| &memory.state)
    }

    /// Continues from a saved state.
    ///
    /// # Errors
    ///
    /// The state is damaged, or of another run. The sampler then stays as it was.
    pub fn restore(&mut self, state: TimeSamplerState) -> Result<(), TimeSamplerError> {
        let Some(memory) = &mut self.memory else { return Err(TimeSamplerError::NotLossAware) };
        let damaged = |reason| Err(TimeSamplerError::Damaged { reason });
        if state.counts.len() != self.steps {
            return Err(TimeSamplerError::StepsDiffer { saved: state.counts.len(), steps: self.steps });
        }
        if state.history.len() != self.steps * HISTORY_PER_STEP {
            return damaged("it does not hold ten losses per timestep");
        }
        if state.counts.iter().any(|&count| count as usize > HISTORY_PER_STEP) {
            return damaged("it counts more than ten losses of a timestep");
        }
        if !state.history.iter().all(|loss| loss.is_finite()) {
            return damaged("it holds a loss that is not finite");
        }
        *memory = Memory { weights: state.weights(), state };
        Ok(())
    }
}

impl TimeSamplerState {
    /// √(mean loss²) per timestep, brought to sum 1 and mixed with the uniform distribution; all 1 while any timestep
    /// still lacks losses, or if all losses are 0.
    fn weights(&self) -> Vec<f64> {
        let steps = self.counts.len();
        let uniform = vec![1.0; steps];
        if self.counts.iter().any(|&count| (count as usize) < HISTORY_PER_STEP) {
            return uniform;
        }
        let rows = self.history.chunks_exact(HISTORY_PER_STEP);
        let root_mean_squares: Vec<f64> = rows
            .map(|row| (row.iter().map(|loss| loss * loss).sum::<f64>() / HISTORY_PER_STEP as f64).sqrt())
            .collect();
        let total: f64 = root_mean_squares.iter().sum();
        if !(total > 0.0 && total.is_finite()) {
            return uniform;
        }
        let floor = UNIFORM_SHARE / steps as f64;
        root_mean_squares.iter().map(|root| root / total * (1.0 - UNIFORM_SHARE) + floor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::Domain;

    const STEPS: usize = 5;
    const DRAWS: usize = 100_000;

    fn stream() -> Stream {
        Stream::new(1, Domain::Time, 0, 0)
    }

    /// A loss-aware sampler whose losses at t were all t + 1.
    fn warm() -> TimeSampler {
        let mut sampler = TimeSampler::new(TimeSamplerKind::LossSecondMoment, STEPS);
        for _ in 0..HISTORY_PER_STEP {
            sampler.update(&[0, 1, 2, 3, 4], &[1.0, 2.0, 3.0, 4.0, 5.0]);
        }
        sampler
    }

    #[test]
    fn antithetic_pairs_mirror_each_other() {
        let sampler = TimeSampler::new(TimeSamplerKind::Antithetic, 10);
        let drawn: Vec<usize> = (0..200).map(|position| sampler.draw(3, position).0).collect();
        assert!(drawn.chunks_exact(2).all(|pair| pair[0] + pair[1] == 9));
        assert!((0..10).all(|t| drawn.contains(&t)));
        assert!((0..200).all(|position| sampler.draw(3, position).1 == 1.0));
    }

    #[test]
    fn weights_stay_uniform_until_every_timestep_has_ten_losses() {
        let mut sampler = TimeSampler::new(TimeSamplerKind::LossSecondMoment, 2);
        sampler.update(&[0; 25], &[3.0; 25]);
        sampler.update(&[1; 9], &[1.0; 9]);
        assert_eq!(sampler.weights(), [1.0, 1.0]);
        sampler.update(&[1], &[1.0]);
        let expected = [0.75 * 0.999 + 0.0005, 0.25 * 0.999 + 0.0005];
        assert!(sampler.weights().iter().zip(expected).all(|(w, e)| (w - e).abs() < 1e-15));
    }

    #[test]
    fn the_oldest_loss_is_forgotten_first() {
        let mut sampler = TimeSampler::new(TimeSamplerKind::LossSecondMoment, 1);
        let losses: Vec<f64> = (0..13).map(f64::from).collect();
        sampler.update(&[0; 13], &losses);
        let state = sampler.state().unwrap();
        assert_eq!((state.history.as_slice(), state.counts.as_slice()), (&losses[3..], &[10_u32][..]));
    }

    #[test]
    fn draws_follow_the_weights_and_the_importance_weight_undoes_them() {
        for sampler in [warm(), TimeSampler::new(TimeSamplerKind::Uniform, STEPS)] {
            let (weights, mut stream) = (sampler.weights(), stream());
            let total: f64 = weights.iter().sum();
            let mut counts = [0.0; STEPS];
            let mut mean = 0.0;
            for _ in 0..DRAWS {
                let (t, importance) = sampler.sample(&mut stream);
                assert!((importance - total / (STEPS as f64 * weights[t])).abs() < 1e-12);
                counts[t] += 1.0 / DRAWS as f64;
                mean += importance * (t + 1) as f64 / DRAWS as f64;
            }
            for (count, weight) in counts.iter().zip(&weights) {
                assert!((count - weight / total).abs() < 0.01);
            }
            // The uniform mean of 1..=5, whatever the distribution.
            assert!((mean - 3.0).abs() < 0.03, "{mean}");
        }
    }

    #[test]
    fn before_it_has_learned_the_loss_aware_sampler_draws_what_the_uniform_one_draws() {
        let uniform = TimeSampler::new(TimeSamplerKind::Uniform, 1000);
        let fresh = TimeSampler::new(TimeSamplerKind::LossSecondMoment, 1000);
        let (mut a, mut b) = (stream(), stream());
        for _ in 0..2000 {
            assert_eq!(uniform.sample(&mut a), fresh.sample(&mut b));
        }
    }

    #[test]
    fn a_restored_sampler_continues_as_the_saved_one() {
        let mut original = warm();
        let saved = serde_json::to_string(original.state().unwrap()).unwrap();
        let mut restored = TimeSampler::new(TimeSamplerKind::LossSecondMoment, STEPS);
        restored.restore(serde_json::from_str(&saved).unwrap()).unwrap();
        assert_eq!(restored, original);
        original.update(&[2], &[100.0]);
        restored.update(&[2], &[100.0]);
        assert_eq!(restored.sample(&mut stream()), original.sample(&mut stream()));
    }

    #[test]
    fn states_that_do_not_fit_are_refused_and_change_nothing() {
        let good = warm().state().unwrap().clone();
        let mut sampler = TimeSampler::new(TimeSamplerKind::LossSecondMoment, STEPS + 1);
        let message = sampler.restore(good.clone()).unwrap_err().to_string();
        assert!(
            message.starts_with("the saved time-sampler state is for 5 timesteps, but this run has 6"),
            "{message}"
        );

        let mut sampler = TimeSampler::new(TimeSamplerKind::LossSecondMoment, STEPS);
        let fresh = sampler.clone();
        let short = TimeSamplerState { history: vec![1.0; 7], ..good.clone() };
        let overfull = TimeSamplerState { counts: vec![11; STEPS], ..good.clone() };
        let poisoned = TimeSamplerState { history: vec![f64::NAN; STEPS * 10], ..good.clone() };
        for state in [short, overfull, poisoned] {
            assert!(matches!(sampler.restore(state), Err(TimeSamplerError::Damaged { .. })));
        }
        assert_eq!(sampler, fresh);

        let mut uniform = TimeSampler::new(TimeSamplerKind::Uniform, STEPS);
        assert_eq!(uniform.restore(good), Err(TimeSamplerError::NotLossAware));
        assert!(uniform.state().is_none());
    }

    #[test]
    fn broken_and_vanishing_losses_leave_the_distribution_usable() {
        let mut sampler = warm();
        let before = sampler.clone();
        sampler.update(&[0, 1, 2], &[f64::NAN, f64::INFINITY, f64::NEG_INFINITY]);
        assert_eq!(sampler, before);
        for _ in 0..HISTORY_PER_STEP {
            sampler.update(&[0, 1, 2, 3, 4], &[0.0; 5]);
        }
        assert_eq!(sampler.weights(), [1.0; STEPS]);
        for _ in 0..HISTORY_PER_STEP {
            sampler.update(&[0, 1, 2, 3, 4], &[1e300; 5]);
        }
        assert_eq!(sampler.weights(), [1.0; STEPS]);
    }
}
