//! A file of samples.

use super::{Chain, Draws, GivenNoise, Guidance, Guide, Model, Seeded, SmallImages, Subjects, Weak};
use crate::Error;
use crate::bias::resolve_auto;
use crate::checkpoint::{self, Origin};
use crate::config::{Arch, ClassesConfig, Config, ConfigError, Respacing, SampleConfig, SamplerKind, listed};
use crate::data::contact_sheet;
use crate::diffusion::{Diffusion, Reverse, to_u8};
use crate::event::{Emit, Event, Outcome};
use crate::file::{check_folder, create_folder, stamp, write_atomic};
use crate::memory;
use crate::npz::{Npz, NpzWriter};
use crate::partial::Partial;
use crate::record::Record;
use ddpm_math::{Domain, Stream};
use ddpm_net::network::{Classifier, Network, Unet};
use ddpm_net::{Device, Engine, Parameters};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The most images a grid shows.
const GRID_IMAGES: usize = 256;

/// What to draw and where to put it.
#[derive(Clone, Debug)]
pub struct Job {
    /// A parameter file, checkpoint folder or run directory.
    pub checkpoint: PathBuf,
    /// Network, diffusion and sampling settings.
    pub config: Config,
    /// The npz to write; a folder (or nothing) stands for `samples_NxHxWxC.npz` in it.
    pub out: Option<PathBuf>,
    /// A PNG of the first images.
    pub grid: Option<PathBuf>,
    /// Classes, taken in turn; drawn at random if not given.
    pub classes: Option<Vec<u32>>,
    /// An npz whose noise the chains follow.
    pub initial_noise: Option<PathBuf>,
    /// A classifier that guides the chains.
    pub classifier: Option<GuideJob>,
    /// A weaker network that guidance leads away from, in place of the network itself without classes.
    pub guide_with: Option<GuideJob>,
    /// Whether what is there already is replaced.
    pub overwrite: bool,
    /// The small images that a super-resolution network enlarges: anything that holds images.
    pub base_samples: Option<PathBuf>,
}

/// A classifier of noisy images, or a weaker network, to guide with.
#[derive(Clone, Debug)]
pub struct GuideJob {
    /// A parameter file, checkpoint folder or run directory.
    pub checkpoint: PathBuf,
    /// Its settings.
    pub config: Config,
}

impl GuideJob {
    fn load(&self, image_size: usize, channels: usize, scale: f64, device: Device) -> Result<Guide, Error> {
        let file = checkpoint::resolve(&self.checkpoint)?;
        let mut config = checkpoint::with_classes(&self.config, &file)?;
        config.model.arch = Arch::Classifier;
        let (size, found) = (config.model.image_size, config.model.in_channels);
        if (size, found) != (image_size, channels) {
            let message = format!(
                "the classifier {} is for {size}x{size} images with {found} channel(s), the network draws \
                 {image_size}x{image_size} with {channels}",
                file.display()
            );
            return Err(ConfigError(message).into());
        }
        let classifier = Classifier::new(config.classifier_network()?);
        let parameters = checkpoint::load_network(&file, classifier.layout(), &config)?;
        Ok(Guide::new(Engine::new(classifier, device), parameters, scale))
    }

    /// A weaker network beside that of `config`.
    fn load_weaker(&self, config: &Config, device: Device) -> Result<(Engine<Unet>, Parameters), Error> {
        let file = checkpoint::resolve(&self.checkpoint)?;
        let mut own = checkpoint::with_classes(&self.config, &file)?;
        let values = |c: &Config| {
            let (m, d) = (&c.model, &c.diffusion);
            let classes = if m.class_cond { m.num_classes.to_string() } else { "no".into() };
            let enlarges = if m.arch == Arch::Superres { format!(" from {}", m.small_size) } else { String::new() };
            [
                ("images of", format!("{0}x{0} pixels and {1} channel(s){enlarges}", m.image_size, m.in_channels)),
                ("a process of", format!("{} {} steps", d.diffusion_steps, d.noise_schedule)),
                ("the prediction", d.prediction.to_string()),
                ("--rescale-timesteps", d.rescale_timesteps.to_string()),
                ("classes:", classes),
            ]
        };
        for ((what, theirs), (_, ours)) in values(&own).into_iter().zip(values(config)) {
            // One that knows no classes is weaker for that.
            if theirs != ours && (what != "classes:" || own.model.class_cond) {
                let file = file.display();
                let message =
                    format!("--guide-with {file} has {what} {theirs}, the network {ours}: take one of the same kind");
                return Err(ConfigError(message).into());
            }
        }
        // The name of a network is for the checkpoint.
        own.sample = SampleConfig { network: own.sample.network, ..config.sample.clone() };
        own.check_timesteps()?;
        let network = Unet::new(own.model.network(own.diffusion.variance)?);
        let parameters = checkpoint::load_network(&file, network.layout(), &own)?;
        Ok((Engine::new(network, device), parameters))
    }
}

