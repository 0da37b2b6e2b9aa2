//! NVIDIA GPUs for networks that are planned once and then run.
//!
//! Nothing of CUDA is needed to build this. When a [`Gpu`] is first asked for, the driver, NVRTC, cuBLASLt and cuDNN are
//! looked for on the machine; what is missing is said in the [`Error`], with what installs it. Convolutions are cuDNN's,
//! matrix products cuBLASLt's, both with engines whose results repeat bit for bit; all else are kernels of our own
//! (`src/kernels`), compiled for the GPU that is there and kept.
//!
//! GPUs of several processes are joined by NCCL, as a [`Group`].
//!
//! For a [`Chip`] that is not there convolutions are planned as they are on one.
//!
//! Work is given in [turns](Gpu::turn), waits in one stream, and is done when [`Turn::wait`] returns. What is given again
//! and again is [recorded](Turn::record) once.

mod chip;
mod compile;
mod cublas;
mod cudnn;
mod driver;
mod error;
mod ffi;
mod gpu;
mod group;
mod kind;
mod library;
mod memory;
mod turn;

pub use chip::Chip;
pub use compile::Unit;
pub use cublas::{Factors, Matrix, Multiplication, Product, WORKSPACE};
pub use cudnn::{Convolution, ConvolutionPlan, Operands, Pass, Planned};
pub use driver::{Description, LibraryVersion, driver_version, gpus, libraries};
pub use error::{Error, Result};
pub use gpu::Gpu;
pub use group::{Group, GroupId};
pub use kind::Type;
pub use memory::{Address, Buffer, Mailbox, Note, Pinned};
pub use turn::{Arg, Event, Graph, Shape, Turn};
