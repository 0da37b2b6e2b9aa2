//! A word when training goes wrong without failing.

use super::{Hook, Next, StepReport, Task, Trainer};
use crate::Error;
use crate::config::Prediction;
use crate::data::Batch;
use crate::event::{Emit, Event};
use ddpm_math::Mode;

/// Steps over which the loss is averaged.
const STEPS: usize = 50;

/// Mean losses in units of what predicting zero gives: too much, as if nothing was learned, and something learned.
const TOO_MUCH: f64 = 2.0;
const NOTHING: f64 = 0.95;
const SOMETHING: f64 = 0.5;

/// How many times its first value the norm of the parameters may reach.
const NORMS: f64 = 10.0;

/// Warns when the loss explodes, when what was learned is lost, and when the parameters grow out of bounds; once more at the
/// end.
pub(super) struct WatchHook {
    first_norm: f64,
    /// Mean squares of the images of a batch, which are what a network is told to predict.
    images: f64,
    /// Loss and what predicting zero would give, of the steps since the last look.
    window: Vec<[f64; 2]>,
    has_learned: bool,
    /// The first time that something went wrong.
    first: Option<u64>,
    warned: Vec<Trouble>,
}

#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    Exploded,
    Lost,
    Grown,
}

impl WatchHook {
    /// Watches a run from here.
    pub(super) fn new(trainer: &Trainer) -> Self {
        let first_norm = trainer.state.parameters.norm();
        Self { first_norm, images: 0.0, window: Vec::new(), has_learned: false, first: None, warned: Vec::new() }
    }

    /// Sees what the next step is trained on.
    pub(super) fn see(&mut self, trainer: &Trainer, batch: &Batch) {
        if trainer.config.diffusion.prediction != Prediction::XStart {
            return;
        }
        let squares: f64 = batch.images.iter().map(|&v| f64::from(v).powi(2)).sum();
        self.images = squares / batch.images.len() as f64;
    }

    /// The loss that predicting zero gives, where that is known, and the name of the term it compares with.
    fn of_zero(&self, trainer: &Trainer) -> Option<(&'static str, f64)> {
        let config = &trainer.config;
        match (&trainer.task, config.diffusion.prediction) {
            (Task::Classifier(_), _) => Some(("train_loss", (config.classifier.num_classes as f64).ln())),
            (_, Prediction::Epsilon) => {
                let rule = &config.perturbation;
                let scale = if rule.mode == Mode::Equivalent { 1.0 + rule.gamma.powi(2) } else { 1.0 };
                Some(("mse", 1.0 / scale))
            }
            (_, Prediction::XStart) => Some(("mse", self.images)),
            (_, Prediction::PreviousX) => None,
        }
    }

    fn look(&mut self, trainer: &Trainer, emit: &mut Emit) {
        let norm = trainer.state.parameters.norm() / self.first_norm;
        if self.first_norm > 0.0 && norm > NORMS {
            let text = format!("the norm of the parameters is {norm:.0} times what it was at the beginning");
            self.warn(Trouble::Grown, &text, trainer, emit);
        }
        if self.window.is_empty() {
            return;
        }
        let [loss, zero] = self.means();
        if loss > TOO_MUCH * zero {
            let text = format!("the mean loss of {STEPS} steps is {loss:.3}, where predicting zero gives {zero:.3}");
            self.warn(Trouble::Exploded, &text, trainer, emit);
        } else if self.has_learned && loss > NOTHING * zero {
            let text =
                format!("the mean loss of {STEPS} steps is back at {loss:.3}, where predicting zero gives {zero:.3}");
            self.warn(Trouble::Lost, &text, trainer, emit);
        }
        self.has_learned |= loss < SOMETHING * zero;
    }

    /// Warns of each trouble once.
    fn warn(&mut self, trouble: Trouble, text: &str, trainer: &Trainer, emit: &mut Emit) {
        if !self.warned.contains(&trouble) {
            let step = trainer.step();
            self.warned.push(trouble);
            self.first.get_or_insert(step);
            emit(Event::Warning(format!("step {step}: {text}. {}", advice(trainer))));
        }
    }

    fn means(&self) -> [f64; 2] {
        let mean = |of: usize| self.window.iter().map(|pair| pair[of]).sum::<f64>() / self.window.len() as f64;
        [mean(0), mean(1)]
    }
}

