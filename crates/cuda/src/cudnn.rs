//! Convolutions by cuDNN's backend interface: an operation graph, the heuristics' engines for it, a plan.
//!
//! A GPU is planned for by its handle, a [chip](crate::Chip) that is not there by a description of it; all else is the same.
//! The heuristics' first engine is taken that repeats its bits (no note *nondeterministic*), computes f32 in f32 (neither
//! tensor cores nor operands that are rounded first), keeps sums of half precisions in f32, and is ready-made; compiled ones
//! only where no other is. Numbers of descriptors and attributes are those of `cudnn_graph.h`.

#![allow(unsafe_code, reason = "functions of C")]

use crate::error::{Error, Result};
use crate::ffi::{self, Handle};
use crate::kind::Type;
use crate::memory::Address;
use crate::turn::Turn;
use std::ffi::{c_int, c_void};

/// Sizes of a convolution, channels last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Convolution {
    /// The type of all operands; sums are f32.
    pub kind: Type,
    /// Images.
    pub n: usize,
    /// Rows, columns and channels of the input.
    pub input: [usize; 3],
    /// Rows, columns and channels of the output.
    pub output: [usize; 3],
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Step between output pixels.
    pub stride: usize,
    /// Zeros before the input's rows and columns.
    pub before: [usize; 2],
    /// Zeros after them.
    pub after: [usize; 2],
}

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The output alone.
    Plain,
    /// The output plus a bias, a value for each channel of the operands' type.
    Bias,
    /// The output plus a residual, plus a bias.
    ResidualBias,
    /// The gradient of the input.
    InputGrad,
    /// The gradient of the weights.
    WeightGrad,
}

const POINTWISE: c_int = 0;
const CONVOLUTION: c_int = 1;
const ENGINE: c_int = 2;
const ENGINE_CONFIG: c_int = 3;
const HEURISTICS: c_int = 4;
const PLAN: c_int = 5;
const FORWARD: c_int = 10;
const WEIGHT_GRADIENT: c_int = 11;
const DATA_GRADIENT: c_int = 12;
const OPERATION_POINTWISE: c_int = 13;
const GRAPH: c_int = 15;
const VARIANT_PACK: c_int = 16;
const TENSOR: c_int = 17;
const DEVICE: c_int = 38;

/// Types of attributes.
mod of {
    use std::ffi::c_int;
    pub(super) const HANDLE: c_int = 0;
    pub(super) const DATA_TYPE: c_int = 1;
    pub(super) const BOOLEAN: c_int = 2;
    pub(super) const INT64: c_int = 3;
    pub(super) const FLOAT: c_int = 4;
    pub(super) const POINTER: c_int = 6;
    pub(super) const CONVOLUTION_MODE: c_int = 7;
    pub(super) const HEURISTIC_MODE: c_int = 8;
    pub(super) const NUMERICAL_NOTE: c_int = 11;
    pub(super) const POINTWISE_MODE: c_int = 14;
    pub(super) const DESCRIPTOR: c_int = 15;
    pub(super) const BEHAVIOR_NOTE: c_int = 19;
    pub(super) const CHAR: c_int = 24;
}

/// Numerical notes.
const TENSOR_CORE: c_int = 0;
const DOWN_CONVERTS: c_int = 1;
const REDUCED_SUMS: c_int = 2;
const NONDETERMINISTIC: c_int = 4;
const WINOGRAD: c_int = 5;
/// The behaviour note of engines that compile a kernel.
const COMPILED: c_int = 0;

/// Operands, as plans name them.
const X: i64 = 1;
const W: i64 = 2;
const Y: i64 = 3;
const RESIDUAL: i64 = 4;
const BIAS: i64 = 5;
/// Values between the operations of a graph.
const BETWEEN: [i64; 2] = [6, 7];

/// The library on a GPU.
pub(crate) struct Cudnn {
    handle: Handle,
    planner: Planner,
}

/// What convolutions are planned for.
enum Target {
    /// The GPU of a handle.
    Gpu(Handle),
    /// A chip by its description.
    Chip(Descriptor),
}

/// What chooses engines.
pub(crate) struct Planner {
    library: &'static ffi::Cudnn,
    target: Target,
}

