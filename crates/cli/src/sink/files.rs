//! The logs of a run directory: `stats.jsonl` (a JSON object per line), `progress.csv` (a table), `log.txt` (for people),
//! and TensorBoard's. A resumed run drops the lines beyond the step it resumes from.

use super::log::Log;
use super::tensorboard::TensorBoard;
use super::words::whole_line;
use ddpm_ip::config::ConfigError;
use ddpm_ip::file::{sync_folder, write_atomic};
use ddpm_ip::{Error, Event};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where log lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogFormats {
    /// Whether the terminal shows them.
    pub(crate) terminal: bool,
    files: Vec<LogFile>,
}

/// A kind of log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LogFile {
    Text,
    Table,
    /// By this name.
    Lines(&'static str),
    TensorBoard,
}

impl Default for LogFormats {
    fn default() -> Self {
        Self { terminal: true, files: vec![LogFile::Text, LogFile::Table, LogFile::Lines("stats.jsonl")] }
    }
}

impl LogFormats {
    /// What the reference's `OPENAI_LOG_FORMAT` asks for, such as `stdout,log,csv`. Its files have the names that the
    /// reference gives them.
    ///
    /// # Errors
    /// A format that there is none of.
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut formats = Self { terminal: false, files: Vec::new() };
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let file = match name {
                "stdout" => {
                    formats.terminal = true;
                    continue;
                }
                "log" => LogFile::Text,
                "csv" => LogFile::Table,
                "json" => LogFile::Lines("progress.json"),
                "tensorboard" => LogFile::TensorBoard,
                _ => {
                    return Err(ConfigError(format!(
                        "OPENAI_LOG_FORMAT has {name:?}: use some of stdout, log, csv, json, tensorboard"
                    )));
                }
            };
            if !formats.files.contains(&file) {
                formats.files.push(file);
            }
        }
        Ok(formats)
    }
}

/// The log files of a run.
pub(crate) struct RunFiles {
    folder: PathBuf,
    formats: LogFormats,
    /// Empty until training begins.
    open: Vec<Box<dyn Log>>,
    /// Remarks from before the directory is there.
    early: Vec<String>,
}

impl RunFiles {
    /// The logs in `folder`, which are opened when training begins.
    pub(crate) fn new(folder: &Path, formats: LogFormats) -> Self {
        Self { folder: folder.to_path_buf(), formats, open: Vec::new(), early: Vec::new() }
    }

    pub(crate) fn receive(&mut self, event: &Event) -> Result<(), Error> {
        match event {
            Event::Started { parameters, images, step, .. } => {
                self.begin(*step)?;
                self.say(format!("step {step}: training {parameters} parameters on {images} images"))
            }
            Event::Notice(text) | Event::Warning(text) => self.say(text.clone()),
            Event::Log(line) => self.open.iter_mut().try_for_each(|log| log.log(line)),
            Event::Grid { step, path } => self.say(format!("step {step}: wrote {}", path.display())),
            Event::Best { step, fid } => self.say(super::best(*step, *fid)),
            // A run that goes on from it does not write these lines again.
            Event::Saving => {
                self.open.iter().try_for_each(|log| log.sync())?;
                sync_folder(&self.folder);
                Ok(())
            }
            Event::Checkpoint { step, path } => self.say(format!("step {step}: saved {}", path.display())),
            _ => Ok(()),
        }
    }

    fn begin(&mut self, step: u64) -> Result<(), Error> {
        for file in &self.formats.files {
            let folder = &self.folder;
            let log: Box<dyn Log> = match file {
                LogFile::Text => Box::new(Text(Lines::open(folder.join("log.txt"))?)),
                LogFile::Table => Box::new(Table::open(folder.join("progress.csv"), step)?),
                LogFile::Lines(name) => Box::new(Objects::open(folder.join(name), step)?),
                LogFile::TensorBoard => Box::new(TensorBoard::open(&folder.join("tb"), step)?),
            };
            self.open.push(log);
        }
        std::mem::take(&mut self.early).into_iter().try_for_each(|text| self.say(text))
    }

