//! Training, resuming, sampling, predicting.

use super::support::{Place, TINY, names};
use serde_json::Value;

#[test]
fn a_run_directory_has_everything_and_says_what_to_type_next() {
    let place = Place::new();
    let ran = place.train(&["--steps", "2", "--grid-images", "4"]).exits(0);
    let expected =
        [".lock", "calls.jsonl", "checkpoints", "config.toml", "log.txt", "progress.csv", "samples", "stats.jsonl"];
    assert_eq!(names(&place.path("run")), expected);
    assert_eq!(names(&place.path("run/checkpoints")), ["step_000002"]);
    assert_eq!(names(&place.path("run/samples")), ["step_000002.png"]);
    for part in ["2 steps, 8 images", "run/samples/step_000002.png", "sample --checkpoint run", "--steps 4", "info run"]
    {
        assert!(ran.out().contains(part), "{:?} does not say {part:?}", ran.out());
    }
    // No bar without a terminal, and the log lines in its place.
    assert!(ran.err().lines().all(|l| l.starts_with("step ")), "{}", ran.err());
    let config: toml::Table = place.read("run/config.toml").parse().unwrap();
    assert_eq!(config["train"]["batch_size"].as_integer(), Some(4));
    assert_eq!(config["perturbation"]["gamma"].as_float(), Some(0.1));
}

#[test]
fn logs_go_on_where_a_resumed_run_goes_on() {
    let place = Place::new();
    place.train(&["--steps", "3"]).exits(0);
    place.train(&["--steps", "5", "--variance", "fixed-large"]).exits(0);
    let steps = |lines: &str, step: &dyn Fn(&str) -> f64| lines.lines().map(step).collect::<Vec<_>>();
    let csv = place.read("run/progress.csv");
    let (header, rows) = csv.split_once('\n').unwrap();
    assert!(header.starts_with("step,samples,param_norm,lr,images_per_sec,loss,"), "{header}");
    let columns = header.split(',').count();
    assert!(rows.lines().all(|row| row.split(',').count() == columns), "{csv}");
    assert_eq!(steps(rows, &|row| row.split(',').next().unwrap().parse().unwrap()), [1.0, 2.0, 3.0, 4.0, 5.0]);
    let step = |line: &str| serde_json::from_str::<Value>(line).unwrap()["step"].as_f64().unwrap();
    assert_eq!(steps(&place.read("run/stats.jsonl"), &step), [1.0, 2.0, 3.0, 4.0, 5.0]);
    let log = place.read("run/log.txt");
    for part in ["resuming at step 3", "diffusion.variance is \"fixed-large\" now", "saved run/checkpoints/step_000005"]
    {
        assert!(log.contains(part), "{log}");
    }
}

#[test]
fn lines_beyond_the_step_a_run_resumes_from_are_dropped() {
    let place = Place::new();
    place.train(&["--steps", "4", "--save-interval", "2"]).exits(0);
    std::fs::remove_dir_all(place.path("run/checkpoints/step_000004")).unwrap();
    place.train(&["--steps", "3"]).exits(0);
    let steps: Vec<String> =
        place.read("run/progress.csv").lines().map(|l| l.split(',').next().unwrap().into()).collect();
    assert_eq!(steps, ["step", "1", "2", "3"]);
    assert_eq!(place.read("run/stats.jsonl").lines().count(), 3);
}

#[test]
fn a_finished_run_says_so_and_json_says_everything() {
    let place = Place::new();
    place.train(&["--steps", "2"]).exits(0);
    let again = place.train(&["--steps", "2", "--quiet"]).exits(0);
    assert!(again.err().contains("complete at step 2"), "{}", again.err());
    let json = place.train(&["--steps", "3", "--json", "--quiet"]).exits(0);
    let report: Value = serde_json::from_str(&json.out()).unwrap();
    assert_eq!((&report["outcome"], &report["step"], &report["images"]), (&"finished".into(), &3.into(), &12.into()));
    assert!(report["loss"].is_f64() && report["images_per_sec"].is_f64());
    assert_eq!(json.err(), "");
}

