//! Images compared from the command line.

use super::support::Place;
use serde_json::Value;

/// A run with samples.
fn sampled() -> Place {
    let place = Place::new();
    place.train(&["--steps", "2"]).exits(0);
    place.run(&["sample", "--checkpoint", "run", "--out", "run", "--num-samples", "12", "--quiet"]).exits(0);
    place
}

#[test]
fn samples_of_a_run_are_compared_and_the_report_is_kept() {
    let place = sampled();
    let text = place.run(&["evaluate", "digits", "run", "--extrapolate"]);
    text.complains(2, &["needs at least 20 samples", "has 12"]);
    let ran = place.run(&["evaluate", "digits", "run", "--neighbours", "sheet.png"]).exits(0);
    for part in [
        "1797 images",
        "12 images",
        "ddpm-ip-grey-1",
        "Fréchet distance",
        "(from means ",
        "precision",
        "brightness        reference -0.3894 ± ",
        ", samples ",
        "(of values from -1 to 1)",
        "only with each other",
    ] {
        assert!(ran.out().contains(part), "{part}: {}", ran.out());
    }
    assert!(ran.err().contains("fewer than 10000") && ran.err().contains("--extrapolate"), "{}", ran.err());
    assert!(place.path("sheet.png").exists());
    let json = place.run(&["evaluate", "digits", "run", "--json", "--quiet", "--metrics", "fid,pr"]).exits(0).out();
    let report: Value = serde_json::from_str(&json).unwrap();
    assert!(report["fid"].as_f64().unwrap() > 1.0 && report["kid"].is_null() && !report["recall"].is_null(), "{json}");
    let numbers =
        [&report["fid_parts"]["from_means"], &report["samples"]["brightness"][1], &report["samples"]["pixel_variance"]];
    assert!(numbers.iter().all(|number| number.is_f64()) && report["sfid_parts"].is_null(), "{json}");
    let kept = place.read("run/evaluations.jsonl");
    assert_eq!((kept.lines().count(), kept.lines().last()), (2, Some(json.trim_end())));
}

#[test]
fn statistics_are_written_and_taken_for_images() {
    let place = sampled();
    let ran = place.run(&["statistics", "digits", "digits.npz"]).exits(0);
    assert!(ran.out().contains("1797 images by ddpm-ip-grey-1"), "{}", ran.out());
    let of = |reference: &str| -> Value {
        let args = ["evaluate", reference, "run", "--metrics", "fid", "--json", "--quiet"];
        serde_json::from_str::<Value>(&place.run(&args).exits(0).out()).unwrap()["fid"].clone()
    };
    assert_eq!(of("digits.npz"), of("digits"));
    let json = place.run(&["statistics", "digits", "again.npz", "--json", "--no-cache", "--quiet"]).exits(0).out();
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["columns"], 64);
    assert_eq!(std::fs::read(place.path("again.npz")).unwrap(), std::fs::read(place.path("digits.npz")).unwrap());
    place.run(&["evaluate", "digits.npz", "run", "--per-class"]).complains(2, &["--per-class", "statistics"]);
    place.run(&["statistics", "digits.npz", "more.npz"]).complains(1, &["holds statistics and no images"]);
}

#[test]
fn mistakes_are_named() {
    let place = sampled();
    let evaluate = |more: &[&str]| place.run(&[&["evaluate", "digits", "run"], more].concat());
    evaluate(&["--features", "resnet"]).complains(2, &["--features resnet", "inception:WEIGHTS.pth"]);
    evaluate(&["--features", "inception"]).complains(1, &["weights fetch inception", "--features grey"]);
    evaluate(&["--features", "nowhere.onnx"]).complains(1, &["nowhere.onnx"]);
    evaluate(&["--feature-size", "8"]).complains(2, &["--feature-size", "FILE.onnx"]);
    evaluate(&["--metrics", "fid,fd"]).complains(2, &["fd"]);
    evaluate(&["--split", "0"]).complains(2, &["--split", "0"]);
    evaluate(&["--metrics", "fid", "--k", "5"]).complains(2, &["--k", "--metrics"]);
    evaluate(&["--metrics", "fid", "--seed", "5"]).complains(2, &["--seed", "--extrapolate"]);
    evaluate(&["--labels", "folder"]).complains(2, &["--labels", "--per-class"]);
    evaluate(&["--batch-size", "1152921504606846976"]).complains(2, &["--batch-size", "4096"]);
    evaluate(&["--image-size", "1000000", "--fit", "pad"]).complains(2, &["--image-size", "4096"]);
    evaluate(&["--fit", "pad"]).complains(2, &["--image-size"]);
    evaluate(&["--image-size", "16"]).complains(2, &["smaller than 16x16"]);
    evaluate(&["--k", "12"]).complains(2, &["--k 12", "has 12", "--metrics"]);
    evaluate(&["--k", "18446744073709551615"]).complains(2, &["--k"]);
    place.run(&["statistics", "run", "run/samples_12x8x8x1.npz"]).complains(2, &["would be lost"]);
    evaluate(&["--neighbours", "sheet.jpg"]).complains(2, &["sheet.jpg", ".png"]);
    evaluate(&["--per-class"]).complains(2, &["labels on both sides"]);
    place.run(&["evaluate", "digits", "nowhere"]).complains(2, &["nowhere"]);
    place.run(&["statistics", "digits", "digits.txt"]).complains(2, &["digits.txt", ".npz"]);
    place.run(&["weights", "fetch", "resnet"]).complains(2, &["resnet", "inception"]);
    place
        .train(&["--steps", "3", "--evaluation-interval", "1", "--evaluation-features", "inception"])
        .complains(1, &["weights fetch inception"]);
    place.run(&["bench", "--only", "evaluate", "--preset", "digits"]).complains(2, &["--preset"]);
}

#[test]
fn training_tells_its_distance() {
    let place = Place::new();
    let flags = ["--steps", "2", "--evaluation-interval", "1", "--evaluation-images", "30", "--json", "--quiet"];
    let json = place.train(&flags).exits(0).out();
    let best = serde_json::from_str::<Value>(&json).unwrap()["best"].clone();
    assert!(best["fid"].as_f64().unwrap() > 0.0, "{json}");
    assert!(place.read("run/progress.csv").lines().next().unwrap().contains("frechet_distance"));
    assert!(place.read("run/log.txt").contains("the best Fréchet distance so far"));
    assert_eq!(place.read("run/evaluations.jsonl").lines().count(), 2);
    let sample = ["sample", "--checkpoint", "run/checkpoints/best", "--num-samples", "2", "--quiet"];
    place.run(&sample).exits(0);
}
