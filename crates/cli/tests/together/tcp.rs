//! Processes that meet by TCP, as `torchrun` and `srun` launch them.

use super::support::{PROGRAM, TRAIN, assert_same, signal, text, wait_until};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// A port that is free, most likely.
fn port() -> String {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port().to_string()
}

/// Processes in a folder, by rank, with more variables for each.
fn begin(
    dir: &Path,
    count: usize,
    words: impl Fn(usize) -> String,
    more: impl Fn(usize) -> Vec<(&'static str, String)>,
) -> Vec<Child> {
    let port = port();
    let of_rank = |rank: usize| {
        let mut command = Command::new(PROGRAM);
        command.args(words(rank).split_whitespace()).current_dir(dir);
        command.env("RAYON_NUM_THREADS", "1").env("DDPM_IP_SILENCE", "3");
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", count.to_string()).env("LOCAL_RANK", rank.to_string());
        // The second stands for a machine that is not this one: then all addresses are listened on.
        command.env("MASTER_ADDR", ["localhost", "127.0.0.2"][count % 2]).env("DDPM_IP_PORT", &port).envs(more(rank));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    (0..count).map(of_rank).collect()
}

fn end(processes: Vec<Child>) -> Vec<Output> {
    processes.into_iter().map(|process| process.wait_with_output().unwrap()).collect()
}

/// What processes say of errors, by rank.
fn errors(outputs: &[Output]) -> Vec<String> {
    let of = |output: &Output| {
        text(&output.stderr)
            .lines()
            .filter(|line| line.contains("error:"))
            .map(String::from)
            .collect::<Vec<_>>()
            .join("\n")
    };
    outputs.iter().map(of).collect()
}

#[track_caller]
fn well(dir: &Path, count: usize, words: &str) {
    let outputs = end(begin(dir, count, |_| words.into(), |_| Vec::new()));
    assert!(outputs.iter().all(|output| output.status.success()), "{:?}", errors(&outputs));
    assert!(outputs[1..].iter().all(|output| output.stdout.is_empty() && output.stderr.is_empty()));
}

#[test]
fn processes_give_the_bits_of_one() {
    let folder = tempfile::tempdir().unwrap();
    for count in [1, 2, 3] {
        let dir = folder.path().join(count.to_string());
        std::fs::create_dir(&dir).unwrap();
        well(&dir, count, &format!("{TRAIN} --steps 3"));
        well(
            &dir,
            count,
            "sample --checkpoint run --num-samples 7 --batch-size 2 --timestep-respacing 5 --out run/a.npz",
        );
        assert_same(&dir.join("run"), &folder.path().join("1/run"));
    }
}

#[test]
fn a_process_that_dies_or_hangs_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (name, says) in [("-KILL", "ended without a word"), ("-STOP", "has not answered for 3 s")] {
        let run = format!("run{name}");
        let words = format!("{TRAIN} --steps 1000000 --save-interval 5 --keep-checkpoints 2 --out {run}");
        let mut processes = begin(folder.path(), 3, |_| words.clone(), |_| Vec::new());
        let checkpoint = folder.path().join(&run).join("checkpoints/step_000005");
        wait_until(|| checkpoint.is_dir());
        signal(name, processes[2].id());
        let mut of_two = processes.pop().unwrap();
        let outputs = end(processes);
        of_two.kill().unwrap();
        of_two.wait().unwrap();
        let errors = errors(&outputs);
        assert!(
            !outputs[0].status.success() && errors[0].contains("rank 2 on ") && errors[0].contains(says),
            "{errors:?}"
        );
        well(folder.path(), 1, &format!("info --verify {run}"));
    }
}

#[test]
fn what_keeps_processes_from_meeting_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let words = format!("{TRAIN} --steps 1");
    let outputs = end(begin(folder.path(), 2, |_| words.clone(), |_| vec![("DDPM_IP_PORT", "70000".into())]));
    assert!(errors(&outputs)[0].contains("DDPM_IP_PORT is 70000: it has to be a number from 0 to 65535"));
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut processes = begin(folder.path(), 2, |_| words.clone(), |_| vec![("DDPM_IP_PORT", port.clone())]);
    let mut second = processes.pop().unwrap();
    let errors = errors(&end(processes));
    assert!(errors[0].contains(&format!("waiting at localhost:{port}: Address already in use")), "{errors:?}");
    second.kill().unwrap();
    second.wait().unwrap();
    let mut alone = Command::new(PROGRAM);
    alone.args(words.split_whitespace()).current_dir(folder.path()).env("RANK", "0").env("WORLD_SIZE", "2");
    let output = alone.output().unwrap();
    assert!(text(&output.stderr).contains("as MASTER_ADDR is not set"), "{}", text(&output.stderr));
    assert!(!folder.path().join("run").exists());
}

#[test]
fn another_command_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let words = |rank: usize| format!("evaluate digits digits --batch-size {}", if rank == 1 { 20 } else { 30 });
    let outputs = end(begin(folder.path(), 3, words, |_| Vec::new()));
    let errors = errors(&outputs);
    assert!(errors[0].contains("rank 1 was started with `20` where rank 0 has `30`"), "{errors:?}");
    assert!(errors[1..].iter().all(String::is_empty), "{errors:?}");
}

#[test]
fn prepared_images_are_those_of_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    std::fs::create_dir(&images).unwrap();
    for i in 0..100u32 {
        let pixel = |x: u32, y: u32| image::Rgb([(i + x) as u8, (2 * i + y) as u8, (x * y) as u8]);
        image::RgbImage::from_fn(12, 9, pixel).save(images.join(format!("{}_{i:03}.png", i % 3))).unwrap();
    }
    let prepare = |out: &str| format!("prepare images images --image-size 8 --labels prefix --out {out}");
    well(folder.path(), 1, &prepare("alone.npz"));
    let images_of = |name: &str| {
        let mut npz = ddpm_ip::npz::Npz::open(&folder.path().join(name)).unwrap();
        (npz.bytes("arr_0").unwrap().values, npz.integers("arr_1").unwrap().values)
    };
    for count in [2, 3] {
        let out = format!("{count}.npz");
        well(folder.path(), count, &prepare(&out));
        assert_eq!(images_of(&out), images_of("alone.npz"));
        let out = format!("{count}");
        well(folder.path(), count, &prepare(&out));
        assert_eq!(std::fs::read_dir(folder.path().join(out)).unwrap().count(), 101);
    }
    // An image that cannot be used ends all, and what comes before it is kept.
    let broken = images.join("1_070.png");
    let whole = std::fs::read(&broken).unwrap();
    std::fs::write(&broken, &whole[..60]).unwrap();
    let outputs = end(begin(folder.path(), 3, |_| prepare("mended.npz"), |_| Vec::new()));
    let errors = errors(&outputs);
    assert!(
        !outputs[0].status.success() && errors[0].contains("1_070.png") && errors[0].matches("error:").count() == 1
    );
    let kept = std::fs::metadata(folder.path().join("mended.npz.partial")).unwrap().len();
    std::fs::write(&broken, whole).unwrap();
    well(folder.path(), 2, &prepare("mended.npz"));
    assert_eq!(images_of("mended.npz"), images_of("alone.npz"));
    // 57 images lie before it, each with a label.
    assert!(kept >= 57 * (8 * 8 * 3 + 8), "{kept}");
}
