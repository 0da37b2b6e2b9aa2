//! The variational bound on the likelihood of images, in bits per dimension (Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021).

use crate::Error;
use crate::checkpoint::{Loaded, Origin};
use crate::config::{Arch, Config, ConfigError};
use crate::data::Dataset;
use crate::diffusion::Diffusion;
use crate::event::{Emit, Event, Outcome};
use crate::file::{check_folder, create_folder, stamp, write_atomic};
use crate::npz::NpzWriter;
use crate::partial::Partial;
use crate::ranks::Place;
use crate::record::Record;
use crate::train::open_data_of_network;
use ddpm_math::{Domain, Stream};
use ddpm_net::network::Unet;
use ddpm_net::{Engine, Feed, Parameters};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// A network whose bound is computed.
pub struct Bound<'a> {
    /// The process, respaced to the steps of the bound.
    pub diffusion: &'a Diffusion,
    /// The network.
    pub network: &'a Engine<Unet>,
    /// Its parameters.
    pub parameters: &'a Parameters,
    /// Whether predicted images are clipped to [-1, 1].
    pub clip_denoised: bool,
}

/// The parts of the bound of one image, each from the noisiest step to the first as the reference has them.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// Divergence of q(x_T | x_0) from the standard normal, in bits per dimension.
    pub prior: f32,
    /// The bound's term of each step `[T']`, in bits per dimension.
    pub vb: Vec<f32>,
    /// Mean square error of the predicted clean image `[T']`.
    pub xstart_mse: Vec<f32>,
    /// Mean square error of the noise that it implies `[T']`.
    pub mse: Vec<f32>,
}

impl Terms {
    /// The whole bound, in bits per dimension.
    pub fn total(&self) -> f64 {
        self.vb.iter().map(|&v| f64::from(v)).sum::<f64>() + f64::from(self.prior)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let lists = [&[self.prior][..], &self.vb, &self.xstart_mse, &self.mse];
        lists.into_iter().flatten().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let values: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let steps = values.len() / 3;
        let (prior, lists) = values.split_at(1);
        let list = |i: usize| lists[i * steps..(i + 1) * steps].to_vec();
        Self { prior: prior[0], vb: list(0), xstart_mse: list(1), mse: list(2) }
    }

    /// Bytes of an image's terms.
    fn size(steps: usize) -> usize {
        4 * (1 + 3 * steps)
    }
}

impl Bound<'_> {
    /// The terms of `count` images `x_start` `[N, C, H, W]` of `size` rows and columns, with labels where the network has
    /// classes. `noise(i)` is the draw `[N, C, H, W]` for index i of the process; `go_on`, asked before every step, may end
    /// it all.
    pub fn terms(
        &self,
        x_start: &[f32],
        count: usize,
        size: [usize; 2],
        labels: Option<&[u32]>,
        noise: impl Fn(usize) -> Vec<f32>,
        go_on: impl Fn() -> bool,
    ) -> Option<Vec<Terms>> {
        let diffusion = self.diffusion;
        let prior = |image| ddpm_math::prior_bound(&diffusion.schedule, image) as f32;
        let none = |prior| Terms { prior, vb: Vec::new(), xstart_mse: Vec::new(), mse: Vec::new() };
        let mut terms: Vec<Terms> = x_start.chunks_exact(x_start.len() / count).map(|x| none(prior(x))).collect();
        let unperturbed = ddpm_math::Perturbation::default().mix(0.0);
        for i in (0..diffusion.schedule.len()).rev() {
            if !go_on() {
                return None;
            }
            let t = vec![i; count];
            let noised = diffusion.noise(x_start, &t, &vec![unperturbed; count], &noise(i), None);
            let times = diffusion.model_times(&t);
            let feed = Feed { labels, ..Feed::new(&noised.x_t, size, &times) };
            let output = self.network.forward(self.parameters, feed);
            for (terms, found) in terms.iter_mut().zip(diffusion.bound(&noised, &output, self.clip_denoised)) {
                terms.vb.push(found.vb as f32);
                terms.xstart_mse.push(found.xstart_mse as f32);
                terms.mse.push(found.mse as f32);
            }
        }
        Some(terms)
    }
}

/// The images that are taken where nobody says how many, if there are as many.
const MOST_BY_DEFAULT: usize = 1000;

