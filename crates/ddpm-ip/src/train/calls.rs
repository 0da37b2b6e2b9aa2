//! The calls that trained a run: when, how far, by which program and on what.

use crate::config::Precision;
use crate::file::append;
use crate::{Device, Error, Outcome, device};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Where a run keeps them, a line where one begins and one where it ends.
const FILE: &str = "calls.jsonl";

/// A call that trained a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// When it began, in UTC (RFC 3339).
    pub began: String,
    /// Steps that were behind then.
    pub from: u64,
    /// The program and its version.
    pub program: String,
    /// What it computed on.
    pub on: String,
    /// When it ended.
    pub ended: Option<String>,
    /// Steps that were behind then.
    pub to: Option<u64>,
    /// How it ended; none if it is running, or was killed.
    pub ending: Option<Ending>,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// The run is complete.
    Finished,
    /// It was asked to stop, and saved.
    Interrupted,
    /// With this message.
    Failed(String),
}

#[derive(Serialize, Deserialize)]
struct Begin {
    began: String,
    step: u64,
    program: String,
    on: String,
}

#[derive(Serialize, Deserialize)]
struct End {
    ended: String,
    step: u64,
    ending: Ending,
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// A call that has begun.
pub(super) struct Begun {
    path: PathBuf,
    /// Steps that are behind now.
    pub(super) step: u64,
}

impl Begun {
    /// Notes that a call begins at a step.
    pub(super) fn new(run: &Path, step: u64, device: Device, precision: Precision) -> Result<Self, Error> {
        let program = format!("ddpm-ip {}", env!("CARGO_PKG_VERSION"));
        let on = format!("{}, {}", device::place(device), precision.name());
        let path = run.join(FILE);
        append(&path, &Begin { began: now(), step, program, on })?;
        Ok(Self { path, step })
    }

    /// Notes how it ended. A run that cannot write it has worse to say.
    pub(super) fn end(self, result: &Result<Outcome, Error>) {
        let ending = match result {
            Ok(Outcome::Finished) => Ending::Finished,
            Ok(Outcome::Interrupted) => Ending::Interrupted,
            Err(error) => Ending::Failed(error.to_string()),
        };
        let _ = append(&self.path, &End { ended: now(), step: self.step, ending });
    }
}

/// The calls that trained a run, in order; lines that are not whole are passed over.
pub fn calls(run: &Path) -> Vec<Call> {
    let text = std::fs::read_to_string(run.join(FILE)).unwrap_or_default();
    let mut calls: Vec<Call> = Vec::new();
    for line in text.lines() {
        if let Ok(Begin { began, step, program, on }) = serde_json::from_str(line) {
            calls.push(Call { began, from: step, program, on, ended: None, to: None, ending: None });
        } else if let (Ok(end), Some(call)) = (serde_json::from_str::<End>(line), calls.last_mut()) {
            (call.ended, call.to, call.ending) = (Some(end.ended), Some(end.step), Some(end.ending));
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_as_they_were_noted_and_one_that_was_killed_has_no_end() {
        let folder = tempfile::tempdir().unwrap();
        let begin = |step| Begun::new(folder.path(), step, Device::Cpu, Precision::F32).unwrap();
        let end = |from, step, result| Begun { step, ..begin(from) }.end(&result);
        end(0, 10, Ok(Outcome::Interrupted));
        end(10, 20, Err(Error::Diverged { step: 21, what: "loss", last_good: None }));
        begin(20);
        let found = calls(folder.path());
        let ends: Vec<(u64, Option<u64>)> = found.iter().map(|call| (call.from, call.to)).collect();
        assert_eq!(ends, [(0, Some(10)), (10, Some(20)), (20, None)]);
        assert_eq!(found[0].ending, Some(Ending::Interrupted));
        assert!(matches!(&found[1].ending, Some(Ending::Failed(message)) if message.contains("step 21")));
        assert_eq!(found[2].ending, None);
        assert!(found[0].on.contains("threads") && found[0].on.ends_with("f32"), "{}", found[0].on);
    }
}