impl Job {
    /// The npz that will be written.
    pub fn out_path(&self) -> PathBuf {
        let (m, n) = (&self.config.model, self.config.sample.num_samples);
        let name = format!("samples_{n}x{0}x{0}x{1}.npz", m.image_size, m.in_channels);
        match &self.out {
            Some(path) if path.extension().is_some_and(|e| e == "npz") => path.clone(),
            Some(folder) => folder.join(name),
            None => PathBuf::from(name),
        }
    }

    /// The classes of the network, or of the classifier that leads it.
    fn class_names(&self, of_network: bool) -> &ClassesConfig {
        match &self.classifier {
            Some(guide) if !of_network => &guide.config.classes,
            _ => &self.config.classes,
        }
    }

    /// The class of each image, if there are `classes` to choose from.
    fn labels(
        &self,
        images: &[u64],
        classes: Option<&Classes>,
        small: Option<&SmallImages>,
    ) -> Result<Option<Vec<u32>>, Error> {
        let Some(classes) = classes else {
            return match &self.classes {
                Some(_) => Err(ConfigError("--classes was given, but the network has no classes".into()).into()),
                None => Ok(None),
            };
        };
        let count = classes.count;
        if let Some(wrong) = self.classes.iter().flatten().find(|&&c| c as usize >= count) {
            return Err(ConfigError(format!(
                "class {wrong} of --classes: the network has classes 0 to {}",
                count.saturating_sub(1)
            ))
            .into());
        }
        let seed = self.config.sample.seed;
        let labels: Vec<u32> = match (&self.classes, small.and_then(|small| small.labels(images))) {
            (Some(given), _) if !given.is_empty() => images.iter().map(|&i| given[i as usize % given.len()]).collect(),
            (_, Some(own)) => own,
            _ => random_labels(images, &classes.trained, seed),
        };
        match labels.iter().find(|&&label| label as usize >= count) {
            Some(wrong) => {
                Err(ConfigError(format!("--base-samples have a class {wrong}: the network has {count}")).into())
            }
            None => Ok(Some(labels)),
        }
    }
}

/// The class of each image, one of these, where nobody says: it depends on the seed and the image's number alone.
pub(crate) fn random_labels(images: &[u64], classes: &[u32], seed: u64) -> Vec<u32> {
    let place = |i: u64| Stream::new(seed, Domain::Label, i, 0).below(classes.len() as u64);
    images.iter().map(|&i| classes[place(i) as usize]).collect()
}

/// The classes that there are to choose from.
struct Classes {
    count: usize,
    /// Those that were trained.
    trained: Vec<u32>,
}