/// What to bound and where to write.
#[derive(Clone, Debug)]
pub struct Job {
    /// A parameter file, checkpoint folder or run directory.
    pub checkpoint: PathBuf,
    /// Network, diffusion, images and, under `sample`, steps, clipping, seed, batch size and number of images; 0 for the first
    /// thousand, if there are as many.
    pub config: Config,
    /// The folder for `vb_terms.npz`, `mse_terms.npz` and `xstart_mse_terms.npz`.
    pub out: PathBuf,
}

/// The result over all images.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Images.
    pub images: usize,
    /// Steps of the bound.
    pub steps: usize,
    /// The whole bound in bits per dimension, mean over the images.
    pub bits_per_dim: f64,
    /// Its standard error over the images; none for one image.
    pub standard_error: Option<f64>,
    /// The prior's part.
    pub prior_bits_per_dim: f64,
    /// The decoder's part: the term of the first step.
    pub decoder_bits_per_dim: f64,
}

/// Computes the bound over images in their order, going on where an interrupted call with the same settings stopped, and
/// writes the means over the images of each term, from the noisiest step to the first: `arr_0` `[T']`.
///
/// # Errors
/// Settings that do not fit the checkpoint or the images, damaged files, failing reads or writes.
pub fn run(
    job: &Job,
    place: impl Into<Place>,
    stop: &AtomicBool,
    emit: &mut Emit,
) -> Result<(Outcome, Option<Report>), Error> {
    let Place { device, ranks } = place.into();
    let mut config = job.config.clone();
    if config.sample.num_samples == 0 {
        config.sample.num_samples = MOST_BY_DEFAULT;
    }
    config.validate()?;
    if !matches!(job.config.model.arch, Arch::Adm | Arch::Ddim) {
        return Err(ConfigError("nll is for networks that draw whole images: --arch adm or ddim".into()).into());
    }
    let loaded = Loaded::open(&job.checkpoint, &config, device)?;
    let (file, config, network) = (&loaded.file, &loaded.config, loaded.unet()?);
    let settings = &config.sample;
    let diffusion = Diffusion::new(&config.diffusion, &settings.timestep_respacing)?;
    let dataset = open_data_of_network(config)?;
    let total = settings.num_samples.min(dataset.len());
    if total < job.config.sample.num_samples {
        let message = format!(
            "--num-samples is {}, but {} has {total} images: use at most {total}",
            job.config.sample.num_samples, config.data.data_dir
        );
        return Err(ConfigError(message).into());
    }
    let labels = labels_of(&dataset, loaded.classes())?;
    let steps = diffusion.schedule.len();
    let bound =
        Bound { diffusion: &diffusion, network, parameters: &loaded.parameters, clip_denoised: settings.clip_denoised };
    let (size, channels) = (config.model.image_size, config.model.in_channels);
    let mut make = |batch: Range<usize>| {
        let per_image = channels * size * size;
        let images = batch.clone().map(|i| dataset.plain_example(i)).collect::<Result<Vec<_>, _>>()?.concat();
        let noise = |i: usize| {
            let mut values = vec![0.0; batch.len() * per_image];
            values.par_chunks_mut(per_image).zip(batch.clone()).for_each(|(values, image)| {
                Stream::new(settings.seed, Domain::Likelihood, image as u64, i as u32).fill_normal(values);
            });
            values
        };
        let go_on = || !stop.load(Ordering::Relaxed);
        let labels = labels.map(|l| &l[batch.clone()]);
        let Some(terms) = bound.terms(&images, batch.len(), [size; 2], labels, noise, go_on) else { return Ok(None) };
        if terms.iter().any(|terms| !terms.total().is_finite()) {
            let message = "its network gives images a bound that is not finite: check the file, and the settings \
                           that differ from the checkpoint's";
            return Err(Error::file(file, message));
        }
        Ok(Some(terms.iter().flat_map(Terms::to_bytes).collect()))
    };
    let mut done = 0;
    if !ranks.leads() {
        let whole = ranks.share_out(&mut done, total, settings.batch_size, &mut make, |_, _| Ok(true))?;
        return Ok((if whole { Outcome::Finished } else { Outcome::Interrupted }, None));
    }
    check_folder("--out", &job.out, "name a folder")?;
    create_folder(&job.out)?;
    let identity = identity(job, file)?;
    let what = format!(
        "{total} image(s) of {} by {}: {steps} steps, seed {}",
        config.data.data_dir,
        Origin::of(file),
        settings.seed
    );
    let record = Record::new(&identity, total, format!("the terms of {what}"));
    let terms = job.out.join("vb_terms.npz");
    let found = record.found_at(&terms, "Choose another --out, or remove it")?;
    if let Some(report) = found.filter(|found| found.count == total).and_then(|found| found.report) {
        let report = serde_json::from_value(report).map_err(|e| Error::file(&terms, format!("is damaged: {e}")))?;
        emit(Event::Found(job.out.clone()));
        return Ok((Outcome::Finished, Some(report)));
    }
    let (mut partial, first) = Partial::open(&job.out.join("nll"), &identity, Terms::size(steps), false, device, emit)?;
    done = first.min(total);
    emit(Event::Begins(format!("bounding {what}")));
    emit(Event::Bounded { done, total, bits_per_dim: None });
    let mut sum = 0.0;
    let take = |bytes: &[u8], done| {
        partial.append(bytes)?;
        sum += bytes.chunks_exact(Terms::size(steps)).map(|terms| Terms::from_bytes(terms).total()).sum::<f64>();
        emit(Event::Bounded { done, total, bits_per_dim: Some(sum / (done - first) as f64) });
        Ok(true)
    };
    if !ranks.share_out(&mut done, total, settings.batch_size, make, take)? {
        return Ok((Outcome::Interrupted, None));
    }
    let report = write(&mut partial, total, steps, &job.out, record)?;
    partial.remove()?;
    Ok((Outcome::Finished, Some(report)))
}

