//! Training what is missing, drawing, measuring.

use super::page;
use super::plan::{Member, Plan, Sampling};
use crate::bias;
use crate::checkpoint::{self, Store};
use crate::config::{Arch, Config, ConfigError, Layers};
use crate::data::Dataset;
use crate::evaluate::{self, EvaluationHook, Yardstick};
use crate::event::{Emit, Event, Outcome};
use crate::file::{append, create_folder};
use crate::npz::Npz;
use crate::sample;
use crate::train::{self, Hook, RunOptions, open_data_of_network};
use crate::words::{grouped, time};
use crate::{Error, weights};
use ddpm_math::{Domain, philox::permutation};
use ddpm_net::Device;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Images whose features are made together.
const BATCH: usize = 250;

/// Images of each variant that are shown.
pub(super) const SHOWN: usize = 36;

/// What to compare, and where to put it.
#[derive(Clone, Debug)]
pub struct Job {
    /// The plan.
    pub plan: Plan,
    /// The folder that the plan's paths are relative to.
    pub base: PathBuf,
    /// The folder for runs, samples, results and the page.
    pub out: PathBuf,
    /// How images are measured.
    pub settings: evaluate::Settings,
}

/// A distance: a line of `results.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The variant; none for real images.
    pub variant: Option<String>,
    /// The seed of its training.
    pub seed: u64,
    /// Steps of training.
    pub step: u64,
    /// The sampler, with what was set beside.
    pub sampler: String,
    /// Its steps T′.
    pub steps: usize,
    /// Images.
    pub images: usize,
    /// What they were compared with.
    pub reference: String,
    /// By which feature network.
    pub features: String,
    /// The Fréchet distance.
    pub fid: f64,
    /// Differs between two lines that were measured of different images, or otherwise.
    pub identity: String,
}

/// Images that were drawn of one network, in one way.
#[derive(Clone, Debug)]
pub(super) struct Drawn {
    pub(super) member: usize,
    pub(super) sampler: String,
    pub(super) steps: usize,
    pub(super) file: PathBuf,
}

/// Everything that is there of a comparison.
#[derive(Default)]
pub(super) struct Results {
    pub(super) points: Vec<Point>,
    pub(super) drawn: Vec<Drawn>,
    /// Member and report.
    pub(super) bias: Vec<(usize, bias::Report)>,
}

