//! Checkpoints on the instruments, and the files that come of it.

use super::curve::number;
use super::scale::{find_scale, largest_gap, sampled_norms};
use super::{LEAST_IMAGES, Readings, Subject, picture, words};
use crate::checkpoint::Loaded;
use crate::config::{Arch, Config, ConfigError, SampleConfig};
use crate::data::Dataset;
use crate::diffusion::{Diffusion, Reverse, to_u8};
use crate::evaluate::{Choice, FeatureNetwork, Sum};
use crate::event::{Emit, Event, Outcome};
use crate::file::{check_folder, create_folder, write_atomic};
use crate::nll::labels_of;
use crate::npz::NpzWriter;
use crate::sample::{Chain, Seeded, Subjects, random_labels};
use crate::train::open_data_of_network;
use crate::{Error, weights};
use ddpm_math::{Domain, philox::permutation};
use ddpm_net::{Device, Parameters};
use fidelity::{Gaussian, frechet_distance};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The most images of the data over which the variance of pixels is taken.
const DATA_IMAGES: usize = 10_000;

/// The most images with which a scale of ε is looked for.
const SCALE_IMAGES: usize = 256;

/// What to measure, and where to write.
#[derive(Clone, Debug)]
pub struct Job {
    /// Parameter files, checkpoint folders or run directories, each with its network, process and, under `sample`, how it is
    /// sampled, the number of images, their batches and the seed.
    pub checkpoints: Vec<(PathBuf, Config)>,
    /// The folder for `bias.json`, `bias.npz` and `bias.svg`.
    pub out: PathBuf,
    /// Steps of the short chains: 2 if nothing is said, or 1 in chains of 2.
    pub short: Option<usize>,
    /// The feature network and the folder of weights, where Fréchet distances by start step are wanted.
    pub features: Option<(Option<Choice>, PathBuf)>,
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Of this file's form.
    pub version: u32,
    /// Images that each network was measured on.
    pub images: usize,
    /// Of all noise and of the choice of images.
    pub seed: u64,
    /// Each checkpoint's.
    pub checkpoints: Vec<Entry>,
}

/// What was measured of one checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// As it was named.
    pub name: String,
    /// Its parameters' SHA-256.
    pub parameters: String,
    /// The sampler's name.
    pub sampler: String,
    /// Corrections, as they are written.
    pub correct: String,
    /// Process and sampler, by which `es-auto` knows them again.
    pub process: String,
    /// The instruments.
    pub readings: Readings,
    /// Rules of thumb that follow.
    pub suggestions: Suggestions,
}

/// Rules of thumb, no more: nobody has shown that they hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Suggestions {
    /// γ for training: half the mean of ν_t over the levels.
    #[serde(deserialize_with = "number")]
    pub gamma_from_prediction_error: f64,
    /// γ for training: √mean(max(0, excess of the variance)/(1 − ᾱ)) over the levels.
    #[serde(deserialize_with = "number")]
    pub gamma_from_variance: f64,
    /// The λ of `es` that `es-auto` finds.
    pub es_auto: EsAuto,
}

/// A scale of ε.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EsAuto {
    /// λ, if there is one.
    pub scale: Option<f64>,
    /// The largest |log(sampled norm / training norm)| over the levels on fresh seeds: without and with it.
    pub largest_gap: Option<[f64; 2]>,
    /// Whether it halves that gap, so that it may be of use.
    pub kept: bool,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Report {
    /// Reads a `bias.json`.
    ///
    /// # Errors
    /// A file that cannot be read, or that `bias` did not write.
    pub fn read(file: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(file).map_err(Error::io("read", file))?;
        serde_json::from_str(&text)
            .map_err(|e| Error::file(file, format!("is not a bias.json that `ddpm-ip bias` wrote: {e}")))
    }
}

/// What tells parameters from others.
fn hash(parameters: &Parameters) -> String {
    weights::hex(&Sha256::digest(bytemuck::cast_slice::<f32, u8>(parameters.values())))
}

