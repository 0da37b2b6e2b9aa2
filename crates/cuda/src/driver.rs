//! The driver: calls of it, and what it says of the machine.

#![allow(unsafe_code, reason = "functions of C")]

use crate::compile;
use crate::error::{Error, Result};
use crate::ffi::Driver;
use crate::library;
use std::ffi::{CStr, c_int};
use std::path::PathBuf;

/// What is known of a GPU before it is used.
#[derive(Clone, Debug)]
pub struct Description {
    /// Its place among the machine's GPUs.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Bytes of memory.
    pub memory: usize,
    /// Compute capability.
    pub capability: [i32; 2],
    /// Multiprocessors.
    pub multiprocessors: i32,
}

/// A library that was found.
#[derive(Clone, Debug)]
pub struct LibraryVersion {
    /// What it is called.
    pub name: &'static str,
    /// Its version.
    pub version: String,
    /// Where it lies.
    pub path: PathBuf,
}

/// What a call gave, if it failed.
pub(crate) fn checked(driver: &Driver, call: &'static str, code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let text = |function: unsafe extern "C" fn(c_int, *mut *const std::ffi::c_char) -> c_int| {
        let mut text = std::ptr::null();
        // SAFETY: the driver gives a text of its own, or leaves the pointer.
        unsafe {
            function(code, &raw mut text);
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        }
    };
    Err(Error::Driver { call, code, name: text(driver.cuGetErrorName), text: text(driver.cuGetErrorString) })
}

/// Calls a function of the driver.
macro_rules! call {
    ($driver:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        let driver = $driver;
        // SAFETY: pointers are valid for the call, handles are the driver's own.
        let code = unsafe { (driver.$function)($($argument),*) };
        $crate::driver::checked(driver, stringify!($function), code)
    }};
}
pub(crate) use call;

/// The GPUs of this machine.
///
/// # Errors
/// No driver, or one that refuses.
pub fn gpus() -> Result<Vec<Description>> {
    let driver = &library::driver()?.functions;
    match call!(driver, cuInit(0)) {
        // A driver that has none to drive.
        Err(Error::Driver { code: 100, .. }) => return Ok(Vec::new()),
        begun => begun?,
    }
    let mut count = 0;
    call!(driver, cuDeviceGetCount(&raw mut count))?;
    (0..count)
        .map(|index| {
            let (mut device, mut name, mut memory) = (0, [0i8; 128], 0);
            call!(driver, cuDeviceGet(&raw mut device, index))?;
            call!(driver, cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int, device))?;
            call!(driver, cuDeviceTotalMem_v2(&raw mut memory, device))?;
            let attribute = |which| {
                let mut value = 0;
                call!(driver, cuDeviceGetAttribute(&raw mut value, which, device)).map(|()| value)
            };
            // SAFETY: the driver ends the name with a zero.
            let name = unsafe { CStr::from_ptr(name.as_ptr().cast()) }.to_string_lossy().into_owned();
            let capability = [attribute(75)?, attribute(76)?];
            Ok(Description { index: index as usize, name, memory, capability, multiprocessors: attribute(16)? })
        })
        .collect()
}

/// The newest CUDA that the driver serves, and where it lies.
///
/// # Errors
/// No driver.
pub fn driver_version() -> Result<([i32; 2], PathBuf)> {
    let found = library::driver()?;
    let mut version = 0;
    call!(&found.functions, cuDriverGetVersion(&raw mut version))?;
    Ok(([version / 1000, version % 1000 / 10], found.path.clone()))
}

/// The libraries that would serve this machine's driver.
///
/// # Errors
/// One that is missing or does not fit.
pub fn libraries() -> Result<Vec<LibraryVersion>> {
    let set = library::set(driver_version()?.0[0])?;
    let (cudnn, _) = set.cudnn.functions.versions();
    // SAFETY: it only answers.
    let cublas = unsafe { (set.cublas.functions.cublasLtGetVersion)() };
    let [major, minor] = compile::version(&set.nvrtc.functions)?;
    Ok(vec![
        LibraryVersion { name: "cuDNN", version: dotted(cudnn), path: set.cudnn.path.clone() },
        LibraryVersion { name: "cuBLASLt", version: dotted(cublas), path: set.cublas.path.clone() },
        LibraryVersion { name: "NVRTC", version: format!("{major}.{minor}"), path: set.nvrtc.path.clone() },
    ])
}

/// A version of cuDNN or cuBLASLt as people write it.
pub(crate) fn dotted(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version % 10_000 / 100, version % 100)
}
