//! How near samples are to real images: Fréchet distances, Inception Score, precision, recall and kernel distance.

mod bench;
mod features;
mod foreign;
mod grey;
mod hook;
mod neighbours;
mod network;
mod statistics;

pub use bench::{BenchReport, bench};
pub use hook::EvaluationHook;
pub use network::{Choice, FID_INCEPTION, FeatureNetwork, OnnxChoice, Rows};
pub use statistics::Statistics;

use crate::Error;
use crate::config::ConfigError;
use crate::data::{ImageSet, Labels, Shape};
use crate::event::{Emit, Event, Outcome};
use crate::npz::Npz;
use burn::tensor::Device;
use features::{FeatureFile, Measured, content, measure};
use fidelity::{
    Features, FidelityError, Gaussian, InceptionScore, Moments, PrecisionRecall, Subsets,
    extrapolated_frechet_distance, frechet_distance, kernel_distance, precision_recall,
};
use neighbours::Neighbours;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Samples below which a Fréchet distance is too large by more than a little.
const FEW_IMAGES: usize = 10_000;

/// Distances through which the extrapolated one is fitted.
const EXTRAPOLATION_POINTS: usize = 15;

/// Samples that an extrapolation needs.
const LEAST_EXTRAPOLATED: usize = 20;

/// Rows of a class that are summed up together.
const CLASS_ROWS: usize = 512;

/// How sets are compared.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The network; none for [`Choice::Grey`] where all images are grey, else FID-Inception.
    pub features: Option<Choice>,
    /// What is computed beside Fréchet distances.
    pub metrics: Vec<Metric>,
    /// Images that go through the network together; does not change the results.
    pub batch_size: usize,
    /// What images are brought to first; as they are if there is none.
    pub shape: Option<Shape>,
    /// Where a folder's classes come from.
    pub labels: Labels,
    /// Samples that are used, the first ones.
    pub num_images: Option<usize>,
    /// Rows per split of the Inception Score.
    pub split: usize,
    /// Neighbours in precision and recall.
    pub k: usize,
    /// Subsets of the kernel distance.
    pub subsets: Subsets,
    /// Whether the distance is extrapolated to infinitely many samples.
    pub extrapolate: bool,
    /// Whether classes are compared one by one.
    pub per_class: bool,
    /// A PNG of samples beside the reference images nearest to them.
    pub neighbours: Option<PathBuf>,
    /// Seed of subsets.
    pub seed: u64,
    /// Where features are kept; nowhere if there is none.
    pub cache: Option<PathBuf>,
    /// Where weights are looked for.
    pub weights: PathBuf,
}

impl Default for Settings {
    /// As the reference's evaluator compares, with nothing kept.
    fn default() -> Self {
        Self {
            features: None,
            metrics: vec![Metric::InceptionScore, Metric::PrecisionRecall, Metric::KernelDistance],
            batch_size: 32,
            shape: None,
            labels: Labels::None,
            num_images: None,
            split: InceptionScore::SPLIT,
            k: 3,
            subsets: Subsets::default(),
            extrapolate: false,
            per_class: false,
            neighbours: None,
            seed: 0,
            cache: None,
            weights: PathBuf::new(),
        }
    }
}

/// A metric that needs more than means and covariances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// The Inception Score.
    InceptionScore,
    /// Improved precision and recall.
    PrecisionRecall,
    /// The kernel distance.
    KernelDistance,
}

/// What to compare.
#[derive(Clone, Debug)]
pub struct Job {
    /// Real images: anything that [`ImageSet`] opens, or a file of statistics.
    pub reference: String,
    /// Generated images: the same, or a run directory, whose newest samples are taken.
    pub samples: String,
    /// How.
    pub settings: Settings,
}

/// One side of a comparison, in a report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SideReport {
    /// What was compared.
    pub source: String,
    /// Images behind the means and covariances, where that is known.
    pub images: Option<usize>,
}