/// Process and sampler as text: two are the same if and only if the networks meet the same noise levels by the same rule.
fn process(config: &Config) -> String {
    let sample = SampleConfig {
        num_samples: 1,
        batch_size: 1,
        seed: 0,
        classifier_scale: 0.0,
        correct: ddpm_math::Corrections::default(),
        ..config.sample.clone()
    };
    serde_json::json!([config.diffusion, sample]).to_string()
}

/// The λ that `es-auto:FILE` stands for, found with the first images of a job, of classes `labels` if there are any.
///
/// # Errors
/// A file of another checkpoint, schedule, number of steps or sampler; no such λ. Nothing if the work was stopped.
pub(crate) fn resolve_auto(
    file: &Path,
    config: &Config,
    parameters: &Parameters,
    chain: &Chain,
    labels: Option<&[u32]>,
    stop: &AtomicBool,
) -> Result<Option<f64>, Error> {
    let saved = Report::read(file)?;
    let own = hash(parameters);
    let of_network: Vec<&Entry> = saved.checkpoints.iter().filter(|entry| entry.parameters == own).collect();
    if of_network.is_empty() {
        let message = "was measured on other parameters than this checkpoint's: run `ddpm-ip bias` on it";
        return Err(Error::file(file, message));
    }
    let wanted = process(config);
    let Some(entry) = of_network.iter().find(|entry| entry.process == wanted) else {
        let message = "was measured with another schedule, number of steps or sampler: run `ddpm-ip bias` with the \
                       settings that you sample with";
        return Err(Error::file(file, message));
    };
    let training = &entry.readings.norm_training.value;
    if training.len() != chain.diffusion.schedule.len() {
        return Err(Error::file(file, "is damaged: it does not have one norm for each step"));
    }
    let images: Vec<u64> = (0..SCALE_IMAGES.min(config.sample.num_samples) as u64).collect();
    let draws = Seeded(config.sample.seed);
    let subjects = subjects(&images, labels, config.sample.batch_size, &draws);
    match find_scale(chain, &subjects, training, &mut || !stop.load(Ordering::Relaxed)) {
        Ok(scale) => Ok(Some(scale)),
        Err(super::ScaleError::Stopped) => Ok(None),
        Err(error) => Err(ConfigError(format!("es-auto: {error}")).into()),
    }
}

fn subjects<'a>(images: &'a [u64], labels: Option<&'a [u32]>, batch: usize, draws: &'a Seeded) -> Vec<Subjects<'a>> {
    let of = |(k, images): (usize, &'a [u64])| {
        let labels = labels.map(|labels| &labels[k * batch..k * batch + images.len()]);
        Subjects { images, labels, low_res: None, draws }
    };
    images.chunks(batch).enumerate().map(of).collect()
}