#[test]
fn samples_are_drawn_with_the_checkpoints_settings_and_those_on_top() {
    let place = Place::new();
    place.train(&["--steps", "1"]).exits(0);
    let args = ["sample", "--checkpoint", "run", "--num_samples", "6", "--batch_size", "4", "--grid", "grid.png"];
    let ran = place.run(&args).exits(0);
    assert!(ran.out().contains("wrote 6 images to samples_6x8x8x1.npz and grid.png"), "{}", ran.out());
    assert_eq!(names(&place.path("")), ["grid.png", "run", "samples_6x8x8x1.npz"]);
    // The reference's flags, in its spelling.
    let reference = ["sample", "--model_path", "run/checkpoints/step_000001/model.safetensors", "--use_ddim", "True"];
    let more = ["--timestep_respacing", "ddim5", "--num_samples", "2", "--out", "ddim.npz", "--json", "--quiet"];
    let ran = place.run(&[&reference[..], &more].concat()).exits(0);
    let report: Value = serde_json::from_str(&ran.out()).unwrap();
    assert_eq!((&report["outcome"], &report["out"]), (&"finished".into(), &"ddim.npz".into()));
}

#[test]
fn the_references_flags_say_what_they_say_there() {
    let place = Place::new();
    let flags = [
        "--image_size",
        "32",
        "--num_channels",
        "128",
        "--num_res_blocks",
        "3",
        "--num_head_channels",
        "32",
        "--attention_resolutions",
        "16,8",
        "--resblock_updown",
        "True",
        "--use_new_attention_order",
        "True",
        "--learn_sigma",
        "True",
        "--dropout",
        "0.3",
        "--diffusion_steps",
        "1000",
        "--noise_schedule",
        "cosine",
        "--rescale_learned_sigmas",
        "True",
        "--schedule_sampler",
        "loss-second-moment",
        "--input_pertub",
        "0.15",
        "--use_fp16",
        "True",
        "--lr",
        "1e-4",
        "--batch_size",
        "64",
        "--use_checkpoint",
        "False",
        "--in-channels",
        "1",
        "--data_dir",
        "digits",
        "--allow-upscale",
        "--ema_rate",
        "0.9999,0.999",
        "--class_cond",
        "False",
    ];
    let ran = place.run(&[&["train", "--dry-run"], &flags[..]].concat()).exits(0);
    let config: toml::Table = ran.out().parse().unwrap();
    let text = |section: &str, key: &str| config[section][key].to_string();
    for (section, key, expected) in [
        ("model", "num_channels", "128"),
        ("model", "resblock_updown", "true"),
        ("diffusion", "variance", "\"learned-range\""),
        ("diffusion", "loss", "\"rescaled-mse\""),
        ("perturbation", "gamma", "0.15"),
        ("train", "ema_rate", "[0.9999, 0.999]"),
        ("train", "lr", "0.0001"),
        ("model", "precision", "\"bf16\""),
        ("model", "use_checkpoint", "false"),
    ] {
        assert_eq!(text(section, key), expected, "{section}.{key}");
    }
    assert!(place.is_empty());
    for (flag, value) in [("--input-perturbation", "0.2"), ("--gamma", "0.2"), ("--input_perturb", "0.2")] {
        let ran = place.run(&["train", "--dry-run", flag, value]).exits(0);
        assert!(ran.out().contains("gamma = 0.2\n"), "{flag}");
    }
}

#[test]
fn what_already_is_as_a_reference_flag_says_stays() {
    let place = Place::new();
    for (flags, key, expected) in [
        (&["--variance", "learned", "--learn_sigma", "True"][..], "variance", "learned"),
        (&["--variance", "learned", "--sigma_small", "False"], "variance", "learned"),
        (&["--variance", "learned", "--learn_sigma", "False"], "variance", "fixed-large"),
        (&["--sigma_small", "True"], "variance", "fixed-small"),
        (&["--loss", "kl", "--rescale_learned_sigmas", "False"], "loss", "kl"),
        (&["--use_kl", "True", "--rescale_learned_sigmas", "True"], "loss", "rescaled-kl"),
        (&["--prediction", "previous-x", "--predict_xstart", "False"], "prediction", "previous-x"),
        (&["--predict_xstart"], "prediction", "x-start"),
    ] {
        let ran = place.run(&[&["train", "--dry-run"], flags].concat()).exits(0);
        let config: toml::Table = ran.out().parse().unwrap();
        assert_eq!(config["diffusion"][key].as_str(), Some(expected), "{flags:?}");
    }
}

