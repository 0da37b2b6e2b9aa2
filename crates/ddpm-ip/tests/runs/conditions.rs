//! Networks that are given more than noise: classifiers and their guidance, super-resolution, likelihoods.

use super::support::{assert_same, assert_says, cpu, remarks, train, trained, with};
use ddpm_ip::checkpoint::{self, config_of};
use ddpm_ip::config::Config;
use ddpm_ip::diffusion::{Clip, Diffusion, Reverse, StepInputs};
use ddpm_ip::net::network::{Classifier, Network};
use ddpm_ip::net::{Engine, Feed, Parameters, Spec};
use ddpm_ip::npz::{Npz, NpzWriter};
use ddpm_ip::sample::{self, Guide, GuideJob};
use ddpm_ip::{Event, Outcome, nll};
use ddpm_math::{Corrections, Domain, Rule, Stream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// A classifier of digits: one level of 32 channels.
fn classifier(settings: &[(&str, &str)]) -> Config {
    let own = [
        ("arch", "classifier"),
        ("classifier.width", "32"),
        ("classifier.depth", "1"),
        ("classifier.channel_mult", "1"),
        ("classifier.attention_resolutions", ""),
        ("classifier.num_head_channels", "16"),
        ("ema_rate", ""),
    ];
    with(&[&own, settings].concat())
}

fn normal(count: usize, index: u64) -> Vec<f32> {
    let mut values = vec![0.0; count];
    Stream::new(5, Domain::Noise, index, 0).fill_normal(&mut values);
    values
}

/// The settings that a checkpoint folder carries.
fn settings_of(folder: &Path) -> Config {
    config_of(&folder.join("model.safetensors")).unwrap().unwrap()
}

#[test]
fn a_classifier_learns_and_is_tried_out_on_other_images() {
    let folder = tempfile::tempdir().unwrap();
    let settings =
        [("steps", "60"), ("train.batch_size", "64"), ("lr", "3e-3"), ("log_interval", "20"), ("eval_interval", "10")];
    let mut config = classifier(&settings);
    config.data.val_data_dir = "digits".into();
    let (outcome, events) = train(&config, &folder.path().join("run"));
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let lines: Vec<_> =
        events.iter().filter_map(|e| if let Event::Log(line) = e { Some(line) } else { None }).collect();
    let value = |line: &[(String, f64)], key: &str| line.iter().find(|(k, _)| k == key).map(|(_, v)| *v);
    let last = lines.last().unwrap();
    for key in ["train_acc@1", "val_acc@1"] {
        let (first, last) = (value(lines[0], key).unwrap(), value(last, key).unwrap());
        assert!(first < 0.4 && last > first + 0.2, "{key}: {first}, then {last}");
    }
    assert!(value(last, "val_acc@5").unwrap() >= value(last, "val_acc@1").unwrap());
    assert!((value(lines[0], "train_loss").unwrap() - 10f64.ln()).abs() < 0.5);
    assert!(last.iter().any(|(key, _)| key == "train_acc@1_q0") && value(last, "val_loss_q3").is_some());
}

#[test]
fn a_classifiers_run_goes_on_exactly_with_the_same_trials() {
    let folder = tempfile::tempdir().unwrap();
    let config = |steps: &str| {
        let settings = [("eval_interval", "2"), ("random_crop", "true"), ("log_interval", "1"), ("steps", steps)];
        let mut config = classifier(&settings);
        config.data.val_data_dir = "digits".into();
        config
    };
    let newest = |run: &str| checkpoint::Store::new(&folder.path().join(run)).newest().unwrap().unwrap().1;
    let (_, straight) = train(&config("6"), &folder.path().join("straight"));
    trained(&config("3"), &folder.path().join("parts"));
    let (_, parts) = train(&config("6"), &folder.path().join("parts"));
    assert_same(&newest("straight"), &newest("parts"));
    // Step 5 is the last with a trial.
    let trial = |events: &[Event]| -> Vec<(String, f64)> {
        let of_step_5 = |event: &Event| match event {
            Event::Log(line) if line[0].1 == 5.0 => Some(line.clone()),
            _ => None,
        };
        let line = events.iter().find_map(of_step_5).unwrap();
        line.into_iter().filter(|(key, _)| key.starts_with("val_")).collect()
    };
    assert!(trial(&straight).len() >= 6);
    assert_eq!(trial(&straight), trial(&parts));
}

#[test]
fn every_head_runs_and_clean_images_can_be_learned_from() {
    let folder = tempfile::tempdir().unwrap();
    for pool in ["attention", "adaptive", "spatial", "spatial_v2"] {
        let config = classifier(&[("classifier.pool", pool), ("noised", "false"), ("classifier.precision", "bf16")]);
        let checkpoint = trained(&config, &folder.path().join(pool));
        assert_eq!(settings_of(&checkpoint).classifier.num_classes, 10, "taken from the data");
    }
}

#[test]
fn guidance_is_the_gradient_of_the_log_probability() {
    let mut config = classifier(&[]);
    config.classifier.num_classes = 3;
    let build = || Classifier::new(config.classifier_network().unwrap());
    let network = build();
    let one = |(i, spec): (usize, &Spec)| -> Vec<f32> {
        let scale = 0.5 / ((spec.len() / spec.shape[0]) as f32).sqrt();
        normal(spec.len(), i as u64).iter().map(|v| v * scale).collect()
    };
    let values: Vec<Vec<f32>> = network.specs().iter().enumerate().map(one).collect();
    let parameters = Parameters::from_values(network.layout(), &values);
    let network = Engine::new(network, cpu());
    let (times, labels) = ([3.0, 17.0], [2u32, 0]);
    let log_probability = |x: &[f32]| -> f64 {
        let logits = network.forward(&parameters, Feed::new(x, [8, 8], &times));
        let rows = logits.chunks_exact(3).zip(labels);
        rows.map(|(row, label)| {
            let total: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
            f64::from(row[label as usize]) - total.ln()
        })
        .sum()
    };
    let guide = Guide::new(Engine::new(build(), cpu()), parameters.clone(), 2.5);
    let x = normal(128, 900);
    let gradient = guide.gradient(&x, [8, 8], &times, &labels);
    for i in [0, 9, 63, 64, 100] {
        let h = 1e-2;
        let at = |d: f32| {
            log_probability(&x.iter().enumerate().map(|(j, v)| if i == j { v + d } else { *v }).collect::<Vec<_>>())
        };
        let expected = 2.5 * (at(h) - at(-h)) / (2.0 * f64::from(h));
        let actual = f64::from(gradient[i]);
        assert!((actual - expected).abs() < 2e-3 * (1.0 + expected.abs()), "{i}: {actual}, by differences {expected}");
    }
}

/// A trained network without classes and a classifier.
fn guided(folder: &Path) -> (sample::Job, PathBuf) {
    let checkpoint = trained(&with(&[]), &folder.join("run"));
    let classifier =
        trained(&classifier(&[("steps", "60"), ("train.batch_size", "64"), ("lr", "3e-3")]), &folder.join("guide"));
    let guide = GuideJob { config: settings_of(&classifier), checkpoint: classifier.clone() };
    let job = sample::Job {
        config: settings_of(&checkpoint),
        checkpoint,
        out: Some(folder.join("samples.npz")),
        grid: None,
        order: sample::Order { classes: Some(vec![3, 7]), classifier: Some(guide), ..sample::Order::default() },
        overwrite: true,
    };
    (job, classifier)
}

fn draw(job: &sample::Job) -> (Vec<u8>, Vec<i64>) {
    let outcome = sample::run(job, cpu(), &AtomicBool::new(false), &mut |_| {}).unwrap();
    assert_eq!(outcome, Outcome::Finished);
    let mut npz = Npz::open(&job.out_path()).unwrap();
    (npz.bytes("arr_0").unwrap().values, npz.integers("arr_1").unwrap().values)
}

#[test]
fn a_classifier_leads_samples_to_their_classes() {
    let folder = tempfile::tempdir().unwrap();
    let (mut job, path) = guided(folder.path());
    let config = settings_of(&path);
    let network = Classifier::new(config.classifier_network().unwrap());
    let parameters = checkpoint::load(&path.join("model.safetensors"), network.layout(), "").unwrap();
    let network = Engine::new(network, cpu());
    job.config.sample.num_samples = 16;
    let mut right = |scale: f64, batch: usize| -> (f64, Vec<u8>) {
        (job.config.sample.classifier_scale, job.config.sample.batch_size) = (scale, batch);
        let (bytes, labels) = draw(&job);
        assert_eq!(labels[..4], [3, 7, 3, 7]);
        let x: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 127.5 - 1.0).collect();
        let logits = network.forward(&parameters, Feed::new(&x, [8, 8], &[0.0; 16]));
        let of_class = logits.chunks_exact(10).zip(labels).map(|(row, label)| {
            let total: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
            f64::from(row[label as usize]).exp() / total
        });
        (of_class.sum::<f64>() / 16.0, bytes)
    };
    let (unguided, plain) = right(0.0, 16);
    let (guided, led) = right(20.0, 16);
    assert!(guided > unguided + 0.2, "probability {unguided} without, {guided} with guidance");
    assert!(plain != led);
    assert!(right(20.0, 5).1 == led, "images depend on the batch size");
}