/// Measures all checkpoints and writes `bias.json`, `bias.npz` and `bias.svg`.
///
/// # Errors
/// Settings that do not fit, too few images, failing reads or writes. Nothing is written before all is measured.
pub fn run(job: &Job, device: Device, stop: &AtomicBool, emit: &mut Emit) -> Result<(Outcome, Option<Report>), Error> {
    let Some((_, first)) = job.checkpoints.first() else {
        return Err(ConfigError("no --checkpoint to measure".into()).into());
    };
    let sizes = |c: &Config| (c.model.image_size, c.model.in_channels);
    for (path, config) in &job.checkpoints {
        config.validate()?;
        if !matches!(config.model.arch, Arch::Adm | Arch::Ddim) {
            return Err(ConfigError(format!("{}: bias is for networks that draw whole images", path.display())).into());
        }
        if sizes(config) != sizes(first) {
            let message = format!(
                "{}: draws images of another size or number of channels than the first checkpoint",
                path.display()
            );
            return Err(ConfigError(message).into());
        }
        if config.sample.correct.auto().is_some() {
            let message =
                "es-auto needs the results of `bias`: use it with `sample`, or measure with the es:λ that it found";
            return Err(ConfigError(message.into()).into());
        }
        let steps = Diffusion::for_sampling(&config.diffusion, &config.sample)?.schedule.len();
        if let Some(short) = job.short.filter(|&short| short == 0 || short >= steps.max(2)) {
            let message = format!("--short-chains {short}: give 1 to {} steps", steps.max(2) - 1);
            return Err(ConfigError(message).into());
        }
    }
    let dataset = open_data_of_network(first)?;
    let wanted = first.sample.num_samples;
    if wanted.min(dataset.len()) < LEAST_IMAGES {
        let message = format!(
            "{} image(s) are too few: the test of normality needs at least {LEAST_IMAGES} (--num-samples, \
             --data-dir)",
            wanted.min(dataset.len())
        );
        return Err(ConfigError(message).into());
    }
    if wanted > dataset.len() {
        let (name, there) = (&first.data.data_dir, dataset.len());
        let message = format!("--num-samples is {wanted}, but {name} has {there} images: use at most {there}");
        return Err(ConfigError(message).into());
    }
    check_folder("--out", &job.out, "name a folder")?;
    let report = job.out.join("bias.json");
    if report.exists() {
        let message = format!("{} exists already: choose another --out, or remove it", report.display());
        return Err(ConfigError(message).into());
    }
    emit(Event::Begins(format!("measuring {} checkpoint(s) on {wanted} images", job.checkpoints.len())));
    create_folder(&job.out)?;
    let mut entries = Vec::new();
    for (path, config) in &job.checkpoints {
        match entry(job, path, config, &dataset, device, stop, emit)? {
            Some(entry) => entries.push(entry),
            None => return Ok((Outcome::Interrupted, None)),
        }
    }
    let images = wanted.min(dataset.len());
    let report = Report { version: 1, images, seed: first.sample.seed, checkpoints: entries };
    write(job, &report)?;
    Ok((Outcome::Finished, Some(report)))
}

/// The images of a measurement.
struct Images {
    /// Those that are measured `[N, C, H, W]`.
    x_start: Vec<f32>,
    labels: Option<Vec<u32>>,
    /// The variance of every pixel, over these and more.
    variance: Vec<f64>,
    /// All that went into it, as bytes `[N, H, W, C]`.
    bytes: Vec<u8>,
}

/// Images as training shows them, in a random order.
fn images(config: &Config, dataset: &Dataset, classes: Option<usize>) -> Result<Images, Error> {
    let (seed, d) = (config.sample.seed, config.model.in_channels * config.model.image_size.pow(2));
    let order = permutation(seed, Domain::Bias, 0, dataset.len());
    let all_labels = labels_of(dataset, classes)?;
    let (count, all) = (config.sample.num_samples.min(dataset.len()), dataset.len().min(DATA_IMAGES));
    let all = all.max(count);
    let mut x = Vec::with_capacity(all * d);
    for (position, &i) in order[..all].iter().enumerate() {
        x.extend(dataset.example(i as usize, seed, position as u64)?);
    }
    let labels: Option<Vec<u32>> = all_labels.map(|labels| order[..all].iter().map(|&i| labels[i as usize]).collect());
    let variance = variance_within(&x, d, labels.as_deref());
    let bytes = to_u8(&x, config.model.in_channels, config.model.image_size.pow(2));
    x.truncate(count * d);
    Ok(Images { x_start: x, labels: labels.map(|labels| labels[..count].to_vec()), variance, bytes })
}

/// The variance of each of `d` values over images, unbiased, within their classes where there are any.
fn variance_within(x: &[f32], d: usize, labels: Option<&[u32]>) -> Vec<f64> {
    let classes = labels.map_or(1, |labels| labels.iter().max().map_or(1, |&most| most as usize + 1));
    let class = |i: usize| labels.map_or(0, |labels| labels[i] as usize);
    let mut counts = vec![0.0; classes];
    let mut means = vec![0.0; classes * d];
    for (i, image) in x.chunks_exact(d).enumerate() {
        counts[class(i)] += 1.0;
        means[class(i) * d..][..d].iter_mut().zip(image).for_each(|(mean, &v)| *mean += f64::from(v));
    }
    means.chunks_exact_mut(d).zip(&counts).for_each(|(mean, &n)| mean.iter_mut().for_each(|m| *m /= f64::max(n, 1.0)));
    let mut squares = vec![0.0; d];
    for (i, image) in x.chunks_exact(d).enumerate() {
        let mean = &means[class(i) * d..][..d];
        squares.iter_mut().zip(image).zip(mean).for_each(|((sum, &v), m)| *sum += (f64::from(v) - m).powi(2));
    }
    let seen = counts.iter().filter(|&&n| n > 0.0).count() as f64;
    let freedom = f64::max(counts.iter().sum::<f64>() - seen, 1.0);
    squares.into_iter().map(|sum| sum / freedom).collect()
}

