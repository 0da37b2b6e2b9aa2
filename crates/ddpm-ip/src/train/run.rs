//! A run directory, from the first step or from where it stopped.

use super::calls::Begun;
use super::changes::{another_run, changes, check_beginning, command};
use super::remarks::{classes_by_prefix, remarks_on_data};
use super::together::{Waits, agree, follow, same_work, skipped};
use super::watch::WatchHook;
use super::{CheckpointHook, GridHook, Hook, LogHook, Next, StepReport, Task, Trainer};
use crate::Error;
use crate::checkpoint::{self, State, Store, Trio};
use crate::config::{Arch, Config, ConfigError};
use crate::data::{Dataset, Labels, Loader, Options};
use crate::event::{Emit, Event, Outcome};
use crate::file::{check_folder, create_folder, write_atomic};
use crate::memory::{self, Memory};
use crate::posthoc::PosthocHook;
use crate::ranks::Ranks;
use crate::sample::SmallImages;
use ddpm_net::{Device, GPU_AVERAGES};
use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where a run keeps which of cuDNN's engines were the fastest, if they were timed.
const ENGINES: &str = "engines.tsv";

/// Batches that decoding may be ahead of the training.
const PREFETCH: usize = 4;

/// How a run is carried out, apart from what it learns.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Where it computes.
    pub device: Device,
    /// Whether it goes on although the machine seems to have too little memory.
    pub ignore_memory_limit: bool,
    /// Whoever sets it has a checkpoint saved after the step at hand; saving clears it.
    pub save: Arc<AtomicBool>,
    /// The processes that share the run. All of them call [`train`]; rank 0 alone writes files and has hooks.
    pub ranks: Ranks,
}

impl From<Device> for RunOptions {
    fn from(device: Device) -> Self {
        Self { device, ..Self::default() }
    }
}

/// Trains until the configuration's end, in the run directory `dir`; goes on from its newest checkpoint if it has one.
/// After `stop` is set it finishes the step, saves and returns [`Outcome::Interrupted`]. `hooks` run after the run's
/// own log, checkpoint and grid, and their time does not count as training.
///
/// # Errors
/// A configuration, data or checkpoint that cannot be used; failing reads or writes; divergence.
pub fn train(
    config: &Config,
    dir: &Path,
    options: impl Into<RunOptions>,
    hooks: Vec<Box<dyn Hook + '_>>,
    stop: &AtomicBool,
    emit: &mut Emit,
) -> Result<Outcome, Error> {
    let mut begun = None;
    // Whatever was being saved is there when it returns.
    let result = run(config, dir, options.into(), hooks, stop, emit, &mut begun).map_err(|e| with_last_good(e, dir));
    if let Some(call) = begun {
        call.end(&result);
    }
    result
}

