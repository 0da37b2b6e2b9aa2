//! What happens every so many steps.

use super::{StepReport, Trainer};
use crate::Error;
use crate::checkpoint::{State, Store};
use crate::config::{Config, Corrections, Respacing, SampleConfig, SamplerKind, Spacing};
use crate::data::contact_sheet;
use crate::diffusion::{Diffusion, Reverse, to_u8};
use crate::event::{Emit, Event};
use crate::file::create_folder;
use crate::sample::{Chain, Guidance, Model, Seeded, SmallImages, Subjects};
use ddpm_net::network::{Network, Unet};
use ddpm_net::{Engine, Parameters};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Something to do between steps: log, draw a grid, save, evaluate.
pub trait Hook {
    /// Called after every step with what it saw and whether the run goes on.
    ///
    /// # Errors
    /// What goes wrong ends the run.
    fn after_step(&mut self, trainer: &Trainer, report: &StepReport, next: Next, emit: &mut Emit) -> Result<(), Error>;

    /// Whether it will look at more of the trainer's state than progress and parameters after this step, if the run goes on: where
    /// processes keep a part of it each, it has to be collected first.
    fn wants_state(&self, _trainer: &Trainer) -> bool {
        true
    }

    /// Called before the first step of a call that goes on with a run: what belonged to the step behind and is not there, as
    /// the call before ended first.
    ///
    /// # Errors
    /// What goes wrong ends the run.
    fn resume(&mut self, _trainer: &Trainer, _emit: &mut Emit) -> Result<(), Error> {
        Ok(())
    }
}

/// What follows a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another step.
    Step,
    /// The end: the run is complete.
    Finish,
    /// A stop at the user's wish, who waits: save, and leave the rest.
    Interrupt,
}

/// Whether something with this interval is due after `step`; an interval of 0 is never due between steps.
pub(crate) fn due(step: u64, interval: u64) -> bool {
    interval > 0 && step.is_multiple_of(interval)
}

/// Saves checkpoints as the run's configuration says; where a GPU trains, from a copy while it goes on.
pub struct CheckpointHook<'a> {
    store: &'a Store,
    /// Whether somebody asks for one.
    asked: Arc<AtomicBool>,
    /// What is being written, and its step.
    writing: Option<(u64, JoinHandle<Result<Saved, Error>>)>,
}

/// A checkpoint that was saved.
struct Saved {
    path: PathBuf,
    /// Those that had to go for it.
    removed: Vec<PathBuf>,
    /// How many are kept.
    keep: usize,
}

impl Saved {
    /// Saves a checkpoint, and removes those that the run's configuration does not keep.
    fn new(store: &Store, state: &State, config: &Config) -> Result<Self, Error> {
        let (path, keep) = (store.save(state, config)?, config.train.keep_checkpoints);
        Ok(Self { path, removed: store.keep_newest(keep)?, keep })
    }

    fn tell(self, step: u64, emit: &mut Emit) {
        let Self { path, removed, keep } = self;
        emit(Event::Checkpoint { step, path });
        for old in removed {
            emit(Event::Notice(format!("step {step}: removed {} (--keep-checkpoints {keep})", old.display())));
        }
    }
}

impl<'a> CheckpointHook<'a> {
    /// Saves into a run's store; also whenever `asked` is set, which it clears.
    pub fn new(store: &'a Store, asked: Arc<AtomicBool>) -> Self {
        Self { store, asked, writing: None }
    }

    /// Waits for what is being written.
    fn finish(&mut self, emit: &mut Emit) -> Result<(), Error> {
        let Some((step, thread)) = self.writing.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?.tell(step, emit);
        Ok(())
    }

    /// Saves a checkpoint, once the newest step is known to be well.
    pub(super) fn save(&mut self, trainer: &Trainer, emit: &mut Emit) -> Result<(), Error> {
        trainer.settle()?;
        self.finish(emit)?;
        emit(Event::Saving);
        Saved::new(self.store, &trainer.state, &trainer.config)?.tell(trainer.step(), emit);
        Ok(())
    }

