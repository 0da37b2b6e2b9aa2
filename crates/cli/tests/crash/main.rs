//! A disk that fails, and kills: whatever happens, the same command again ends with the result of an undisturbed call.
//!
//! `faults.c` runs the program and stops it, cuts the power or refuses an operation before the n-th that changes a file. The
//! tests try a few n of each kind; `DDPM_IP_CAMPAIGN=60` tries 60 of each job in each way, `all` every one, and
//! `DDPM_IP_CAMPAIGN=60 cargo test --release -p ddpm-ip-cli --test crash -- --include-ignored --nocapture`
//! also kills at 300 random instants. docs/reliability.md says what came of that.

#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use ddpm_ip::npz::Npz;
use ddpm_math::{Domain, Stream};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What stops the program, cuts the power, or fails.
const CRASHES: [&str; 4] = ["kill", "lose", "empty", "torn"];
const ERRORS: [&str; 3] = ["ENOSPC", "EIO", "EACCES"];

/// Operations that are tried of a job in each way, if not all.
const SOME: u64 = 3;

/// The smallest network.
const TINY: &str = "--num-channels 32 --channel-mult 1 --attention-resolutions= --class-cond false --batch-size 4 \
                    --diffusion-steps 10 --noise-schedule cosine --set sample.timestep_respacing= --out run";

/// Work that is disturbed.
struct Job {
    name: &'static str,
    /// What has to be there before: command lines.
    before: &'static [&'static str],
    /// The command line; `TINY` stands for the network's flags.
    command: &'static str,
    /// Files and folders that it makes.
    made: &'static [&'static str],
}

const TRAINED: &str = "train TINY --steps 2 --grid-images 0 --quiet";
const SAMPLED: &str = "sample --checkpoint run --num-samples 6 --timestep-respacing 2 --quiet --out a.npz";

const JOBS: [Job; 6] = [
    Job {
        name: "train",
        before: &[],
        command: "train TINY --steps 4 --save-interval 2 --grid-images 4 --log-interval 1 --posthoc-ema 0.05,0.1 \
                  --posthoc-ema-interval 2 --quiet",
        made: &["run"],
    },
    Job {
        name: "train, evaluated",
        before: &[],
        command: "train TINY --steps 4 --save-interval 2 --grid-images 0 --log-interval 1 --evaluation-interval 2 \
                  --evaluation-images 8 --keep-checkpoints 1 --quiet",
        made: &["run"],
    },
    Job {
        name: "sample",
        before: &[TRAINED],
        command: "sample --checkpoint run --num-samples 12 --batch-size 3 --timestep-respacing 2 --quiet --out out/a.npz \
                  --grid out/grid.png",
        made: &["out/a.npz", "out/grid.png"],
    },
    Job {
        name: "prepare",
        before: &[
            TRAINED,
            "sample --checkpoint run --num-samples 4 --timestep-respacing 2 --quiet --out 0.npz --grid pngs/0.png",
            "sample --checkpoint run --num-samples 4 --timestep-respacing 2 --seed 1 --quiet --out 1.npz --grid pngs/1.png",
            "sample --checkpoint run --num-samples 4 --timestep-respacing 2 --seed 2 --quiet --out 2.npz --grid pngs/2.png",
        ],
        command: "prepare images pngs --image-size 8 --out small.npz --quiet",
        made: &["small.npz"],
    },
    Job {
        name: "evaluate",
        before: &[TRAINED, SAMPLED],
        command: "evaluate digits a.npz --metrics fid --json --quiet",
        made: &[],
    },
    Job { name: "convert", before: &[TRAINED], command: "convert run pytorch", made: &["pytorch"] },
];

