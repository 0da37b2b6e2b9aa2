//! Averages by power functions that a run saves, and averages of other lengths made from them. The rule stands in
//! [`ddpm_math::posthoc`].
//!
//! ```text
//! RUN/ema/step_000125_0.05.safetensors       an average of that length at that step, in half precision
//! RUN/ema/length_0.07_step_008000.safetensors    one that was made from them
//! RUN/ema/sweep.jsonl, sweep.svg             what became of several lengths
//! ```

mod sweep;

pub use sweep::{Point, SweepJob, sweep};

use crate::Error;
use crate::checkpoint::{self, State};
use crate::config::{Config, ConfigError};
use crate::event::{Emit, Event};
use crate::file::create_folder;
use crate::train::{Hook, Next, StepReport, Task, Trainer, due};
use ddpm_math::posthoc::{self, Profile};
use ddpm_net::{Device, Parameters};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The averages that a run has saved.
pub struct Savings {
    run: PathBuf,
    folder: PathBuf,
}

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    /// Steps of training.
    pub step: u64,
    /// σ_rel.
    pub length: f64,
    /// The file.
    pub path: PathBuf,
}

/// What makes an average: saved ones with their weights, its step, and the share of its profile that is missed.
struct Combination {
    saved: Vec<(Saved, f64)>,
    step: u64,
    error: f64,
}

/// An average that was made.
pub struct Average {
    /// σ_rel.
    pub length: f64,
    /// Steps of training.
    pub step: u64,
    /// The parameters.
    pub parameters: Parameters,
    /// The share of its profile that the saved ones miss.
    pub error: f64,
}

impl Savings {
    /// Those of a run directory.
    pub fn new(run: &Path) -> Self {
        Self { run: run.to_path_buf(), folder: run.join("ema") }
    }

