//! Where NVIDIA's libraries are, found when a GPU is first asked for.
//!
//! One build serves CUDA 12 and 13: each library is opened by its full name. A set is taken whole, that of the driver's
//! major version first, from what the loader knows (the system, `LD_LIBRARY_PATH`), a Python environment's `nvidia` folders
//! (whoever has PyTorch has them all), or `CUDA_HOME`.

#![allow(unsafe_code, reason = "libraries are loaded")]

use crate::driver::dotted;
use crate::error::{Error, Result};
use crate::ffi::{CublasLt, Cudnn, Driver, Nccl, Nvrtc};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A library with where it was found.
pub(crate) struct Found<F> {
    pub(crate) functions: F,
    pub(crate) path: PathBuf,
}

/// Versions of the driver that serve each major version of CUDA.
const DRIVERS: [(i32, &str); 2] = [(13, "580.65"), (12, "525.60")];

const DRIVER_NAME: &str = "the NVIDIA driver (libcuda.so.1)";

/// The driver.
pub(crate) fn driver() -> Result<&'static Found<Driver>> {
    static DRIVER: OnceLock<Result<Found<Driver>>> = OnceLock::new();
    let load = || {
        let help = format!(
            "on a machine with an NVIDIA GPU install its driver, {} or newer: `sudo apt install nvidia-driver-580`",
            DRIVERS[1].1
        );
        let (library, path) = open_driver(&help)?;
        let missing = |what| Error::Library { library: DRIVER_NAME, what, help };
        Ok(Found { functions: Driver::new(library).map_err(missing)?, path })
    };
    DRIVER.get_or_init(load).as_ref().map_err(Clone::clone)
}

fn open_driver(help: &str) -> Result<(libloading::Library, PathBuf)> {
    let missing = |what| Error::Library { library: DRIVER_NAME, what, help: help.into() };
    open(&["libcuda.so.1".into(), "/usr/lib/wsl/lib/libcuda.so.1".into()]).map_err(missing)
}

/// The set to plan with where no GPU is asked for: of the newest CUDA that is there. Some of cuDNN's libraries are linked to the
/// driver's, and it plans nothing where they cannot be loaded; whether there is a GPU is all the same.
pub(crate) fn set_to_plan() -> Result<&'static Set> {
    static DRIVER: OnceLock<Result<(libloading::Library, PathBuf)>> = OnceLock::new();
    let help = "planning needs no GPU, but cuDNN needs this library to be loaded: `sudo apt install \
                libnvidia-compute-580` installs it, or see docs/gpu.md, \"Tested without a GPU\"";
    // It stays for what is linked to it.
    DRIVER.get_or_init(|| open_driver(help)).as_ref().map_err(Clone::clone)?;
    let set = set(DRIVERS[0].0)?;
    let (version, _) = set.cudnn.functions.versions();
    if version < 90_800 {
        let what = format!("is version {}, which plans only for GPUs of this machine", dotted(version));
        let help = "it must be 9.8 or newer: `pip install --upgrade nvidia-cudnn-cu13` (cu12 where CUDA 12 is used)";
        return Err(Error::Library { library: "cuDNN", what, help: help.into() });
    }
    Ok(set)
}

/// The libraries beside the driver, all of one major version of CUDA.
pub(crate) struct Set {
    pub(crate) nvrtc: Found<Nvrtc>,
    pub(crate) cublas: Found<CublasLt>,
    pub(crate) cudnn: Found<Cudnn>,
}

/// The set for a driver that serves CUDA up to that major version.
pub(crate) fn set(driver: i32) -> Result<&'static Set> {
    static SET: OnceLock<Result<Set>> = OnceLock::new();
    let load = || {
        let newest = DRIVERS.iter().map(|(major, _)| *major).filter(|major| *major <= driver);
        let mut first = None;
        for major in newest {
            match load_set(major) {
                Ok(set) => return Ok(set),
                Err(e) => first = first.or(Some(e)),
            }
        }
        Err(first.unwrap_or_else(|| Error::Library {
            library: "the NVIDIA driver",
            what: format!("supports only CUDA {driver}"),
            help: format!("it must be {} or newer", DRIVERS[1].1),
        }))
    };
    SET.get_or_init(load).as_ref().map_err(Clone::clone)
}

fn load_set(major: i32) -> Result<Set> {
    // cuDNN looks for the others by name: they are there when it comes.
    let nvrtc = find("NVRTC", &format!("libnvrtc.so.{major}"), &["cuda_nvrtc", "cu13"], major, Nvrtc::new)?;
    let cublas = find("cuBLASLt", &format!("libcublasLt.so.{major}"), &["cublas", "cu13"], major, CublasLt::new)?;
    let cudnn = find("cuDNN", "libcudnn.so.9", &["cudnn"], major, |library| {
        let cudnn = Cudnn::new(library)?;
        let (version, cuda) = cudnn.versions();
        match (version, cuda / 1000) {
            (..90_200, _) => Err(format!("is version {}, but 9.2 or newer is needed", dotted(version))),
            (_, of) if of as i32 != major => {
                Err(format!("was built for CUDA {of}, but the other libraries found are for CUDA {major}"))
            }
            _ => Ok(cudnn),
        }
    })?;
    Ok(Set { nvrtc, cublas, cudnn })
}

