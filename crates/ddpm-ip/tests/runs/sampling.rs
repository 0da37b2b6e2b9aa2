//! Files of samples.

use super::support::{assert_says, cpu, job, remarks, tiny, trained, with};
use ddpm_ip::config::Config;
use ddpm_ip::npz::{Npz, NpzWriter};
use ddpm_ip::sample::{Job, run};
use ddpm_ip::{Error, Event, Outcome};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// A trained network, with classes.
fn checkpoint(folder: &Path) -> (PathBuf, Config) {
    let config = with(&[("class_cond", "true")]);
    let checkpoint = trained(&config, &folder.join("run"));
    (checkpoint.clone(), ddpm_ip::checkpoint::config_of(&checkpoint.join("model.safetensors")).unwrap().unwrap())
}

/// Shape and bytes of the images, and labels.
type Drawn = (Vec<usize>, Vec<u8>, Vec<i64>);

fn draw(job: &Job) -> Result<Drawn, Error> {
    assert_eq!(run(job, cpu(), &AtomicBool::new(false), &mut |_| {})?, Outcome::Finished);
    let mut npz = Npz::open(&job.out_path())?;
    let labels = if npz.has("arr_1") { npz.integers("arr_1")?.values } else { Vec::new() };
    let images = npz.bytes("arr_0")?;
    Ok((images.shape, images.values, labels))
}

#[test]
fn an_image_depends_on_seed_and_number_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, config) = checkpoint(folder.path());
    for sampler in ["ddpm", "ddim"] {
        let draw = |name: &str, images: usize, batch: usize, seed: u64| {
            let mut config = config.clone();
            config.sample.sampler =
                if sampler == "ddim" { ddpm_ip::config::SamplerKind::Ddim } else { config.sample.sampler };
            config.sample.eta = 0.5;
            (config.sample.num_samples, config.sample.batch_size, config.sample.seed) = (images, batch, seed);
            draw(&job(&checkpoint, &config, &folder.path().join(format!("{sampler}-{name}")))).unwrap()
        };
        let (shape, images, labels) = draw("five", 5, 2, 0);
        assert_eq!(shape, [5, 8, 8, 1]);
        assert_eq!(labels.len(), 5);
        let (_, at_once, labels_at_once) = draw("at-once", 7, 7, 0);
        assert!(at_once[..images.len()] == images && labels_at_once[..5] == labels);
        let (_, other, _) = draw("seed", 5, 2, 1);
        assert!(other != images);
    }
}

#[test]
fn an_interrupted_call_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, config) = checkpoint(folder.path());
    let straight = draw(&job(&checkpoint, &config, &folder.path().join("straight"))).unwrap();
    let job = job(&checkpoint, &config, &folder.path().join("stopped.npz"));
    let stop = AtomicBool::new(false);
    // In the second of three batches.
    let outcome = run(&job, cpu(), &stop, &mut |event| {
        if let Event::SampleStep { done: 2, step: 3, .. } = event {
            stop.store(true, Ordering::Relaxed);
        }
    });
    assert_eq!(outcome.unwrap(), Outcome::Interrupted);
    assert!(!job.out_path().exists());
    let mut begun_with = None;
    let again = run(&job, cpu(), &AtomicBool::new(false), &mut |event| {
        if let Event::Sampling { done, .. } = event {
            begun_with = Some(done);
        }
    });
    assert_eq!((again.unwrap(), begun_with), (Outcome::Finished, Some(2)));
    assert!(draw(&job).unwrap() == straight);
    let left = fs::read_dir(folder.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains("partial"));
    assert_eq!(left.count(), 0);
}

/// Draws until the first batch is there.
fn interrupted(job: &Job) {
    let stop = AtomicBool::new(false);
    let outcome = run(job, cpu(), &stop, &mut |event| {
        if let Event::Sampled { .. } = event {
            stop.store(true, Ordering::Relaxed);
        }
    });
    assert_eq!(outcome.unwrap(), Outcome::Interrupted);
}

#[test]
fn other_settings_neither_go_on_from_nor_overwrite_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, config) = checkpoint(folder.path());
    let mut job = job(&checkpoint, &config, &folder.path().join("samples.npz"));
    job.overwrite = false;
    interrupted(&job);
    job.config.sample.seed = 5;
    assert_says(draw(&job), &["samples.npz.partial", "other settings", "--out"]);
    job.order.classes = Some(vec![99]);
    assert_says(draw(&job), &["class 99"]);
    // Another number of images is the same chain of images.
    (job.config, job.order.classes) = (config.clone(), None);
    job.config.sample.num_samples = 4;
    let (shape, first, _) = draw(&job).unwrap();
    assert_eq!(shape[0], 4);
    job.config.sample.num_samples = 5;
    assert!(draw(&job).unwrap().1[..first.len()] == first);
    // Nothing was drawn yet: nothing is lost.
    job.overwrite = true;
    let stop = AtomicBool::new(true);
    assert_eq!(run(&job, cpu(), &stop, &mut |_| {}).unwrap(), Outcome::Interrupted);
    job.config.sample.seed = 6;
    draw(&job).unwrap();
}

