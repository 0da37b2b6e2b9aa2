//! Images resized for FID-Inception in either way, and statistics of other programs.

use super::support::*;
use super::weights::write_safetensors;
use crate::support::cpu;
use ddpm_ip::Event;
use ddpm_ip::evaluate::{self, Choice, Metric, Resize, Settings, Statistics};
use ddpm_ip::npz::NpzWriter;
use fidelity::Gaussian;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Statistics as pytorch-fid and clean-fid write them.
fn nameless(path: &Path, gaussian: &Gaussian) -> String {
    let d = gaussian.width();
    let mut npz = NpzWriter::new(std::fs::File::create(path).unwrap());
    npz.array::<f64>("mu", &[d], |push| push(gaussian.mean())).unwrap();
    npz.array::<f64>("sigma", &[d, d], |push| push(gaussian.covariance())).unwrap();
    npz.finish().unwrap();
    path.display().to_string()
}

#[test]
fn each_resize_has_its_own_features_and_statistics() {
    let place = Place::new();
    let weights = place.path("weights.safetensors");
    write_safetensors(&weights);
    let images = |from: usize| -> Vec<Vec<u8>> {
        (from..from + 2).map(|i| (0..9 * 7 * 3).map(|j| ((i * 71 + j * (13 + i)) % 256) as u8).collect()).collect()
    };
    let [a, b] = [("a.npz", 0), ("b.npz", 5)].map(|(name, from)| place.images(name, &images(from), [9, 7, 3]));
    let with = |resize| Settings {
        features: Some(Choice::Inception(Some(weights.clone()))),
        resize,
        metrics: Vec::new(),
        batch_size: 2,
        ..place.settings()
    };
    let [tf1, clean] = [Resize::TensorFlow1, Resize::Clean].map(|resize| compare(&a, &b, with(resize)));
    assert!(tf1.resize.contains("TensorFlow 1") && clean.resize.contains("clean-fid"));
    assert_eq!(clean.features, format!("{}-clean", tf1.features));
    assert!((tf1.fid - clean.fid).abs() > 1e-3 * tf1.fid, "{} {}", tf1.fid, clean.fid);
    assert_eq!(compare(&a, &b, with(Resize::Clean)), clean, "from the cache");

    let made = |resize, name: &str| {
        let (file, stop) = (place.path(name), AtomicBool::new(false));
        let found = evaluate::statistics(&a, &file, &with(resize), cpu(), &stop, &mut |_| {}).unwrap().1.unwrap();
        (file.display().to_string(), found)
    };
    let (of_tf1, statistics) = made(Resize::TensorFlow1, "of_tf1.npz");
    let (of_clean, _) = made(Resize::Clean, "of_clean.npz");
    assert_eq!(compare(&of_clean, &b, with(Resize::Clean)).fid, clean.fid);
    let refused = |file: &str, resize, flag: &str| {
        let said = problem(file, &b, with(resize));
        assert!(said.contains("their distance would mean nothing") && said.contains(flag), "{said}");
    };
    refused(&of_clean, Resize::TensorFlow1, "--resize clean");
    refused(&of_tf1, Resize::Clean, "--resize tf1");

    // Those of other programs say nothing of it, but perhaps their names.
    let other = nameless(&place.path("fid_stats.npz"), &statistics.features);
    let (report, said) = run(&job(&other, &b, with(Resize::TensorFlow1))).unwrap();
    assert_eq!((report.fid, report.sfid), (tf1.fid, None));
    assert!(
        said.iter().any(|e| matches!(e, Event::Notice(text) if text.contains("do not say how images were resized")))
    );
    let named = nameless(&place.path("cifar10_clean_train_32.npz"), &statistics.features);
    let (_, said) = run(&job(&named, &b, with(Resize::TensorFlow1))).unwrap();
    assert!(said.iter().any(|e| matches!(e, Event::Warning(text) if text.contains("--resize clean"))), "{said:?}");
    let (_, said) = run(&job(&named, &b, with(Resize::Clean))).unwrap();
    assert!(!said.iter().any(|e| matches!(e, Event::Warning(text) if text.contains("by its name"))), "{said:?}");
}

#[test]
fn statistics_give_frechet_distances_and_nothing_else() {
    let (place, digits) = (Place::new(), digits());
    let own = place.images("own.npz", &digits[..40], [8, 8, 1]);
    let (file, stop) = (place.path("statistics.npz"), AtomicBool::new(false));
    evaluate::statistics("digits", &file, &place.settings(), cpu(), &stop, &mut |_| {}).unwrap();
    assert!(Statistics::read(&file).unwrap().is_some());
    let file = file.display().to_string();
    let asked = |metric| Settings { metrics: vec![metric], all_metrics: true, ..place.settings() };
    for (reference, samples, metric, flag) in [
        (&file, &own, Metric::KernelDistance, "--metrics kid"),
        (&file, &own, Metric::PrecisionRecall, "--metrics pr"),
        (&own, &file, Metric::InceptionScore, "--metrics is"),
    ] {
        let said = problem(reference, samples, asked(metric));
        for words in [flag, "statistics.npz has only statistics", "--metrics fid"] {
            assert!(said.contains(words), "{said}");
        }
    }
    // The Inception Score is of the samples alone.
    assert!(compare(&file, &own, asked(Metric::InceptionScore)).inception_score.is_some());
    let clean = Settings { resize: Resize::Clean, ..place.settings() };
    assert!(problem("digits", &own, clean).contains("--resize is only for Inception"));
}
