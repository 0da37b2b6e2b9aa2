//! FID-Inception's weights from files.

use super::support::*;
use crate::support::cpu;
use ddpm_ip::evaluate::{Choice, FeatureNetwork};
use ddpm_ip::torch::write_state_dict;
use fidelity::Inception;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use std::path::Path;

/// Names, shapes and values that keep features of a moderate size.
fn parameters() -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut all = Vec::new();
    let mut get = |name: &str, shape: &[usize]| -> Result<Vec<f32>, std::convert::Infallible> {
        let count: usize = shape.iter().product();
        let scale = if shape.len() == 1 { 1.0 } else { (6.0 * shape[0] as f32 / count as f32).sqrt() };
        let place = all.len();
        let value = |i: usize| match shape.len() {
            1 => 1.0 + (i % 7) as f32 / 50.0,
            _ => scale * (((i * 7919 + place * 31) % 1009) as f32 / 504.5 - 1.0),
        };
        let values: Vec<f32> = (0..count).map(value).collect();
        all.push((name.to_string(), shape.to_vec(), values.clone()));
        Ok(values)
    };
    let Ok(_) = Inception::load(&mut get, cpu());
    // What the files hold beside it, and nobody reads.
    all.push(("fc.bias".into(), vec![1008], vec![0.5; 1008]));
    all
}

fn features(path: &Path) -> (String, Vec<f32>) {
    let network = FeatureNetwork::open(&Choice::Inception(Some(path.into())), Path::new(""), cpu()).unwrap();
    let image: Vec<u8> = (0..32 * 32 * 3).map(|i| (i * 37 % 256) as u8).collect();
    let rows = network.features(&image, [1, 32, 32, 3]).unwrap();
    assert_eq!((rows.features.len(), rows.spatial.len()), (2048, 2023));
    (network.name().into(), rows.features)
}

/// Writes them as safetensors.
pub(super) fn write_safetensors(path: &Path) {
    let all = parameters();
    let bytes: Vec<Vec<u8>> = all.iter().map(|(.., v)| v.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = all
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    serialize_to_file(views.collect::<Vec<_>>(), None, path).unwrap();
}

#[test]
fn either_kind_of_file_gives_the_same_network() {
    let (place, all) = (Place::new(), parameters());
    let (pth, safe) = (place.path("weights.pth"), place.path("weights.safetensors"));
    let entries: Vec<_> = all.iter().map(|(name, shape, _)| (name.clone(), shape.clone())).collect();
    let mut file = std::io::BufWriter::new(std::fs::File::create(&pth).unwrap());
    write_state_dict(&mut file, &entries, |i| all[i].2.clone()).unwrap();
    drop(file);
    write_safetensors(&safe);
    let [(of_pth, a), (of_safe, b)] = [&pth, &safe].map(|path| features(path));
    assert!(a == b && a.iter().any(|v| *v > 0.0));
    // Other weights than the published ones are another network.
    assert!(of_pth.starts_with("inception-") && of_safe.starts_with("inception-") && of_pth != of_safe);
    assert!(of_pth != ddpm_ip::evaluate::FID_INCEPTION);
}
