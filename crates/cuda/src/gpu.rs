//! A GPU: its memory, its stream of work, and graphs of work that were recorded once.

#![allow(unsafe_code, reason = "functions of C")]

use crate::compile::{self, Unit};
use crate::cublas::CublasLt;
use crate::cudnn::Cudnn;
use crate::error::{Error, Result};
use crate::ffi::{Driver, Handle};
use crate::library::{self, Set};
use bytemuck::Pod;
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int, c_void};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

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

/// A GPU in use. There is one of each in a process, and it stays.
pub struct Gpu {
    driver: &'static Driver,
    set: &'static Set,
    context: Handle,
    stream: Handle,
    /// For work that the other does not wait for at once.
    side: Handle,
    description: Description,
    /// Where compiled kernels are kept.
    cache: Option<PathBuf>,
    kernels: Mutex<Kernels>,
    pub(crate) cudnn: Cudnn,
    pub(crate) cublas: CublasLt,
    /// Which engine of each convolution was the fastest, by its place among the candidates; none where nothing is timed.
    tuned: Mutex<Option<HashMap<String, usize>>>,
    /// Whoever holds it gives the stream its work.
    lock: Mutex<()>,
    /// Blocks that are kept for the next who needs as much.
    pool: Mutex<Vec<Block>>,
    /// Bytes that the driver gave, now and at most.
    given: [AtomicUsize; 2],
}

// SAFETY: handles of contexts, streams and libraries may be used from any thread; `lock` keeps their calls apart.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "cuda:{}", self.description.index)
    }
}

impl PartialEq for Gpu {
    fn eq(&self, other: &Self) -> bool {
        self.description.index == other.description.index
    }
}

impl Eq for Gpu {}

/// Modules by unit, and functions by name.
#[derive(Default)]
struct Kernels {
    modules: HashMap<Unit, Handle>,
    functions: HashMap<String, Handle>,
}

// SAFETY: the driver's modules and functions may be used from any thread.
unsafe impl Send for Kernels {}

/// What a call gave, if it failed.
fn checked(driver: &Driver, call: &'static str, code: c_int) -> Result<()> {
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
        checked(driver, stringify!($function), code)
    }};
}

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
    // SAFETY: these functions only answer.
    let (cudnn, cublas) =
        unsafe { ((set.cudnn.functions.cudnnGetVersion)(), (set.cublas.functions.cublasLtGetVersion)()) };
    let [major, minor] = compile::version(&set.nvrtc.functions)?;
    let triple = |v: usize, of: usize| format!("{}.{}.{}", v / of, v % of / 100, v % 100);
    Ok(vec![
        LibraryVersion { name: "cuDNN", version: triple(cudnn, 10_000), path: set.cudnn.path.clone() },
        LibraryVersion { name: "cuBLASLt", version: triple(cublas, 10_000), path: set.cublas.path.clone() },
        LibraryVersion { name: "NVRTC", version: format!("{major}.{minor}"), path: set.nvrtc.path.clone() },
    ])
}

