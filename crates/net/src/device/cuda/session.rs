//! One run of a plan on a GPU.

use super::program::{Program, Recorded};
use super::steps::Steps;
use crate::device::{Context, done};
use crate::plan::{Plan, Slot};
use crate::shards::{Gradient, GradientMemory};
use ddpm_cuda::{Address, Buffer, Event, Gpu, Pinned, Result, Turn};
use ddpm_kernels::profile::{self, Work};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// What all plans of a GPU run in: the largest that was asked for, and main memory through which values come and go.
#[derive(Default)]
struct Shared {
    memory: Option<Buffer>,
    /// To the GPU.
    up: Option<Pinned>,
    /// From it.
    down: Option<Pinned>,
    /// When all that lies in `up` has been copied.
    sent: Option<Event>,
}

fn shared(gpu: &Gpu) -> MutexGuard<'static, Shared> {
    static ALL: OnceLock<Mutex<HashMap<usize, &'static Mutex<Shared>>>> = OnceLock::new();
    let mut all = ALL.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let own: &'static Mutex<Shared> = all.entry(gpu.description().index).or_insert_with(|| Box::leak(Box::default()));
    drop(all);
    own.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A run of a plan. The GPU is this thread's until it ends.
pub(crate) struct Session<'a> {
    plan: &'a Plan,
    program: &'a Program,
    parameters: Address,
    gradient: Option<Buffer>,
    memory: Address,
    shared: MutexGuard<'static, Shared>,
    /// Bytes on their way to the GPU.
    used: usize,
    turn: Turn,
}

impl<'a> Session<'a> {
    /// A run with parameters at an address of the GPU's memory, and a gradient of so many values.
    pub(crate) fn new(plan: &'a Plan, gpu: &'static Gpu, parameters: Address, gradient: Option<usize>) -> Self {
        let program = plan.program(gpu);
        let mut shared = shared(gpu);
        let gradient = gradient.map(|len| done(gpu.alloc(4 * len)));
        if shared.memory.as_ref().is_none_or(|memory| memory.bytes() < program.bytes()) {
            // The smaller one goes first.
            shared.memory = None;
            done(gpu.release());
            shared.memory = Some(done(gpu.alloc(program.bytes())));
        }
        let stage = |kept: &mut Option<Pinned>| {
            if kept.as_ref().is_none_or(|pinned| pinned.bytes() < plan.edges) {
                *kept = Some(done(gpu.pinned(plan.edges)));
            }
        };
        stage(&mut shared.up);
        stage(&mut shared.down);
        let memory = shared.memory.as_ref().expect("just made").address();
        // What the last run sent has arrived before this one writes there.
        let sent = shared.sent.get_or_insert_with(|| done(gpu.event()));
        done(sent.wait());
        let turn = done(gpu.turn());
        Self { plan, program, parameters, gradient, memory, shared, used: 0, turn }
    }

    fn at(&self, slot: &Slot) -> Address {
        self.memory.at(slot.bytes.start)
    }

    fn send<T: bytemuck::Pod>(&mut self, to: Address, values: &[T]) {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let at = self.used;
        self.used = (at + bytes.len()).next_multiple_of(64);
        let up = self.shared.up.as_mut().expect("made with the run");
        up.values_mut::<u8>(self.used)[at..at + bytes.len()].copy_from_slice(bytes);
        done(self.turn.send(to, up, at..at + bytes.len()));
        done(self.turn.mark(self.shared.sent.as_ref().expect("made with the run")));
    }

    /// Gives a value.
    pub(crate) fn fill(&mut self, slot: &Slot, values: &[f32]) {
        self.send(self.at(slot), values);
    }

    /// Runs the forward part, or the backward part.
    pub(crate) fn run(&mut self, forward: bool, context: Context) {
        if forward {
            let (seed, position) = context.position.map_or((0, 0), |at| (at.seed, at.position));
            let place = self.memory.at(self.program.places.context);
            self.send(place, &[seed, position]);
            if let Some(labels) = context.labels {
                self.send(place.at(16), labels);
            }
        }
        done(self.start(forward));
    }

    fn start(&self, forward: bool) -> Result<()> {
        let gradient = self.gradient.as_ref().map_or(Address::NULL, Buffer::address);
        let Self { turn, program, plan, memory, parameters, .. } = self;
        let (memory, parameters) = (*memory, *parameters);
        let steps = Steps { turn, program, plan, memory, parameters, gradient };
        let range = if forward { 0..self.plan.forward } else { self.plan.forward..self.plan.steps.len() };
        if profile::is_running() {
            if forward {
                let (ms, work) =
                    (turn.milliseconds(|| steps.prepare())?, Work { flop: 0.0, bytes: 6.0 * plan.layout.len() as f64 });
                profile::note(("weights in the type of the products".into(), work), ms / 1e3);
            }
            for i in range {
                let ms = turn.milliseconds(|| steps.run(i..i + 1))?;
                profile::note(plan.steps[i].work(&plan.layout, None), ms / 1e3);
            }
            return Ok(());
        }
        let all = |range: Range<usize>| {
            if forward {
                steps.prepare()?;
            }
            steps.run(range)
        };
        let addresses = [memory, parameters, gradient];
        let mut recorded = self.program.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        // What was recorded in memory that is no longer there is of no use.
        recorded.retain(|half| half.addresses[0] == addresses[0]);
        let found = recorded.iter().position(|half| half.forward == forward && half.addresses == addresses);
        match found {
            None => {
                // Libraries load their kernels in a first run, which cannot be recorded.
                if recorded.len() > 16 {
                    recorded.remove(0);
                }
                recorded.push(Recorded { addresses, forward, graph: None });
                all(range)
            }
            Some(at) => {
                if recorded[at].graph.is_none() {
                    recorded[at].graph = Some(self.turn.record(|| all(range))?);
                }
                let graph = recorded[at].graph.as_ref().expect("just recorded");
                self.turn.replay(graph)
            }
        }
    }

    /// A value.
    pub(crate) fn read(&mut self, slot: &Slot) -> &[f32] {
        let (from, len) = (self.at(slot), slot.kind.shape.len());
        let down = self.shared.down.as_mut().expect("made with the run");
        done(self.turn.receive(down, from, 4 * len));
        done(self.turn.wait());
        // What was on its way is there.
        self.used = 0;
        down.values(len)
    }

    /// Where a value lies, for kernels of the caller's.
    pub(crate) fn place(&self, slot: &Slot) -> (&Turn, Address) {
        (&self.turn, self.at(slot))
    }

    /// Looks at a value and gives another.
    pub(crate) fn answer<R>(&mut self, output: &Slot, seed: &Slot, with: impl FnOnce(&[f32], &mut [f32]) -> R) -> R {
        self.read(output);
        let (from, to) = (output.kind.shape.len(), seed.kind.shape.len());
        let at = self.at(seed);
        let Shared { up: Some(up), down: Some(down), .. } = &mut *self.shared else {
            unreachable!("made with the run")
        };
        let result = with(down.values(from), up.values_mut(to));
        done(self.turn.send(at, up, 0..4 * to));
        done(self.turn.mark(self.shared.sent.as_ref().expect("made with the run")));
        self.used = 4 * to;
        result
    }

    /// The gradient of the parameters.
    pub(crate) fn into_gradient(self) -> Gradient {
        let memory = self.gradient.expect("a run that has a gradient");
        Gradient::new(GradientMemory::Gpu(memory), self.plan.layout.len())
    }
}
