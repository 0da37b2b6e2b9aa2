//! How much memory training and sampling take, before they do, and how much there is.

use crate::Device;
use crate::config::{Config, ConfigError, SampleConfig};
use crate::train::Task;
use ddpm_net::{Accumulator, GradientPlace, PlanMemory, Purpose};
use serde::Serialize;
use std::path::Path;

/// Bytes of the program itself and of what is small.
const PROGRAM: usize = 12 << 20;

/// Bytes of one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// Its bytes.
    pub bytes: usize,
}

/// Bytes of all that is in memory at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The parts, in a fixed order.
    pub parts: Vec<Part>,
}

impl Memory {
    /// All parts together.
    pub fn total(&self) -> usize {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    fn add(&mut self, name: &'static str, bytes: usize) {
        if bytes > 0 {
            self.parts.push(Part { name, bytes });
        }
    }
}

fn plan(task: &Task, n: usize, config: &Config, purpose: Purpose) -> PlanMemory {
    let (size, threads) = ([config.model.image_size; 2], rayon::current_num_threads());
    match task {
        Task::Diffusion(engine) => engine.memory(n, size, purpose, threads),
        Task::Classifier(engine) => engine.memory(n, size, purpose, threads),
    }
}

/// What a training step of one of so many processes holds with microbatches of so many images: its data set and loader apart.
fn training(config: &Config, task: &Task, microbatch: usize, ranks: usize) -> Memory {
    let parts = if config.train.shard_optimizer { ranks } else { 1 };
    let parameters = 4 * task.parameter_count();
    let batch = config.train.batch_size;
    let pieces = task.shards().count(microbatch.min(batch));
    let penalised = config.train.gradient_penalty > 0.0;
    // The gradient penalty takes a second gradient of each microbatch.
    let gradients = batch.div_ceil(microbatch) * if penalised { 2 } else { 1 };
    // A GPU gives the gradient a buffer of its own.
    let inside = pieces * gradients == 1 && task.device() == Device::Cpu;
    let place = if inside { GradientPlace::Inside } else { GradientPlace::Outside };
    let plan = plan(task, microbatch.min(batch), config, Purpose::Training(place));
    let mut memory = Memory::default();
    memory.add("program", PROGRAM);
    memory.add("parameters", parameters);
    memory.add("moments", 2 * parameters / parts);
    memory.add("averages", (config.train.ema_rate.len() + config.train.posthoc_ema.len()) * parameters / parts);
    if place == GradientPlace::Outside {
        // Of the pieces of a microbatch as many as run at once, and the partial sums of those before.
        let held = Accumulator::most_held(gradients) - 1 + Accumulator::most_held(pieces) + plan.arenas - 1;
        memory.add("gradients and their partial sums", held * parameters);
        memory.add("activations", plan.arenas * plan.arena);
    } else {
        memory.add("activations, the gradient over them", plan.arena);
    }
    memory.add("scratch of kernels", plan.scratch);
    let image = 4 * config.model.in_channels * config.model.image_size.pow(2);
    // Clean and noisy images, draws and targets; with the gradient penalty images and outputs a step apart, and slopes.
    let copies = if penalised { 8 } else { 4 };
    memory.add("images and noise of a step", (4 * batch + copies * microbatch.min(batch)) * image);
    memory
}

/// What a training step of a configuration holds on a device at most, its data set and loader apart.
///
/// # Errors
/// Flags that describe no network.
pub fn of_training(config: &Config, device: Device) -> Result<Memory, ConfigError> {
    let task = Task::new(config, device)?;
    Ok(training(config, &task, config.train.microbatch_size(), 1))
}

/// What a sampling step of a configuration's `sample.batch_size` images holds on a device at most.
///
/// # Errors
/// Flags that describe no network.
pub fn of_sampling(config: &Config, device: Device) -> Result<Memory, ConfigError> {
    let task = Task::new(config, device)?;
    let batch = config.sample.batch_size;
    let plan = plan(&task, batch, config, Purpose::Output);
    let mut memory = Memory::default();
    memory.add("program", PROGRAM);
    memory.add("parameters", 4 * task.parameter_count());
    memory.add("activations", plan.arenas * plan.arena);
    memory.add("packed weights", plan.packed);
    memory.add("scratch of kernels", plan.scratch);
    memory.add("images and noise of a step", 6 * batch * 4 * config.model.in_channels * config.model.image_size.pow(2));
    Ok(memory)
}

/// What the images take beside a step: the whole set where it is in memory, and batches that are decoded ahead.
pub(crate) fn of_data(config: &Config, in_memory: usize, ahead: usize) -> Memory {
    let batch = 4 * config.train.batch_size * config.model.in_channels * config.model.image_size.pow(2);
    let mut memory = Memory::default();
    memory.add("data set", in_memory);
    memory.add("batches ahead", (ahead + 1) * batch);
    memory
}

/// Memory of the machine, or of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What it is the memory of, in words.
    pub name: &'static str,
    /// Bytes that this process may have at most: the machine's, or what it or its group of processes is allowed.
    pub total: usize,
    /// Bytes that are free at the moment.
    pub free: usize,
}