    /// Begins to save a checkpoint.
    fn begin(&mut self, trainer: &Trainer, emit: &mut Emit) -> Result<(), Error> {
        trainer.settle()?;
        self.finish(emit)?;
        emit(Event::Saving);
        let (store, state, config) = (self.store.clone(), trainer.state.clone(), trainer.config.clone());
        let save = move || Saved::new(&store, &state, &config);
        self.writing = Some((trainer.step(), std::thread::spawn(save)));
        Ok(())
    }
}

impl Hook for CheckpointHook<'_> {
    fn wants_state(&self, trainer: &Trainer) -> bool {
        due(trainer.step(), trainer.config.train.save_interval)
    }

    fn after_step(&mut self, trainer: &Trainer, _: &StepReport, next: Next, emit: &mut Emit) -> Result<(), Error> {
        if self.writing.as_ref().is_some_and(|(_, thread)| thread.is_finished()) {
            self.finish(emit)?;
        }
        // Who asks too late for this step has the next one saved.
        let is_asked = trainer.is_whole() && self.asked.swap(false, Ordering::Relaxed);
        if is_asked {
            emit(Event::Notice(format!("step {}: saving a checkpoint, as asked", trainer.step())));
        }
        match next {
            Next::Step if !is_asked && !due(trainer.step(), trainer.config.train.save_interval) => Ok(()),
            Next::Step if trainer.state.progress.gpu.is_some() => self.begin(trainer, emit),
            _ => self.save(trainer, emit),
        }
    }
}

impl Drop for CheckpointHook<'_> {
    /// A run that fails keeps what it had begun to save.
    fn drop(&mut self) {
        if let Some((_, thread)) = self.writing.take() {
            let _ = thread.join();
        }
    }
}

/// Draws sample grids with the first average (the network itself where there is none) and always the same noise.
pub struct GridHook<'a> {
    folder: PathBuf,
    /// What a super-resolution network enlarges.
    small: Option<SmallImages>,
    stop: &'a AtomicBool,
}

impl<'a> GridHook<'a> {
    /// Draws into a folder; leaves a grid undrawn once `stop` is set. A super-resolution network enlarges `small`.
    pub fn new(folder: PathBuf, small: Option<SmallImages>, stop: &'a AtomicBool) -> Self {
        Self { folder, small, stop }
    }

    /// Where the grid of a step goes.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step_{step:06}.png"))
    }

    /// Whether the grid of the trainer's step is wanted and not there.
    pub(super) fn is_missing(&self, trainer: &Trainer) -> bool {
        let wanted = trainer.config.train.grid_images > 0 && trainer.task.unet().is_some();
        wanted && !self.path(trainer.step()).exists()
    }

    /// Draws a grid, unless the configuration wants none or the network draws nothing.
    ///
    /// # Errors
    /// Failing writes.
    pub fn draw(&self, trainer: &Trainer, emit: &mut Emit) -> Result<(), Error> {
        let (config, step) = (&trainer.config, trainer.step());
        let count = config.train.grid_images;
        let Some(network) = trainer.task.unet().filter(|_| count > 0) else { return Ok(()) };
        let mut bytes = Vec::new();
        let small = self.small.as_ref();
        let labels = |images: &[u64], classes: usize| {
            let trained = config.classes.trained(classes);
            let in_turn = || images.iter().map(|&i| trained[i as usize % trained.len()]).collect();
            small.and_then(|small| small.labels(images)).unwrap_or_else(in_turn)
        };
        let settings = &grid_settings(config);
        let (parameters, stop, what) = (trainer.sampling_parameters(), self.stop, "the grid");
        let drawing = Drawing { network, parameters, config, settings, count, small, labels: &labels, stop, what };
        let whole = drawing.run(emit, &mut |images| {
            bytes.extend_from_slice(images);
            Ok(())
        })?;
        if !whole {
            return Ok(());
        }
        create_folder(&self.folder)?;
        let path = self.path(step);
        contact_sheet(&bytes, count, config.model.image_size, config.model.in_channels).save(&path)?;
        emit(Event::Grid { step, path });
        Ok(())
    }
}