#[test]
fn guidance_moves_the_mean_of_ddpm_and_the_score_of_ddim() {
    let config = with(&[("variance", "fixed-large")]);
    let diffusion = Diffusion::new(&config.diffusion, &config.sample.timestep_respacing).unwrap();
    let [x, eps, noise, gradient] = [1, 2, 3, 4].map(|index| normal(64, index));
    let plus = |a: &[f32], b: &[f32], scale: f64| -> Vec<f32> {
        a.iter().zip(b).map(|(a, b)| (f64::from(*a) + scale * f64::from(*b)) as f32).collect()
    };
    let near = |a: &[f32], b: &[f32], scale: f64| {
        let off = a.iter().zip(b).map(|(a, b)| f64::from(a - b).abs()).fold(0.0, f64::max);
        assert!(off < 2e-5 * scale, "off by {off}");
    };
    for i in [1, 10, 19] {
        let s = &diffusion.schedule;
        let step = |rule: Rule, eps: &[f32], guidance: Option<&[f32]>| {
            let reverse = Reverse { rule, clip: Clip::None, corrections: Corrections::default() };
            let inputs = StepInputs { guidance, noise: Some(&noise), ..StepInputs::new(eps) };
            let made = diffusion.step(&reverse, &rule.stages(s, i)[0], 1, &x, inputs);
            (made.next, made.x_start)
        };
        let ddim = Rule::Ddim { eta: 0.3 };
        let (plain, _) = step(Rule::Ddpm, &eps, None);
        let (guided, _) = step(Rule::Ddpm, &eps, Some(&gradient));
        near(&guided, &plus(&plain, &gradient, s.betas[i]), 1.0);
        let scored = plus(&eps, &gradient, -s.sqrt_one_minus_alpha_bar[i]);
        let (expected, x_start) = step(ddim, &scored, None);
        let (guided, guided_start) = step(ddim, &eps, Some(&gradient));
        near(&guided_start, &x_start, s.sqrt_recipm1_alpha_bar[i]);
        near(&guided, &expected, 1.0);
    }
}

