//! Processes with a GPU each, which NCCL joins.

use super::machine::{assert_near, assert_same, libraries, on_gpu, small, statistics};
use super::support::Place;
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// What processes come to that share a run, by rank, with more variables for each.
fn together<'a>(
    place: &Place,
    count: usize,
    args: &[&str],
    variables: impl Fn(usize) -> Vec<(&'a str, &'a str)>,
) -> Vec<Output> {
    let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port().to_string();
    let begin = |rank: usize| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ddpm-ip"));
        command.args(args).current_dir(place.path("")).env("DDPM_IP_CACHE", "cache").env("DDPM_IP_PORT", &port);
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", count.to_string()).env("LOCAL_RANK", rank.to_string());
        command.env("MASTER_ADDR", "localhost").env("LD_LIBRARY_PATH", libraries()).env("CUDA_ON_CPU_DEVICES", "3");
        command.envs(variables(rank)).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let processes: Vec<_> = (0..count).map(begin).collect();
    processes.into_iter().map(|process| process.wait_with_output().unwrap()).collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn well(outputs: &[Output]) {
    for output in outputs {
        assert!(output.status.success(), "{}", said(output));
    }
}

fn checkpoint(place: &Place, run: &str) -> std::path::PathBuf {
    place.path(run).join("checkpoints/step_000002")
}

const STEPS: [&str; 4] = ["--steps", "2", "--microbatch", "1"];

/// What one GPU makes of it.
fn alone() -> &'static Place {
    static ALONE: OnceLock<Place> = OnceLock::new();
    ALONE.get_or_init(|| {
        let place = Place::new();
        on_gpu(&place, &small("run", &STEPS)).exits(0);
        place
    })
}

#[track_caller]
fn as_alone(place: &Place, run: &str) {
    assert_same(&checkpoint(place, run), &checkpoint(alone(), "run"));
}

#[test]
fn gpus_that_nccl_joins_give_the_bits_of_one() {
    let place = Place::new();
    // Three hold one, one and two of the four microbatches.
    for count in [2, 3] {
        let run = format!("run{count}");
        well(&together(&place, count, &small(&run, &STEPS), |_| Vec::new()));
        assert!(place.read(&format!("{run}/log.txt")).contains("gradients go from GPU to GPU by NCCL 2.29.7"));
        as_alone(&place, &run);
    }
}

#[test]
fn gpus_that_keep_a_part_of_the_optimizer_give_the_bits_of_one() {
    let place = Place::new();
    let flags = [&STEPS[..], &["--shard-optimizer"]].concat();
    for count in [2, 3] {
        let run = format!("run{count}");
        well(&together(&place, count, &small(&run, &flags), |_| Vec::new()));
        as_alone(&place, &run);
    }
    // Through main memory, as one GPU serves both.
    well(&together(&place, 2, &small("shared", &flags), |_| vec![("CUDA_ON_CPU_DEVICES", "1")]));
    as_alone(&place, "shared");
}

#[test]
fn nccls_own_order_comes_near() {
    let place = Place::new();
    let flags = [&STEPS[..], &["--reduction", "fast"]].concat();
    well(&together(&place, 3, &small("fast", &flags), |_| Vec::new()));
    let (fast, alone) = (statistics(&place, "fast"), statistics(alone(), "run"));
    fast.iter().zip(&alone).for_each(|(fast, alone)| assert_near(fast, alone, 1e-4));
}

#[test]
fn without_nccl_gradients_go_through_main_memory_and_it_is_said() {
    let place = Place::new();
    let without = place.path("without");
    std::fs::create_dir(&without).unwrap();
    for entry in std::fs::read_dir(libraries()).unwrap().flatten() {
        if !entry.file_name().to_string_lossy().starts_with("libnccl") {
            std::os::unix::fs::symlink(entry.path(), without.join(entry.file_name())).unwrap();
        }
    }
    let folder = without.to_str().unwrap();
    // Rank 1 has no NCCL, or one GPU serves both.
    let missing = |rank| if rank == 1 { vec![("LD_LIBRARY_PATH", folder)] } else { Vec::new() };
    let check = |run: &str, words: [&str; 2]| {
        let log = place.read(&format!("{run}/log.txt"));
        assert!(
            log.contains("gradients go through main memory, not by NCCL") && words.iter().all(|w| log.contains(w)),
            "{log}"
        );
        as_alone(&place, run);
    };
    well(&together(&place, 2, &small("missing", &STEPS), missing));
    check("missing", ["of rank 1 on ", "nvidia-nccl-cu13"]);
    well(&together(&place, 2, &small("shared", &STEPS), |_| vec![("CUDA_ON_CPU_DEVICES", "1")]));
    check("shared", ["Duplicate GPU", "both on CUDA device 0"]);
}

#[test]
fn a_gpu_that_fails_in_the_midst_ends_all() {
    let place = Place::new();
    let flags = ["--steps", "40", "--save-interval", "1", "--microbatch", "1"];
    let failing = |rank| if rank == 1 { vec![("CUDA_ON_CPU_FAIL", "cuLaunchKernel:700:719")] } else { Vec::new() };
    let outputs = together(&place, 3, &small("run", &flags), failing);
    let said: Vec<String> = outputs.iter().map(said).collect();
    assert!(outputs[..2].iter().all(|output| !output.status.success()), "{said:?}");
    assert!(said[1].contains("rank 1 on ") && said[1].contains("CUDA_ERROR_LAUNCH_FAILED"), "{said:?}");
    assert!(said[0].contains("error: rank 1 on "), "{said:?}");
    place.run(&["info", "--verify", "run"]).exits(0);
}
