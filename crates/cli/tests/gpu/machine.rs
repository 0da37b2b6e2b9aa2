//! A machine with a GPU, and what its results are compared by.

use super::support::{Place, Ran, names};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// A network with all that has kernels of its own: two sizes of images, attention, classes, dropout, learned variance.
pub(crate) const SMALL: &[&str] = &[
    "--num-channels",
    "32",
    "--num-head-channels",
    "32",
    "--num-res-blocks",
    "1",
    "--channel-mult",
    "1,1",
    "--attention-resolutions",
    "4",
    "--class-cond",
    "true",
    "--dropout",
    "0.1",
    "--variance",
    "learned-range",
    "--batch-size",
    "4",
    "--lr",
    "1e-3",
    "--lr-warmup-steps",
    "0",
    "--diffusion-steps",
    "10",
    "--noise-schedule",
    "cosine",
    "--grid-images",
    "0",
    "--log-interval",
    "1",
    "--posthoc-ema",
    "0.05,0.1",
    "--posthoc-ema-interval",
    "2",
    "--set",
    "sample.timestep_respacing=",
    "--quiet",
];

/// The folder of the libraries, which are built once.
pub(crate) fn libraries() -> &'static str {
    const FOLDER: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/cuda-on-cpu");
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        std::fs::create_dir_all(FOLDER).unwrap();
        let lock = std::fs::File::create(Path::new(FOLDER).join(".lock")).unwrap();
        lock.lock().unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../cuda/tests/emulator/build.sh");
        let built = Command::new("sh").args([script, FOLDER]).output().unwrap();
        let message = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "building the libraries needs g++ (Debian's build-essential): {message}");
    });
    FOLDER
}

/// A call on the first GPU.
pub(crate) fn on_gpu(place: &Place, args: &[&str]) -> Ran {
    on_gpu_with(place, &[], args)
}

/// A call on the first GPU with more environment variables.
pub(crate) fn on_gpu_with(place: &Place, variables: &[(&str, &str)], args: &[&str]) -> Ran {
    let machine = [("LD_LIBRARY_PATH", libraries())];
    place.run_with(&[&machine, variables].concat(), &[args, &["--device", "cuda:0"]].concat())
}

/// A call on the processor.
pub(crate) fn on_cpu(place: &Place, args: &[&str]) -> Ran {
    place.run(&[args, &["--device", "cpu"]].concat())
}

/// `train` on the small network, into a folder.
pub(crate) fn small<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--out", out], SMALL, more].concat()
}

/// The lines of a run's statistics.
pub(crate) fn statistics(place: &Place, run: &str) -> Vec<Value> {
    place.read(&format!("{run}/stats.jsonl")).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Compares two reports: numbers may be off by a part of their size, all else is the same. Speed is no result.
#[track_caller]
pub(crate) fn assert_near(found: &Value, expected: &Value, tolerance: f64) {
    fn off(found: &Value, expected: &Value, tolerance: f64, at: &str, all: &mut Vec<String>) {
        match (found, expected) {
            (Value::Object(a), Value::Object(b)) if a.len() == b.len() => {
                for (key, value) in b.iter().filter(|(key, _)| *key != "images_per_sec") {
                    off(&a[key], value, tolerance, &format!("{at}.{key}"), all);
                }
            }
            (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
                a.iter().zip(b).for_each(|(a, b)| off(a, b, tolerance, at, all));
            }
            (Value::Number(a), Value::Number(b)) => {
                let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
                // What is nothing but rounding is as far off as it is large.
                if (a - b).abs() > tolerance * b.abs().max(1e-3) {
                    all.push(format!("{at}: {a} for {b}"));
                }
            }
            _ if found == expected => {}
            _ => all.push(format!("{at}: {found} for {expected}")),
        }
    }
    let mut all = Vec::new();
    off(found, expected, tolerance, "", &mut all);
    assert!(all.is_empty(), "{all:#?}");
}

/// The tensors of each file of a checkpoint as bytes, without what is said of them (when, on what).
pub(crate) fn tensors(checkpoint: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |name: String| {
        let mut bytes = std::fs::read(checkpoint.join(&name)).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes.drain(..8 + header);
        assert!(bytes.len() > 1000, "{name} has tensors");
        (name, bytes)
    };
    names(checkpoint).into_iter().map(read).collect()
}

/// Whether two checkpoints have the same bits.
#[track_caller]
pub(crate) fn assert_same(a: &Path, b: &Path) {
    for ((name, a), (_, b)) in tensors(a).into_iter().zip(tensors(b)) {
        let differ = a.iter().zip(&b).filter(|(a, b)| a != b).count();
        assert!(a == b, "{differ} of {} bytes of {name} differ", a.len());
    }
}
