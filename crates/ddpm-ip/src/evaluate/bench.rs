//! How fast this machine compares images.

use crate::bench::Speed;
use crate::event::{Emit, Event};
use crate::{Error, Outcome};
use ddpm_kernels::profile;
use ddpm_math::{Domain, Stream};
use ddpm_net::Device;
use fidelity::{Features, FidelityError, Gaussian, Inception, Moments, frechet_distance, precision_recall};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Rows of each side of precision and recall.
const ROWS: usize = 10_000;

/// Neighbours in precision and recall.
const NEIGHBOURS: usize = 3;

/// Side of the images that are resized for Inception.
const IMAGE_SIZE: usize = 32;

/// The measurements of one machine. The network has random weights, which take as long as others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// Version of the program.
    pub version: String,
    /// Images that go through the network together.
    pub batch_size: usize,
    /// Threads that compute.
    pub threads: usize,
    /// The instruction set.
    pub isa: String,
    /// FID-Inception on 32x32 images: resize and network.
    pub inception: Speed,
    /// Seconds of Fréchet distances of 2048 columns.
    pub frechet_secs: Vec<f64>,
    /// Seconds of precision and recall of 10 000 rows of 2048 columns against as many.
    pub precision_recall_secs: Vec<f64>,
}

/// Measures, after one repetition that is not counted.
///
/// # Errors
/// None but what the metrics say of numbers that they do not get.
pub fn bench(
    repeats: usize,
    batch_size: usize,
    device: Device,
    stop: &AtomicBool,
    emit: &mut Emit,
) -> Result<(Outcome, Option<BenchReport>), Error> {
    let failed = |e: FidelityError| Error::file(Path::new("bench"), e.to_string());
    let mut timed = |what: &'static str, work: &mut dyn FnMut() -> Result<(), FidelityError>| {
        let mut secs = Vec::new();
        for done in 0..=repeats {
            let since = Instant::now();
            work().map_err(failed)?;
            secs.push(since.elapsed().as_secs_f64());
            emit(Event::Measured { what, done, total: repeats });
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
        }
        Ok::<_, Error>(Some(secs.split_off(1)))
    };

    let network = random_inception(device);
    let images: Vec<u8> =
        normals(0, batch_size * IMAGE_SIZE * IMAGE_SIZE * 3).iter().map(|v| (128.0 + 40.0 * v) as u8).collect();
    let mut features = || {
        network.features(&images, [batch_size, IMAGE_SIZE, IMAGE_SIZE, 3]);
        Ok(())
    };
    let Some(secs) = timed("Inception", &mut features)? else { return Ok((Outcome::Interrupted, None)) };
    profile::start();
    let since = Instant::now();
    let _ = features();
    let profiled = since.elapsed().as_secs_f64();
    let inception = Speed::new(&secs, batch_size, &[profiled], profile::finish());

    let sides = [1, 2].map(|side| normals(side, ROWS * Inception::WIDTH));
    let (a, b) = (gaussian(&sides[0]).map_err(failed)?, gaussian(&sides[1]).map_err(failed)?);
    let Some(frechet_secs) = timed("Fréchet distance", &mut || frechet_distance(&a, &b).map(|_| ()))? else {
        return Ok((Outcome::Interrupted, None));
    };

    let shape = [ROWS, Inception::WIDTH];
    let (a, b) = (Features::new(&sides[0], shape).map_err(failed)?, Features::new(&sides[1], shape).map_err(failed)?);
    let mut neighbours = || precision_recall(a, b, NEIGHBOURS).map(|_| ());
    let Some(precision_recall_secs) = timed("precision and recall", &mut neighbours)? else {
        return Ok((Outcome::Interrupted, None));
    };
    let report = BenchReport {
        version: env!("CARGO_PKG_VERSION").into(),
        batch_size,
        threads: rayon::current_num_threads(),
        isa: crate::instruction_set()?.into(),
        inception,
        frechet_secs,
        precision_recall_secs,
    };
    Ok((Outcome::Finished, Some(report)))
}

fn normals(seed: u64, count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    let rows = values.par_chunks_mut(Inception::WIDTH).enumerate();
    rows.for_each(|(i, row)| Stream::new(seed, Domain::Order, i as u64, 0).fill_normal(row));
    values
}

fn gaussian(rows: &[f32]) -> Result<Gaussian, FidelityError> {
    let mut moments = Moments::new(Inception::WIDTH);
    moments.push(rows, [rows.len() / Inception::WIDTH, Inception::WIDTH])?;
    moments.gaussian()
}

/// FID-Inception with weights that keep values near 1.
fn random_inception(device: Device) -> Inception {
    let mut place = 10;
    let mut get = |_: &str, shape: &[usize]| -> Result<Vec<f32>, std::convert::Infallible> {
        place += 1;
        let count: usize = shape.iter().product();
        if shape.len() == 1 {
            return Ok(vec![1.0; count]);
        }
        let scale = (2.0 * shape[0] as f32 / count as f32).sqrt();
        Ok(normals(place, count).iter().map(|v| v * scale).collect())
    };
    let Ok(network) = Inception::load(&mut get, device);
    network
}