/// A piece of the work.
enum Piece<'a> {
    Train(&'a Config),
    Draw(&'a Sampling, usize),
    Bias(&'a Sampling),
}

impl Piece<'_> {
    /// Which of the measured speeds is its, and how much of it.
    fn work(&self) -> (usize, f64) {
        match self {
            Self::Train(config) => {
                let images = config.train.last_step().map(|last| last as f64 * config.train.batch_size as f64);
                let secs = || config.train.time_limit().ok().flatten().map_or(0.0, |limit| limit.as_secs_f64());
                (0, images.unwrap_or_else(secs))
            }
            Self::Draw(sampling, steps) => (1, (sampling.images * steps) as f64),
            Self::Bias(sampling) => (2, (sampling.images * sampling.steps[0].pow(2)) as f64),
        }
    }
}

/// Carries out a comparison, going on where an interrupted call stopped, and writes its page.
///
/// # Errors
/// Settings, data or runs that cannot be used; failing reads or writes; a training that diverges.
pub fn run(job: &Job, device: Device, stop: &AtomicBool, emit: &mut Emit) -> Result<Outcome, Error> {
    let mut members = job.plan.members(&job.base, &job.out)?;
    for member in &mut members {
        match &mut member.config {
            Some(config) => *config = train::resolve(config)?,
            None => member.seed = settings_of(member)?.train.seed,
        }
    }
    check(&job.plan, &members, device)?;
    create_folder(&job.out)?;
    let lines = job.out.join("results.jsonl");
    let earlier = std::fs::read_to_string(&lines).unwrap_or_default();
    let earlier: Vec<Point> = earlier.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mut work = Work { job, lines, earlier, results: Results::default(), device, stop, yardstick: None };
    let pieces = pieces(&job.plan, &members);
    let mut speeds = [(0.0, Duration::ZERO); 3];
    let mut outcome = Outcome::Finished;
    for (done, (at, piece)) in pieces.iter().enumerate() {
        let secs = |(kind, work): (usize, f64)| work * speeds[kind].1.as_secs_f64() / speeds[kind].0;
        let left: f64 = pieces[done..].iter().map(|(_, piece)| secs(piece.work())).sum();
        let left = if left.is_finite() { format!(", about {} left", time(left)) } else { String::new() };
        let (member, of) = (&members[*at], format!("{} of {}{left}", done + 1, pieces.len()));
        let begin = Instant::now();
        let (ended, is_new) = match piece {
            Piece::Train(config) => work.train(member, config, &of, emit)?,
            Piece::Draw(sampling, steps) => work.draw(*at, member, sampling, *steps, &of, emit)?,
            Piece::Bias(sampling) => work.bias(*at, member, sampling, &of, emit)?,
        };
        outcome = ended;
        if outcome == Outcome::Interrupted {
            break;
        }
        if is_new {
            // What came before counts half, so that an hour beside other work is soon forgotten.
            let ((kind, amount), elapsed) = (piece.work(), begin.elapsed());
            speeds[kind] = (speeds[kind].0 / 2.0 + amount, speeds[kind].1 / 2 + elapsed);
            page::write(job, &members, &work.results)?;
        }
    }
    if let (Some(real), Outcome::Finished) = (&job.plan.real, outcome) {
        outcome = work.real(real, emit)?;
    }
    page::write(job, &members, &work.results)?;
    Ok(outcome)
}

/// What a network is trained with, or was.
fn settings_of(member: &Member) -> Result<Config, Error> {
    if let Some(config) = &member.config {
        return Ok(config.clone());
    }
    let newest = Store::new(&member.run).newest()?.map(|(_, folder)| checkpoint::resolve(&folder)).transpose()?;
    let config = newest.map(|file| checkpoint::config_of(&file)).transpose()?.flatten();
    config.ok_or_else(|| Error::file(&member.run, "holds no checkpoint with settings: name a run directory"))
}

/// Refuses networks whose distances would not compare, that draw nothing, or that were trained with other settings; and ways to
/// sample that they do not allow.
fn check(plan: &Plan, members: &[Member], device: Device) -> Result<(), Error> {
    let mut first: Option<(&Member, [String; 5])> = None;
    for member in members {
        let config = settings_of(member)?;
        if config.model.arch == Arch::Classifier {
            return Err(Error::file(&member.run, "holds a classifier, which draws no images"));
        }
        let changes = match &member.config {
            Some(config) => train::changes_of_run(&member.run, config, device)?,
            None => Vec::new(),
        };
        if !changes.is_empty() {
            let message = format!(
                "the plan's variant {} is not what was trained in {} ({}): give the variant another name, or remove that folder",
                member.variant,
                member.run.display(),
                changes.join("; ")
            );
            return Err(ConfigError(message).into());
        }
        for sampling in plan.sample.iter().chain(&plan.bias) {
            for &steps in &sampling.steps {
                let checked = sampled(&config, sampling, steps).and_then(|config| config.validate());
                checked.map_err(|e| ConfigError(format!("variant {}: {e}", member.variant)))?;
            }
        }
        let evaluation = &config.evaluation;
        let images = if evaluation.reference.is_empty() { &config.data.data_dir } else { &evaluation.reference };
        let fit = format!("{:?}", config.data.fit).to_lowercase();
        let size = format!("{}x{0}", config.model.image_size);
        let own = [images.clone(), size, config.model.in_channels.to_string(), fit, evaluation.features.clone()];
        let Some((other, theirs)) = &first else {
            first = Some((member, own));
            continue;
        };
        let what = ["source of real images", "size of images", "number of channels", "fit", "feature network"];
        if let Some(at) = (0..own.len()).find(|&at| own[at] != theirs[at]) {
            let message = format!(
                "{} and {} cannot be compared: the {} differs ({:?} and {:?})",
                other.variant, member.variant, what[at], theirs[at], own[at]
            );
            return Err(ConfigError(message).into());
        }
    }
    Ok(())
}

/// All that is to be done, in order, each with its network.
fn pieces<'a>(plan: &'a Plan, members: &'a [Member]) -> Vec<(usize, Piece<'a>)> {
    let mut pieces = Vec::new();
    for (at, member) in members.iter().enumerate() {
        pieces.extend(member.config.iter().map(|config| (at, Piece::Train(config))));
        let draws = plan.sample.iter().flat_map(|sampling| sampling.steps.iter().map(move |&steps| (sampling, steps)));
        pieces.extend(draws.map(|(sampling, steps)| (at, Piece::Draw(sampling, steps))));
        let is_first = members[..at].iter().all(|before| before.variant != member.variant);
        pieces.extend(plan.bias.iter().filter(|_| is_first).map(|sampling| (at, Piece::Bias(sampling))));
    }
    pieces
}

