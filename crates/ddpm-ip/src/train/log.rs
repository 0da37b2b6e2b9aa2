//! The numbers of the logs, under the reference's names.

use super::{Hook, Next, StepReport, Trainer};
use crate::Error;
use crate::event::{Emit, Event};
use ddpm_net::Norm;

/// Averages what steps report and emits a line every `log_interval` steps, after the first and after the last.
pub struct LogHook {
    means: Vec<(String, f64, u64)>,
    /// Read when a line is due: a GPU may be computing the newest.
    norms: Vec<Norm>,
    secs: f64,
    images: usize,
}

impl LogHook {
    /// A log that begins now.
    pub fn new() -> Self {
        Self { means: Vec::new(), norms: Vec::new(), secs: 0.0, images: 0 }
    }

    fn add(&mut self, key: &str, value: f64) {
        match self.means.iter_mut().find(|(k, ..)| k == key) {
            Some((_, sum, count)) => {
                *sum += value;
                *count += 1;
            }
            None => self.means.push((key.to_string(), value, 1)),
        }
    }

    /// A loss term: its weighted mean, and the mean of each quarter of the timesteps.
    fn add_term(&mut self, key: &str, values: &[f64], report: &StepReport, steps: usize) {
        let weighted: Vec<f64> = values.iter().zip(&report.weights).map(|(v, w)| v * w).collect();
        self.add(key, weighted.iter().sum::<f64>() / weighted.len() as f64);
        for quartile in 0..4 {
            for (value, _) in weighted.iter().zip(&report.t).filter(|(_, t)| 4 * *t / steps == quartile) {
                self.add(&format!("{key}_q{quartile}"), *value);
            }
        }
    }
}

impl Default for LogHook {
    fn default() -> Self {
        Self::new()
    }
}

impl Hook for LogHook {
    fn wants_state(&self, _: &Trainer) -> bool {
        false
    }

    fn after_step(&mut self, trainer: &Trainer, report: &StepReport, next: Next, emit: &mut Emit) -> Result<(), Error> {
        let steps = trainer.diffusion.schedule.len();
        for report in [Some(report), report.validation.as_deref()].into_iter().flatten() {
            for (name, values) in &report.terms {
                self.add_term(name, values, report, steps);
            }
        }
        if let Some(mse) = report.term("mse").filter(|_| report.constant.iter().any(|&c| c != 0.0)) {
            let comparable: Vec<f64> = mse.iter().zip(&report.constant).map(|(m, c)| m + c).collect();
            self.add_term("mse_plus_c", &comparable, report, steps);
        }
        self.norms.extend(report.grad_norm.clone());
        if let Some(lg) = report.lg_loss_scale {
            self.add("lg_loss_scale", lg);
        }
        self.images += report.loss().len();
        self.secs += report.secs;
        let step = trainer.step();
        if step > 1 && next == Next::Step && !step.is_multiple_of(trainer.config.train.log_interval) {
            return Ok(());
        }
        // Of gradients that overflowed f16 there is none.
        for norm in std::mem::take(&mut self.norms).iter().map(Norm::get).filter(|norm| norm.is_finite()) {
            self.add("grad_norm", norm);
        }
        let mut line = vec![
            ("step".to_string(), step as f64),
            ("samples".to_string(), trainer.state.progress.images as f64),
            ("param_norm".to_string(), trainer.state.parameters.norm()),
            ("lr".to_string(), report.lr),
            ("images_per_sec".to_string(), self.images as f64 / self.secs),
        ];
        line.extend(self.means.drain(..).map(|(key, sum, count)| (key, sum / count as f64)));
        emit(Event::Log(line));
        (self.secs, self.images) = (0.0, 0);
        Ok(())
    }
}
