//! The trainer's promises.

use super::support::{assert_same, assert_says, tensors, tiny, train, trained, with};
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
    let outcome =
        ddpm_ip::train::train(&stateful("6"), &stopped, &super::support::cpu(), vec![], &stop, &mut |event| {
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
    assert!(events.iter().any(|e| matches!(e, Event::Notice(text) if text.contains("complete at step 4"))));
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
        (("data_dir", "no/such/folder"), ["no/such/folder", "--data-dir"]),
        (("data_dir", ""), ["no training images", "--data-dir"]),
        (("duration", "soon"), ["train.duration", "20m"]),
        (("dropout", "1.5"), ["dropout", "1.5"]),
        (("num_classes", "3"), ["--num-classes is 3", "10 classes"]),
    ] {
        let run = folder.path().join("run");
        let (outcome, _) = train(&with(&[settings, ("class_cond", "true")]), &run);
        assert_says(outcome, &parts);
        assert!(!run.exists(), "{settings:?} left a run directory");
    }
}