/// A class's distance.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassReport {
    /// Its number, or its name where both sides are folders with names.
    pub class: String,
    /// Reference images and samples of it.
    pub images: [usize; 2],
    /// The Fréchet distance, where both have two images at least.
    pub frechet_distance: Option<f64>,
}

/// Results. A pair is a value and its error; what was not asked for or cannot be computed is none.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The real images.
    pub reference: SideReport,
    /// The generated ones.
    pub samples: SideReport,
    /// The feature network.
    pub features: String,
    /// What was done to images before.
    pub resize: String,
    /// What must be known of the numbers.
    pub remark: Option<String>,
    /// Fréchet distance of the features.
    pub fid: f64,
    /// Fréchet distance of the spatial features.
    pub sfid: Option<f64>,
    /// Fréchet distance extrapolated to infinitely many samples, and its standard error.
    pub fid_infinity: Option<[f64; 2]>,
    /// Inception Score: mean over splits and their standard deviation.
    pub inception_score: Option<[f64; 2]>,
    /// Share of the samples within the reference's reach.
    pub precision: Option<f64>,
    /// Share of the reference within the samples' reach.
    pub recall: Option<f64>,
    /// Kernel distance: mean over subsets and their standard deviation.
    pub kid: Option<[f64; 2]>,
    /// Distances class by class.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassReport>,
    /// Samples and the reference images nearest to them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neighbours: Option<Neighbours>,
}

/// A side that is open: statistics, images, or both.
struct Side {
    name: String,
    statistics: Option<Statistics>,
    images: Option<ImageSet>,
    /// Hash of the images, once they were gone through.
    content: Option<String>,
}

impl Side {
    /// Opens a file of statistics, a run's samples or images.
    fn open(name: &str, settings: &Settings) -> Result<Self, Error> {
        let path = run_samples(Path::new(name))?;
        let name = path.as_ref().map_or(name.into(), |path| path.to_string_lossy().into_owned());
        let path = Path::new(&name);
        let mut statistics = None;
        if path.extension().is_some_and(|e| e == "npz") && path.is_file() {
            statistics = Statistics::read(path)?;
            if statistics.is_some() && !Npz::open(path)?.has("arr_0") {
                return Ok(Self { name, statistics, images: None, content: None });
            }
        }
        let images = Some(ImageSet::open(&name, settings.shape, settings.per_class.then_some(settings.labels))?);
        Ok(Self { name, statistics, images, content: None })
    }

    /// That there are images enough for a distribution.
    fn check_count(&self) -> Result<(), Error> {
        match &self.images {
            Some(set) if set.len() < 2 => {
                Err(Error::file(Path::new(&self.name), "holds one image: a distribution needs at least two"))
            }
            _ => Ok(()),
        }
    }

    fn labels(&self) -> Option<&[u32]> {
        self.images.as_ref().and_then(ImageSet::labels)
    }

    /// Goes through the images once, which tells mistakes before any features are made. Whether it came to the end.
    fn go_through(&mut self, network: &FeatureNetwork, stop: &AtomicBool) -> Result<bool, Error> {
        if let Some(statistics) = &self.statistics {
            check_statistics(Path::new(&self.name), statistics, network)?;
        }
        self.check_count()?;
        if let Some(set) = &self.images {
            if let Some(reason) = network.refuses(set.image_shape()[2]) {
                return Err(Error::file(Path::new(&self.name), reason));
            }
            self.content = content(set, stop)?;
        }
        Ok(self.images.is_none() || self.content.is_some())
    }
}

/// A side with everything that can be known of it.
struct Known {
    name: String,
    statistics: Statistics,
    features: Option<FeatureFile>,
    images: Option<ImageSet>,
}

impl Known {
    /// Features in memory.
    fn rows(&self) -> Result<Option<Vec<f32>>, Error> {
        self.features.as_ref().map(FeatureFile::all).transpose()
    }

    fn report(&self) -> SideReport {
        SideReport { source: self.name.clone(), images: self.statistics.images }
    }
}

