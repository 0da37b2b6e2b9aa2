//! The logs of a run directory: `stats.jsonl` (a JSON object per line), `progress.csv` (a table) and `log.txt` (for
//! people). A resumed run drops the lines beyond the step it resumes from.

use super::log_line;
use ddpm_ip::{Error, Event, file::write_atomic};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The log files of a run.
pub(crate) struct RunFiles {
    folder: PathBuf,
    /// Columns of `progress.csv`; empty until training begins.
    columns: Vec<String>,
    open: Option<Open>,
    /// Lines for `log.txt` from before the directory is there.
    early: Vec<String>,
}

struct Open {
    stats: File,
    progress: File,
    log: File,
}

impl RunFiles {
    /// The logs in `folder`, which are opened when training begins.
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), columns: Vec::new(), open: None, early: Vec::new() }
    }

    pub(crate) fn receive(&mut self, event: &Event) -> Result<(), Error> {
        match event {
            Event::Started { parameters, images, step, .. } => {
                self.begin(*step)?;
                self.say(&format!("step {step}: training {parameters} parameters on {images} images"))
            }
            Event::Notice(text) | Event::Warning(text) => self.say(text),
            Event::Log(line) => self.log(line),
            Event::Grid { step, path } => self.say(&format!("step {step}: wrote {}", path.display())),
            Event::Checkpoint { step, path } => self.say(&format!("step {step}: saved {}", path.display())),
            _ => Ok(()),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn append_to(&self, name: &str) -> Result<File, Error> {
        let path = self.path(name);
        OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("write", &path))
    }

    fn begin(&mut self, step: u64) -> Result<(), Error> {
        keep_until(&self.path("stats.jsonl"), 0, |line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            line.get("step")?.as_f64().filter(|&s| s <= step as f64)
        })?;
        let progress = self.path("progress.csv");
        keep_until(&progress, 1, |line| line.split(',').next()?.parse().ok().filter(|&s: &f64| s <= step as f64))?;
        let header = std::fs::read_to_string(&progress).unwrap_or_default();
        self.columns = header.lines().next().map(|h| h.split(',').map(String::from).collect()).unwrap_or_default();
        self.open = Some(Open {
            stats: self.append_to("stats.jsonl")?,
            progress: self.append_to("progress.csv")?,
            log: self.append_to("log.txt")?,
        });
        for line in std::mem::take(&mut self.early) {
            self.say(&line)?;
        }
        Ok(())
    }

    fn say(&mut self, text: &str) -> Result<(), Error> {
        let path = self.path("log.txt");
        if let Some(open) = &mut self.open {
            return writeln!(open.log, "{text}").map_err(Error::io("write", &path));
        }
        self.early.push(text.to_string());
        Ok(())
    }

    fn log(&mut self, line: &[(String, f64)]) -> Result<(), Error> {
        self.say(&log_line(line))?;
        if line.iter().any(|(key, _)| !self.columns.contains(key)) {
            self.add_columns(line)?;
        }
        let cell = |c: &String| line.iter().find(|(k, _)| k == c).map_or(String::new(), |(_, v)| v.to_string());
        let row = self.columns.iter().map(cell).collect::<Vec<_>>().join(",");
        let object: serde_json::Map<_, _> = line.iter().map(|(k, v)| (k.clone(), number(*v))).collect();
        let (stats, progress) = (self.path("stats.jsonl"), self.path("progress.csv"));
        if let Some(open) = &mut self.open {
            writeln!(open.stats, "{}", serde_json::Value::Object(object)).map_err(Error::io("write", &stats))?;
            writeln!(open.progress, "{row}").map_err(Error::io("write", &progress))?;
        }
        Ok(())
    }

    /// Rewrites the table with more columns: some keys are first seen later, such as the loss of a rare quartile.
    fn add_columns(&mut self, line: &[(String, f64)]) -> Result<(), Error> {
        let new: Vec<&String> = line.iter().map(|(k, _)| k).filter(|k| !self.columns.contains(k)).collect();
        let path = self.path("progress.csv");
        let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let padding = if self.columns.is_empty() { String::new() } else { ",".repeat(new.len()) };
        self.columns.extend(new.into_iter().cloned());
        write_atomic(&path, |w| {
            writeln!(w, "{}", self.columns.join(","))?;
            text.lines().skip(1).try_for_each(|row| writeln!(w, "{row}{padding}"))
        })?;
        let progress = self.append_to("progress.csv")?;
        if let Some(open) = &mut self.open {
            open.progress = progress;
        }
        Ok(())
    }
}

/// Keeps the first `header` lines of a file and those after them that `wanted` gives something for.
fn keep_until(path: &Path, header: usize, wanted: impl Fn(&str) -> Option<f64>) -> Result<(), Error> {
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(()) };
    let kept: Vec<&str> =
        text.lines().enumerate().filter(|(i, l)| *i < header || wanted(l).is_some()).map(|(_, l)| l).collect();
    if kept.len() == text.lines().count() && (text.is_empty() || text.ends_with('\n')) {
        return Ok(());
    }
    write_atomic(path, |w| kept.iter().try_for_each(|line| writeln!(w, "{line}")))
}

/// A JSON number; whole ones without a point.
fn number(v: f64) -> serde_json::Value {
    if v.fract() == 0.0 && v.abs() < 2f64.powi(53) { (v as i64).into() } else { v.into() }
}
