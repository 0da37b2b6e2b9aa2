//! The metrics against the values of the reference evaluator on the same features. That evaluator averages
//! `f32` features in `f32`, which moves its distances by up to about `1e-7` relative.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use fidelity::{Features, InceptionScore, Moments, frechet_distance, precision_recall};
use serde_json::Value;

fn golden_dir() -> PathBuf {
    std::env::var_os("GOLDEN_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden"), PathBuf::from)
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// One array `[n, d]`.
fn features(archive: &Path, name: &str) -> (Vec<f32>, [usize; 2]) {
    let mut archive = zip::ZipArchive::new(std::fs::File::open(archive).unwrap()).unwrap();
    let array = npyz::NpyFile::new(archive.by_name(&format!("{name}.npy")).unwrap()).unwrap();
    assert_eq!(array.order(), npyz::Order::C);
    let &[rows, width] = array.shape() else { panic!("{name} is no matrix") };
    let (rows, width) = (rows as usize, width as usize);
    (array.into_vec().unwrap(), [rows, width])
}

/// Moments of one array, pushed in uneven batches.
fn moments(archive: &Path, name: &str) -> Moments {
    let (features, [rows, width]) = features(archive, name);
    let mut moments = Moments::new(width);
    for batch in features.chunks(17 * width) {
        moments.push(batch, [batch.len() / width, width]).unwrap();
    }
    assert_eq!(moments.count(), rows);
    moments
}

/// The cases: name, file and expected values.
fn cases() -> Vec<(String, PathBuf, Value)> {
    let dir = golden_dir();
    let index = json(&dir.join("index.json"));
    let cases = index["metrics"].as_array().cloned().unwrap_or_default();
    if cases.is_empty() {
        assert!(std::env::var_os("GOLDEN_DIR").is_some(), "the repository's index has no metrics");
        return Vec::new();
    }
    let expected = json(&dir.join("metrics/expected.json"));
    let case = |case: Value| {
        let name = case["name"].as_str().unwrap().to_string();
        let values = expected[&name].clone();
        (name, dir.join(case["file"].as_str().unwrap()), values)
    };
    cases.into_iter().map(case).collect()
}

#[test]
fn golden_precision_and_recall() {
    for (name, file, expected) in cases() {
        let (reference, sample) = (features(&file, "reference"), features(&file, "sample"));
        let [reference, sample] = [&reference, &sample].map(|(values, shape)| Features::new(values, *shape).unwrap());
        let found = precision_recall(reference, sample, 3).unwrap();
        let value = |key: &str| expected[key].as_f64().unwrap_or_else(|| panic!("no {key} of {name}"));
        assert_eq!([found.precision, found.recall], [value("precision"), value("recall")], "{name}");
    }
}

/// Of the softmax of the samples' features, over splits of 100.
#[test]
fn golden_inception_score() {
    for (name, file, expected) in cases() {
        let (features, [rows, width]) = features(&file, "sample");
        let softmax = |row: &[f32]| -> Vec<f64> {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f64> = row.iter().map(|&v| f64::from(v - largest).exp()).collect();
            let sum: f64 = powers.iter().sum();
            powers.into_iter().map(|p| p / sum).collect()
        };
        let probabilities: Vec<f64> = features.chunks_exact(width).flat_map(softmax).collect();
        let mut score = InceptionScore::new(width, 100);
        for batch in probabilities.chunks(7 * width) {
            score.push(batch, [batch.len() / width, width]).unwrap();
        }
        let [score, _] = score.finish().unwrap();
        let value = expected["inception_score_split100"].as_f64().unwrap();
        // The reference computes in f32.
        assert!((score - value).abs() < 1e-6 * value, "{name}, {rows} rows: {score} instead of {value}");
    }
}

#[test]
fn golden_frechet_distance() {
    for (name, file, expected) in cases() {
        let reference = moments(&file, "reference");
        let sample = moments(&file, "sample");
        let distance = frechet_distance(&sample, &reference).unwrap();
        let fid = expected["fid_eigen"].as_f64().unwrap_or_else(|| panic!("no fid_eigen of {name}"));
        // A distance near zero is what is left of traces that cancel: rounding is relative to those.
        let floor = 1e-12 * (trace(&reference) + trace(&sample));
        let tolerance = (1e-6 * fid.abs()).max(floor);
        println!("{name}: {distance:e}, expected {fid:e}");
        assert!((distance - fid).abs() <= tolerance, "{name}: {distance} instead of {fid}");
    }
}

fn trace(moments: &Moments) -> f64 {
    moments.covariance().unwrap().iter().step_by(moments.width() + 1).sum()
}
