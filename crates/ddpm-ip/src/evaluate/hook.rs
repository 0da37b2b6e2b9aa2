//! Evaluation during training.

use super::features::Sum;
use super::side::{Side, know, network};
use super::{FeatureNetwork, Settings, append};
use crate::checkpoint::Store;
use crate::config::{Config, SampleConfig};
use crate::data::Shape;
use crate::event::{Emit, Event};
use crate::sample::random_labels;
use crate::train::{Drawing, Hook, Next, StepReport, Trainer, due};
use crate::{Error, weights};
use ddpm_net::Device;
use fidelity::{Gaussian, frechet_distance};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Draws images every so many steps, compares them with real ones, logs the Fréchet distance, adds it to the run's
/// `evaluations.jsonl` and keeps the best checkpoint.
pub struct EvaluationHook<'a> {
    store: Store,
    lines: PathBuf,
    network: FeatureNetwork,
    /// The real images.
    reference: Gaussian,
    reference_name: String,
    /// The lowest distance so far.
    best: Option<f64>,
    /// What an evaluation depends on beside the parameters.
    identity: String,
    /// Steps that were evaluated, in this call and before.
    evaluated: BTreeSet<u64>,
    /// Whether this call has made no step yet.
    first: bool,
    stop: &'a AtomicBool,
}

/// An evaluation during training, as a line of `evaluations.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Line {
    step: u64,
    reference: String,
    images: usize,
    features: String,
    /// Differs between two lines whose distances do not compare.
    identity: String,
    fid: f64,
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
        let (wanted, data, model) = (&config.evaluation, &config.data, &config.model);
        if wanted.interval == 0 {
            return Ok(None);
        }
        let shape = Shape {
            image_size: model.image_size,
            fit: data.fit,
            allow_upscale: data.allow_upscale,
            channels: Some(model.in_channels),
        };
        let features = if wanted.features.is_empty() { None } else { Some(wanted.features.parse()?) };
        let metrics = Vec::new();
        let exif_rotate = data.exif_rotate;
        let settings = Settings { features, metrics, shape: Some(shape), exif_rotate, ..settings.clone() };
        let name = if wanted.reference.is_empty() { &data.data_dir } else { &wanted.reference };
        let mut side = Side::open(name, &settings)?;
        let network = network(&[&side], &settings, device)?;
        if !side.go_through(&network, stop)? {
            return Ok(None);
        }
        let content = match (&side.content, &side.statistics) {
            (Some(content), None) => content.hash.clone(),
            _ => weights::check_hash(Path::new(&side.name))?,
        };
        if let Some(remark) = network.remark() {
            emit(Event::Notice(remark));
        }
        let Some(reference) = know(side, &network, &settings, stop, emit)? else { return Ok(None) };
        let mut hook = Self {
            store: Store::new(run),
            lines: run.join("evaluations.jsonl"),
            network,
            reference: reference.statistics.features,
            reference_name: name.clone(),
            best: None,
            identity: String::new(),
            evaluated: BTreeSet::new(),
            first: true,
            stop,
        };
        // Batches and the number of images of other calls change nothing.
        let sampling = SampleConfig { num_samples: 0, batch_size: 0, ..config.sample.clone() };
        let all = serde_json::json!([sampling, wanted.images, hook.network.name(), content]).to_string();
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
        let mut sum = Sum::new(self.network.width());
        // As `sample` draws them, so that its files give the same distance.
        let labels = |images: &[u64], classes: usize| {
            random_labels(images, &config.classes.trained(classes), config.sample.seed)
        };
        let drawing = Drawing {
            trainer,
            settings: &config.sample,
            count: config.evaluation.images,
            small: None,
            labels: &labels,
            stop: self.stop,
            what: "images to evaluate",
        };
        let whole = drawing.run(emit, &mut |images| {
            let n = images.len() / (size * size * channels);
            sum.add(&self.network.features(images, [n, size, size, channels])?.features).map_err(failed)
        })?;
        if !whole {
            return Ok(());
        }
        let fid = frechet_distance(&self.reference, &sum.finish().map_err(failed)?).map_err(failed)?;
        let key = if self.network.is_inception() { "fid" } else { "frechet_distance" };
        emit(Event::Log(vec![("step".into(), step as f64), (key.into(), fid)]));
        let (reference, features) = (self.reference_name.clone(), self.network.name().to_string());
        let (identity, images) = (self.identity.clone(), config.evaluation.images);
        append(&self.lines, &Line { step, reference, images, features, identity, fid })?;
        self.evaluated.insert(step);
        if self.best.is_none_or(|best| fid < best) {
            self.best = Some(fid);
            trainer.settle()?;
            self.store.save_best(&trainer.state, config)?;
            emit(Event::Best { step, fid });
        }
        Ok(())
    }
}

impl Hook for EvaluationHook<'_> {
    fn after_step(&mut self, trainer: &Trainer, _: &StepReport, next: Next, emit: &mut Emit) -> Result<(), Error> {
        let (step, interval) = (trainer.step(), trainer.config.evaluation.interval);
        // The last that was due before this call may have been interrupted.
        let before = step.saturating_sub(1) / interval * interval;
        let is_missed = self.first && before > 0 && self.evaluated.range(before..).next().is_none();
        self.first = false;
        let is_due = match next {
            Next::Step => due(step, interval) || is_missed,
            Next::Finish => true,
            Next::Interrupt => false,
        };
        let is_new = !self.evaluated.contains(&step);
        if is_due && is_new && !self.stop.load(Ordering::Relaxed) { self.evaluate(trainer, emit) } else { Ok(()) }
    }
}
