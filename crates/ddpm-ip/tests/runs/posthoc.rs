//! Averages by power functions: kept by runs, saved, and made into others.

use super::support::{assert_same, assert_says, cpu, job, remarks, tensors, train, trained, with};
use ddpm_ip::checkpoint::{self, Store};
use ddpm_ip::config::Config;
use ddpm_ip::net::network::{Network, Unet};
use ddpm_ip::posthoc::{Savings, SweepJob, sweep};
use ddpm_ip::{Error, Event, Outcome, evaluate, sample};
use ddpm_math::posthoc;
use std::path::Path;
use std::sync::atomic::AtomicBool;

const TWO: (&str, &str) = ("posthoc_ema", "0.05,0.1");

fn settings(more: &[(&str, &str)]) -> Config {
    with(&[&[("lr", "0.01"), ("steps", "12"), ("posthoc_ema_interval", "1"), TWO], more].concat())
}

/// The values of a file of parameters.
fn values(file: &Path, config: &Config) -> Vec<f32> {
    let network = Unet::new(config.model.network(config.diffusion.variance).unwrap());
    checkpoint::load(file, network.layout(), "").unwrap().values().to_vec()
}

/// ‖a − b‖ / ‖b‖.
fn off(a: &[f32], b: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    difference / norm(&mut b.iter().map(|&v| f64::from(v)))
}

#[test]
fn they_are_the_sums_of_the_parameters_that_the_profile_weighs() {
    let folder = tempfile::tempdir().unwrap();
    let config = settings(&[("train.save_interval", "1"), ("keep_checkpoints", "0")]);
    let last = trained(&config, folder.path());
    let steps = Store::new(folder.path()).all().unwrap();
    let each: Vec<Vec<f32>> = steps.iter().map(|(_, path)| values(&path.join("model.safetensors"), &config)).collect();
    assert_eq!(each.len(), 12);
    for length in [0.05, 0.1] {
        let power = posthoc::exponent(length) + 1.0;
        // Of p between two steps.
        let weight = |i: usize| ((i + 1) as f64 / 12.0).powf(power) - (i as f64 / 12.0).powf(power);
        let sum = |place: usize| (0..12).map(|i| weight(i) * f64::from(each[i][place])).sum::<f64>() as f32;
        let expected: Vec<f32> = (0..each[0].len()).map(sum).collect();
        let kept = values(&last.join(format!("posthoc_{length}.safetensors")), &config);
        assert!(off(&kept, &expected) < 1e-6 && off(&kept, &each[11]) > 1e-3, "{length}");
        // In half precision.
        let saved = values(&folder.path().join(format!("ema/step_000012_{length}.safetensors")), &config);
        assert!((1e-5..4e-4).contains(&off(&saved, &kept)), "{length}");
    }
}

#[test]
fn they_change_nothing_else_and_runs_go_on_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let plain = trained(&settings(&[("posthoc_ema", "")]), &place("plain"));
    assert!(!place("plain/ema").exists());
    let straight = trained(&settings(&[("posthoc_ema_interval", "5")]), &place("straight"));
    let others = |checkpoint: &Path| -> Vec<_> {
        tensors(checkpoint).into_iter().filter(|(name, _)| !name.starts_with("posthoc")).collect()
    };
    assert!(others(&straight) == tensors(&plain));
    let files = |run: &str| -> Vec<(u64, f64, Vec<u8>)> {
        let all = Savings::new(&place(run)).all().unwrap();
        all.into_iter().map(|saved| (saved.step, saved.length, std::fs::read(saved.path).unwrap())).collect()
    };
    let steps: Vec<u64> = files("straight").iter().map(|(step, ..)| *step).collect();
    assert_eq!(steps, [5, 5, 10, 10, 12, 12], "every so many steps, and at the end");
    // A run of 8 steps that goes on, and one that falls back to its checkpoint at step 4.
    let part = |steps: &str, name: &str| {
        let more =
            [("posthoc_ema_interval", "5"), ("train.save_interval", "4"), ("keep_checkpoints", "0"), ("steps", steps)];
        train(&settings(&more), &place(name))
    };
    part("8", "parts").0.unwrap();
    std::fs::remove_dir_all(place("parts/checkpoints/step_000008")).unwrap();
    let (outcome, events) = part("12", "parts");
    outcome.unwrap();
    assert!(
        remarks(&events).iter().any(|remark| remark.contains("removed 4 EMA snapshots beyond step 4")),
        "{events:?}"
    );
    assert_same(&straight, &place("parts/checkpoints/step_000012"));
    // The settings that they carry name the interval of checkpoints.
    let numbers = |run: &str| {
        files(run).into_iter().map(|(step, length, bytes)| (step, length, bytes[bytes.len() / 2..].to_vec()))
    };
    assert!(numbers("straight").eq(numbers("parts")));
}