// SAFETY: the library's descriptors and handles may be used from any thread, by one at a time.
unsafe impl Send for Planner {}

fn checked(library: &ffi::Cudnn, call: &'static str, code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let mut text = [0u8; 1024];
    // SAFETY: the library writes a text of at most so many bytes, with a zero at its end.
    unsafe { (library.cudnnGetLastErrorString)(text.as_mut_ptr().cast(), text.len()) };
    let text = String::from_utf8_lossy(text.split(|&b| b == 0).next().unwrap_or_default()).into_owned();
    Err(Error::Call { call, code, text })
}

macro_rules! call {
    ($library:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        let library = $library;
        // SAFETY: pointers are valid for the call, descriptors are the library's own.
        let code = unsafe { (library.$function)($($argument),*) };
        checked(library, stringify!($function), code)
    }};
}

/// A descriptor: a bag of attributes until it is finalised.
struct Descriptor {
    library: &'static ffi::Cudnn,
    handle: Handle,
}

impl Descriptor {
    fn new(library: &'static ffi::Cudnn, kind: c_int) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        call!(library, cudnnBackendCreateDescriptor(kind, &raw mut handle))?;
        Ok(Self { library, handle })
    }

    fn set<T>(self, name: c_int, kind: c_int, values: &[T]) -> Result<Self> {
        let (count, values) = (values.len() as i64, values.as_ptr().cast());
        call!(self.library, cudnnBackendSetAttribute(self.handle, name, kind, count, values))?;
        Ok(self)
    }

    fn refer(self, name: c_int, others: &[&Self]) -> Result<Self> {
        let handles: Vec<Handle> = others.iter().map(|other| other.handle).collect();
        self.set(name, of::DESCRIPTOR, &handles)
    }

    fn finalize(self) -> Result<Self> {
        call!(self.library, cudnnBackendFinalize(self.handle))?;
        Ok(self)
    }

    /// Numbers of an attribute, at most `room`.
    fn get<T: Copy + Default>(&self, name: c_int, kind: c_int, room: usize) -> Result<Vec<T>> {
        let (mut values, mut count) = (vec![T::default(); room], 0);
        let to = values.as_mut_ptr().cast();
        call!(self.library, cudnnBackendGetAttribute(self.handle, name, kind, room as i64, &raw mut count, to))?;
        values.truncate(count.max(0) as usize);
        Ok(values)
    }

    /// Descriptors of an attribute, at most `room`.
    fn children(&self, name: c_int, kind: c_int, room: usize) -> Result<Vec<Self>> {
        let mut made = (0..room).map(|_| Self::new(self.library, kind)).collect::<Result<Vec<_>>>()?;
        let (mut handles, mut count): (Vec<Handle>, i64) = (made.iter().map(|d| d.handle).collect(), 0);
        let to = handles.as_mut_ptr().cast();
        let room = room as i64;
        call!(self.library, cudnnBackendGetAttribute(self.handle, name, of::DESCRIPTOR, room, &raw mut count, to))?;
        made.truncate(count.max(0) as usize);
        Ok(made)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        let _ = call!(self.library, cudnnBackendDestroyDescriptor(self.handle));
    }
}

/// The engine that was chosen for a convolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// cuDNN's number of it.
    pub engine: i64,
    /// Bytes that it takes beside its operands.
    pub workspace: usize,
    /// Whether its kernel is compiled when it is planned, not ready-made.
    pub compiled: bool,
    /// Whether it transforms tiles of the images (Winograd): f32 throughout, with a somewhat larger error.
    pub winograd: bool,
}

/// A convolution for which an engine was chosen.
pub struct ConvolutionPlan {
    plan: Descriptor,
    pass: Pass,
    pub(crate) planned: Planned,
}

// SAFETY: a plan is read under its GPU's lock alone.
unsafe impl Send for ConvolutionPlan {}
// SAFETY: as above.
unsafe impl Sync for ConvolutionPlan {}

impl ConvolutionPlan {
    /// Bytes that it takes beside its operands.
    pub fn workspace(&self) -> usize {
        self.planned.workspace
    }

    /// What it computes.
    pub fn pass(&self) -> Pass {
        self.pass
    }
}