#[test]
fn the_cifar10_preset_is_the_published_network() {
    let place = Place::new();
    let digits = ["--data-dir", "digits", "--in-channels", "3", "--allow-upscale"];
    let ran = place.run(&[&["train", "--preset", "cifar10", "--dry-run"], &digits[..]].concat()).exits(0);
    assert!(ran.out().starts_with("# would train 57094662 parameters into runs/cifar10"), "{}", ran.out());
}

#[test]
fn settings_come_from_preset_file_set_and_flag_in_this_order() {
    let place = Place::new();
    std::fs::write(place.path("mine.toml"), "[train]\nlr = 0.1\nsteps = 11\nbatch_size = 11\n").unwrap();
    let args =
        ["train", "--preset", "digits", "--config", "mine.toml", "--set", "steps=12", "--set", "train.batch_size=12"];
    let ran = place.run(&[&args[..], &["--batch-size", "13", "--dry-run"]].concat()).exits(0);
    for expected in ["lr = 0.1\n", "steps = 12\n", "batch_size = 13\n", "grid_images = 100\n"] {
        assert!(ran.out().contains(expected), "{expected} is not in {}", ran.out());
    }
    assert_eq!(names(&place.path("")), ["mine.toml"]);
}

#[test]
fn predict_runs_the_network_once() {
    use ddpm_ip::npz::{Npz, NpzWriter};
    let place = Place::new();
    place.train(&["--steps", "1"]).exits(0);
    ddpm_ip::file::write_atomic(&place.path("in.npz"), |w| {
        let mut npz = NpzWriter::new(w);
        npz.array::<f32>("x", &[2, 1, 8, 8], |push| push(&[0.5; 128]))?;
        npz.array::<i64>("t", &[2], |push| push(&[0, 7]))?;
        npz.finish()
    })
    .unwrap();
    let args = ["predict", "--checkpoint", "run", "--input", "in.npz", "--output", "out.npz"];
    let ran = place.run(&args).exits(0);
    assert!(ran.out().contains("[2, 1, 8, 8]"), "{}", ran.out());
    assert_eq!(Npz::open(&place.path("out.npz")).unwrap().floats("out").unwrap().shape, [2, 1, 8, 8]);
    // Network flags that are not the checkpoint's.
    place
        .run(&[&args[..], &["--num_res_blocks", "2"]].concat())
        .complains(1, &["another architecture", "input_blocks.2"]);
}

#[test]
fn one_run_directory_is_for_one_process() {
    let place = Place::new();
    place.train(&["--steps", "1"]).exits(0);
    let lock = std::fs::File::open(place.path("run/.lock")).unwrap();
    lock.lock().unwrap();
    let refused = place.train(&["--steps", "2"]).exits(1);
    assert!(refused.err().contains("another process is training in this run directory"), "{}", refused.err());
    drop(lock);
    place.train(&["--steps", "2"]).exits(0);
}

/// A run without an end, and the lines that it writes from its third step on.
#[cfg(unix)]
fn endless(place: &Place) -> (std::process::Child, impl Iterator<Item = String>) {
    use std::io::{BufRead, BufReader};
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("ddpm-ip"))
        .args(["train"])
        .args(TINY)
        .args(["--steps", "50000", "--keep-checkpoints", "0"])
        .current_dir(place.path(""))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.split_whitespace().take(2).eq(["step", "3"])));
    (child, lines)
}

#[cfg(unix)]
fn signal(child: &std::process::Child, signals: &[&str]) {
    let kill: Vec<String> = signals.iter().map(|signal| format!("kill -{signal} {}", child.id())).collect();
    assert!(std::process::Command::new("sh").args(["-c", &kill.join("; ")]).status().unwrap().success());
}

#[cfg(unix)]
#[test]
fn the_first_signal_saves_and_the_run_goes_on_from_there() {
    // `timeout` and others signal the process and its group: both at once count as one.
    for signals in [&["INT", "INT"][..], &["TERM"], &["HUP"]] {
        let place = Place::new();
        let (mut child, lines) = endless(&place);
        signal(&child, signals);
        let rest: Vec<String> = lines.collect();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
        assert!(rest.iter().any(|l| l.contains("repeat the command to resume")), "{rest:?}");
        let saved = names(&place.path("run/checkpoints"));
        let step: u64 = saved[0].strip_prefix("step_").unwrap().parse().unwrap();
        let ran = place.train(&["--steps", &(step + 1).to_string()]).exits(0);
        assert!(ran.err().contains(&format!("resuming at step {step}")), "{}", ran.err());
    }
}