/// How grids are sampled: as `sample` says, or with `UniPC` in few steps.
pub(super) fn grid_settings(config: &Config) -> SampleConfig {
    let sample = config.sample.clone();
    match config.train.grid_steps.min(config.diffusion.diffusion_steps) {
        0 => sample,
        steps => SampleConfig {
            sampler: SamplerKind::UniPc,
            timestep_respacing: Respacing::Sections(vec![steps]),
            spacing: Spacing::Uniform,
            churn: 0.0,
            correct: Corrections::default(),
            ..sample
        },
    }
}

/// Images `0..count` of a network that is not sampled as a file.
pub(crate) struct Drawing<'a> {
    pub(crate) network: &'a Engine<Unet>,
    pub(crate) parameters: &'a Parameters,
    /// The network's.
    pub(crate) config: &'a Config,
    /// How they are sampled.
    pub(crate) settings: &'a SampleConfig,
    pub(crate) count: usize,
    /// What a super-resolution network enlarges.
    pub(crate) small: Option<&'a SmallImages>,
    /// Gives numbers of images, and of classes, theirs.
    pub(crate) labels: &'a dyn Fn(&[u64], usize) -> Vec<u32>,
    pub(crate) stop: &'a AtomicBool,
    /// What they are, for the progress.
    pub(crate) what: &'static str,
}

impl Drawing<'_> {
    /// Passes the images on batch by batch, `[n, H, W, C]`. Whether all were drawn: not after `stop`.
    pub(crate) fn run(&self, emit: &mut Emit, take: &mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<bool, Error> {
        let Self { network, parameters, config, settings, count, small, .. } = *self;
        let diffusion = Diffusion::for_sampling(&config.diffusion, settings)?;
        let size = config.model.image_size;
        let model = Model { network, parameters, size: [size; 2] };
        let guidance = Guidance::classifier_free(config, settings, network.device())?;
        let chain = Chain {
            diffusion: &diffusion,
            network: &model,
            reverse: &Reverse::new(settings),
            guide: None,
            guidance: guidance.as_ref(),
            shape: [config.model.in_channels, size, size],
        };
        let images: Vec<u64> = (0..count as u64).collect();
        let steps = diffusion.schedule.len();
        let total = images.len().div_ceil(settings.batch_size) * steps;
        for (batch, images) in images.chunks(settings.batch_size).enumerate() {
            let labels = network.network().config().num_classes.map(|classes| (self.labels)(images, classes));
            let low_res = small.map(|small| small.enlarged(images, size));
            let go_on = |step| {
                emit(Event::Drawing { what: self.what, done: batch * steps + step, total });
                !self.stop.load(Ordering::Relaxed)
            };
            let draws = &Seeded(settings.seed);
            let subjects = Subjects { images, labels: labels.as_deref(), low_res: low_res.as_deref(), draws };
            match chain.draw(subjects, go_on) {
                Some(x) => take(&to_u8(&x, config.model.in_channels, size * size))?,
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

impl Hook for GridHook<'_> {
    fn wants_state(&self, trainer: &Trainer) -> bool {
        trainer.config.train.grid_images > 0 && due(trainer.step(), trainer.config.train.grid_interval)
    }

    fn after_step(&mut self, trainer: &Trainer, _: &StepReport, next: Next, emit: &mut Emit) -> Result<(), Error> {
        let wanted = match next {
            Next::Step => due(trainer.step(), trainer.config.train.grid_interval),
            Next::Finish => true,
            Next::Interrupt => false,
        };
        if wanted { self.draw(trainer, emit) } else { Ok(()) }
    }

    fn resume(&mut self, trainer: &Trainer, emit: &mut Emit) -> Result<(), Error> {
        let is_due = due(trainer.step(), trainer.config.train.grid_interval);
        if is_due && self.is_missing(trainer) { self.draw(trainer, emit) } else { Ok(()) }
    }
}
