//! Trains on the embedded digits, as `ddpm-ip train` does:
//!
//! ```text
//! cargo run --release --example train -p ddpm-ip [RUN] [STEPS]
//! ```
//!
//! The run directory is the program's, and so are its bits; the same call again goes on.

use ddpm_ip::config::{Layers, Preset};
use ddpm_ip::{Device, Event, train};
use std::error::Error;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let run = PathBuf::from(words.next().unwrap_or_else(|| "runs/example".into()));
    let steps = words.next().unwrap_or_else(|| "300".into());

    // Later layers win.
    let mut layers = Layers::default();
    layers.add(Preset::find("digits")?.table())?;
    layers.set([("steps", steps.as_str()), ("gamma", "0.1"), ("perturbation.mode", "equivalent")])?;
    let config = layers.resolve()?;

    // Whoever sets it stops the training, which saves first.
    let stop = AtomicBool::new(false);
    let outcome = train::train(&config, &run, Device::Cpu, Vec::new(), &stop, &mut |event| match event {
        Event::Log(line) => {
            let value = |key: &str| line.iter().find(|(name, _)| name == key).map_or(f64::NAN, |(_, value)| *value);
            println!("step {:5}  loss {:.4}", value("step"), value("loss"));
        }
        Event::Grid { path, .. } => println!("samples: {}", path.display()),
        Event::Warning(text) => eprintln!("{text}"),
        _ => {}
    })?;
    println!("{outcome:?}: {}", run.display());
    Ok(())
}
