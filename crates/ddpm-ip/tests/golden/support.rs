//! The folder of cases, their weights, and comparisons.

use ddpm_ip::net::network::{Classifier, ClassifierNetwork, Family, Heads, Network, NetworkConfig, Pool, Unet};
use ddpm_ip::net::{Device, Engine, Parameters, Precision, Spec};
use ddpm_ip::npz::Npz;
use ddpm_kernels::HeadOrder;
use serde_json::Value;
use std::path::PathBuf;

/// The folder of cases.
pub(crate) fn folder() -> PathBuf {
    match std::env::var_os("GOLDEN_DIR") {
        Some(folder) => folder.into(),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden"),
    }
}

pub(crate) fn json(file: &str) -> Value {
    let path = folder().join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// The cases of a section.
pub(crate) fn cases(section: &str) -> Vec<Value> {
    let cases = json("index.json")[section].as_array().cloned().unwrap_or_default();
    let own = std::env::var_os("GOLDEN_DIR").is_none();
    assert!(!own || !cases.is_empty(), "the repository's index has no {section}");
    cases
}

pub(crate) fn open(case: &Value, key: &str) -> Npz {
    Npz::open(&folder().join(case[key].as_str().unwrap())).unwrap()
}

/// `unit(name, n)` of the golden README: a hash of name and index in [0, 1).
fn unit(name: &str, n: usize) -> Vec<f64> {
    let fnv = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    (1..=n as u64)
        .map(|i| {
            let mut z = fnv.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f64 / 16_777_216.0
        })
        .collect()
}

/// The weights that the formula gives a network.
pub(crate) fn weights(specs: &[Spec], salt: &str) -> Vec<Vec<f32>> {
    let one = |spec: &Spec| -> Vec<f32> {
        let u = unit(&format!("{salt}/{}", spec.name), spec.len());
        if spec.shape.len() == 1 {
            let centre = if spec.name.ends_with("weight") { 1.0 } else { 0.0 };
            return u.into_iter().map(|u| (centre + 0.4 * (u - 0.5)) as f32).collect();
        }
        let fan_in = (spec.len() / spec.shape[0]) as f64;
        u.into_iter().map(|u| ((2.0 * u - 1.0) * (3.0 / fan_in).sqrt()) as f32).collect()
    };
    specs.iter().map(one).collect()
}

/// The constructor arguments of the index's network of that salt.
fn arguments(salt: &str) -> Option<Value> {
    let entry = cases("networks").into_iter().find(|n| n["salt"] == salt)?;
    Some(json(entry["config"].as_str()?))
}

/// What those arguments describe.
fn network_config(json: &Value) -> NetworkConfig {
    let number = |key: &str, default: i64| json[key].as_i64().unwrap_or(default);
    let flag = |key: &str, default: bool| json[key].as_bool().unwrap_or(default);
    let list = |key: &str| -> Option<Vec<f64>> { json[key].as_array()?.iter().map(Value::as_f64).collect() };
    let base = number("model_channels", 0);
    let heads = |count: i64| match number("num_head_channels", -1) {
        -1 => Heads::Count(count as usize),
        per_head => Heads::Channels(per_head as usize),
    };
    let count = number("num_heads", 1);
    let upsample = number("num_heads_upsample", -1);
    NetworkConfig {
        family: Family::Adm,
        low_res: json["class"] == "SuperResModel",
        precision: Precision::F32,
        use_checkpoint: false,
        in_channels: number("in_channels", 3) as usize,
        out_channels: number("out_channels", 3) as usize,
        model_channels: base as usize,
        level_channels: list("channel_mult")
            .unwrap_or(vec![1.0, 2.0, 4.0, 8.0])
            .into_iter()
            .map(|m| (m * base as f64) as usize)
            .collect(),
        num_res_blocks: number("num_res_blocks", 2) as usize,
        attention_factors: list("attention_resolutions").unwrap_or_default().into_iter().map(|f| f as usize).collect(),
        heads: heads(count),
        heads_up: heads(if upsample == -1 { count } else { upsample }),
        head_order: if flag("use_new_attention_order", false) { HeadOrder::QkvFirst } else { HeadOrder::HeadsFirst },
        dropout: 0.0,
        num_classes: json["num_classes"].as_u64().map(|n| n as usize),
        scale_shift_norm: flag("use_scale_shift_norm", false),
        resblock_updown: flag("resblock_updown", false),
        conv_resample: flag("conv_resample", true),
    }
}

/// The network of the index's entry of that salt, unless it is a classifier.
pub(crate) fn network(salt: &str) -> Option<Unet> {
    let json = arguments(salt)?;
    if json["class"] == "EncoderUNetModel" {
        return None;
    }
    let network = Unet::new(network_config(&json));
    assert_eq!(Some(network.parameter_count() as u64), json["parameters"].as_u64(), "{salt}");
    Some(network)
}

/// The classifier of the index's entry of that salt, if it is one.
pub(crate) fn classifier(salt: &str) -> Option<Classifier> {
    let json = arguments(salt)?;
    if json["class"] != "EncoderUNetModel" {
        return None;
    }
    let network = network_config(&json);
    let bottom_size = json["image_size"].as_u64().unwrap() as usize >> (network.level_channels.len() - 1);
    let pool: Pool = serde_json::from_value(json["pool"].clone()).unwrap();
    let classifier = Classifier::new(ClassifierNetwork { network, pool, bottom_size });
    assert_eq!(Some(classifier.parameter_count() as u64), json["parameters"].as_u64(), "{salt}");
    Some(classifier)
}

/// A network with its formula weights.
pub(crate) fn weighted(salt: &str) -> Option<(Engine<Unet>, Parameters)> {
    let network = network(salt)?;
    let parameters = Parameters::from_values(network.layout(), &weights(network.specs(), salt));
    Some((Engine::new(network, Device::Cpu), parameters))
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
}

/// ‖actual − expected‖ ≤ tolerance·‖expected‖.
pub(crate) fn assert_near(what: &str, actual: &[f32], expected: &[f32], tolerance: f64) {
    assert_near_or_below(what, actual, expected, tolerance, 0.0);
}

/// ‖actual − expected‖ ≤ tolerance·‖expected‖ + floor.
pub(crate) fn assert_near_or_below(what: &str, actual: &[f32], expected: &[f32], tolerance: f64, floor: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}: number of values");
    let difference: Vec<f32> = actual.iter().zip(expected).map(|(a, e)| a - e).collect();
    let (off, size) = (norm(&difference), norm(expected));
    assert!(off <= tolerance * size + floor, "{what}: off by {off:e} of {size:e}, {:e} relative", off / size);
}

/// Every |actual − expected| ≤ tolerance.
pub(crate) fn assert_close(what: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(actual.len(), expected.len(), "{what}: number of values");
    let worst = actual.iter().zip(expected).map(|(a, e)| (a - e).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: off by up to {worst:e}");
}

/// |actual − expected| ≤ tolerance·|expected|.
pub(crate) fn assert_relative(what: &str, actual: f64, expected: f64, tolerance: f64) {
    assert!(
        (actual - expected).abs() <= tolerance * expected.abs(),
        "{what}: {actual:e}, the reference has {expected:e}"
    );
}