/// The newest `samples_*.npz` of a run directory; none if `path` is none.
fn run_samples(path: &Path) -> Result<Option<PathBuf>, Error> {
    if !is_run(path) {
        return Ok(None);
    }
    let entries = std::fs::read_dir(path).map_err(Error::io("list", path))?;
    let samples = entries.filter_map(Result::ok).filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("samples_") && name.ends_with(".npz")
    });
    let newest = samples.max_by_key(|entry| entry.metadata().and_then(|m| m.modified()).ok());
    let none = || {
        let message = format!(
            "this run has no samples_*.npz yet: draw some with `ddpm-ip sample --checkpoint {0} --out {0}`",
            path.display()
        );
        Error::file(path, message)
    };
    newest.map(|entry| Some(entry.path())).ok_or_else(none)
}

fn is_run(path: &Path) -> bool {
    path.join("config.toml").is_file() && path.join("checkpoints").is_dir()
}

/// The run directory that samples lie in, if they do.
fn run_of(samples: &Path) -> Option<&Path> {
    [Some(samples), samples.parent()].into_iter().flatten().find(|path| is_run(path))
}

/// Compares two sets, and adds a line to the `evaluations.jsonl` of the samples' run if they lie in one.
///
/// # Errors
/// Sets that cannot be read or compared, missing weights, failing writes.
pub fn evaluate(
    job: &Job,
    device: &Device,
    stop: &AtomicBool,
    emit: &mut Emit,
) -> Result<(Outcome, Option<Report>), Error> {
    let settings = &job.settings;
    let mut reference = Side::open(&job.reference, settings)?;
    let mut samples = Side::open(&job.samples, settings)?;
    if let Some(most) = settings.num_images {
        samples.images = samples.images.map(|set| set.take(most));
        samples.statistics = samples.statistics.filter(|_| samples.images.is_none());
    }
    check_shapes(&reference, &samples)?;
    for side in [&reference, &samples] {
        side.check_count()?;
    }
    check_wishes(&reference, &samples, settings)?;
    if let Some(sheet) = &settings.neighbours {
        check_target(sheet, &[&reference, &samples])?;
        make_folder(sheet)?;
    }
    let network = network(&[&reference, &samples], settings, device)?;
    if !(reference.go_through(&network, stop)? && samples.go_through(&network, stop)?) {
        return Ok((Outcome::Interrupted, None));
    }
    let Some(reference) = know(reference, &network, settings, stop, emit)? else {
        return Ok((Outcome::Interrupted, None));
    };
    let Some(samples) = know(samples, &network, settings, stop, emit)? else {
        return Ok((Outcome::Interrupted, None));
    };
    let report = compare(&reference, &samples, &network, job, emit)?;
    if let Some(run) = run_of(Path::new(&samples.name)) {
        // The report is not lost with it.
        if let Err(e) = append(&run.join("evaluations.jsonl"), &report) {
            emit(Event::Warning(e.to_string()));
        }
    }
    Ok((Outcome::Finished, Some(report)))
}

/// Computes the statistics of a set of images and writes them to `out`.
///
/// # Errors
/// Images that cannot be read, missing weights, failing writes.
pub fn statistics(
    images: &str,
    out: &Path,
    settings: &Settings,
    device: &Device,
    stop: &AtomicBool,
    emit: &mut Emit,
) -> Result<(Outcome, Option<Statistics>), Error> {
    let mut side = Side::open(images, settings)?;
    // They are computed anew, whatever stands beside the images.
    side.statistics = None;
    if side.images.is_none() {
        return Err(Error::file(
            Path::new(images),
            "holds statistics and no images (`arr_0`): there is nothing to compute",
        ));
    }
    check_target(out, &[&side])?;
    make_folder(out)?;
    let network = network(&[&side], settings, device)?;
    if !side.go_through(&network, stop)? {
        return Ok((Outcome::Interrupted, None));
    }
    let Some(known) = know(side, &network, settings, stop, emit)? else { return Ok((Outcome::Interrupted, None)) };
    if let Some(remark) = network.remark() {
        emit(Event::Notice(remark));
    }
    known.statistics.write(out)?;
    Ok((Outcome::Finished, Some(known.statistics)))
}