#[cfg(unix)]
#[test]
fn sigusr1_saves_and_the_run_goes_on() {
    let place = Place::new();
    let (mut child, mut lines) = endless(&place);
    for _ in 0..2 {
        signal(&child, &["USR1"]);
        let said = lines.by_ref().find(|line| line.contains("saving a checkpoint, as asked"));
        assert!(said.is_some());
        // It goes on.
        assert!(lines.by_ref().any(|line| line.starts_with("step ")));
    }
    signal(&child, &["TERM"]);
    lines.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let saved = names(&place.path("run/checkpoints"));
    assert_eq!(saved.len(), 3, "{saved:?}");
}

#[test]
fn presets_say_the_sizes_of_classifiers_and_super_resolution() {
    let place = Place::new();
    let classifier = "--classifier-width 64 --classifier-channel-mult 1,1 --classifier-attention-resolutions 4";
    for (command, arch, sizes) in
        [("classifier-train", "classifier", classifier), ("super-res-train", "superres", "--small-size 4")]
    {
        let begin = [command, "--preset", "digits", "--dry-run"].into_iter();
        let args: Vec<&str> = begin.chain(sizes.split_whitespace()).collect();
        let config: toml::Table = place.run(&args).exits(0).out().parse().unwrap();
        assert_eq!(config["model"]["arch"].as_str(), Some(arch));
        assert_eq!(config["model"]["image_size"].as_integer(), Some(8));
        assert_eq!(config["train"]["steps"].as_integer(), Some(1000));
    }
}

#[test]
fn bias_is_measured_and_said_in_words_and_corrections_are_taken_as_often_as_written() {
    let place = Place::new();
    // A fresh network answers 0, which no scale changes.
    place.train(&["--steps", "3", "--lr", "0.05"]).exits(0);
    let measure =
        ["bias", "--checkpoint", "run", "run", "--sampler", "ddim", "--timestep-respacing", "4", "--out", "bias"];
    let ran = place.run(&[&measure[..], &["--num-samples", "20"]].concat()).exits(0);
    assert_eq!(names(&place.path("bias")), ["bias.json", "bias.npz", "bias.svg"]);
    assert_eq!(ran.out().matches("run: ddim, 4 steps, 20 images").count(), 2, "{}", ran.out());
    assert!(ran.out().contains("rules of thumb, unproven"), "{}", ran.out());
    place.run(&[&measure[..], &["--num-samples", "3"]].concat()).complains(2, &["3 image(s)", "20"]);

    let model = "run/checkpoints/step_000003/model.safetensors";
    let sample =
        ["sample", "--checkpoint", model, "--num-samples", "2", "--timestep-respacing", "3", "--quiet", "--out"];
    let draw = |name: &str, more: &[&str]| {
        place.run(&[&sample[..], &[name, "--sampler", "unipc"], more].concat()).exits(0);
        // What else is in a file tells the settings apart.
        ddpm_ip::npz::Npz::open(&place.path(name)).unwrap().bytes("arr_0").unwrap()
    };
    let [plain, neutral, scaled, both] = [
        draw("plain.npz", &[]),
        draw("neutral.npz", &["--correct", "es:1", "--correct", "shift:0"]),
        draw("scaled.npz", &["--correct", "es:1.3"]),
        draw("both.npz", &["--correct", "es:1.3", "--correct", "dcw:low,0.5"]),
    ];
    assert!(plain == neutral && plain != scaled && scaled != both);
    let wrong = [&sample[..], &["wrong.npz", "--correct", "ess:1"]].concat();
    place.run(&wrong).complains(2, &["\"ess:1\"", "es-linear:k,b"]);
}