/// The classes of images for a network of so many.
///
/// # Errors
/// Images without classes for a network with some, or of others.
pub(crate) fn labels_of(dataset: &Dataset, classes: Option<usize>) -> Result<Option<&[u32]>, ConfigError> {
    let Some(classes) = classes else { return Ok(None) };
    let Some(labels) = dataset.labels() else {
        let message = "the network has classes, but these images have no labels: say with --labels where they come \
                       from";
        return Err(ConfigError(message.into()));
    };
    match labels.iter().find(|&&label| label as usize >= classes) {
        Some(wrong) => {
            Err(ConfigError(format!("the images have a class {wrong}, but the network has {classes} classes")))
        }
        None => Ok(Some(labels)),
    }
}

/// Averages the terms of all images, and writes them.
fn write(partial: &mut Partial, total: usize, steps: usize, out: &Path, mut record: Record) -> Result<Report, Error> {
    let mut sums = [vec![0.0; steps], vec![0.0; steps], vec![0.0; steps]];
    let (mut prior, mut totals) = (0.0, Vec::with_capacity(total));
    let read = partial.read(total, |bytes| {
        for terms in bytes.chunks_exact(Terms::size(steps)).map(Terms::from_bytes) {
            for (sum, list) in sums.iter_mut().zip([&terms.vb, &terms.mse, &terms.xstart_mse]) {
                sum.iter_mut().zip(list).for_each(|(sum, &v)| *sum += f64::from(v));
            }
            prior += f64::from(terms.prior);
            totals.push(terms.total());
        }
        Ok(())
    });
    read.map_err(Error::io("read what was computed for", &out.join("nll.partial")))?;
    let count = total as f64;
    let mean = totals.iter().sum::<f64>() / count;
    let variance = totals.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let report = Report {
        images: total,
        steps,
        bits_per_dim: mean,
        standard_error: (total > 1).then(|| (variance / count).sqrt()),
        prior_bits_per_dim: prior / count,
        decoder_bits_per_dim: sums[0][steps - 1] / count,
    };
    record.report = serde_json::to_value(&report).ok();
    // The last to be written says that all are there.
    for (name, sum) in ["mse", "xstart_mse", "vb"].iter().zip([&sums[1], &sums[2], &sums[0]]) {
        let means: Vec<f32> = sum.iter().map(|v| (v / count) as f32).collect();
        write_atomic(&out.join(format!("{name}_terms.npz")), |w| {
            let mut npz = NpzWriter::new(w);
            npz.array::<f32>("arr_0", &[steps], |push| push(&means))?;
            npz.finish_with(&record.line())
        })?;
    }
    Ok(report)
}

/// A line that differs between two calls whenever an image's terms could.
fn identity(job: &Job, file: &Path) -> Result<String, Error> {
    let mut config = job.config.clone();
    (config.sample.batch_size, config.sample.num_samples) = (1, 1);
    let images = Path::new(&config.data.data_dir);
    let images = images.exists().then(|| stamp(images)).transpose()?;
    Ok(serde_json::json!({ "bound": stamp(file)?, "images": images, "config": config }).to_string())
}