fn run(
    config: &Config,
    dir: &Path,
    RunOptions { device, ignore_memory_limit, save, mut ranks }: RunOptions,
    mut hooks: Vec<Box<dyn Hook + '_>>,
    stop: &AtomicBool,
    emit: &mut Emit,
    begun: &mut Option<Begun>,
) -> Result<Outcome, Error> {
    let (leads, mut nobody) = (ranks.leads(), |_: Event| {});
    // What all ranks would say, rank 0 says.
    let (emit, own): (&mut Emit, Option<&mut Emit>) = if leads { (emit, None) } else { (&mut nobody, Some(emit)) };
    check_folder("--out", dir, "name a folder for the run")?;
    config.validate()?;
    if config.sample.guidance_scale != 1.0 {
        config.check_guidance(&config.sample)?;
    }
    check_place(dir, &config.data.data_dir)?;
    let dataset = open_data(config)?;
    dataset.check_batch(config.train.batch_size)?;
    let mut config = with_classes(config, &dataset)?;
    let store = Store::new(dir);
    // Nobody else moves what is there.
    let held = (leads && store.exists()).then(|| lock(dir)).transpose()?;
    let newest = if leads {
        store.newest_whole(&mut |folder, aside, problem| {
            let (folder, aside) = (folder.display(), aside.display());
            emit(Event::Warning(format!("skipped {folder}, which is damaged ({problem}); it was renamed to {aside}")));
        })?
    } else {
        None
    };
    let before = newest.as_ref().map(|(_, path)| checkpoint::config_of(&path.join("model.safetensors")));
    let before = before.transpose()?.flatten();
    same_work(&ranks, &config, &dataset)?;
    config.settle(device, before.as_ref());
    ranks.cut(&mut config.train, before.as_ref().map(|before| &before.train))?;
    let of_first = ranks.told(config.to_toml().as_bytes())?;
    if !leads {
        let data_dir = std::mem::take(&mut config.data.data_dir);
        config = Config::from_toml(&String::from_utf8_lossy(&of_first))?;
        config.data.data_dir = data_dir;
    }
    if let (Some((step, _)), Some(before)) = (&newest, &before) {
        check_beginning(&config, before, dir, *step)?;
    }
    check_averages(&config, device)?;
    // Before anything is planned.
    let engines = dir.join(ENGINES);
    if let Device::Cuda(gpu) = device {
        gpu.take_tuned(&engines);
    }
    let task = Task::new(&config, device)?;
    check_size(&task)?;
    if let Some(classes) = classes_by_prefix(&config, &dataset) {
        emit(Event::Notice(classes));
    }
    for remark in remarks_on_data(&config, &dataset)? {
        emit(Event::Warning(remark));
    }
    if let Some(text) = crate::device::describe(device) {
        emit(Event::Notice(format!("computing in {} on {text}", task.precision(&config).name())));
    }
    if !ignore_memory_limit && let Some(remark) = fits(&config, &task, &dataset, &ranks)? {
        emit(Event::Warning(remark));
    }
    let mut changed = Vec::new();
    let state = match &newest {
        Some((step, path)) => {
            let loaded = Store::load(path, task.layout(), &config.train);
            let (state, fresh) = loaded.map_err(|e| match &before {
                Some(before) => another_run(e, dir, *step, before, &task),
                None => e,
            })?;
            changed = before.as_ref().map(|before| changes(before, &config)).unwrap_or_default();
            for change in &changed {
                emit(Event::Warning(change.clone()));
            }
            if let (Some(before), false) = (&before, changed.is_empty()) {
                emit(Event::Notice(format!("`{}` would resume with the run's own settings", command(before, dir))));
            }
            emit(Event::Notice(format!("resuming at step {step} from {}", path.display())));
            for rate in fresh {
                emit(Event::Warning(no_average(rate)));
            }
            Some(state)
        }
        None if leads => beginning(&config, &task, emit)?,
        None => None,
    };
    if held.is_some() {
        // What a call before had no time to finish, and those that it had no time to remove.
        store.remove_unfinished()?;
        let keep = config.train.keep_checkpoints;
        for old in store.keep_newest(keep)? {
            emit(Event::Notice(format!("removed {} (--keep-checkpoints {keep})", old.display())));
        }
    }
    let parameters = task.parameter_count();
    if let Some(remark) = ranks.join_gpus(device)? {
        emit(Event::Notice(remark));
    }
    let mut trainer = Trainer::new(config, task, state)?.among(ranks.clone())?;
    let gpu = crate::device::engines(device);
    match (&trainer.state.progress.gpu, &gpu) {
        (Some(before), None) => {
            let speed = trainer.expected_speed();
            emit(Event::Warning(format!(
                "this run was on {before} and resumes on the CPU, at about {speed:.1} images/s: --device cuda says \
                 why no GPU is used"
            )));
        }
        (Some(before), Some(gpu)) if before != gpu => emit(Event::Notice(crate::device::chosen_anew(before))),
        _ => {}
    }
    trainer.state.progress.gpu = gpu;
    let config = trainer.config.clone();
    let time_limit = config.train.time_limit()?;
    let last_step = config.train.last_step();
    let over = |step: u64, elapsed: f64| {
        last_step.is_some_and(|last| step >= last)
            || time_limit.is_some_and(|limit: Duration| elapsed >= limit.as_secs_f64())
    };
    let small = match config.model.arch {
        Arch::Superres => Some(SmallImages::of_large(&dataset, &config, config.train.grid_images.max(1))?),
        _ => None,
    };
    let mut grid = GridHook::new(dir.join("samples"), small, stop);
    let first_step = trainer.step();
    if over(first_step, trainer.state.progress.elapsed_secs) {
        if !leads {
            return Ok(Outcome::Finished);
        }
        if !changed.is_empty() {
            let message = format!(
                "{} holds a complete run of {first_step} steps with other settings: choose another --out, or raise \
                 --steps or --duration to resume with the new settings",
                dir.display()
            );
            return Err(ConfigError(message).into());
        }
        if newest.is_none() {
            let message = format!("--resume-checkpoint is at step {first_step} already: raise --steps to train on");
            return Err(ConfigError(message).into());
        }
        if grid.is_missing(&trainer) {
            grid.draw(&trainer, emit)?;
        }
        // What an interrupted call left undone at the end.
        for hook in &mut hooks {
            hook.after_step(&trainer, &StepReport::default(), Next::Finish, emit)?;
        }
        if stop.load(Ordering::Relaxed) && (grid.is_missing(&trainer) || !hooks.is_empty()) {
            emit(Event::Warning(left_out(first_step)));
            return Ok(Outcome::Interrupted);
        }
        emit(Event::Warning(format!(
            "the run is complete at step {first_step}: raise --steps or --duration to train on"
        )));
        return Ok(Outcome::Finished);
    }
    if last_step.is_none() && time_limit.is_none() {
        emit(Event::Warning("neither --steps nor --duration was given: training continues until Ctrl-C".into()));
    }
    let images = dataset.len();
    let (batch_size, seed, seen) = (config.train.batch_size, config.train.seed, trainer.state.progress.images);
    let mut validation = if leads { Validation::open(&config, first_step)? } else { None };
    let mut loader = Loader::start(dataset, trainer.share(), seed, seen, config.data.workers, PREFETCH)?;
    if let Some(emit) = own {
        return follow(&mut trainer, &mut loader, stop, &save, over, emit);
    }
    // A new directory is not made before all is known to be well.
    let _held = if let Some(held) = held {
        held
    } else {
        create_folder(dir)?;
        let held = lock(dir)?;
        // The process that held it may have saved.
        if store.newest()?.is_some() {
            return Err(Error::file(
                dir,
                "another process has started a run here meanwhile: repeat the command to resume it",
            ));
        }
        held
    };
    write_atomic(&dir.join("config.toml"), |w| w.write_all(config.to_toml().as_bytes()))?;
    let call = begun.insert(Begun::new(dir, first_step, device, trainer.task.precision(&config))?);
    emit(Event::Started { parameters, images, step: trainer.step(), last_step, time_limit, batch_size });
    if let Device::Cuda(gpu) = device {
        gpu.keep_tuned_in(&engines);
    }
    let (mut log, mut saving, mut watch) =
        (LogHook::new(), CheckpointHook::new(&store, save.clone()), WatchHook::new(&trainer));
    let mut posthoc = PosthocHook::new(dir, &trainer, emit)?;

    if first_step > 0 {
        grid.resume(&trainer, emit)?;
        hooks.iter_mut().try_for_each(|hook| hook.resume(&trainer, emit))?;
    }
    let before = Duration::try_from_secs_f64(trainer.state.progress.elapsed_secs).unwrap_or_default();
    let (begin, mut in_hooks, mut waits) = (Instant::now(), Duration::ZERO, Waits::default());
    loop {
        let since = Instant::now();
        let batch = match loader.next() {
            Ok(batch) => batch,
            Err(error) => {
                // The run is good up to here; only its images are not. But others do not send their parts now.
                if trainer.step() > first_step && trainer.is_whole() {
                    saving.save(&trainer, emit)?;
                }
                return Err(error);
            }
        };
        let waited = since.elapsed().as_secs_f64();
        let mut report = trainer.train_step(&batch)?;
        call.step = trainer.step();
        report.secs = since.elapsed().as_secs_f64();
        if let Some(lg) = trainer.lg_loss_scale().filter(|_| report.overflowed()) {
            let step = trainer.step();
            emit(Event::Notice(format!(
                "step {step} skipped: a gradient overflowed f16; the loss scale is now 2^{lg:.3}"
            )));
        }
        if let Some(validation) = &mut validation {
            report.validation = validation.after(&trainer)?;
        }
        let elapsed = before + begin.elapsed().saturating_sub(in_hooks);
        emit(Event::Step { step: trainer.step(), elapsed, loss: report.mean_loss() });
        let own: [&dyn Hook; 5] = [&log, &posthoc, &saving, &watch, &grid];
        let wants = own.into_iter().chain(hooks.iter().map(|hook| &**hook)).any(|hook| hook.wants_state(&trainer));
        let (next, waited) = agree(&mut trainer, (elapsed.as_secs_f64(), waited, wants), stop, &save, over)?;
        if let Some(remark) = waits.see(trainer.step(), report.secs, &waited, &ranks) {
            emit(Event::Warning(remark));
        }
        let finished = next == Next::Finish;
        watch.see(&trainer, &batch);
        // A checkpoint comes before what takes long; averages come before it, as what follows it is done again after a crash.
        let own: [&mut dyn Hook; 5] = [&mut log, &mut posthoc, &mut saving, &mut watch, &mut grid];
        for hook in own {
            hook.after_step(&trainer, &report, next, emit)?;
        }
        let since = Instant::now();
        for hook in &mut hooks {
            hook.after_step(&trainer, &report, next, emit)?;
        }
        in_hooks += since.elapsed();
        if next != Next::Step {
            skipped(&loader, emit);
            // The run may be complete, but not what was to be done at its end.
            let cut_short = stop.load(Ordering::Relaxed) && (grid.is_missing(&trainer) || !hooks.is_empty());
            if finished && cut_short {
                emit(Event::Warning(left_out(trainer.step())));
            }
            return Ok(if finished && !cut_short { Outcome::Finished } else { Outcome::Interrupted });
        }
    }
}

