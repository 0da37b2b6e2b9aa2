//! Kinds of GPUs that are not there: engines and memory are told, and nothing runs.

use super::machine::{SMALL, libraries, on_gpu};
use super::support::{Place, TINY};
use serde_json::Value;
use std::path::Path;

fn dry_run(place: &Place, variables: &[(&str, &str)], more: &[&str]) -> super::support::Ran {
    let machine = [("LD_LIBRARY_PATH", libraries())];
    place.run_with(&[&machine, variables].concat(), &[&["train", "--dry-run"], more].concat())
}

fn bytes(report: &Value, step: &str, part: &str) -> u64 {
    let parts = report["memory"][step]["parts"].as_array().unwrap();
    parts.iter().find(|p| p["name"] == part).unwrap()["bytes"].as_u64().unwrap()
}

#[test]
fn what_a_run_would_take_there_is_what_it_takes_on_a_gpu() {
    let place = Place::new();
    let planned = dry_run(&place, &[], &[SMALL, &["--device", "h100", "--json"]].concat()).exits(0).out();
    let planned: Value = serde_json::from_str(&planned).unwrap();
    let there = on_gpu(&place, &[&["train", "--dry-run", "--json"], SMALL].concat()).exits(0).out();
    let there: Value = serde_json::from_str(&there).unwrap();
    assert_eq!(planned["config"], there["config"]);
    assert_eq!(planned["config"]["model"]["precision"], "bf16");
    for step in ["training", "sampling"] {
        assert_eq!(bytes(&planned, step, "activations"), bytes(&there, step, "activations"));
        // cuBLASLt's workspace is counted at its most, in each of the two streams.
        let [planned, there] = [&planned, &there].map(|report| bytes(report, step, "scratch of kernels"));
        assert!((there..there + (64 << 20)).contains(&planned), "{step}: {planned} for {there}");
    }
    let choices = planned["convolutions"]["training"].as_array().unwrap();
    for pass in ["bias", "residual + bias", "input gradient", "weight gradient"] {
        let choice = choices.iter().find(|choice| choice["pass"] == pass).unwrap_or_else(|| panic!("no {pass}"));
        assert_eq!((&choice["precision"], &choice["images"]), (&"bf16".into(), &4.into()));
    }
    let sampling = planned["convolutions"]["sampling"].as_array().unwrap();
    assert!(sampling.iter().all(|choice| choice["images"] == 100 && choice["pass"] != "weight gradient"));
    let text = dry_run(&place, &[], &[SMALL, &["--device", "b200"]].concat()).exits(0).out();
    assert!(text.contains("# on NVIDIA B200 (180 GiB), as cuDNN 9.28.0 plans for it"), "{text}");
    assert!(text.contains(&format!("a training step has {} convolutions", choices.len())), "{text}");
}

#[test]
fn a_convolution_without_a_deterministic_engine_is_said() {
    let place = Place::new();
    let refuse = [("CUDNN_ON_CPU_REFUSE", "0,1,2,3,4,5,6,7,8,9")];
    dry_run(&place, &refuse, &[TINY, &["--device", "a100"]].concat())
        .complains(1, &["cuDNN has no deterministic engine for Plain of Convolution", "CUDNN_ON_CPU_REFUSE"]);
    assert!(place.is_empty());
}

#[test]
fn too_little_memory_there_is_said_with_the_microbatch_that_fits() {
    let place = Place::new();
    let large = ["--image-size", "64", "--allow-upscale", "--num-channels", "512", "--batch-size", "1024"];
    let asked = [TINY, &large, &["--device", "rtx4090"]].concat();
    let message = dry_run(&place, &[], &asked).exits(2).err();
    assert!(message.contains("NVIDIA GeForce RTX 4090 has 23.2 GiB: --microbatch "), "{message}");
    let fits = message.split_once("--microbatch ").and_then(|(_, rest)| rest.split_once(" fits")).unwrap().0;
    dry_run(&place, &[], &[&asked[..], &["--microbatch", fits]].concat()).exits(0);
    dry_run(&place, &[], &[&asked[..], &["--ignore-memory-limit"]].concat()).exits(0);
}

#[test]
fn nothing_runs_on_a_kind_of_gpu() {
    let place = Place::new();
    for command in [&[&["train"], TINY].concat()[..], &["sample", "--checkpoint", "run"], &["check"]] {
        place
            .run(&[command, &["--device", "h100"]].concat())
            .complains(2, &["--device h100 is a kind of GPU", "--dry-run"]);
    }
    for flags in [&["--dry-run"][..], &[]] {
        place
            .run(&[&["train"], TINY, flags, &["--device", "h101"]].concat())
            .complains(2, &["no device \"h101\"", "a100, rtx3090, rtx4090, h100, h200, b200, rtx5090"]);
    }
    assert!(place.is_empty());
}

#[test]
fn what_planning_lacks_is_named() {
    let place = Place::new();
    let asked = [&["train", "--dry-run"], TINY, &["--device", "h100"]].concat();
    let folder = place.path("libraries");
    std::fs::create_dir(&folder).unwrap();
    // Not in this machine's Python either.
    let machine = [("LD_LIBRARY_PATH", folder.to_str().unwrap()), ("PATH", ""), ("VIRTUAL_ENV", ""), ("HOME", "")];
    if !super::missing::has_driver() {
        place
            .run_with(&machine, &asked)
            .complains(2, &["--device h100: the NVIDIA driver (libcuda.so.1)", "needs no GPU", "docs/gpu.md"]);
    }
    for name in ["libcuda.so.1", "libcublasLt.so.13", "libnvrtc.so.13"] {
        std::fs::copy(Path::new(libraries()).join(name), folder.join(name)).unwrap();
    }
    place
        .run_with(&machine, &asked)
        .complains(2, &["--device h100: cuDNN is missing", "pip install nvidia-cudnn-cu13"]);
}
