//! How fast this machine trains and samples, as a whole and kernel by kernel.

use crate::config::{Arch, Config, ConfigError, Precision};
use crate::data::Batch;
use crate::diffusion::{Diffusion, Reverse};
use crate::event::{Emit, Event};
use crate::sample::{Chain, Model, Seeded, Subjects};
use crate::train::{StepReport, Task, Trainer};
use crate::{Error, Outcome};
use ddpm_kernels::profile;
use ddpm_math::{Domain, Respacing, Stream};
use ddpm_net::network::{Network, Unet};
use ddpm_net::{Device, Engine, Parameters};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Classes of a class-conditional network whose number the data would say.
const CLASSES: usize = 10;

/// Steps whose kernels are measured, after those that are timed as a whole.
const PROFILED: usize = 3;

/// The measurements of one machine, network and precision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of the program.
    pub version: String,
    /// What was measured: a preset, or nothing.
    pub preset: Option<String>,
    /// Parameters of the network.
    pub parameters: usize,
    /// Side of the images.
    pub image_size: usize,
    /// The type of activations and matrix products.
    pub precision: Precision,
    /// Whether blocks are computed again in the backward pass.
    pub use_checkpoint: bool,
    /// Images per step.
    pub batch_size: usize,
    /// The GPU, if it was one.
    #[serde(default)]
    pub device: Option<String>,
    /// Threads that compute.
    pub threads: usize,
    /// The instruction set.
    pub isa: String,
    /// Operations per second that all threads reach from registers, for the precision; of a GPU, in large products.
    pub peak_flop_per_sec: f64,
    /// Bytes per second that all threads read and write together in copying large memory.
    #[serde(default)]
    pub peak_bytes_per_sec: f64,
    /// Training steps: everything a user pays but reading images.
    pub train: Option<Speed>,
    /// Sampling steps: one network call without gradients and its update.
    pub sample: Option<Speed>,
    /// Median of the training steps.
    pub train_images_per_sec: Option<f64>,
    /// Median of the sampling steps.
    pub sample_images_per_sec: Option<f64>,
    /// The most memory this process held: of training if that was measured, else of sampling. Of a GPU's, without driver and libraries.
    pub peak_memory_bytes: Option<u64>,
}

/// One kind of step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Each repetition.
    pub images_per_sec: Vec<f64>,
    /// Seconds of the median step.
    pub step_secs: f64,
    /// Seconds of a step while the kernels are measured, which takes some itself.
    pub profiled_step_secs: f64,
    /// Operations of one step that the plain algorithms take in convolutions, linear maps and attention.
    pub step_flop: f64,
    /// Recorded graphs and kernels beside them that a GPU starts in a step.
    #[serde(default)]
    pub started: Option<[f64; 2]>,
    /// The kernels, the slowest first.
    pub kernels: Vec<Kernel>,
}

/// A kernel's share of a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Which kernel, by which method, on which type.
    pub kernel: String,
    /// Calls in a step.
    pub calls: f64,
    /// Seconds in a step; of time in which several kernels ran side by side, its share.
    pub secs: f64,
    /// Operations per second of the plain algorithm; Winograd's does fewer. 0 where memory decides.
    pub flop_per_sec: f64,
    /// Bytes per second of operands and results; what stays in caches counts as well.
    #[serde(default)]
    pub bytes_per_sec: f64,
}

impl Speed {
    /// The median of the repetitions.
    pub fn median(&self) -> f64 {
        median(&self.images_per_sec)
    }

    /// With what a GPU had started before and after so many steps.
    fn with_started(self, from: Option<[usize; 2]>, to: Option<[usize; 2]>, steps: usize) -> Self {
        let started = from.zip(to).map(|(from, to)| [0, 1].map(|i| (to[i] - from[i]) as f64 / steps as f64));
        Self { started, ..self }
    }