/// What is said when a run is complete and its end was interrupted.
fn left_out(step: u64) -> String {
    format!(
        "training is complete at step {step}, but what is drawn at its end is missing: repeat the command to draw it"
    )
}

fn no_average(rate: f64) -> String {
    format!("no EMA of rate {rate} was saved: it starts at the current parameters")
}

/// Where a new run begins, if not at the network's first values.
fn beginning(config: &Config, task: &Task, emit: &mut Emit) -> Result<Option<State>, Error> {
    let settings = &config.train;
    if !settings.resume_checkpoint.is_empty() {
        if let Some(folder) = checkpoint::saved_in(Path::new(&settings.resume_checkpoint))? {
            let (state, fresh) = Store::load(&folder, task.layout(), settings)?;
            emit(Event::Notice(format!("resuming at step {} from {}", state.progress.step, folder.display())));
            for rate in fresh {
                emit(Event::Warning(no_average(rate)));
            }
            return Ok(Some(state));
        }
        if !settings.posthoc_ema.is_empty() {
            return Err(ConfigError(
                "--posthoc-ema keeps EMAs from the start of a run, which the reference's files of \
                 --resume-checkpoint do not have: leave it out, or start a new run with --init-from"
                    .into(),
            )
            .into());
        }
        let trio = Trio::new(Path::new(&settings.resume_checkpoint))?;
        let (state, remarks) = trio.load(task.layout(), &settings.ema_rate, settings.batch_size)?;
        emit(Event::Notice(format!("resuming at step {} from {}", state.progress.step, settings.resume_checkpoint)));
        for remark in remarks {
            emit(Event::Warning(remark));
        }
        return Ok(Some(state));
    }
    if settings.init_from.is_empty() {
        return Ok(None);
    }
    let file = checkpoint::resolve(Path::new(&settings.init_from))?;
    let network = &config.sample.network;
    if let (_, Some(remark)) = checkpoint::list(&file, network)? {
        emit(Event::Notice(remark));
    }
    checkpoint::check_description(&file, config)?;
    let parameters = checkpoint::load(&file, task.layout(), network)?;
    emit(Event::Notice(format!("starting from the parameters of {}", file.display())));
    Ok(Some(State::new(parameters, settings)))
}