struct Work<'a> {
    job: &'a Job,
    lines: PathBuf,
    earlier: Vec<Point>,
    results: Results,
    device: Device,
    stop: &'a AtomicBool,
    /// Made with the settings of the first network that was drawn from.
    yardstick: Option<(Yardstick, Config)>,
}

/// How a piece ended, and whether it took work.
type Done = (Outcome, bool);

impl Work<'_> {
    fn train(&mut self, member: &Member, config: &Config, of: &str, emit: &mut Emit) -> Result<Done, Error> {
        if is_trained(&member.run, config)? {
            return Ok((Outcome::Finished, false));
        }
        emit(Event::Enters(member.run.clone()));
        emit(Event::Begins(format!("{of}: training {}, seed {}", member.variant, member.seed)));
        let hook = EvaluationHook::new(config, &member.run, &self.job.settings, self.device, self.stop, emit)?;
        let hooks = hook.into_iter().map(|hook| Box::new(hook) as Box<dyn Hook>).collect();
        let options = RunOptions { device: self.device, ..RunOptions::default() };
        Ok((train::train(config, &member.run, options, hooks, self.stop, emit)?, true))
    }

    /// The settings of a network's newest checkpoint, with those of a way to sample.
    fn sampling(member: &Member, sampling: &Sampling, steps: usize) -> Result<(PathBuf, u64, Config), Error> {
        let Some((step, folder)) = Store::new(&member.run).newest()? else {
            return Err(Error::file(&member.run, "holds no checkpoint"));
        };
        let file = checkpoint::resolve(&folder)?;
        let Some(own) = checkpoint::config_of(&file)? else {
            return Err(Error::file(&file, "carries no settings: it was not written by this program"));
        };
        let config = sampled(&own, sampling, steps)?;
        Ok((folder, step, config))
    }

    fn draw(
        &mut self,
        at: usize,
        member: &Member,
        sampling: &Sampling,
        steps: usize,
        of: &str,
        emit: &mut Emit,
    ) -> Result<Done, Error> {
        let (folder, step, config) = Self::sampling(member, sampling, steps)?;
        let sampler = describe(sampling);
        let name = format!("{}-{}", member.variant, member.seed);
        let hash = weights::short_hash(format!("{sampler} {}", sampling.images).as_bytes());
        let file = self
            .job
            .out
            .join("samples")
            .join(name)
            .join(format!("{step}-{}-{steps}-{hash}.npz", sampling.sampler.name()));
        let is_new = !file.exists();
        if is_new {
            emit(Event::Begins(format!(
                "{of}: {} images of {}, seed {}, by {sampler} in {steps} steps",
                grouped(sampling.images as f64),
                member.variant,
                member.seed
            )));
        }
        let job = sample::Job {
            checkpoint: folder,
            config: config.clone(),
            order: sample::Order::default(),
            out: Some(file.clone()),
            grid: None,
            overwrite: false,
        };
        if is_new && sample::run(&job, self.device, self.stop, emit)? == Outcome::Interrupted {
            return Ok((Outcome::Interrupted, true));
        }
        self.results.drawn.push(Drawn { member: at, sampler: sampler.clone(), steps, file: file.clone() });
        let point = Point {
            variant: Some(member.variant.clone()),
            seed: member.seed,
            step,
            sampler,
            steps,
            images: sampling.images,
            reference: String::new(),
            features: String::new(),
            fid: 0.0,
            identity: file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into()),
        };
        let measured = self.measure(point, &config, &file, emit)?;
        Ok((if measured { Outcome::Finished } else { Outcome::Interrupted }, is_new))
    }

    /// Measures a file of samples, unless that was done before; whether it came to its end.
    fn measure(&mut self, mut point: Point, config: &Config, file: &Path, emit: &mut Emit) -> Result<bool, Error> {
        if self.yardstick.is_none() {
            let yardstick = Yardstick::new(config, &self.job.settings, self.device, self.stop, emit)?;
            self.yardstick = yardstick.map(|yardstick| (yardstick, config.clone()));
        }
        let Some((yardstick, _)) = &self.yardstick else { return Ok(false) };
        let written = file.metadata().and_then(|about| about.modified()).map_err(Error::io("read", file))?;
        let all = serde_json::json!([
            point.variant,
            point.seed,
            point.identity,
            yardstick.identity,
            humantime::format_rfc3339(written).to_string()
        ]);
        point.identity = weights::short_hash(all.to_string().as_bytes());
        if let Some(earlier) = self.earlier.iter().find(|earlier| earlier.identity == point.identity) {
            self.results.points.push(earlier.clone());
            return Ok(true);
        }
        let failed = |e: fidelity::FidelityError| Error::file(file, format!("cannot be compared: {e}"));
        let (size, mut npz) = ([config.model.image_size, config.model.in_channels], Npz::open(file)?);
        let distance = yardstick.distance(size, failed, |take| {
            let mut done = 0;
            npz.byte_rows::<Error>("arr_0", BATCH, &mut |rows| {
                take(rows)?;
                done += BATCH;
                emit(Event::Measuring {
                    what: point.sampler.clone(),
                    done: done.min(point.images),
                    total: point.images,
                });
                Ok(!self.stop.load(Ordering::Relaxed))
            })?;
            Ok(!self.stop.load(Ordering::Relaxed))
        })?;
        let Some(fid) = distance else { return Ok(false) };
        (point.fid, point.reference, point.features) = (fid, yardstick.name.clone(), yardstick.features().into());
        append(&self.lines, &point)?;
        self.results.points.push(point);
        Ok(true)
    }

    fn bias(
        &mut self,
        at: usize,
        member: &Member,
        sampling: &Sampling,
        of: &str,
        emit: &mut Emit,
    ) -> Result<Done, Error> {
        let (folder, step, mut config) = Self::sampling(member, sampling, sampling.steps[0])?;
        let hash =
            weights::short_hash(format!("{} {} {}", describe(sampling), sampling.steps[0], sampling.images).as_bytes());
        let out = self.job.out.join("bias").join(format!("{}-{}-{step}-{hash}", member.variant, member.seed));
        let file = out.join("bias.json");
        let is_new = !file.exists();
        if is_new {
            emit(Event::Begins(format!("{of}: exposure bias of {}, seed {}", member.variant, member.seed)));
            config.sample.batch_size = config.sample.batch_size.min(64);
            config.sample.num_samples = sampling.images.min(Dataset::count_and_shape(&config.data.data_dir)?.0);
            let job = bias::Job { checkpoints: vec![(folder, config)], out, short: None, features: None };
            if bias::run(&job, self.device, self.stop, emit)?.0 == Outcome::Interrupted {
                return Ok((Outcome::Interrupted, true));
            }
        }
        self.results.bias.push((at, bias::Report::read(&file)?));
        Ok((Outcome::Finished, is_new))
    }

    /// Measures real images that nothing was trained on, as many as were drawn.
    fn real(&mut self, real: &str, emit: &mut Emit) -> Result<Outcome, Error> {
        let Some((yardstick, config)) = &self.yardstick else { return Ok(Outcome::Finished) };
        let mut config = config.clone();
        config.data.data_dir = real.into();
        let data = open_data_of_network(&config)?;
        let counts: BTreeSet<usize> = self.results.points.iter().map(|point| point.images).collect();
        for images in counts {
            if data.len() < images {
                emit(Event::Warning(format!(
                    "{real} has {} images, not {images}: their distance is left out",
                    data.len()
                )));
                continue;
            }
            let all = serde_json::json!([real, images, data.describe(), yardstick.identity]).to_string();
            let identity = weights::short_hash(all.as_bytes());
            if let Some(earlier) = self.earlier.iter().find(|earlier| earlier.identity == identity) {
                self.results.points.push(earlier.clone());
                continue;
            }
            let failed = |e: fidelity::FidelityError| Error::file(Path::new(real), format!("cannot be compared: {e}"));
            let size = [config.model.image_size, config.model.in_channels];
            let chosen = &permutation(0, Domain::Order, 0, data.len())[..images];
            let distance = yardstick.distance(size, failed, |take| {
                for batch in chosen.chunks(BATCH) {
                    let batch = batch.iter().map(|&i| data.image(i as usize)).collect::<Result<Vec<_>, _>>()?;
                    take(&batch.concat())?;
                }
                Ok(!self.stop.load(Ordering::Relaxed))
            })?;
            let Some(fid) = distance else { return Ok(Outcome::Interrupted) };
            let (reference, features) = (yardstick.name.clone(), yardstick.features().into());
            let (sampler, variant) = (format!("real images of {real}"), None);
            let point =
                Point { variant, seed: 0, step: 0, sampler, steps: 0, images, reference, features, fid, identity };
            append(&self.lines, &point)?;
            self.results.points.push(point);
        }
        Ok(Outcome::Finished)
    }
}

