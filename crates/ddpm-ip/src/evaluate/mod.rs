//! How near samples are to real images: Fréchet distances, Inception Score, precision, recall and kernel distance.

mod bench;
mod compare;
mod features;
mod foreign;
mod grey;
mod hook;
mod neighbours;
mod network;
mod past;
mod pixels;
mod side;
mod statistics;
mod yardstick;

pub(crate) use features::Sum;

pub use bench::{BenchReport, bench};
pub use foreign::OnnxChoice;
pub use hook::EvaluationHook;
pub use network::{Choice, FID_INCEPTION, FeatureNetwork, Resize, Rows};
pub use past::{Distances, OfSamples, OfSide, distances};
pub use statistics::Statistics;
pub(crate) use yardstick::Yardstick;

use crate::Error;
use crate::config::ConfigError;
use crate::data::{ImageArray, ImageSet, Labels, Shape};
use crate::event::{Emit, Event, Outcome};
use crate::file::{PNG, append, check_kind, create_folder};
use crate::ranks::Place;
use crate::record::Record;
use compare::compare;
use fidelity::{FrechetParts, InceptionScore, LEAST_EXTRAPOLATED, Subsets};
use neighbours::Neighbours;
use serde::Serialize;
use side::{Side, help, know, network, run_of};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Images that take a while to read and to compare one by one.
const MANY_IMAGES: usize = 5000;

/// How sets are compared.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The network; none for [`Choice::Grey`] where all images are grey, else FID-Inception.
    pub features: Option<Choice>,
    /// How images come to the size of FID-Inception.
    pub resize: Resize,
    /// What is computed beside Fréchet distances.
    pub metrics: Vec<Metric>,
    /// Whether a metric that cannot be had of these sides is an error; else it is left out, and said.
    pub all_metrics: bool,
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
    /// Metrics whose subsets or splits have a size that was asked for: one that is too large is an error.
    pub sized: Vec<Metric>,
    /// Subsets of the kernel distance; their seed is also that of the extrapolation's.
    pub subsets: Subsets,
    /// Whether the distance is extrapolated to infinitely many samples.
    pub extrapolate: bool,
    /// Whether images are turned as their EXIF data says.
    pub exif_rotate: bool,
    /// Whether classes are compared one by one.
    pub per_class: bool,
    /// A PNG of samples beside the reference images nearest to them.
    pub neighbours: Option<PathBuf>,
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
            resize: Resize::default(),
            all_metrics: false,
            metrics: vec![Metric::InceptionScore, Metric::PrecisionRecall, Metric::KernelDistance],
            batch_size: 32,
            shape: None,
            labels: Labels::None,
            num_images: None,
            split: InceptionScore::SPLIT,
            k: 3,
            sized: Vec::new(),
            subsets: Subsets::default(),
            extrapolate: false,
            exif_rotate: false,
            per_class: false,
            neighbours: None,
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

impl Metric {
    /// What it is called in `--metrics`.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::InceptionScore => "is",
            Self::PrecisionRecall => "pr",
            Self::KernelDistance => "kid",
        }
    }
}

/// Where one side of a comparison is.
#[derive(Clone, Debug)]
pub enum Source {
    /// Anything that [`ImageSet`] opens, a file of statistics, or a run directory, whose newest samples are taken.
    Named(String),
    /// Images in memory.
    Given(ImageArray),
}

impl From<String> for Source {
    fn from(name: String) -> Self {
        Self::Named(name)
    }
}

impl From<&str> for Source {
    fn from(name: &str) -> Self {
        Self::Named(name.into())
    }
}

/// What to compare.
#[derive(Clone, Debug)]
pub struct Job {
    /// Real images.
    pub reference: Source,
    /// Generated images.
    pub samples: Source,
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
    /// Mean over all pixels and channels of its images, of values from -1 to 1, and its standard error over images.
    pub brightness: Option<[f64; 2]>,
    /// Mean over pixels and channels of the variance over its images, of values from -1 to 1.
    pub pixel_variance: Option<f64>,
}

/// What a Fréchet distance is the sum of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DistanceParts {
    /// The squared distance of the features' means.
    pub from_means: f64,
    /// What differences of their covariances add.
    pub from_covariances: f64,
}

