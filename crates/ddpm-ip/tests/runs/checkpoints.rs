//! Checkpoints: whole or not there, and clear about what is wrong with them.

use super::support::{assert_same, assert_says, cpu, remarks, tensors, tiny, train, trained, with};
use ddpm_ip::checkpoint::{Store, config_of, list, resolve};
use ddpm_ip::evaluate::EvaluationHook;
use ddpm_ip::net::network::{Network, Unet};
use safetensors::tensor::{SafeTensors, TensorView};
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_checkpoint_holds_the_network_its_averages_and_the_rest_apart() {
    let folder = tempfile::tempdir().unwrap();
    let config = tiny();
    let checkpoint = trained(&config, folder.path());
    let expected = ["ema_0.9.safetensors", "ema_0.99.safetensors", "model.safetensors", "state.safetensors"];
    assert_eq!(files(&checkpoint), expected);
    let network = Unet::new(config.model.network(config.diffusion.variance).unwrap());
    let names: Vec<String> =
        list(&checkpoint.join("model.safetensors"), "").unwrap().0.into_iter().map(|t| t.name).collect();
    assert_eq!(names.len(), network.specs().len());
    assert!(network.specs().iter().all(|spec| names.contains(&spec.name)));
    assert_eq!(config_of(&checkpoint.join("ema_0.9.safetensors")).unwrap(), Some(config));
    assert_eq!(resolve(folder.path()).unwrap(), checkpoint.join("ema_0.9.safetensors"));
}

#[test]
fn the_first_average_is_the_configurations_first() {
    let folder = tempfile::tempdir().unwrap();
    for (i, (rates, first)) in
        [("0.99,0.9", "ema_0.99"), ("0.9,0.99", "ema_0.9"), ("", "model")].into_iter().enumerate()
    {
        let run = folder.path().join(i.to_string());
        trained(&with(&[("ema_rate", rates), ("steps", "1")]), &run);
        assert!(resolve(&run).unwrap().ends_with(format!("{first}.safetensors")));
    }
}

#[test]
fn only_the_newest_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    trained(&with(&[("steps", "5"), ("save_interval", "1"), ("keep_checkpoints", "2")]), folder.path());
    assert_eq!(files(&folder.path().join("checkpoints")), ["step_000004", "step_000005"]);
    trained(&with(&[("steps", "8"), ("save_interval", "1"), ("keep_checkpoints", "0")]), folder.path());
    assert_eq!(Store::new(folder.path()).all().unwrap().len(), 5);
}

#[test]
fn what_a_killed_process_left_is_not_taken_for_a_checkpoint_and_goes_away() {
    let folder = tempfile::tempdir().unwrap();
    trained(&tiny(), folder.path());
    let checkpoints = folder.path().join("checkpoints");
    fs::create_dir(checkpoints.join(".tmp-killed")).unwrap();
    fs::write(checkpoints.join(".tmp-killed/model.safetensors"), b"half").unwrap();
    assert_eq!(Store::new(folder.path()).newest().unwrap().unwrap().0, 4);
    trained(&with(&[("steps", "5")]), folder.path());
    assert_eq!(files(&checkpoints), ["step_000004", "step_000005"]);
}

#[test]
fn damage_is_named_with_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&tiny(), folder.path());
    let longer = with(&[("steps", "8")]);
    let says = "No older checkpoint is intact";
    for name in ["model.safetensors", "ema_0.9.safetensors", "state.safetensors"] {
        let path = checkpoint.join(name);
        let whole = fs::read(&path).unwrap();
        let mut huge_header = whole.clone();
        huge_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        let mut no_json = whole.clone();
        no_json[8] = b'?';
        for damaged in [&whole[..7], &whole[..100], &whole[..whole.len() - 1], &huge_header, &no_json] {
            fs::write(&path, damaged).unwrap();
            assert_says(train(&longer, folder.path()).0, &[name, "not a complete safetensors file", says]);
        }
        fs::write(&path, "").unwrap();
        assert_says(train(&longer, folder.path()).0, &[name, "is empty", says]);
        // One flipped bit, in a tensor.
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 4;
        fs::write(&path, &flipped).unwrap();
        assert_says(train(&longer, folder.path()).0, &[name, "` is damaged", says]);
        fs::write(&path, whole).unwrap();
    }
    fs::remove_file(checkpoint.join("state.safetensors")).unwrap();
    assert_says(train(&longer, folder.path()).0, &["state.safetensors"]);
    assert_eq!(Store::new(folder.path()).all().unwrap().len(), 1);
}

#[test]
fn a_run_goes_on_from_the_newest_checkpoint_that_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let config = |steps: &str| with(&[("steps", steps), ("train.save_interval", "2"), ("keep_checkpoints", "0")]);
    let straight = trained(&config("10"), &place("straight"));
    trained(&config("8"), &place("run"));
    let at = |step: u64| place("run/checkpoints").join(format!("step_{step:06}"));
    // No bytes, a flipped bit, a file that is gone.
    fs::write(at(8).join("model.safetensors"), "").unwrap();
    let moments = at(6).join("state.safetensors");
    let mut bytes = fs::read(&moments).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&moments, bytes).unwrap();
    // Named explicitly it is not replaced by another.
    let explicit = config("10");
    let named =
        ddpm_ip::config::TrainConfig { resume_checkpoint: at(6).display().to_string(), ..explicit.train.clone() };
    let (outcome, _) = train(&ddpm_ip::config::Config { train: named, ..explicit }, &place("other"));
    assert_says(outcome, &["step_000006/state.safetensors", "is damaged"]);
    assert!(at(6).exists() && !place("other").exists());
    let (outcome, events) = train(&config("10"), &place("run"));
    outcome.unwrap();
    let said = remarks(&events);
    for (step, what) in [(8, "is empty"), (6, "is damaged")] {
        let name = format!("step_{step:06}");
        let passed = said.iter().find(|line| line.contains("skipped") && line.contains(&name)).unwrap();
        assert!(
            passed.contains(what)
                && passed.contains("renamed to ")
                && passed.ends_with(&format!("checkpoints/damaged-{name}")),
            "{passed}"
        );
        assert!(place("run/checkpoints").join(format!("damaged-{name}")).is_dir());
    }
    assert!(said.iter().any(|line| line.contains("resuming at step 4")), "{said:?}");
    assert_same(&straight, &at(10));
}