    /// Their folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All of them, by step and length.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub fn all(&self) -> Result<Vec<Saved>, Error> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("list", &self.folder)(e)),
        };
        let of_entry = |entry: std::fs::DirEntry| {
            let name = entry.file_name();
            let (step, length) = name.to_str()?.strip_prefix("step_")?.strip_suffix(".safetensors")?.split_once('_')?;
            Some(Saved { step: step.parse().ok()?, length: length.parse().ok()?, path: entry.path() })
        };
        let mut all: Vec<Saved> = entries.filter_map(Result::ok).filter_map(of_entry).collect();
        all.sort_by(|a, b| a.step.cmp(&b.step).then(a.length.total_cmp(&b.length)));
        Ok(all)
    }

    /// Saves the averages of a state.
    ///
    /// # Errors
    /// What writing says.
    pub fn save(&self, state: &State, config: &Config) -> Result<(), Error> {
        create_folder(&self.folder)?;
        for (length, average) in &state.posthoc {
            let path = self.folder.join(format!("step_{:06}_{length}.safetensors", state.progress.step));
            checkpoint::write_half(&path, average, config, Some(&state.progress))?;
        }
        Ok(())
    }

    /// Removes what lies beyond a step from which the run goes on, and will be saved again; says how many files.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn remove_after(&self, step: u64) -> Result<usize, Error> {
        let beyond: Vec<Saved> = self.all()?.into_iter().filter(|saved| saved.step > step).collect();
        for saved in &beyond {
            std::fs::remove_file(&saved.path).map_err(Error::io("remove", &saved.path))?;
        }
        Ok(beyond.len())
    }

    /// The settings of the run, from what it has saved.
    ///
    /// # Errors
    /// A run that has saved nothing; damage.
    pub fn config(&self) -> Result<Config, Error> {
        let Some(newest) = self.all()?.pop() else {
            let message = "has no EMA snapshots to make others from: `train --posthoc-ema` saves them";
            return Err(Error::file(&self.run, message));
        };
        let config = checkpoint::config_of(&newest.path)?;
        config.ok_or_else(|| Error::file(&newest.path, "carries no configuration"))
    }

    /// Those up to a step, or all, with their profiles; and the step.
    fn profiles(&self, step: Option<u64>) -> Result<(Vec<(Saved, Profile)>, u64), Error> {
        self.config()?;
        let mut all = self.all()?;
        let steps: BTreeSet<u64> = all.iter().map(|saved| saved.step).collect();
        let last = steps.last().copied().unwrap_or(0);
        let step = step.unwrap_or(last);
        if !steps.contains(&step) {
            let near = [steps.range(..step).next_back(), steps.range(step..).next()];
            let near: Vec<String> = near.into_iter().flatten().map(u64::to_string).collect();
            let message = format!("has no EMA snapshots at step {step}: the nearest are at {}", near.join(" and "));
            return Err(Error::file(&self.run, message));
        }
        let usable = steps.range(..=step).count();
        if usable < 2 {
            let message = format!(
                "has saved its EMAs only once up to step {step} ({} in all): at least two snapshots are needed",
                steps.len()
            );
            return Err(Error::file(&self.run, message));
        }
        all.retain(|saved| saved.step <= step);
        let profile = |saved: Saved| {
            let progress = checkpoint::progress_in(&saved.path)?;
            let end = progress.updates.unwrap_or(progress.step) as f64;
            Ok((saved.clone(), Profile { gamma: posthoc::exponent(saved.length), end }))
        };
        Ok((all.into_iter().map(profile).collect::<Result<_, Error>>()?, step))
    }

    /// What makes the average of a length at a step, by default the last that was saved: the saved ones with their weights,
    /// the step, and the share of its profile that they miss.
    ///
    /// # Errors
    /// A length that the saved averages do not give; too few of them; damage.
    fn combination(&self, length: f64, step: Option<u64>) -> Result<Combination, Error> {
        let (saved, step) = self.profiles(step)?;
        let profiles: Vec<Profile> = saved.iter().map(|(_, profile)| *profile).collect();
        let end = profiles.last().map_or(0.0, |profile| profile.end);
        let is_length = length > 0.0 && length <= posthoc::LONGEST;
        let gamma = posthoc::exponent(if is_length { length } else { posthoc::LONGEST });
        let combination = posthoc::combine(&profiles, Profile { gamma, end });
        if is_length && combination.error <= posthoc::MOST_ERROR {
            let saved = saved.into_iter().map(|(saved, _)| saved).zip(combination.weights).collect();
            return Ok(Combination { saved, step, error: combination.error });
        }
        let given = posthoc::lengths(&profiles, end).map_or_else(
            || "no length at all".to_string(),
            |[short, long]| format!("lengths from {short:.4} to {long:.4}"),
        );
        Err(ConfigError(format!(
            "--length {length} cannot be made: the snapshots of {} up to step {step} give {given}, with at most \
             {:.0} % of the profile missed",
            self.run.display(),
            100.0 * posthoc::MOST_ERROR
        ))
        .into())
    }

    /// Whether an average can be made.
    ///
    /// # Errors
    /// As [`average`](Self::average).
    pub fn check(&self, length: f64, step: Option<u64>) -> Result<(), Error> {
        self.combination(length, step).map(drop)
    }

    /// Makes the average of a length at a step, by default the last that was saved.
    ///
    /// # Errors
    /// A length that the saved averages do not give; too few of them; damage.
    pub fn average(&self, length: f64, step: Option<u64>) -> Result<Average, Error> {
        let Combination { saved, step, error } = self.combination(length, step)?;
        let config = self.config()?;
        let task = Task::new(&config, Device::default())?;
        let mut sum = vec![0.0_f64; task.parameter_count()];
        for (saved, weight) in &saved {
            let values = checkpoint::load(&saved.path, task.layout(), "")?;
            sum.iter_mut().zip(values.values()).for_each(|(sum, &v)| *sum += weight * f64::from(v));
        }
        let parameters = Parameters::new(task.layout().clone(), sum.into_iter().map(|v| v as f32).collect());
        Ok(Average { length, step, parameters, error })
    }

    /// Where an average goes that is made, if nobody says.
    pub fn path(&self, average: &Average) -> PathBuf {
        self.folder.join(format!("length_{}_step_{:06}.safetensors", average.length, average.step))
    }

    /// Writes an average as a file of parameters with the run's settings.
    ///
    /// # Errors
    /// What writing says.
    pub fn write(&self, average: &Average, path: &Path) -> Result<(), Error> {
        checkpoint::write_parameters(path, &average.parameters, &self.config()?)
    }
}

/// Saves the averages of a run every so many steps, and at its end.
pub(crate) struct PosthocHook {
    savings: Savings,
}

impl PosthocHook {
    /// Saves into a run directory, for a trainer that goes on at its step.
    pub(crate) fn new(run: &Path, trainer: &Trainer, emit: &mut Emit) -> Result<Self, Error> {
        let (savings, step) = (Savings::new(run), trainer.step());
        let keeps = !trainer.config.train.posthoc_ema.is_empty();
        let removed = if keeps { savings.remove_after(step)? } else { 0 };
        if removed > 0 {
            let folder = savings.folder.display();
            emit(Event::Notice(format!(
                "removed {removed} EMA snapshots beyond step {step} from {folder}: they are saved again"
            )));
        }
        Ok(Self { savings })
    }
}

impl Hook for PosthocHook {
    fn wants_state(&self, trainer: &Trainer) -> bool {
        let settings = &trainer.config.train;
        !settings.posthoc_ema.is_empty() && due(trainer.step(), settings.posthoc_ema_interval)
    }

    fn after_step(&mut self, trainer: &Trainer, _: &StepReport, next: Next, _: &mut Emit) -> Result<(), Error> {
        let settings = &trainer.config.train;
        let is_due = due(trainer.step(), settings.posthoc_ema_interval) || next == Next::Finish;
        if settings.posthoc_ema.is_empty() || !is_due {
            return Ok(());
        }
        trainer.settle()?;
        self.savings.save(&trainer.state, &trainer.config)
    }
}