#[test]
fn a_guide_that_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (mut job, classifier) = guided(folder.path());
    let run = |job: &sample::Job| sample::run(job, cpu(), &AtomicBool::new(false), &mut |_| {});
    job.order.classes = Some(vec![10]);
    assert_says(run(&job), &["class 10", "0 to 9"]);
    job.order.classes = None;
    job.order.classifier.as_mut().unwrap().config.model.image_size = 16;
    assert_says(run(&job), &["is for 16x16", "draws 8x8"]);
    job.order.classifier = None;
    job.checkpoint.clone_from(&classifier);
    job.config = settings_of(&classifier);
    assert_says(run(&job), &["a classifier draws no images"]);
}

#[test]
fn super_resolution_trains_resumes_and_enlarges_what_it_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let settings = [("arch", "superres"), ("small_size", "4"), ("class_cond", "true"), ("grid_images", "3")];
    let config = |steps: &str, more: &[(&str, &str)]| with(&[&settings[..], &[("steps", steps)], more].concat());
    let straight = trained(&config("6", &[]), &folder.path().join("straight"));
    assert!(folder.path().join("straight/samples/step_000006.png").exists());
    trained(&config("3", &[]), &folder.path().join("parts"));
    assert_same(&straight, &trained(&config("6", &[]), &folder.path().join("parts")));
    trained(&config("4", &[("use_checkpoint", "true")]), &folder.path().join("kept"));

    let small = folder.path().join("small.npz");
    let write = |path: &Path, count: usize, size: usize| {
        let mut npz = NpzWriter::new(std::fs::File::create(path).unwrap());
        let bytes: Vec<u8> = (0..count * size * size).map(|i| (i * 37 % 256) as u8).collect();
        npz.array::<u8>("arr_0", &[count, size, size, 1], |push| push(&bytes)).unwrap();
        let labels: Vec<i64> = (0..count as i64).collect();
        npz.array::<i64>("arr_1", &[count], |push| push(&labels)).unwrap();
        npz.finish().unwrap();
    };
    write(&small, 3, 4);
    let mut job = sample::Job {
        config: settings_of(&straight),
        checkpoint: straight,
        out: Some(folder.path().join("large.npz")),
        grid: None,
        order: sample::Order { base_samples: Some(small.clone()), ..sample::Order::default() },
        overwrite: true,
    };
    let (_, labels) = draw(&job);
    assert_eq!(labels, [0, 1, 2, 0, 1], "the classes of the small images, taken again after the last");
    let run = |job: &sample::Job| {
        let mut events = Vec::new();
        let outcome = sample::run(job, cpu(), &AtomicBool::new(false), &mut |e| events.push(e));
        (outcome, events)
    };
    let (_, events) = run(&job);
    assert!(remarks(&events).iter().any(|r| r.contains("holds 3 images")), "{events:?}");
    write(&small, 3, 5);
    assert_says(run(&job).0, &["5x5", "4x4", "--small-size"]);
    job.order.base_samples = None;
    assert_says(run(&job).0, &["--base-samples"]);
}

