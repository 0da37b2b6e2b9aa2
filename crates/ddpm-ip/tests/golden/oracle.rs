//! The gradients of one step and the losses of 50, for every family of networks, as the program computed them on Burn's
//! tensors before it had an engine of its own: what that has to give as well.
//!
//! `tests/golden/oracle/NAME.npz` holds some values of every parameter's gradient and the losses, from that program's kernels
//! for AVX-512, AVX2 and any machine: how far the others lie from the first says how far off rounding may be. In f32 AVX2 and
//! AVX-512 gave the same bits; the portable path, which has no fused multiply-adds, did not. In bf16 the tiles of AMX do not use
//! Winograd's algorithm, whose roundings those results have: they may lie 1.25 times as far from f32 as those at most.

use super::support::weights;
use ddpm_ip::checkpoint::State;
use ddpm_ip::config::{Arch, Config, Precision};
use ddpm_ip::data::Batch;
use ddpm_ip::net::{Device, Parameters};
use ddpm_ip::npz::Npz;
use ddpm_ip::train::{Task, Trainer};
use ddpm_math::{Domain, Stream};
use std::path::{Path, PathBuf};

/// Name, images of a batch, and settings of a family beside those of [`COMMON`].
const FAMILIES: [(&str, usize, &str); 11] = [
    (
        "adm",
        6,
        "model = { num_head_channels = 16, use_new_attention_order = true, resblock_updown = true, dropout = 0.1, \
         class_cond = true, num_classes = 3 }
         diffusion = { noise_schedule = 'cosine', variance = 'learned-range', loss = 'rescaled-mse' }
         perturbation = { gamma = 0.15 }",
    ),
    (
        "recomputed",
        6,
        "model = { num_head_channels = 16, use_new_attention_order = true, resblock_updown = true, dropout = 0.1, \
         use_checkpoint = true }
         diffusion = { variance = 'learned-range', loss = 'mse' }
         perturbation = { gamma = 0.2, mode = 'equivalent' }
         train = { microbatch = 4, schedule_sampler = 'loss-second-moment', grad_clip = 0.5 }",
    ),
    (
        "shifted",
        5,
        "model = { num_heads = 2, use_scale_shift_norm = false, channel_mult = [1.0, 2.0] }
         diffusion = { prediction = 'x-start', variance = 'fixed-small' }",
    ),
    (
        "pooled",
        5,
        "model = { num_heads = 1, conv_resample = false, dropout = 0.2 }
         diffusion = { prediction = 'previous-x', variance = 'learned', loss = 'kl', diffusion_steps = 50 }",
    ),
    (
        "bound",
        5,
        "diffusion = { variance = 'fixed-large', loss = 'rescaled-kl', diffusion_steps = 20, noise_schedule = 'cosine' }
         train = { weight_decay = 0.05 }",
    ),
    ("superres", 4, "model = { arch = 'superres', small_size = 4 }"),
    ("ddim", 5, "model = { arch = 'ddim', dropout = 0.1 }\ndiffusion = { loss = 'sum-mse' }"),
    ("shards", 40, "model = { in_channels = 1, num_channels = 32 }\nperturbation = { gamma = 0.1 }"),
    ("attention_head", 6, "model = { arch = 'classifier' }\nclassifier = { pool = 'attention' }"),
    ("adaptive_head", 6, "model = { arch = 'classifier' }\nclassifier = { pool = 'adaptive', resblock_updown = false }"),
    ("spatial_heads", 6, "model = { arch = 'classifier' }\nclassifier = { pool = 'spatial_v2' }"),
];

const COMMON: &str = "
    model = { image_size = 8, num_channels = 32, num_res_blocks = 1, channel_mult = [1.0, 1.0], attention_resolutions = [4] }
    classifier = { width = 32, depth = 1, channel_mult = [1.0, 1.0], attention_resolutions = [4], num_head_channels = 16, \
    num_classes = 4 }
    train = { lr = 1e-4, ema_rate = [0.99], seed = 5 }";

/// The families whose gradients and losses are also held in a precision other than f32.
const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Bf16x3, Precision::Bf16];

/// The most values of a parameter that are held.
const HELD: usize = 24;

const STEPS: usize = 50;

/// Half of what is allowed at least, of the norm. That program summed an image's losses in f32: some units in the last place
/// more or less, step after step. In bf16 one value early in a network that
/// is rounded up instead of down moves all gradients by some thousandths, as instruction sets do in most families; in `pooled`
/// they happen to round alike.
fn rounding(precision: Precision) -> f64 {
    match precision {
        Precision::Bf16x3 if ddpm_ip::has_tiles() => 2e-5,
        _ if precision.kept() == Precision::F32 => 4e-7,
        _ => 3e-3,
    }
}