impl From<FrechetParts> for DistanceParts {
    fn from(parts: FrechetParts) -> Self {
        Self { from_means: parts.means, from_covariances: parts.covariances }
    }
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
    /// Its parts.
    pub fid_parts: DistanceParts,
    /// Fréchet distance of the spatial features.
    pub sfid: Option<f64>,
    /// Its parts.
    pub sfid_parts: Option<DistanceParts>,
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

/// Compares two sets, and adds a line to the `evaluations.jsonl` of the samples' run if they lie in one.
///
/// # Errors
/// Sets that cannot be read or compared, missing weights, failing writes.
pub fn evaluate(
    job: &Job,
    place: impl Into<Place>,
    stop: &AtomicBool,
    emit: &mut Emit,
) -> Result<(Outcome, Option<Report>), Error> {
    let Place { device, ranks } = place.into();
    let settings = &job.settings;
    let mut reference = Side::open(&job.reference, settings)?;
    let mut samples = Side::open(&job.samples, settings)?;
    [&reference, &samples].into_iter().filter_map(Side::remark).for_each(&mut *emit);
    if let Some(most) = settings.num_images {
        if let Some(set) = samples.images.as_ref().filter(|set| set.len() < most) {
            let (name, there) = (set.name(), set.len());
            return Err(
                ConfigError(format!("--num-images is {most}, but {name} has {there}: use at most {there}")).into()
            );
        }
        samples.images = samples.images.map(|set| set.take(most));
        samples.statistics = samples.statistics.filter(|_| samples.images.is_none());
    }
    match_channels(&mut reference, &mut samples, settings, emit);
    check_shapes(&reference, &samples)?;
    for side in [&reference, &samples] {
        side.check_count()?;
    }
    check_wishes(&reference, &samples, settings)?;
    if let Some(sheet) = &settings.neighbours {
        check_target(sheet, &[&reference, &samples])?;
        check_kind(sheet, "PNG", PNG)?;
        make_folder(sheet)?;
    }
    let network = network(&[&reference, &samples], settings, device)?;
    for set in [&reference.images, &samples.images].into_iter().flatten().filter(|set| set.len() > MANY_IMAGES) {
        emit(Event::Begins(format!("reading {} images of {}", set.len(), set.name())));
    }
    [&reference, &samples].into_iter().filter_map(|side| side.remark_on_resize(&network)).for_each(&mut *emit);
    if !(reference.go_through(&network, stop)? && samples.go_through(&network, stop)?) {
        return Ok((Outcome::Interrupted, None));
    }
    if !ranks.leads() {
        for side in [&reference, &samples] {
            help(side, &network, settings, &ranks, stop)?;
        }
        return Ok((Outcome::Finished, None));
    }
    let Some(reference) = know(reference, &network, settings, &ranks, stop, emit)? else {
        return Ok((Outcome::Interrupted, None));
    };
    let Some(samples) = know(samples, &network, settings, &ranks, stop, emit)? else {
        return Ok((Outcome::Interrupted, None));
    };
    let report = compare(&reference, &samples, &network, job, emit)?;
    if let Some(run) = run_of(Path::new(&samples.name)) {
        // The report is not lost with it.
        if let Err(e) = append(&run.join(past::FILE), &report) {
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
    place: impl Into<Place>,
    stop: &AtomicBool,
    emit: &mut Emit,
) -> Result<(Outcome, Option<Statistics>), Error> {
    let Place { device, ranks } = place.into();
    let mut side = Side::open(&images.into(), settings)?;
    side.remark().into_iter().for_each(&mut *emit);
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
    if !ranks.leads() {
        help(&side, &network, settings, &ranks, stop)?;
        return Ok((Outcome::Finished, None));
    }
    let (content, count) = match (&side.content, &side.images) {
        (Some(content), Some(set)) => (content.hash.clone(), set.len()),
        _ => (String::new(), 0),
    };
    let what = format!("statistics of {count} images of {} by {}", side.name, network.name());
    let record = Record::new(&format!("{content} {}", network.name()), count, what);
    if record.found_at(out, "Name another file, or remove it")?.is_some()
        && let Some(statistics) = Statistics::read(out)?
    {
        emit(Event::Found(out.to_path_buf()));
        return Ok((Outcome::Finished, Some(statistics)));
    }
    let Some(known) = know(side, &network, settings, &ranks, stop, emit)? else {
        return Ok((Outcome::Interrupted, None));
    };
    if let Some(remark) = network.remark() {
        emit(Event::Notice(remark));
    }
    known.statistics.write_with(out, &record.line())?;
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
        Some(folder) => create_folder(folder),
        None => Ok(()),
    }
}

/// Brings grey images to colour, or colour to grey, where one side has one and the other the other: as the network wants
/// them, or as the reference is.
fn match_channels(reference: &mut Side, samples: &mut Side, settings: &Settings, emit: &mut Emit) {
    let channels = |side: &Side| side.images.as_ref().map(|set| set.image_shape()[2]);
    let (Some(of_reference), Some(of_samples)) = (channels(reference), channels(samples)) else { return };
    if !matches!((of_reference, of_samples), (1, 3) | (3, 1)) {
        return;
    }
    let wanted = match settings.features {
        Some(Choice::Grey) => 1,
        Some(_) => 3,
        None => of_reference,
    };
    let side = if of_reference == wanted { samples } else { reference };
    side.images = side.images.take().map(|set| set.with_channels(wanted));
    let how = if wanted == 1 { "colour is made grey" } else { "grey is made three equal channels" };
    emit(Event::Notice(format!("{}: {how}, as the other side has it", side.name)));
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
        return refuse("--extrapolate and --num-images need the samples' images, but the samples are only statistics");
    }
    if settings.all_metrics {
        let alone = |side: &Side| {
            let name = &side.name;
            format!("{name} has only statistics (a mean and a covariance), which give only a Fréchet distance")
        };
        let of_images: Vec<&str> = settings.metrics.iter().map(|metric| metric.flag()).collect();
        let needs_both = settings.metrics.iter().any(|metric| *metric != Metric::InceptionScore);
        let lacking = [(samples, !settings.metrics.is_empty()), (reference, needs_both)];
        if let Some((side, _)) = lacking.into_iter().find(|(side, needed)| *needed && side.images.is_none()) {
            let (names, why) = (of_images.join(","), alone(side));
            return Err(ConfigError(format!("--metrics {names} needs images, but {why}: use --metrics fid")));
        }
    }
    let few = samples.images.as_ref().filter(|set| settings.extrapolate && set.len() < LEAST_EXTRAPOLATED);
    if let Some(set) = few {
        let message =
            format!("--extrapolate needs at least {LEAST_EXTRAPOLATED} samples, but {} has {}", set.name(), set.len());
        return Err(ConfigError(message));
    }
    if settings.metrics.contains(&Metric::PrecisionRecall) && both_have_images {
        let sides = [&reference.images, &samples.images].into_iter().flatten();
        if let Some(set) = sides.into_iter().find(|set| set.len() <= settings.k) {
            return Err(ConfigError(format!(
                "precision and recall with --k {} need more images than --k on each side, but {} has {}: leave them \
                 out with --metrics, or use a smaller --k",
                settings.k,
                set.name(),
                set.len()
            )));
        }
    }
    // A size by default is cut down to what there is.
    let least = [&reference.images, &samples.images].into_iter().flatten().map(ImageSet::len).min().unwrap_or(0);
    let half = (least / 2).max(2);
    if settings.sized.contains(&Metric::KernelDistance) && both_have_images && settings.subsets.size > half {
        return Err(ConfigError(format!(
            "--kid-subset-size is {}, but the smaller side has {least} images: use at most {half}, half of them",
            settings.subsets.size
        )));
    }
    let splits = settings.sized.contains(&Metric::InceptionScore);
    if let Some(set) = samples.images.as_ref().filter(|set| splits && settings.split > set.len()) {
        let (split, name, there) = (settings.split, set.name(), set.len());
        return Err(ConfigError(format!("--split is {split}, but {name} has {there} images: use at most {there}")));
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
