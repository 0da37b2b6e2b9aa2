//! The trainer's promises.

use super::support::{assert_same, assert_says, remarks, tensors, tiny, train, trained, with};
use ddpm_ip::config::Config;
use ddpm_ip::{Error, Event, Outcome};
use std::sync::atomic::{AtomicBool, Ordering};

/// Settings under which all kinds of state matter: dropout, the time sampler's history, a decaying perturbation,
/// warm-up, epochs that end within the run, random flips.
fn stateful(steps: &str) -> Config {
    with(&[
        ("steps", steps),
        ("dropout", "0.2"),
        ("schedule_sampler", "loss-second-moment"),
        ("gamma", "0.2"),
        ("perturbation.strength", "decay"),
        ("perturbation.decay_steps", "60"),
        ("lr_warmup_steps", "50"),
        ("train.batch_size", "30"),
        ("diffusion_steps", "5"),
        ("random_flip", "true"),
        ("class_cond", "true"),
    ])
}

#[test]
fn forty_steps_and_forty_more_are_eighty_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (straight, resumed) = (folder.path().join("straight"), folder.path().join("resumed"));
    let straight = trained(&stateful("80"), &straight);
    trained(&stateful("40"), &resumed);
    let resumed = trained(&stateful("80"), &resumed);
    assert_same(&straight, &resumed);
}

#[test]
fn a_run_that_is_interrupted_saves_and_goes_on_as_if_nothing_had_been() {
    let folder = tempfile::tempdir().unwrap();
    let (straight, stopped) = (folder.path().join("straight"), folder.path().join("stopped"));
    let straight = trained(&stateful("6"), &straight);
    let stop = AtomicBool::new(false);
    let outcome = ddpm_ip::train::train(&stateful("6"), &stopped, super::support::cpu(), vec![], &stop, &mut |event| {
        if let Event::Step { step: 3, .. } = event {
            stop.store(true, Ordering::Relaxed);
        }
    });
    assert_eq!(outcome.unwrap(), Outcome::Interrupted);
    let newest = ddpm_ip::checkpoint::Store::new(&stopped).newest().unwrap().unwrap();
    assert_eq!(newest.0, 3);
    assert_same(&straight, &trained(&stateful("6"), &stopped));
}

#[test]
fn a_complete_run_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let first = tensors(&trained(&tiny(), folder.path()));
    let (outcome, events) = train(&tiny(), folder.path());
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert!(remarks(&events).iter().any(|text| text.contains("complete at step 4")));
    // Other settings would be another run.
    assert_says(train(&with(&[("gamma", "0.1")]), folder.path()).0, &["complete run of 4 steps", "--out", "--steps"]);
    assert!(!events.iter().any(|e| matches!(e, Event::Step { .. } | Event::Checkpoint { .. })));
    assert!(tensors(&trained(&tiny(), folder.path())) == first);
}

#[test]
fn the_seed_decides_everything() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, seed: &str| tensors(&trained(&with(&[("train.seed", seed)]), &folder.path().join(name)));
    let first = run("a", "1");
    assert!(first == run("b", "1"));
    assert!(first != run("c", "2"));
}