/// That a file to be written is none of the images.
fn check_target(target: &Path, sides: &[&Side]) -> Result<(), ConfigError> {
    let Ok(real) = target.canonicalize() else { return Ok(()) };
    let inside = |side: &&&Side| Path::new(&side.name).canonicalize().is_ok_and(|images| real.starts_with(images));
    match sides.iter().find(inside) {
        Some(side) => Err(ConfigError(format!(
            "{} is one of the files of {} and would be lost: name another file to write",
            target.display(),
            side.name
        ))),
        None => Ok(()),
    }
}

/// Makes the folder of a file that is to be written, before the work for it.
fn make_folder(target: &Path) -> Result<(), Error> {
    match target.parent() {
        Some(folder) => std::fs::create_dir_all(folder).map_err(Error::io("create", folder)),
        None => Ok(()),
    }
}

/// That both sides, where they have images, have them of one shape.
fn check_shapes(reference: &Side, samples: &Side) -> Result<(), ConfigError> {
    let (Some(a), Some(b)) = (&reference.images, &samples.images) else { return Ok(()) };
    let [[h, w, c], [h2, w2, c2]] = [a.image_shape(), b.image_shape()];
    if [h, w] != [h2, w2] {
        return Err(ConfigError(format!(
            "the images of {} have {w}x{h} pixels, those of {} {w2}x{h2}: compare images of one size, or bring both to one \
             with --image-size N and --fit crop or pad",
            a.name(),
            b.name()
        )));
    }
    if c != c2 {
        return Err(ConfigError(format!(
            "the images of {} have {c} channel(s), those of {} {c2}: compare images of the same kind",
            a.name(),
            b.name()
        )));
    }
    Ok(())
}

/// That what was asked for can be had of these sides, before features take their time.
fn check_wishes(reference: &Side, samples: &Side, settings: &Settings) -> Result<(), ConfigError> {
    let both_have_images = reference.images.is_some() && samples.images.is_some();
    let refuse = |message: &str| Err(ConfigError(message.into()));
    if samples.images.is_none() && (settings.extrapolate || settings.num_images.is_some()) {
        return refuse("--extrapolate and --num-images need the samples' images: the samples are statistics alone");
    }
    let few = samples.images.as_ref().filter(|set| settings.extrapolate && set.len() < LEAST_EXTRAPOLATED);
    if let Some(set) = few {
        let message = format!("--extrapolate needs {LEAST_EXTRAPOLATED} samples, {} has {}", set.name(), set.len());
        return Err(ConfigError(message));
    }
    if settings.metrics.contains(&Metric::PrecisionRecall) && both_have_images {
        let sides = [&reference.images, &samples.images].into_iter().flatten();
        if let Some(set) = sides.into_iter().find(|set| set.len() <= settings.k) {
            return Err(ConfigError(format!(
                "precision and recall with --k {} need more images than that on each side, {} has {}: leave them out with \
                 --metrics, or use a smaller --k",
                settings.k,
                set.name(),
                set.len()
            )));
        }
    }
    if settings.per_class {
        if !both_have_images {
            return refuse("--per-class needs images on both sides: a file of statistics has no classes");
        }
        if [reference, samples].iter().any(|side| side.labels().is_none()) {
            return refuse("--per-class needs labels on both sides: `arr_1` of an npz, or --labels for a folder");
        }
    }
    match (&settings.neighbours, &samples.images) {
        (Some(_), _) if !both_have_images => {
            refuse("--neighbours needs images on both sides: a file of statistics has none to show")
        }
        (Some(path), Some(set)) => neighbours::check(path, set),
        _ => Ok(()),
    }
}

