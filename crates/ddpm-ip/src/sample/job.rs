//! A file of samples.

use super::draw::Drawer;
use super::{GuideJob, Order};
use crate::Error;
use crate::checkpoint::{self, Loaded, Origin};
use crate::config::{Config, ConfigError, SampleConfig};
use crate::data::contact_sheet;
use crate::event::{Emit, Event, Outcome};
use crate::file::{check_folder, create_folder, stamp, write_atomic};
use crate::npz::{Npz, NpzWriter};
use crate::partial::Partial;
use crate::ranks::Place;
use crate::record::Record;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// The most images a grid shows.
const GRID_IMAGES: usize = 256;

/// What to draw and where to put it.
#[derive(Clone, Debug)]
pub struct Job {
    /// A parameter file, checkpoint folder or run directory.
    pub checkpoint: PathBuf,
    /// Network, diffusion and sampling settings.
    pub config: Config,
    /// What is drawn.
    pub order: Order,
    /// The npz to write; a folder (or nothing) stands for `samples_NxHxWxC.npz` in it.
    pub out: Option<PathBuf>,
    /// A PNG of the first images.
    pub grid: Option<PathBuf>,
    /// Whether what is there already is replaced.
    pub overwrite: bool,
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
}

/// Draws the images, going on where an interrupted call with the same settings stopped.
///
/// # Errors
/// Settings that do not fit the checkpoint, damaged files, failing reads or writes. Finished images are kept in
/// `OUT.partial` until the npz is complete.
pub fn run(job: &Job, place: impl Into<Place>, stop: &AtomicBool, emit: &mut Emit) -> Result<Outcome, Error> {
    let Place { device, ranks } = place.into();
    job.config.validate()?;
    let network = Loaded::open(&job.checkpoint, &job.config, device)?;
    let (file, config) = (&network.file, &network.config);
    let drawer = Drawer::new(&network, config, &job.order, emit)?;
    if !ranks.leads() {
        return drawer.draw(0, &ranks, stop, emit, &mut |_| Ok(()));
    }
    let (settings, steps) = (&config.sample, drawer.steps());
    let shape @ [total, size, _, channels] = drawer.shape();
    let out = job.out_path();
    let image_bytes = size * size * channels;
    if let Some(grid) = job
        .grid
        .as_ref()
        .filter(|grid| grid.is_dir() || !grid.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png")))
    {
        return Err(
            ConfigError(format!("--grid {} is not the name of a picture: end it in .png", grid.display())).into()
        );
    }
    if out.is_dir() {
        return Err(ConfigError(format!("--out {} is a folder: name a file", out.display())).into());
    }
    if let Some(folder) = job.out.as_deref().filter(|path| *path != out) {
        check_folder("--out", folder, "end it in .npz, or name a folder")?;
    }
    let origin = Origin::of(file);
    let of_noise = match &job.order.initial_noise {
        Some(noise) => format!("noise of {}", noise.display()),
        None => format!("seed {}", settings.seed),
    };
    let what = format!("{origin}: {}, {steps} steps, {of_noise}", settings.sampler.name());
    let identity = identity(job, file)?;
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
            let message =
                format!("--grid {} exists: choose another file, or replace it with --overwrite", grid.display());
            return Err(ConfigError(message).into());
        }
    }
    if let Some(remark) = drawer.check_memory()? {
        emit(Event::Warning(remark));
    }
    for folder in [Some(&out), job.grid.as_ref()].into_iter().flatten().filter_map(|path| path.parent()) {
        create_folder(folder)?;
    }
    let own =
        checkpoint::config_of(file)?.map_or_else(|| checkpoint::config_with(file, config), |own| Ok(Some(own)))?;
    if let Some(own) = own {
        for (key, now, before) in config.changes_from(&own) {
            let speed_alone = ["model.precision", "model.use_checkpoint"].contains(&key.as_str());
            if (key.starts_with("model.") && !speed_alone) || key.starts_with("diffusion.") {
                emit(Event::Warning(format!("{key} is {now}; the checkpoint was made with {before}")));
            }
        }
    }
    let (mut partial, done) = Partial::open(&out, &identity, image_bytes, job.overwrite, device, emit)?;
    let done = done.min(total);
    let there = if done > 0 { format!(", {done} are there") } else { String::new() };
    emit(Event::Begins(format!("drawing {total} image(s) of {what}{there}")));
    drawer.begin(done, emit);
    let outcome = drawer.draw(done, &ranks, stop, emit, &mut |batch| partial.append(batch))?;
    if outcome == Outcome::Interrupted {
        return Ok(outcome);
    }
    let labels = drawer.labels(&(0..total as u64).collect::<Vec<_>>())?;
    let mut shown = Vec::new();
    write_atomic(&out, |w| {
        let mut npz = NpzWriter::new(w);
        npz.array::<u8>("arr_0", &shape, |push| {
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

/// A line that differs between two calls whenever their images could: the number of images is not in it.
fn identity(job: &Job, file: &Path) -> Result<String, Error> {
    let sample = SampleConfig { batch_size: 1, num_samples: 1, ..job.config.sample.clone() };
    let config = Config { sample, ..job.config.clone() };
    let noise = job.order.initial_noise.as_deref().map(stamp).transpose()?;
    let small = job.order.base_samples.as_deref().map(stamp).transpose()?;
    let bias = config.sample.correct.auto().map(|file| stamp(Path::new(file))).transpose()?;
    let network = |guide: &Option<GuideJob>| match guide {
        Some(guide) => Ok::<_, Error>(Some((stamp(&checkpoint::resolve(&guide.checkpoint)?)?, guide.config.clone()))),
        None => Ok(None),
    };
    let (classifier, guide_with) = (network(&job.order.classifier)?, network(&job.order.guide_with)?);
    let line = serde_json::json!({
        "checkpoint": stamp(file)?, "classes": job.order.classes, "initial_noise": noise, "config": config,
        "classifier": classifier, "guide_with": guide_with, "base_samples": small, "bias": bias,
    });
    Ok(line.to_string())
}