#[test]
fn a_bound_depends_on_the_seed_and_not_on_the_batch_size() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&with(&[("class_cond", "true")]), &folder.path().join("run"));
    let run = |name: &str, batch: usize, seed: u64, precision: &str| {
        let mut config = settings_of(&checkpoint);
        (config.sample.num_samples, config.sample.batch_size, config.sample.seed) = (5, batch, seed);
        config.sample.timestep_respacing = "10".parse().unwrap();
        if precision == "bf16" {
            config.model.precision = ddpm_ip::config::Precision::Bf16;
        }
        let job = nll::Job { checkpoint: checkpoint.clone(), config, out: folder.path().join(name) };
        let (outcome, report) = nll::run(&job, cpu(), &AtomicBool::new(false), &mut |_| {}).unwrap();
        assert_eq!(outcome, Outcome::Finished);
        let terms = ["vb", "mse", "xstart_mse"].map(|name| {
            let array = Npz::open(&job.out.join(format!("{name}_terms.npz"))).unwrap().floats("arr_0").unwrap();
            assert_eq!(array.shape, [10]);
            array.values
        });
        (report.unwrap(), terms)
    };
    let (report, terms) = run("a", 1, 0, "f32");
    assert_eq!((report.images, report.steps), (5, 10));
    let sum = terms[0].iter().map(|&v| f64::from(v)).sum::<f64>() + report.prior_bits_per_dim;
    assert!((report.bits_per_dim - sum).abs() < 1e-5 * sum, "{report:?}");
    assert!(report.standard_error.unwrap() > 0.0);
    // An image without noise is easier to see than noise: the errors fall from the noisiest step to the first.
    assert!(terms[2][0] > 10.0 * terms[2][9], "{terms:?}");
    assert!(run("b", 4, 0, "f32").1 == terms, "the batch size changes the bound");
    assert!(run("c", 1, 1, "f32").1 != terms, "the seed does not change the bound");
    let bf16 = run("d", 5, 0, "bf16").0.bits_per_dim;
    assert!(bf16 != report.bits_per_dim && (bf16 / report.bits_per_dim - 1.0).abs() < 0.02, "{bf16}");
}

