//! Metrics of two sides.

use super::neighbours::{self, Neighbours};
use super::side::Known;
use super::{ClassReport, FeatureNetwork, Job, MANY_IMAGES, Metric, Report};
use crate::Error;
use crate::data::ImageSet;
use crate::event::{Emit, Event};
use fidelity::{
    Features, FidelityError, Gaussian, InceptionScore, Moments, PrecisionRecall, Subsets,
    extrapolated_frechet_distance, frechet_distance, frechet_parts, kernel_distance, precision_recall,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Images below which a Fréchet distance is too large by more than a little.
const FEW_IMAGES: usize = 10_000;

/// Distances through which the extrapolated one is fitted.
const EXTRAPOLATION_POINTS: usize = 15;

/// Rows of a class that are summed up together.
const CLASS_ROWS: usize = 512;

/// All metrics of two sides.
pub(super) fn compare(
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
    let fid = frechet_parts(&theirs.features, &ours.features).map_err(failed)?;
    let sfid = match (&theirs.spatial, &ours.spatial) {
        (Some(a), Some(b)) => Some(frechet_parts(a, b).map_err(failed)?),
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
    if wants(Metric::InceptionScore) && inception_score.is_none() {
        emit(Event::Notice(format!(
            "no Inception Score: it needs the samples' images and a feature network with classes, here {}",
            network.name()
        )));
    }
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
            let found =
                extrapolated_frechet_distance(&theirs.features, rows, EXTRAPOLATION_POINTS, settings.subsets.seed);
            Some(found.map_err(failed)?)
        }
        _ => None,
    };
    let mut by_images = ByImages::default();
    match of_reference.zip(of_samples) {
        Some(both) => by_images = compare_images([reference, samples], both, job, emit)?,
        None if needs_both => {
            emit(Event::Notice(
                "precision, recall and KID need images on both sides: one side has only statistics".into(),
            ));
        }
        None => {}
    }
    if [theirs, ours].iter().any(|side| side.images.is_some_and(|n| n < FEW_IMAGES)) {
        let offer = if settings.extrapolate { "" } else { "; --extrapolate estimates it for infinitely many samples" };
        emit(Event::Warning(format!(
            "with fewer than {FEW_IMAGES} images a Fréchet distance is too large, and the more so the fewer there \
             are{offer}"
        )));
    }
    Ok(Report {
        reference: reference.report(),
        samples: samples.report(),
        features: network.name().into(),
        resize: network.resize(),
        remark: network.remark(),
        fid: fid.distance,
        fid_parts: fid.into(),
        sfid: sfid.map(|sfid| sfid.distance),
        sfid_parts: sfid.map(Into::into),
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
    if reference.rows().max(samples.rows()) > MANY_IMAGES {
        let text = format!("comparing {} images with {} one by one", samples.rows(), reference.rows());
        emit(Event::Begins(text));
    }
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