/// The network that was asked for, or fits the images.
fn network(sides: &[&Side], settings: &Settings, device: &Device) -> Result<FeatureNetwork, Error> {
    let grey = sides.iter().all(|side| match (&side.images, &side.statistics) {
        (Some(set), _) => set.image_shape()[2] == 1,
        (None, Some(statistics)) => statistics.network == FeatureNetwork::GREY,
        (None, None) => false,
    });
    let choice = settings.features.clone().unwrap_or(if grey { Choice::Grey } else { Choice::Inception(None) });
    FeatureNetwork::open(&choice, &settings.weights, device)
}

/// Statistics of a side that was gone through, from its file or its images, and their features; none if `stop` was set.
fn know(
    side: Side,
    network: &FeatureNetwork,
    settings: &Settings,
    stop: &AtomicBool,
    emit: &mut Emit,
) -> Result<Option<Known>, Error> {
    // Statistics of a file do for a Fréchet distance, and for nothing else.
    let wanted =
        !settings.metrics.is_empty() || settings.extrapolate || settings.per_class || settings.neighbours.is_some();
    let measured = match (&side.images, &side.content) {
        (Some(set), Some(content)) if side.statistics.is_none() || wanted => {
            if set.image_shape()[2] == 1 && network.is_for_colour() {
                emit(Event::Notice(format!("{}: grey images count as three equal channels", side.name)));
            }
            let cache = settings.cache.as_deref();
            let measured = measure(set, content, network, settings.batch_size, cache, stop, emit)?;
            let Some(measured) = measured else { return Ok(None) };
            Some(measured)
        }
        _ => None,
    };
    let (of_images, features) = match measured {
        Some(Measured { statistics, features }) => (Some(statistics), Some(features)),
        None => (None, None),
    };
    // What a file says goes before what its images give: the reference's hold a part of the images alone.
    let statistics = side.statistics.or(of_images).unwrap_or_else(|| unreachable!("a side has one or the other"));
    Ok(Some(Known { name: side.name, statistics, features, images: side.images }))
}

fn check_statistics(path: &Path, statistics: &Statistics, network: &FeatureNetwork) -> Result<(), Error> {
    if statistics.network != network.name() && !(statistics.network == FID_INCEPTION && network.is_inception()) {
        let message = format!(
            "these are statistics of {}, the features asked for are of {}: such distances mean nothing. Choose the \
             network with --features",
            statistics.network,
            network.name()
        );
        return Err(Error::file(path, message));
    }
    let widths = [Some(network.width()), statistics.spatial.as_ref().map(|_| network.spatial_width())];
    let found = [Some(&statistics.features), statistics.spatial.as_ref()].map(|g| g.map(Gaussian::width));
    if found != widths {
        let message = format!(
            "its statistics have {} columns, the features of {} have {}: they are of another network",
            found.iter().flatten().map(ToString::to_string).collect::<Vec<_>>().join(" and "),
            network.name(),
            widths.iter().flatten().map(ToString::to_string).collect::<Vec<_>>().join(" and "),
        );
        return Err(Error::file(path, message));
    }
    Ok(())
}