    /// From the seconds of the repetitions, then those of the profiled steps.
    pub(crate) fn new(secs: &[f64], batch: usize, profiled: &[f64], kernels: Vec<profile::KernelTime>) -> Self {
        let steps = profiled.len() as f64;
        let mut speed = Self {
            images_per_sec: secs.iter().map(|s| batch as f64 / s).collect(),
            step_secs: 0.0,
            started: None,
            profiled_step_secs: profiled.iter().sum::<f64>() / steps,
            step_flop: kernels.iter().map(|k| k.flop).sum::<f64>() / steps,
            kernels: kernels
                .into_iter()
                .map(|k| Kernel {
                    flop_per_sec: k.flop / k.secs,
                    bytes_per_sec: k.bytes / k.secs,
                    calls: k.calls as f64 / steps,
                    secs: k.secs / steps,
                    kernel: k.kernel,
                })
                .collect(),
        };
        speed.step_secs = batch as f64 / speed.median();
        speed
    }
}

/// The value in the middle, or the mean of the two there; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n => f64::midpoint(sorted[n / 2], sorted[(n - 1) / 2]),
    }
}

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Network, diffusion, perturbation and optimizer; the batch size is that of training.
    pub config: &'a Config,
    /// Repetitions of each step, after one that is not counted.
    pub repeats: usize,
    /// Whether training is measured.
    pub train: bool,
    /// Whether sampling is measured.
    pub sample: bool,
}

/// Measures steps on images of noise.
///
/// # Errors
/// A configuration that cannot be used; a loss that is not finite.
pub fn run(job: Job, device: Device, stop: &AtomicBool, emit: &mut Emit) -> Result<(Outcome, Report), Error> {
    let mut config = job.config.clone();
    if config.model.class_cond && config.model.num_classes == 0 {
        config.model.num_classes = CLASSES;
    }
    config.settle(device, None);
    config.validate()?;
    if config.model.arch == Arch::Classifier {
        return Err(
            ConfigError("bench measures networks that predict noise: use --arch adm, superres or ddim".into()).into()
        );
    }
    let (needed, steps) = (1 + job.repeats + PROFILED, config.diffusion.diffusion_steps);
    if job.sample && needed > steps {
        let message = format!(
            "--repeats {} needs {needed} diffusion steps, but there are {steps}: use more --diffusion-steps or fewer \
             repeats",
            job.repeats
        );
        return Err(ConfigError(message).into());
    }
    let network = Unet::new(config.model.network(config.diffusion.variance)?);
    let count = network.parameter_count();
    let engine = Engine::new(network, device);
    let precision = config.model.precision;
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION").into(),
        parameters: count,
        image_size: config.model.image_size,
        precision,
        use_checkpoint: config.model.use_checkpoint,
        batch_size: config.train.batch_size,
        threads: rayon::current_num_threads(),
        isa: crate::instruction_set()?.into(),
        device: crate::device::describe(device),
        ..Report::default()
    };
    // Sampling first: it needs less memory, and the most that a process held is never less later.
    if job.sample {
        let Some(speed) = sampling(job, &config, &engine, stop, emit)? else {
            return Ok((Outcome::Interrupted, report));
        };
        report.sample_images_per_sec = Some(speed.median());
        report.sample = Some(speed);
    }
    if job.train {
        let Some(speed) = training(job, &config, engine, stop, emit)? else {
            return Ok((Outcome::Interrupted, report));
        };
        report.train_images_per_sec = Some(speed.median());
        report.train = Some(speed);
    }
    report.peak_memory_bytes = device.most_given().map(|bytes| bytes as u64).or_else(peak_memory_bytes);
    // It takes memory of its own.
    [report.peak_flop_per_sec, report.peak_bytes_per_sec] = device.limits(precision);
    Ok((Outcome::Finished, report))
}

fn labels(config: &Config) -> Option<Vec<u32>> {
    let classes = config.model.num_classes as u32;
    config.model.class_cond.then(|| (0..config.train.batch_size as u32).map(|i| i % classes).collect())
}

