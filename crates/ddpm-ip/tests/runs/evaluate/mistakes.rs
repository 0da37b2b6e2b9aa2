//! What cannot be compared is said to be so, and nothing of it is kept.

use super::support::*;
use ddpm_ip::data::Labels;
use ddpm_ip::evaluate::{Choice, Settings, Statistics};
use ddpm_ip::npz::NpzWriter;
use fidelity::Gaussian;

fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

#[test]
fn sets_that_have_no_distribution_are_refused() {
    let (place, digits) = (Place::new(), digits());
    let one = place.images("one.npz", &digits[..1], [8, 8, 1]);
    assert_says(&problem("digits", &one, place.settings()), &["one.npz", "one image"]);
    let same = place.images("same.npz", &vec![digits[0].clone(); 20], [8, 8, 1]);
    assert_says(&problem(&same, "digits", place.settings()), &["same.npz", "20 images are the same"]);
    assert!(place.files("cache").is_empty());
}

#[test]
fn files_that_hold_something_else_are_refused() {
    let (place, digits) = (Place::new(), digits());
    let own = place.images("own.npz", &digits[..20], [8, 8, 1]);
    let file = place.path("other.npz");
    let mut npz = NpzWriter::new(std::fs::File::create(&file).unwrap());
    npz.array::<f32>("x", &[2], |push| push(&[1.0, 2.0])).unwrap();
    npz.finish().unwrap();
    let file = file.display().to_string();
    assert_says(&problem(&own, &file, place.settings()), &["other.npz", "`x` has shape [2]", "[N, H, W, C]"]);
    assert_says(&problem("nowhere", &own, place.settings()), &["nowhere", "no such file or folder"]);
    let two = place.images("two.npz", &vec![vec![0; 128]; 3], [8, 8, 2]);
    assert_says(&problem(&own, &two, place.settings()), &["1 channel(s)", "2", "same kind"]);
    let four = place.images("four.npz", &vec![vec![0; 256]; 5], [8, 8, 4]);
    let settings = Settings { features: Some(Choice::Grey), ..place.settings() };
    assert_says(&problem(&four, &four, settings), &["four.npz", "4 channels"]);
    // A folder of images of two sizes.
    let folder = place.path("folder");
    std::fs::create_dir(&folder).unwrap();
    image::save_buffer(folder.join("a.png"), &digits[0], 8, 8, image::ExtendedColorType::L8).unwrap();
    image::save_buffer(folder.join("b.png"), &digits[0], 4, 16, image::ExtendedColorType::L8).unwrap();
    let folder = folder.display().to_string();
    let settings = Settings { metrics: vec![], ..place.settings() };
    assert_says(&problem(&folder, &own, settings), &["b.png", "4x16", "--image-size"]);
    // A run without samples.
    std::fs::create_dir_all(place.path("run/checkpoints")).unwrap();
    std::fs::write(place.path("run/config.toml"), "").unwrap();
    let run = place.path("run").display().to_string();
    assert_says(&problem(&own, &run, place.settings()), &["no samples_*.npz yet", "ddpm-ip sample"]);
}

#[test]
fn classes_of_folders_are_the_same_by_their_names() {
    let (place, digits) = (Place::new(), digits());
    let folder = |name: &str, classes: &[(&str, std::ops::Range<usize>)]| {
        for (class, images) in classes {
            let folder = place.path(name).join(class);
            std::fs::create_dir_all(&folder).unwrap();
            for i in images.clone() {
                let path = folder.join(format!("{i}.png"));
                image::save_buffer(path, &digits[i], 8, 8, image::ExtendedColorType::L8).unwrap();
            }
        }
        place.path(name).display().to_string()
    };
    let a = folder("a", &[("cat", 0..20), ("dog", 20..40)]);
    let b = folder("b", &[("dog", 20..40), ("eel", 40..60)]);
    let settings = Settings { per_class: true, labels: Labels::Folder, metrics: vec![], ..place.settings() };
    let classes = compare(&a, &b, settings).classes;
    let found: Vec<_> = classes.iter().map(|c| (c.class.as_str(), c.images, c.frechet_distance.is_some())).collect();
    assert_eq!(found, [("cat", [20, 0], false), ("dog", [20, 20], true), ("eel", [0, 20], false)]);
    assert!(classes[1].frechet_distance.unwrap() < 1e-6);
    // A colour image after a grey one would lose its colours.
    image::save_buffer(place.path("a/dog/99.png"), &[9; 192], 8, 8, image::ExtendedColorType::Rgb8).unwrap();
    let settings = Settings { metrics: vec![], ..place.settings() };
    assert_says(&problem(&a, &b, settings), &["99.png", "in colour"]);
}

