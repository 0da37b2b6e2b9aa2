//! Train and sample diffusion models with input perturbation (DDPM-IP, arXiv 2301.11706).
//!
//! The reference is `forever208/DDPM-IP`; the mathematics is in `ddpm-math`, the networks are in `ddpm-net`, their loops in
//! `ddpm-kernels`. This crate never touches a terminal: long work emits [`Event`]s and stops when a flag is set.
//!
//! ```
//! use ddpm_ip::config::{ConfigError, Layers, Preset};
//! use ddpm_ip::{memory, train};
//!
//! // Later layers win: a preset, then settings on top of it.
//! let mut layers = Layers::default();
//! layers.add(Preset::find("digits")?.table())?;
//! layers.set([("perturbation.gamma", "0.15"), ("model.num_classes", "10")])?;
//! let config = layers.resolve()?;
//! config.validate()?;
//! assert_eq!((config.perturbation.gamma, config.train.batch_size), (0.15, 64));
//!
//! // What a training step would hold: parameters, moments, averages, activations.
//! let parameters = train::parameter_count(&config)?;
//! assert!(memory::of_training(&config, ddpm_ip::Device::Cpu)?.total() > 4 * 4 * parameters);
//! # Ok::<(), ConfigError>(())
//! ```
//!
//! | module | holds |
//! | --- | --- |
//! | [`config`] | every setting of a run, presets, layering |
//! | [`data`] | images on their way to the network |
//! | [`prepare`] | published data sets into npz files and folders of PNGs |
//! | [`net`] | the networks and the engine that runs them, a crate of its own |
//! | [`diffusion`] | noising, losses and reverse steps on batches of images |
//! | [`low_res`] | small images as a super-resolution network sees them |
//! | [`train`] | the training loop and its hooks |
//! | [`sample`] | chains and files of samples |
//! | [`nll`] | likelihoods in bits per dimension |
//! | [`checkpoint`] | saved runs |
//! | [`posthoc`] | averages of other lengths, made from those that a run has saved |
//! | [`evaluate`], [`weights`] | distances between images; weights of feature networks |
//! | [`report`](mod@report), [`compare`] | runs as a page; variants trained, sampled, measured and shown |
//! | [`predict`], [`info`] | one network call; what a file is |
//! | [`bench`](mod@bench), [`memory`] | how fast this machine trains and samples, and how much memory that takes |
//! | [`ranks`] | processes that share a run |
//! | [`convolutions`] | engines of a kind of GPU that is not there |
//! | [`torch`], [`npz`] | PyTorch's files, NumPy's archives: of `ddpm-formats`, a crate of its own |
//! | [`convert`], [`file`](mod@file), [`words`] | from one kind of checkpoint to another; files that are whole or not there; numbers for people |

pub mod bench;
pub mod bias;
pub mod check;
pub mod checkpoint;
pub mod compare;
pub mod config;
pub mod convert;
pub mod convolutions;
pub mod data;
mod device;
pub mod diffusion;
mod error;
pub mod evaluate;
mod event;
pub mod file;
pub mod info;
pub mod low_res;
pub mod memory;
pub mod nll;
mod partial;
mod plot;
pub mod posthoc;
pub mod predict;
pub mod prepare;
pub mod ranks;
mod record;
pub mod report;
pub mod sample;
pub mod train;
pub mod weights;
pub mod words;

pub use ddpm_formats::{npz, torch};
pub use ddpm_net::{self as net, Device};
pub use device::{device, devices, has_tiles, instruction_set, instruction_sets};
pub use error::Error;
pub use event::{Emit, Event, Outcome};
