//! The kernels' sources, compiled for the GPU that is there and kept for the next start.

#![allow(unsafe_code, reason = "functions of C")]

use crate::error::{Error, Result};
use crate::ffi::Nvrtc;
use sha2::{Digest, Sha256};
use std::ffi::{CString, c_char};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

/// In the order in which they follow each other.
const SOURCES: [&str; 9] = [
    include_str!("kernels/common.cuh"),
    include_str!("kernels/norm.cu"),
    include_str!("kernels/layout.cu"),
    include_str!("kernels/elementwise.cu"),
    include_str!("kernels/attention.cu"),
    include_str!("kernels/optim.cu"),
    include_str!("kernels/prepare.cu"),
    include_str!("kernels/rows.cu"),
    include_str!("kernels/diffusion.cu"),
];

/// Kernels that exist for each type of activations, and those that do not.
macro_rules! names {
    ($($typed:literal)*; $($plain:literal)*) => {
        /// All kernels.
        pub(crate) const NAMES: &[&str] =
            &[$(concat!($typed, "_f32"), concat!($typed, "_bf16"), concat!($typed, "_f16"),)* $($plain),*];
    };
}

names! {
    "norm_sums" "norm_apply" "norm_grad_sums" "norm_grad_apply" "enter" "leave" "weights_in" "weights_out" "place" "take"
    "up" "down" "to_f32" "from_f32" "silu" "silu_grad" "relu" "relu_grad" "add" "add_rows" "sum_pixels" "spread_rows"
    "column_sums" "bias_residual" "pool" "softmax" "softmax_grad" "prepare";
    "norm_grad_film" "norm_grad_parameters" "column_sums_finish" "embed" "embed_grad" "tokens" "tokens_grad"
    "positions_grad" "first_token" "first_token_grad" "adamw" "sum_squares" "sum_partials" "accumulate" "product" "initial_noise" "mix_noise" "diffusion_loss" "reverse_step"
}

/// NVRTC's version.
pub(crate) fn version(nvrtc: &Nvrtc) -> Result<[i32; 2]> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are written.
    let code = unsafe { (nvrtc.nvrtcVersion)(&raw mut major, &raw mut minor) };
    checked("nvrtcVersion", code, String::new)?;
    Ok([major, minor])
}

fn checked(call: &'static str, code: i32, text: impl FnOnce() -> String) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Error::Call { call, code, text: text() }) }
}

/// The kernels as a module for a compute capability.
pub(crate) fn kernels(nvrtc: &Nvrtc, [major, minor]: [i32; 2], cache: Option<&Path>) -> Result<Vec<u8>> {
    let source = SOURCES.concat();
    // The same roundings as the processor's: no sums fused with products unasked.
    let options = [format!("--gpu-architecture=sm_{major}{minor}"), "--fmad=false".into(), "--std=c++17".into(), "--device-as-default-execution-space".into()];
    let of = version(nvrtc)?;
    let digest = Sha256::digest(format!("{of:?}{options:?}{source}"));
    let name = digest.iter().take(12).fold(String::from("kernels-"), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    });
    let file = cache.map(|folder| folder.join("cuda").join(format!("{name}.cubin")));
    if let Some(kept) = file.as_ref().and_then(|file| std::fs::read(file).ok()) {
        return Ok(kept);
    }
    let made = compile(nvrtc, &source, &options)?;
    // A cache that cannot be written costs the next start some seconds, no more.
    if let Some((file, folder)) = file.as_ref().and_then(|file| Some((file, file.parent()?))) {
        let write = || {
            std::fs::create_dir_all(folder)?;
            let mut new = tempfile::NamedTempFile::new_in(folder)?;
            new.write_all(&made)?;
            new.persist(file).map_err(|e| e.error)
        };
        let _: std::io::Result<_> = write();
    }
    Ok(made)
}

fn compile(nvrtc: &Nvrtc, source: &str, options: &[String]) -> Result<Vec<u8>> {
    let source = CString::new(source).expect("sources without zeros");
    let options: Vec<CString> = options.iter().map(|o| CString::new(o.as_str()).expect("options")).collect();
    let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
    let mut program = std::ptr::null_mut();
    let none = std::ptr::null();
    // SAFETY: texts live through the calls; buffers are as long as NVRTC says.
    unsafe {
        let code = (nvrtc.nvrtcCreateProgram)(&raw mut program, source.as_ptr(), c"kernels.cu".as_ptr(), 0, none, none);
        checked("nvrtcCreateProgram", code, String::new)?;
        let compiled = (nvrtc.nvrtcCompileProgram)(program, options.len() as i32, options.as_ptr());
        let log = || {
            let mut size = 0;
            (nvrtc.nvrtcGetProgramLogSize)(program, &raw mut size);
            let mut log = vec![0u8; size];
            (nvrtc.nvrtcGetProgramLog)(program, log.as_mut_ptr().cast());
            String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned()
        };
        checked("nvrtcCompileProgram", compiled, log)?;
        let mut size = 0;
        checked("nvrtcGetCUBINSize", (nvrtc.nvrtcGetCUBINSize)(program, &raw mut size), String::new)?;
        let mut cubin = vec![0u8; size];
        checked("nvrtcGetCUBIN", (nvrtc.nvrtcGetCUBIN)(program, cubin.as_mut_ptr().cast()), String::new)?;
        (nvrtc.nvrtcDestroyProgram)(&raw mut program);
        Ok(cubin)
    }
}