#[test]
fn an_interrupted_bound_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&with(&[]), &folder.path().join("run"));
    let mut config = settings_of(&checkpoint);
    (config.sample.num_samples, config.sample.batch_size) = (4, 1);
    let job =
        |name: &str| nll::Job { checkpoint: checkpoint.clone(), config: config.clone(), out: folder.path().join(name) };
    let whole = nll::run(&job("whole"), cpu(), &AtomicBool::new(false), &mut |_| {}).unwrap().1.unwrap();
    let stop = AtomicBool::new(false);
    let (outcome, _) = nll::run(&job("parts"), cpu(), &stop, &mut |event| {
        stop.store(matches!(event, Event::Bounded { done: 2, .. }), Ordering::Relaxed);
    })
    .unwrap();
    assert_eq!(outcome, Outcome::Interrupted);
    let mut begun = None;
    let (_, report) = nll::run(&job("parts"), cpu(), &AtomicBool::new(false), &mut |event| {
        if let Event::Bounded { done, bits_per_dim: None, .. } = event {
            begun = Some(done);
        }
    })
    .unwrap();
    assert_eq!(begun, Some(2));
    assert_eq!(report.unwrap().bits_per_dim, whole.bits_per_dim);
    assert!(!folder.path().join("parts/nll.partial").exists());
}

#[test]
fn a_bound_over_other_images_does_not_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&with(&[]), &folder.path().join("run"));
    let mut config = settings_of(&checkpoint);
    (config.sample.num_samples, config.sample.batch_size) = (3, 1);
    let images = folder.path().join("images.npz");
    config.data.data_dir = images.display().to_string();
    let write = |value: u8| {
        ddpm_ip::file::write_atomic(&images, |w| {
            let mut npz = ddpm_ip::npz::NpzWriter::new(w);
            npz.array::<u8>("arr_0", &[4, 8, 8, 1], |push| push(&[value; 256]))?;
            npz.finish()
        })
        .unwrap();
    };
    write(10);
    let job = nll::Job { checkpoint, config, out: folder.path().join("out") };
    let stop = AtomicBool::new(false);
    let (outcome, _) = nll::run(&job, cpu(), &stop, &mut |event| {
        stop.store(matches!(event, Event::Bounded { done: 2, .. }), Ordering::Relaxed);
    })
    .unwrap();
    assert_eq!(outcome, Outcome::Interrupted);
    write(200);
    let error = nll::run(&job, cpu(), &AtomicBool::new(false), &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("nll.partial") && error.contains("another source"), "{error}");
}

#[test]
fn the_ddim_recipe_trains_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let config = |steps: &str| {
        let recipe = [("arch", "ddim"), ("loss", "sum-mse"), ("schedule_sampler", "antithetic"), ("grad_clip", "1")];
        with(&[&recipe[..], &[("gamma", "0.1"), ("dropout", "0.1"), ("steps", steps)]].concat())
    };
    let straight = trained(&config("6"), &folder.path().join("straight"));
    trained(&config("3"), &folder.path().join("parts"));
    assert_same(&straight, &trained(&config("6"), &folder.path().join("parts")));
    assert_says(train(&with(&[("arch", "ddim"), ("class_cond", "true")]), &folder.path().join("x")).0, &["no classes"]);
}