fn sampling(
    job: Job,
    config: &Config,
    network: &Engine<Unet>,
    stop: &AtomicBool,
    emit: &mut Emit,
) -> Result<Option<Speed>, Error> {
    let parameters = Parameters::initial(network.network().layout(), config.train.seed);
    let steps = (1 + job.repeats + PROFILED).to_string().parse::<Respacing>().unwrap_or_default();
    let diffusion = Diffusion::new(&config.diffusion, &steps)?;
    let settings = &config.sample;
    let size = config.model.image_size;
    let shape = [config.model.in_channels, size, size];
    let model = Model { network, parameters: &parameters, size: [size; 2] };
    let reverse = Reverse::new(settings);
    let chain = Chain { diffusion: &diffusion, network: &model, reverse: &reverse, guide: None, guidance: None, shape };
    let images: Vec<u64> = (0..config.train.batch_size as u64).collect();
    let labels = labels(config);
    let values = images.len() * shape.iter().product::<usize>();
    let low_res = network.network().config().low_res.then(|| vec![0.0; values]);
    let (mut secs, mut since) = (Vec::new(), Instant::now());
    let (device, mut started) = (network.device(), [None; 2]);
    let draws = &Seeded(config.sample.seed);
    let subjects = Subjects { images: &images, labels: labels.as_deref(), low_res: low_res.as_deref(), draws };
    let done = chain.draw(subjects, |step| {
        secs.push(since.elapsed().as_secs_f64());
        emit(Event::Measured { what: "sampling", done: (step - 1).min(job.repeats), total: job.repeats });
        if step == 1 {
            started[0] = device.started();
        }
        if step == 1 + job.repeats {
            started[1] = device.started();
            profile::start();
        }
        since = Instant::now();
        !stop.load(Ordering::Relaxed)
    });
    let kernels = profile::finish();
    Ok(done.map(|_| {
        Speed::new(&secs[1..=job.repeats], images.len(), &secs[1 + job.repeats..], kernels).with_started(
            started[0],
            started[1],
            job.repeats,
        )
    }))
}

fn training(
    job: Job,
    config: &Config,
    network: Engine<Unet>,
    stop: &AtomicBool,
    emit: &mut Emit,
) -> Result<Option<Speed>, Error> {
    let per_image = config.model.in_channels * config.model.image_size.pow(2);
    let mut images = vec![0.0; config.train.batch_size * per_image];
    Stream::new(config.train.seed, Domain::Order, 0, 0).fill_normal(&mut images);
    for v in &mut images {
        *v = v.clamp(-1.0, 1.0);
    }
    let (device, mut started) = (network.device(), [None; 2]);
    let mut trainer = Trainer::new(config.clone(), Task::Diffusion(network), None)?;
    let mut secs = Vec::new();
    let mut batch = Batch { images, labels: labels(config), position: 0 };
    for step in 0..1 + job.repeats + PROFILED {
        if step == 1 {
            started[0] = device.started();
        }
        if step == 1 + job.repeats {
            started[1] = device.started();
            profile::start();
        }
        batch.position = (step * config.train.batch_size) as u64;
        let since = Instant::now();
        let mut trained = trainer.train_step(&batch);
        // Before the first that is timed, f16 finds its loss scale.
        while step == 0 && trained.as_ref().is_ok_and(StepReport::overflowed) {
            trained = trainer.train_step(&batch);
        }
        secs.push(since.elapsed().as_secs_f64());
        if trained.is_err() || stop.load(Ordering::Relaxed) {
            profile::finish();
            return trained.map(|_| None);
        }
        emit(Event::Measured { what: "training", done: step.min(job.repeats), total: job.repeats });
    }
    let (timed, profiled) = secs[1..].split_at(job.repeats);
    let speed = Speed::new(timed, config.train.batch_size, profiled, profile::finish());
    Ok(Some(speed.with_started(started[0], started[1], job.repeats)))
}

/// Operations per second in f32 that all threads reach from registers.
pub fn peak_flop_per_sec() -> f64 {
    profile::peak_flop_per_sec(false)
}

/// Bytes per second that all threads read and write together in copying large memory.
pub fn peak_bytes_per_sec() -> f64 {
    profile::peak_bytes_per_sec()
}

/// The most memory that this process held at once, where the system says it.
fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
