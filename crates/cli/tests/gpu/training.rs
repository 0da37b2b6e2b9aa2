//! Training: as on the processor, the same bits every time, and from one device to another.

use super::machine::{assert_near, assert_same, libraries, on_cpu, on_gpu, small, statistics};
use super::support::{Place, TINY};
use ddpm_ip::checkpoint;
use ddpm_ip::net::network::{Network, Unet};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// A run's precision, as its folder says it.
fn precision(place: &Place, run: &str) -> String {
    let config: toml::Table = place.read(&format!("{run}/config.toml")).parse().unwrap();
    config["model"]["precision"].as_str().unwrap().into()
}

#[track_caller]
fn assert_losses_near(place: &Place, found: &str, expected: &str, tolerance: f64) {
    let (found, expected) = (statistics(place, found), statistics(place, expected));
    assert_eq!(found.len(), expected.len());
    found.iter().zip(&expected).for_each(|(found, expected)| assert_near(found, expected, tolerance));
}

#[test]
fn losses_are_the_processors() {
    let place = Place::new();
    // What AMX does to f32 is for processors.
    for (precision, kept, tolerance) in [("f32", "f32", 1e-5), ("bf16", "bf16", 2e-2), ("bf16x3", "f32", 1e-5)] {
        let [gpu, cpu] = ["gpu", "cpu"].map(|device| format!("{device}-{precision}"));
        let flags = ["--precision", precision, "--steps", "6", "--microbatch", "3"];
        on_gpu(&place, &small(&gpu, &flags)).exits(0);
        assert!(place.read(&format!("{gpu}/log.txt")).contains(&format!("computing in {kept} on cuda:0, ")));
        on_cpu(&place, &small(&cpu, &flags)).exits(0);
        assert_losses_near(&place, &gpu, &cpu, tolerance);
    }
}

#[test]
fn f16_leaves_out_steps_that_overflow_and_then_trains_as_the_processor_does() {
    let place = Place::new();
    let train = |out, steps| small(out, &["--precision", "f16", "--steps", steps]);
    on_gpu(&place, &train("gpu", "6")).exits(0);
    let scales: Vec<f64> = statistics(&place, "gpu").iter().map(|l| l["lg_loss_scale"].as_f64().unwrap()).collect();
    assert!(scales[0] == 20.0 && scales[5] < 19.0, "{scales:?}");
    let copied = Command::new("cp").arg("-r").args(["gpu", "cpu"]).current_dir(place.path("")).status();
    assert!(copied.unwrap().success());
    on_gpu(&place, &train("gpu", "9")).exits(0);
    on_cpu(&place, &train("cpu", "9")).exits(0);
    assert_losses_near(&place, "gpu", "cpu", 5e-3);
}

#[test]
fn a_run_has_the_same_bits_each_time_and_after_interruptions() {
    let place = Place::new();
    for precision in ["f32", "bf16"] {
        let [straight, resumed] = ["straight", "resumed"].map(|name| format!("{name}-{precision}"));
        let train = |out, steps| small(out, &["--precision", precision, "--steps", steps]);
        on_gpu(&place, &train(&straight, "5")).exits(0);
        // One step records nothing yet.
        for steps in ["1", "4", "5"] {
            on_gpu(&place, &train(&resumed, steps)).exits(0);
        }
        let end = |run: &str| place.path(&format!("{run}/checkpoints/step_000005"));
        assert_same(&end(&straight), &end(&resumed));
    }
}

#[test]
fn a_signal_in_mid_run_changes_no_bit() {
    let place = Place::new();
    let train = [&["train"], TINY, &["--precision", "f32", "--device", "cuda:0", "--steps", "12"]].concat();
    let mut child = Command::new(assert_cmd::cargo::cargo_bin("ddpm-ip"))
        .args(&train)
        .current_dir(place.path(""))
        .env("LD_LIBRARY_PATH", libraries())
        .env("DDPM_IP_CACHE", "cache")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().split_whitespace().take(2).eq(["step", "3"])));
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupted.unwrap().success());
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    on_gpu(&place, &train).exits(0);
    let interrupted = place.path("interrupted");
    std::fs::rename(place.path("run"), &interrupted).unwrap();
    on_gpu(&place, &train).exits(0);
    assert_same(&interrupted.join("checkpoints/step_000012"), &place.path("run/checkpoints/step_000012"));
}

#[test]
fn a_run_goes_from_one_device_to_another_and_back() {
    let place = Place::new();
    for (flags, kept, tolerance) in [(&["--precision", "f32"][..], "f32", 1e-5), (&[], "bf16", 2e-2)] {
        let [moved, stayed] = ["moved", "stayed"].map(|name| format!("{name}-{kept}"));
        let train = |out, steps| small(out, &[flags, &["--steps", steps]].concat());
        on_gpu(&place, &train(&stayed, "6")).exits(0);
        on_gpu(&place, &train(&moved, "2")).exits(0);
        on_cpu(&place, &train(&moved, "4")).exits(0);
        on_gpu(&place, &train(&moved, "6")).exits(0);
        assert_losses_near(&place, &moved, &stayed, tolerance);
        let log = place.read(&format!("{moved}/log.txt"));
        assert!(
            log.contains("this run was on a processor in place of a GPU (cuDNN ")
                && log.contains(") and resumes on the CPU, at about "),
            "{log}"
        );
        assert!(log.contains("resuming at step 4") && !log.contains("the checkpoint was made with"), "{log}");
        assert_eq!(precision(&place, &moved), kept);
    }
}