impl Gpu {
    /// The GPU of that index, made ready when it is first asked for. `cache` is a folder for compiled kernels.
    ///
    /// # Errors
    /// What is missing: driver, libraries or the GPU.
    pub fn get(index: usize, cache: Option<&Path>) -> Result<&'static Self> {
        static ALL: OnceLock<Mutex<HashMap<usize, &'static Gpu>>> = OnceLock::new();
        let mut all = ALL.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = all.get(&index) {
            return Ok(gpu);
        }
        let gpu: &Self = Box::leak(Box::new(Self::open(index, cache)?));
        all.insert(index, gpu);
        Ok(gpu)
    }

    fn open(index: usize, cache: Option<&Path>) -> Result<Self> {
        let known = gpus()?;
        let count = known.len();
        let description = known.into_iter().nth(index).ok_or(Error::Index { index, count })?;
        let [major, minor] = description.capability;
        if major < 8 {
            return Err(Error::Old { index, name: description.name, major, minor });
        }
        let driver = &library::driver()?.functions;
        let set = library::set(driver_version()?.0[0])?;
        let (mut device, mut context) = (0, std::ptr::null_mut());
        let [mut stream, mut side] = [std::ptr::null_mut(); 2];
        call!(driver, cuDeviceGet(&raw mut device, index as c_int))?;
        call!(driver, cuDevicePrimaryCtxRetain(&raw mut context, device))?;
        call!(driver, cuCtxSetCurrent(context))?;
        // Work of this stream does not wait for that of others.
        call!(driver, cuStreamCreate(&raw mut stream, 1))?;
        call!(driver, cuStreamCreate(&raw mut side, 1))?;
        let cudnn = Cudnn::new(&set.cudnn.functions)?;
        let cublas = CublasLt::new(&set.cublas.functions)?;
        let (kernels, tuned, lock, pool, given) = Default::default();
        let cache = cache.map(Path::to_path_buf);
        Ok(Self {
            driver,
            set,
            context,
            stream,
            side,
            description,
            cache,
            kernels,
            cudnn,
            cublas,
            tuned,
            lock,
            pool,
            given,
        })
    }

    /// From here on the fastest of a convolution's first engines is taken, not the first. What was timed is kept for this kind
    /// of GPU and version of cuDNN, and taken again.
    pub fn tune(&self) {
        let mut tuned = self.tuned.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = self.tuned_file().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let lines = kept.lines().filter_map(|line| line.split_once('\t'));
        let known = lines.filter_map(|(place, name)| Some((name.to_string(), place.parse().ok()?))).collect();
        tuned.get_or_insert(known);
    }

    fn tuned_file(&self) -> Option<PathBuf> {
        let [cudnn, _] = self.versions();
        let name = self.description.name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        Some(self.cache.as_ref()?.join("cuda").join(format!("tuned-{name}-cudnn-{cudnn}")))
    }

    /// Nothing unless engines are timed; then which engine of that convolution was the fastest, once that is known.
    #[expect(clippy::option_option, reason = "not timed, not yet timed, timed")]
    pub(crate) fn tuned(&self, name: &str) -> Option<Option<usize>> {
        let tuned = self.tuned.lock().unwrap_or_else(PoisonError::into_inner);
        tuned.as_ref().map(|known| known.get(name).copied())
    }

    pub(crate) fn keep_tuned(&self, name: String, place: usize) {
        let mut tuned = self.tuned.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = tuned.as_mut() {
            known.insert(name, place);
            let mut lines: Vec<String> = known.iter().map(|(name, place)| format!("{place}\t{name}\n")).collect();
            lines.sort();
            // A cache that cannot be written costs the next start some seconds, no more.
            if let Some(file) = self.tuned_file() {
                let _: std::io::Result<()> = compile::write_whole(&file, lines.concat().as_bytes());
            }
        }
    }

    /// Has kernels ready: compiled side by side where they are not kept from an earlier start. Without it each unit is
    /// compiled at its first kernel's start, which nothing may record.
    ///
    /// # Errors
    /// A compiler that fails.
    pub fn prepare(&self, units: &[Unit]) -> Result<()> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        let missing: Vec<Unit> = units.iter().copied().filter(|unit| !kernels.modules.contains_key(unit)).collect();
        let compile = |unit| {
            let (nvrtc, capability) = (&self.set.nvrtc.functions, self.description.capability);
            compile::kernels(nvrtc, unit, capability, self.cache.as_deref())
        };
        let compiled: Vec<Result<Vec<u8>>> = std::thread::scope(|scope| {
            let running: Vec<_> = missing.iter().map(|&unit| scope.spawn(move || compile(unit))).collect();
            running.into_iter().map(|thread| thread.join().expect("a compiler that returns")).collect()
        });
        for (unit, cubin) in missing.into_iter().zip(compiled) {
            let (cubin, mut module) = (cubin?, std::ptr::null_mut());
            self.enter()?;
            call!(self.driver, cuModuleLoadData(&raw mut module, cubin.as_ptr().cast()))?;
            kernels.modules.insert(unit, module);
        }
        Ok(())
    }

    /// A kernel by its name.
    fn kernel(&self, name: &str) -> Result<Handle> {
        let known = |kernels: &Kernels| kernels.functions.get(name).copied();
        let found = known(&self.kernels.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(function) = found {
            return Ok(function);
        }
        let unit = Unit::of(name);
        self.prepare(&[unit])?;
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        let (module, mut function) = (kernels.modules[&unit], std::ptr::null_mut());
        let text = CString::new(name).expect("a name without zeros");
        call!(self.driver, cuModuleGetFunction(&raw mut function, module, text.as_ptr()))?;
        kernels.functions.insert(name.into(), function);
        Ok(function)
    }

    /// What it is.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Bytes that are free now, and all.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn memory(&self) -> Result<[usize; 2]> {
        let (mut free, mut total) = (0, 0);
        self.enter()?;
        call!(self.driver, cuMemGetInfo_v2(&raw mut free, &raw mut total))?;
        Ok([free, total])
    }

    /// The most bytes of memory that this process was given at once, beside what the driver and the libraries take.
    pub fn most_given(&self) -> usize {
        self.given[1].load(Ordering::Relaxed)
    }

    /// cuDNN's and cuBLASLt's versions: with the kind of GPU they decide about bits.
    pub fn versions(&self) -> [usize; 2] {
        // SAFETY: these functions only answer.
        unsafe { [(self.set.cudnn.functions.cudnnGetVersion)(), (self.set.cublas.functions.cublasLtGetVersion)()] }
    }

    /// The right to give it work. What one thread enqueues in its turn stays together.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn turn(&'static self) -> Result<Turn> {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.enter()?;
        Ok(Turn { gpu: self, stream: Cell::new(self.stream), _guard: guard })
    }

    /// Calls of this thread go to this GPU.
    fn enter(&self) -> Result<()> {
        call!(self.driver, cuCtxSetCurrent(self.context))
    }

    /// At least so many bytes, with undefined contents. They come from what was given back, where something fits.
    ///
    /// # Errors
    /// Too little memory.
    pub fn alloc(&'static self, bytes: usize) -> Result<Buffer> {
        let bytes = bytes.next_multiple_of(256).max(256);
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        // Of the same size, so that what comes and goes with every step lies where it lay, and little is wasted.
        if let Some(at) = pool.iter().position(|block| block.bytes == bytes) {
            return Ok(Buffer { gpu: self, block: pool.swap_remove(at) });
        }
        drop(pool);
        let mut address = 0;
        self.enter()?;
        let mut made = call!(self.driver, cuMemAlloc_v2(&raw mut address, bytes));
        if matches!(made, Err(Error::Driver { code: 2, .. })) {
            self.release()?;
            made = call!(self.driver, cuMemAlloc_v2(&raw mut address, bytes));
        }
        if let Err(Error::Driver { code: 2, .. }) = made {
            let (mut free, mut total) = (0, 0);
            call!(self.driver, cuMemGetInfo_v2(&raw mut free, &raw mut total))?;
            return Err(Error::Memory { wanted: bytes >> 20, free: free >> 20, total: total >> 20 });
        }
        made?;
        let now = self.given[0].fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.given[1].fetch_max(now, Ordering::Relaxed);
        Ok(Buffer { gpu: self, block: Block { address, bytes } })
    }

    /// Gives the driver back what nobody uses.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn release(&'static self) -> Result<()> {
        self.enter()?;
        let unused = std::mem::take(&mut *self.pool.lock().unwrap_or_else(PoisonError::into_inner));
        unused.into_iter().try_for_each(|block| {
            self.given[0].fetch_sub(block.bytes, Ordering::Relaxed);
            call!(self.driver, cuMemFree_v2(block.address))
        })
    }

    /// A buffer that holds these values.
    ///
    /// # Errors
    /// Too little memory, or a broken GPU.
    pub fn upload<T: Pod>(&'static self, values: &[T]) -> Result<Buffer> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let buffer = self.alloc(bytes.len())?;
        let turn = self.turn()?;
        call!(
            self.driver,
            cuMemcpyHtoDAsync_v2(buffer.block.address, bytes.as_ptr().cast(), bytes.len(), self.stream)
        )?;
        turn.wait()?;
        Ok(buffer)
    }

    /// An event that was not marked yet.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn event(&'static self) -> Result<Event> {
        let mut made = std::ptr::null_mut();
        self.enter()?;
        // Without times, which cost something.
        call!(self.driver, cuEventCreate(&raw mut made, 2))?;
        Ok(Event { gpu: self, made })
    }

    /// Main memory that the GPU reads and writes by itself.
    ///
    /// # Errors
    /// Too little of it.
    pub fn pinned(&'static self, bytes: usize) -> Result<Pinned> {
        let mut memory = std::ptr::null_mut();
        self.enter()?;
        call!(self.driver, cuMemHostAlloc(&raw mut memory, bytes.max(1), 0))?;
        // SAFETY: as many bytes are there, and numbers of any bits are bytes.
        unsafe { memory.cast::<u8>().write_bytes(0, bytes) };
        Ok(Pinned { gpu: self, memory, bytes })
    }
}