impl Cudnn {
    pub(crate) fn new(library: &'static ffi::Cudnn) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        call!(library, cudnnCreate(&raw mut handle))?;
        Ok(Self { handle, planner: Planner { library, target: Target::Gpu(handle) } })
    }
}

impl Planner {
    /// One for a chip, of which cuDNN reads a description as JSON.
    pub(crate) fn for_chip(library: &'static ffi::Cudnn, description: &str) -> Result<Self> {
        let chip = Descriptor::new(library, DEVICE)?.set(2702, of::CHAR, description.as_bytes())?.finalize()?;
        Ok(Self { library, target: Target::Chip(chip) })
    }

    fn descriptor(&self, kind: c_int) -> Result<Descriptor> {
        Descriptor::new(self.library, kind)
    }

    /// A tensor `[n, c, h, w]` whose channels lie next to each other.
    fn tensor(&self, uid: i64, [n, c, h, w]: [usize; 4], kind: Type, between: bool) -> Result<Descriptor> {
        let tensor = self
            .descriptor(TENSOR)?
            .set(900, of::INT64, &[16i64])?
            .set(901, of::DATA_TYPE, &[kind.cudnn()])?
            .set(902, of::INT64, &[n, c, h, w].map(|d| d as i64))?
            .set(903, of::INT64, &[h * w * c, 1, w * c, c].map(|d| d as i64))?
            .set(906, of::INT64, &[uid])?;
        let tensor = if between { tensor.set(907, of::BOOLEAN, &[true])? } else { tensor };
        tensor.finalize()
    }

    fn graph(&self, c: &Convolution, pass: Pass) -> Result<Descriptor> {
        let pair = |v: [usize; 2]| v.map(|v| v as i64);
        let convolution = self
            .descriptor(CONVOLUTION)?
            .set(106, of::INT64, &[2i64])?
            .set(100, of::DATA_TYPE, &[Type::F32.cudnn()])?
            .set(101, of::CONVOLUTION_MODE, &[1])?
            .set(102, of::INT64, &[1i64; 2])?
            .set(103, of::INT64, &pair([c.stride; 2]))?
            .set(104, of::INT64, &pair(c.after))?
            .set(105, of::INT64, &pair(c.before))?
            .finalize()?;
        let [h, w, channels] = c.input;
        let [p, q, outputs] = c.output;
        let result = [c.n, outputs, p, q];
        let x = self.tensor(X, [c.n, channels, h, w], c.kind, false)?;
        let weights = self.tensor(W, [outputs, channels, c.kernel[0], c.kernel[1]], c.kind, false)?;
        let y = self.tensor(Y, result, c.kind, false)?;
        // Attributes of the three passes: α, β, then convolution, weights, input and output.
        let operation = |kind: c_int, first: c_int, y: &Descriptor| {
            let operation =
                self.descriptor(kind)?.set(first, of::FLOAT, &[1f32])?.set(first + 1, of::FLOAT, &[0f32])?;
            let operation = operation.refer(first + 2, &[&convolution])?.refer(first + 3, &[&weights])?;
            operation.refer(first + 4, &[&x])?.refer(first + 5, &[y])?.finalize()
        };
        let add = |from: &Descriptor, other: &Descriptor, to: &Descriptor| {
            let sum = self.descriptor(POINTWISE)?.set(0, of::POINTWISE_MODE, &[0])?;
            let sum = sum.set(1, of::DATA_TYPE, &[Type::F32.cudnn()])?.finalize()?;
            let operation = self.descriptor(OPERATION_POINTWISE)?.refer(750, &[&sum])?.refer(751, &[from])?;
            operation.refer(752, &[other])?.refer(753, &[to])?.finalize()
        };
        let between = |i: usize| self.tensor(BETWEEN[i], result, Type::F32, true);
        let bias = || self.tensor(BIAS, [1, outputs, 1, 1], c.kind, false);
        let operations = match pass {
            Pass::Plain => vec![operation(FORWARD, 700, &y)?],
            Pass::InputGrad => vec![operation(DATA_GRADIENT, 706, &y)?],
            Pass::WeightGrad => vec![operation(WEIGHT_GRADIENT, 712, &y)?],
            Pass::Bias => {
                let sums = between(0)?;
                vec![operation(FORWARD, 700, &sums)?, add(&sums, &bias()?, &y)?]
            }
            Pass::ResidualBias => {
                let (sums, both) = (between(0)?, between(1)?);
                let residual = self.tensor(RESIDUAL, result, c.kind, false)?;
                vec![operation(FORWARD, 700, &sums)?, add(&sums, &residual, &both)?, add(&both, &bias()?, &y)?]
            }
        };
        let graph = match &self.target {
            Target::Gpu(handle) => self.descriptor(GRAPH)?.set(800, of::HANDLE, &[*handle])?,
            Target::Chip(_) => self.descriptor(GRAPH)?,
        };
        graph.refer(801, &operations.iter().collect::<Vec<_>>())?.finalize()
    }