#[test]
fn parameters_that_are_not_finite_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = trained(&tiny(), folder.path()).join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let names = file.names();
    let mut values: Vec<Vec<u8>> = names.iter().map(|name| file.tensor(name).unwrap().data().to_vec()).collect();
    values[0][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let views = names.iter().zip(&values).map(|(name, values)| {
        let shape = file.tensor(name).unwrap().shape().to_vec();
        (name, TensorView::new(safetensors::Dtype::F32, shape, values).unwrap())
    });
    // Without its checksums, which would tell first.
    let text =
        metadata.metadata().clone().map(|text| text.into_iter().filter(|(key, _)| !key.starts_with("crc32")).collect());
    fs::write(&path, safetensors::serialize(views, text).unwrap()).unwrap();
    assert_says(train(&with(&[("steps", "8")]), folder.path()).0, &["model.safetensors", "not finite"]);
}

#[test]
fn another_architecture_is_refused_with_the_tensor_and_both_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&tiny(), folder.path());
    let before = tensors(&checkpoint);
    for (setting, parts) in [
        (("num_channels", "64"), ["time_embed.0.weight", "[128, 32]", "[256, 64]"]),
        (("num_res_blocks", "2"), ["has no tensor", "input_blocks.2", "shape"]),
        (("class_cond", "true"), ["has no tensor", "label_emb.weight", "[10, 128]"]),
        (("variance", "learned-range"), ["out.2.weight", "[1, 32, 3, 3]", "[2, 32, 3, 3]"]),
    ] {
        let (outcome, _) = train(&with(&[("steps", "8"), setting]), folder.path());
        assert_says(outcome, &[&["another architecture"], &parts[..]].concat());
    }
    // A network with fewer parts has no place for some.
    let larger = folder.path().join("larger");
    trained(&with(&[("class_cond", "true")]), &larger);
    assert_says(train(&with(&[("steps", "8")]), &larger).0, &["no place for its tensor `label_emb.weight`"]);
    assert!(tensors(&checkpoint) == before);
}

#[test]
fn a_run_directory_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"").unwrap();
    assert_says(train(&tiny(), &file.join("run")).0, &["file/run"]);
}

/// A device without space: writing fails half-way, as on a full disk.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_older_file_and_no_other() {
    use ddpm_ip::file::write_atomic;
    use std::io::{Error, ErrorKind, Write};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_atomic(&path, |w| w.write_all(b"old")).unwrap();
    let full = write_atomic(&path, |w| {
        w.write_all(&vec![0; 100_000])?;
        Err(Error::from(ErrorKind::StorageFull))
    });
    assert_says(full, &["cannot write", "model.safetensors", "no storage space"]);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(files(folder.path()), ["model.safetensors"]);
}

#[test]
fn a_resumed_run_says_which_settings_changed_and_where_an_average_begins() {
    let folder = tempfile::tempdir().unwrap();
    trained(&tiny(), folder.path());
    let (outcome, events) = train(&with(&[("steps", "5"), ("lr", "0.5"), ("ema_rate", "0.9,0.5")]), folder.path());
    outcome.unwrap();
    let notices = remarks(&events);
    for expected in ["train.lr is 0.5 now; the checkpoint was made with 0.001", "resuming at step 4", "rate 0.5"] {
        assert!(notices.iter().any(|n| n.contains(expected)), "{expected:?} is not in {notices:?}");
    }
}

#[test]
fn a_best_checkpoint_that_was_about_to_be_replaced_is_brought_back() {
    let folder = tempfile::tempdir().unwrap();
    let config = with(&[("evaluation.interval", "2"), ("evaluation.images", "4")]);
    let evaluated = || {
        let (stop, mut emit) = (AtomicBool::new(false), |_| {});
        let settings = ddpm_ip::evaluate::Settings::default();
        let hook = EvaluationHook::new(&config, folder.path(), &settings, cpu(), &stop, &mut emit).unwrap().unwrap();
        ddpm_ip::train::train(&config, folder.path(), cpu(), vec![Box::new(hook)], &stop, &mut emit).unwrap();
    };
    evaluated();
    let [best, old] = ["best", ".tmp-old-best"].map(|name| folder.path().join("checkpoints").join(name));
    let before = tensors(&best);
    // Killed between two renames; and after them.
    std::fs::rename(&best, &old).unwrap();
    assert!(Store::new(folder.path()).best_step().is_some());
    evaluated();
    assert!(tensors(&best) == before && !old.exists());
    std::fs::create_dir(&old).unwrap();
    std::fs::write(old.join("model.safetensors"), "older").unwrap();
    evaluated();
    assert!(tensors(&best) == before && !old.exists());
}