#[derive(Debug)]
struct Block {
    address: u64,
    bytes: usize,
}

/// Memory of a GPU; it goes back to the GPU's pool in the end.
#[derive(Debug)]
pub struct Buffer {
    gpu: &'static Gpu,
    block: Block,
}

impl Buffer {
    /// Its GPU.
    pub fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    /// Its bytes.
    pub fn bytes(&self) -> usize {
        self.block.bytes
    }

    /// Where it begins.
    pub fn address(&self) -> Address {
        Address(self.block.address)
    }

    /// The first values.
    ///
    /// # Errors
    /// A broken GPU.
    ///
    /// # Panics
    /// If it does not hold so many.
    pub fn download<T: Pod>(&self, count: usize) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); count];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        assert!(bytes.len() <= self.block.bytes, "values beyond a buffer");
        let turn = self.gpu.turn()?;
        let (to, from, stream) = (bytes.as_mut_ptr().cast(), self.block.address, self.gpu.stream);
        call!(self.gpu.driver, cuMemcpyDtoHAsync_v2(to, from, bytes.len(), stream))?;
        turn.wait()?;
        Ok(values)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let block = Block { address: self.block.address, bytes: self.block.bytes };
        self.gpu.pool.lock().unwrap_or_else(PoisonError::into_inner).push(block);
    }
}

