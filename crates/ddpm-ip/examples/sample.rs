//! Draws images into memory, and writes a picture of them:
//!
//! ```text
//! cargo run --release --example sample -p ddpm-ip CHECKPOINT [GRID.png]
//! ```
//!
//! The checkpoint is a run directory, or any file that `ddpm-ip sample` takes.

use ddpm_ip::checkpoint::{Loaded, settings_of};
use ddpm_ip::config::Layers;
use ddpm_ip::data::contact_sheet;
use ddpm_ip::sample::{Order, draw};
use ddpm_ip::{Device, Event};
use std::error::Error;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let checkpoint = PathBuf::from(words.next().ok_or("name a checkpoint, such as runs/example")?);
    let grid = words.next().unwrap_or_else(|| "grid.png".into());

    // What the file tells of itself, and how it is to be sampled.
    let (own, remark) = settings_of(&checkpoint, "", 64)?;
    if let Some(remark) = remark {
        println!("{remark}");
    }
    let mut layers = Layers::default();
    layers.add(own)?;
    layers.set([("num_samples", "40"), ("sampler", "unipc"), ("sample.timestep_respacing", "20")])?;
    let network = Loaded::open(&checkpoint, &layers.resolve()?, Device::Cpu)?;

    // Loaded once, it can be drawn from any number of times, with other settings and orders.
    let order = Order { classes: network.classes().map(|n| (0..n as u32).collect()), ..Order::default() };
    let stop = AtomicBool::new(false);
    let drawn = draw(&network, &network.config, &order, &stop, &mut |event| {
        if let Event::Sampled { done } = event {
            println!("{done} images");
        }
    })?;
    let drawn = drawn.ok_or("stopped")?;
    let [count, _, size, channels] = drawn.shape;
    contact_sheet(&drawn.images, count, size, channels).save(grid.as_ref())?;
    println!("{grid}");
    Ok(())
}