#[test]
fn the_interval_is_a_64th_of_the_steps_at_the_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let interval = |steps: &str| {
        let mut config = settings(&[("steps", steps)]);
        config.train.posthoc_ema_interval = 0;
        train(&config, folder.path()).0.unwrap();
        let text = std::fs::read_to_string(folder.path().join("config.toml")).unwrap();
        Config::from_toml(&text).unwrap().train.posthoc_ema_interval
    };
    assert_eq!(interval("100"), 2);
    // More steps later change it no more.
    assert_eq!(interval("140"), 2);
    assert_eq!(Savings::new(folder.path()).all().unwrap().len(), 140);
}

#[test]
fn other_lengths_are_near_to_those_kept_from_the_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let config = settings(&[("steps", "128"), ("posthoc_ema", "0.05,0.1,0.15"), ("posthoc_ema_interval", "4")]);
    let last = trained(&config, folder.path());
    let savings = Savings::new(folder.path());
    for saved in savings.all().unwrap().iter().filter(|saved| saved.length == 0.15) {
        std::fs::remove_file(&saved.path).unwrap();
    }
    let kept = values(&last.join("posthoc_0.15.safetensors"), &config);
    let made = savings.average(0.15, None).unwrap();
    assert_eq!(made.step, 128);
    assert!(off(made.parameters.values(), &kept) < 1e-3 && made.error < 0.01);
    let tenth = values(&last.join("posthoc_0.1.safetensors"), &config);
    assert!(off(&tenth, &kept) > 1e-2, "the two differ");
    // All of the run is verified.
    let verified = checkpoint::verify(folder.path()).unwrap();
    assert!(verified.len() >= 64 + 6 && verified.iter().all(|file| file.checksums && file.problem.is_none()));
    // At an earlier step.
    let earlier = savings.average(0.07, Some(96)).unwrap();
    assert!(earlier.step == 96 && off(earlier.parameters.values(), &kept) > 1e-2);
    // What is written is a checkpoint.
    let file = savings.path(&made);
    savings.write(&made, &file).unwrap();
    assert_eq!(values(&file, &config), made.parameters.values());
    let out = folder.path().join("samples.npz");
    sample::run(&job(&file, &config, &out), cpu(), &AtomicBool::new(false), &mut |_| {}).unwrap();
    assert!(out.exists());
    // Nor is it taken for what the run has saved.
    assert_eq!(savings.all().unwrap().len(), 64);
}

#[test]
fn lengths_are_compared_by_what_is_drawn_and_a_sweep_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let config = settings(&[("steps", "32"), ("sample.num_samples", "12"), ("sample.batch_size", "6")]);
    trained(&config, folder.path());
    let job = |lengths: &[f64]| SweepJob {
        run: folder.path().to_path_buf(),
        lengths: lengths.to_vec(),
        step: None,
        config: config.clone(),
        settings: evaluate::Settings::default(),
    };
    let drawn = |job: &SweepJob| {
        let mut begun = 0;
        let (outcome, points) = sweep(job, cpu(), &AtomicBool::new(false), &mut |e| {
            begun += usize::from(matches!(e, Event::Begins(what) if what.starts_with("length")));
        })
        .unwrap();
        assert_eq!(outcome, Outcome::Finished);
        (begun, points)
    };
    let (begun, points) = drawn(&job(&[0.1, 0.05]));
    assert_eq!((begun, points.len(), points[0].length, points[0].images), (2, 2, 0.05, 12));
    assert!(points[0].fid > 0.0 && points[0].fid != points[1].fid);
    let svg = std::fs::read_to_string(folder.path().join("ema/sweep.svg")).unwrap();
    assert!(svg.contains("<polyline") && svg.contains("12 images"));
    let (begun, again) = drawn(&job(&[0.05, 0.15, 0.1]));
    assert_eq!((begun, again.len()), (1, 3));
    assert!(again[..2] == points[..]);
    // With other samples it begins anew; the usual lengths are those that are possible.
    let mut other = job(&[]);
    other.config.sample.seed = 5;
    let (begun, usual) = drawn(&other);
    assert!(begun == usual.len() && (4..=8).contains(&begun) && usual.iter().all(|point| point.fid.is_finite()));
    // A length's distance is that of its samples.
    let average = Savings::new(folder.path()).average(0.05, None).unwrap();
    let (file, out) = (folder.path().join("a.safetensors"), folder.path().join("a.npz"));
    Savings::new(folder.path()).write(&average, &file).unwrap();
    sample::run(&super::support::job(&file, &config, &out), cpu(), &AtomicBool::new(false), &mut |_| {}).unwrap();
    let compared = evaluate::Job {
        reference: "digits".into(),
        samples: out.display().to_string().into(),
        settings: evaluate::Settings { metrics: Vec::new(), ..evaluate::Settings::default() },
    };
    let (_, report) = evaluate::evaluate(&compared, cpu(), &AtomicBool::new(false), &mut |_| {}).unwrap();
    let fid = report.unwrap().fid;
    assert!((fid / points[0].fid - 1.0).abs() < 1e-9, "{fid} for {}", points[0].fid);
}

