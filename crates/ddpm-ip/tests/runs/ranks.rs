//! Processes that share a run, as threads of one.

use super::support::{assert_same, assert_says, tensors, trained, with};
use ddpm_ip::config::Config;
use ddpm_ip::ranks::{Link, Ranks};
use ddpm_ip::train::{RunOptions, train};
use ddpm_ip::{Device, Error, Event, Outcome};
use std::io::{Error as IoError, ErrorKind, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// Where threads meet: each puts down its bytes, and nobody leaves before all have taken theirs.
#[derive(Default)]
struct Meeting {
    state: Mutex<Board>,
    changed: Condvar,
}

#[derive(Default)]
struct Board {
    said: Vec<Option<Vec<u8>>>,
    taken: usize,
    someone_left: bool,
}

/// A thread that is a rank.
struct Threads {
    rank: usize,
    count: usize,
    meeting: Arc<Meeting>,
}

impl Threads {
    fn wait<'a>(
        &'a self,
        mut board: std::sync::MutexGuard<'a, Board>,
        until: impl Fn(&Board) -> bool,
    ) -> Result<std::sync::MutexGuard<'a, Board>> {
        while !until(&board) {
            if board.someone_left {
                return Err(IoError::new(ErrorKind::BrokenPipe, "a thread left"));
            }
            board = self.meeting.changed.wait(board).unwrap();
        }
        Ok(board)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.meeting.state.lock().unwrap().someone_left = true;
        self.meeting.changed.notify_all();
    }
}

impl Link for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.count
    }

    fn gather(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let board = self.meeting.state.lock().unwrap();
        // Those of the round before may not all have taken theirs.
        let mut board = self.wait(board, |board| board.taken == 0)?;
        board.said.resize(self.count, None);
        board.said[self.rank] = Some(mine.to_vec());
        self.meeting.changed.notify_all();
        let mut board = self.wait(board, |board| board.taken > 0 || board.said.iter().all(Option::is_some))?;
        let all = board.said.iter().flatten().cloned().collect();
        board.taken += 1;
        if board.taken == self.count {
            *board = Board { someone_left: board.someone_left, ..Board::default() };
        }
        self.meeting.changed.notify_all();
        Ok(all)
    }

    fn exchange(&self, sends: &[Vec<&[f32]>], expected: &[usize]) -> Result<Vec<Vec<f32>>> {
        // To all, each with the counts by rank first.
        let count = |parts: &Vec<&[f32]>| parts.iter().map(|part| part.len() as u64).sum::<u64>();
        let header = sends.iter().flat_map(|parts| count(parts).to_le_bytes());
        let mine: Vec<u8> = header.chain(sends.iter().flatten().flat_map(|part| bytemuck(part))).collect();
        let take = |(said, &expected): (&Vec<u8>, &usize)| {
            let (header, values) = said.split_at(8 * self.count);
            let counts: Vec<usize> =
                header.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap()) as usize).collect();
            assert_eq!(counts[self.rank], expected);
            floats(values).skip(counts[..self.rank].iter().sum()).take(expected).collect()
        };
        Ok(self.gather(&mine)?.iter().zip(expected).map(take).collect())
    }

    fn spread(&self, values: &mut [f32], parts: &[Range<usize>]) -> Result<()> {
        let mine: Vec<u8> = bytemuck(&values[parts[self.rank].clone()]).collect();
        for (said, part) in self.gather(&mine)?.iter().zip(parts) {
            assert_eq!(said.len(), 4 * part.len());
            values[part.clone()].iter_mut().zip(floats(said)).for_each(|(value, said)| *value = said);
        }
        Ok(())
    }
}

fn bytemuck(values: &[f32]) -> impl Iterator<Item = u8> {
    values.iter().flat_map(|value| value.to_le_bytes())
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
}

