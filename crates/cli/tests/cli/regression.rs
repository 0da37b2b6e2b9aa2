//! What people have reported of programs of this kind, and what happens here. Tests are named by what was reported.

use super::support::{Place, TINY, names};
use ddpm_ip::npz::{Npz, NpzWriter};
use serde_json::Value;

/// `train` without the tiny run's `--class-cond false` and `--out run`.
fn tiny(more: &[&str]) -> Vec<String> {
    let tiny = TINY.iter().copied().chain(more.iter().copied());
    std::iter::once("train").chain(tiny).map(String::from).collect()
}

fn run(place: &Place, words: &[String]) -> super::support::Ran {
    place.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Eight grey or coloured images of 8x8 pixels by these names.
fn images(place: &Place, names: &[&str], colour: bool) {
    for (i, name) in names.iter().enumerate() {
        let path = place.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let value = |x: u32, y: u32| (x * 31 + y * 17 + 40 * i as u32) as u8;
        if colour {
            image::RgbImage::from_fn(8, 8, |x, y| image::Rgb([value(x, y), value(y, x), 9])).save(path).unwrap();
        } else {
            image::GrayImage::from_fn(8, 8, |x, y| image::Luma([value(x, y)])).save(path).unwrap();
        }
    }
}

const IN_FOLDERS: [&str; 6] = [
    "pets/cat/000.png",
    "pets/cat/001.png",
    "pets/cat/002.png",
    "pets/dog/000.png",
    "pets/dog/001.png",
    "pets/dog/002.png",
];

/// A run on cats and dogs in folders.
fn pets(place: &Place) {
    images(place, &IN_FOLDERS, false);
    let pets = ["--data-dir", "pets", "--labels", "folder", "--class-cond", "true", "--image-size", "8"];
    run(place, &tiny(&[&pets[..], &["--in-channels", "1", "--steps", "1"]].concat())).exits(0);
}

fn labels(place: &Place, file: &str) -> Vec<i64> {
    Npz::open(&place.path(file)).unwrap().integers("arr_1").unwrap().values
}

fn shape(place: &Place, file: &str) -> Vec<usize> {
    Npz::open(&place.path(file)).unwrap().bytes("arr_0").unwrap().shape
}

#[test]
fn classes_of_names_that_carry_none() {
    let place = Place::new();
    images(&place, &IN_FOLDERS, false);
    let data = ["--data-dir", "pets", "--image-size", "8", "--in-channels", "1", "--steps", "1"];
    let train = tiny(&[&data[..], &["--class-cond", "true"]].concat());
    run(&place, &train).complains(2, &["pets", "000.png, carry no class", "--labels folder", "cat, dog"]);
    let classifier = ["classifier-train", "--classifier-width", "64", "--classifier-channel-mult", "1"];
    let classifier = [&classifier[..], &["--random-crop", "false", "--out", "run"], &data].concat();
    place.run(&classifier).complains(2, &["carry no class", "--labels folder"]);
    place.run(&["info", "pets", "--class-cond", "true"]).complains(2, &["carry no class", "--labels folder"]);
    let prepare = ["prepare", "images", "pets", "--out", "pets.npz", "--labels", "prefix"];
    place.run(&prepare).complains(2, &["carry no class", "--labels folder"]);
    // Every image a class of its own.
    images(&place, &["flat/a_0.png", "flat/b_0.png", "flat/c_0.png"], false);
    let flat = ["--data-dir", "flat", "--image-size", "8", "--in-channels", "1", "--steps", "1", "--batch-size", "2"];
    let flat = tiny(&[&flat[..], &["--class-cond", "true"]].concat());
    run(&place, &flat).complains(2, &["flat", "each of its 3 images would be a class of its own", "CLASS_NUMBER.png"]);
    assert_eq!(names(&place.path("")), ["flat", "pets"]);
}

#[test]
fn classes_without_images_are_drawn() {
    let place = Place::new();
    let ddpm_images = |w: &mut std::io::BufWriter<&std::fs::File>| {
        let mut npz = NpzWriter::new(w);
        npz.array::<u8>("arr_0", &[6, 8, 8, 1], |push| push(&[7; 6 * 64]))?;
        npz.array::<i64>("arr_1", &[6], |push| push(&[0, 3, 5, 0, 3, 5]))?;
        npz.finish()
    };
    ddpm_ip::file::write_atomic(&place.path("three.npz"), ddpm_images).unwrap();
    let three = ["--data-dir", "three.npz", "--image-size", "8", "--in-channels", "1", "--class-cond", "true"];
    let dry = run(&place, &tiny(&[&three[..], &["--num-classes", "10", "--dry-run"]].concat())).exits(0);
    assert!(dry.err().contains("7 of the 10 classes have no images"), "{}", dry.err());
    let ran = run(&place, &tiny(&[&three[..], &["--num-classes", "10", "--steps", "1"]].concat())).exits(0);
    assert!(ran.err().contains("7 of the 10 classes have no images and are not learned: 1, 2, 4"), "{}", ran.err());
    let sample = ["sample", "--checkpoint", "run", "--num-samples", "30", "--batch-size", "30"];
    let ran = place.run(&sample).exits(0);
    assert!(ran.err().contains("7 of the 10 classes had no images in training and are left out"), "{}", ran.err());
    let drawn = labels(&place, "samples_30x8x8x1.npz");
    assert!(drawn.iter().all(|label| [0, 3, 5].contains(label)), "{drawn:?}");
    let ran = place.run(&["sample", "--checkpoint", "run", "--num-samples", "2", "--classes", "0,7"]).exits(0);
    assert!(ran.err().contains("--classes names some that had no images in training: 7"), "{}", ran.err());
    assert_eq!(labels(&place, "samples_2x8x8x1.npz"), [0, 7]);
}

#[test]
fn resuming_deletes_the_older_checkpoints() {
    let place = Place::new();
    place.train(&["--steps", "4", "--save-interval", "1", "--keep-checkpoints", "0"]).exits(0);
    place.train(&["--steps", "5", "--save-interval", "1"]).exits(0);
    assert_eq!(names(&place.path("run/checkpoints")).len(), 5);
    let ran = place.train(&["--steps", "6", "--save-interval", "1", "--keep-checkpoints", "4"]).exits(0);
    assert_eq!(names(&place.path("run/checkpoints")).len(), 4);
    for step in 1..=2 {
        let said = format!("removed run/checkpoints/step_00000{step} (--keep-checkpoints 4)");
        assert!(ran.err().contains(&said) && place.read("run/log.txt").contains(&said), "{}", ran.err());
    }
}

#[test]
fn samples_replaced_by_others() {
    let place = Place::new();
    place.train(&["--steps", "1"]).exits(0);
    let sample = |more: &[&str]| {
        place.run(&[&["sample", "--checkpoint", "run", "--num-samples", "6", "--out", "a.npz"], more].concat())
    };
    sample(&["--grid", "a.png"]).exits(0);
    let first = std::fs::read(place.path("a.npz")).unwrap();
    let seed = ["--seed", "1", "--grid", "b.png"];
    sample(&seed).complains(2, &["a.npz holds 6 image(s) of run, step 1", "seed 0", "--out", "--overwrite"]);
    place.train(&["--steps", "2"]).exits(0);
    sample(&[]).complains(2, &["a.npz holds 6 image(s) of run, step 1", "--overwrite"]);
    // The same again is there already, and a grid is made of it.
    let old = ["--checkpoint", "run/checkpoints/step_000001/ema_0.995.safetensors", "--grid", "b.png"];
    let again = sample(&old).exits(0);
    assert!(again.out().contains("these 6 images are in a.npz already"), "{}", again.out());
    assert!(std::fs::read(place.path("a.npz")).unwrap() == first);
    assert!(std::fs::read(place.path("a.png")).unwrap() == std::fs::read(place.path("b.png")).unwrap());
    let grid = ["sample", "--checkpoint", "run", "--num-samples", "2", "--grid", "a.png"];
    place.run(&grid).complains(2, &["--grid a.png exists", "--overwrite"]);
    sample(&["--seed", "1", "--overwrite"]).exits(0);
    assert!(std::fs::read(place.path("a.npz")).unwrap() != first);
    // A file of anybody's.
    std::fs::write(place.path("c.npz"), b"mine").unwrap();
    let other = ["sample", "--checkpoint", "run", "--num-samples", "2", "--out", "c.npz"];
    place.run(&other).complains(2, &["c.npz exists, but does not say how it was made", "--overwrite"]);
}

#[test]
fn other_results_replaced() {
    let place = Place::new();
    place.train(&["--steps", "1"]).exits(0);
    let nll = |more: &[&str]| {
        let nll = ["nll", "--checkpoint", "run", "--data-dir", "digits", "--num-samples", "2", "--out", "nll"];
        place.run(&[&nll[..], more].concat())
    };
    let first = nll(&[]).exits(0);
    let again = nll(&[]).exits(0);
    assert_eq!(again.out(), first.out());
    nll(&["--seed", "1"]).complains(2, &["nll/vb_terms.npz holds the terms of 2 image(s) of digits", "another --out"]);
    images(&place, &["in/a_0.png", "in/b_0.png", "in/a_1.png"], false);
    let prepare = |more: &[&str]| place.run(&[&["prepare", "images", "in", "--out", "in.npz"], more].concat());
    prepare(&[]).exits(0);
    assert!(prepare(&[]).exits(0).out().contains("3 images are in in.npz"));
    prepare(&["--labels", "prefix"]).complains(2, &["in.npz holds 3 images of in, prepared as images", "--out"]);
    let statistics = |images: &str| place.run(&["statistics", images, "known.npz", "--quiet"]);
    statistics("digits").exits(0);
    assert!(statistics("digits").exits(0).out().contains("statistics of 1797 images"));
    statistics("in").complains(2, &["known.npz holds statistics of 1797 images of digits by ddpm-ip-grey-1"]);
    let bias = ["bias", "--checkpoint", "run", "--timestep-respacing", "3", "--num-samples", "20", "--out", "bias"];
    let bias = [&bias[..], &["--data-dir", "digits"]].concat();
    place.run(&bias).exits(0);
    place.run(&bias).complains(2, &["bias/bias.json exists already", "--out"]);
    place.run(&["info", "in", "--contact-sheet", "in/a_0.png"]).complains(2, &["in/a_0.png", "would be lost"]);
    // Files of another kind.
    std::fs::write(place.path("notes"), "mine").unwrap();
    place.run(&["report", "run", "--out", "notes"]).complains(2, &["notes exists and is no page"]);
    place.run(&["info", "digits", "--contact-sheet", "notes"]).complains(2, &["notes exists and is no PNG"]);
    std::fs::write(place.path("notes.png"), "mine").unwrap();
    let near = ["evaluate", "digits", "digits", "--metrics", "fid", "--neighbours", "notes.png", "--quiet"];
    place.run(&near).complains(2, &["notes.png exists and is no PNG"]);
    let predict = ["predict", "--checkpoint", "run", "--input", "in.npz", "--output", "known.npz"];
    place.run(&predict).complains(2, &["known.npz exists and is no earlier answer"]);
    assert_eq!(place.read("notes"), "mine");
}

#[test]
fn advice_of_prepare_can_be_followed() {
    let place = Place::new();
    std::fs::create_dir(place.path("in")).unwrap();
    for (name, size) in [("a", 8), ("b", 8), ("c", 9)] {
        image::GrayImage::new(size, size).save(place.path(&format!("in/{name}.png"))).unwrap();
    }
    let prepare = |more: &[&str]| place.run(&[&["prepare", "images", "in", "--out", "out.npz"], more].concat());
    prepare(&[]).complains(1, &["--image-size"]);
    prepare(&["--image-size", "8"]).exits(0);
    assert_eq!(names(&place.path("")), ["in", "out.npz"]);
}

#[cfg(target_os = "linux")]
#[test]
fn memory_runs_out() {
    let place = Place::new();
    let limited = |kib: u32, words: &str| {
        let script = format!("ulimit -v {kib}; RAYON_NUM_THREADS=1 exec \"$0\" {words}");
        let program = assert_cmd::cargo::cargo_bin("ddpm-ip");
        let output =
            std::process::Command::new("sh").args(["-c", &script]).arg(program).current_dir(place.path("")).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let large = "train --batch-size 1500 --microbatch 1500 --steps 1 --num-channels 128 --grid-images 0 --device cpu";
    // Before the first step.
    let (code, message) = limited(600_000, large);
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("a training step of 1500 images needs about") && message.contains("--microbatch"));
    // In spite of all.
    let (code, message) = limited(600_000, &format!("{large} --ignore-memory-limit"));
    assert_eq!(code, Some(1), "{message}");
    for part in ["error: out of memory", "the system refused", "--microbatch N, --use-checkpoint and --precision bf16"]
    {
        assert!(message.contains(part), "{message}");
    }
    assert!(!message.contains("panicked") && !message.contains("RUST_BACKTRACE"), "{message}");
}

#[test]
fn a_learning_rate_too_high_goes_unnoticed() {
    let place = Place::new();
    let ran = place.train(&["--steps", "100", "--lr", "5", "--lr-warmup-steps", "0"]).exits(0);
    for part in
        ["step 50: the mean loss of 50 steps is", "where predicting zero gives 1.000", "norm of the parameters", "--lr"]
    {
        assert!(ran.err().contains(part), "{part}: {}", ran.err());
    }
    assert!(ran.err().contains("training went wrong at step 50"), "{}", ran.err());
    assert!(place.read("run/log.txt").contains("training went wrong at step 50"));
    let ran = place.train(&["--steps", "100", "--out", "well"]).exits(0);
    assert!(!ran.err().contains("wrong"), "{}", ran.err());
}

#[test]
fn going_back_to_an_older_checkpoint() {
    let place = Place::new();
    place.train(&["--steps", "6", "--save-interval", "2"]).exits(0);
    let back = ["train", "--resume-checkpoint", "run/checkpoints/step_000002"];
    place.run(&[&back[..], &["--out", "run"]].concat()).complains(2, &["run holds a run at step 6", "another --out"]);
    let ran = place.run(&[&back[..], &["--out", "back"]].concat()).exits(0);
    assert!(ran.err().contains("resuming at step 2 from run/checkpoints/step_000002"), "{}", ran.err());
    // It goes on as the run did, with its settings.
    let parameters = |run: &str| {
        let bytes = std::fs::read(place.path(&format!("{run}/checkpoints/step_000006/model.safetensors"))).unwrap();
        bytes[bytes.len() - 40_000..].to_vec()
    };
    assert!(parameters("run") == parameters("back"));
    // The same command again goes on with the new run, another does not.
    assert!(place.run(&[&back[..], &["--out", "back"]].concat()).exits(0).err().contains("complete at step 6"));
    let other = ["train", "--resume-checkpoint", "run/checkpoints/step_000004", "--out", "back"];
    place.run(&other).complains(2, &["back holds a run at step 6", "--resume-checkpoint starts another"]);
    let fresh = ["--init-from", "run", "--out", "back", "--steps", "9"];
    place.train(&fresh).complains(2, &["--init-from starts another"]);
    place.run(&["convert", "run", "alone.safetensors"]).exits(0);
    let alone = ["train", "--resume-checkpoint", "alone.safetensors", "--out", "new"];
    place.run(&alone).complains(1, &["alone.safetensors", "--resume-checkpoint RUN/checkpoints/step_N --out NEW"]);
}

#[test]
fn grey_images_trained_in_colour_and_compared() {
    let place = Place::new();
    let ran = place.train(&["--in-channels", "3", "--steps", "1"]).exits(0);
    assert!(ran.err().contains("the images are grey") && ran.err().contains("--in-channels 1"), "{}", ran.err());
    let sample = ["sample", "--checkpoint", "run", "--num-samples", "12", "--out", "run", "--quiet"];
    place.run(&sample).exits(0);
    let ran = place.run(&["evaluate", "digits", "run"]).exits(0);
    assert!(ran.err().contains("colour is made grey, as the other side has it"), "{}", ran.err());
    assert!(ran.out().contains("ddpm-ip-grey-1"), "{}", ran.out());
    let ran = place.run(&["evaluate", "run", "digits", "--features", "grey", "--metrics", "fid"]).exits(0);
    assert!(ran.err().contains("colour is made grey"), "{}", ran.err());
    // The same numbers as of images that are grey already.
    images(&place, &["grey/a.png", "grey/b.png", "grey/c.png"], false);
    place.run(&["prepare", "images", "grey", "--channels", "3", "--out", "colour.npz"]).exits(0);
    let fid = |samples: &str| {
        let args = ["evaluate", "digits", samples, "--metrics", "fid", "--json", "--quiet"];
        serde_json::from_str::<Value>(&place.run(&args).exits(0).out()).unwrap()["fid"].clone()
    };
    assert_eq!(fid("grey"), fid("colour.npz"));
}

#[test]
fn a_network_flag_that_contradicts_the_checkpoint() {
    let place = Place::new();
    place.train(&["--steps", "1"]).exits(0);
    let sample = ["sample", "--checkpoint", "run", "--num-samples", "1"];
    let wrong = [&sample[..], &["--class-cond", "true"]].concat();
    place.run(&wrong).complains(1, &["was made with --class-cond false (not true): leave this flag out"]);
    let wrong = [&sample[..], &["--num-channels", "64", "--learn-sigma"]].concat();
    place.run(&wrong).complains(1, &["--num-channels 32 (not 64)", "--variance", "leave these flags out"]);
    place.run(&["convert", "run", "model.pt"]).exits(0);
    let sample =
        ["sample", "--checkpoint", "model.pt", "--num-samples", "1", "--image-size", "8", "--num-res-blocks", "2"];
    place.run(&sample).complains(1, &["model.pt", "was made with --num-res-blocks 1 (not 2)"]);
    let nll = ["nll", "--checkpoint", "run", "--data-dir", "digits", "--num-channels", "64"];
    place.run(&nll).complains(1, &["was made with --num-channels 32 (not 64)"]);
    assert!(!place.path("vb_terms.npz").exists());
}

#[test]
fn resuming_without_the_runs_flags() {
    let place = Place::new();
    place.train(&["--steps", "2"]).exits(0);
    let bare = place.run(&["train", "--out", "run", "--steps", "3"]).exits(1);
    for part in
        ["run: holds a run of another network at step 2", "digits", "ddpm-ip train --config run/config.toml --out run"]
    {
        assert!(bare.err().contains(part), "{part}: {}", bare.err());
    }
    assert_eq!(bare.err().lines().count(), 1, "{}", bare.err());
    // The command goes on.
    let ran = place.run(&["train", "--config", "run/config.toml", "--out", "run", "--steps", "3"]).exits(0);
    assert!(ran.err().contains("resuming at step 2") && !ran.err().contains("now;"), "{}", ran.err());
    let ran = place.train(&["--steps", "4", "--lr", "0.5"]).exits(0);
    assert!(ran.err().contains("train.lr is 0.5 now") && ran.err().contains("run's own settings"), "{}", ran.err());
    // Alone it begins anew.
    let ran = place.run(&["train", "--config", "run/config.toml", "--steps", "1"]).exits(0);
    for part in ["starts a new run in runs/config", "--config run/config.toml --out run"] {
        assert!(ran.err().contains(part), "{part}: {}", ran.err());
    }
    // Two networks in one OPENAI_LOGDIR.
    let other = [&["train"], &TINY[..TINY.len() - 2], &["--num-channels", "64", "--steps", "1"]].concat();
    let logs = [("OPENAI_LOGDIR", "run")];
    place.run_with(&logs, &other).complains(1, &["holds a run of another network", "choose another --out"]);
}

#[test]
fn classes_by_their_names() {
    let place = Place::new();
    pets(&place);
    let config: toml::Table = place.read("run/config.toml").parse().unwrap();
    assert_eq!(config["classes"]["names"].to_string(), r#"["cat", "dog"]"#);
    assert!(place.run(&["info", "run"]).exits(0).out().contains("classes: 0 cat, 1 dog"));
    let sample = ["sample", "--checkpoint", "run", "--num-samples", "3", "--classes"];
    place.run(&[&sample[..], &["dog,cat"]].concat()).exits(0);
    assert_eq!(labels(&place, "samples_3x8x8x1.npz"), [1, 0, 1]);
    place.run(&[&sample[..], &["cow"]].concat()).complains(2, &["there is no class \"cow\"", "cat, dog"]);
    place.run(&[&sample[..], &["2"]].concat()).complains(2, &["--classes names class 2", "0 to 1"]);
    // Prepared images keep the names.
    place.run(&["prepare", "images", "pets", "--labels", "folder", "--image-size", "8", "--out", "pets.npz"]).exits(0);
    let prepared = ["--data-dir", "pets.npz", "--class-cond", "true", "--image-size", "8", "--out", "prepared"];
    run(&place, &tiny(&[&prepared[..], &["--in-channels", "1", "--steps", "1", "--batch-size", "2"]].concat()))
        .exits(0);
    let config: toml::Table = place.read("prepared/config.toml").parse().unwrap();
    assert_eq!(config["classes"]["names"].to_string(), r#"["cat", "dog"]"#);
    // A name goes before a number.
    images(&place, &["three/0/1.png", "three/1/1.png", "three/10/1.png", "three/10/2.png"], false);
    let three = ["--data-dir", "three", "--labels", "folder", "--class-cond", "true", "--image-size", "8"];
    run(&place, &tiny(&[&three[..], &["--in-channels", "1", "--steps", "1", "--out", "three.run"]].concat())).exits(0);
    let ten = ["sample", "--checkpoint", "three.run", "--num-samples", "1", "--classes", "10"];
    assert!(place.run(&ten).exits(0).err().contains("--classes 10 means the class with that name, which is number 2"));
    assert_eq!(labels(&place, "samples_1x8x8x1.npz"), [2]);
    // Other folders are numbered as the network's are.
    images(&place, &["dogs/dog/1.png", "dogs/dog/2.png", "cows/cow/1.png", "cows/cow/2.png"], false);
    let nll = ["nll", "--checkpoint", "run", "--labels", "folder", "--timestep-respacing", "2", "--data-dir"];
    place.run(&[&nll[..], &["dogs"]].concat()).exits(0);
    let cows = [&nll[..], &["cows", "--out", "cows.nll"]].concat();
    place.run(&cows).complains(2, &["cows has a class \"cow\"", "cat, dog"]);
    let classifier = "classifier-train --data-dir pets --val-data-dir cows --labels folder --image-size 8 --in-channels 1 \
                      --classifier-width 64 --classifier-channel-mult 1,1 --classifier-attention-resolutions 4 \
                      --random-crop false --batch-size 2 --steps 1 --out classifier";
    let classifier: Vec<&str> = classifier.split_whitespace().collect();
    place.run(&classifier).complains(2, &["cows has a class \"cow\"", "cat, dog"]);
    place.train(&["--steps", "1", "--class-cond", "true", "--out", "digits"]).exits(0);
    let numbered = ["sample", "--checkpoint", "digits", "--num-samples", "1", "--classes", "cat"];
    place.run(&numbered).complains(2, &["no class \"cat\"", "their numbers, as in 0,1,2"]);
}

#[test]
fn nothing_is_said_while_images_are_drawn() {
    let place = Place::new();
    place.train(&["--steps", "1"]).exits(0);
    let sample = ["sample", "--checkpoint", "run", "--num-samples", "3", "--timestep-respacing", "5", "--seed", "4"];
    let ran = place.run(&[&sample[..], &["--json"]].concat()).exits(0);
    let first = "drawing 3 image(s) of run, step 1, average 0.995: ddpm, 5 steps, seed 4";
    assert!(ran.err().contains(first), "{}", ran.err());
    let report: Value = serde_json::from_str(&ran.out()).unwrap();
    assert_eq!((&report["sampler"], &report["steps"], &report["seed"]), (&"ddpm".into(), &5.into(), &4.into()));
    assert_eq!((&report["step"], &report["average"]), (&1.into(), &0.995.into()));
    let nll = ["nll", "--checkpoint", "run", "--data-dir", "digits", "--num-samples", "2", "--timestep-respacing", "5"];
    let ran = place.run(&nll).exits(0);
    assert!(
        ran.err().contains("bounding 2 image(s) of digits by run, step 1, average 0.995: 5 steps"),
        "{}",
        ran.err()
    );
    let ran = place.run(&["evaluate", "digits", "samples_3x8x8x1.npz", "--metrics", "fid"]).exits(0);
    assert!(ran.err().contains("making features of 1797 images of digits"), "{}", ran.err());
    images(&place, &["in/a.png", "in/b.png"], false);
    let ran = place.run(&["prepare", "images", "in", "--out", "in.npz"]).exits(0);
    assert!(ran.err().contains("preparing images from in into in.npz"), "{}", ran.err());
}

#[test]
fn ddim_timesteps_drawn_by_ddpm() {
    let place = Place::new();
    place.train(&["--steps", "1"]).exits(0);
    let sample = |name: &str, more: &[&str]| {
        let begin =
            ["sample", "--checkpoint", "run", "--num-samples", "1", "--timestep-respacing", "ddim5", "--out", name];
        place.run(&[&begin[..], more].concat()).exits(0).err()
    };
    let said = sample("a.npz", &["--eta", "0.5"]);
    assert!(said.contains("--timestep-respacing ddim5 chooses the timesteps") && said.contains("--use-ddim"), "{said}");
    assert!(said.contains("--eta 0.5 does nothing with --sampler ddpm"), "{said}");
    let said = sample("b.npz", &["--eta", "0.5", "--use-ddim", "true"]);
    assert!(!said.contains("--use-ddim") && !said.contains("nothing"), "{said}");
}

#[test]
fn flags_that_do_nothing() {
    let place = Place::new();
    let flags = ["--num-classes", "3", "--evaluation-images", "50", "--perturbation-decay-steps", "9"];
    let ran = place.train(&[&flags[..], &["--val-data-dir", "digits", "--labels", "folder", "--steps", "1"]].concat());
    let said = ran.exits(0).err();
    for flag in ["num-classes", "evaluation-images", "perturbation-decay-steps", "val-data-dir", "labels"] {
        assert!(said.contains(&format!("--{flag} does nothing here: it is for")), "{flag}: {said}");
    }
    // What stands at its default says nothing, as the reference's lines do.
    let said = place.train(&["--num-heads", "4", "--fp16_scale_growth", "1e-3", "--steps", "2"]).exits(0).err();
    assert!(!said.contains("does nothing"), "{said}");
    let sample = ["sample", "--checkpoint", "run", "--num-samples", "1", "--gamma", "0.3"];
    let said = place.run(&sample).exits(0).err();
    assert!(said.contains("--gamma does nothing here: it is for training"), "{said}");
}

#[test]
fn flags_of_other_programs() {
    let place = Place::new();
    for (command, theirs, parts) in [
        ("train", "--learning-rate", &["--learning-rate is --lr here"][..]),
        ("train", "--learning_rate=3", &["--learning-rate is --lr here"]),
        ("train", "--max-train-steps", &["is --steps here"]),
        ("train", "--train_num_steps", &["is --steps here"]),
        ("train", "--gradient_accumulation_steps", &["is --microbatch"]),
        ("train", "--mixed_precision", &["is --precision here"]),
        ("train", "--resume_from_checkpoint", &["is --resume-checkpoint here"]),
        ("train", "--output_dir", &["is --out here"]),
        ("train", "--evaluate-every", &["is --evaluation-interval here"]),
        ("sample", "--num-inference-steps", &["is --timestep-respacing here"]),
        ("sample", "--steps", &["is --timestep-respacing here"]),
        ("sample", "--n", &["is --num-samples here"]),
        ("train", "--batch-siez", &["there is no flag --batch-siez", "did you mean --batch-size?"]),
        ("image_train", "--lr-rate", &["there is no flag --lr-rate"]),
        ("train", "--wandb", &["there is no flag --wandb: `ddpm-ip train --help` lists all flags"]),
    ] {
        place.run(&[command, theirs, "3"]).complains(2, parts);
    }
    let said = place.run(&["train", "--wandb"]).exits(2).err();
    assert!(!said.contains("did you mean"), "{said}");
}

#[test]
fn super_resolution_of_three_images_draws_thousands() {
    let place = Place::new();
    let train =
        [&["super-res-train"], TINY, &["--data-dir", "digits", "--image-size", "8", "--small-size", "4"]].concat();
    place.run(&[&train[..], &["--in-channels", "1", "--steps", "1"]].concat()).exits(0);
    let small = |name: &str, value: u8| {
        std::fs::create_dir_all(place.path("small")).unwrap();
        image::GrayImage::from_pixel(4, 4, image::Luma([value])).save(place.path(name)).unwrap();
    };
    ["small/a.png", "small/b.png", "small/c.png"]
        .iter()
        .zip([10, 90, 200])
        .for_each(|(name, value)| small(name, value));
    let enlarge = |base: &str, more: &[&str]| {
        place.run(&[&["super-res-sample", "--checkpoint", "run", "--base-samples", base], more].concat())
    };
    enlarge("small", &[]).exits(0);
    assert_eq!(shape(&place, "samples_3x8x8x1.npz"), [3, 8, 8, 1]);
    enlarge("small/b.png", &[]).exits(0);
    assert_eq!(shape(&place, "samples_1x8x8x1.npz"), [1, 8, 8, 1]);
    let more = enlarge("small", &["--num-samples", "5"]).exits(0);
    assert!(more.err().contains("holds 3 images: they are repeated up to 5"), "{}", more.err());
}

#[test]
fn timesteps_that_were_never_trained() {
    let place = Place::new();
    let ran = place.train(&["--steps", "1", "--diffusion-steps", "20", "--timestep-respacing", "5"]).exits(0);
    let said = "--timestep-respacing 5 trains only 5 of the 20 timesteps";
    assert!(ran.err().contains(said) && place.read("run/log.txt").contains(said), "{}", ran.err());
    let sample = ["sample", "--checkpoint", "run", "--num-samples", "1"];
    let parts = ["trained at only 5 of 20 timesteps", "--timestep-respacing 5", "--untrained-timesteps"];
    place.run(&[&sample[..], &["--timestep-respacing", "10"]].concat()).complains(2, &parts);
    place.run(&sample).complains(2, &parts);
    place.run(&["nll", "--checkpoint", "run", "--data-dir", "digits"]).complains(2, &parts);
    place.run(&[&sample[..], &["--timestep-respacing", "5"]].concat()).exits(0);
    let all = ["--untrained-timesteps", "--out", "all.npz"];
    place.run(&[&sample[..], &all].concat()).exits(0);
}

#[test]
fn a_folder_where_a_file_was_meant() {
    let place = Place::new();
    place.train(&["--steps", "1"]).exits(0);
    let sample = ["sample", "--checkpoint", "run", "--num-samples", "1", "--out"];
    place.run(&[&sample[..], &["pics.png"]].concat()).complains(2, &["--out pics.png", "end it in .npz"]);
    place.run(&["train", "--out", "run.json"]).complains(2, &["--out run.json", "named like a .json file"]);
    std::fs::write(place.path("file"), b"").unwrap();
    place.run(&[&sample[..], &["file"]].concat()).complains(2, &["--out file is a file, not a folder"]);
    place.run(&["train", "--out", "file"]).complains(2, &["--out file is a file, not a folder"]);
    place.run(&["train", "--out", "file/run"]).complains(2, &["--out file/run lies below file, which is a file"]);
    let nll = ["nll", "--checkpoint", "run", "--data-dir", "digits", "--num-samples", "1", "--out", "terms.npz"];
    place.run(&nll).complains(2, &["--out terms.npz would be a folder"]);
    assert_eq!(names(&place.path("")), ["file", "run"]);
    place.run(&["sample", "--checkpoint", "run/config.toml"]).complains(1, &["is a .toml file, not a checkpoint"]);
    place.run(&["train", "--config", "run", "--out", "x"]).complains(2, &["run: is a folder", "config.toml"]);
    let predict = ["predict", "--checkpoint", "run", "--input", "run", "--output", "x.npz"];
    place.run(&predict).complains(1, &["run: is a folder: name an .npz file"]);
}

#[cfg(unix)]
#[test]
fn a_link_that_leads_nowhere() {
    let place = Place::new();
    std::os::unix::fs::symlink("gone", place.path("link")).unwrap();
    place.run(&["info", "link"]).complains(1, &["link", "is a link to gone, which is not there"]);
    place.run(&["sample", "--checkpoint", "link"]).complains(1, &["link: is a link to gone"]);
    place.run(&["train", "--out", "link"]).complains(2, &["--out link is a link to gone"]);
}

#[test]
fn a_run_trained_on_its_own_grids() {
    let place = Place::new();
    place.train(&["--steps", "1", "--grid-images", "4"]).exits(0);
    std::fs::create_dir(place.path("runs")).unwrap();
    std::fs::rename(place.path("run"), place.path("runs/first")).unwrap();
    let on = |data: &str| place.train(&["--data-dir", data, "--image-size", "8", "--batch-size", "1", "--steps", "1"]);
    for data in ["runs/first", "runs/first/samples", "runs"] {
        on(data).complains(2, &["runs/first: this is a run directory, not images"]);
    }
    place.run(&["prepare", "images", "runs/first", "--out", "x.npz"]).complains(2, &["is a run directory, not images"]);
}

#[test]
fn counts_that_cannot_be_met() {
    let place = Place::new();
    place.train(&["--steps", "1"]).exits(0);
    images(&place, &["few/a.png", "few/b.png", "few/c.png"], false);
    let nll = ["nll", "--checkpoint", "run", "--data-dir", "few", "--timestep-respacing", "2"];
    place.run(&[&nll[..], &["--num-samples", "9"]].concat()).complains(2, &["--num-samples is 9", "few has 3 images"]);
    assert!(place.run(&nll).exits(0).out().contains("over 3 images"));
    let bias =
        ["bias", "--checkpoint", "run", "--data-dir", "digits", "--num-samples", "2000", "--timestep-respacing", "5"];
    place.run(&bias).complains(2, &["--num-samples is 2000", "1797"]);
    let evaluate = |more: &[&str]| place.run(&[&["evaluate", "digits", "few"], more].concat());
    evaluate(&["--num-images", "9"]).complains(2, &["--num-images is 9", "few has 3"]);
    evaluate(&["--metrics", "kid", "--kid-subset-size", "50"]).complains(2, &["--kid-subset-size is 50", "3 images"]);
    evaluate(&["--metrics", "is", "--split", "50"]).complains(2, &["--split is 50", "few has 3"]);
    let sheet = ["info", "few", "--contact-sheet", "sheet.png"];
    place.run(&[&sheet[..], &["--images", "9"]].concat()).complains(2, &["--images is 9", "few has 3"]);
    place.run(&sheet).exits(0);
}