#[test]
fn what_cannot_be_made_is_refused_with_what_can() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let refused = |more: &[(&str, &str)]| train(&settings(more), &place("refused")).0;
    for (lengths, says) in [
        ("0.1", "two lengths or more"),
        ("0.1,0.1", "that differ"),
        ("0,0.1", "up to 0.2887"),
        ("0.1,0.3", "up to 0.2887"),
    ] {
        assert_says(refused(&[("posthoc_ema", lengths)]), &["train.posthoc_ema", says]);
    }
    assert_says(
        refused(&[("posthoc_ema_interval", "0"), ("steps", "0"), ("duration", "1m")]),
        &["--posthoc-ema-interval STEPS"],
    );
    assert!(!place("refused").exists());
    // Not from the beginning.
    trained(&settings(&[("posthoc_ema", "")]), &place("without"));
    assert_says(
        train(&settings(&[("steps", "14")]), &place("without")).0,
        &["no EMA of --posthoc-ema 0.05", "another --out"],
    );
    let average = |run: &str, length: f64, step: Option<u64>| Savings::new(&place(run)).average(length, step).map(drop);
    assert_says(average("without", 0.1, None), &["train --posthoc-ema"]);
    assert_says(average("missing", 0.1, None), &["train --posthoc-ema"]);
    // Stopped before two were saved.
    trained(&settings(&[("posthoc_ema_interval", "100")]), &place("once"));
    assert_says(average("once", 0.1, None), &["once up to step 12 (1 in all)", "two snapshots"]);
    trained(&settings(&[("posthoc_ema_interval", "4")]), &place("few"));
    assert_says(average("few", 0.1, Some(4)), &["once up to step 4 (3 in all)"]);
    assert_says(average("few", 0.1, Some(3)), &["no EMA snapshots at step 3", "nearest are at 4"]);
    assert_says(average("few", 0.1, Some(13)), &["no EMA snapshots at step 13", "nearest are at 12"]);
    for length in [0.002, 0.25, 0.3, 0.0, -0.1, f64::NAN, f64::INFINITY] {
        assert_says(average("few", length, None), &["--length", "lengths from 0.0", " to 0.1", "at most 5 %"]);
    }
    average("few", 0.07, None).unwrap();
    // Damage.
    let file = place("few/ema/step_000008_0.1.safetensors");
    std::fs::write(&file, b"broken").unwrap();
    assert_says(average("few", 0.07, None), &["step_000008_0.1.safetensors"]);
    // A sweep of what cannot be made draws nothing.
    trained(&settings(&[]), &place("whole"));
    let job = SweepJob {
        run: place("whole"),
        lengths: vec![0.1, 0.0001],
        step: None,
        config: settings(&[]),
        settings: evaluate::Settings::default(),
    };
    let swept: Result<_, Error> = sweep(&job, cpu(), &AtomicBool::new(false), &mut |_| {});
    assert_says(swept.map(drop), &["--length 0.0001", "lengths from"]);
    assert!(!place("whole/ema/sweep.jsonl").exists());
}
