//! Checkpoints from and to PyTorch's, and runs that begin with others' checkpoints.

use super::support::{assert_same, assert_says, remarks, tensors, train, trained, with};
use ddpm_ip::checkpoint::{self, Store, config_of};
use ddpm_ip::config::Config;
use ddpm_ip::convert::{convert, to_half};
use ddpm_ip::torch::{OptimizerEntries, TorchFile, write_optimizer};
use ddpm_ip::{Error, Event};
use std::fs;
use std::path::{Path, PathBuf};

fn settings_of(folder: &Path) -> Config {
    config_of(&folder.join("model.safetensors")).unwrap().unwrap()
}

fn to(input: &Path, output: &Path, config: &Config) -> Result<Vec<PathBuf>, Error> {
    convert(input, output, config, &mut |_| {})
}

/// A run of some steps with all that a trio holds.
fn run(steps: &str, more: &[(&str, &str)]) -> Config {
    with(&[&[("class_cond", "true"), ("dropout", "0.2"), ("steps", steps)], more].concat())
}

#[test]
fn a_model_goes_to_pytorch_and_back_without_loss() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&run("2", &[]), &folder.path().join("run"));
    let config = settings_of(&checkpoint);
    let own = checkpoint.join("model.safetensors");
    let (there, back) = (folder.path().join("model.pt"), folder.path().join("back.safetensors"));
    to(&own, &there, &config).unwrap();
    to(&there, &back, &config).unwrap();
    let bits = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut all: Vec<_> =
            file.iter().map(|(n, t)| (n.to_string(), t.shape().to_vec(), t.data().to_vec())).collect();
        all.sort();
        all
    };
    assert!(bits(&own) == bits(&back));
    assert_eq!(config_of(&back).unwrap(), Some(config.clone()));
    // Names and order are the reference's.
    let names: Vec<_> =
        TorchFile::open(&there).unwrap().parameters().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names[..2], ["time_embed.0.weight", "time_embed.0.bias"]);
    assert_eq!(names.last().unwrap(), "out.2.bias");
    assert_says(to(&own, &there, &config), &["exists"]);
    assert_says(
        to(&own, &folder.path().join("model.onnx"), &config),
        &["not a known kind of checkpoint", ".safetensors"],
    );
    let mut other = config;
    other.model.num_res_blocks = 2;
    assert_says(to(&there, &folder.path().join("x.pt"), &other), &["another architecture", "ddpm-ip info"]);
}

#[test]
fn half_precision_takes_half_the_space_and_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&run("2", &[]), &folder.path().join("run"));
    let config = settings_of(&checkpoint);
    let (own, half, back) = (
        checkpoint.join("ema_0.9.safetensors"),
        folder.path().join("half.safetensors"),
        folder.path().join("back.safetensors"),
    );
    let write = |output: &Path| to_half(&folder.path().join("run"), output, &config, &mut |_| {});
    assert_eq!(write(&half).unwrap(), std::slice::from_ref(&half));
    to(&half, &back, &config).unwrap();
    let [full_size, size] = [&own, &half].map(|path| fs::metadata(path).unwrap().len());
    assert!(size < full_size * 11 / 20, "{size} of {full_size}");
    let values = |path: &Path| -> Vec<f32> {
        let bytes = fs::read(path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut all: Vec<_> = file.iter().collect();
        all.sort_by_key(|(name, _)| *name);
        all.iter()
            .flat_map(|(_, t)| t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())))
            .collect()
    };
    let (full, read) = (values(&own), values(&back));
    assert!(full.len() == read.len() && full != read);
    // Half precision has eleven bits.
    assert!(full.iter().zip(&read).all(|(a, b)| (a - b).abs() <= a.abs() / 2048.0 + 1e-7));
    assert_says(write(&half), &["exists"]);
    assert_says(write(&folder.path().join("half.pt")), &["--to f16", ".safetensors"]);
}

#[test]
fn a_run_goes_to_the_references_files_and_on_from_them() {
    let folder = tempfile::tempdir().unwrap();
    let straight = trained(&run("6", &[]), &folder.path().join("straight"));
    let half = trained(&run("3", &[]), &folder.path().join("half"));
    let config = settings_of(&half);
    let files = folder.path().join("files");
    let written = to(&folder.path().join("half"), &files, &config).unwrap();
    let names: Vec<_> = written.iter().map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(names, ["model000003.pt", "ema_0.9_000003.pt", "ema_0.99_000003.pt", "opt000003.pt"]);

    let back = folder.path().join("back");
    let checkpoint = to(&files.join("model000003.pt"), &back, &config).unwrap().remove(0);
    assert_same(&half, &checkpoint);
    assert_same(&straight, &trained(&run("6", &[]), &back));
    assert_says(to(&files.join("model000003.pt"), &back, &config), &["holds a run already"]);

    let model = files.join("model000003.pt");
    let going_on = run("6", &[("resume_checkpoint", model.to_str().unwrap())]);
    assert_same(&straight, &trained(&going_on, &folder.path().join("resumed")));
}