fn advice(trainer: &Trainer) -> String {
    let settings = &trainer.config.train;
    let clip = if settings.grad_clip == 0.0 { ", --grad-clip 1" } else { "" };
    let warm_up = if settings.lr_warmup_steps == 0 { " or --lr-warmup-steps 500" } else { "" };
    format!("Try a lower --lr than {}{clip}{warm_up}", settings.lr)
}

impl Hook for WatchHook {
    fn wants_state(&self, _: &Trainer) -> bool {
        false
    }

    fn after_step(&mut self, trainer: &Trainer, report: &StepReport, next: Next, emit: &mut Emit) -> Result<(), Error> {
        if let Some((term, zero)) = self.of_zero(trainer)
            && let Some(values) = report.term(term)
        {
            let weighted = values.iter().zip(&report.weights).map(|(v, w)| v * w);
            self.window.push([weighted.sum::<f64>() / values.len() as f64, zero]);
        }
        let is_over = next != Next::Step;
        let is_due = trainer.step().is_multiple_of(STEPS as u64);
        let last = (is_over && !self.window.is_empty()).then(|| self.means()[0]);
        if is_due {
            if self.window.len() < STEPS {
                // A run that goes on begins between two looks.
                self.window.clear();
            }
            self.look(trainer, emit);
            self.window.clear();
        }
        if let (Some(step), true) = (self.first, is_over) {
            let now = last.map_or(String::new(), |loss| format!("; the mean loss of the last steps is {loss:.3}"));
            emit(Event::Warning(format!("training went wrong at step {step}{now}. {}", advice(trainer))));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Layers};
    use ddpm_net::Device;

    fn trainer(settings: &[(&str, &str)]) -> Trainer {
        let mut layers = Layers::default();
        let small = [("image_size", "8"), ("num_channels", "32"), ("num_res_blocks", "1"), ("channel_mult", "1")];
        layers.set(small.into_iter().chain([("attention_resolutions", "")]).chain(settings.iter().copied())).unwrap();
        let config: Config = layers.resolve().unwrap();
        let task = Task::new(&config, Device::Cpu).unwrap();
        Trainer::new(config, task, None).unwrap()
    }

    /// What is said of steps with these losses.
    fn said(trainer: &mut Trainer, losses: &[f64]) -> Vec<String> {
        let (mut watch, mut said) = (WatchHook::new(trainer), Vec::new());
        for (i, &loss) in losses.iter().enumerate() {
            trainer.state.progress.step += 1;
            let report = StepReport { terms: vec![("mse", vec![loss])], weights: vec![1.0], ..StepReport::default() };
            let next = if i + 1 == losses.len() { Next::Finish } else { Next::Step };
            watch
                .after_step(trainer, &report, next, &mut |event| {
                    if let Event::Warning(text) = event {
                        said.push(text);
                    }
                })
                .unwrap();
        }
        said
    }

    #[test]
    fn a_loss_that_explodes_and_one_that_comes_back_are_told_once_and_at_the_end() {
        let learning: Vec<f64> = (0..200).map(|i| 1.0 / (1.0 + 0.1 * f64::from(i))).collect();
        assert_eq!(said(&mut trainer(&[]), &learning), Vec::<String>::new());
        // Nothing is learned, as at a learning rate too low: no trouble.
        assert_eq!(said(&mut trainer(&[]), &[1.0; 200]), Vec::<String>::new());
        let exploded = said(&mut trainer(&[]), &[&learning[..], &[5.0; 120]].concat());
        assert_eq!(exploded.len(), 2, "{exploded:?}");
        assert!(exploded[0].starts_with("step 250: the mean loss of 50 steps is 5.000, where"), "{exploded:?}");
        assert!(exploded[1].starts_with("training went wrong at step 250; the mean loss of the last"), "{exploded:?}");
        let lost = said(&mut trainer(&[]), &[&learning[..], &[1.0; 120]].concat());
        assert!(lost[0].contains("step 250: the mean loss of 50 steps is back at 1.000"), "{lost:?}");
        // The equivalent form's target is smaller, and so is what predicting zero gives.
        let equivalent = [("perturbation.mode", "equivalent"), ("gamma", "0.5")];
        let lost = said(&mut trainer(&equivalent), &[&learning[..], &[0.8; 120]].concat());
        assert!(lost[0].contains("predicting zero gives 0.800"), "{lost:?}");
    }
}