/// Number of values over all parameters of a configuration's network.
///
/// # Errors
/// Flags that describe no network.
pub fn parameter_count(config: &Config) -> Result<usize, ConfigError> {
    Ok(Task::new(config, Device::default())?.parameter_count())
}

/// What the images of a run take.
fn data_memory(config: &Config, dataset: &Dataset) -> Memory {
    memory::of_data(config, dataset.bytes_in_memory(), PREFETCH)
}

/// What a run of a configuration holds at most: a training step on a device, and its images, which wait in main memory.
///
/// # Errors
/// As [`resolve`].
pub fn memory(config: &Config, device: Device) -> Result<[Memory; 2], Error> {
    let dataset = open_data(config)?;
    Ok([memory::of_training(config, device)?, data_memory(config, &dataset)])
}

/// What [`train`] says of a device's memory: a remark if not enough is free.
///
/// # Errors
/// As [`resolve`], and too little memory.
pub fn check_memory(config: &Config, device: Device) -> Result<Option<String>, Error> {
    Ok(fits(config, &Task::new(config, device)?, &*open_data(config)?, &Ranks::default())?)
}

/// What is said of the memory of a device for a run of some processes, of which those of a machine share its memory.
fn fits(config: &Config, task: &Task, dataset: &Dataset, ranks: &Ranks) -> Result<Option<String>, ConfigError> {
    let machine = memory::of_device(task.device());
    // Beside a GPU images wait in main memory.
    if task.device() != Device::Cpu {
        return memory::check(config, task, &Memory::default(), machine, ranks.count());
    }
    let processes = ranks.on_this_machine();
    let machine = machine.map(|machine| if processes > 1 { machine.share(processes) } else { machine });
    memory::check(config, task, &data_memory(config, dataset), machine, ranks.count())
}