/// What each of some ranks comes to that share a run, all of which `config` gives their settings.
fn shared(
    count: usize,
    dir: &Path,
    config: impl Fn(usize) -> Config + Sync,
    listen: impl Fn(usize, &Event, &AtomicBool) + Sync,
) -> Vec<std::result::Result<Outcome, Error>> {
    let meeting = Arc::new(Meeting::default());
    let run = |rank| {
        let link = Threads { rank, count, meeting: Arc::clone(&meeting) };
        // Two ranks of a machine, where all have two.
        let host = if count.is_multiple_of(2) { rank / 2 } else { rank };
        let ranks = Ranks::meet(Arc::new(link), &format!("host{host}")).unwrap();
        let options = RunOptions { device: Device::Cpu, ranks: ranks.clone(), ..RunOptions::default() };
        let stop = AtomicBool::new(false);
        let result = train(&config(rank), dir, options, vec![], &stop, &mut |event| listen(rank, &event, &stop));
        if let Err(error) = &result
            && !matches!(error, Error::Rank { .. } | Error::Gone { .. })
        {
            ranks.fail(&error.to_string());
        }
        result
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|rank| scope.spawn(move || run(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Settings under which all kinds of state matter; six microbatches a step.
fn settings(steps: &str, other: &[(&str, &str)]) -> Config {
    let mut all = vec![
        ("steps", steps),
        ("train.batch_size", "30"),
        ("microbatch", "5"),
        ("dropout", "0.2"),
        ("schedule_sampler", "loss-second-moment"),
        ("diffusion_steps", "5"),
        ("gamma", "0.2"),
        ("random_flip", "true"),
        ("class_cond", "true"),
        ("ema_rate", "0.9,0.99"),
    ];
    all.extend(other);
    with(&all)
}

/// The newest checkpoint of a run of some ranks that all end well.
fn run_of(count: usize, dir: &Path, config: &Config) -> PathBuf {
    let results = shared(count, dir, |_| config.clone(), |_, _, _| {});
    for result in results {
        assert_eq!(result.unwrap(), Outcome::Finished);
    }
    ddpm_ip::checkpoint::Store::new(dir).newest().unwrap().unwrap().1
}

#[test]
fn any_number_of_ranks_comes_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let settings_of_runs: [&[(&str, &str)]; 3] = [
        &[],
        &[("gradient_penalty", "0.1"), ("dropout", "0"), ("train.batch_size", "28")],
        // Enough parameters for several parts that are added up beside the backward pass.
        &[("model.num_channels", "96"), ("train.batch_size", "28")],
    ];
    for other in settings_of_runs {
        let config = settings("4", other);
        let alone = trained(&config, &folder.path().join(format!("{}", other.len())));
        for count in [1, 2, 3, 4, 6] {
            let dir = folder.path().join(format!("{}-{count}", other.len()));
            assert_same(&alone, &run_of(count, &dir, &config));
        }
    }
}

#[test]
fn a_run_goes_on_with_other_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let alone = trained(&settings("6", &[]), &folder.path().join("alone"));
    let dir = folder.path().join("shared");
    run_of(2, &dir, &settings("2", &[]));
    run_of(3, &dir, &settings("4", &[]));
    assert_same(&alone, &trained(&settings("6", &[]), &dir));
}

/// A network of ten pieces of 65 536 parameters, so that each rank has some, and all kinds of averages.
fn sharded(steps: &str, shard: &str, other: &[(&str, &str)]) -> Config {
    let mut all = vec![
        ("model.num_channels", "96"),
        ("shard_optimizer", shard),
        ("posthoc_ema", "0.1,0.2"),
        ("posthoc_ema_interval", "1"),
        ("save_interval", "2"),
        ("grad_clip", "0.5"),
        ("train.batch_size", "6"),
        ("microbatch", "1"),
    ];
    all.extend(other);
    settings(steps, &all)
}

#[test]
fn ranks_that_keep_a_part_of_the_optimizer_come_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let dir = |name: &str| folder.path().join(name);
    let alone = trained(&sharded("3", "false", &[]), &dir("alone"));
    let snapshots = |run: &str| tensors(&dir(run).join("ema"));
    for count in [1, 2, 3, 4] {
        let name = format!("shared-{count}");
        assert_same(&alone, &run_of(count, &dir(&name), &sharded("3", "true", &[])));
        assert!(snapshots(&name) == snapshots("alone"));
        assert_same(&dir("alone/checkpoints/step_000002"), &dir(&name).join("checkpoints/step_000002"));
    }
    // There and back.
    let changing = dir("changing");
    run_of(3, &changing, &sharded("1", "true", &[]));
    run_of(2, &changing, &sharded("2", "false", &[]));
    assert_same(&alone, &run_of(2, &changing, &sharded("3", "true", &[])));
    // More ranks than there are pieces of the parameters.
    let small = settings("2", &[]);
    let alone = trained(&small, &dir("small"));
    assert_same(&alone, &run_of(6, &dir("small-6"), &settings("2", &[("shard_optimizer", "true")])));
}

#[test]
fn a_part_of_the_optimizer_each_with_fast_sums_comes_near_and_diverges_together() {
    let folder = tempfile::tempdir().unwrap();
    let fast = sharded("2", "true", &[("reduction", "fast")]);
    let checkpoint = run_of(3, &folder.path().join("fast"), &fast);
    let alone = trained(&sharded("2", "false", &[]), &folder.path().join("alone"));
    for ((name, fast), (_, exact)) in tensors(&checkpoint).iter().zip(tensors(&alone)) {
        let far = floats(fast).zip(floats(&exact)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 1e-3, "{name}: {far}");
    }
    let results = shared(3, &folder.path().join("high"), |_| sharded("9", "true", &[("lr", "1e30")]), |_, _, _| {});
    assert!(results.iter().all(|result| matches!(result, Err(Error::Diverged { .. }))), "{results:?}");
}

#[test]
fn a_step_is_cut_by_ranks_where_nobody_says_how_and_stays_cut() {
    let folder = tempfile::tempdir().unwrap();
    let whole = |steps| settings(steps, &[("microbatch", "-1")]);
    run_of(2, folder.path(), &whole("2"));
    let newest = trained(&whole("4"), folder.path());
    let alone = trained(&settings("4", &[("microbatch", "15")]), &folder.path().join("alone"));
    assert!(tensors(&newest) == tensors(&alone));
}

#[test]
fn other_settings_and_images_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("run");
    let says = |config: &(dyn Fn(usize) -> Config + Sync), words: &[&str]| {
        for result in shared(3, &dir, config, |_, _, _| {}) {
            assert_says(result, words);
        }
        assert!(!dir.exists());
    };
    let other = |rank| settings("2", if rank == 2 { &[("lr", "0.5")] } else { &[] });
    says(&other, &["rank 2", "lr = 0.5", "same command"]);
    let black = folder.path().join("black");
    std::fs::create_dir(&black).unwrap();
    for i in 0..30 {
        image::GrayImage::new(8, 8).save(black.join(format!("{}_{i}.png", i % 10))).unwrap();
    }
    let black = black.to_str().unwrap();
    let images = |rank| {
        let data = if rank == 1 { black } else { "digits" };
        settings("2", &[("data_dir", data), ("class_cond", "false")])
    };
    says(&images, &["rank 1 has other images"]);
    says(
        &|_| settings("2", &[("train.batch_size", "2"), ("microbatch", "-1")]),
        &["3 processes cannot share", "batch of 2"],
    );
    says(&|_| settings("2", &[("microbatch", "15")]), &["30 images in 2 microbatches", "--microbatch 14"]);
}

#[test]
fn a_rank_that_stops_or_fails_ends_all() {
    let folder = tempfile::tempdir().unwrap();
    let stopped = folder.path().join("stopped");
    // Rank 0 alone hears of steps; whoever is told to stop, all do.
    let results = shared(
        3,
        &stopped,
        |_| settings("1000", &[]),
        |_, event, stop| {
            if matches!(event, Event::Step { step: 2, .. }) {
                stop.store(true, Ordering::Relaxed);
            }
        },
    );
    for result in results {
        assert_eq!(result.unwrap(), Outcome::Interrupted);
    }
    assert_eq!(ddpm_ip::checkpoint::Store::new(&stopped).newest().unwrap().unwrap().0, 2);
}