/// NCCL, which is needed only where several processes share a run.
pub(crate) fn nccl() -> Result<&'static Found<Nccl>> {
    static NCCL: OnceLock<Result<Found<Nccl>>> = OnceLock::new();
    let load = || {
        let driver = crate::driver::driver_version()?.0[0];
        let major = DRIVERS.iter().map(|(major, _)| *major).find(|major| *major <= driver).unwrap_or(DRIVERS[0].0);
        find("NCCL", "libnccl.so.2", &["nccl"], major, Nccl::new)
    };
    NCCL.get_or_init(load).as_ref().map_err(Clone::clone)
}

/// Opens a library by its file's name, from the first place that has it.
fn find<F>(
    library: &'static str,
    file: &str,
    folders: &[&str],
    major: i32,
    functions: impl Fn(libloading::Library) -> std::result::Result<F, String>,
) -> Result<Found<F>> {
    let mut candidates = vec![PathBuf::from(file)];
    candidates.extend(places(folders).into_iter().map(|folder| folder.join(file)));
    let package = match (library, major) {
        ("NVRTC", 12) => "nvidia-cuda-nvrtc-cu12",
        ("NVRTC", _) => "nvidia-cuda-nvrtc",
        ("cuBLASLt", 12) => "nvidia-cublas-cu12",
        ("cuBLASLt", _) => "nvidia-cublas",
        ("NCCL", 12) => "nvidia-nccl-cu12",
        ("NCCL", _) => "nvidia-nccl-cu13",
        (_, 12) => "nvidia-cudnn-cu12",
        _ => "nvidia-cudnn-cu13",
    };
    let failed = |what: String| Error::Library {
        library,
        what,
        help: format!(
            "`pip install {package}` in an active Python environment installs it, or set LD_LIBRARY_PATH to its folder"
        ),
    };
    let (opened, path) = open(&candidates).map_err(failed)?;
    Ok(Found { functions: functions(opened).map_err(failed)?, path })
}

/// The first of some files that can be opened, visible to libraries that come later.
fn open(candidates: &[PathBuf]) -> std::result::Result<(libloading::Library, PathBuf), String> {
    let mut why = None;
    for path in candidates {
        // SAFETY: what these libraries do when they are loaded is NVIDIA's.
        match unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => {
                let path = if path.is_absolute() { path.clone() } else { loaded(path).unwrap_or_else(|| path.clone()) };
                return Ok((library.into(), path));
            }
            // The loader's own reason counts where a file is there.
            Err(e) if path.is_absolute() && path.exists() => why = Some(format!("cannot be loaded: {e}")),
            Err(_) => {}
        }
    }
    let file = candidates[0].display();
    Err(why.unwrap_or_else(|| {
        format!(
            "is missing: {file} was not found in the folders of the loader, of a Python environment or of CUDA_HOME"
        )
    }))
}

/// The file behind a library that is loaded.
fn loaded(file: &Path) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let name = file.to_str()?;
    let path = maps.lines().filter_map(|line| line.split_once('/')).map(|(_, path)| format!("/{path}"));
    path.map(PathBuf::from).find(|path| path.file_name().is_some_and(|own| own.to_string_lossy().starts_with(name)))
}

/// Folders in which NVIDIA's packages put a library.
fn places(packages: &[&str]) -> Vec<PathBuf> {
    let mut places = Vec::new();
    for site in site_packages() {
        places.extend(packages.iter().map(|package| site.join("nvidia").join(package).join("lib")));
    }
    let homes = ["CUDNN_PATH", "CUDA_PATH", "CUDA_HOME"].iter().filter_map(std::env::var_os).map(PathBuf::from);
    for home in homes.chain(["/usr/local/cuda".into()]) {
        places.extend(["lib64", "lib", "targets/x86_64-linux/lib"].map(|folder| home.join(folder)));
    }
    places
}

/// The folders of Python's packages: of the active environment, then of each Python on the path.
fn site_packages() -> Vec<PathBuf> {
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(std::env::var_os).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let pythons = std::env::split_paths(&path).filter(|folder| folder.join("python3").exists());
    let real = |folder: &PathBuf| folder.join("python3").canonicalize().ok()?.parent().map(Path::to_path_buf);
    let pythons: Vec<PathBuf> = pythons.flat_map(|folder| [real(&folder), Some(folder)]).flatten().collect();
    let prefixes = pythons.iter().filter_map(|folder| folder.parent()).map(Path::to_path_buf);
    let own = std::env::var_os("HOME").map(|home| Path::new(&home).join(".local"));
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for prefix in environments.chain(prefixes).chain(["/usr/local".into(), "/usr".into()]).chain(own) {
        let versions = std::fs::read_dir(prefix.join("lib")).into_iter().flatten().flatten();
        let mut versions: Vec<PathBuf> = versions
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
            .flat_map(|entry| ["site-packages", "dist-packages"].map(|folder| entry.path().join(folder)))
            .filter(|folder| folder.join("nvidia").is_dir())
            .collect();
        versions.sort();
        found.extend(versions.into_iter().filter(|folder| seen.insert(folder.clone())));
    }
    found
}
