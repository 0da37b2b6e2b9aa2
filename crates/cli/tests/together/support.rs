//! What the tests of several processes share.

use ddpm_ip::npz::Npz;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The smallest network; six microbatches a step.
pub(super) const TRAIN: &str = "train --num-channels 32 --channel-mult 1 --attention-resolutions= --class-cond false --batch-size 24 \
                     --microbatch 4 --diffusion-steps 10 --noise-schedule cosine --schedule-sampler loss-second-moment \
                     --set sample.timestep_respacing= --grid-images 4 --log-interval 1 --out run";

pub(super) const PROGRAM: &str = env!("CARGO_BIN_EXE_ddpm-ip");

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a run has made, without clocks: by name.
fn made(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut open = vec![run.to_path_buf()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("safetensors") => {
                let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
                bytes.drain(..8 + header);
            }
            Some("npz") => {
                let mut npz = Npz::open(&path).unwrap();
                bytes = match npz.bytes("arr_0") {
                    Ok(images) => images.values,
                    Err(_) => npz.floats("arr_0").unwrap().values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                };
            }
            Some("csv") => {
                let steady = |line: &str| line.split(',').take(3).collect::<Vec<_>>().join(",");
                bytes = text(&bytes).lines().map(steady).collect::<Vec<_>>().join("\n").into_bytes();
            }
            Some("png") => {}
            _ => continue,
        }
        all.insert(path.strip_prefix(run).unwrap().to_path_buf(), bytes);
    }
    assert!(all.len() > 2);
    all
}

#[track_caller]
pub(super) fn assert_same(a: &Path, b: &Path) {
    let [a, b] = [a, b].map(made);
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in &a {
        assert!(b[name] == *bytes, "{} differs", name.display());
    }
}

pub(super) fn signal(name: &str, pid: u32) {
    Command::new("kill").args([name, &pid.to_string()]).status().unwrap();
}

/// Waits until something is so.
pub(super) fn wait_until(mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_mins(1), "nothing came of it in a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}