#[test]
fn refused_settings_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, config) = checkpoint(folder.path());
    let mut job = job(&checkpoint, &config, &folder.path().join("out/samples.npz"));
    job.order.classes = Some(vec![10]);
    assert_says(draw(&job), &["class 10", "0 to 9"]);
    assert!(!folder.path().join("out").exists());
}

#[test]
fn classes_are_counted_in_the_file_where_no_setting_says_them() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, mut config) = checkpoint(folder.path());
    let expected = draw(&job(&checkpoint, &config, &folder.path().join("a.npz"))).unwrap();
    config.model.num_classes = 0;
    assert!(draw(&job(&checkpoint, &config, &folder.path().join("b.npz"))).unwrap() == expected);
}

#[test]
fn classes_are_taken_in_turn() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, config) = checkpoint(folder.path());
    let mut job = job(&checkpoint, &config, folder.path());
    job.order.classes = Some(vec![3, 7]);
    job.grid = Some(folder.path().join("grid.png"));
    let (_, _, labels) = draw(&job).unwrap();
    assert_eq!(labels, [3, 7, 3, 7, 3]);
    assert_eq!(job.out_path(), folder.path().join("samples_5x8x8x1.npz"));
    assert!(image::open(folder.path().join("grid.png")).is_ok());
}

#[test]
fn given_noise_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&tiny(), &folder.path().join("run"));
    let noise = folder.path().join("noise.npz");
    let write = |steps: Option<usize>, n: usize, value: f32| {
        ddpm_ip::file::write_atomic(&noise, |w| {
            let mut npz = NpzWriter::new(w);
            npz.array::<f32>("initial_noise", &[n, 1, 8, 8], |push| push(&vec![value; n * 64]))?;
            if let Some(steps) = steps {
                npz.array::<f32>("step_noise", &[steps, n, 1, 8, 8], |push| push(&vec![0.0; steps * n * 64]))?;
            }
            npz.finish()
        })
        .unwrap();
    };
    let mut job = job(&checkpoint, &tiny(), &folder.path().join("out.npz"));
    job.order.initial_noise = Some(noise.clone());
    write(None, 5, 0.5);
    assert_says(draw(&job), &["noise.npz", "step_noise", "[20, N, C, H, W]"]);
    write(Some(19), 5, 0.5);
    assert_says(draw(&job), &["noise.npz", "[19, 5, 1, 8, 8]", "[20, 5, 1, 8, 8]"]);
    write(Some(20), 4, 0.5);
    assert_says(draw(&job), &["--num-samples is 5", "--num-samples 4"]);
    write(Some(20), 5, 0.5);
    let (_, images, _) = draw(&job).unwrap();
    // The same noise everywhere makes the same image five times.
    assert!(images.chunks_exact(64).all(|image| image == &images[..64]));
    job.config.sample.sampler = ddpm_ip::config::SamplerKind::Ddim;
    write(None, 5, 0.5);
    draw(&job).unwrap();
    write(None, 5, f32::NAN);
    assert_says(draw(&job), &["not finite", "noise given"]);
    fs::write(&noise, b"no npz").unwrap();
    assert_says(draw(&job), &["noise.npz"]);
}

#[test]
fn images_of_one_seed_differ_and_settings_of_its_own_that_changed_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&tiny(), &folder.path().join("run"));
    let mut job = job(&checkpoint, &tiny(), &folder.path().join("out.npz"));
    job.config.sample.sampler = ddpm_ip::config::SamplerKind::Ddim;
    job.config.diffusion.diffusion_steps = 30;
    let mut events = Vec::new();
    run(&job, cpu(), &AtomicBool::new(false), &mut |e| events.push(e)).unwrap();
    assert_eq!(remarks(&events), ["diffusion.diffusion_steps is 30; the checkpoint was made with 20"]);
    let images = Npz::open(&job.out_path()).unwrap().bytes("arr_0").unwrap().values;
    let images: Vec<&[u8]> = images.chunks_exact(64).collect();
    for (i, image) in images.iter().enumerate() {
        assert!(images[..i].iter().all(|other| other != image), "image {i} is there twice");
    }
}

#[test]
fn a_checkpoint_that_is_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.npz");
    let missing = folder.path().join("nothing");
    assert_says(draw(&job(&missing, &tiny(), &out)), &["nothing", "no such file"]);
    assert_says(draw(&job(folder.path(), &tiny(), &out)), &["holds no checkpoint"]);
    let (checkpoint, config) = checkpoint(folder.path());
    let mut other = config;
    other.model.num_channels = 64;
    assert_says(draw(&job(&checkpoint, &other, &out)), &["another architecture", "time_embed.0.weight"]);
    assert!(!out.exists());
}
