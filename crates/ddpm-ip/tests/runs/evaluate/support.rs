//! Sets of images in files, and calls that compare them.

use crate::data::OPTIONS;
use crate::support::cpu;
use ddpm_ip::data::Dataset;
use ddpm_ip::evaluate::{self, Job, Report, Settings};
use ddpm_ip::npz::NpzWriter;
use ddpm_ip::{Error, Event, Outcome};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use tempfile::TempDir;

/// The embedded digits as bytes, 8x8 each.
pub(crate) fn digits() -> Vec<Vec<u8>> {
    let digits = Dataset::open("digits", &OPTIONS).unwrap();
    (0..digits.len()).map(|i| digits.image(i).unwrap()).collect()
}

/// A folder to work in.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file of images `[n, H, W, C]`; its path as text.
    pub(crate) fn images(&self, name: &str, images: &[Vec<u8>], [h, w, c]: [usize; 3]) -> String {
        self.labelled(name, images, [h, w, c], None)
    }

    /// The same with labels.
    pub(crate) fn labelled(&self, name: &str, images: &[Vec<u8>], shape: [usize; 3], labels: Option<&[i64]>) -> String {
        let path = self.path(name);
        let mut npz = NpzWriter::new(std::fs::File::create(&path).unwrap());
        let [h, w, c] = shape;
        npz.array::<u8>("arr_0", &[images.len(), h, w, c], |push| push(&images.concat())).unwrap();
        if let Some(labels) = labels {
            npz.array::<i64>("arr_1", &[labels.len()], |push| push(labels)).unwrap();
        }
        npz.finish().unwrap();
        path.display().to_string()
    }

    /// Settings that keep features here.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            subsets: fidelity::Subsets { count: 10, size: 100, seed: 0 },
            cache: Some(self.path("cache")),
            weights: self.path("weights"),
            ..Settings::default()
        }
    }

    /// Everything that lies in a folder here and below.
    pub(crate) fn files(&self, folder: &str) -> Vec<PathBuf> {
        fn below(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() { below(&path, found) } else { found.push(path) }
            }
        }
        let mut found = Vec::new();
        below(&self.path(folder), &mut found);
        found.sort();
        found
    }
}

pub(crate) fn job(reference: &str, samples: &str, settings: Settings) -> Job {
    Job { reference: reference.into(), samples: samples.into(), settings }
}

/// Compares to the end; also what was said.
pub(crate) fn run(job: &Job) -> Result<(Report, Vec<Event>), Error> {
    let mut events = Vec::new();
    let (outcome, report) = evaluate::evaluate(job, cpu(), &AtomicBool::new(false), &mut |event| events.push(event))?;
    assert_eq!(outcome, Outcome::Finished);
    Ok((report.unwrap(), events))
}

pub(crate) fn compare(reference: &str, samples: &str, settings: Settings) -> Report {
    run(&job(reference, samples, settings)).unwrap().0
}

/// What a comparison that cannot be made says.
pub(crate) fn problem(reference: &str, samples: &str, settings: Settings) -> String {
    run(&job(reference, samples, settings)).unwrap_err().to_string()
}