impl Machine {
    /// What each of so many processes has of it.
    pub(crate) fn share(self, processes: usize) -> Self {
        Self { name: "this process's share of the machine", total: self.total / processes, free: self.free / processes }
    }
}

/// What the machine has, where the system says it.
pub fn of_machine() -> Option<Machine> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = |name: &str| {
        let value = info.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().strip_suffix("kB")?.trim().parse::<usize>().ok().map(|kib| kib * 1024)
    };
    let (total, free) = (line("MemTotal:")?, line("MemAvailable:")?);
    let limit = group_limit(Path::new("/sys/fs/cgroup"), &std::fs::read_to_string("/proc/self/cgroup").ok()?);
    let own = std::fs::read_to_string("/proc/self/limits").ok().and_then(|text| process_limit(&text));
    let total = limit.into_iter().chain(own).fold(total, usize::min);
    Some(Machine { name: "this machine", total, free: free.min(total) })
}

/// What the process may have by the limits set for it (`ulimit -v`), of a text as in `/proc/self/limits`.
fn process_limit(limits: &str) -> Option<usize> {
    let of =
        |name: &str| limits.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok();
    ["Max address space", "Max data size"].into_iter().filter_map(of).min()
}

/// What a device has, where the system says it.
pub fn of_device(device: Device) -> Option<Machine> {
    match device {
        Device::Cpu => of_machine(),
        Device::Cuda(gpu) => {
            let [free, total] = gpu.memory().ok()?;
            Some(Machine { name: "the GPU", total, free })
        }
        Device::Chip(chip) => {
            // The driver keeps a part of what the data sheet says.
            let all = chip.memory() - chip.memory() / 32;
            Some(Machine { name: chip.full_name(), total: all, free: all })
        }
    }
}

/// What the process's group may have: the least of its own limit and those of the groups around it, by either version of
/// control groups.
fn group_limit(root: &Path, groups: &str) -> Option<usize> {
    let limits = groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (controllers, path) = (fields.nth(1).unwrap_or_default(), fields.next().unwrap_or("/"));
        let (root, file) = match controllers {
            "" => (root.to_path_buf(), "memory.max"),
            named if named.split(',').any(|c| c == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
            _ => return Vec::new(),
        };
        let inside = Path::new(path.trim_start_matches('/'));
        let read =
            |group: &Path| std::fs::read_to_string(root.join(group).join(file)).ok()?.trim().parse::<usize>().ok();
        inside.ancestors().filter_map(read).collect::<Vec<_>>()
    });
    limits.min()
}

/// What is to be said about a training step before it begins: an error if the machine cannot hold it, a remark if not enough
/// is free.
pub(crate) fn check(
    config: &Config,
    task: &Task,
    data: &Memory,
    machine: Option<Machine>,
    ranks: usize,
) -> Result<Option<String>, ConfigError> {
    let Some(machine) = machine else { return Ok(None) };
    let microbatch = config.train.microbatch_size().min(config.train.batch_size);
    let needed = |microbatch| training(config, task, microbatch, ranks).total() + data.total();
    let all = needed(microbatch);
    let gib = |bytes: usize| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    // Halves of the batch, as far as they help.
    let fitting = |most: usize| {
        std::iter::successors(Some(microbatch / 2), |n| Some(n / 2)).take_while(|&n| n > 0).find(|&n| needed(n) <= most)
    };
    if all <= machine.free {
        return Ok(None);
    }
    if all <= machine.total {
        let advice = fitting(machine.free).map_or(String::new(), |n| format!(", or --microbatch {n} fits"));
        return Ok(Some(format!(
            "a training step needs about {}, but only {} of the memory of {} are free: other programs may have to \
             make room{advice}",
            gib(all),
            gib(machine.free),
            machine.name
        )));
    }
    let advice = match fitting(machine.total) {
        Some(n) => format!("--microbatch {n} fits ({})", gib(needed(n))),
        None => "no --microbatch fits: use a smaller network, --precision bf16 or --use-checkpoint".into(),
    };
    Err(ConfigError(format!(
        "a training step of {microbatch} images needs about {}, but {} has {}: {advice}. --ignore-memory-limit runs \
         it anyway",
        gib(all),
        machine.name,
        gib(machine.total)
    )))
}