fn compare(
    reference: &Known,
    samples: &Known,
    network: &FeatureNetwork,
    job: &Job,
    emit: &mut Emit,
) -> Result<Report, Error> {
    let settings = &job.settings;
    let at = Path::new(&samples.name);
    let failed = |e: FidelityError| Error::file(at, format!("cannot be compared with {}: {e}", reference.name));
    let wants = |metric: Metric| settings.metrics.contains(&metric);

    let (ours, theirs) = (&samples.statistics, &reference.statistics);
    let fid = frechet_distance(&theirs.features, &ours.features).map_err(failed)?;
    let sfid = match (&theirs.spatial, &ours.spatial) {
        (Some(a), Some(b)) => Some(frechet_distance(a, b).map_err(failed)?),
        _ => None,
    };
    let inception_score = match &samples.features {
        Some(features) if wants(Metric::InceptionScore) && network.classes() > 0 => {
            let mut score = InceptionScore::new(network.classes(), settings.split);
            features.rows(|rows| {
                let probabilities = softmax(&network.logits(rows), network.classes());
                score.push(&probabilities, [rows.len() / network.width(), network.classes()]).map_err(failed)
            })?;
            Some(score.finish().map_err(failed)?)
        }
        _ => None,
    };
    let needs_both = settings.metrics.iter().any(|metric| *metric != Metric::InceptionScore)
        || settings.per_class
        || job.settings.neighbours.is_some();
    let rows_of_samples = if needs_both || settings.extrapolate { samples.rows()? } else { None };
    let rows_of_reference = if needs_both { reference.rows()? } else { None };
    let [of_samples, of_reference] =
        [&rows_of_samples, &rows_of_reference].map(|rows| rows.as_deref().map(|rows| as_features(rows, network)));
    let (of_samples, of_reference) =
        (of_samples.transpose().map_err(failed)?, of_reference.transpose().map_err(failed)?);
    let fid_infinity = match of_samples {
        Some(rows) if settings.extrapolate => {
            let found = extrapolated_frechet_distance(&theirs.features, rows, EXTRAPOLATION_POINTS, settings.seed);
            Some(found.map_err(failed)?)
        }
        _ => None,
    };
    let mut by_images = ByImages::default();
    match of_reference.zip(of_samples) {
        Some(both) => by_images = compare_images([reference, samples], both, job, emit)?,
        None if needs_both => {
            emit(Event::Notice("precision, recall and KID need images on both sides: one has statistics alone".into()));
        }
        None => {}
    }
    if [theirs, ours].iter().any(|side| side.images.is_some_and(|n| n < FEW_IMAGES)) {
        let offer = if settings.extrapolate { "" } else { "; --extrapolate estimates it for infinitely many samples" };
        emit(Event::Warning(format!(
            "with fewer than {FEW_IMAGES} images a Fréchet distance is too large, the more so the fewer there are{offer}"
        )));
    }
    Ok(Report {
        reference: reference.report(),
        samples: samples.report(),
        features: network.name().into(),
        resize: network.resize(),
        remark: network.remark(),
        fid,
        sfid,
        fid_infinity,
        inception_score,
        precision: by_images.precision_recall.map(|p| p.precision),
        recall: by_images.precision_recall.map(|p| p.recall),
        kid: by_images.kid,
        classes: by_images.classes,
        neighbours: by_images.neighbours,
    })
}

fn as_features<'a>(rows: &'a [f32], network: &FeatureNetwork) -> Result<Features<'a>, FidelityError> {
    Features::new(rows, [rows.len() / network.width(), network.width()])
}

/// What is known only of features one by one.
#[derive(Default)]
struct ByImages {
    precision_recall: Option<PrecisionRecall>,
    kid: Option<[f64; 2]>,
    classes: Vec<ClassReport>,
    neighbours: Option<Neighbours>,
}

fn compare_images(
    sides: [&Known; 2],
    (reference, samples): (Features, Features),
    job: &Job,
    emit: &mut Emit,
) -> Result<ByImages, Error> {
    let settings = &job.settings;
    let names = sides.map(|side| &side.name);
    let failed =
        |e: FidelityError| Error::file(Path::new(names[1]), format!("cannot be compared with {}: {e}", names[0]));
    let mut found = ByImages::default();
    if settings.metrics.contains(&Metric::KernelDistance) {
        // Subsets of nearly all images are nearly the same, and their spread says nothing.
        let most = reference.rows().min(samples.rows()) / 2;
        let subsets = Subsets { size: settings.subsets.size.min(most).max(2), ..settings.subsets };
        if subsets.size < settings.subsets.size {
            let size = subsets.size;
            emit(Event::Notice(format!("KID over subsets of {size} images, half of the smaller side")));
        }
        found.kid = Some(kernel_distance(reference, samples, subsets).map_err(failed)?);
    }
    if settings.metrics.contains(&Metric::PrecisionRecall) {
        found.precision_recall = Some(precision_recall(reference, samples, settings.k).map_err(failed)?);
    }
    let [real, drawn] = sides.map(|side| side.images.as_ref());
    if let (true, Some(real), Some(drawn)) = (settings.per_class, real, drawn) {
        found.classes = by_class([(reference, real), (samples, drawn)]).map_err(failed)?;
    }
    if let (Some(path), Some(real), Some(drawn)) = (&job.settings.neighbours, real, drawn) {
        found.neighbours = Some(neighbours::draw(path, [(reference, real), (samples, drawn)])?);
    }
    Ok(found)
}