/// Fréchet distances of images from the data.
struct Distances {
    network: FeatureNetwork,
    data: Gaussian,
    shape: [usize; 3],
}

impl Distances {
    fn new(job: &Job, images: &Images, shape: [usize; 3], device: Device) -> Result<Option<Self>, Error> {
        let Some((choice, weights)) = &job.features else { return Ok(None) };
        let fitting = || if shape[0] == 1 { Choice::Grey } else { Choice::Inception(None) };
        let network = FeatureNetwork::open(&choice.clone().unwrap_or_else(fitting), weights, device)?;
        let data = gaussian(&network, &images.bytes, shape)?;
        Ok(Some(Self { network, data, shape }))
    }

    fn of(&self, ends: &[f32]) -> Result<f64, Error> {
        let bytes = to_u8(ends, self.shape[0], self.shape[1] * self.shape[2]);
        let drawn = gaussian(&self.network, &bytes, self.shape)?;
        frechet_distance(&self.data, &drawn).map_err(|e| ConfigError(format!("the Fréchet distance: {e}")).into())
    }
}

/// Mean and covariance of features of images `[N, H, W, C]`.
fn gaussian(network: &FeatureNetwork, bytes: &[u8], [c, h, w]: [usize; 3]) -> Result<Gaussian, Error> {
    let failed = |e: fidelity::FidelityError| Error::from(ConfigError(format!("features of images: {e}")));
    let mut sum = Sum::new(network.width());
    for batch in bytes.chunks(64 * c * h * w) {
        let rows = network.features(batch, [batch.len() / (c * h * w), h, w, c])?;
        sum.add(&rows.features).map_err(failed)?;
    }
    sum.finish().map_err(failed)
}

/// One checkpoint; none if `stop` was set.
fn entry(
    job: &Job,
    path: &Path,
    config: &Config,
    dataset: &Dataset,
    device: Device,
    stop: &AtomicBool,
    emit: &mut Emit,
) -> Result<Option<Entry>, Error> {
    let loaded = Loaded::open(path, config, device)?;
    let (config, classes, model) = (&loaded.config, loaded.classes(), loaded.model()?);
    let settings = &config.sample;
    let (diffusion, reverse) = (Diffusion::for_sampling(&config.diffusion, settings)?, Reverse::new(settings));
    let size = config.model.image_size;
    let shape = [config.model.in_channels, size, size];
    let images = images(config, dataset, classes)?;
    let distances = Distances::new(job, &images, shape, device)?;
    let subject = Subject {
        network: &model,
        diffusion: &diffusion,
        reverse: &reverse,
        shape,
        x_start: &images.x_start,
        labels: images.labels.as_deref(),
        data_variance: &images.variance,
        batch: settings.batch_size,
        seed: settings.seed,
        short: job.short.unwrap_or(2).min(diffusion.schedule.len().max(2) - 1),
    };
    let what = path.display().to_string();
    let mut failed = None;
    let readings = subject.measure(
        |ends| match distances.as_ref()?.of(ends) {
            Ok(distance) => Some(distance),
            Err(error) => {
                failed = Some(error);
                None
            }
        },
        |done, total| {
            emit(Event::Reading { what: what.clone(), done, total });
            !stop.load(Ordering::Relaxed)
        },
    );
    if let Some(error) = failed {
        return Err(error);
    }
    let Some(readings) = readings else { return Ok(None) };
    if readings.norm_training.value.iter().chain(&readings.norm_sampling.value).any(|v| !v.is_finite()) {
        let message = "its network gives outputs that are not finite: check the file, and the settings that differ \
                       from the checkpoint's";
        return Err(Error::file(&loaded.file, message));
    }
    let chain = Chain { diffusion: &diffusion, network: &model, reverse: &reverse, guide: None, guidance: None, shape };
    let Some(es_auto) = scale(&chain, config, classes, &readings, stop) else { return Ok(None) };
    let suggestions = Suggestions::new(&readings, es_auto);
    Ok(Some(Entry {
        name: what,
        parameters: hash(&loaded.parameters),
        sampler: serde_json::to_value(settings.sampler)
            .ok()
            .and_then(|name| name.as_str().map(str::to_string))
            .unwrap_or_default(),
        correct: settings.correct.to_string(),
        process: process(config),
        readings,
        suggestions,
    }))
}

