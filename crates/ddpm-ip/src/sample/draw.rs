//! Images from a network: what is wanted, and the chains that draw it.

use super::{Chain, Draws, GivenNoise, Guidance, Guide, Seeded, SmallImages, Subjects, Weak};
use crate::Error;
use crate::bias::resolve_auto;
use crate::checkpoint::{self, Loaded};
use crate::config::{Arch, ClassesConfig, Config, ConfigError, Respacing, SampleConfig, SamplerKind, listed};
use crate::diffusion::{Diffusion, Reverse, to_u8};
use crate::event::{Emit, Event, Outcome};
use crate::memory;
use crate::ranks::Ranks;
use ddpm_math::{Domain, Stream};
use ddpm_net::network::{Classifier, Network};
use ddpm_net::{Device, Engine};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// What is drawn, beside what settings say.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// Classes, taken in turn; drawn at random if not given.
    pub classes: Option<Vec<u32>>,
    /// An npz whose noise the chains follow.
    pub initial_noise: Option<PathBuf>,
    /// A classifier that guides the chains.
    pub classifier: Option<GuideJob>,
    /// A weaker network that guidance leads away from, in place of the network itself without classes.
    pub guide_with: Option<GuideJob>,
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
                "the classifier {} is for {size}x{size} images with {found} channel(s), but the network draws \
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
    fn load_weaker(&self, config: &Config, device: Device) -> Result<Loaded, Error> {
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
                let message = format!(
                    "--guide-with {file} has {what} {theirs}, but the network has {ours}: use a network of the same \
                     kind"
                );
                return Err(ConfigError(message).into());
            }
        }
        // The name of a network is for the checkpoint.
        own.sample = SampleConfig { network: own.sample.network, ..config.sample.clone() };
        own.check_timesteps()?;
        Loaded::open(&file, &own, device)
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

/// Images that were drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// Bytes `[N, H, W, C]`.
    pub images: Vec<u8>,
    /// Number, height, width and channels.
    pub shape: [usize; 4],
    /// Their classes, where they have any.
    pub labels: Option<Vec<u32>>,
}

/// Draws images into memory: those that a file of samples would hold. `config` is the network's own, but for how it samples.
///
/// # Errors
/// Settings that do not fit the network or each other, and what [`Order`] names that cannot be read. None if `stop` was set.
pub fn draw(
    network: &Loaded,
    config: &Config,
    order: &Order,
    stop: &AtomicBool,
    emit: &mut Emit,
) -> Result<Option<Drawn>, Error> {
    let drawer = Drawer::new(network, config, order, emit)?;
    if let Some(remark) = drawer.check_memory()? {
        emit(Event::Warning(remark));
    }
    drawer.begin(0, emit);
    let (shape, total) = (drawer.shape(), drawer.total());
    let mut images = Vec::with_capacity(shape.iter().product());
    let outcome = drawer.draw(0, &Ranks::default(), stop, emit, &mut |batch| {
        images.extend_from_slice(batch);
        Ok(())
    })?;
    let labels = drawer.labels(&(0..total as u64).collect::<Vec<_>>())?;
    Ok((outcome == Outcome::Finished).then_some(Drawn { images, shape, labels }))
}

/// Everything that an order needs, loaded and checked.
pub(super) struct Drawer<'a> {
    network: &'a Loaded,
    config: &'a Config,
    order: &'a Order,
    diffusion: Diffusion,
    reverse: Reverse,
    given: Option<GivenNoise>,
    guide: Option<Guide>,
    weaker: Option<Loaded>,
    /// Classifier-free guidance.
    guidance: Option<Guidance<'static>>,
    small: Option<SmallImages>,
    classes: Option<Classes>,
}

