//! Distances, and what they may not depend on.

use super::support::*;
use crate::data::OPTIONS;
use crate::support::cpu;
use ddpm_ip::data::{Dataset, Fit, Shape};
use ddpm_ip::evaluate::{self, Choice, Metric, Settings, Statistics};
use ddpm_ip::{Event, Outcome};
use ddpm_math::{Domain, Stream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Every pixel moved at random by up to `strength`.
fn noised(images: &[Vec<u8>], strength: f64) -> Vec<Vec<u8>> {
    let image = |(i, image): (usize, &Vec<u8>)| {
        let mut stream = Stream::new(1, Domain::Augment, i as u64, 0);
        let moved = |v: &u8| (f64::from(*v) + strength * (2.0 * stream.uniform() - 1.0)).clamp(0.0, 255.0) as u8;
        image.iter().map(moved).collect()
    };
    images.iter().enumerate().map(image).collect()
}

/// Every pixel the mean of itself and the one to its right, some times over.
fn blurred(images: &[Vec<u8>], times: usize) -> Vec<Vec<u8>> {
    let blur = |image: &Vec<u8>| -> Vec<u8> {
        let right = |at: usize| if at % 8 == 7 { 0 } else { u16::from(image[at + 1]) };
        (0..64).map(|at| u16::midpoint(u16::from(image[at]), right(at)) as u8).collect()
    };
    images.iter().map(|image| (0..times).fold(image.clone(), |image, _| blur(&image))).collect()
}

#[test]
fn a_set_is_at_no_distance_from_itself_and_farther_with_noise_and_blur() {
    let (place, digits) = (Place::new(), digits());
    let settings = || Settings { metrics: vec![], ..place.settings() };
    let own = place.images("own.npz", &digits, [8, 8, 1]);
    assert!(compare("digits", &own, settings()).fid < 1e-9);
    let distance =
        |images: &[Vec<u8>]| compare("digits", &place.images("other.npz", images, [8, 8, 1]), settings()).fid;
    let mut last = 1e-3;
    for strength in [20.0, 50.0, 100.0, 200.0] {
        let found = distance(&noised(&digits, strength));
        assert!(found > 1.5 * last, "noise {strength}: {found} after {last}");
        last = found;
    }
    last = 1e-3;
    for times in 1..4 {
        let found = distance(&blurred(&digits, times));
        assert!(found > 1.5 * last, "blur {times}: {found} after {last}");
        last = found;
    }
}

/// Zeros alone: over several classes the embedded network answers to brightness with its covariances more than its means.
#[test]
fn a_wrong_brightness_is_seen_and_moves_the_means_of_a_class_most() {
    let (place, digits) = (Place::new(), Dataset::open("digits", &OPTIONS).unwrap());
    let labels = digits.labels().unwrap();
    let zeros: Vec<Vec<u8>> = (0..digits.len()).filter(|&i| labels[i] == 0).map(|i| digits.image(i).unwrap()).collect();
    let moved = |by: u8| zeros.iter().map(|image| image.iter().map(|v| v / 2 + by).collect()).collect::<Vec<_>>();
    let dark = place.images("dark.npz", &moved(0), [8, 8, 1]);
    let bright = place.images("bright.npz", &moved(60), [8, 8, 1]);
    let report = compare(&dark, &bright, place.settings());
    let [[dark_mean, dark_error], [bright_mean, bright_error]] =
        [&report.reference, &report.samples].map(|side| side.brightness.unwrap());
    assert!((bright_mean - dark_mean - 60.0 / 127.5).abs() < 1e-12, "{report:?}");
    assert_eq!((dark_error, report.reference.pixel_variance), (bright_error, report.samples.pixel_variance));
    assert!(dark_error > 0.0 && report.reference.pixel_variance.unwrap() > 0.0, "{report:?}");
    let parts = report.fid_parts;
    assert!(parts.from_means > parts.from_covariances && parts.from_covariances > 0.0, "{parts:?}");
    assert!(((parts.from_means + parts.from_covariances) / report.fid - 1.0).abs() < 1e-12, "{report:?}");
    assert_eq!(compare(&dark, &bright, place.settings()), report, "from the cache");
    assert_eq!(compare(&dark, &bright, Settings { batch_size: 7, cache: None, ..place.settings() }), report, "batches");
}

#[test]
fn all_metrics_of_two_halves_are_those_of_one_distribution() {
    let (place, digits) = (Place::new(), digits());
    let (a, b) = digits.split_at(900);
    let (a, b) = (place.images("a.npz", a, [8, 8, 1]), place.images("b.npz", b, [8, 8, 1]));
    let (report, events) = run(&job(&a, &b, Settings { extrapolate: true, ..place.settings() })).unwrap();
    let [score, _] = report.inception_score.unwrap();
    assert!((8.0..10.0).contains(&score), "ten classes of digits: {score}");
    assert!(report.precision.unwrap() > 0.7 && report.recall.unwrap() > 0.7, "{report:?}");
    let [kid, error] = report.kid.unwrap();
    assert!(kid.abs() < 5.0 * error, "{kid} ± {error}");
    assert!(report.fid_infinity.unwrap()[0] < report.fid);
    assert!(report.sfid.is_none() && report.sfid_parts.is_none());
    assert_eq!((report.reference.images, report.samples.images), (Some(900), Some(897)));
    assert!(report.remark.unwrap().contains("only with each other"));
    assert!(events.iter().any(|e| matches!(e, Event::Warning(text) if text.contains("fewer than 10000"))));
}

#[test]
fn batches_threads_files_and_the_cache_change_nothing() {
    let (place, digits) = (Place::new(), digits());
    let own = place.images("own.npz", &noised(&digits[..300], 30.0), [8, 8, 1]);
    let first = compare("digits", &own, place.settings());
    let kept = place.files("cache");
    assert_eq!(kept.len(), 4, "{kept:?}");
    assert_eq!(compare("digits", &own, place.settings()), first, "from the cache");
    let anew = || Settings { cache: None, ..place.settings() };
    assert_eq!(compare("digits", &own, Settings { batch_size: 7, ..anew() }), first, "batches");
    let threads = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(threads.install(|| compare("digits", &own, anew())), first, "threads");
    // The same images as files.
    let folder = place.path("folder");
    std::fs::create_dir(&folder).unwrap();
    for (i, image) in noised(&digits[..300], 30.0).iter().enumerate() {
        let path = folder.join(format!("{i:03}.png"));
        image::save_buffer(path, image, 8, 8, image::ExtendedColorType::L8).unwrap();
    }
    let folder = folder.display().to_string();
    let mut of_folder = compare("digits", &folder, place.settings());
    assert_eq!(place.files("cache"), kept, "known by their content");
    of_folder.samples.source.clone_from(&first.samples.source);
    assert_eq!(of_folder, first);
    // What is kept and damaged is made anew.
    let file = kept.iter().find(|path| path.extension().is_some_and(|e| e == "features")).unwrap();
    let bytes = std::fs::read(file).unwrap();
    std::fs::write(file, &bytes[..bytes.len() - 4]).unwrap();
    assert_eq!(compare("digits", &own, place.settings()), first);
    assert_eq!(std::fs::read(file).unwrap(), bytes);
}

#[test]
fn an_interrupted_call_goes_on_where_it_stopped() {
    let (place, digits) = (Place::new(), digits());
    let own = place.images("own.npz", &digits[..200], [8, 8, 1]);
    let job = job("digits", &own, Settings { batch_size: 16, ..place.settings() });
    let stop = AtomicBool::new(false);
    let mut seen = 0;
    let (outcome, report) = evaluate::evaluate(&job, cpu(), &stop, &mut |event| {
        if let Event::Measuring { done: 160.., .. } = event {
            seen += 1;
            stop.store(true, Ordering::Relaxed);
        }
    })
    .unwrap();
    assert_eq!((outcome, report.is_none(), seen), (Outcome::Interrupted, true, 1));
    let (report, events) = run(&job).unwrap();
    let begin = events.iter().find_map(|e| if let Event::Measuring { done, .. } = e { Some(*done) } else { None });
    assert_eq!(begin, Some(160));
    assert_eq!(report, compare("digits", &own, Settings { cache: None, ..place.settings() }));
}

#[test]
fn statistics_stand_for_the_images() {
    let (place, digits) = (Place::new(), digits());
    let own = place.images("own.npz", &noised(&digits[..300], 30.0), [8, 8, 1]);
    let file = place.path("digits.npz");
    let stop = AtomicBool::new(false);
    let (_, written) = evaluate::statistics("digits", &file, &place.settings(), cpu(), &stop, &mut |_| {}).unwrap();
    let read = Statistics::read(&file).unwrap().unwrap();
    assert_eq!(Some(&read), written.as_ref());
    assert_eq!((read.network.as_str(), read.images, read.features.width()), ("ddpm-ip-grey-1", Some(1797), 64));
    let file = file.display().to_string();
    let of_images = compare("digits", &own, place.settings());
    let (of_statistics, events) = run(&job(&file, &own, place.settings())).unwrap();
    assert_eq!(of_statistics.fid, of_images.fid);
    assert_eq!(of_statistics.inception_score, of_images.inception_score);
    assert_eq!(of_statistics.samples, of_images.samples);
    assert_eq!((of_statistics.reference.brightness, of_statistics.reference.pixel_variance), (None, None));
    assert_eq!((of_statistics.precision, of_statistics.kid), (None, None));
    assert!(events.iter().any(|e| matches!(e, Event::Notice(text) if text.contains("only statistics"))));
    let both = compare(&file, &file, place.settings());
    assert!(both.fid < 1e-9 && both.inception_score.is_none());
}

#[test]
fn samples_that_were_copied_are_seen_as_such() {
    let (place, digits) = (Place::new(), digits());
    let copied: Vec<Vec<u8>> = (0..40).map(|i| digits[7 * i + 3].clone()).collect();
    let own = place.images("own.npz", &copied, [8, 8, 1]);
    let mut job = job("digits", &own, place.settings());
    job.settings.neighbours = Some(place.path("sheet.png"));
    let (report, _) = run(&job).unwrap();
    let found = report.neighbours.unwrap();
    let expected: Vec<(usize, f64)> = (0..32).map(|i| (7 * i + 3, 0.0)).collect();
    assert_eq!(found.nearest, expected);
    let sheet = image::open(place.path("sheet.png")).unwrap().into_luma8();
    // Sample and neighbour side by side, enlarged six times.
    let side = 8 * 6 + 2;
    assert_eq!(sheet.dimensions(), (8 * side + 2, 8 * side + 2));
    let at = |cell: u32, x: u32, y: u32| sheet.get_pixel(cell * side + 2 + 6 * x, 2 + 6 * y).0[0];
    for (x, y) in (0..8).flat_map(|x| (0..8).map(move |y| (x, y))) {
        assert_eq!((at(0, x, y), at(1, x, y)), (copied[0][(8 * y + x) as usize], copied[0][(8 * y + x) as usize]));
    }
}

#[test]
fn classes_are_compared_one_by_one() {
    let (place, digits) = (Place::new(), digits());
    let labels: Vec<i64> = (0..300).map(|i| if i == 299 { 7 } else { i % 3 }).collect();
    let a = place.labelled("a.npz", &digits[..300], [8, 8, 1], Some(&labels));
    let moved = noised(&digits[..300], 100.0);
    let mixed: Vec<Vec<u8>> = (0..300).map(|i| if i % 3 == 2 { moved[i].clone() } else { digits[i].clone() }).collect();
    let b = place.labelled("b.npz", &mixed, [8, 8, 1], Some(&labels));
    let report = compare(&a, &b, Settings { per_class: true, metrics: vec![], ..place.settings() });
    let distances: Vec<_> = report.classes.iter().map(|c| (c.class.as_str(), c.images, c.frechet_distance)).collect();
    assert_eq!(distances.len(), 4);
    let [("0", [100, 100], Some(a)), ("1", _, Some(b)), ("2", _, Some(c)), ("7", [1, 1], None)] = distances[..] else {
        panic!("{distances:?}")
    };
    assert!(a < 1e-6 && b < 1e-6 && c > 0.1, "{distances:?}");
}

#[test]
fn images_are_brought_to_one_size_where_asked() {
    let (place, digits) = (Place::new(), digits());
    let padded: Vec<Vec<u8>> = digits[..100]
        .iter()
        .map(|d| {
            let pixel = |at: usize| {
                let (y, x) = (at / 12, at % 12);
                if (2..10).contains(&y) && (2..10).contains(&x) { d[(y - 2) * 8 + x - 2] } else { 0 }
            };
            (0..144).map(pixel).collect()
        })
        .collect();
    let (small, large) =
        (place.images("small.npz", &digits[..100], [8, 8, 1]), place.images("large.npz", &padded, [12, 12, 1]));
    let text = problem(&small, &large, place.settings());
    assert!(text.contains("8x8") && text.contains("12x12") && text.contains("--image-size"), "{text}");
    let shape = Some(Shape { image_size: 12, fit: Fit::Pad, allow_upscale: false, channels: None });
    let settings = Settings { shape, metrics: vec![], ..place.settings() };
    assert!(compare(&small, &large, settings).fid < 1e-9);
}

/// A network of the user's own, on colour images; the same model as in the tests of `fidelity`.
#[test]
fn an_onnx_model_gives_features() {
    let place = Place::new();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fidelity/tests/onnx/encoder.onnx");
    let images = |seed: u64| -> Vec<Vec<u8>> {
        let image = |i| {
            let mut stream = Stream::new(seed, Domain::Augment, i, 0);
            (0..108).map(|_| (stream.uniform() * 256.0) as u8).collect()
        };
        (0..50).map(image).collect()
    };
    let (a, b) = (place.images("a.npz", &images(1), [6, 6, 3]), place.images("b.npz", &images(2), [6, 6, 3]));
    let choice = |change: &dyn Fn(&mut evaluate::OnnxChoice)| {
        let mut onnx = evaluate::OnnxChoice::new(model.clone());
        onnx.size = Some(6);
        change(&mut onnx);
        Settings { features: Some(Choice::Onnx(onnx)), ..place.settings() }
    };
    let report = compare(&a, &b, choice(&|_| {}));
    assert!(report.features.starts_with("onnx-encoder-") && report.fid > 0.0 && report.inception_score.is_none());
    assert!(report.precision.is_some() && report.kid.is_some());
    let other = compare(&a, &b, choice(&|onnx| onnx.mean = [0.0; 3]));
    assert!(other.features != report.features, "another preparation is another network");
    let text = problem(&a, &b, choice(&|onnx| onnx.size = None));
    assert!(text.contains("--feature-size"), "{text}");
    // Features that are not finite are named, and nothing of them is kept.
    let before = place.files("cache");
    let settings = Settings {
        metrics: vec![Metric::KernelDistance],
        ..choice(&|onnx| (onnx.mean, onnx.std) = ([3e38; 3], [1e-30; 3]))
    };
    let text = problem(&a, &b, settings);
    assert!(text.contains("image 0") && text.contains("not finite"), "{text}");
    assert_eq!(place.files("cache"), before);
}