#[test]
fn a_new_run_has_the_precision_of_its_device() {
    let place = Place::new();
    let train = |out| [&["train"], TINY, &["--steps", "1", "--out", out]].concat();
    on_gpu(&place, &train("gpu")).exits(0);
    on_cpu(&place, &train("cpu")).exits(0);
    assert_eq!([precision(&place, "gpu"), precision(&place, "cpu")], ["bf16", "f32"]);
    // `auto` is the GPU where one can be used.
    let auto = place.run_with(&[("LD_LIBRARY_PATH", libraries())], &train("auto")).exits(0);
    assert!(auto.err().contains("computing in bf16 on cuda:0"), "{}", auto.err());
}

#[test]
fn a_gradient_that_is_not_finite_ends_the_run_at_its_step_and_changes_nothing() {
    let place = Place::new();
    on_cpu(&place, &small("fresh", &["--steps", "1", "--lr", "1e-30"])).exits(0);
    let file = place.path("fresh/checkpoints/step_000001/model.safetensors");
    let config = checkpoint::config_of(&file).unwrap().unwrap();
    let network = Unet::new(config.model.network(config.diffusion.variance).unwrap());
    let mut parameters = checkpoint::load(&file, network.layout(), "").unwrap();
    // Activations and the loss stay finite, what is multiplied on the way back does not.
    let mut named = |name: &str, change: &dyn Fn(&mut [f32])| {
        let at = network.layout().specs().iter().position(|spec| spec.name == name).unwrap();
        change(parameters.get_mut(at));
    };
    named("input_blocks.0.0.weight", &|values| values.iter_mut().for_each(|v| *v *= 1e-6));
    // The second half are the variance's.
    named("out.2.weight", &|values| {
        let half = values.len() / 2;
        values[..half].fill(3e19);
    });
    checkpoint::write_parameters(&place.path("steep.safetensors"), &parameters, &config).unwrap();
    let train = |out| {
        let flags =
            ["--init-from", "steep.safetensors", "--precision", "f32", "--dropout", "0", "--save-interval", "1"];
        small(out, &[&flags[..], &["--steps", "3", "--keep-checkpoints", "0", "--log-interval", "9"]].concat())
    };
    for (name, ran) in [("cpu", on_cpu(&place, &train("cpu"))), ("gpu", on_gpu(&place, &train("gpu")))] {
        let told = ran.exits(3).err();
        assert!(told.contains("training diverged at step 1: the gradient is not finite"), "{name}: {told}");
        assert!(!place.path(&format!("{name}/checkpoints")).exists(), "{name}: nothing good was there to save");
    }
}

#[test]
fn checkpoints_that_are_written_while_training_goes_on_are_those_of_their_step() {
    let place = Place::new();
    let train = |out, steps, more: &[&'static str]| small(out, &[&["--steps", steps][..], more].concat());
    on_gpu(&place, &train("through", "6", &["--save-interval", "2", "--keep-checkpoints", "0"])).exits(0);
    let log = place.read("through/log.txt");
    for step in ["2", "4", "6"] {
        assert!(log.contains(&format!("checkpoints/step_00000{step}")), "{log}");
        on_gpu(&place, &train("stopped", step, &["--keep-checkpoints", "0"])).exits(0);
        let of = |run: &str| place.path(&format!("{run}/checkpoints/step_00000{step}"));
        assert_same(&of("through"), &of("stopped"));
    }
}

#[test]
fn a_run_keeps_the_engines_that_were_timed_and_says_when_others_take_their_place() {
    let place = Place::new();
    let train = |steps, more: &[&'static str]| small("run", &[&["--steps", steps][..], more].concat());
    on_gpu(&place, &train("1", &["--tune"])).exits(0);
    let timed = place.read("run/engines.tsv");
    assert!(timed.lines().count() > 9, "{timed}");
    std::fs::remove_dir_all(place.path("cache")).unwrap();
    // Other choices than this machine would make again.
    let (head, lines) = timed.split_once('\n').unwrap();
    let mut lines: Vec<String> = lines.lines().map(|line| format!("0{}\n", &line[1..])).collect();
    lines.sort();
    let chosen = format!("{head}\n{}", lines.concat());
    std::fs::write(place.path("run/engines.tsv"), &chosen).unwrap();
    on_gpu(&place, &train("2", &[])).exits(0);
    assert_eq!(place.read("run/engines.tsv"), chosen);
    assert!(!place.read("run/log.txt").contains("chosen again"));
    std::fs::remove_file(place.path("run/engines.tsv")).unwrap();
    on_gpu(&place, &train("3", &[])).exits(0);
    let log = place.read("run/log.txt");
    assert!(log.contains("engines timed): cuDNN engines are chosen again"), "{log}");
}
