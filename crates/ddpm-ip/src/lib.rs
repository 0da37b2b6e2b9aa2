//! Train and sample diffusion models with input perturbation (DDPM-IP, arXiv 2301.11706).
//!
//! The reference is `forever208/DDPM-IP`; the mathematics without tensors is in `ddpm-math`, the hot path's operations
//! in `ddpm-kernels`. This crate never touches a terminal: long work emits [`Event`]s and stops when a flag is set.
//!
//! | module | holds |
//! | --- | --- |
//! | [`config`] | every setting of a run, presets, layering |
//! | [`data`] | images on their way to the network |
//! | [`prepare`] | published data sets into npz files and folders of PNGs |
//! | [`model`] | the networks |
//! | [`diffusion`] | noising, losses and reverse steps on tensors |
//! | [`train`] | the training loop and its hooks |
//! | [`sample`] | chains and files of samples |
//! | [`nll`] | likelihoods in bits per dimension |
//! | [`checkpoint`] | saved runs |
//! | [`evaluate`], [`weights`] | distances between images; weights of feature networks |
//! | [`predict`], [`info`] | one network call; what a file is |
//! | [`bench`] | how fast this machine trains and samples |
//! | [`torch`], [`convert`] | PyTorch's files, and from one kind of checkpoint to another |
//! | [`npz`], [`file`] | NumPy's archives; files that are whole or not there |

pub mod bench;
pub mod checkpoint;
pub mod config;
pub mod convert;
pub mod data;
mod device;
pub mod diffusion;
mod error;
pub mod evaluate;
mod event;
pub mod file;
pub mod info;
pub mod model;
pub mod nll;
pub mod npz;
mod partial;
pub mod predict;
pub mod prepare;
pub mod sample;
pub mod torch;
pub mod train;
pub mod weights;

pub use burn::tensor::Device;
pub use device::{device, device_names, instruction_set, instruction_sets, prepare_process};
pub use error::Error;
pub use event::{Emit, Event, Outcome};