    /// Plans with engines that may be taken, at most so many: ready-made ones of mode A (3), of the fallback (2); compiled ones
    /// only where there is no other.
    fn candidates(&self, c: &Convolution, pass: Pass, most: usize) -> Result<Vec<ConvolutionPlan>> {
        let (mut found, mut why) = (Vec::new(), String::new());
        let mut refused = |e: &Error| why = e.to_string();
        let graph = self.graph(c, pass)?;
        for (compiled, mode) in [(false, 3), (false, 2), (true, 3), (true, 2)] {
            if !found.is_empty() {
                break;
            }
            let heuristics =
                self.descriptor(HEURISTICS)?.refer(201, &[&graph])?.set(200, of::HEURISTIC_MODE, &[mode])?;
            let heuristics = match &self.target {
                Target::Gpu(_) => heuristics,
                Target::Chip(chip) => heuristics.refer(204, &[chip])?,
            };
            let configurations = match heuristics.finalize().and_then(|h| h.children(202, ENGINE_CONFIG, 64)) {
                Ok(configurations) => configurations,
                Err(e) => {
                    refused(&e);
                    continue;
                }
            };
            for configuration in configurations {
                match self.plan(&configuration, c, pass, compiled) {
                    Ok(plan) => found.extend(plan),
                    Err(e) => refused(&e),
                }
                if found.len() == most {
                    break;
                }
            }
        }
        if found.is_empty() {
            return Err(Error::NoEngine { what: format!("{pass:?} of {c:?}"), why });
        }
        Ok(found)
    }

    /// The plan of an engine's configuration, if it is one that may be taken.
    fn plan(
        &self,
        configuration: &Descriptor,
        c: &Convolution,
        pass: Pass,
        compiled: bool,
    ) -> Result<Option<ConvolutionPlan>> {
        let engine = configuration.children(300, ENGINE, 1)?.pop();
        let engine =
            engine.ok_or(Error::Call { call: "cudnnBackendGetAttribute", code: 0, text: "no engine".into() })?;
        let notes: Vec<c_int> = engine.get(1303, of::NUMERICAL_NOTE, 32)?;
        let behavior: Vec<c_int> = engine.get(1305, of::BEHAVIOR_NOTE, 32)?;
        let rounds = c.kind == Type::F32 && (notes.contains(&TENSOR_CORE) || notes.contains(&DOWN_CONVERTS));
        let rounds = rounds || notes.contains(&REDUCED_SUMS);
        if notes.contains(&NONDETERMINISTIC) || rounds || behavior.contains(&COMPILED) != compiled {
            return Ok(None);
        }
        let plan = match &self.target {
            Target::Gpu(handle) => self.descriptor(PLAN)?.set(400, of::HANDLE, &[*handle])?,
            Target::Chip(chip) => self.descriptor(PLAN)?.refer(407, &[chip])?,
        };
        let plan = plan.refer(401, &[configuration])?.finalize()?;
        let number = |of: &Descriptor, name| Ok(of.get::<i64>(name, of::INT64, 1)?.first().copied().unwrap_or(0));
        let planned = Planned {
            engine: number(&engine, 1301)?,
            workspace: number(&plan, 402)?.max(0) as usize,
            compiled,
            winograd: notes.contains(&WINOGRAD),
        };
        Ok(Some(ConvolutionPlan { plan, pass, planned }))
    }

    /// The plan with the first engine that may be taken.
    pub(crate) fn first(&self, c: &Convolution, pass: Pass) -> Result<ConvolutionPlan> {
        Ok(self.candidates(c, pass, 1)?.remove(0))
    }
}

