//! Several lengths by what is drawn with them.

use super::Savings;
use crate::config::{Config, ConfigError, SampleConfig};
use crate::evaluate::{self, Yardstick};
use crate::event::{Emit, Event, Outcome};
use crate::file::{append, stamp, write_atomic};
use crate::plot::{Axis, COLOURS, Line, Panel, escaped, picture};
use crate::sample::random_labels;
use crate::train::Drawing;
use crate::{Error, weights};
use ddpm_net::network::Unet;
use ddpm_net::{Device, Engine};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Lengths that are tried if nobody says, as far as the saved averages give them.
const LENGTHS: [f64; 8] = [0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.25];

/// What to try.
#[derive(Clone, Debug)]
pub struct SweepJob {
    /// The run directory.
    pub run: PathBuf,
    /// Lengths; empty for those that usually matter.
    pub lengths: Vec<f64>,
    /// Steps of training; the last that were saved if not given.
    pub step: Option<u64>,
    /// The run's settings, with those of sampling, and what its evaluation compares with.
    pub config: Config,
    /// How it is evaluated.
    pub settings: evaluate::Settings,
}

/// What became of a length: a line of `sweep.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Steps of training.
    pub step: u64,
    /// σ_rel.
    pub length: f64,
    /// The share of its profile that the saved averages miss.
    pub error: f64,
    /// Images drawn.
    pub images: usize,
    /// What they were compared with.
    pub reference: String,
    /// By which feature network.
    pub features: String,
    /// The Fréchet distance.
    pub fid: f64,
    /// Differs between two lines whose distances do not compare.
    pub identity: String,
}

/// Draws images with averages of several lengths, from the same noise, and measures how far they are from real ones. What is
/// in `RUN/ema/sweep.jsonl` is not drawn again. Draws the curve into `RUN/ema/sweep.svg`.
///
/// # Errors
/// A run without such averages or one that draws no whole images, lengths that they do not give, real images that cannot be
/// used.
pub fn sweep(
    job: &SweepJob,
    device: Device,
    stop: &AtomicBool,
    emit: &mut Emit,
) -> Result<(Outcome, Vec<Point>), Error> {
    let config = &job.config;
    config.validate()?;
    config.check_timesteps()?;
    let savings = Savings::new(&job.run);
    let network = config.model.network(config.diffusion.variance)?;
    if config.model.arch == crate::config::Arch::Classifier || network.low_res {
        let message =
            format!("--sweep is for networks that draw whole images, but {} has another kind", job.run.display());
        return Err(ConfigError(message).into());
    }
    let wanted = if job.lengths.is_empty() { &LENGTHS[..] } else { &job.lengths };
    // All of them are known to be possible before the first is drawn; of the usual ones those count that are.
    let mut lengths = Vec::new();
    let (saved, step) = savings.profiles(job.step)?;
    for &length in wanted {
        match savings.check(length, Some(step)) {
            Ok(()) => lengths.push(length),
            Err(error) if !job.lengths.is_empty() => return Err(error),
            Err(_) => {}
        }
    }
    let Some(yardstick) = Yardstick::new(config, &job.settings, device, stop, emit)? else {
        return Ok((Outcome::Interrupted, Vec::new()));
    };
    let newest = saved.last().map(|(saved, _)| stamp(&saved.path)).transpose()?;
    let sampling = SampleConfig { batch_size: 0, ..config.sample.clone() };
    let all = serde_json::json!([sampling, step, yardstick.identity, newest]).to_string();
    let identity = weights::short_hash(all.as_bytes());
    let lines = savings.folder().join("sweep.jsonl");
    let earlier = std::fs::read_to_string(&lines).unwrap_or_default();
    let earlier = earlier.lines().filter_map(|line| serde_json::from_str::<Point>(line).ok());
    let mut points: Vec<Point> = earlier.filter(|point| point.identity == identity).collect();
    let engine = Engine::new(Unet::new(network), device);
    for length in lengths {
        if points.iter().any(|point| point.length == length) {
            continue;
        }
        let images = config.sample.num_samples;
        emit(Event::Begins(format!("length {length}: drawing {images} image(s)")));
        let average = savings.average(length, Some(step))?;
        let labels = |images: &[u64], classes: usize| {
            random_labels(images, &config.classes.trained(classes), config.sample.seed)
        };
        let drawing = Drawing {
            network: &engine,
            parameters: &average.parameters,
            config,
            settings: &config.sample,
            count: images,
            small: None,
            labels: &labels,
            stop,
            what: "images to evaluate",
        };
        let failed = |e: fidelity::FidelityError| Error::file(&lines, format!("length {length}: {e}"));
        let size = [config.model.image_size, config.model.in_channels];
        let Some(fid) = yardstick.distance(size, failed, |take| drawing.run(emit, take))? else {
            return Ok((Outcome::Interrupted, points));
        };
        let (reference, features, identity) = (yardstick.name.clone(), yardstick.features().into(), identity.clone());
        let point = Point { step, length, error: average.error, images, reference, features, fid, identity };
        append(&lines, &point)?;
        points.push(point);
    }
    points.sort_by(|a, b| a.length.total_cmp(&b.length));
    let svg = draw(&points, &job.run.display().to_string());
    write_atomic(&savings.folder().join("sweep.svg"), |w| w.write_all(svg.as_bytes()))?;
    Ok((Outcome::Finished, points))
}

/// The curve.
fn draw(points: &[Point], run: &str) -> String {
    let of_point = |point: &Point| [point.length, point.fid, 0.0];
    let line = Line { colour: COLOURS[0], dash: "", points: points.iter().map(of_point).collect() };
    let panel =
        Panel { title: "Fréchet distance by the length of the average".into(), axis: Axis::Zero, lines: vec![line] };
    picture(&[panel], 1, 40.0, |svg| {
        let what = points.first().map_or(String::new(), |p| format!("{run}, step {}, {} images", p.step, p.images));
        let _ = writeln!(svg, "<text x=\"12\" y=\"20\">{}</text>", escaped(&what));
    })
}
