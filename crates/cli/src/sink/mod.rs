//! Where events go: a progress bar, the run's log files, a summary for the end.

mod bar;
mod files;
mod log;
mod tensorboard;
mod words;

pub(crate) use files::{LogFormats, RunFiles};

use crate::host;
use crate::output::complain;
use bar::Bar;
use ddpm_ip::Event;
use std::path::PathBuf;

/// What a summary wants to know that no file tells.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) loss: Option<f64>,
    pub(crate) images_per_sec: Option<f64>,
    pub(crate) grid: Option<PathBuf>,
    pub(crate) best: Option<(u64, f64)>,
}

/// What is said of the best checkpoint so far.
fn best(step: u64, fid: f64) -> String {
    format!("step {step}: the best Fréchet distance so far, {fid:.4}; this checkpoint is now checkpoints/best")
}

/// Everything that listens.
pub(crate) struct Sinks {
    bar: Bar,
    files: Option<RunFiles>,
    quiet: bool,
    seen: Seen,
}

impl Sinks {
    /// A front end that shows its progress unless `quiet`, and writes a run's logs to `files`.
    pub(crate) fn new(quiet: bool, files: Option<RunFiles>) -> Self {
        let quiet = quiet || host::is_served();
        Self { bar: Bar::new(quiet), files, quiet, seen: Seen::default() }
    }

    /// Takes an event.
    pub(crate) fn receive(&mut self, event: &Event) {
        self.note(event);
        host::tell(event);
        if let Some(files) = &mut self.files
            && let Err(error) = files.receive(event)
        {
            self.bar.above(&format!("warning: logs are no longer written: {error}"));
            self.files = None;
        }
        match event {
            Event::Notice(text) | Event::Begins(text) if !self.quiet => self.bar.above(text),
            Event::Best { step, fid } if !self.quiet => self.bar.above(&best(*step, *fid)),
            Event::Warning(text) if !host::is_served() => self.bar.above(text),
            Event::Step { .. }
            | Event::Sampling { .. }
            | Event::Bounded { .. }
            | Event::Prepared { .. }
            | Event::Measuring { .. }
            | Event::Reading { .. }
            | Event::Fetching { .. } => {
                crate::interrupt::work_begins();
            }
            _ => {}
        }
        self.bar.receive(event);
        if let (Event::Log(line), false, false) = (event, self.quiet, self.bar.is_shown()) {
            complain(&self.bar.logged(line));
        }
    }

    /// From now on logs go to the files of a run.
    pub(crate) fn log_to(&mut self, files: RunFiles) {
        self.files = Some(files);
        self.bar = Bar::new(self.quiet);
    }

    /// What was seen in all.
    pub(crate) fn finish(self) -> Seen {
        self.bar.finish();
        self.seen
    }

    fn note(&mut self, event: &Event) {
        let seen = &mut self.seen;
        match event {
            Event::Log(line) => {
                let value = |key: &str| line.iter().find(|(k, _)| k == key).map(|(_, v)| *v);
                // The line of an evaluation has neither.
                seen.loss = value("loss").or_else(|| value("train_loss")).or(seen.loss);
                seen.images_per_sec = value("images_per_sec").or(seen.images_per_sec);
            }
            Event::Best { step, fid } => seen.best = Some((*step, *fid)),
            Event::Grid { path, .. } => seen.grid = Some(path.clone()),
            _ => {}
        }
    }
}
