//! A GPU: its kernels, its memory, and the right to give it work.

#![allow(unsafe_code, reason = "functions of C")]

use crate::compile::{self, Unit};
use crate::cublas::CublasLt;
use crate::cudnn::Cudnn;
use crate::driver::{Description, call, driver_version, gpus};
use crate::error::{Error, Result};
use crate::ffi::{Driver, Handle};
use crate::library::{self, Set};
use crate::memory::{Block, Buffer, Note, Pinned};
use crate::turn::{Event, Turn};
use bytemuck::Pod;
use std::collections::HashMap;
use std::ffi::{CString, c_int};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// A GPU in use. There is one of each in a process, and it stays.
pub struct Gpu {
    pub(crate) driver: &'static Driver,
    set: &'static Set,
    context: Handle,
    pub(crate) stream: Handle,
    /// For work that the other does not wait for at once.
    pub(crate) side: Handle,
    description: Description,
    /// Where compiled kernels are kept.
    cache: Option<PathBuf>,
    kernels: Mutex<Kernels>,
    pub(crate) cudnn: Cudnn,
    pub(crate) cublas: CublasLt,
    /// None where no engines are timed.
    tuned: Mutex<Option<Tuned>>,
    /// Whoever holds it gives the stream its work.
    lock: Mutex<()>,
    /// Blocks that are kept for the next who needs as much.
    pub(crate) pool: Mutex<Vec<Block>>,
    /// Where notes arrive that nobody has.
    pub(crate) notes: Mutex<Vec<(Pinned, Event)>>,
    /// Bytes that the driver gave, now and at most.
    given: [AtomicUsize; 2],
    /// Graphs and single kernels that were started.
    pub(crate) started: [AtomicUsize; 2],
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

/// Engines that were timed.
struct Tuned {
    /// Which was the fastest for each convolution, by its place among the candidates.
    known: HashMap<String, usize>,
    /// Where this is kept.
    files: Vec<PathBuf>,
}

/// Modules by unit, and functions by name.
#[derive(Default)]
struct Kernels {
    modules: HashMap<Unit, Handle>,
    functions: HashMap<String, Handle>,
}

// SAFETY: the driver's modules and functions may be used from any thread.
unsafe impl Send for Kernels {}

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
        let (kernels, tuned, lock, pool, notes, given, started) = Default::default();
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
            notes,
            given,
            started,
        })
    }

    /// From here on the fastest of a convolution's first engines is taken, not the first. What was timed is kept for this kind
    /// of GPU and version of cuDNN, and taken again.
    pub fn tune(&self) {
        let mut tuned = self.tuned.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = self.cache.as_ref().map(|cache| cache.join("cuda"));
        let name = self.engines().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let file = folder.map(|folder| folder.join(format!("tuned-{name}")));
        tuned.get_or_insert_with(|| Tuned {
            known: file.as_deref().and_then(|file| self.read_tuned(file)).unwrap_or_default(),
            files: file.into_iter().collect(),
        });
    }

    /// Takes the choices of timed engines that a file keeps, if this kind of GPU and version of cuDNN made them: then engines
    /// that are not among them are timed.
    pub fn take_tuned(&self, file: &Path) {
        if let Some(known) = self.read_tuned(file) {
            self.tune();
            let mut tuned = self.tuned.lock().unwrap_or_else(PoisonError::into_inner);
            tuned.as_mut().expect("just made").known.extend(known);
        }
    }

    /// Keeps the choices in a file of their own too, where engines are timed.
    pub fn keep_tuned_in(&self, file: &Path) {
        let mut tuned = self.tuned.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tuned) = tuned.as_mut() {
            tuned.files.push(file.into());
            self.write_tuned(tuned);
        }
    }

    /// Whether engines are timed.
    pub fn is_tuned(&self) -> bool {
        self.tuned.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// What choices hold for.
    fn engines(&self) -> String {
        let (cudnn, _) = self.set.cudnn.functions.versions();
        format!("{}, cuDNN {cudnn}", self.description.name)
    }

    fn read_tuned(&self, file: &Path) -> Option<HashMap<String, usize>> {
        let text = std::fs::read_to_string(file).ok()?;
        let (head, lines) = text.split_once('\n')?;
        let lines = lines.lines().filter_map(|line| line.split_once('\t'));
        let known = lines.filter_map(|(place, name)| Some((name.to_string(), place.parse().ok()?)));
        (head == self.engines()).then(|| known.collect())
    }

    /// A file that cannot be written costs the next start some seconds, no more.
    fn write_tuned(&self, tuned: &Tuned) {
        let mut lines: Vec<String> = tuned.known.iter().map(|(name, place)| format!("{place}\t{name}\n")).collect();
        lines.sort();
        let text = format!("{}\n{}", self.engines(), lines.concat());
        for file in &tuned.files {
            let _: std::io::Result<()> = compile::write_whole(file, text.as_bytes());
        }
    }

    /// Nothing unless engines are timed; then which engine of that convolution was the fastest, once that is known.
    #[expect(clippy::option_option, reason = "not timed, not yet timed, timed")]
    pub(crate) fn tuned(&self, name: &str) -> Option<Option<usize>> {
        let tuned = self.tuned.lock().unwrap_or_else(PoisonError::into_inner);
        tuned.as_ref().map(|tuned| tuned.known.get(name).copied())
    }

    pub(crate) fn keep_tuned(&self, name: String, place: usize) {
        let mut tuned = self.tuned.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tuned) = tuned.as_mut() {
            tuned.known.insert(name, place);
            self.write_tuned(tuned);
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
    pub(crate) fn kernel(&self, name: &str) -> Result<Handle> {
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

    /// Graphs, and kernels beside them, that were started so far. Libraries' kernels do not count.
    pub fn started(&self) -> [usize; 2] {
        [0, 1].map(|i| self.started[i].load(Ordering::Relaxed))
    }

    /// The right to give it work. What one thread enqueues in its turn stays together.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn turn(&'static self) -> Result<Turn> {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.enter()?;
        Ok(Turn::new(self, guard))
    }

    /// Calls of this thread go to this GPU.
    pub(crate) fn enter(&self) -> Result<()> {
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
        // Without times, which cost something.
        Event::new(self, 2)
    }

    /// A note of so many bytes, as empty as it may be.
    ///
    /// # Errors
    /// Too little main memory.
    pub fn note(&'static self, bytes: usize) -> Result<Note> {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = notes.iter().position(|(pinned, _)| pinned.bytes() == bytes).map(|at| notes.swap_remove(at));
        drop(notes);
        Ok(Note::new(self, kept.map_or_else(|| Ok((self.pinned(bytes)?, self.event()?)), Ok)?))
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