/// A folder with what a job needs, and one for what is kept of it.
struct Place {
    _folder: tempfile::TempDir,
    root: PathBuf,
    backup: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let base = folder.path().canonicalize().unwrap();
        let [root, backup] = ["root", "backup"].map(|name| base.join(name));
        for path in [&root, &backup] {
            std::fs::create_dir(path).unwrap();
        }
        Self { _folder: folder, root, backup }
    }

    fn prepared(job: &Job) -> Self {
        let place = Self::new();
        for command in job.before {
            let ran = place.run(command);
            assert!(ran.status.success(), "{command}: {}", text(&ran.stderr));
        }
        place
    }

    /// The same in a place of its own.
    fn copy(&self) -> Self {
        let place = Self::new();
        copy(&self.root, &place.root);
        place
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        let variables = [("DDPM_IP_CACHE", "cache"), ("RAYON_NUM_THREADS", "2")];
        command.current_dir(&self.root).envs(variables).stdin(Stdio::null());
        command
    }

    fn run(&self, words: &str) -> Output {
        self.command(program()).args(arguments(words)).output().unwrap()
    }

    /// The same on a disk that fails; and how many operations there were.
    fn disturbed(&self, mode: &str, at: u64, words: &str) -> (Output, u64) {
        let mut command = self.command(faults());
        command.args([&self.root, &self.backup]).args([mode, &at.to_string(), "--"]).arg(program());
        let output = command.args(arguments(words)).output().unwrap();
        let said = text(&output.stderr);
        let count = said.lines().rev().find_map(|line| line.strip_prefix("operations: ")?.parse().ok());
        (output, count.unwrap_or_else(|| panic!("no count: {said}")))
    }

    /// What a job has made, without clocks: bytes by name.
    fn made(&self, job: &Job, output: &Output) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut all = BTreeMap::new();
        if job.made.is_empty() {
            all.insert("printed".into(), output.stdout.clone());
        }
        for name in job.made {
            collect(&self.root, &self.root.join(name), &mut all);
        }
        all
    }

    /// Checkpoints that the run's log named as saved before the power failed.
    fn reported(&self) -> Vec<PathBuf> {
        let log = std::fs::read_to_string(self.backup.join("log.txt")).unwrap_or_default();
        log.lines().filter_map(|line| Some(self.root.join(line.split_once(": saved ")?.1))).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn arguments(words: &str) -> Vec<String> {
    words.replace("TINY", TINY).split_whitespace().map(String::from).collect()
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_ddpm-ip"))
}

/// The program of `faults.c`, built once.
fn faults() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/crash/faults.c");
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("faults-{}", std::process::id()));
        let made = Command::new("cc").args(["-O1", "-Wall", "-o"]).arg(&built).arg(source).output().unwrap();
        assert!(made.status.success(), "building it needs a C compiler: {}", text(&made.stderr));
        built
    })
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).unwrap();
        }
    }
}

/// The files of a folder, without what tells the time or is left of a crash.
fn collect(root: &Path, path: &Path, all: &mut BTreeMap<PathBuf, Vec<u8>>) {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            collect(root, &entry.unwrap().path(), all);
        }
        return;
    }
    // What a killed process was writing has no name that anything reads.
    if name.starts_with(".tmp-") || [".lock", "log.txt", "calls.jsonl"].contains(&name.as_str()) {
        return;
    }
    let mut bytes = std::fs::read(path).unwrap();
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("safetensors") => {
            let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            bytes.drain(..8 + header);
        }
        // The comment of the archive tells when the checkpoint was written.
        Some("npz") => bytes = Npz::open(path).unwrap().bytes("arr_0").unwrap().values,
        Some("csv" | "jsonl") => {
            // Steps and losses; speed depends on the machine. Distances are logged once at most: evaluations.jsonl has all.
            let steady = |line: &str| match serde_json::from_str::<serde_json::Value>(line) {
                Ok(json) if json.get("frechet_distance").is_some() => None,
                // A line that was cut off at the end.
                Err(_) if line.starts_with('{') => None,
                Ok(json) => Some(format!("{} {} {}", json["step"], json["loss"], json["fid"])),
                Err(_) if line.split(',').nth(3) == Some("") => None,
                Err(_) => Some(line.split(',').take(3).collect::<Vec<_>>().join(",")),
            };
            bytes = text(&bytes).lines().filter_map(steady).collect::<Vec<_>>().join("\n").into_bytes();
        }
        _ => {}
    }
    all.insert(path.strip_prefix(root).unwrap().to_path_buf(), bytes);
}

/// Asserts that two results are the same.
#[track_caller]
fn assert_same(found: &BTreeMap<PathBuf, Vec<u8>>, expected: &BTreeMap<PathBuf, Vec<u8>>, when: &str) {
    let is_log = |name: &&PathBuf| name.ends_with("progress.csv") || name.ends_with("stats.jsonl");
    let names = |all: &BTreeMap<PathBuf, Vec<u8>>| all.keys().filter(|name| !is_log(name)).cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{when}");
    for (name, bytes) in expected {
        assert!(found.get(name) == Some(bytes), "{when}: {} differs", name.display());
    }
}