/// Draws the images, going on where an interrupted call with the same settings stopped.
///
/// # Errors
/// Settings that do not fit the checkpoint, damaged files, failing reads or writes. Finished images are kept in
/// `OUT.partial` until the npz is complete.
pub fn run(job: &Job, device: Device, stop: &AtomicBool, emit: &mut Emit) -> Result<Outcome, Error> {
    job.config.validate()?;
    if job.config.model.arch == Arch::Classifier {
        let message = "a classifier draws no images: name the network as --checkpoint and this as --classifier-path";
        return Err(ConfigError(message.into()).into());
    }
    let file = checkpoint::resolve(&job.checkpoint)?;
    let config = &checkpoint::with_classes(&job.config, &file)?;
    let network = Unet::new(config.model.network(config.diffusion.variance)?);
    let parameters = checkpoint::load_network(&file, network.layout(), config)?;
    let network = Engine::new(network, device);
    let settings = &config.sample;
    let diffusion = Diffusion::for_sampling(&config.diffusion, settings)?;
    let reverse = Reverse::new(settings);
    let (size, channels) = (config.model.image_size, config.model.in_channels);
    let steps = diffusion.schedule.len();

    let given = match &job.initial_noise {
        Some(path) => {
            let stages = reverse.rule.stages(&diffusion.schedule, steps - 1);
            let needs_steps = stages.iter().any(|stage| stage.draws() || stage.churn.is_some());
            Some(GivenNoise::read(path, [channels, size, size], steps, needs_steps)?)
        }
        None => None,
    };
    if let Some(given) = given.as_ref().filter(|given| given.images() < settings.num_samples) {
        let message = format!(
            "--num-samples is {}, but --initial-noise holds noise for {1}: use --num-samples {1}",
            settings.num_samples,
            given.images()
        );
        return Err(ConfigError(message).into());
    }
    let seeded = Seeded(settings.seed);
    let draws: &dyn Draws = given.as_ref().map_or(&seeded, |given| given);

    let total = settings.num_samples;
    let out = job.out_path();
    let image_bytes = size * size * channels;
    let guide = job.classifier.as_ref();
    let guide = guide.map(|g| g.load(size, channels, settings.classifier_scale, device)).transpose()?;
    let weaker = job.guide_with.as_ref().map(|g| g.load_weaker(config, device)).transpose()?;
    let weaker = weaker.as_ref().map(|(network, parameters)| Model { network, parameters, size: [size; 2] });
    let guidance = match &weaker {
        Some(weaker) => Guidance::rule(settings).map(|rule| Guidance { rule, weak: Weak::Network(weaker) }),
        None => Guidance::classifier_free(config, settings, device)?,
    };
    let small = small_images(job, config, total, emit)?;
    let classes = classes(job, network.network().config().num_classes, guide.as_ref())?;
    let classes = classes.as_ref();
    job.labels(&[], classes, None)?;
    if let Some(grid) = job
        .grid
        .as_ref()
        .filter(|grid| grid.is_dir() || !grid.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png")))
    {
        return Err(ConfigError(format!("--grid {} is no name of a picture: end it in .png", grid.display())).into());
    }
    if out.is_dir() {
        return Err(ConfigError(format!("--out {} is a folder: name a file", out.display())).into());
    }
    if let Some(folder) = job.out.as_deref().filter(|path| *path != out) {
        check_folder("--out", folder, "end it in .npz, or name a folder")?;
    }
    let origin = Origin::of(&file);
    let of_noise = match &job.initial_noise {
        Some(noise) => format!("noise of {}", noise.display()),
        None => format!("seed {}", settings.seed),
    };
    let what = format!("{origin}: {}, {steps} steps, {of_noise}", settings.sampler.name());
    let identity = identity(job, &file)?;
    let record = Record::new(&identity, total, format!("{total} image(s) of {what}"));
    if !job.overwrite {
        let instead = "Choose another --out, or replace it with --overwrite";
        if record.found_at(&out, instead)?.is_some_and(|found| found.count == total) {
            if let Some(grid) = job.grid.as_ref().filter(|grid| !grid.exists()) {
                let images = total.min(GRID_IMAGES);
                let mut shown = Vec::new();
                Npz::open(&out)?.byte_rows::<Error>("arr_0", images, &mut |rows| {
                    shown.extend_from_slice(rows);
                    Ok(false)
                })?;
                contact_sheet(&shown, images, size, channels).save(grid)?;
            }
            emit(Event::Found(out));
            return Ok(Outcome::Finished);
        }
        if let Some(grid) = job.grid.as_ref().filter(|grid| grid.exists()) {
            let message = format!("--grid {} exists: choose another, or replace it with --overwrite", grid.display());
            return Err(ConfigError(message).into());
        }
    }
    let machine = if device == Device::Cpu { memory::of_machine() } else { None };
    if let Some(remark) = memory::check_sampling(config, machine)? {
        emit(Event::Warning(remark));
    }
    for folder in [Some(&out), job.grid.as_ref()].into_iter().flatten().filter_map(|path| path.parent()) {
        create_folder(folder)?;
    }
    if let Some(own) = checkpoint::config_of(&file)? {
        for (key, now, before) in config.changes_from(&own) {
            let speed_alone = ["model.precision", "model.use_checkpoint"].contains(&key.as_str());
            if (key.starts_with("model.") && !speed_alone) || key.starts_with("diffusion.") {
                emit(Event::Warning(format!("{key} is {now}; the checkpoint was made with {before}")));
            }
        }
    }
    let (mut partial, mut done) = Partial::open(&out, &identity, image_bytes, job.overwrite, device, emit)?;
    done = done.min(total);
    let there = if done > 0 { format!(", {done} are there") } else { String::new() };
    emit(Event::Begins(format!("drawing {total} image(s) of {what}{there}")));
    emit(Event::Sampling { done, total, steps });
    for remark in remarks(job, classes) {
        emit(Event::Notice(remark));
    }
    if config.diffusion.variance.is_learned() && !reverse.rule.uses_variance() {
        emit(Event::Notice("this sampler does not use the variance that the network has learned; ddpm does".into()));
    }
    let beyond = reverse.corrections.levels_beyond(&diffusion.schedule);
    if beyond > 0 {
        emit(Event::Notice(format!(
            "ideal-ip: at the first {beyond} of {steps} steps t' lies beyond the last timestep, which takes its place"
        )));
    }
    let chain = Chain {
        diffusion: &diffusion,
        network: &Model { network: &network, parameters: &parameters, size: [size; 2] },
        reverse: &reverse,
        guide: guide.as_ref(),
        guidance: guidance.as_ref(),
        shape: [channels, size, size],
    };
    let scaled = match settings.correct.auto() {
        Some(measured) => {
            emit(Event::Begins(format!("looking for the scale of {measured}")));
            let first: Vec<u64> = (0..total as u64).collect();
            let labels = job.labels(&first, classes, small.as_ref())?;
            let found = resolve_auto(Path::new(measured), config, &parameters, &chain, labels.as_deref(), stop)?;
            let Some(scale) = found else { return Ok(Outcome::Interrupted) };
            emit(Event::Notice(format!("es-auto: epsilon is divided by {scale:.5}")));
            Some(Reverse { corrections: reverse.corrections.with_scale(scale), ..reverse.clone() })
        }
        None => None,
    };
    let chain = Chain { reverse: scaled.as_ref().unwrap_or(&reverse), ..chain };
    while done < total {
        let batch = settings.batch_size.min(total - done);
        let images: Vec<u64> = (done..done + batch).map(|i| i as u64).collect();
        let labels = job.labels(&images, classes, small.as_ref())?;
        let low_res = small.as_ref().map(|small| small.enlarged(&images, size));
        let (labels, low_res) = (labels.as_deref(), low_res.as_deref());
        let drawn = chain.draw(Subjects { images: &images, labels, low_res, draws }, |step| {
            emit(Event::SampleStep { done, step, batch });
            !stop.load(Ordering::Relaxed)
        });
        let Some(drawn) = drawn else { return Ok(Outcome::Interrupted) };
        if !drawn.iter().all(|v| v.is_finite()) {
            let message = "its network draws images that are not finite: check it, the noise given, and the settings that \
                           differ from its own";
            return Err(Error::file(&file, message));
        }
        partial.append(&to_u8(&drawn, channels, size * size))?;
        done += batch;
        emit(Event::Sampled { done });
        if stop.load(Ordering::Relaxed) && done < total {
            return Ok(Outcome::Interrupted);
        }
    }

    let all: Vec<u64> = (0..total as u64).collect();
    let labels = job.labels(&all, classes, small.as_ref())?;
    let mut shown = Vec::new();
    write_atomic(&out, |w| {
        let mut npz = NpzWriter::new(w);
        npz.array::<u8>("arr_0", &[total, size, size, channels], |push| {
            partial.read(total, |bytes| {
                let wanted = GRID_IMAGES * image_bytes - shown.len();
                shown.extend_from_slice(&bytes[..wanted.min(bytes.len())]);
                push(bytes)
            })
        })?;
        if let Some(labels) = labels {
            let labels: Vec<i64> = labels.into_iter().map(i64::from).collect();
            npz.array::<i64>("arr_1", &[total], |push| push(&labels))?;
        }
        npz.finish_with(&record.line())
    })?;
    if let Some(grid) = &job.grid {
        let images = shown.len() / image_bytes;
        contact_sheet(&shown, images, size, channels).save(grid)?;
    }
    partial.remove()?;
    Ok(Outcome::Finished)
}

/// The classes that there are to choose from, if any.
fn classes(job: &Job, of_network: Option<usize>, guide: Option<&Guide>) -> Result<Option<Classes>, ConfigError> {
    let count = match (of_network, guide.map(Guide::classes)) {
        (Some(n), Some(g)) if n != g => {
            return Err(ConfigError(format!("the network has {n} classes, the classifier {g}")));
        }
        (n, g) => n.or(g),
    };
    let own = job.class_names(of_network.is_some());
    Ok(count.map(|count| Classes { count, trained: own.trained(count) }))
}

/// What is to be said about settings that do something else than they seem to.
fn remarks(job: &Job, classes: Option<&Classes>) -> Vec<String> {
    let mut remarks = Vec::new();
    let sample = &job.config.sample;
    if job.guide_with.is_some() && sample.guidance_scale == 1.0 {
        remarks.push("--guide-with does nothing with --guidance-scale 1: use more, such as 2".into());
    }
    if let (Respacing::Ddim(_), SamplerKind::Ddpm) = (&sample.timestep_respacing, sample.sampler) {
        remarks.push(format!(
            "--timestep-respacing {} says at which timesteps, not by which sampler: ddpm draws. DDIM is --use-ddim true",
            sample.timestep_respacing
        ));
    }
    if sample.eta != 0.0 && sample.sampler != SamplerKind::Ddim {
        remarks.push(format!(
            "--eta {} does nothing with --sampler {}: it is for DDIM (--use-ddim true)",
            sample.eta,
            sample.sampler.name()
        ));
    }
    if let Some(Classes { count, trained }) = classes.filter(|classes| classes.trained.len() < classes.count) {
        let untrained = |class: &u32| !trained.contains(class);
        match &job.classes {
            None => {
                let left_out: Vec<u32> = (0..*count as u32).filter(untrained).collect();
                remarks.push(format!(
                    "{} of the {count} classes had no images in training and are left out: {}. --classes draws them all \
                     the same",
                    left_out.len(),
                    listed(&left_out)
                ));
            }
            Some(wanted) => {
                let wanted: Vec<u32> = wanted.iter().copied().filter(untrained).collect();
                if !wanted.is_empty() {
                    remarks.push(format!("--classes names some that had no images in training: {}", listed(&wanted)));
                }
            }
        }
    }
    remarks
}

/// What a super-resolution network enlarges.
fn small_images(job: &Job, config: &Config, total: usize, emit: &mut Emit) -> Result<Option<SmallImages>, Error> {
    match (&job.base_samples, config.model.arch == Arch::Superres) {
        (None, false) => Ok(None),
        (Some(source), true) => {
            let small = SmallImages::read(source, config, total)?;
            if small.len() < total {
                let (n, source) = (small.len(), source.display());
                emit(Event::Warning(format!(
                    "{source} holds {n} images: they are taken again and again up to {total}"
                )));
            }
            Ok(Some(small))
        }
        (None, true) => Err(ConfigError(
            "a super-resolution network enlarges images: name them with --base-samples (an npz of samples, a folder)"
                .into(),
        )
        .into()),
        (Some(_), false) => {
            Err(ConfigError("--base-samples was given, but the network enlarges no images (--arch superres)".into())
                .into())
        }
    }
}

/// A line that differs between two calls whenever their images could: the number of images is not in it.
fn identity(job: &Job, file: &Path) -> Result<String, Error> {
    let sample = SampleConfig { batch_size: 1, num_samples: 1, ..job.config.sample.clone() };
    let config = Config { sample, ..job.config.clone() };
    let noise = job.initial_noise.as_deref().map(stamp).transpose()?;
    let small = job.base_samples.as_deref().map(stamp).transpose()?;
    let bias = config.sample.correct.auto().map(|file| stamp(Path::new(file))).transpose()?;
    let network = |guide: &Option<GuideJob>| match guide {
        Some(guide) => Ok::<_, Error>(Some((stamp(&checkpoint::resolve(&guide.checkpoint)?)?, guide.config.clone()))),
        None => Ok(None),
    };
    let (classifier, guide_with) = (network(&job.classifier)?, network(&job.guide_with)?);
    let line = serde_json::json!({
        "checkpoint": stamp(file)?, "classes": job.classes, "initial_noise": noise, "config": config,
        "classifier": classifier, "guide_with": guide_with, "base_samples": small, "bias": bias,
    });
    Ok(line.to_string())
}
