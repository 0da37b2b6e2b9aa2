//! The exposure-bias instruments as a user has them. That they read right is shown in `tests/bias`.

use super::support::{assert_says, cpu, remarks, trained, with};
use ddpm_ip::bias::{Job, Report, run};
use ddpm_ip::config::{Config, SamplerKind};
use ddpm_ip::npz::Npz;
use ddpm_ip::{Error, Event, Outcome, checkpoint, sample};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// A trained network, with the settings to measure it by.
fn subject(folder: &Path, settings: &[(&str, &str)]) -> (PathBuf, Config) {
    let checkpoint = trained(&with(settings), &folder.join("run"));
    let mut config = checkpoint::config_of(&checkpoint.join("model.safetensors")).unwrap().unwrap();
    config.sample.timestep_respacing = "5".parse().unwrap();
    config.sample.sampler = SamplerKind::Ddim;
    (config.sample.num_samples, config.sample.batch_size) = (24, 10);
    (checkpoint, config)
}

fn job(checkpoints: &[(&Path, &Config)], out: &Path) -> Job {
    let checkpoints = checkpoints.iter().map(|&(path, config)| (path.to_path_buf(), config.clone())).collect();
    Job { checkpoints, out: out.to_path_buf(), short: None, features: None }
}

fn measure(job: &Job) -> Result<Report, Error> {
    let (outcome, report) = run(job, cpu(), &AtomicBool::new(false), &mut |_| {})?;
    assert_eq!(outcome, Outcome::Finished);
    Ok(report.unwrap())
}

#[test]
fn a_report_is_written_whole_and_does_not_depend_on_batches() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, config) = subject(folder.path(), &[("class_cond", "true")]);
    let out = folder.path().join("bias");
    let mut measured = job(&[(&checkpoint, &config), (&checkpoint, &config)], &out);
    measured.features = Some((None, PathBuf::new()));
    let report = measure(&measured).unwrap();
    let levels = report.checkpoints[0].readings.t.len();
    assert_eq!((levels, report.images, report.checkpoints.len()), (5, 24, 2));

    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("bias.json")).unwrap()).unwrap();
    let readings = &json["checkpoints"][0]["readings"];
    assert_eq!(readings["prediction_error"]["value"].as_array().unwrap().len(), levels);
    // What cannot be measured is null: a deterministic sampler has no floor for short chains.
    assert!(readings["short_variance_floor"][0].is_null());
    let start = readings["start"].as_array().unwrap();
    assert!(start.iter().all(|step| step["frechet"][1].as_f64().unwrap() > 0.0), "{start:?}");
    let mut npz = Npz::open(&out.join("bias.npz")).unwrap();
    for name in ["0_t", "0_norm_sampling", "1_norm_sampling_error", "1_x_start_energy_high"] {
        assert_eq!(npz.floats(name).unwrap().shape, [levels], "{name}");
    }
    let picture = std::fs::read_to_string(out.join("bias.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
    assert!(report.words().contains("prediction error"), "{}", report.words());

    let mut other = config.clone();
    other.sample.batch_size = 24;
    let again = measure(&job(&[(&checkpoint, &other)], &folder.path().join("again"))).unwrap();
    let text = |report: &Report| {
        let mut readings = serde_json::to_value(&report.checkpoints[0].readings).unwrap();
        for step in readings["start"].as_array_mut().unwrap() {
            step.as_object_mut().unwrap().remove("frechet");
        }
        readings.to_string()
    };
    assert_eq!(text(&report), text(&again));
    let mut seed = config;
    seed.sample.seed = 1;
    let other = measure(&job(&[(&checkpoint, &seed)], &folder.path().join("seed"))).unwrap();
    assert!(text(&other) != text(&again));
}

#[test]
fn what_cannot_be_measured_is_said_before_work() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, config) = subject(folder.path(), &[]);
    let out = folder.path().join("bias");
    let refused = |change: &dyn Fn(&mut Config), parts: &[&str]| {
        let mut config = config.clone();
        change(&mut config);
        assert_says(measure(&job(&[(&checkpoint, &config)], &out)), parts);
        assert!(!out.exists());
    };
    refused(&|c| c.sample.num_samples = 19, &["19 image(s)", "20"]);
    refused(&|c| c.sample.timestep_respacing = "21".parse().unwrap(), &["21", "20"]);
    refused(&|c| c.sample.correct = "es-auto:x.json".parse().unwrap(), &["es-auto"]);
    refused(&|c| c.sample.correct = "noise:1.1".parse().unwrap(), &["noise:1.1", "adds no noise"]);
    refused(&|c| c.data.data_dir = String::new(), &["--data-dir"]);
    let mut larger = config.clone();
    larger.model.image_size = 16;
    assert_says(measure(&job(&[(&checkpoint, &config), (&checkpoint, &larger)], &out)), &["another size"]);
    assert_says(
        measure(&Job { short: Some(5), ..job(&[(&checkpoint, &config)], &out) }),
        &["--short-chains 5", "1 to 4"],
    );
    assert!(!out.exists());

    let stop = AtomicBool::new(false);
    let stopped = run(&job(&[(&checkpoint, &config)], &out), cpu(), &stop, &mut |event| {
        if let Event::Reading { done: 3, .. } = event {
            stop.store(true, Ordering::Relaxed);
        }
    });
    assert_eq!(stopped.unwrap().0, Outcome::Interrupted);
    assert!(!out.join("bias.json").exists());
}