#[test]
fn an_incomplete_or_foreign_trio_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let half = trained(&run("3", &[]), &folder.path().join("half"));
    let files = folder.path().join("files");
    to(&half, &files, &settings_of(&half)).unwrap();
    let resume = |file: &str, more: &[(&str, &str)], out: &str| {
        let path = files.join(file);
        let settings = [&[("resume_checkpoint", path.to_str().unwrap())], more].concat();
        train(&run("6", &settings), &folder.path().join(out))
    };
    assert_says(resume("ema_0.9_000003.pt", &[], "a").0, &["not named like model000100.pt", "--init-from"]);
    assert_says(resume("model000003.pt", &[("num_res_blocks", "2")], "b").0, &["another architecture"]);
    let (outcome, events) = resume("model000003.pt", &[("ema_rate", "0.5")], "c");
    outcome.unwrap();
    assert!(remarks(&events).iter().any(|r| r.contains("ema_0.5_000003.pt is not there")), "{events:?}");
    fs::rename(files.join("opt000003.pt"), files.join("opt000004.pt")).unwrap();
    assert_says(resume("model000003.pt", &[], "d").0, &["opt000003.pt", "is not there", "--init-from"]);
    // The optimizer of another network.
    let other = trained(&with(&[("num_channels", "64")]), &folder.path().join("other"));
    to(&other, &folder.path().join("others"), &settings_of(&other)).unwrap();
    fs::copy(folder.path().join("others/opt000004.pt"), files.join("opt000003.pt")).unwrap();
    assert_says(resume("model000003.pt", &[], "e").0, &["optimizer of another network"]);
    assert!(!folder.path().join("e").exists(), "nothing is begun");
    let both = run("6", &[("resume_checkpoint", "x"), ("init_from", "y")]);
    assert_says(train(&both, &folder.path().join("f")).0, &["--init-from", "--resume-checkpoint", "one of them"]);
}

#[test]
fn the_flat_moments_of_a_run_in_half_precision_are_cut() {
    let folder = tempfile::tempdir().unwrap();
    let half = trained(&run("3", &[]), &folder.path().join("half"));
    let config = settings_of(&half);
    let files = folder.path().join("files");
    to(&half, &files, &config).unwrap();
    let opt = files.join("opt000003.pt");
    let mut file = TorchFile::open(&opt).unwrap();
    let optimizer = file.optimizer().unwrap();
    let mut flat = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    for (moment, list) in [&optimizer.exp_avg, &optimizer.exp_avg_sq].into_iter().enumerate() {
        for tensor in list {
            flat[moment][usize::from(tensor.shape().len() > 1)].extend(file.floats(tensor).unwrap());
        }
    }
    let shapes = [vec![flat[0][0].len()], vec![1, flat[0][1].len()]];
    fs::remove_file(&opt).unwrap();
    // 17 updates: some steps left out, some repeated.
    let entries = OptimizerEntries {
        shapes: &shapes,
        steps: &[17, 17],
        lr: 1e-4,
        betas: (0.9, 0.999),
        eps: 1e-8,
        weight_decay: 0.0,
    };
    let out = fs::File::create(&opt).unwrap();
    write_optimizer(out, &entries, |i, moment| flat[moment as usize][i].clone()).unwrap();
    let run = folder.path().join("run");
    let mut said = Vec::new();
    let written = convert(&files.join("model000003.pt"), &run, &config, &mut |e| said.push(e)).unwrap();
    assert!(remarks(&said).iter().any(|r| r.contains("17 updates, not 4")), "{said:?}");
    let same = |name: &str| {
        let of = |folder: &Path| -> Vec<_> { tensors(folder).into_iter().filter(|(n, _)| n.contains(name)).collect() };
        assert!(of(&half) == of(&written[0]) && !of(&half).is_empty(), "{name}");
    };
    same("exp_avg/");
    same("exp_avg_sq/");
    let progress = checkpoint::progress(&written[0]).unwrap();
    assert_eq!((progress.step, progress.updates), (4, Some(17)));
    trained(&self::run("6", &[]), &run);
    let (_, newest) = Store::new(&run).newest().unwrap().unwrap();
    assert_eq!(checkpoint::progress(&newest).unwrap().updates, Some(19));
}

#[test]
fn fine_tuning_begins_with_any_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let first = trained(&run("3", &[]), &folder.path().join("first"));
    let pt = folder.path().join("ema.pt");
    to(&first.join("ema_0.9.safetensors"), &pt, &settings_of(&first)).unwrap();
    for source in [first.join("ema_0.9.safetensors"), pt] {
        let out = folder.path().join(source.extension().unwrap());
        let settings = [("init_from", source.to_str().unwrap()), ("gamma", "0.1"), ("lr", "1e-30")];
        let (outcome, events) = train(&run("1", &settings), &out);
        outcome.unwrap();
        assert!(remarks(&events).iter().any(|r| r.contains("starting from the parameters of")));
        assert!(events.iter().any(|e| matches!(e, Event::Started { step: 0, .. })));
        // With hardly any learning rate it is still where it began.
        let specs_and_values = |path: &Path| {
            let bytes = fs::read(path).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let mut all: Vec<_> = file.iter().map(|(n, t)| (n.to_string(), t.data().to_vec())).collect();
            all.sort();
            all
        };
        let (_, newest) = Store::new(&out).newest().unwrap().unwrap();
        assert!(
            specs_and_values(&newest.join("model.safetensors")) == specs_and_values(&first.join("ema_0.9.safetensors"))
        );
    }
    let missing = run("1", &[("init_from", "nowhere.pt")]);
    assert_says(train(&missing, &folder.path().join("x")).0, &["nowhere.pt", "no such file"]);
}
