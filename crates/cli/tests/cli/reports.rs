//! What is only said: help, version, info, completions.

use super::support::Place;
use serde_json::Value;

#[test]
fn help_names_the_commands_and_every_setting() {
    let place = Place::new();
    let help = place.run(&["--help"]).exits(0).out();
    let commands = ["train", "classifier-train", "super-res-train", "sample", "classifier-sample", "super-res-sample"];
    for command in commands.iter().chain(&[
        "nll",
        "evaluate",
        "statistics",
        "weights",
        "predict",
        "info",
        "bench",
        "bias",
        "compare",
        "report",
        "watch",
        "check",
        "completions",
        "130 interrupted",
    ]) {
        assert!(help.contains(command), "{help}");
    }
    let explained = |command: &str, sections: &[&str]| {
        let help = place.run(&[command, "--help"]).exits(0).out();
        for key in ddpm_ip::config::KEYS.iter().filter(|k| sections.contains(&k.section)) {
            let named = help.contains(&format!("--{} ", key.flag())) && help.contains(key.help);
            assert!(named, "{command}: {}", key.path());
        }
        help
    };
    let help = explained("train", &["model", "diffusion", "perturbation", "data", "train", "evaluation"]);
    explained("classifier-train", &["classifier", "diffusion", "data", "train"]);
    explained("sample", &["model", "sample", "classifier"]);
    assert!(help.contains("fashion-mnist") && help.contains("input-pertub"));
    assert_eq!(place.run(&["--version"]).exits(0).out(), format!("ddpm-ip {}\n", env!("CARGO_PKG_VERSION")));
    place.run(&[]).exits(2);
}

#[test]
fn info_describes_checkpoints_data_and_runs() {
    let place = Place::new();
    let data = place.run(&["info", "digits", "--contact-sheet", "sheet.png"]).exits(0);
    assert!(data.out().contains("1797 images, as 8x8") && data.out().contains("3: 183"), "{}", data.out());
    assert!(place.path("sheet.png").exists());
    // Sizes and channels are the images' own.
    let sheet = place.run(&["info", "sheet.png"]).exits(2);
    assert!(sheet.err().contains("sheet.png"), "{}", sheet.err());
    std::fs::create_dir(place.path("images")).unwrap();
    std::fs::rename(place.path("sheet.png"), place.path("images/sheet.png")).unwrap();
    let folder = place.run(&["info", "images"]).exits(0);
    assert!(folder.out().contains("1 images, as 502x502 with 1 channel(s)"), "{}", folder.out());
    let smaller = place.run(&["info", "images", "--image-size", "32", "--in-channels", "3"]).exits(0);
    assert!(smaller.out().contains("as 32x32 with 3 channel(s)"), "{}", smaller.out());
    place.train(&["--steps", "2"]).exits(0);
    let json =
        |what: &str| -> Value { serde_json::from_str(&place.run(&["info", what, "--json"]).exits(0).out()).unwrap() };
    let run = json("run");
    assert_eq!((&run["kind"], &run["step"], &run["images"]), (&"run".into(), &2.into(), &8.into()));
    let checkpoint = json("run/checkpoints/step_000002/model.safetensors");
    assert_eq!(checkpoint["kind"], "checkpoint");
    assert_eq!(checkpoint["architecture"]["num_channels"], 32);
    assert_eq!(checkpoint["config"]["model"]["image_size"], 8);
    let text = place.run(&["info", "run/checkpoints/step_000002"]).exits(0).out();
    for part in ["parameters in", "input_blocks.0.0.weight", "[32, 1, 3, 3]", "num_res_blocks"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn bench_measures_steps_and_kernels_and_compares() {
    let place = Place::new();
    let small = ["bench", "--num-channels", "32", "--channel-mult", "1", "--batch-size", "2", "--repeats", "3"];
    let json = place.run(&[&small[..], &["--json"]].concat()).exits(0).out();
    let report: Value = serde_json::from_str(&json).unwrap();
    for key in ["train_images_per_sec", "sample_images_per_sec", "peak_memory_bytes", "peak_flop_per_sec"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}: {json}");
    }
    for (task, kernel) in [("train", "weight gradient"), ("sample", "forward")] {
        assert_eq!(report[task]["images_per_sec"].as_array().unwrap().len(), 3);
        let kernels = report[task]["kernels"].as_array().unwrap();
        assert!(kernels.iter().any(|k| k["kernel"].as_str().unwrap().contains(kernel)), "{json}");
        let whole = report[task]["step_secs"].as_f64().unwrap();
        let parts: f64 = kernels.iter().map(|k| k["secs"].as_f64().unwrap()).sum();
        assert!(parts > 0.0 && whole > 0.0);
    }
    assert_eq!((&report["preset"], &report["precision"]), (&"digits".into(), &"f32".into()));
    std::fs::write(place.path("before.json"), json).unwrap();
    let more = ["--only", "sample", "--precision", "bf16", "--compare", "before.json", "--batch-size", "1"];
    let text = place.run(&[&small[..], &more].concat()).exits(0).out();
    for part in ["batch 1 · bf16", "compared with version", "sampling:", "times", "everything else", "peak memory"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("training:"), "{text}");
}

#[test]
fn completions_know_the_flags() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = place.run(&["completions", shell]).exits(0).out();
        assert!(script.contains("noise-schedule"), "{shell}");
    }
    let script = place.run(&["completions", "bash"]).exits(0).out();
    std::fs::write(place.path("completions.bash"), script).unwrap();
    for (words, expected) in
        [("ddpm-ip tr", "train"), ("ddpm-ip train --gam", "--gamma"), ("ddpm-ip prepare ci", "cifar10")]
    {
        let words: Vec<&str> = words.split(' ').collect();
        let last = words.len() - 1;
        let script = format!(
            ". ./completions.bash; COMP_WORDS=({}); COMP_CWORD={last}; f=$(complete -p ddpm-ip | sed 's/.*-F \\([^ ]*\\).*/\\1/'); \
             $f ddpm-ip '{}' '{}'; echo \"${{COMPREPLY[*]}}\"",
            words.join(" "),
            words[last],
            words[last - 1]
        );
        let bash =
            std::process::Command::new("bash").args(["-c", &script]).current_dir(place.path(".")).output().unwrap();
        let said = String::from_utf8_lossy(&bash.stdout);
        assert!(said.split_whitespace().any(|word| word == expected), "{words:?}: {said}{bash:?}");
    }
}

/// A reader that goes away, as `head` does, is no failure.
#[cfg(unix)]
#[test]
fn a_closed_pipe_is_success() {
    use std::process::{Command, Stdio};
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(assert_cmd::cargo::cargo_bin("ddpm-ip"))
        .args(["completions", "bash"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
