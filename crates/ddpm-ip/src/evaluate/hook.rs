//! Evaluation during training.

use super::past::{self, Line};
use super::{Settings, Yardstick};
use crate::checkpoint::Store;
use crate::config::{Config, SampleConfig};
use crate::event::{Emit, Event};
use crate::file::append;
use crate::sample::random_labels;
use crate::train::{Drawing, Hook, Next, StepReport, Trainer, due};
use crate::{Error, weights};
use ddpm_net::Device;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Draws images every so many steps, compares them with real ones, logs the Fréchet distance, adds it to the run's
/// `evaluations.jsonl` and keeps the best checkpoint.
pub struct EvaluationHook<'a> {
    store: Store,
    lines: PathBuf,
    yardstick: Yardstick,
    /// The lowest distance so far.
    best: Option<f64>,
    /// What an evaluation depends on beside the parameters.
    identity: String,
    /// Steps that were evaluated, in this call and before.
    evaluated: BTreeSet<u64>,
    stop: &'a AtomicBool,
}

impl<'a> EvaluationHook<'a> {
    /// Prepares what a configuration asks for, in a run directory that need not be there yet; none if it asks for nothing or
    /// `stop` was set before the real images were measured.
    ///
    /// # Errors
    /// Real images that cannot be used, missing weights.
    pub fn new(
        config: &Config,
        run: &Path,
        settings: &Settings,
        device: Device,
        stop: &'a AtomicBool,
        emit: &mut Emit,
    ) -> Result<Option<Self>, Error> {
        config.validate()?;
        let wanted = &config.evaluation;
        if wanted.interval == 0 {
            return Ok(None);
        }
        let Some(yardstick) = Yardstick::new(config, settings, device, stop, emit)? else { return Ok(None) };
        let mut hook = Self {
            store: Store::new(run),
            lines: run.join(past::FILE),
            yardstick,
            best: None,
            identity: String::new(),
            evaluated: BTreeSet::new(),
            stop,
        };
        // Batches and the number of images of other calls change nothing.
        let sampling = SampleConfig { num_samples: 0, batch_size: 0, ..config.sample.clone() };
        let all = serde_json::json!([sampling, wanted.images, hook.yardstick.identity]).to_string();
        hook.identity = weights::short_hash(all.as_bytes());
        let earlier = std::fs::read_to_string(&hook.lines).unwrap_or_default();
        let earlier = earlier.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        let (kept, newest) = (hook.store.best_step(), hook.store.newest()?.map_or(0, |(step, _)| step));
        for line in earlier.filter(|line| line.identity == hook.identity) {
            // What lies beyond the step that the run goes on from is done again, logs and all.
            if line.step <= newest {
                hook.evaluated.insert(line.step);
            }
            if Some(line.step) == kept {
                hook.best = Some(line.fid);
            }
        }
        Ok(Some(hook))
    }

    fn evaluate(&mut self, trainer: &Trainer, emit: &mut Emit) -> Result<(), Error> {
        let (config, step) = (&trainer.config, trainer.step());
        let (size, channels) = (config.model.image_size, config.model.in_channels);
        let failed = |e: fidelity::FidelityError| Error::file(&self.lines, format!("evaluation at step {step}: {e}"));
        // As `sample` draws them, so that its files give the same distance.
        let labels = |images: &[u64], classes: usize| {
            random_labels(images, &config.classes.trained(classes), config.sample.seed)
        };
        let Some(network) = trainer.task.unet() else { return Ok(()) };
        let drawing = Drawing {
            network,
            parameters: trainer.sampling_parameters(),
            config,
            settings: &config.sample,
            count: config.evaluation.images,
            small: None,
            labels: &labels,
            stop: self.stop,
            what: "images to evaluate",
        };
        let distance = self.yardstick.distance([size, channels], failed, |take| drawing.run(emit, take))?;
        let Some(fid) = distance else { return Ok(()) };
        let key = self.yardstick.key();
        // The line comes after the checkpoint: without it the evaluation is done again.
        if self.best.is_none_or(|best| fid < best) {
            trainer.settle()?;
            self.store.save_best(&trainer.state, config)?;
            emit(Event::Best { step, fid });
            self.best = Some(fid);
        }
        let (reference, features) = (self.yardstick.name.clone(), self.yardstick.features().to_string());
        let (identity, images) = (self.identity.clone(), config.evaluation.images);
        append(&self.lines, &Line { step, reference, images, features, identity, fid })?;
        emit(Event::Log(vec![("step".into(), step as f64), (key.into(), fid)]));
        self.evaluated.insert(step);
        Ok(())
    }
}

impl Hook for EvaluationHook<'_> {
    fn wants_state(&self, trainer: &Trainer) -> bool {
        due(trainer.step(), trainer.config.evaluation.interval)
    }

    fn after_step(&mut self, trainer: &Trainer, _: &StepReport, next: Next, emit: &mut Emit) -> Result<(), Error> {
        let step = trainer.step();
        let is_due = match next {
            Next::Step => due(step, trainer.config.evaluation.interval),
            Next::Finish => true,
            Next::Interrupt => false,
        };
        let is_new = !self.evaluated.contains(&step);
        if is_due && is_new && !self.stop.load(Ordering::Relaxed) { self.evaluate(trainer, emit) } else { Ok(()) }
    }

    fn resume(&mut self, trainer: &Trainer, emit: &mut Emit) -> Result<(), Error> {
        let (step, interval) = (trainer.step(), trainer.config.evaluation.interval);
        let last_due = step / interval * interval;
        let is_missing = last_due > 0 && self.evaluated.range(last_due..).next().is_none();
        if is_missing && !self.stop.load(Ordering::Relaxed) { self.evaluate(trainer, emit) } else { Ok(()) }
    }
}