/// Images on which a classifier is tried out.
struct Validation {
    loader: Loader,
    interval: u64,
}

impl Validation {
    fn open(config: &Config, first_step: u64) -> Result<Option<Self>, Error> {
        if config.model.arch != Arch::Classifier || config.data.val_data_dir.is_empty() {
            return Ok(None);
        }
        let mut of_validation = config.clone();
        of_validation.data.data_dir.clone_from(&config.data.val_data_dir);
        of_validation.data.random_crop = false;
        let dataset = open_data_of_network(&of_validation)?;
        with_classes(&of_validation, &dataset)?;
        let (batch, interval) = (config.train.batch_size, config.train.eval_interval);
        let seen = first_step.div_ceil(interval) * batch as u64;
        let loader = Loader::start(dataset, batch, config.train.seed, seen, config.data.workers, 1)?;
        Ok(Some(Self { loader, interval }))
    }

    /// What the classifier makes of a batch, if it is time.
    fn after(&mut self, trainer: &Trainer) -> Result<Option<Box<StepReport>>, Error> {
        if !(trainer.step() - 1).is_multiple_of(self.interval) {
            return Ok(None);
        }
        Ok(trainer.validate(&self.loader.next()?).map(Box::new))
    }
}

/// Opens the configuration's images.
pub(crate) fn open_data(config: &Config) -> Result<Arc<Dataset>, Error> {
    read_data(config).map(Arc::new)
}

/// As [`open_data`], for a network that is there: classes with names have its numbers.
pub(crate) fn open_data_of_network(config: &Config) -> Result<Arc<Dataset>, Error> {
    Ok(Arc::new(read_data(config)?.numbered_by(&config.classes.names)?))
}

fn read_data(config: &Config) -> Result<Dataset, Error> {
    let (data, model) = (&config.data, &config.model);
    let has_classes = model.class_cond || model.arch == Arch::Classifier;
    let labels = match data.labels {
        Labels::Auto if has_classes => Labels::Prefix,
        labels => labels,
    };
    if data.data_dir.is_empty() {
        let message = "no training images: name them with --data-dir (`digits`, a folder, an npz or an IDX file)";
        return Err(ConfigError(message.into()).into());
    }
    let options = Options {
        image_size: model.image_size,
        channels: model.in_channels,
        labels,
        fit: data.fit,
        allow_upscale: data.allow_upscale,
        random_crop: data.random_crop,
        random_flip: data.random_flip,
        on_bad_image: data.on_bad_image,
        exif_rotate: data.exif_rotate,
    };
    let dataset = Dataset::open(&data.data_dir, &options)?;
    dataset.check_classes()?;
    Ok(dataset)
}