/// Whether a run has come to the end that its settings say, by steps or by time.
fn is_trained(run: &Path, config: &Config) -> Result<bool, Error> {
    let Some((step, folder)) = Store::new(run).newest()? else { return Ok(false) };
    let elapsed = checkpoint::progress(&folder)?.elapsed_secs;
    let by_time = config.train.time_limit()?.is_some_and(|limit| elapsed >= limit.as_secs_f64());
    Ok(by_time || config.train.last_step().is_some_and(|last| step >= last))
}

/// The settings of a network with those of a way to sample.
fn sampled(own: &Config, sampling: &Sampling, steps: usize) -> Result<Config, ConfigError> {
    let mut layers = Layers::default();
    layers.add(own.to_toml().parse::<toml::Table>().map_err(|e| ConfigError(e.to_string()))?)?;
    layers.add(sampling.settings.clone())?;
    let respacing = if steps == own.diffusion.diffusion_steps { String::new() } else { steps.to_string() };
    let (sampler, images) = (sampling.sampler.name(), sampling.images.to_string());
    layers.set([
        ("sample.sampler", sampler),
        ("sample.timestep_respacing", &respacing),
        ("sample.num_samples", &images),
        ("sample.seed", "0"),
    ])?;
    let mut config = layers.resolve()?;
    config.classes = own.classes.clone();
    config.model.auto_precision = own.model.auto_precision;
    Ok(config)
}

/// A way to sample in words.
fn describe(sampling: &Sampling) -> String {
    let table = |settings: &toml::Table| -> Vec<String> {
        settings
            .values()
            .filter_map(toml::Value::as_table)
            .flat_map(|section| section.iter().map(|(key, value)| format!("{key} {value}")))
            .collect()
    };
    let all: Vec<String> =
        std::iter::once(sampling.sampler.name().to_string()).chain(table(&sampling.settings)).collect();
    all.join(", ")
}
