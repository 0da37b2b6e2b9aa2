//! Processes that `mpirun` launches: the same bits as one, and what happens when one of them does not go on.

use super::support::{PROGRAM, TRAIN, assert_same, signal, text, wait_until};
use ddpm_math::{Domain, Stream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// `mpirun` of so many processes in a folder, which run a shell's words with the program as `$P`.
fn launch(dir: &Path, count: usize, script: &str) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--bind-to", "none", "-np", &count.to_string(), "bash", "-c", script]);
    command.current_dir(dir).env("P", PROGRAM).env("RAYON_NUM_THREADS", "1").env("DDPM_IP_SILENCE", "3");
    command.envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
    // Else mpirun waits for a lock in shared memory that a killed process held (docs/clusters.md).
    command.env("PMIX_MCA_gds", "hash");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn spawn(dir: &Path, count: usize, script: &str) -> Child {
    launch(dir, count, script).spawn().expect("mpirun of Debian's openmpi-bin")
}

/// Waits for the end of all, two minutes at most. Open MPI's `mpirun` itself does not always end after a process was killed: that
/// of its processes counts.
#[track_caller]
fn end(mpirun: Child) -> Output {
    let pid = mpirun.id();
    let (ended, wait) = channel::<()>();
    let watch = std::thread::spawn(move || {
        let (mut began, mut gone) = (false, 0);
        for _ in 0..120 {
            if wait.recv_timeout(Duration::from_secs(1)) != Err(RecvTimeoutError::Timeout) {
                return Vec::new();
            }
            let none = processes(pid).is_empty();
            began |= !none;
            gone = if none { gone + 1 } else { 0 };
            // Before the first look there may have been none yet, or all may have ended already.
            if gone == if began { 10 } else { 30 } {
                break;
            }
        }
        let left = processes(pid);
        signal("-KILL", pid);
        left
    });
    let output = mpirun.wait_with_output().unwrap();
    drop(ended);
    let left = watch.join().unwrap();
    assert!(left.is_empty(), "{left:?} had not ended after two minutes: {}", text(&output.stderr));
    output
}

fn run(dir: &Path, count: usize, words: &str) -> Output {
    end(spawn(dir, count, &format!("exec $P {words}")))
}

#[track_caller]
fn well(dir: &Path, count: usize, words: &str) -> Output {
    let output = run(dir, count, words);
    assert!(output.status.success(), "{count} processes: {}", text(&output.stderr));
    output
}

/// The processes that an `mpirun` has launched and that have not ended, by rank.
fn processes(mpirun: u32) -> Vec<u32> {
    let parent = mpirun.to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // After the name in parentheses: state, parent.
        let of_mpirun = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)) == Some(&parent);
        let variables = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let rank =
            text(&variables).split('\0').find_map(|v| v.strip_prefix("OMPI_COMM_WORLD_RANK=")?.parse::<usize>().ok());
        if let (true, Some(rank)) = (of_mpirun, rank) {
            found.push((rank, pid));
        }
    }
    found.sort_unstable();
    found.into_iter().map(|(_, pid)| pid).collect()
}

#[test]
fn one_to_four_processes_give_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let mut evaluations = Vec::new();
    for count in 1..=4 {
        let dir = folder.path().join(count.to_string());
        std::fs::create_dir(&dir).unwrap();
        well(&dir, count, &format!("{TRAIN} --steps 5"));
        well(
            &dir,
            count,
            "sample --checkpoint run --num-samples 11 --batch-size 4 --timestep-respacing 5 --out run/a.npz",
        );
        well(&dir, count, "nll --checkpoint run --num-samples 7 --batch-size 2 --timestep-respacing 5 --out run");
        let words = "evaluate digits run/a.npz --metrics fid,is --batch-size 3 --json --no-cache --quiet";
        evaluations.push(text(&well(&dir, count, words).stdout));
        assert_same(&dir.join("run"), &folder.path().join("1/run"));
    }
    assert!(
        evaluations[0].contains("\"fid\"") && evaluations.iter().all(|report| *report == evaluations[0]),
        "{evaluations:?}"
    );
    // What is done is found done, by all.
    well(&folder.path().join("3"), 3, &format!("{TRAIN} --steps 5"));
    well(&folder.path().join("3"), 3, "nll --checkpoint run --num-samples 7 --timestep-respacing 5 --out run");
}

#[test]
fn a_run_goes_on_with_other_processes() {
    let folder = tempfile::tempdir().unwrap();
    let [straight, changed] = ["straight", "changed"].map(|name| folder.path().join(name));
    for dir in [&straight, &changed] {
        std::fs::create_dir(dir).unwrap();
    }
    well(&straight, 1, &format!("{TRAIN} --steps 6 --grid-images 0 --save-interval 2"));
    for (count, steps) in [(2, 2), (3, 4), (1, 6)] {
        well(&changed, count, &format!("{TRAIN} --steps {steps} --grid-images 0 --save-interval 2"));
    }
    assert_same(&straight.join("run"), &changed.join("run"));
}

