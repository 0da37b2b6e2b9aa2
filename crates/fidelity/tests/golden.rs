//! The metrics against the values of the reference evaluator on the same features, and the Inception network against
//! torch-fidelity's on the same images. That evaluator averages
//! `f32` features in `f32`, which moves its distances by up to about `1e-7` relative.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use ddpm_net::Device;
use fidelity::{Features, Inception, InceptionScore, Moments, frechet_distance, precision_recall, resize_tf1};
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
        let distance = frechet_distance(&sample.gaussian().unwrap(), &reference.gaussian().unwrap()).unwrap();
        let fid = expected["fid_eigen"].as_f64().unwrap_or_else(|| panic!("no fid_eigen of {name}"));
        // A distance near zero is what is left of traces that cancel: rounding is relative to those.
        let floor = 1e-12 * (trace(&reference) + trace(&sample));
        let tolerance = (1e-6 * fid.abs()).max(floor);
        println!("{name}: {distance:e}, expected {fid:e}");
        assert!((distance - fid).abs() <= tolerance, "{name}: {distance} instead of {fid}");
    }
}

/// The files of the golden folder whose names begin so.
fn files(beginning: &str) -> Vec<PathBuf> {
    let named = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning));
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(golden_dir()).unwrap().map(|entry| entry.unwrap().path()).filter(named).collect();
    files.sort();
    assert!(std::env::var_os("GOLDEN_DIR").is_some() || !files.is_empty(), "no {beginning}* in the repository");
    files
}

/// An array of any shape.
fn array<T: npyz::Deserialize>(archive: &Path, name: &str) -> (Vec<T>, Vec<usize>) {
    let mut archive = zip::ZipArchive::new(std::fs::File::open(archive).unwrap()).unwrap();
    let array = npyz::NpyFile::new(archive.by_name(&format!("{name}.npy")).unwrap()).unwrap();
    assert_eq!(array.order(), npyz::Order::C);
    let shape = array.shape().iter().map(|&n| n as usize).collect();
    (array.into_vec().unwrap(), shape)
}

/// TensorFlow's resize, bit for bit.
#[test]
fn golden_resize() {
    for file in files("resize_tf1") {
        let (input, shape) = array::<f32>(&file, "input");
        let &[n, c, h, w] = &shape[..] else { panic!("{shape:?}") };
        let rows: Vec<f32> = (0..n * h * w * c)
            .map(|at| input[((at / (h * w * c) * c + at % c) * h + at / (w * c) % h) * w + at / c % w])
            .collect();
        let out = resize_tf1(&rows, [n, h, w, c], 299);
        // Every 13th row and column.
        let (expected, shape) = array::<f32>(&file, "output_299");
        let side = shape[2];
        for (at, expected) in expected.iter().enumerate() {
            let (image, channel) = (at / (c * side * side), at / (side * side) % c);
            let (y, x) = (at / side % side * 13, at % side * 13);
            assert_eq!(out[((image * 299 + y) * 299 + x) * c + channel], *expected, "{image} {channel} {y} {x}");
        }
    }
}

/// `unit(name, n)` of the golden README: a hash of name and index in [0, 1).
fn unit(name: &str, n: usize) -> impl Iterator<Item = f64> {
    let fnv = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    (1..=n as u64).map(move |i| {
        let mut z = fnv.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f64 / 16_777_216.0
    })
}

/// The network with the weights of the golden README's formula.
fn inception() -> Inception {
    let mut get = |name: &str, shape: &[usize]| -> Result<Vec<f32>, std::convert::Infallible> {
        let count: usize = shape.iter().product();
        let fan_in = (count / shape[0]) as f64;
        let value = |u: f64| match name {
            "fc.weight" => (2.0 * u - 1.0) * (3.0 / 2048.0_f64).sqrt(),
            _ if name.ends_with("conv.weight") => (2.0 * u - 1.0) * 3.0_f64.sqrt() * (2.0 / fan_in).sqrt(),
            _ if name.ends_with("bn.weight") => 0.8 + 0.4 * u,
            _ if name.ends_with("running_var") => 0.5 + u,
            _ => 0.2 * (u - 0.5),
        };
        Ok(unit(name, count).map(|u| value(u) as f32).collect())
    };
    let Ok(inception) = Inception::load(&mut get, Device::Cpu);
    inception
}

/// The largest difference relative to the largest value.
fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
    found.iter().zip(expected).fold(0.0_f32, |a, (x, y)| a.max((x - y).abs())) / largest
}

#[test]
fn golden_inception() {
    let files = files("inception_");
    if files.is_empty() {
        return;
    }
    let network = inception();
    for file in files {
        let (images, shape) = array::<u8>(&file, "images");
        let features = network.features(&images, shape.try_into().unwrap());
        let logits = network.logits(&features.pool);
        for (name, found) in [("pool", &features.pool), ("spatial", &features.spatial), ("logits_unbiased", &logits)] {
            let error = error(found, &array::<f32>(&file, name).0);
            println!("{} {name}: {error:.1e}", file.display());
            assert!(error < 2e-5, "{name} of {}: {error:e}", file.display());
        }
    }
}

/// Grey counts three times; rows do not depend on the batch.
#[test]
fn inception_of_grey_images_and_of_parts_of_a_batch() {
    let network = inception();
    let (images, _) = array::<u8>(&golden_dir().join("inception_32.npz"), "images");
    let grey: Vec<u8> = images.iter().step_by(3).take(2 * 32 * 32).copied().collect();
    let colour: Vec<u8> = grey.iter().flat_map(|&v| [v; 3]).collect();
    let both = network.features(&colour, [2, 32, 32, 3]);
    assert_eq!(network.features(&grey, [2, 32, 32, 1]), both);
    let second = network.features(&grey[32 * 32..], [1, 32, 32, 1]);
    assert_eq!((&second.pool[..], &second.spatial[..]), (&both.pool[2048..], &both.spatial[2023..]));
    assert_eq!(network.logits(&second.pool), network.logits(&both.pool)[1008..]);
    assert!(network.features(&[], [0, 32, 32, 3]).pool.is_empty() && network.logits(&[]).is_empty());
}

fn trace(moments: &Moments) -> f64 {
    moments.covariance().unwrap().iter().step_by(moments.width() + 1).sum()
}
