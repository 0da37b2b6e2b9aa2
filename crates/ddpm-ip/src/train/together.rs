//! What the processes that share a run agree on, and what those do that leave its files to rank 0.

use super::{Next, Trainer};
use crate::Error;
use crate::config::{Config, ConfigError};
use crate::data::{Dataset, Loader};
use crate::event::{Emit, Event, Outcome};
use crate::ranks::Ranks;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Steps after which ranks compare their parameters, and how long each has waited for its images.
const CHECK: u64 = 100;

/// The share of time from which on waiting for images is said.
const MUCH: f64 = 0.25;

/// How long each rank waits for its images, since it was looked at.
#[derive(Default)]
pub(super) struct Waits {
    secs: f64,
    waited: Vec<f64>,
    said: bool,
}

impl Waits {
    /// Sees a step that took so many seconds, and how many of them each rank waited. Once, which rank waits much.
    pub(super) fn see(&mut self, step: u64, secs: f64, waited: &[f64], ranks: &Ranks) -> Option<String> {
        self.secs += secs;
        self.waited.resize(waited.len(), 0.0);
        self.waited.iter_mut().zip(waited).for_each(|(sum, waited)| *sum += waited);
        if self.said || !step.is_multiple_of(CHECK) {
            return None;
        }
        let (secs, all) = (std::mem::take(&mut self.secs), std::mem::take(&mut self.waited));
        let (rank, most) = all.into_iter().enumerate().max_by(|a, b| a.1.total_cmp(&b.1))?;
        self.said = most > MUCH * secs;
        self.said.then(|| {
            format!(
                "{} waited for its images in {:.0} % of the last steps' time: `ddpm-ip prepare` makes one file of them, of \
                 the size that is trained on",
                ranks.named(rank),
                100.0 * most / secs
            )
        })
    }
}

/// Trains as rank 0 does, and leaves files to it.
pub(super) fn follow(
    trainer: &mut Trainer,
    loader: &mut Loader,
    stop: &AtomicBool,
    save: &AtomicBool,
    over: impl Fn(u64, f64) -> bool,
    emit: &mut Emit,
) -> Result<Outcome, Error> {
    loop {
        let since = Instant::now();
        let batch = loader.next()?;
        let waited = since.elapsed().as_secs_f64();
        trainer.train_step(&batch)?;
        let (next, _) = agree(trainer, (0.0, waited, false), stop, save, &over)?;
        if next != Next::Step {
            skipped(loader, emit);
            return Ok(if next == Next::Finish { Outcome::Finished } else { Outcome::Interrupted });
        }
    }
}

/// Says which images were passed over.
pub(super) fn skipped(loader: &Loader, emit: &mut Emit) {
    for (image, reason) in loader.skipped() {
        emit(Event::Warning(format!("skipped {image}: {reason}")));
    }
}

/// What follows a step, on all ranks: by the clock of rank 0, and whoever was asked to stop or to save. And how many seconds each
/// `waited` for its images. If rank 0 `wants` the state, or the run is saved, rank 0 has all of it.
pub(super) fn agree(
    trainer: &mut Trainer,
    (elapsed, waited, wants): (f64, f64, bool),
    stop: &AtomicBool,
    save: &AtomicBool,
    over: impl Fn(u64, f64) -> bool,
) -> Result<(Next, Vec<f64>), Error> {
    let number = |flag| f64::from(u8::from(flag));
    let flag = |flag: &AtomicBool| number(flag.load(Ordering::Relaxed));
    let step = trainer.step();
    let sum = match trainer.ranks.count() {
        2.. if step.is_multiple_of(CHECK) => crc32fast::hash(bytemuck::cast_slice(trainer.state.parameters.values())),
        _ => 0,
    };
    let said =
        trainer.ranks.gather_numbers(&[elapsed, flag(stop), flag(save), f64::from(sum), waited, number(wants)])?;
    if let Some(rank) = said.iter().position(|theirs| theirs[3] != said[0][3]) {
        let message = format!(
            "has other parameters than rank 0 after step {step}: its machine or its memory computes something else. Repeat the \
             command without it to resume from the newest checkpoint"
        );
        return Err(trainer.ranks.failure(rank, &message));
    }
    let any = |which: usize| said.iter().any(|said| said[which] != 0.0);
    stop.fetch_or(any(1), Ordering::Relaxed);
    if trainer.ranks.leads() {
        save.fetch_or(any(2), Ordering::Relaxed);
    } else {
        save.store(false, Ordering::Relaxed);
    }
    let elapsed = said[0][0];
    trainer.state.progress.elapsed_secs = elapsed;
    let next = match (over(trainer.step(), elapsed), any(1)) {
        (true, _) => Next::Finish,
        (false, true) => Next::Interrupt,
        (false, false) => Next::Step,
    };
    if next != Next::Step || any(2) || any(5) {
        trainer.unshard()?;
    }
    Ok((next, said.iter().map(|said| said[4]).collect()))
}

/// Refuses ranks that were given other work than rank 0.
pub(super) fn same_work(ranks: &Ranks, config: &Config, dataset: &Dataset) -> Result<(), Error> {
    if ranks.count() == 1 {
        return Ok(());
    }
    // Each host may have the images at a place of its own.
    let mut settings = config.clone();
    settings.data.data_dir.clear();
    let work = [env!("CARGO_PKG_VERSION").into(), settings.to_toml(), dataset.fingerprint()];
    let read = |said: &Vec<u8>| serde_json::from_slice::<[String; 3]>(said).unwrap_or_default();
    let said = ranks.gather(&serde_json::to_vec(&work).expect("texts"))?;
    let [version, settings, images] = read(&said[0]);
    for (rank, said) in said.iter().enumerate() {
        let [their_version, their_settings, their_images] = read(said);
        let what = if their_version != version {
            format!("version {their_version} of the program, but rank 0 has {version}")
        } else if their_settings != settings {
            let [theirs, ours] = [their_settings, settings].map(|text| Config::from_toml(&text));
            let change = theirs?.changes_from(&ours?).into_iter().next();
            let named = |(key, theirs, ours)| format!("{key} = {theirs}, but rank 0 has {ours}");
            change.map_or("other classes than rank 0".into(), named)
        } else if their_images != images {
            format!("other images in {} than rank 0", config.data.data_dir)
        } else {
            continue;
        };
        return Err(ConfigError(format!("rank {rank} has {what}: start all processes with the same command")).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loader_that_falls_behind_is_said_once() {
        let (ranks, mut waits) = (Ranks::default(), Waits::default());
        let mut see = |step, waited| waits.see(step, 1.0, &[0.1, waited], &ranks);
        assert!((1..=100).all(|step| see(step, 0.2).is_none()));
        let said: Vec<String> = (101..=300).filter_map(|step| see(step, 0.5)).collect();
        assert!(said.len() == 1 && said[0].contains("50 % of the last steps' time"), "{said:?}");
    }
}