/// Runs a job again after whatever happened, and compares.
#[track_caller]
fn assert_recovers(place: &Place, job: &Job, expected: &BTreeMap<PathBuf, Vec<u8>>, when: &str) {
    let again = place.run(job.command);
    // What is converted already is refused, and whole.
    let is_there = job.name == "convert" && text(&again.stderr).contains("model000002.pt exists");
    assert!(again.status.success() || is_there, "{when}, then: {}", text(&again.stderr));
    assert_same(&place.made(job, &again), expected, when);
}

/// The operations that are tried.
fn chosen(count: u64) -> Vec<u64> {
    let campaign = std::env::var("DDPM_IP_CAMPAIGN").unwrap_or_default();
    let wanted = if campaign == "all" { count } else { campaign.parse().unwrap_or(SOME) };
    let every = (count / wanted).max(1);
    // The last ones are where something becomes visible.
    (0..count).filter(|n| n % every == 0 || n + 2 > count).collect()
}

/// Disturbs a job in some ways.
fn disturb(modes: &[&str], check: impl Fn(&Place, &Output, &str)) {
    for job in &JOBS {
        let prepared = Place::prepared(job);
        let undisturbed = prepared.copy();
        let (ran, count) = undisturbed.disturbed("count", 0, job.command);
        assert!(ran.status.success() && count > 0, "{}: {}", job.name, text(&ran.stderr));
        let expected = undisturbed.made(job, &ran);
        for mode in modes {
            let chosen = chosen(count);
            println!("{}, {mode}: {} of {count} operations", job.name, chosen.len());
            for at in chosen {
                let when = format!("{}, {mode} at operation {at} of {count}", job.name);
                let place = prepared.copy();
                let (output, _) = place.disturbed(mode, at, job.command);
                check(&place, &output, &when);
                let mut expected = expected.clone();
                // A run goes on without its logs, and says so.
                if text(&output.stderr).contains("logs are no longer written") {
                    let is_log = |name: &Path| name.ends_with("progress.csv") || name.ends_with("stats.jsonl");
                    expected.retain(|name, _| !is_log(name));
                }
                assert_recovers(&place, job, &expected, &when);
            }
        }
    }
}

#[test]
fn after_a_crash_the_same_command_ends_as_if_nothing_had_been() {
    disturb(&CRASHES, |place, output, when| {
        assert_eq!(output.status.code(), Some(137), "{when}: {}", text(&output.stderr));
        // What was reported is there.
        for checkpoint in place.reported() {
            let info = place.run(&format!("info {}", checkpoint.display()));
            let kept = checkpoint.parent().unwrap();
            let newer = std::fs::read_dir(kept)
                .is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|entry| entry.path() > checkpoint)));
            assert!(info.status.success() || newer, "{when}: {} is lost", checkpoint.display());
        }
    });
}

#[test]
fn a_disk_that_is_full_or_fails_is_said_and_nothing_is_lost() {
    disturb(&ERRORS, |_, output, when| {
        let said = text(&output.stderr);
        assert!(!said.contains("panicked"), "{when}: {said}");
        // What could not be removed, or a lock file that is there, harms nobody.
        if !output.status.success() {
            let errors = ["No space left on device", "Input/output error", "Permission denied"];
            assert_eq!(output.status.code(), Some(1), "{when}: {said}");
            assert!(said.contains("error: ") && errors.iter().any(|error| said.contains(error)), "{when}: {said}");
        }
    });
}

#[test]
#[ignore = "a campaign of its own"]
fn kills_at_random_instants_change_no_result() {
    const KILLS: usize = 300;
    let mut stream = Stream::new(27, Domain::Order, 0, 0);
    let mut kills = 0;
    for (which, job) in JOBS.iter().enumerate() {
        let prepared = Place::prepared(job);
        let undisturbed = prepared.copy();
        let began = Instant::now();
        let ran = undisturbed.run(job.command);
        let (took, expected) = (began.elapsed(), undisturbed.made(job, &ran));
        let until = KILLS * (which + 1) / JOBS.len();
        while kills < until {
            // One result after several kills.
            let place = prepared.copy();
            for _ in 0..3 {
                let mut child = place
                    .command(program())
                    .args(arguments(job.command))
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap();
                std::thread::sleep(took.mul_f64(stream.uniform()).max(Duration::from_millis(1)));
                // It may have been faster.
                let killed = child.kill().is_ok() && child.wait().unwrap().code().is_none();
                kills += usize::from(killed);
            }
            assert_recovers(&place, job, &expected, &format!("{}, after {kills} kills in all", job.name));
        }
        println!("{}: {until} kills so far", job.name);
    }
}
