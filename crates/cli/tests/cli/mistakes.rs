//! Mistakes: one message that says what is wrong and what to do, and the right exit code.

use super::support::{Place, names};

#[test]
fn usage_and_configuration_end_with_2_and_leave_nothing() {
    let place = Place::new();
    for (args, parts) in [
        (&["--gama", "3"][..], &["--gama", "--gamma"][..]),
        (&["--set", "train.bacth_size=3"], &["train.bacth_size", "did you mean `train.batch_size`?"]),
        (&["--set", "lr"], &["--set lr", "KEY=VALUE"]),
        (&["--set", "seed=1"], &["train.seed or sample.seed"]),
        (&["--preset", "cifar"], &["\"cifar\"", "digits", "cifar10"]),
        (&["--config", "none.toml"], &["none.toml"]),
        (&["--gamma", "-0.1"], &["gamma is -0.1"]),
        (&["--lr", "-1"], &["train.lr = -1"]),
        (&["--timestep-respacing", "-5"], &["diffusion.timestep_respacing", "-5"]),
        (&["--lr", "fast"], &["train.lr = \"fast\" is not a number"]),
        (&["--noise-schedule", "sqrt"], &["diffusion.noise_schedule", "sqrt", "cosine"]),
        (&["--num_channels", "100"], &["100 channels", "multiple of 32"]),
        (&["--image_size", "7"], &["size 7", "multiple of 2"]),
        (&["--timestep_respacing", "2000"], &["timestep_respacing", "2000"]),
        (&["--batch-size", "2000"], &["1797 images are fewer than one batch of 2000"]),
        (&["--data-dir", "no/images"], &["no/images", "--data-dir"]),
        (&["--device", "tpu"], &["no device \"tpu\"", "cpu"]),
        (&["--precision", "f8"], &["model.precision", "f8", "bf16"]),
        (&["--use_fp16", "perhaps"], &["--use-fp16", "perhaps"]),
        (&["--class-cond", "perhaps"], &["model.class_cond", "perhaps"]),
    ] {
        place.run(&[&["train"], args].concat()).complains(2, parts);
        assert!(place.is_empty(), "{args:?} left {:?}", names(&place.path("")));
    }
    place.run(&["train", "--resume_checkpoint", "model.pt"]).complains(1, &["model.pt", "no such file"]);
    place.run(&["sample"]).complains(2, &["--checkpoint"]);
    place.run_with(&[("DDPM_IP_ISA", "mmx")], &["train"]).complains(2, &["DDPM_IP_ISA=mmx", "portable"]);
    std::fs::write(place.path("report.json"), "{}").unwrap();
    place.run(&["bench", "--compare", "report.json"]).complains(2, &["report.json", "ddpm-ip bench --json"]);
    place.run(&["bench", "--repeats", "0"]).complains(2, &["--repeats"]);
    let few = ["bench", "--diffusion-steps", "10", "--repeats", "8", "--set", "sample.timestep_respacing="];
    place.run(&few).complains(2, &["--repeats 8", "12 diffusion steps", "there are 10"]);
    std::fs::remove_file(place.path("report.json")).unwrap();
    place.run(&["trian"]).complains(2, &["train"]);
}

#[test]
fn what_would_be_lost_or_ignored_is_refused() {
    let place = Place::new();
    place.train(&["--steps", "1"]).exits(0);
    let sample = ["sample", "--checkpoint", "run", "--num-samples", "1", "--out", "a.npz"];
    place.run(&[&sample[..], &["--grid", "a.npz"]].concat()).complains(2, &["--grid a.npz", ".png"]);
    std::fs::create_dir(place.path("b.npz")).unwrap();
    place.run(&[&sample[..6], &["b.npz"]].concat()).complains(2, &["--out b.npz is a folder"]);
    let guided = ["classifier-sample", "--checkpoint", "run", "--num-samples", "1"];
    place.run(&guided).complains(2, &["--classifier-path"]);
    place.run(&[&guided[..], &["--classifier-path", "run"]].concat()).complains(2, &["run is not a classifier", "adm"]);
    let ran = place.run(&[&sample[..], &["--classifier-scale", "3"]].concat()).exits(0);
    assert!(ran.err().contains("does nothing without --classifier-path"), "{}", ran.err());
    let predict = ["predict", "--checkpoint", "run", "--input", "a.npz", "--output", "a.npz"];
    place.run(&predict).complains(2, &["--output a.npz is the input"]);
    place.run(&["convert", "run", "trio"]).exits(0);
    place.run(&["convert", "run", "trio"]).complains(2, &["model000001.pt exists"]);
    place
        .run(&["convert", "run/checkpoints/step_000001/model.safetensors", "other"])
        .complains(2, &["holds only parameters"]);
    let on = ["--steps", "1", "--resume_checkpoint", "trio/model000001.pt", "--out", "on"];
    place.train(&on).complains(2, &["at step 1 already", "--steps"]);
    assert!(!place.path("on/checkpoints").exists());
}