/// A place in a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address(pub(crate) u64);

impl Address {
    /// None: what a kernel takes for an operand that is not there.
    pub const NULL: Self = Self(0);

    /// As a kernel finds it in memory.
    pub fn number(self) -> u64 {
        self.0
    }

    /// So many bytes further on.
    #[must_use]
    pub fn at(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// Main memory that a GPU reads and writes by itself.
#[derive(Debug)]
pub struct Pinned {
    gpu: &'static Gpu,
    memory: *mut c_void,
    bytes: usize,
}

// SAFETY: it is memory that one owner has.
unsafe impl Send for Pinned {}
// SAFETY: reading it from many threads is reading memory.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Its bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its first values. Whoever had the GPU write here has waited for it.
    pub fn values<T: Pod>(&self, count: usize) -> &[T] {
        assert!(count * size_of::<T>() <= self.bytes, "values beyond a buffer");
        // SAFETY: they lie inside, aligned to a page, and any bits are values.
        unsafe { std::slice::from_raw_parts(self.memory.cast(), count) }
    }

    /// Its first values, to be changed.
    pub fn values_mut<T: Pod>(&mut self, count: usize) -> &mut [T] {
        assert!(count * size_of::<T>() <= self.bytes, "values beyond a buffer");
        // SAFETY: as above, and nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(self.memory.cast(), count) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A GPU that is lost keeps its memory; the owner has its error already.
        if self.gpu.enter().is_ok() {
            let _ = call!(self.gpu.driver, cuMemFreeHost(self.memory));
        }
    }
}

/// Memory of a GPU that main memory fills again and again without waiting for the GPU's work.
#[derive(Debug)]
pub struct Mailbox {
    gpu: &'static Gpu,
    pinned: Pinned,
    sent: Event,
    buffer: Buffer,
}

impl Mailbox {
    /// One for so many bytes at most.
    ///
    /// # Errors
    /// Too little memory.
    pub fn new(gpu: &'static Gpu, bytes: usize) -> Result<Self> {
        Ok(Self { gpu, pinned: gpu.pinned(bytes)?, sent: gpu.event()?, buffer: gpu.alloc(bytes)? })
    }