impl<'a> Drawer<'a> {
    pub(super) fn new(
        network: &'a Loaded,
        config: &'a Config,
        order: &'a Order,
        emit: &mut Emit,
    ) -> Result<Self, Error> {
        config.validate()?;
        let (settings, device) = (&config.sample, network.device());
        let of_network = network.unet()?.network().config().num_classes;
        let (size, channels) = (config.model.image_size, config.model.in_channels);
        let diffusion = Diffusion::for_sampling(&config.diffusion, settings)?;
        let reverse = Reverse::new(settings);
        let steps = diffusion.schedule.len();
        let given = match &order.initial_noise {
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
        let guide = order.classifier.as_ref();
        let guide = guide.map(|g| g.load(size, channels, settings.classifier_scale, device)).transpose()?;
        let weaker = order.guide_with.as_ref().map(|g| g.load_weaker(config, device)).transpose()?;
        let guidance = match &weaker {
            Some(_) => None,
            None => Guidance::classifier_free(config, settings, device)?,
        };
        let small = small_images(order, config, emit)?;
        let classes = classes(order, config, of_network, guide.as_ref())?;
        let drawer =
            Self { network, config, order, diffusion, reverse, given, guide, weaker, guidance, small, classes };
        drawer.labels(&[])?;
        Ok(drawer)
    }

    /// Images in all.
    pub(super) fn total(&self) -> usize {
        self.config.sample.num_samples
    }

    /// Steps of each.
    pub(super) fn steps(&self) -> usize {
        self.diffusion.schedule.len()
    }

    /// `[N, H, W, C]` of all images.
    pub(super) fn shape(&self) -> [usize; 4] {
        let model = &self.config.model;
        [self.total(), model.image_size, model.image_size, model.in_channels]
    }

    /// Refuses what the machine has no memory for; a remark if not enough is free.
    pub(super) fn check_memory(&self) -> Result<Option<String>, ConfigError> {
        let machine = if self.network.device() == Device::Cpu { memory::of_machine() } else { None };
        memory::check_sampling(self.config, machine)
    }

    /// Says what begins, with `done` images from before.
    pub(super) fn begin(&self, done: usize, emit: &mut Emit) {
        emit(Event::Sampling { done, total: self.total(), steps: self.steps() });
        for remark in remarks(self.order, self.config, self.classes.as_ref()) {
            emit(Event::Notice(remark));
        }
        if self.config.diffusion.variance.is_learned() && !self.reverse.rule.uses_variance() {
            emit(Event::Notice(
                "this sampler does not use the variance that the network has learned; ddpm does".into(),
            ));
        }
        let beyond = self.reverse.corrections.levels_beyond(&self.diffusion.schedule);
        if beyond > 0 {
            emit(Event::Notice(format!(
                "ideal-ip: at the first {beyond} of {} steps t' lies beyond the last timestep, which is used instead",
                self.steps()
            )));
        }
    }

    /// Draws the images from number `done` on, which all ranks share, and passes the bytes `[n, H, W, C]` of each batch on at
    /// rank 0.
    pub(super) fn draw(
        &self,
        mut done: usize,
        ranks: &Ranks,
        stop: &AtomicBool,
        emit: &mut Emit,
        take: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<Outcome, Error> {
        let settings = &self.config.sample;
        let [total, size, _, channels] = self.shape();
        let weaker = self.weaker.as_ref().map(Loaded::model).transpose()?;
        let of_weaker = weaker
            .as_ref()
            .and_then(|weaker| Guidance::rule(settings).map(|rule| Guidance { rule, weak: Weak::Network(weaker) }));
        let chain = Chain {
            diffusion: &self.diffusion,
            network: &self.network.model()?,
            reverse: &self.reverse,
            guide: self.guide.as_ref(),
            guidance: of_weaker.as_ref().or(self.guidance.as_ref()),
            shape: [channels, size, size],
        };
        let scaled = match settings.correct.auto() {
            Some(measured) => {
                emit(Event::Begins(format!("looking for the scale of {measured}")));
                let labels = self.labels(&(0..total as u64).collect::<Vec<_>>())?;
                let parameters = &self.network.parameters;
                let found =
                    resolve_auto(Path::new(measured), self.config, parameters, &chain, labels.as_deref(), stop)?;
                let Some(scale) = found else { return Ok(Outcome::Interrupted) };
                emit(Event::Notice(format!("es-auto: epsilon is divided by {scale:.5}")));
                Some(Reverse { corrections: self.reverse.corrections.with_scale(scale), ..self.reverse.clone() })
            }
            None => None,
        };
        let chain = Chain { reverse: scaled.as_ref().unwrap_or(&self.reverse), ..chain };
        let seeded = Seeded(settings.seed);
        let draws: &dyn Draws = self.given.as_ref().map_or(&seeded, |given| given);
        let emit = std::cell::RefCell::new(emit);
        let (count, stopped) = (ranks.count(), || stop.load(Ordering::Relaxed));
        let make = |batch: Range<usize>| {
            let images: Vec<u64> = batch.clone().map(|i| i as u64).collect();
            let labels = self.labels(&images)?;
            let low_res = self.small.as_ref().map(|small| small.enlarged(&images, size));
            let (labels, low_res) = (labels.as_deref(), low_res.as_deref());
            let drawn = chain.draw(Subjects { images: &images, labels, low_res, draws }, |step| {
                // The others are about as far.
                let batch_of_all = (count * batch.len()).min(total - batch.start);
                emit.borrow_mut()(Event::SampleStep { done: batch.start, step, batch: batch_of_all });
                !stopped()
            });
            let Some(drawn) = drawn else { return Ok(None) };
            if !drawn.iter().all(|v| v.is_finite()) {
                let message = "its network draws images that are not finite: check the file, the noise given, and \
                               the settings that differ from the checkpoint's";
                return Err(Error::file(&self.network.file, message));
            }
            Ok(Some(to_u8(&drawn, channels, size * size)))
        };
        let pass_on = |bytes: &[u8], done| {
            if ranks.leads() {
                take(bytes)?;
            }
            emit.borrow_mut()(Event::Sampled { done });
            Ok(!stopped())
        };
        let whole = ranks.share_out(&mut done, total, settings.batch_size, make, pass_on)?;
        Ok(if whole { Outcome::Finished } else { Outcome::Interrupted })
    }

    /// The class of each image, if there are classes to choose from.
    pub(super) fn labels(&self, images: &[u64]) -> Result<Option<Vec<u32>>, ConfigError> {
        let wanted = &self.order.classes;
        let Some(classes) = &self.classes else {
            return match wanted {
                Some(_) => Err(ConfigError("--classes was given, but the network has no classes".into())),
                None => Ok(None),
            };
        };
        let count = classes.count;
        if let Some(wrong) = wanted.iter().flatten().find(|&&c| c as usize >= count) {
            return Err(ConfigError(format!(
                "--classes names class {wrong}, but the network has classes 0 to {}",
                count.saturating_sub(1)
            )));
        }
        let labels: Vec<u32> = match (wanted, self.small.as_ref().and_then(|small| small.labels(images))) {
            (Some(given), _) if !given.is_empty() => images.iter().map(|&i| given[i as usize % given.len()]).collect(),
            (_, Some(own)) => own,
            _ => random_labels(images, &classes.trained, self.config.sample.seed),
        };
        match labels.iter().find(|&&label| label as usize >= count) {
            Some(wrong) => {
                Err(ConfigError(format!("--base-samples have a class {wrong}, but the network has {count} classes")))
            }
            None => Ok(Some(labels)),
        }
    }
}

/// The classes that there are to choose from, if any.
fn classes(
    order: &Order,
    config: &Config,
    of_network: Option<usize>,
    guide: Option<&Guide>,
) -> Result<Option<Classes>, ConfigError> {
    let count = match (of_network, guide.map(Guide::classes)) {
        (Some(n), Some(g)) if n != g => {
            return Err(ConfigError(format!("the network has {n} classes, but the classifier has {g}")));
        }
        (n, g) => n.or(g),
    };
    // Those of the network, or of the classifier that leads it.
    let own: &ClassesConfig = match &order.classifier {
        Some(guide) if of_network.is_none() => &guide.config.classes,
        _ => &config.classes,
    };
    Ok(count.map(|count| Classes { count, trained: own.trained(count) }))
}

/// What is to be said about settings that do something else than they seem to.
fn remarks(order: &Order, config: &Config, classes: Option<&Classes>) -> Vec<String> {
    let mut remarks = Vec::new();
    let sample = &config.sample;
    if order.guide_with.is_some() && sample.guidance_scale == 1.0 {
        remarks.push("--guide-with does nothing with --guidance-scale 1: use more, such as 2".into());
    }
    if let (Respacing::Ddim(_), SamplerKind::Ddpm) = (&sample.timestep_respacing, sample.sampler) {
        remarks.push(format!(
            "--timestep-respacing {} chooses the timesteps, not the sampler, which is ddpm here. For DDIM use \
             --use-ddim true",
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
        match &order.classes {
            None => {
                let left_out: Vec<u32> = (0..*count as u32).filter(untrained).collect();
                remarks.push(format!(
                    "{} of the {count} classes had no images in training and are left out: {}. --classes draws them \
                     anyway",
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
fn small_images(order: &Order, config: &Config, emit: &mut Emit) -> Result<Option<SmallImages>, Error> {
    let total = config.sample.num_samples;
    match (&order.base_samples, config.model.arch == Arch::Superres) {
        (None, false) => Ok(None),
        (Some(source), true) => {
            let small = SmallImages::read(source, config, total)?;
            if small.len() < total {
                let (n, source) = (small.len(), source.display());
                emit(Event::Warning(format!("{source} holds {n} images: they are repeated up to {total}")));
            }
            Ok(Some(small))
        }
        (None, true) => Err(ConfigError(
            "a super-resolution network enlarges images: give them with --base-samples (an npz of samples, a folder)"
                .into(),
        )
        .into()),
        (Some(_), false) => {
            Err(ConfigError("--base-samples was given, but the network enlarges no images (--arch superres)".into())
                .into())
        }
    }
}
