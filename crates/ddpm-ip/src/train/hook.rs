//! What happens every so many steps.

use super::{StepReport, Trainer};
use crate::Error;
use crate::checkpoint::Store;
use crate::data::contact_sheet;
use crate::diffusion::{Diffusion, Reverse, to_u8};
use crate::event::{Emit, Event};
use crate::sample::{Chain, Seeded};
use std::path::PathBuf;

/// Something to do between steps: log, draw a grid, save, evaluate.
pub trait Hook {
    /// Called after every step with what it saw, and whether it was the run's last (or the last before an
    /// interruption).
    ///
    /// # Errors
    /// What goes wrong ends the run.
    fn after_step(&mut self, trainer: &Trainer, report: &StepReport, last: bool, emit: &mut Emit) -> Result<(), Error>;
}

/// Whether something with this interval is due after `step`; an interval of 0 is due at the end alone.
fn due(step: u64, interval: u64, last: bool) -> bool {
    last || (interval > 0 && step.is_multiple_of(interval))
}

/// Saves checkpoints.
pub struct CheckpointHook {
    store: Store,
}

impl CheckpointHook {
    /// Saves into a run's store.
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

impl Hook for CheckpointHook {
    fn after_step(&mut self, trainer: &Trainer, _: &StepReport, last: bool, emit: &mut Emit) -> Result<(), Error> {
        let config = &trainer.config;
        if due(trainer.step(), config.train.save_interval, last) {
            let path =
                self.store.save(&trainer.state, trainer.network.specs(), config, config.train.keep_checkpoints)?;
            emit(Event::Checkpoint { step: trainer.step(), path });
        }
        Ok(())
    }
}

/// Draws sample grids with the averaged parameters and always the same noise.
pub struct GridHook {
    folder: PathBuf,
}

impl GridHook {
    /// Draws into a folder.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }
}

impl Hook for GridHook {
    fn after_step(&mut self, trainer: &Trainer, _: &StepReport, last: bool, emit: &mut Emit) -> Result<(), Error> {
        let (config, step) = (&trainer.config, trainer.step());
        let count = config.train.grid_images;
        if count == 0 || !due(step, config.train.grid_interval, last) {
            return Ok(());
        }
        let settings = &config.sample;
        let diffusion = Diffusion::new(&config.diffusion, &settings.timestep_respacing)?;
        let reverse = Reverse { sampler: settings.sampler, eta: settings.eta, clip_denoised: settings.clip_denoised };
        let chain = Chain {
            diffusion: &diffusion,
            network: &trainer.network,
            parameters: trainer.sampling_parameters(),
            reverse,
            image_size: config.model.image_size,
            device: &trainer.device,
        };
        let images: Vec<u64> = (0..count as u64).collect();
        let mut bytes = Vec::new();
        for images in images.chunks(settings.batch_size) {
            let classes = trainer.network.config().num_classes;
            let labels: Option<Vec<u32>> =
                classes.map(|n| images.iter().map(|i| (i % n as u64) as u32).collect());
            if let Some(x) = chain.run(images, labels.as_deref(), &Seeded(settings.seed), |_, _, _| true) {
                bytes.extend(to_u8(x));
            }
        }
        std::fs::create_dir_all(&self.folder).map_err(Error::io("create", &self.folder))?;
        let path = self.folder.join(format!("step_{step:06}.png"));
        contact_sheet(&bytes, count, config.model.image_size, config.model.in_channels).save(&path)?;
        emit(Event::Grid { step, path });
        Ok(())
    }
}