#[test]
fn es_auto_takes_the_norms_of_the_same_checkpoint_schedule_and_sampler() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, config) = subject(folder.path(), &[]);
    let out = folder.path().join("bias");
    let found = measure(&job(&[(&checkpoint, &config)], &out)).unwrap().checkpoints[0].suggestions.es_auto.clone();
    let file = out.join("bias.json");
    let draw = |checkpoint: &Path, change: &dyn Fn(&mut Config), file: &Path| {
        let mut config = config.clone();
        config.sample.correct = format!("es-auto:{}", file.display()).parse().unwrap();
        change(&mut config);
        let job = super::support::job(checkpoint, &config, &folder.path().join("drawn.npz"));
        let mut events = Vec::new();
        let outcome = sample::run(&job, cpu(), &AtomicBool::new(false), &mut |e| events.push(e));
        outcome.map(|_| remarks(&events).join("\n"))
    };
    let same = draw(&checkpoint, &|_| (), &file);
    match found.scale {
        // The same images, noise and norms: the same scale.
        Some(scale) => assert!(same.unwrap().contains(&format!("divided by {scale:.5}"))),
        None => assert_says(same, &["between 0.95 and 1.1"]),
    }
    let process = ["another schedule, number of steps or sampler", "bias.json"];
    assert_says(draw(&checkpoint, &|c| c.sample.timestep_respacing = "6".parse().unwrap(), &file), &process);
    assert_says(draw(&checkpoint, &|c| c.sample.sampler = SamplerKind::UniPc, &file), &process);
    let average = checkpoint.join("ema_0.9.safetensors");
    let network = checkpoint.join("model.safetensors");
    let of_average = checkpoint::resolve(&checkpoint).unwrap() == average;
    let other = if of_average { network } else { average };
    assert_says(draw(&other, &|_| (), &file), &["other parameters"]);
    std::fs::write(folder.path().join("no.json"), "{}").unwrap();
    assert_says(draw(&checkpoint, &|_| (), &folder.path().join("no.json")), &["no.json", "ddpm-ip bias"]);
    assert_says(draw(&checkpoint, &|_| (), &folder.path().join("none.json")), &["none.json"]);
    // Two scalings at once.
    let twice = "es:1.1; es-auto:x".parse::<ddpm_math::Corrections>().unwrap_err();
    assert!(twice.to_string().contains("one kind"), "{twice}");
}