#[test]
fn microbatches_are_averaged() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, micro: &str| {
        // After one step the first moment is a tenth of the gradient.
        let config = with(&[("steps", "1"), ("train.batch_size", "6"), ("microbatch", micro), ("dropout", "0.1")]);
        tensors(&trained(&config, &folder.path().join(name)))
    };
    let (whole, parts) = (run("whole", "-1"), run("parts", "4"));
    let mut size = 0.0;
    for ((name, a), (_, b)) in whole.iter().zip(&parts).filter(|((name, _), _)| name.contains("exp_avg/")) {
        let floats = |bytes: &[u8]| -> Vec<f64> {
            bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
        };
        let (a, b) = (floats(a), floats(b));
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let off: Vec<f64> = a.iter().zip(&b).map(|(x, y)| x - y).collect();
        assert!(norm(&off) <= 1e-4 * norm(&a) + 1e-7, "{name}: {} of {}", norm(&off), norm(&a));
        size += norm(&a);
    }
    assert!(size > 1e-3, "the gradient is not zero");
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_the_last_good_checkpoint_stays() {
    let folder = tempfile::tempdir().unwrap();
    let good = trained(&tiny(), folder.path());
    let before = tensors(&good);
    let (outcome, _) = train(&with(&[("steps", "200"), ("lr", "1e30"), ("save_interval", "1000")]), folder.path());
    let Err(Error::Diverged { step, last_good, .. }) = &outcome else { panic!("{outcome:?}") };
    assert!(*step > 4);
    assert_eq!(last_good.as_ref(), Some(&good));
    assert_says(outcome, &["diverged at step", "step_000004", "--lr"]);
    assert!(tensors(&good) == before);
    assert_eq!(ddpm_ip::checkpoint::Store::new(folder.path()).all().unwrap().len(), 1);
}

#[test]
fn a_bad_image_in_mid_run_costs_no_work() {
    let folder = tempfile::tempdir().unwrap();
    let (images, run) = (folder.path().join("images"), folder.path().join("run"));
    std::fs::create_dir(&images).unwrap();
    for i in 0..40_u8 {
        image::ImageBuffer::from_pixel(8, 8, image::Luma([i])).save(images.join(format!("{i:02}.png"))).unwrap();
    }
    // The order of the first epoch decides which image comes last.
    std::fs::write(images.join("17.png"), b"no image").unwrap();
    let config = with(&[("data_dir", images.to_str().unwrap()), ("train.batch_size", "1"), ("steps", "40")]);
    let (outcome, events) = train(&config, &run);
    assert_says(outcome, &["17.png", "--on-bad-image skip"]);
    let steps = events.iter().filter(|e| matches!(e, Event::Step { .. })).count() as u64;
    assert!(steps > 0, "the bad image comes first: take another one for this test");
    assert_eq!(ddpm_ip::checkpoint::Store::new(&run).newest().unwrap().unwrap().0, steps);
}

#[test]
fn a_grid_takes_few_steps_unless_sampling_is_set() {
    let total = |settings: &[(&str, &str)]| {
        let folder = tempfile::tempdir().unwrap();
        let grid = [("steps", "1"), ("grid_images", "3"), ("diffusion_steps", "100")];
        let (outcome, events) = train(&with(&[&grid, settings].concat()), folder.path());
        assert_eq!(outcome.unwrap(), Outcome::Finished);
        let last = events.iter().rev().find_map(|event| match event {
            Event::Drawing { done, total, .. } => Some((*done, *total)),
            _ => None,
        });
        last.unwrap()
    };
    // Two batches.
    assert_eq!(total(&[]), (40, 40));
    assert_eq!(total(&[("grid_steps", "3")]), (6, 6));
    assert_eq!(total(&[("sample.timestep_respacing", "5")]), (10, 10));
    assert_eq!(total(&[("sampler", "ddim")]), (200, 200));
}

#[test]
fn grids_do_not_become_training_images() {
    let folder = tempfile::tempdir().unwrap();
    image::ImageBuffer::from_pixel(8, 8, image::Luma([1_u8])).save(folder.path().join("a.png")).unwrap();
    let config = with(&[("data_dir", folder.path().to_str().unwrap()), ("train.batch_size", "1")]);
    for out in [folder.path().to_path_buf(), folder.path().join("run")] {
        assert_says(train(&config, &out).0, &["--out", "folder of the training images"]);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn the_last_grid_is_drawn_if_it_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let config = with(&[("steps", "1"), ("grid_images", "2")]);
    trained(&config, folder.path());
    let grid = folder.path().join("samples/step_000001.png");
    let drawn = std::fs::read(&grid).unwrap();
    std::fs::remove_file(&grid).unwrap();
    trained(&config, folder.path());
    assert!(std::fs::read(&grid).unwrap() == drawn);
}

/// The first moment after one step is a tenth of the gradient that AdamW got.
fn first_moment_norm(checkpoint: &std::path::Path) -> f64 {
    let moments = tensors(checkpoint).into_iter().filter(|(name, _)| name.contains("exp_avg/"));
    let bytes: Vec<u8> = moments.flat_map(|(_, bytes)| bytes).collect();
    let floats = bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())));
    floats.map(|x| x * x).sum::<f64>().sqrt()
}