/// The scale of ε that brings the norms together, tried on fresh seeds; none if `stop` was set.
fn scale(
    chain: &Chain,
    config: &Config,
    classes: Option<usize>,
    readings: &Readings,
    stop: &AtomicBool,
) -> Option<EsAuto> {
    let settings = &config.sample;
    let training = &readings.norm_training.value;
    let images: Vec<u64> = (0..SCALE_IMAGES.min(settings.num_samples) as u64).collect();
    let mut go_on = || !stop.load(Ordering::Relaxed);
    let labels = |seed| classes.map(|classes| random_labels(&images, &config.classes.trained(classes), seed));
    let (own, draws) = (labels(settings.seed), Seeded(settings.seed));
    let of_seed = subjects(&images, own.as_deref(), settings.batch_size, &draws);
    let scale = match find_scale(chain, &of_seed, training, &mut go_on) {
        Ok(scale) => scale,
        Err(super::ScaleError::Stopped) => return None,
        Err(error) => {
            return Some(EsAuto { scale: None, largest_gap: None, kept: false, reason: Some(error.to_string()) });
        }
    };
    let fresh = settings.seed.wrapping_add(1);
    let (own, draws) = (labels(fresh), Seeded(fresh));
    let of_seed = subjects(&images, own.as_deref(), settings.batch_size, &draws);
    let corrected = Reverse { corrections: chain.reverse.corrections.with_scale(scale), ..chain.reverse.clone() };
    let Chain { diffusion, network, shape, .. } = *chain;
    let corrected = Chain { diffusion, network, reverse: &corrected, guide: None, guidance: None, shape };
    let mut gaps = [0.0; 2];
    for (gap, chain) in gaps.iter_mut().zip([chain, &corrected]) {
        *gap = largest_gap(&sampled_norms(chain, &of_seed, &mut go_on)?, training);
    }
    Some(EsAuto { scale: Some(scale), largest_gap: Some(gaps), kept: gaps[1] <= gaps[0] / 2.0, reason: None })
}

impl Suggestions {
    fn new(readings: &Readings, es_auto: EsAuto) -> Self {
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / readings.t.len() as f64;
        let excess = readings.variance_excess.value.iter().zip(&readings.alpha_bar);
        Self {
            gamma_from_prediction_error: 0.5 * mean(&mut readings.prediction_error.value.iter().copied()),
            gamma_from_variance: mean(&mut excess.map(|(v, alpha_bar)| v.max(0.0) / (1.0 - alpha_bar))).sqrt(),
            es_auto,
        }
    }
}

/// Writes the report as JSON, arrays and a picture.
fn write(job: &Job, report: &Report) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(report).map_err(|e| Error::file(&job.out, e.to_string()))?;
    write_atomic(&job.out.join("bias.json"), |w| std::io::Write::write_all(w, text.as_bytes()))?;
    write_atomic(&job.out.join("bias.npz"), |w| {
        let mut npz = NpzWriter::new(w);
        for (i, entry) in report.checkpoints.iter().enumerate() {
            for (name, values) in entry.readings.arrays() {
                npz.array::<f64>(&format!("{i}_{name}"), &[values.len()], |push| push(values))?;
            }
        }
        npz.finish()
    })?;
    let picture = picture::draw(report);
    write_atomic(&job.out.join("bias.svg"), |w| std::io::Write::write_all(w, picture.as_bytes()))
}

impl Report {
    /// What was found, in words.
    pub fn words(&self) -> String {
        words::of(self)
    }
}