    /// Copies values to the GPU, after what it was given before; where they are then.
    ///
    /// # Errors
    /// A broken GPU.
    ///
    /// # Panics
    /// If there are too many.
    pub fn send<T: Pod>(&mut self, turn: &Turn, values: &[T]) -> Result<Address> {
        self.sent.wait()?;
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.pinned.values_mut(bytes.len()).copy_from_slice(bytes);
        turn.send(self.buffer.address(), &self.pinned, 0..bytes.len())?;
        turn.mark(&self.sent)?;
        Ok(self.buffer.address())
    }

    /// Where values arrive.
    pub fn address(&self) -> Address {
        self.buffer.address()
    }

    /// Whether as many bytes fit.
    pub fn holds(&self, bytes: usize) -> bool {
        bytes <= self.pinned.bytes
    }

    /// Its GPU.
    pub fn gpu(&self) -> &'static Gpu {
        self.gpu
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Arg(u64);

/// The arguments of a kernel.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$($crate::Arg::from($arg)),*] };
}

impl From<Address> for Arg {
    fn from(address: Address) -> Self {
        Self(address.0)
    }
}
impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Self(u64::from(value as u32))
    }
}
impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Self(u64::from(value))
    }
}
impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self(u64::from(value.to_bits()))
    }
}
impl From<i64> for Arg {
    fn from(value: i64) -> Self {
        Self(value as u64)
    }
}

/// How many threads a kernel runs on.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Blocks.
    pub grid: [usize; 2],
    /// Threads of a block.
    pub block: usize,
    /// Bytes that a block shares beside what its kernel declares.
    pub shared: usize,
}

/// One thread's turn to give a GPU work.
#[derive(Debug)]
pub struct Turn {
    gpu: &'static Gpu,
    /// Where work goes at the moment.
    pub(crate) stream: Cell<Handle>,
    _guard: MutexGuard<'static, ()>,
}

impl Turn {
    /// Whose turn it is to work.
    pub fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    /// Starts a kernel.
    ///
    /// # Errors
    /// A broken GPU, or no kernel of that name.
    pub fn launch(&self, name: &str, shape: Shape, args: &[Arg]) -> Result<()> {
        let gpu = self.gpu;
        let function = gpu.kernel(name)?;
        let mut values: Vec<u64> = args.iter().map(|arg| arg.0).collect();
        // x86 and ARM keep the low bytes first, so that a smaller argument is found at the same place.
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
        let ([x, y], block, shared) = (shape.grid.map(|n| n as u32), shape.block as u32, shape.shared as u32);
        if shape.shared > 48 << 10 {
            // More than a kernel may have unasked.
            call!(gpu.driver, cuFuncSetAttribute(function, 8, shape.shared as c_int))?;
        }
        let (stream, none) = (self.stream.get(), std::ptr::null_mut());
        call!(gpu.driver, cuLaunchKernel(function, x, y, 1, block, 1, 1, shared, stream, pointers.as_mut_ptr(), none))
    }