#[test]
fn averages_of_other_lengths_are_made_and_compared_after_training() {
    let place = Place::new();
    let dry = place.train(&["--steps", "128", "--posthoc-ema", "--dry-run"]).exits(0);
    assert!(dry.out().contains("MiB into ema/ every 2 steps, 64 times: "), "{}", dry.out());
    assert!(dry.out().contains("posthoc_ema = [0.05, 0.1]"), "{}", dry.out());
    place.train(&["--steps", "16", "--lr", "0.01", "--posthoc-ema", "0.05,0.1"]).exits(0);
    assert_eq!(names(&place.path("run/ema")).len(), 32);
    let made = place.run(&["ema", "run", "--length", "0.07,0.12"]).exits(0);
    let file = "run/ema/length_0.07_step_000016.safetensors";
    assert!(made.out().contains(file) && made.out().contains("sample --checkpoint"), "{}", made.out());
    let made = place.run(&["ema", "run", "--length", "0.07", "--out", "mine.safetensors", "--json"]).exits(0);
    let report: Value = serde_json::from_str(&made.out()).unwrap();
    assert_eq!((&report["averages"][0]["step"], &report["averages"][0]["length"]), (&16.into(), &0.07.into()));
    assert!(std::fs::read(place.path("mine.safetensors")).unwrap() == std::fs::read(place.path(file)).unwrap());
    place.run(&["sample", "--checkpoint", file, "--num-samples", "2", "--out", "a.npz"]).exits(0);
    let sweep = ["ema", "run", "--sweep", "--length", "0.05,0.1", "--num-samples", "6", "--timestep-respacing", "2"];
    let swept = place.run(&sweep).exits(0);
    assert!(swept.out().contains("nearest") && swept.out().contains("run/ema/sweep.svg"), "{}", swept.out());
    let again = place.run(&[&sweep[..], &["--json", "--quiet"]].concat()).exits(0);
    let report: Value = serde_json::from_str(&again.out()).unwrap();
    assert_eq!((report["outcome"].as_str(), report["points"].as_array().unwrap().len()), (Some("finished"), 2));
    assert_eq!(place.read("run/ema/sweep.jsonl").lines().count(), 2);
    // What is wrong is said at once.
    place.run(&["ema", "run"]).complains(2, &["--length"]);
    place.run(&["ema", "run", "--length", "0.29"]).complains(2, &["--length 0.29", "lengths from 0.0"]);
    place.run(&["ema", "run", "--length", "0.1,0.2", "--out", "b.safetensors"]).complains(2, &["one --length"]);
    place.run(&["ema", "run", "--length", "0.1", "--out", "mine.safetensors"]).complains(2, &["exists"]);
    place.run(&["ema", "run", "--length", "0.1", "--out", "b.pt"]).complains(2, &[".safetensors"]);
    place.run(&["ema", "elsewhere", "--length", "0.1"]).complains(1, &["elsewhere", "train --posthoc-ema"]);
    place.run(&["ema", "run", "--length", "0.1", "--data-dir", "digits"]).complains(2, &["--sweep"]);
    assert!(!place.path("b.safetensors").exists());
}

#[test]
fn guidance_is_asked_for_by_flags_and_refused_where_it_cannot_be() {
    let place = Place::new();
    let classes = ["--steps", "8", "--class-cond", "true", "--lr", "0.02", "--ema-rate", "0.5"];
    place.train(&classes).exits(0);
    let sample = ["sample", "--checkpoint", "run", "--num-samples", "3", "--classes", "1,2", "--quiet"];
    let draw = |more: &[&str]| place.run(&[&sample[..], more].concat());
    draw(&["--guidance-scale", "2", "--out", "a.npz"]).complains(2, &["--label-dropout 0.1", "--guide-with"]);
    draw(&["--guidance-scale", "2", "--set", "train.label_dropout=0.1", "--out", "a.npz"]).exits(0);
    draw(&["--guidance-scale", "2", "--guide-with", "run", "--out", "b.npz"]).exits(0);
    draw(&["--out", "c.npz"]).exits(0);
    let images = |name: &str| ddpm_ip::npz::Npz::open(&place.path(name)).unwrap().bytes("arr_0").unwrap().values;
    assert!(images("a.npz") != images("c.npz") && images("b.npz") == images("c.npz"));
    let other = ["--guidance-scale", "3", "--guide-with", "run", "--out", "b.npz"];
    draw(&other).complains(2, &["b.npz", "--overwrite"]);
    draw(&["--guidance-interval", "3,1", "--guidance-scale", "2", "--out", "d.npz"]).complains(2, &["0.2,5"]);
    let idle = place.run(&[
        "sample",
        "--checkpoint",
        "run",
        "--num-samples",
        "2",
        "--guidance-interval",
        "1,3",
        "--out",
        "e.npz",
    ]);
    assert!(idle.exits(0).err().contains("--guidance-interval does nothing here"));
    place.train(&["--label-dropout", "0.1", "--out", "x"]).complains(2, &["--class-cond"]);
}
