//! Interrupted and repeated calls.

use super::support::{Scene, colour, names, prepare, prepare_until, tar};
use ddpm_ip::Outcome;
use ddpm_ip::data::Labels;
use ddpm_ip::prepare::{Job, Kind};
use std::fs;

/// More images than are made side by side.
const COUNT: usize = 150;

/// Bytes of an image and its label.
const RECORD: u64 = 4 * 4 * 3 + 8;

fn job(scene: &Scene, out: &str) -> Job {
    let images: Vec<(String, Vec<u8>)> =
        (0..COUNT).map(|i| (format!("{}_{i:03}.png", i % 3), colour(4, 4, [i as u8, 1, 2]))).collect();
    let files: Vec<(&str, &[u8])> = images.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    if !scene.path("in.tar").exists() {
        scene.write("in.tar", &tar(&files));
    }
    Job { labels: Some(Labels::Prefix), ..scene.job(Kind::Images, "in.tar", out) }
}

#[test]
fn an_interrupted_npz_goes_on_and_is_the_same() {
    let scene = Scene::new();
    let (whole, parts) = (job(&scene, "whole.npz"), job(&scene, "parts.npz"));
    assert_eq!(prepare(&whole).unwrap(), Outcome::Finished);
    assert_eq!(prepare_until(&parts, 1), Outcome::Interrupted);
    assert!(!parts.out.exists());
    // The last of 64 images is cut off.
    let partial = fs::OpenOptions::new().append(true).open(scene.path("parts.npz.partial")).unwrap();
    let length = partial.metadata().unwrap().len();
    assert!((64 * RECORD..64 * RECORD + 1000).contains(&length), "{length} bytes");
    partial.set_len(length - 1).unwrap();
    drop(partial);
    assert_eq!(prepare_until(&parts, 65), Outcome::Interrupted);
    assert_eq!(prepare(&parts).unwrap(), Outcome::Finished);
    assert!(fs::read(&parts.out).unwrap() == fs::read(&whole.out).unwrap());
    assert_eq!(names(&scene.path("")), ["in.tar", "parts.npz", "whole.npz"]);
}

#[test]
fn an_interrupted_folder_goes_on_without_making_images_again() {
    let scene = Scene::new();
    let (whole, parts) = (job(&scene, "whole"), job(&scene, "parts"));
    prepare(&whole).unwrap();
    assert_eq!(prepare_until(&parts, 1), Outcome::Interrupted);
    assert_eq!(names(&parts.out).len(), 64);
    let (lost, kept) = (parts.out.join(&names(&parts.out)[5]), parts.out.join(&names(&parts.out)[6]));
    fs::remove_file(lost).unwrap();
    fs::write(&kept, b"mine").unwrap();
    assert_eq!(prepare(&parts).unwrap(), Outcome::Finished);
    assert_eq!(fs::read(&kept).unwrap(), b"mine");
    fs::remove_file(kept).unwrap();
    assert_eq!(prepare(&parts).unwrap(), Outcome::Finished);
    assert_eq!(names(&parts.out), names(&whole.out));
    for name in names(&whole.out) {
        assert_eq!(fs::read(parts.out.join(&name)).unwrap(), fs::read(whole.out.join(&name)).unwrap());
    }
}

#[test]
fn an_output_of_other_settings_is_not_gone_on_with() {
    let scene = Scene::new();
    for out in ["out.npz", "out"] {
        let begun = job(&scene, out);
        assert_eq!(prepare_until(&begun, 1), Outcome::Interrupted);
        for other in [Job { image_size: Some(2), ..begun.clone() }, Job { labels: Some(Labels::None), ..begun.clone() }]
        {
            let message = prepare(&other).unwrap_err().to_string();
            assert!(message.contains("with other settings") && message.contains("another --out"), "{message}");
        }
        prepare(&begun).unwrap();
    }
}

#[test]
fn foreign_images_are_not_taken_for_prepared_ones() {
    let scene = Scene::new();
    let job = job(&scene, "out");
    scene.write("out/0_0000001.png", b"mine");
    let message = prepare(&job).unwrap_err().to_string();
    assert!(message.contains("out holds PNGs that"), "{message}");
    assert_eq!(names(&job.out), ["0_0000001.png"]);
}

#[test]
fn results_do_not_lie_among_the_sources() {
    let scene = Scene::new();
    scene.write("in/a.png", &colour(4, 4, [1, 2, 3]));
    for out in ["in", "in/out", "in/out.npz"] {
        let message = prepare(&scene.job(Kind::Images, "in", out)).unwrap_err().to_string();
        assert!(message.contains("among the images"), "{message}");
    }
    assert_eq!(names(&scene.path("in")), ["a.png"]);
}
