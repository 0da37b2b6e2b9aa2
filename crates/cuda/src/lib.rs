//! NVIDIA GPUs for networks that are planned once and then run.
//!
//! Nothing of CUDA is needed to build this. When a [`Gpu`] is first asked for, the driver, NVRTC, cuBLASLt and cuDNN are
//! looked for on the machine; what is missing is said in the [`Error`], with what installs it. Convolutions are cuDNN's,
//! matrix products cuBLASLt's, both with engines whose results repeat bit for bit; all else are kernels of our own
//! (`src/kernels`), compiled for the GPU that is there and kept.
//!
//! Work is given in [turns](Gpu::turn), waits in one stream, and is done when [`Turn::wait`] returns. What is given again
//! and again is [recorded](Turn::record) once.

mod compile;
mod cublas;
mod cudnn;
mod error;
mod ffi;
mod gpu;
mod kind;
mod library;

pub use compile::Unit;
pub use cublas::{Factors, Matrix, Multiplication, Product};
pub use cudnn::{Convolution, ConvolutionPlan, Operands, Pass};
pub use error::{Error, Result};
pub use gpu::{
    Address, Arg, Buffer, Description, Event, Gpu, Graph, LibraryVersion, Mailbox, Pinned, Shape, Turn, driver_version,
    gpus, libraries,
};
pub use kind::Type;