/// What is to be said about a sampling step on the processor before it begins, as [`check`] says it of training.
pub(crate) fn check_sampling(config: &Config, machine: Option<Machine>) -> Result<Option<String>, ConfigError> {
    let Some(machine) = machine else { return Ok(None) };
    let needed = |batch: usize| {
        let sample = SampleConfig { batch_size: batch, ..config.sample.clone() };
        of_sampling(&Config { sample, ..config.clone() }, Device::Cpu).map(|memory| memory.total())
    };
    let batch = config.sample.batch_size.min(config.sample.num_samples);
    let all = needed(batch)?;
    if all <= machine.free {
        return Ok(None);
    }
    let gib = |bytes: usize| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    let mut fitting = None;
    let mut smaller = batch / 2;
    while smaller > 0 && fitting.is_none() {
        fitting = Some(smaller).filter(|&n| needed(n).is_ok_and(|bytes| bytes <= machine.free));
        smaller /= 2;
    }
    let advice = match fitting {
        Some(n) => format!("--batch-size {n} fits"),
        None => "no --batch-size fits: use a smaller network".into(),
    };
    let step = format!("drawing {batch} images together needs about {}", gib(all));
    if all <= machine.total {
        return Ok(Some(format!(
            "{step}, but only {} of the memory of {} are free: {advice}",
            gib(machine.free),
            machine.name
        )));
    }
    Err(ConfigError(format!("{step}, but {} has {}: {advice}", machine.name, gib(machine.total))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_all_groups_counts() {
        let root = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
            std::fs::write(path, text).expect("a file");
        };
        write("memory.max", "max\n");
        write("outer/memory.max", "5000\n");
        write("outer/inner/memory.max", "7000\n");
        assert_eq!(group_limit(root.path(), "0::/outer/inner\n"), Some(5000));
        assert_eq!(group_limit(root.path(), "0::/\n"), None);
        write("memory/group/memory.limit_in_bytes", "3000\n");
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax data size   unlimited  unlimited  bytes\n\
                      Max address space  4096  unlimited  bytes\n";
        assert_eq!(process_limit(limits), Some(4096));
        assert_eq!(group_limit(root.path(), "4:cpu:/x\n3:memory:/group\n"), Some(3000));
    }

    #[test]
    fn a_step_that_is_too_large_is_refused_with_what_fits() {
        let mut config = Config::default();
        config.model = crate::config::ModelConfig {
            image_size: 16,
            in_channels: 1,
            num_channels: 32,
            channel_mult: vec![1.0, 1.0],
            num_res_blocks: 1,
            ..config.model
        };
        config.train.batch_size = 256;
        let task = Task::new(&config, ddpm_net::Device::default()).expect("a network");
        let check = |config: &Config, total, free| {
            super::check(config, &task, &Memory::default(), Some(Machine { name: "this machine", total, free }), 1)
        };
        let all = training(&config, &task, 256, 1).total();
        // Moments and one average, of which each of two processes keeps a half.
        config.train.shard_optimizer = true;
        let (parameters, kept) = (4 * task.parameter_count(), 2 + config.train.ema_rate.len());
        assert_eq!(all - training(&config, &task, 256, 2).total(), kept * parameters / 2);
        assert_eq!(all, training(&config, &task, 256, 1).total());
        assert_eq!(check(&config, all, all).expect("enough"), None);
        assert!(check(&config, all, all / 2).expect("enough in all").expect("a remark").contains("are free"));
        let refused = check(&config, all - 1, all - 1).expect_err("too little").0;
        assert!(refused.contains("--microbatch 128") || refused.contains("--microbatch 64"), "{refused}");
        assert!(check(&config, 1 << 20, 1 << 20).expect_err("too little").0.contains("no --microbatch fits"));
        assert_eq!(super::check(&config, &task, &Memory::default(), None, 1).expect("unknown"), None);
    }
}
