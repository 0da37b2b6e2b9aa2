//! What a run's evaluations were.

use serde::{Deserialize, Serialize};
use std::path::Path;

/// Where a run keeps its evaluations, a line each: those while it trained, and those of samples drawn from it.
pub(super) const FILE: &str = "evaluations.jsonl";

/// An evaluation during training, as a line of `evaluations.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Line {
    pub(super) step: u64,
    pub(super) reference: String,
    pub(super) images: usize,
    pub(super) features: String,
    /// Differs between two lines whose distances do not compare.
    pub(super) identity: String,
    pub(super) fid: f64,
}

/// The evaluations of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distances {
    /// Those while it trained: what was measured, and the Fréchet distance by step. Distances of one series compare.
    pub training: Vec<(String, Vec<(u64, f64)>)>,
    /// Those of samples that were drawn from it.
    pub samples: Vec<OfSamples>,
}

impl Distances {
    /// The lowest distance of the newest series, with its step.
    pub fn best(&self) -> Option<(u64, f64)> {
        self.training.last()?.1.iter().copied().min_by(|(_, a), (_, b)| a.total_cmp(b))
    }
}

/// A comparison of samples with real images, as `evaluate` wrote it; what it did not compute is not there.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct OfSamples {
    /// The real images.
    pub reference: OfSide,
    /// The samples.
    pub samples: OfSide,
    /// The feature network.
    pub features: String,
    /// Fréchet distance of the features.
    pub fid: f64,
    /// Share of the samples within the reference's reach.
    pub precision: Option<f64>,
    /// Share of the reference within the samples' reach.
    pub recall: Option<f64>,
}

/// A side of a comparison.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct OfSide {
    /// What was compared.
    pub source: String,
    /// Images, where that is known.
    pub images: Option<usize>,
}

/// Reads what a run has of evaluations; lines that are not whole are passed over.
pub fn distances(run: &Path) -> Distances {
    let text = std::fs::read_to_string(run.join(FILE)).unwrap_or_default();
    let mut all = Distances::default();
    let mut identities: Vec<String> = Vec::new();
    for line in text.lines() {
        if let Ok(line) = serde_json::from_str::<Line>(line) {
            let at = identities.iter().position(|identity| *identity == line.identity).unwrap_or_else(|| {
                identities.push(line.identity.clone());
                let what = format!("{} images against {}, {}", line.images, line.reference, line.features);
                all.training.push((what, Vec::new()));
                identities.len() - 1
            });
            let series = &mut all.training[at].1;
            // A run that went on from before an evaluation has it twice; the later one counts.
            series.retain(|(step, _)| *step < line.step);
            series.push((line.step, line.fid));
        } else if let Ok(of_samples) = serde_json::from_str(line) {
            all.samples.push(of_samples);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_told_apart_and_half_a_line_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let line = |step: u64, identity: &str, fid: f64| {
            let (reference, features, identity) = ("digits".into(), "grey".into(), identity.into());
            serde_json::to_string(&Line { step, reference, images: 10, features, identity, fid }).unwrap()
        };
        let of_samples = r#"{"reference":{"source":"digits","images":1797},"samples":{"source":"a.npz","images":10},"features":"grey","fid":0.5}"#;
        let lines = [
            line(1, "a", 3.0),
            line(2, "a", 2.0),
            line(2, "b", 9.0),
            line(2, "a", 2.5),
            of_samples.into(),
            line(3, "a", 1.0),
        ];
        let text = lines.join("\n");
        std::fs::write(folder.path().join(FILE), &text[..text.len() - 4]).unwrap();
        let found = distances(folder.path());
        let series: Vec<&[(u64, f64)]> = found.training.iter().map(|(_, points)| &points[..]).collect();
        assert_eq!(series, [&[(1, 3.0), (2, 2.5)][..], &[(2, 9.0)]]);
        assert_eq!((found.samples.len(), found.samples[0].precision), (1, None));
        assert_eq!(distances(&folder.path().join("nothing")), Distances::default());
    }
}
