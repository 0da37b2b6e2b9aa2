//! The kernels' sources, compiled for the GPU that is there and kept for the next start.

#![allow(unsafe_code, reason = "functions of C")]

use crate::error::{Error, Result};
use crate::ffi::Nvrtc;
use crate::kind::Type;
use sha2::{Digest, Sha256};
use std::ffi::{CString, c_char};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

/// In the order in which they follow each other.
const SOURCES: [&str; 10] = [
    include_str!("kernels/common.cuh"),
    include_str!("kernels/norm.cu"),
    include_str!("kernels/layout.cu"),
    include_str!("kernels/elementwise.cu"),
    include_str!("kernels/attention.cu"),
    include_str!("kernels/flash.cu"),
    include_str!("kernels/optim.cu"),
    include_str!("kernels/prepare.cu"),
    include_str!("kernels/rows.cu"),
    include_str!("kernels/diffusion.cu"),
];

/// Kernels that are compiled together, when one of them is first needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Those of no type.
    Plain,
    /// Those of a type.
    Typed(Type),
    /// Attention with so many channels a head.
    Attention(usize, Type),
}

impl Unit {
    /// The unit of a kernel.
    pub(crate) fn of(name: &str) -> Self {
        let kind = [Type::F32, Type::Bf16, Type::F16].into_iter().find(|kind| name.ends_with(kind.name()));
        match kind.filter(|kind| name.as_bytes()[name.len() - kind.name().len() - 1] == b'_') {
            None => Self::Plain,
            Some(kind) if name.starts_with("attention_") => {
                Self::Attention(if name.contains("_32_") { 32 } else { 64 }, kind)
            }
            Some(kind) => Self::Typed(kind),
        }
    }

    /// What tells the sources which it is.
    fn options(self) -> [String; 2] {
        let (unit, channels) = match self {
            Self::Plain => (1, 0),
            Self::Typed(Type::F32) => (2, 0),
            Self::Typed(Type::Bf16) => (3, 0),
            Self::Typed(Type::F16) => (4, 0),
            Self::Attention(channels, Type::F16) => (6, channels),
            Self::Attention(channels, _) => (5, channels),
        };
        [format!("-DUNIT={unit}"), format!("-DHEAD={channels}")]
    }
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

/// The kernels of a unit as a module for a compute capability.
pub(crate) fn kernels(nvrtc: &Nvrtc, unit: Unit, [major, minor]: [i32; 2], cache: Option<&Path>) -> Result<Vec<u8>> {
    let source = SOURCES.concat();
    // The same roundings as the processor's: no sums fused with products unasked.
    let mut options = vec!["--fmad=false".into(), "--std=c++17".into(), "--device-as-default-execution-space".into()];
    options.push(format!("--gpu-architecture=sm_{major}{minor}"));
    options.extend(unit.options());
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
    if let Some(file) = file {
        let _: std::io::Result<()> = write_whole(&file, &made);
    }
    Ok(made)
}

/// Writes a file so that it is never seen in part.
pub(crate) fn write_whole(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(bytes)?;
    new.persist(file).map(drop).map_err(|e| e.error)
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