#[cfg(unix)]
#[test]
fn names_that_are_not_utf_8_are_names() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let odd = OsStr::from_bytes(b"r\xffn");
    let run = |words: &[&OsStr]| {
        let output = std::process::Command::new(assert_cmd::cargo::cargo_bin("ddpm-ip"))
            .args(words)
            .current_dir(place.path(""))
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {message}");
    };
    let words = |text: &'static str| text.split_whitespace().map(OsStr::new);
    let tiny = super::support::TINY.iter().map(OsStr::new);
    for more in ["--steps 1 --out", "--steps 2 --json --out"] {
        run(&[OsStr::new("train")].into_iter().chain(tiny.clone()).chain(words(more)).chain([odd]).collect::<Vec<_>>());
    }
    for line in
        ["sample --num-samples 1 --json --out s.npz --checkpoint", "nll --data-dir digits --num-samples 1 --checkpoint"]
    {
        run(&words(line).chain([odd]).collect::<Vec<_>>());
    }
    run(&[OsStr::new("convert"), odd, OsStr::from_bytes(b"o\xffut"), OsStr::new("--json")]);
    run(&words("info digits --contact-sheet sheet.png --images 1").collect::<Vec<_>>());
    let images = OsStr::from_bytes(b"im\xffages");
    std::fs::create_dir(place.path("").join(images)).unwrap();
    std::fs::rename(place.path("sheet.png"), place.path("").join(images).join("a.png")).unwrap();
    run(&[
        OsStr::new("prepare"),
        OsStr::new("images"),
        images,
        OsStr::new("--out"),
        OsStr::from_bytes(b"p\xff.npz"),
        OsStr::new("--json"),
    ]);
}

#[test]
fn a_bad_image_is_named_and_can_be_skipped() {
    let place = Place::new();
    std::fs::create_dir(place.path("images")).unwrap();
    place.run(&["info", "images"]).complains(2, &["no images in this folder"]);
    let sheet = ["info", "digits", "--contact-sheet", "images/a.png", "--images", "1"];
    place.run(&sheet).exits(0);
    std::fs::write(place.path("images/b.png"), b"no image").unwrap();
    let args = ["--data-dir", "images", "--image-size", "8", "--in-channels", "1", "--steps", "1", "--batch-size", "2"];
    place.train(&args).complains(1, &["b.png", "--on-bad-image skip"]);
    let ran = place.train(&[&args[..], &["--on-bad-image", "skip"]].concat()).exits(0);
    assert!(ran.err().contains("skipped images/b.png"), "{}", ran.err());
}

#[test]
fn divergence_ends_with_3_and_names_the_last_good_checkpoint() {
    let place = Place::new();
    place.train(&["--steps", "2"]).exits(0);
    let before = std::fs::read(place.path("run/checkpoints/step_000002/model.safetensors")).unwrap();
    place.train(&["--steps", "100", "--lr", "1e30"]).complains(3, &["diverged at step", "run/checkpoints/step_000002"]);
    assert_eq!(names(&place.path("run/checkpoints")), ["step_000002"]);
    assert!(std::fs::read(place.path("run/checkpoints/step_000002/model.safetensors")).unwrap() == before);
}

#[test]
fn a_damaged_checkpoint_is_named() {
    let place = Place::new();
    place.train(&["--steps", "1"]).exits(0);
    let path = place.path("run/checkpoints/step_000001/model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    place.train(&["--steps", "2"]).complains(1, &["model.safetensors", "not a complete safetensors file"]);
    place.run(&["info", "run/checkpoints/step_000001/model.safetensors"]).complains(1, &["not a complete"]);
    place.run(&["sample", "--checkpoint", "nowhere"]).complains(1, &["nowhere", "no such file"]);
}

#[cfg(unix)]
#[test]
fn a_pipe_among_the_images_is_named() {
    let place = Place::new();
    std::fs::create_dir(place.path("images")).unwrap();
    let pipe = place.path("images/pipe.png");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    place.run(&["info", "images"]).complains(1, &["pipe.png", "not a regular file"]);
}

/// A limit on the size of files stands for a full disk: writing fails half-way through a checkpoint.
#[cfg(unix)]
#[test]
fn a_full_disk_while_saving_keeps_the_older_checkpoint() {
    let place = Place::new();
    place.train(&["--steps", "1"]).exits(0);
    let first = place.path("run/checkpoints/step_000001/model.safetensors");
    let before = std::fs::read(&first).unwrap();
    // The training state does not fit into 512-byte blocks for one copy of the network, which does.
    let blocks = before.len() / 512 + 1;
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .arg(assert_cmd::cargo::cargo_bin("ddpm-ip"))
        .arg("train")
        .args(super::support::TINY)
        .args(["--steps", "2"])
        .current_dir(place.path(""))
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("error: cannot write") && message.contains("state.safetensors"), "{message}");
    assert_eq!(names(&place.path("run/checkpoints")), ["step_000001"]);
    assert!(std::fs::read(first).unwrap() == before);
}