fn config(own: &str, precision: Precision) -> Config {
    let mut table: toml::Table = COMMON.parse().unwrap();
    for (section, keys) in own.parse::<toml::Table>().unwrap() {
        let keys = keys.as_table().unwrap().clone();
        table.entry(section).or_insert_with(|| toml::Table::new().into()).as_table_mut().unwrap().extend(keys);
    }
    let mut config: Config = table.try_into().unwrap();
    (config.model.precision, config.classifier.precision) = (precision, precision);
    config
}

fn trainer(config: &Config) -> Trainer {
    let task = Task::new(config, Device::Cpu).unwrap();
    let start = Parameters::from_values(task.layout(), &weights(task.specs(), "oracle"));
    Trainer::new(config.clone(), task, Some(State::new(start, &config.train))).unwrap()
}

fn batch(config: &Config, count: usize, step: usize) -> Batch {
    let position = (step * count) as u64;
    let mut images = vec![0.0; count * config.model.in_channels * config.model.image_size.pow(2)];
    Stream::new(9, Domain::Order, position, 0).fill_normal(&mut images);
    for v in &mut images {
        *v = (*v * 0.6).clamp(-1.0, 1.0);
    }
    let classes = config.model.num_classes.max(3) as u32;
    let has_classes = config.model.class_cond || config.model.arch == Arch::Classifier;
    Batch { images, labels: has_classes.then(|| (0..count as u32).map(|i| i % classes).collect()), position }
}

/// Some values of every parameter's gradient, and the losses.
fn compute(config: &Config, count: usize, steps: usize) -> [Vec<f32>; 2] {
    // With these decay rates the first moment is the gradient.
    let mut of_gradient = config.clone();
    (of_gradient.train.adam_betas, of_gradient.train.grad_clip) = ([0.0, 0.999], 0.0);
    let mut one = trainer(&of_gradient);
    one.train_step(&batch(config, count, 0)).unwrap();
    let gradient = one.state().moments[0].to_values();
    let held = gradient.iter().flat_map(|g| g.iter().step_by(g.len().div_ceil(HELD)).copied()).collect();
    let mut all = trainer(config);
    let losses =
        (0..steps).map(|step| all.train_step(&batch(config, count, step)).unwrap().mean_loss() as f32).collect();
    [held, losses]
}

/// The repository's file of a family: other folders of golden cases have none.
fn held(family: &str, precision: Precision) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/oracle");
    folder.join(format!("{family}_{}.npz", precision.kept().name()))
}

/// The place of the portable kernels' results among those that are held.
const PORTABLE: usize = 2;

/// Which of the held results are those of this process's instruction set.
fn own_kernels() -> usize {
    match ddpm_ip::instruction_set().unwrap() {
        "avx2" => 1,
        "portable" | "neon" => PORTABLE,
        _ => 0,
    }
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn golden_oracle() {
    for (family, count, own) in FAMILIES {
        // Where there are no tiles, bf16x3 is f32.
        for precision in PRECISIONS.into_iter().filter(|&p| p != Precision::Bf16x3 || ddpm_ip::has_tiles()) {
            let mut file = Npz::open(&held(family, precision)).unwrap();
            // Products in bf16 are emulated by the portable kernels, and tiles may be.
            let steps = if own_kernels() == PORTABLE || ddpm_ip::has_tiles() { STEPS / 5 } else { STEPS };
            let found = compute(&config(own, precision), count, steps);
            for (what, found) in ["gradient", "losses"].iter().zip(&found) {
                let mut read = |isa: &str| {
                    let mut values = file.floats(&format!("{isa}_{what}")).unwrap().values;
                    values.truncate(found.len());
                    values
                };
                let all = ["avx512", "avx2", "portable"].map(&mut read);
                let in_tiles = precision == Precision::Bf16 && ddpm_ip::has_tiles();
                let near = if in_tiles {
                    let mut exact = Npz::open(&held(family, Precision::F32)).unwrap();
                    let mut values = exact.floats(&format!("avx512_{what}")).unwrap().values;
                    values.truncate(found.len());
                    values
                } else {
                    all[own_kernels()].clone()
                };
                assert_eq!(found.len(), near.len(), "{family} {precision:?}: number of values of {what}");
                let apart = |other: &[f32]| norm(near.iter().zip(other).map(|(a, b)| a - b));
                let size = norm(near.iter().copied());
                let others = all.iter().map(|other| apart(other)).fold(0.0, f64::max);
                let allowed = if in_tiles { 1.25 * others } else { 2.0 * others.max(rounding(precision) * size) };
                let off = apart(found);
                println!("{family} {precision:?} {what}: off by {:.2e}, {:.2e} allowed", off / size, allowed / size);
                assert!(
                    off <= allowed,
                    "{family} {precision:?}: {what} off by {off:e} of {size:e}, {allowed:e} allowed"
                );
                if precision == Precision::F32 && *what == "gradient" {
                    let most = near.iter().fold(0.0f32, |most, v| most.max(v.abs()));
                    let worst = near.iter().zip(found).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
                    assert!(worst <= 1e-5 * most, "{family}: a value is off by {worst:e}, the largest is {most:e}");
                }
            }
        }
    }
}