#[test]
fn gradients_are_clipped_to_their_largest_norm() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, clip: &str| {
        first_moment_norm(&trained(&with(&[("steps", "1"), ("grad_clip", clip)]), &folder.path().join(name)))
    };
    let free = run("free", "0");
    assert!((run("wide", "1e6") - free).abs() < 1e-6 * free);
    let limit = 2.0 * free;
    assert!((run("clipped", &limit.to_string()) - 0.1 * limit).abs() < 1e-3 * limit);
}

#[test]
fn the_learning_rate_warms_up_and_anneals_as_the_references_does() {
    let folder = tempfile::tempdir().unwrap();
    let config = with(&[
        ("lr", "0.1"),
        ("lr_warmup_steps", "2"),
        ("lr_anneal_steps", "5"),
        ("steps", "0"),
        ("log_interval", "1"),
    ]);
    let (outcome, events) = train(&config, folder.path());
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let rates: Vec<f64> = events
        .iter()
        .filter_map(|e| if let Event::Log(line) = e { line.iter().find(|(k, _)| k == "lr").map(|l| l.1) } else { None })
        .collect();
    // The reference sets the rate after a step, from the number of steps before it: the second step still has all of it.
    for (rate, expected) in rates.iter().zip([0.05, 0.1, 0.08, 0.06, 0.04]) {
        assert!((rate - expected).abs() < 1e-12, "{rates:?}");
    }
    assert_eq!(rates.len(), 5);
}

#[test]
fn every_prediction_variance_and_loss_trains() {
    let folder = tempfile::tempdir().unwrap();
    let combinations = ddpm_math::Prediction::NAMES.iter().flat_map(|prediction| {
        ddpm_math::Variance::NAMES
            .iter()
            .flat_map(move |variance| ddpm_math::LossKind::NAMES.iter().map(move |loss| (prediction, variance, loss)))
    });
    for (prediction, variance, loss) in combinations {
        let name = format!("{prediction}, {variance}, {loss}");
        let config = with(&[
            ("prediction", prediction),
            ("variance", variance),
            ("loss", loss),
            ("steps", "2"),
            ("gamma", "0.1"),
        ]);
        let (outcome, events) = train(&config, &folder.path().join(&name));
        outcome.unwrap_or_else(|e| panic!("{name}: {e}"));
        let losses: Vec<f64> =
            events.iter().filter_map(|e| if let Event::Step { loss, .. } = e { Some(*loss) } else { None }).collect();
        assert!(losses.len() == 2 && losses.iter().all(|l| l.is_finite() && *l > 0.0), "{name}: {losses:?}");
    }
}

#[test]
fn training_ends_after_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let (outcome, events) = train(&with(&[("duration", "1ms")]), folder.path());
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert_eq!(events.iter().filter(|e| matches!(e, Event::Step { .. })).count(), 1);
}

#[test]
fn logs_have_the_references_keys() {
    let folder = tempfile::tempdir().unwrap();
    let config = with(&[
        ("variance", "learned-range"),
        ("loss", "rescaled-mse"),
        ("gamma", "0.1"),
        ("perturbation.mode", "equivalent"),
        ("train.batch_size", "64"),
        ("steps", "1"),
    ]);
    let (outcome, events) = train(&config, folder.path());
    outcome.unwrap();
    let line = events.iter().find_map(|e| if let Event::Log(line) = e { Some(line) } else { None }).unwrap();
    let value = |key: &str| line.iter().find(|(k, _)| k == key).unwrap_or_else(|| panic!("no {key} in {line:?}")).1;
    for term in ["loss", "mse", "vb", "mse_plus_c"] {
        assert!(value(term).is_finite());
        (0..4).for_each(|q| assert!(value(&format!("{term}_q{q}")).is_finite()));
    }
    assert_eq!((value("step"), value("samples")), (1.0, 64.0));
    assert!(value("grad_norm") > 0.0 && value("param_norm") > 0.0 && value("images_per_sec") > 0.0);
    assert!((value("mse_plus_c") - value("mse") - 0.01 / 1.01).abs() < 1e-6);
}

