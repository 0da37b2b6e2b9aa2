//! The Fréchet distance against the values of the reference evaluator on the same features. That evaluator averages
//! `f32` features in `f32`, which moves its distances by up to about `1e-7` relative.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use fidelity::{Moments, frechet_distance};
use serde_json::Value;

fn golden_dir() -> PathBuf {
    std::env::var_os("GOLDEN_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden"), PathBuf::from)
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Moments of one array `[n, d]`, pushed in uneven batches.
fn moments(archive: &Path, name: &str) -> Moments {
    let mut archive = zip::ZipArchive::new(std::fs::File::open(archive).unwrap()).unwrap();
    let array = npyz::NpyFile::new(archive.by_name(&format!("{name}.npy")).unwrap()).unwrap();
    assert_eq!(array.order(), npyz::Order::C);
    let &[rows, width] = array.shape() else { panic!("{name} is no matrix") };
    let (rows, width) = (rows as usize, width as usize);
    let features: Vec<f32> = array.into_vec().unwrap();
    let mut moments = Moments::new(width);
    for batch in features.chunks(17 * width) {
        moments.push(batch, [batch.len() / width, width]).unwrap();
    }
    assert_eq!(moments.count(), rows);
    moments
}

#[test]
fn golden_frechet_distance() {
    let dir = golden_dir();
    let index = json(&dir.join("index.json"));
    let cases = index["metrics"].as_array().cloned().unwrap_or_default();
    if cases.is_empty() {
        assert!(std::env::var_os("GOLDEN_DIR").is_some(), "the repository's index has no metrics");
        return;
    }
    let expected = json(&dir.join("metrics/expected.json"));
    for case in &cases {
        let (name, file) = (case["name"].as_str().unwrap(), case["file"].as_str().unwrap());
        let reference = moments(&dir.join(file), "reference");
        let sample = moments(&dir.join(file), "sample");
        let distance = frechet_distance(&sample, &reference).unwrap();
        let fid = expected[name]["fid_eigen"].as_f64().unwrap_or_else(|| panic!("no fid_eigen of {name}"));
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