#[test]
fn an_archive_that_is_cut_off_is_refused() {
    let (place, digits) = (Place::new(), digits());
    let own = place.images("own.npz", &digits, [8, 8, 1]);
    let mut bytes = std::fs::read(&own).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&own, &bytes).unwrap();
    assert_says(&problem("digits", &own, place.settings()), &["own.npz", "damaged"]);
}

#[test]
fn statistics_of_another_network_are_refused() {
    let (place, digits) = (Place::new(), digits());
    let own = place.images("own.npz", &digits[..20], [8, 8, 1]);
    let gaussian = |d: usize| {
        let mut covariance = vec![0.0; d * d];
        (0..d).for_each(|i| covariance[i * d + i] = 1.0);
        Gaussian::new(vec![0.0; d], covariance).unwrap()
    };
    let file = |name: &str, network: &str, d: usize| {
        let statistics = Statistics { network: network.into(), images: Some(9), features: gaussian(d), spatial: None };
        statistics.write(&place.path(name)).unwrap();
        place.path(name).display().to_string()
    };
    let grey = || Settings { features: Some(Choice::Grey), ..place.settings() };
    let other = file("other.npz", "ddpm-ip-grey-0", 64);
    assert_says(&problem(&other, &own, grey()), &["other.npz", "ddpm-ip-grey-0", "ddpm-ip-grey-1"]);
    let narrow = file("narrow.npz", "ddpm-ip-grey-1", 63);
    assert_says(&problem(&narrow, &own, grey()), &["narrow.npz", "63 columns", "64"]);
    // A file of the reference's says nothing and is FID-Inception's.
    let path = place.path("reference.npz");
    let mut npz = NpzWriter::new(std::fs::File::create(&path).unwrap());
    npz.array::<f64>("mu", &[2], |push| push(&[0.0, 0.0])).unwrap();
    npz.array::<f64>("sigma", &[2, 2], |push| push(&[1.0, 0.0, 0.0, 1.0])).unwrap();
    npz.finish().unwrap();
    let reference = path.display().to_string();
    assert_says(&problem(&reference, &own, grey()), &["inception-2015-12-05"]);
    // A matrix that is no covariance.
    let mut npz = NpzWriter::new(std::fs::File::create(&path).unwrap());
    npz.array::<f64>("mu", &[2], |push| push(&[0.0, 0.0])).unwrap();
    npz.array::<f64>("sigma", &[2, 2], |push| push(&[1.0, 3.0, 0.0, 1.0])).unwrap();
    npz.finish().unwrap();
    assert_says(&problem(&reference, &own, grey()), &["reference.npz", "`sigma`", "symmetric"]);
}

#[test]
fn missing_and_wrong_weights_are_named() {
    let (place, digits) = (Place::new(), digits());
    let own = place.images("own.npz", &digits[..20], [8, 8, 1]);
    let inception =
        |path: Option<std::path::PathBuf>| Settings { features: Some(Choice::Inception(path)), ..place.settings() };
    assert_says(&problem(&own, &own, inception(None)), &["weights fetch inception", "--features inception:PATH"]);
    let wrong = place.path("weights-inception-2015-12-05-6726825d.pth");
    std::fs::write(&wrong, b"something else").unwrap();
    assert_says(&problem(&own, &own, inception(Some(wrong))), &["6726825d", "damaged or another file"]);
    // Of another network, under a name that promises nothing.
    let other = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/grey-1.safetensors");
    let text = problem(&own, &own, inception(Some(other)));
    assert_says(&text, &["of another network", "Conv2d_1a_3x3.conv.weight"]);
    assert!(place.files("cache").is_empty());
}
