//! A tiny run on the embedded digits.

use ddpm_ip::config::{Config, Layers};
use ddpm_ip::{Device, Error, Event, Outcome, sample, train};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// One level of 32 channels, 20 diffusion steps, batches of 4 digits; a checkpoint at the end alone.
pub(crate) fn tiny() -> Config {
    with(&[])
}

/// The tiny run with other settings.
pub(crate) fn with(settings: &[(&str, &str)]) -> Config {
    let mut layers = Layers::default();
    layers
        .add(
            r#"
            [model]
            image_size = 8
            in_channels = 1
            num_channels = 32
            num_res_blocks = 1
            channel_mult = [1]
            attention_resolutions = []
            [diffusion]
            diffusion_steps = 20
            noise_schedule = "cosine"
            [data]
            data_dir = "digits"
            random_flip = false
            [train]
            steps = 4
            batch_size = 4
            lr = 1e-3
            ema_rate = [0.9, 0.99]
            save_interval = 0
            grid_images = 0
            [sample]
            num_samples = 5
            batch_size = 2
            "#
            .parse()
            .unwrap(),
        )
        .unwrap();
    layers.set(settings.iter().copied()).unwrap();
    let mut config = layers.resolve().unwrap();
    config.settle(cpu(), None);
    config
}

pub(crate) fn cpu() -> Device {
    Device::Cpu
}

/// Trains and returns how it ended and what was said.
pub(crate) fn train(config: &Config, dir: &Path) -> (Result<Outcome, Error>, Vec<Event>) {
    let mut events = Vec::new();
    let outcome = train::train(config, dir, cpu(), vec![], &AtomicBool::new(false), &mut |e| events.push(e));
    (outcome, events)
}

/// Samples of a checkpoint, with nothing beside its settings.
pub(crate) fn job(checkpoint: &Path, config: &Config, out: &Path) -> sample::Job {
    sample::Job {
        checkpoint: checkpoint.to_path_buf(),
        config: config.clone(),
        out: Some(out.to_path_buf()),
        grid: None,
        order: sample::Order::default(),
        overwrite: true,
    }
}

/// The remarks among events.
pub(crate) fn remarks(events: &[Event]) -> Vec<&str> {
    let text = |event| {
        if let &(Event::Notice(ref text) | Event::Warning(ref text)) = event { Some(text.as_str()) } else { None }
    };
    events.iter().filter_map(text).collect()
}

/// Trains to the end; returns the newest checkpoint's folder.
pub(crate) fn trained(config: &Config, dir: &Path) -> PathBuf {
    let (outcome, _) = train(config, dir);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    ddpm_ip::checkpoint::Store::new(dir).newest().unwrap().unwrap().1
}

/// Every tensor of a checkpoint folder, by file and name; the files' texts (settings, times) are left out.
pub(crate) fn tensors(checkpoint: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(checkpoint).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        all.extend(file.iter().map(|(tensor, view)| (format!("{name}/{tensor}"), view.data().to_vec())));
    }
    all.sort();
    assert!(!all.is_empty());
    all
}

/// Asserts that two checkpoints hold the same bits.
pub(crate) fn assert_same(a: &Path, b: &Path) {
    for ((name, x), (other, y)) in tensors(a).iter().zip(&tensors(b)) {
        assert_eq!(name, other);
        assert!(x == y, "{name} differs");
    }
    assert_eq!(tensors(a).len(), tensors(b).len());
}

/// The message of an error, which must contain all of `parts`.
pub(crate) fn assert_says<T>(result: Result<T, Error>, parts: &[&str]) {
    let Err(error) = result else { panic!("no error; expected one that says {parts:?}") };
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}