/// The operands of a convolution. What a pass does not take is [`Address::NULL`].
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// The input, or its gradient that is made.
    pub x: Address,
    /// The weights `[O, KH, KW, I]`, or their gradient that is made.
    pub w: Address,
    /// The output that is made, or its gradient.
    pub y: Address,
    /// What is added to the output.
    pub residual: Address,
    /// What is added to each pixel.
    pub bias: Address,
}

impl Turn {
    /// Chooses an engine for a convolution: the first that the heuristics name, or the fastest of the first where the GPU is to
    /// be [tuned](crate::Gpu::tune). Nothing may be recorded meanwhile.
    ///
    /// # Errors
    /// [`Error::NoEngine`].
    pub fn plan_convolution(&self, c: &Convolution, pass: Pass) -> Result<ConvolutionPlan> {
        /// Engines that are timed.
        const TIMED: usize = 24;
        let (gpu, planner, name) = (self.gpu(), &self.gpu().cudnn.planner, format!("{pass:?} {c:?}"));
        let Some(kept) = gpu.tuned(&name) else {
            return planner.first(c, pass);
        };
        if let Some(place) = kept {
            let mut plans = planner.candidates(c, pass, place + 1)?;
            return Ok(plans.remove(place.min(plans.len() - 1)));
        }
        let mut plans = planner.candidates(c, pass, TIMED)?;
        let mut fastest = (0, f64::INFINITY);
        for (place, plan) in plans.iter().enumerate() {
            // What cannot be run is not taken.
            if let Ok(ms) = self.milliseconds_of(c, plan)
                && ms < fastest.1
            {
                fastest = (place, ms);
            }
        }
        gpu.keep_tuned(name, fastest.0);
        Ok(plans.remove(fastest.0))
    }

    /// What a plan takes, the least of three turns.
    fn milliseconds_of(&self, c: &Convolution, plan: &ConvolutionPlan) -> Result<f64> {
        let len = |[h, w, channels]: [usize; 3]| c.n * h * w * channels;
        let sizes = [
            len(c.input),
            c.input[2] * c.output[2] * c.kernel[0] * c.kernel[1],
            len(c.output),
            len(c.output),
            c.output[2],
        ];
        let buffer = |bytes| self.gpu().alloc(bytes);
        let [x, w, y, residual, bias] = sizes.map(|len| buffer(len * c.kind.bytes()));
        let (x, w, y, residual, bias, workspace) = (x?, w?, y?, residual?, bias?, buffer(plan.workspace())?);
        let [x, w, y, residual, bias] = [&x, &w, &y, &residual, &bias].map(crate::Buffer::address);
        let run = || self.convolve(plan, Operands { x, w, y, residual, bias }, workspace.address());
        run()?;
        let mut least = f64::INFINITY;
        for _ in 0..3 {
            least = least.min(self.milliseconds(|| (0..3).try_for_each(|_| run()))?);
        }
        Ok(least)
    }

    /// Runs a convolution. As many bytes as it asks for are at `workspace`.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn convolve(&self, plan: &ConvolutionPlan, operands: Operands, workspace: Address) -> Result<()> {
        let Cudnn { handle, planner: Planner { library, .. } } = &self.gpu().cudnn;
        let mut uids = vec![X, W, Y];
        let mut places = vec![operands.x, operands.w, operands.y];
        if plan.pass == Pass::ResidualBias {
            uids.push(RESIDUAL);
            places.push(operands.residual);
        }
        if matches!(plan.pass, Pass::Bias | Pass::ResidualBias) {
            uids.push(BIAS);
            places.push(operands.bias);
        }
        let pointer = |address: Address| address.0 as *mut c_void;
        let places: Vec<*mut c_void> = places.into_iter().map(pointer).collect();
        let pack = Descriptor::new(library, VARIANT_PACK)?
            .set(1000, of::INT64, &uids)?
            .set(1001, of::POINTER, &places)?
            .set(1003, of::POINTER, &[pointer(workspace)])?
            .finalize()?;
        call!(library, cudnnSetStream(*handle, self.stream.get()))?;
        call!(library, cudnnBackendExecute(*handle, plan.plan.handle, pack.handle))
    }
}