#[test]
fn a_grid_is_drawn_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    trained(&with(&[("steps", "1"), ("grid_images", "5")]), folder.path());
    let grid = image::open(folder.path().join("samples/step_000001.png")).unwrap();
    assert!(grid.width() > 3 * 8 && grid.height() > 8);
}

#[test]
fn settings_that_describe_no_run_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    for (settings, parts) in [
        (("gamma", "-0.1"), ["gamma", "-0.1"]),
        (("num_channels", "40"), ["num_channels 40", "multiple of 32"]),
        (("model.channel_mult", "1,2,2,2,2"), ["size 8", "halved 4 times"]),
        (("diffusion.timestep_respacing", "30"), ["timestep_respacing", "30"]),
        (("diffusion.timestep_respacing", "ddim6"), ["timestep_respacing", "ddim6"]),
        (("train.batch_size", "1798"), ["1797 images are fewer", "--batch-size"]),
        (("noise_schedule", "linear"), ["pure noise", "--diffusion-steps"]),
        (("data_dir", "no/such/folder"), ["no/such/folder", "--data-dir"]),
        (("data_dir", ""), ["no training images", "--data-dir"]),
        (("duration", "soon"), ["train.duration", "20m"]),
        (("duration", "0s"), ["train.duration", "no time"]),
        (("microbatch", "0"), ["train.microbatch = 0", "-1"]),
        (("workers", "100000"), ["data.workers", "1 to 256"]),
        (("image_size", "1000000"), ["model.image_size = 1000000", "16384"]),
        (("num_channels", "1048576"), ["model.num_channels = 1048576", "16384"]),
        (("num_res_blocks", "0"), ["model.num_res_blocks = 0", "1 to 256"]),
        (("channel_mult", "1,-1"), ["model.channel_mult", "-1"]),
        (("num_head_channels", "0"), ["model.num_head_channels = 0", "-1"]),
        (("dropout", "1.5"), ["dropout", "1.5"]),
        (("num_classes", "3"), ["--num-classes is 3", "10 classes"]),
    ] {
        let run = folder.path().join("run");
        let (outcome, _) = train(&with(&[settings, ("class_cond", "true")]), &run);
        assert_says(outcome, &parts);
        assert!(!run.exists(), "{settings:?} left a run directory");
    }
}

/// By hand from the parameters of every step.
#[test]
fn averages_warm_up() {
    let folder = tempfile::tempdir().unwrap();
    let more = [("ema_warmup", "true"), ("ema_rate", "0.2,0.99"), ("save_interval", "1"), ("keep_checkpoints", "0")];
    trained(&with(&[&more[..], &[("steps", "4")]].concat()), folder.path());
    let read = |step: u64, file: &str| -> Vec<f32> {
        let name = format!("{file}.safetensors/out.0.bias");
        let all = tensors(&folder.path().join(format!("checkpoints/step_{step:06}")));
        let (_, bytes) = all.into_iter().find(|(found, _)| *found == name).unwrap();
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    for rate in ["0.2", "0.99"] {
        let mut expected = read(1, &format!("ema_{rate}"));
        for step in 2..=4u64 {
            let n = (step - 1) as f32;
            let least = rate.parse::<f32>().unwrap().min((1.0 + n) / (10.0 + n));
            for (average, now) in expected.iter_mut().zip(read(step, "model")) {
                *average = *average * least + now * (1.0 - least);
            }
            for (average, found) in expected.iter().zip(read(step, &format!("ema_{rate}"))) {
                assert!((average - found).abs() < 1e-7, "rate {rate}, step {step}: {average} and {found}");
            }
        }
    }
}