/// Probabilities of logits `[n, classes]`.
fn softmax(logits: &[f32], classes: usize) -> Vec<f64> {
    let row = |row: &[f32]| -> Vec<f64> {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f64> = row.iter().map(|&v| f64::from(v - largest).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.into_iter().map(|p| p / sum).collect()
    };
    logits.chunks_exact(classes).flat_map(row).collect()
}

/// The rows of each class, by its number, and by its name where `named`.
fn rows_by_class(set: &ImageSet, named: bool) -> BTreeMap<(u32, String), Vec<usize>> {
    let mut classes = BTreeMap::<_, Vec<usize>>::new();
    for (i, &label) in set.labels().unwrap_or_default().iter().enumerate() {
        let key = if named { (0, set.class_names()[label as usize].clone()) } else { (label, label.to_string()) };
        classes.entry(key).or_default().push(i);
    }
    classes
}

/// The Fréchet distance of each class, one class after another: a covariance is large. Classes of two folders are the same
/// if they have one name, others if they have one number.
fn by_class(sides: [(Features, &ImageSet); 2]) -> Result<Vec<ClassReport>, FidelityError> {
    let gaussian = |features: Features, rows: &[usize]| -> Result<Gaussian, FidelityError> {
        let mut moments = Moments::new(features.width());
        for rows in rows.chunks(CLASS_ROWS) {
            let values: Vec<f32> = rows.iter().flat_map(|&row| features.row(row)).copied().collect();
            moments.push(&values, [rows.len(), features.width()])?;
        }
        moments.gaussian()
    };
    let named = sides.iter().all(|(_, set)| !set.class_names().is_empty());
    let [(a, set_a), (b, set_b)] = sides;
    let (of_a, of_b) = (rows_by_class(set_a, named), rows_by_class(set_b, named));
    let all: BTreeSet<_> = of_a.keys().chain(of_b.keys()).collect();
    let report = |key: &(u32, String)| {
        let [rows_a, rows_b] = [&of_a, &of_b].map(|side| side.get(key).map_or(&[][..], Vec::as_slice));
        let images = [rows_a.len(), rows_b.len()];
        let enough = images.iter().all(|&n| n > 1);
        let distance = enough.then(|| frechet_distance(&gaussian(a, rows_a)?, &gaussian(b, rows_b)?));
        Ok(ClassReport { class: key.1.clone(), images, frechet_distance: distance.transpose()? })
    };
    all.into_iter().map(report).collect()
}

/// Adds a line to a run's list of evaluations.
fn append(path: &Path, report: &impl Serialize) -> Result<(), Error> {
    use std::io::{Read, Seek, SeekFrom, Write};
    let line = serde_json::to_string(report).map_err(|e| Error::file(path, e.to_string()))?;
    let options = std::fs::OpenOptions::new().create(true).read(true).append(true).clone();
    let mut file = options.open(path).map_err(Error::io("write", path))?;
    // A line that an earlier call left unfinished does not swallow this one.
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(-1)).is_ok() {
        file.read_exact(&mut last).map_err(Error::io("read", path))?;
    }
    let end = if last == [b'\n'] { "" } else { "\n" };
    writeln!(file, "{end}{line}").map_err(Error::io("write", path))
}