/// The configuration that a run would have: checked, with the number of classes that the images have.
///
/// # Errors
/// As [`train`], before it writes anything.
pub fn resolve(config: &Config) -> Result<Config, Error> {
    config.validate()?;
    let dataset = open_data(config)?;
    dataset.check_batch(config.train.batch_size)?;
    let config = with_classes(config, &dataset)?;
    check_size(&Task::new(&config, Device::default())?)?;
    Ok(config)
}

/// Fills in or checks the number of classes.
fn with_classes(config: &Config, dataset: &Dataset) -> Result<Config, Error> {
    let mut config = config.clone();
    let (classes, flag) = match config.model.arch {
        Arch::Classifier => (&mut config.classifier.num_classes, "--classifier-num-classes"),
        _ if config.model.class_cond => (&mut config.model.num_classes, "--num-classes"),
        _ => return Ok(config),
    };
    let Some(labels) = dataset.labels() else {
        let message = "a network with classes needs labels, but these images have none: say where they come from \
                       with --labels prefix (file names up to the first `_`) or --labels folder";
        return Err(ConfigError(message.into()).into());
    };
    let found = labels.iter().max().map_or(0, |&l| l as usize + 1).max(dataset.class_names().len());
    if *classes == 0 {
        *classes = found;
    } else if *classes < found {
        return Err(ConfigError(format!("{flag} is {classes} but the images have {found} classes")).into());
    }
    let count = *classes as u32;
    let seen: BTreeSet<u32> = labels.iter().copied().collect();
    config.classes.untrained = (0..count).filter(|class| !seen.contains(class)).collect();
    if !dataset.class_names().is_empty() {
        config.classes.names = dataset.class_names().to_vec();
    }
    Ok(config)
}

/// Keeps other processes out of a run directory for as long as the result lives.
fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join(".lock");
    let file = File::create(&path).map_err(Error::io("write", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::file(
            dir,
            "another process is training in this run directory: wait for it, or choose another --out",
        )),
        Err(TryLockError::Error(e)) => Err(Error::io("lock", &path)(e)),
    }
}

/// Refuses more averages than a GPU keeps in one pass.
fn check_averages(config: &Config, device: Device) -> Result<(), ConfigError> {
    let count = config.train.ema_rate.len() + config.train.posthoc_ema.len();
    if device == Device::Cpu || count <= GPU_AVERAGES {
        return Ok(());
    }
    let message = format!(
        "{count} EMAs (--ema-rate, --posthoc-ema): a GPU keeps at most {GPU_AVERAGES}. Leave some out, or train with \
         --device cpu"
    );
    Err(ConfigError(message))
}

/// Refuses a network that no machine holds.
fn check_size(network: &Task) -> Result<(), Error> {
    const MOST_PARAMETERS: usize = 20_000_000_000;
    let count = network.parameter_count();
    if count <= MOST_PARAMETERS {
        return Ok(());
    }
    let message = format!("this network would have {count} parameters: use fewer --num-channels or --num-res-blocks");
    Err(ConfigError(message).into())
}

/// Refuses a run directory whose grids would become training images.
fn check_place(dir: &Path, data_dir: &str) -> Result<(), Error> {
    let absolute = |path: &Path| std::path::absolute(path).ok();
    let data = Path::new(data_dir);
    let inside = data.is_dir() && absolute(dir).zip(absolute(data)).is_some_and(|(dir, data)| dir.starts_with(data));
    if !inside {
        return Ok(());
    }
    let message = format!("--out {} lies in the folder of the training images: choose another folder", dir.display());
    Err(ConfigError(message).into())
}

fn with_last_good(error: Error, dir: &Path) -> Error {
    match error {
        Error::Diverged { step, what, .. } => {
            let last_good = Store::new(dir).newest().ok().flatten().map(|(_, path)| path);
            Error::Diverged { step, what, last_good }
        }
        other => other,
    }
}