    /// Sets bytes to zero.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn clear(&self, at: Address, bytes: usize) -> Result<()> {
        call!(self.gpu.driver, cuMemsetD8Async(at.0, 0, bytes, self.stream.get()))
    }

    /// Copies on the GPU.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        call!(self.gpu.driver, cuMemcpyDtoDAsync_v2(to.0, from.0, bytes, self.stream.get()))
    }

    /// Copies some bytes to the GPU, some time before [`wait`](Self::wait) ends.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn send(&self, to: Address, from: &Pinned, bytes: Range<usize>) -> Result<()> {
        let bytes = &from.values::<u8>(bytes.end)[bytes];
        call!(self.gpu.driver, cuMemcpyHtoDAsync_v2(to.0, bytes.as_ptr().cast(), bytes.len(), self.stream.get()))
    }

    /// Copies from the GPU, some time before [`wait`](Self::wait) ends.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn receive(&self, to: &mut Pinned, from: Address, bytes: usize) -> Result<()> {
        assert!(bytes <= to.bytes, "bytes beyond a buffer");
        call!(self.gpu.driver, cuMemcpyDtoHAsync_v2(to.memory, from.0, bytes, self.stream.get()))
    }

    /// What `work` gives the GPU goes to a second stream, beside what comes next in the first; events keep the order.
    pub fn aside<R>(&self, work: impl FnOnce() -> R) -> R {
        let before = self.stream.replace(self.gpu.side);
        let result = work();
        self.stream.set(before);
        result
    }

    /// What comes next waits, on the GPU, for what `event` was marked after.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn follow(&self, event: &Event) -> Result<()> {
        call!(self.gpu.driver, cuStreamWaitEvent(self.stream.get(), event.made, 0))
    }

    /// The work so far is what `event` waits for.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn mark(&self, event: &Event) -> Result<()> {
        call!(self.gpu.driver, cuEventRecord(event.made, self.stream.get()))
    }

    /// Waits until all work is done.
    ///
    /// # Errors
    /// A GPU that broke meanwhile.
    pub fn wait(&self) -> Result<()> {
        call!(self.gpu.driver, cuStreamSynchronize(self.stream.get()))
    }

    /// Records what `work` enqueues, without doing it.
    ///
    /// # Errors
    /// What `work` fails with, or the driver.
    pub fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let (gpu, mut graph, mut made) = (self.gpu, std::ptr::null_mut(), std::ptr::null_mut());
        // Calls of other threads do not disturb.
        call!(gpu.driver, cuStreamBeginCapture_v2(self.stream.get(), 1))?;
        let worked = work();
        let ended = call!(gpu.driver, cuStreamEndCapture(self.stream.get(), &raw mut graph));
        worked.and(ended)?;
        let instantiated = call!(gpu.driver, cuGraphInstantiateWithFlags(&raw mut made, graph, 0));
        call!(gpu.driver, cuGraphDestroy(graph))?;
        instantiated?;
        Ok(Graph { gpu, made })
    }

    /// Starts recorded work.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        call!(self.gpu.driver, cuGraphLaunch(graph.made, self.stream.get()))
    }

    /// Milliseconds that the GPU takes for what `work` enqueues.
    ///
    /// # Errors
    /// What `work` fails with, or the driver.
    pub fn milliseconds(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let (gpu, mut events, mut took) = (self.gpu, [std::ptr::null_mut(); 2], 0.0);
        for event in &mut events {
            call!(gpu.driver, cuEventCreate(std::ptr::from_mut(event), 0))?;
        }
        call!(gpu.driver, cuEventRecord(events[0], self.stream.get()))?;
        work()?;
        call!(gpu.driver, cuEventRecord(events[1], self.stream.get()))?;
        call!(gpu.driver, cuEventSynchronize(events[1]))?;
        call!(gpu.driver, cuEventElapsedTime(&raw mut took, events[0], events[1]))?;
        for event in events {
            call!(gpu.driver, cuEventDestroy_v2(event))?;
        }
        Ok(f64::from(took))
    }
}

/// A point in the stream of work that can be waited for.
#[derive(Debug)]
pub struct Event {
    gpu: &'static Gpu,
    made: Handle,
}

// SAFETY: the driver's events may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// Waits until the work before it is done; not at all if it was never [marked](Turn::mark).
    ///
    /// # Errors
    /// A GPU that broke meanwhile.
    pub fn wait(&self) -> Result<()> {
        self.gpu.enter()?;
        call!(self.gpu.driver, cuEventSynchronize(self.made))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            let _ = call!(self.gpu.driver, cuEventDestroy_v2(self.made));
        }
    }
}

/// Work that was recorded and can be started again and again.
#[derive(Debug)]
pub struct Graph {
    gpu: &'static Gpu,
    made: Handle,
}

// SAFETY: a graph is used under its GPU's lock alone.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // A GPU that is lost has lost its graphs; the owner has its error already.
        if self.gpu.enter().is_ok() {
            let _ = call!(self.gpu.driver, cuGraphExecDestroy(self.made));
        }
    }
}
