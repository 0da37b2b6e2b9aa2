//! What can go wrong with a GPU.

/// Why a GPU cannot be used, or no longer. Texts name what is wrong and what to do next.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A library is missing, too old, or belongs to another set.
    #[error("{library} {what}\n  {help}")]
    Library {
        /// What it is called.
        library: &'static str,
        /// What is wrong with it.
        what: String,
        /// What to do.
        help: String,
    },
    /// There is no such GPU.
    #[error("no GPU cuda:{index}: this machine has {}", match .count { 0 => "none".into(), 1 => "one, cuda:0".into(), n => format!("{n}, cuda:0 to cuda:{}", n - 1) })]
    Index {
        /// The one asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A kind of GPU on which nothing can run.
    #[error(
        "{name} is a kind of GPU, not a device of this machine: `train --dry-run` can plan for it, but nothing can \
         run on it"
    )]
    Absent {
        /// Its short name.
        name: &'static str,
    },
    /// Older than the kernels need.
    #[error(
        "cuda:{index}, {name}, has compute capability {major}.{minor}: at least 8.0 (Ampere, from 2020) is needed\n  \
         --device cpu computes on the CPU"
    )]
    Old {
        /// Which GPU.
        index: usize,
        /// Its name.
        name: String,
        /// Its compute capability, before the point.
        major: i32,
        /// After the point.
        minor: i32,
    },
    /// Too little memory.
    #[error(
        "the GPU has no memory for {wanted} MiB more ({free} of {total} MiB are free)\n  use a smaller --microbatch \
         or --batch-size, or --use-checkpoint true; `nvidia-smi` shows what else uses the GPU"
    )]
    Memory {
        /// What was asked for, in MiB.
        wanted: usize,
        /// What is free, in MiB.
        free: usize,
        /// What the GPU has, in MiB.
        total: usize,
    },
    /// The driver refused or broke.
    #[error("the GPU failed: {call} gave {name} ({text}){}", advice(*.code))]
    Driver {
        /// The function called.
        call: &'static str,
        /// Its answer.
        code: i32,
        /// The answer's name.
        name: String,
        /// What the driver says of it.
        text: String,
    },
    /// cuDNN, cuBLASLt, NVRTC or NCCL refused.
    #[error("{call} gave {code}: {text}")]
    Call {
        /// The function called.
        call: &'static str,
        /// Its answer.
        code: i32,
        /// What the library says of it.
        text: String,
    },
    /// cuDNN has no engine whose results repeat bit for bit.
    #[error("cuDNN has no deterministic engine for {what}: {why}")]
    NoEngine {
        /// The convolution.
        what: String,
        /// What the engines said.
        why: String,
    },
}

/// What a user can do about a broken GPU.
fn advice(code: i32) -> &'static str {
    match code {
        214 => "\n  an uncorrectable memory error (ECC): the GPU may need a reset or a replacement",
        719 | 700 | 716 | 717 => "\n  `ddpm-ip check --device cuda:0` tells whether this GPU computes what it should",
        803 | 804 => "\n  the driver does not fit the libraries: `ddpm-ip info --devices` shows the versions",
        999 | 79 => "\n  the GPU may have fallen off the bus: see `dmesg`",
        _ => "",
    }
}

/// The result of a call to a GPU.
pub type Result<T> = std::result::Result<T, Error>;