    fn say(&mut self, text: String) -> Result<(), Error> {
        if self.open.is_empty() {
            self.early.push(text);
            return Ok(());
        }
        self.open.iter_mut().try_for_each(|log| log.say(&text))
    }
}

/// A file to which lines are added.
struct Lines {
    path: PathBuf,
    file: File,
}

impl Lines {
    fn open(path: PathBuf) -> Result<Self, Error> {
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("write", &path))?;
        Ok(Self { path, file })
    }

    fn add(&mut self, line: &str) -> Result<(), Error> {
        writeln!(self.file, "{line}").map_err(Error::io("write", &self.path))
    }

    fn sync(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(Error::io("write", &self.path))
    }
}

/// `log.txt`.
struct Text(Lines);

impl Log for Text {
    fn say(&mut self, text: &str) -> Result<(), Error> {
        self.0.add(text)
    }

    fn log(&mut self, line: &[(String, f64)]) -> Result<(), Error> {
        self.0.add(&whole_line(line))
    }

    fn sync(&self) -> Result<(), Error> {
        self.0.sync()
    }
}

/// `stats.jsonl`.
struct Objects(Lines);

impl Objects {
    fn open(path: PathBuf, step: u64) -> Result<Self, Error> {
        keep_until(&path, 0, |line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            line.get("step")?.as_f64().filter(|&s| s <= step as f64)
        })?;
        Lines::open(path).map(Self)
    }
}

impl Log for Objects {
    fn log(&mut self, line: &[(String, f64)]) -> Result<(), Error> {
        let object: serde_json::Map<_, _> = line.iter().map(|(k, v)| (k.clone(), number(*v))).collect();
        self.0.add(&serde_json::Value::Object(object).to_string())
    }

    fn sync(&self) -> Result<(), Error> {
        self.0.sync()
    }
}

/// `progress.csv`.
struct Table {
    lines: Lines,
    columns: Vec<String>,
}

impl Table {
    fn open(path: PathBuf, step: u64) -> Result<Self, Error> {
        keep_until(&path, 1, |line| line.split(',').next()?.parse().ok().filter(|&s: &f64| s <= step as f64))?;
        let header = std::fs::read_to_string(&path).unwrap_or_default();
        let columns = header.lines().next().map(|h| h.split(',').map(String::from).collect()).unwrap_or_default();
        Ok(Self { lines: Lines::open(path)?, columns })
    }

    /// Rewrites the table with more columns: some keys are first seen later, such as the loss of a rare quartile.
    fn add_columns(&mut self, line: &[(String, f64)]) -> Result<(), Error> {
        let new: Vec<&String> = line.iter().map(|(k, _)| k).filter(|k| !self.columns.contains(k)).collect();
        let path = &self.lines.path;
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let padding = if self.columns.is_empty() { String::new() } else { ",".repeat(new.len()) };
        self.columns.extend(new.into_iter().cloned());
        write_atomic(path, |w| {
            writeln!(w, "{}", self.columns.join(","))?;
            text.lines().skip(1).try_for_each(|row| writeln!(w, "{row}{padding}"))
        })?;
        self.lines = Lines::open(path.clone())?;
        Ok(())
    }
}

impl Log for Table {
    fn log(&mut self, line: &[(String, f64)]) -> Result<(), Error> {
        if line.iter().any(|(key, _)| !self.columns.contains(key)) {
            self.add_columns(line)?;
        }
        let cell = |c: &String| line.iter().find(|(k, _)| k == c).map_or(String::new(), |(_, v)| v.to_string());
        self.lines.add(&self.columns.iter().map(cell).collect::<Vec<_>>().join(","))
    }

    fn sync(&self) -> Result<(), Error> {
        self.lines.sync()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_those_that_the_variable_names() {
        let formats = LogFormats::parse("stdout, log,csv").unwrap();
        assert_eq!(formats, LogFormats { terminal: true, files: vec![LogFile::Text, LogFile::Table] });
        let formats = LogFormats::parse("json,json,tensorboard,").unwrap();
        let files = vec![LogFile::Lines("progress.json"), LogFile::TensorBoard];
        assert_eq!(formats, LogFormats { terminal: false, files });
        assert!(LogFormats::parse("csv,xml").unwrap_err().to_string().contains("\"xml\""));
    }
}