#[test]
fn twenty_kills_change_no_result() {
    let folder = tempfile::tempdir().unwrap();
    let [straight, killed] = ["straight", "killed"].map(|name| folder.path().join(name));
    for dir in [&straight, &killed] {
        std::fs::create_dir(dir).unwrap();
    }
    let words = format!("{TRAIN} --steps 60 --grid-images 0 --save-interval 5");
    well(&straight, 3, &words);
    let mut stream = Stream::new(31, Domain::Order, 0, 0);
    let mut kills = 0;
    while kills < 20 {
        let mut mpirun = spawn(&killed, 3, &format!("exec $P {words}"));
        let (rank, lines) = (stream.below(3) as usize, stream.below(60) as usize);
        let log = killed.join("run/stats.jsonl");
        let before = std::fs::read_to_string(&log).unwrap_or_default().lines().count();
        wait_until(|| {
            let now = std::fs::read_to_string(&log).unwrap_or_default().lines().count();
            let as_wanted = processes(mpirun.id()).len() == 3 && (now >= lines || now > before + 10);
            as_wanted || mpirun.try_wait().unwrap().is_some()
        });
        if let Some(&pid) = processes(mpirun.id()).get(rank) {
            signal("-KILL", pid);
        }
        let begin = Instant::now();
        let output = end(mpirun);
        assert!(begin.elapsed() < Duration::from_mins(1));
        if output.status.success() {
            // It was faster: from the beginning once more.
            let _ = std::fs::remove_dir_all(killed.join("run"));
        } else {
            kills += 1;
        }
    }
    well(&killed, 3, &words);
    assert_same(&straight.join("run"), &killed.join("run"));
}

#[test]
fn a_process_that_hangs_is_named_and_ends_all() {
    let folder = tempfile::tempdir().unwrap();
    for rank in [0, 2] {
        let words = format!("{TRAIN} --steps 1000000 --save-interval 5 --keep-checkpoints 2 --out run{rank}");
        let mpirun = spawn(folder.path(), 3, &format!("exec $P {words}"));
        let checkpoints = folder.path().join(format!("run{rank}/checkpoints/step_000005"));
        wait_until(|| checkpoints.is_dir());
        let processes = processes(mpirun.id());
        signal("-STOP", processes[rank]);
        let begin = Instant::now();
        let output = end(mpirun);
        assert!(begin.elapsed() < Duration::from_mins(1) && !output.status.success());
        let said = text(&output.stderr);
        assert!(
            said.contains(&format!("error: rank {rank} on ")) && said.contains("has not answered for 3 s"),
            "{said}"
        );
        well(folder.path(), 1, &format!("info --verify run{rank}"));
    }
}

#[test]
fn whoever_is_told_to_stop_all_stop_and_save() {
    let folder = tempfile::tempdir().unwrap();
    let words = format!("{TRAIN} --steps 1000000 --save-interval 5 --keep-checkpoints 2");
    let mpirun = spawn(folder.path(), 3, &format!("exec $P {words}"));
    wait_until(|| folder.path().join("run/checkpoints/step_000005").is_dir());
    signal("-USR1", processes(mpirun.id())[2]);
    let log = folder.path().join("run/log.txt");
    wait_until(|| std::fs::read_to_string(&log).unwrap_or_default().contains("saving a checkpoint, as asked"));
    signal("-TERM", processes(mpirun.id())[1]);
    let output = end(mpirun);
    let said = text(&output.stderr);
    assert_eq!(said.matches("interrupted: repeat the command to resume").count(), 1, "{said}");
    well(folder.path(), 1, "info --verify run");
}

/// The lines of errors among what was said, `mpirun`'s own aside.
fn errors(output: &Output) -> Vec<String> {
    text(&output.stderr).lines().filter(|line| line.contains("error:")).map(String::from).collect()
}

#[test]
fn what_is_wrong_is_said_once_and_by_whom() {
    let folder = tempfile::tempdir().unwrap();
    let of_rank = |rank: usize, other: &str| {
        format!("if [ $OMPI_COMM_WORLD_RANK = {rank} ]; then {other}; fi; exec $P {TRAIN} --steps 3 $MORE")
    };
    // A limit for files that rank 0 writes stands for a full disk.
    let full = format!("trap '' XFSZ; ulimit -f 64; exec $P {TRAIN} --steps 3");
    for (script, expected) in [
        (of_rank(2, "MORE='--lr 0.5'"), "rank 2 has train.lr = 0.5, but rank 0 has 0.0015"),
        (of_rank(1, "MORE='--data-dir nowhere'"), "rank 1 on "),
        (
            of_rank(9, "true").replace("--batch-size 24", "--batch-size 2"),
            "3 processes cannot share a batch of 2 images",
        ),
        (of_rank(9, "true").replace("--steps 3", "--nonsense"), "there is no flag --nonsense"),
        (of_rank(0, &full), "File too large"),
    ] {
        let output = end(spawn(folder.path(), 3, &script));
        let errors = errors(&output);
        assert!(
            !output.status.success() && errors.len() == 1 && errors[0].contains(expected),
            "{expected}: {errors:?}"
        );
    }
    // The last had begun: with room on the disk it goes on.
    well(folder.path(), 3, &format!("{TRAIN} --steps 3"));
}

#[test]
fn a_batch_may_be_given_per_rank() {
    let folder = tempfile::tempdir().unwrap();
    let words = TRAIN.replace("--batch-size 24 --microbatch 4", "--batch-size-per-rank 5");
    well(folder.path(), 3, &format!("{words} --steps 1"));
    let config = std::fs::read_to_string(folder.path().join("run/config.toml")).unwrap();
    assert!(config.contains("batch_size = 15") && config.contains("microbatch = 5"), "{config}");
}

#[test]
fn mpis_own_order_comes_near() {
    let folder = tempfile::tempdir().unwrap();
    well(folder.path(), 1, &format!("{TRAIN} --steps 4 --out exact"));
    well(folder.path(), 3, &format!("{TRAIN} --steps 4 --out fast --reduction fast"));
    let losses = |run: &str| -> Vec<f64> {
        let lines = std::fs::read_to_string(folder.path().join(run).join("stats.jsonl")).unwrap();
        let of = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap();
        lines.lines().map(of).collect()
    };
    let (exact, fast) = (losses("exact"), losses("fast"));
    assert_eq!(exact.len(), 4);
    assert!(exact.iter().zip(&fast).all(|(a, b)| (a - b).abs() < 1e-4 * a), "{exact:?} {fast:?}");
}
