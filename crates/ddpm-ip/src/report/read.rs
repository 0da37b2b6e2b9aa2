//! What a run directory tells.

use crate::Error;
use crate::bias;
use crate::checkpoint::{Store, progress};
use crate::config::{Config, PRESETS};
use crate::evaluate::{Distances, distances};
use crate::train::{Call, Ending, calls, history};
use crate::words::{grouped, time};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a run writes to while it trains.
const LOGS: [&str; 4] = ["log.txt", "progress.csv", "stats.jsonl", "calls.jsonl"];

/// A run, as its files show it. A run may be training meanwhile: what is half written is left out.
pub struct Run {
    /// Its directory.
    pub path: PathBuf,
    /// What tells it from the others.
    pub name: String,
    /// Its settings.
    pub config: Config,
    /// Its log, column by column.
    pub history: Vec<(String, Vec<f64>)>,
    /// Distances while it trained, and of samples drawn from it later.
    pub distances: Distances,
    /// Steps with their sample grids, in order.
    pub grids: Vec<(u64, PathBuf)>,
    /// What the instruments read of it.
    pub bias: Vec<bias::Report>,
    /// Seconds of training up to its newest checkpoint.
    pub elapsed: Option<f64>,
    /// How long ago it last wrote to its log.
    pub idle: Option<Duration>,
    /// Calls that trained it, in order.
    pub calls: Vec<Call>,
    /// What could not be read.
    pub remarks: Vec<String>,
}

impl Run {
    /// Reads a run directory.
    ///
    /// # Errors
    /// A directory that holds no run.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let settings = path.join("config.toml");
        if !settings.is_file() {
            return Err(Error::file(path, "is no run directory: it has no config.toml"));
        }
        let text = std::fs::read_to_string(&settings).map_err(Error::io("read", &settings))?;
        let config = Config::from_toml(&text).map_err(|e| Error::file(&settings, e.to_string()))?;
        let newest = Store::new(path).newest().ok().flatten();
        let read = bias_files(path).into_iter().map(|file| bias::Report::read(&file));
        let (bias, failed): (Vec<_>, Vec<_>) = read.partition(Result::is_ok);
        Ok(Self {
            name: path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into()),
            distances: distances(path),
            grids: grids(path),
            calls: calls(path),
            path: path.to_path_buf(),
            elapsed: newest.and_then(|(_, folder)| progress(&folder).ok()).map(|progress| progress.elapsed_secs),
            idle: LOGS.iter().filter_map(|log| path.join(log).metadata().ok()?.modified().ok()?.elapsed().ok()).min(),
            config,
            history: history(path).unwrap_or_default(),
            bias: bias.into_iter().flatten().collect(),
            remarks: failed.into_iter().filter_map(Result::err).map(|e| e.to_string()).collect(),
        })
    }

    /// A column of the log; empty if it has none of that name.
    pub fn column(&self, name: &str) -> &[f64] {
        self.history.iter().find(|(column, _)| column == name).map_or(&[], |(_, values)| values)
    }

    /// The last number of a column.
    pub fn last(&self, name: &str) -> Option<f64> {
        self.column(name).iter().rev().copied().find(|value| value.is_finite())
    }

    /// How far it is, in words: finished, stopped, failed and why, or on its way with the time that is left.
    pub fn state(&self) -> String {
        let Some(call) = self.calls.last() else { return "not known".into() };
        match &call.ending {
            Some(Ending::Finished) => return "finished".into(),
            Some(Ending::Interrupted) => return "stopped; the same command resumes it".into(),
            Some(Ending::Failed(message)) => return format!("failed: {message}"),
            None => {}
        }
        if self.idle.is_some_and(|idle| idle > self.patience()) {
            let since = time(self.idle.map_or(0.0, |idle| idle.as_secs_f64()));
            return format!("silent for {since}: killed, or its machine stopped");
        }
        let left = self.left().map_or(String::new(), |secs| format!(", ETA {}", time(secs)));
        let of =
            self.config.train.last_step().map_or(String::new(), |last| format!(", of {} steps", grouped(last as f64)));
        format!("running{of}{left}")
    }

    /// How long a running run may be silent: ten log lines, and time to save, draw and evaluate.
    fn patience(&self) -> Duration {
        let step = self.last("images_per_sec").map_or(0.0, |rate| self.config.train.batch_size as f64 / rate);
        Duration::from_secs_f64((10.0 * step * self.config.train.log_interval as f64).clamp(600.0, 1e6))
    }

    /// Seconds of training that are left, where that is known.
    fn left(&self) -> Option<f64> {
        let train = &self.config.train;
        let step = train.batch_size as f64 / self.last("images_per_sec")?;
        let by_steps = train.last_step().map(|last| (last as f64 - self.last("step").unwrap_or(0.0)) * step);
        let limit = train.time_limit().ok().flatten();
        let by_time = limit.map(|limit| limit.as_secs_f64() - self.elapsed.unwrap_or(0.0));
        by_steps.into_iter().chain(by_time).reduce(f64::min).map(|secs| secs.max(0.0))
    }

    /// The preset that has the most settings in common with this run, and those that differ: key, here, there.
    pub fn nearest_preset(&self) -> (&'static str, Vec<(String, String, String)>) {
        let all = PRESETS.iter().map(|preset| (preset.name, self.config.changes_from(&preset.config())));
        all.min_by_key(|(_, changes)| changes.len()).unwrap_or_default()
    }
}

/// Sample grids of a run, `samples/step_N.png`.
fn grids(run: &Path) -> Vec<(u64, PathBuf)> {
    let entries = std::fs::read_dir(run.join("samples")).into_iter().flatten().flatten().map(|entry| entry.path());
    let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix("step_")?.strip_suffix(".png")?.parse().ok();
    let mut grids: Vec<(u64, PathBuf)> = entries.filter_map(|path| Some((step(&path)?, path))).collect();
    grids.sort();
    grids
}

/// The files of `bias` in a run directory and the folders in it.
fn bias_files(run: &Path) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(run).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = std::iter::once(run.to_path_buf())
        .chain(folders)
        .map(|folder| folder.join("bias.json"))
        .filter(|file| file.is_file())
        .collect();
    files.sort();
    files
}

/// Gives runs of the same name as much of their paths as tells them apart.
pub(super) fn tell_apart(runs: &mut [Run]) {
    for parts in 2..16 {
        let same = |run: &Run, runs: &[Run]| runs.iter().filter(|other| other.name == run.name).count() > 1;
        let ambiguous: Vec<usize> = (0..runs.len()).filter(|&i| same(&runs[i], runs)).collect();
        if ambiguous.is_empty() {
            return;
        }
        for i in ambiguous {
            let all: Vec<_> = runs[i].path.components().collect();
            let kept: PathBuf = all[all.len().saturating_sub(parts)..].iter().collect();
            runs[i].name = kept.display().to_string();
        }
    }
}
